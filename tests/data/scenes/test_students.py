"""The small students: heads that read agreement, scores by likelihood, words of a language model, layers of BERT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_examples import picture
from safetensors.torch import load_file
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertLayer as OriginalLayer

from advl_data.scenes.students.bert_layer import BertLayer
from advl_data.scenes.students.scenes_smolvlm import meant_tokens
from advl_data.scenes.students.small import (
    DEVIATION,
    WORD_TABLE,
    Agreement,
    language_model_words,
    place_of_tags,
    said_tokens,
)
from advl_pipeline.datasets.records import Candidate, Example, ObjectTag, TextUnit, text_unit
from advl_pipeline.datasets.words import is_function_word, word_spans
from advl_pipeline.students.registry import build_student
from advl_pipeline.students.tokenizer import embedded_tokenizer_file

# Heads read whether what a text says agrees with what it speaks of.


def test_a_text_without_an_answer_says_all_of_its_tokens() -> None:
    mask = torch.tensor([[True, True, True, False], [True, True, True, True]])
    answer = torch.tensor([[False, False, True, True], [False] * 4])
    assert said_tokens(answer, mask).tolist() == [[False, False, True, False], [True] * 4]


def test_a_text_speaks_of_its_tags_or_of_the_whole_picture_and_of_nothing_where_that_is_hidden() -> None:
    tags_NLR = torch.zeros(2, 3, 4)
    tags_NLR[0, 1, 2] = 1.0
    tags_NLR[0, 2, 3] = 1.0
    assert place_of_tags(tags_NLR, hidden=False).tolist() == [[0, 0, 0.5, 0.5], [1, 0, 0, 0]]
    assert not bool(place_of_tags(tags_NLR, hidden=True).any())


def test_descent_on_likeness_alone_tells_the_named_region() -> None:
    """The pooled state is the same for all: only the product can tell which of four words is the region's."""
    torch.manual_seed(0)
    words = torch.nn.functional.normalize(torch.randn(12, 16), dim=-1)
    agreement, head = Agreement(16), torch.nn.Linear(16, 1)
    optimiser = torch.optim.Adam([*agreement.parameters(), *head.parameters()], lr=1e-2)
    pooled, is_said, place = torch.zeros(4, 16), torch.ones(4, 1, dtype=torch.bool), torch.ones(4, 1)

    def logits(choices: torch.Tensor) -> torch.Tensor:
        region = words[choices[0]].expand(4, 1, 16)
        return head(agreement(pooled, words[choices][:, None], is_said, region, place))[:, 0]  # type: ignore[no-any-return]

    for step in range(200):
        choices = torch.randperm(8, generator=torch.Generator().manual_seed(step))[:4]
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(logits(choices)[None], torch.tensor([0])).backward()
        optimiser.step()
    unseen = [
        logits(torch.tensor([first, *(other for other in range(8, 12) if other != first)])) for first in range(8, 12)
    ]
    assert [int(scores.argmax()) for scores in unseen] == [0, 0, 0, 0]


@pytest.mark.parametrize("name", ["scenes-small", "scenes-efficientnet", "scenes-uniter", "scenes-vilt"])
def test_what_is_said_is_a_candidates_own_part(name: str, tmp_path: Path) -> None:
    """The reason, and not the given answer before it, which all candidates share."""
    shown = picture(tmp_path / "a.png", 64, 48, boxes=[[4, 4, 30, 40]], labels=("thing",))
    question, context = "What is 1?", "What is 1? It is a horse."
    candidates = tuple(
        Candidate(
            text_unit=text_unit(f"{context} {reason}"),
            context_length=len(context),
            question_length=len(question),
            tags=(ObjectTag(start=8, end=9, box=0),),
        )
        for reason in ("It has hooves.", "It eats grass.")
    )
    example = Example(example_id="a", task="vcr-qa2r", image=shown, candidates=candidates, label=0)
    student: Any = build_student(name).eval()
    seen: list[torch.Tensor] = []
    student.agreement.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[2]))
    batch = student.collate([example])
    with torch.no_grad():
        student.encode(batch)
    (said_NL,) = seen
    for said_L, spans, candidate in zip(said_NL, batch.char_spans_NL2, candidates, strict=True):
        words = [candidate.text[start:end] for start, end in spans[said_L].tolist() if end > start]
        assert "".join(words) == candidate.text[candidate.context_length :].replace(" ", "")


# `scenes-smolvlm` scores by likelihood and agreement, and by likelihood alone without a picture.


@pytest.fixture(scope="module")
def examples(small_corpus: Any) -> list[Example]:
    return small_corpus.examples(number=4)


def test_said_are_the_words_of_the_answer_with_a_meaning() -> None:
    asked, stated = (TextUnit(unit_id="0" * 32, text=text) for text in ("what is it? the small heron", "it is the"))
    candidates = [Candidate(text_unit=asked, context_length=11), Candidate(text_unit=stated)]
    spans = [[(0, 4), (5, 7), (12, 15), (16, 21), (22, 27), (0, 0)], [(0, 2), (3, 5), (6, 9), (0, 0), (0, 0), (0, 0)]]
    said_NL = meant_tokens(candidates, torch.tensor(spans))
    assert said_NL.tolist() == [
        [False, False, False, True, True, False],
        [True, True, True, False, False, False],
    ]


def expected_agreement(student: Any, examples: list[Example]) -> list[float]:
    batch = student.collate(examples)
    with torch.no_grad():
        apart = student.encode_unimodal(batch)
    cosines = []
    candidates = [candidate for example in examples for candidate in example.candidates]
    for row, candidate in enumerate(candidates):
        spans = batch.char_spans_NL2[row].tolist()
        words = [span for span in word_spans(candidate.text) if span[0] >= candidate.answer_start]
        meant = [span for span in words if not is_function_word(candidate.text[slice(*span)].lower())]
        tokens = [
            t for t, (a, b) in enumerate(spans) if any(a < last and b > first for first, last in meant or words)
        ]
        boxes = [tag.box for tag in candidate.tags]
        places = batch.visual_mask_NR[row].nonzero()[:, 0].tolist()
        weights = [1.0] * len(places)
        if boxes:
            named = [box for box in boxes for _ in word_pieces(spans, candidate, box)]
            weights = [float(named.count(int(batch.box_index_NR[row, place]))) for place in places]
        answer_state = apart.text_states_NLH[row, tokens].mean(0)
        shown = sum(
            weight * apart.visual_states_NRH[row, place] for weight, place in zip(weights, places, strict=True)
        )
        cosines.append(float(torch.cosine_similarity(answer_state, shown / sum(weights), dim=0)))
    return cosines


def word_pieces(spans: list[list[int]], candidate: Candidate, box: int) -> list[int]:
    tags = [tag for tag in candidate.tags if tag.box == box]
    pieces = [t for t, (a, b) in enumerate(spans) if any(a < tag.end and b > tag.start for tag in tags)]
    # Once for each box, however often its tag is listed.
    return pieces[: max(1, len(pieces) // max(1, len(tags)))]


def test_a_score_is_likelihood_and_agreement(examples: list[Example]) -> None:
    torch.manual_seed(0)
    student = build_student("scenes-smolvlm").eval()
    with torch.no_grad():
        batch = student.collate(examples)
        answered, pooled = student.encode(batch).answered, student.encode_pooled(batch).answered
        hidden = student.encode(batch, mask_visual=True).answered
    likelihood_N = (answered.log_likelihood_NK / answered.num_tokens_NK)[:, 0]
    expected_N = likelihood_N + torch.tensor(expected_agreement(student, examples)) / 0.1
    torch.testing.assert_close(answered.scores[:, 0], expected_N, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pooled.scores, answered.scores, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(hidden.scores, hidden.log_likelihood_NK / hidden.num_tokens_NK)


def test_it_is_learned_through(examples: list[Example]) -> None:
    student = build_student("scenes-smolvlm").train()
    answered = student.encode(student.collate(examples)).answered
    answered.agreement_NK.sum().backward()
    reached = {
        name.split(".")[2]
        for name, parameter in student.named_parameters()
        if parameter.grad is not None and parameter.grad.any()
    }
    assert {"vision_model", "text_model"} <= reached


# Word vectors that start from a language model.


SIZE = 128


def test_reduced_words_are_the_principal_components_of_the_whole_table() -> None:
    table_VD = load_file(embedded_tokenizer_file().with_name("model.safetensors"))[WORD_TABLE].double().numpy()
    centred_VD = table_VD - table_VD.mean(axis=0)
    values, vectors_DD = np.linalg.eigh(np.cov(centred_VD.T))
    found_VE = language_model_words(SIZE).double().numpy()
    scale = DEVIATION / (centred_VD @ vectors_DD[:, -SIZE:]).std()
    for component in range(SIZE):
        loading_D = vectors_DD[:, -1 - component]
        loading_D = loading_D * np.sign(loading_D[np.abs(loading_D).argmax()])
        np.testing.assert_allclose(found_VE[:, component], scale * (centred_VD @ loading_D), atol=2e-4)
    assert values[-SIZE:].sum() / values.sum() > 0.3


def test_the_student_starts_from_them_and_the_plain_one_does_not() -> None:
    words_VE = build_student("scenes-small-lm").word_table()[0].weight.detach()
    assert torch.equal(words_VE, language_model_words(SIZE))
    assert not torch.allclose(build_student("scenes-small").word_table()[0].weight, words_VE, atol=0.1)
    unit_VE = torch.nn.functional.normalize(words_VE, dim=1)
    vocabulary = embedded_tokenizer_file().with_name("vocab.txt").read_text(encoding="utf-8").split("\n")
    cat, dog, hammer = (unit_VE[vocabulary.index(word)] for word in ("cat", "dog", "hammer"))
    assert cat @ dog > cat @ hammer + 0.1


# The layers compute what transformers' layers of BERT do, to the bit.


@pytest.mark.parametrize("is_training", [False, True])
def test_a_layer_is_that_of_bert(is_training: bool) -> None:
    config = BertConfig(
        hidden_size=12,
        num_attention_heads=3,
        intermediate_size=20,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    original = OriginalLayer(config).train(is_training)
    torch.manual_seed(0)
    ours = BertLayer(12, 3, 20, 0.1).train(is_training)
    # The same names and the same draws.
    assert all(torch.equal(ours.state_dict()[name], value) for name, value in original.state_dict().items())
    x_NTH, bias = torch.randn(2, 5, 12), torch.where(torch.rand(2, 1, 1, 5) < 0.3, -1e4, 0.0)
    outputs, gradients = [], []
    for layer in (original, ours):
        torch.manual_seed(1)
        outputs.append(layer(x_NTH, bias))
        outputs[-1].square().sum().backward()
        gradients.append([value.grad for value in layer.parameters()])
    assert torch.equal(*outputs)
    assert all(map(torch.equal, *gradients))
