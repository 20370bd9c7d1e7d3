"""The small students: heads, scores by likelihood, words of a language model, layers of BERT."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_examples import picture
from safetensors.torch import load_file
from torch.nn import functional
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertLayer as OriginalLayer

from advl_data.scenes.students.bert_layer import BertLayer
from advl_data.scenes.students.lookup import LookupHead, LookupOutput, found_shares
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


def test_descent_on_similarity_alone_tells_the_named_region() -> None:
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


# Heads of classes find in the picture what a text speaks of, by similarity and by how rare its words are.

WIDTH, NUM_TOKENS, NUM_REGIONS = 16, 30, 5
NAN = float("nan")


def made_output(seed: int = 0, *, num_texts: int = 3) -> LookupOutput:
    """Return random states of texts of four tokens, and of five regions; the first visual token lies nowhere."""
    draw = torch.Generator().manual_seed(seed)
    place_NR4 = torch.rand(num_texts, NUM_REGIONS + 1, 4, generator=draw)
    place_NR4[:, 0] = NAN
    text_NLH = torch.randn(num_texts, 4, WIDTH, generator=draw)
    visual_NRH = torch.randn(num_texts, NUM_REGIONS + 1, WIDTH, generator=draw)
    return LookupOutput(
        text_states_NLH=text_NLH,
        visual_states_NRH=visual_NRH,
        pooled_NP=torch.randn(num_texts, WIDTH, generator=draw),
        token_ids_NL=torch.randint(NUM_TOKENS, (num_texts, 4), generator=draw),
        token_mask_NL=torch.ones(num_texts, 4, dtype=torch.bool),
        lower_text_NLH=text_NLH,
        lower_visual_NRH=visual_NRH,
        place_NR4=place_NR4,
    )


def made_head(seed: int = 0, num_classes: int = 4) -> LookupHead:
    torch.manual_seed(seed)
    return LookupHead(WIDTH, NUM_TOKENS, num_classes)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.lists(st.floats(-1, 1, width=32), min_size=3, max_size=3), min_size=1, max_size=4),
    st.lists(st.booleans(), min_size=3, max_size=3),
)
def test_shares_add_up_to_one_over_what_has_a_place(similarity: list[list[float]], is_place: list[bool]) -> None:
    similarity_NR = torch.tensor(similarity)
    share_NR = found_shares(similarity_NR, torch.tensor(is_place).expand(len(similarity), 3))
    torch.testing.assert_close(share_NR.sum(1), torch.full((len(similarity),), float(any(is_place))))
    assert not bool(share_NR[:, [not place for place in is_place]].any())
    for row, shares in zip(similarity, share_NR.tolist(), strict=True):
        ranked = [share for _, share, place in sorted(zip(row, shares, is_place, strict=True)) if place]
        assert all(first <= second + 1e-6 for first, second in pairwise(ranked))


def test_padding_and_the_order_of_regions_change_nothing() -> None:
    head, output = made_head(), made_output()
    expected = head(output)
    order = torch.tensor([0, 4, 2, 5, 1, 3])
    turned = dataclasses.replace(
        output, lower_visual_NRH=output.lower_visual_NRH[:, order], place_NR4=output.place_NR4[:, order]
    )
    torch.testing.assert_close(head(turned), expected)
    padded = dataclasses.replace(
        output,
        token_ids_NL=functional.pad(output.token_ids_NL, (0, 2), value=7),
        token_mask_NL=functional.pad(output.token_mask_NL, (0, 2)),
        lower_text_NLH=functional.pad(output.lower_text_NLH, (0, 0, 0, 2), value=3.0),
        lower_visual_NRH=functional.pad(output.lower_visual_NRH, (0, 0, 0, 3), value=9.0),
        place_NR4=functional.pad(output.place_NR4, (0, 0, 0, 3), value=NAN),
    )
    torch.testing.assert_close(head(padded), expected)


def test_words_that_every_text_holds_say_next_to_nothing() -> None:
    """A text of one rare word among frequent ones finds the region of the rare word; unread texts find another."""
    head, output = made_head(), made_output(num_texts=1)
    regions = functional.normalize(torch.eye(WIDTH)[: NUM_REGIONS + 1], dim=-1)[None]
    frequent, rare = regions[0, 1], regions[0, 3]
    text_NLH = torch.stack([frequent, frequent, frequent, rare])[None]
    ids_NL = torch.tensor([[1, 2, 3, 9]])
    middle_NR4 = torch.where(output.place_NR4.isnan(), torch.nan, 0.5)
    asked = dataclasses.replace(
        output, lower_text_NLH=text_NLH, lower_visual_NRH=regions, token_ids_NL=ids_NL, place_NR4=middle_NR4
    )
    moved_frequent, moved_rare = (middle_NR4.clone() for _ in range(2))
    moved_frequent[0, 1], moved_rare[0, 3] = 0.9, 0.9

    @torch.no_grad()
    def moves(place_NR4: torch.Tensor) -> float:
        return float((head(dataclasses.replace(asked, place_NR4=place_NR4)) - head(asked)).abs().max())

    assert moves(moved_frequent) > 10 * moves(moved_rare)
    every_NL = torch.tensor([[1, 2, 3, number % 8 + 10] for number in range(400)])
    head.read_texts([(every_NL[:300], torch.ones(300, 4, dtype=torch.bool)), (every_NL[300:], every_NL[300:] > 0)])
    assert moves(moved_rare) > 10 * moves(moved_frequent)


def test_shares_of_texts_count_a_word_once_in_a_text_and_no_padding() -> None:
    head = made_head()
    ids_NL = torch.tensor([[5, 5, 6, 0], [5, 7, 0, 0]])
    head.read_texts([(ids_NL, ids_NL > 0)])
    expected = torch.zeros(NUM_TOKENS)
    expected[[5, 6, 7]] = torch.tensor([1.0, 0.5, 0.5])
    assert torch.equal(head.token_share_V, expected)
    assert "token_share_V" in head.state_dict()


def test_a_hidden_picture_is_not_read() -> None:
    head, first, second = made_head(), made_output(0), made_output(1)
    hidden = dataclasses.replace(first, place_NR4=torch.full_like(first.place_NR4, NAN))
    other = dataclasses.replace(hidden, lower_visual_NRH=second.lower_visual_NRH)
    assert torch.equal(head(hidden), head(other))
    assert torch.isfinite(head(hidden)).all()
    assert not torch.equal(head(first), head(dataclasses.replace(first, lower_visual_NRH=second.lower_visual_NRH)))


def test_gradients_reach_words_and_regions_through_what_is_found() -> None:
    head, output = made_head(), made_output()
    text, visual = (states.clone().requires_grad_() for states in (output.lower_text_NLH, output.lower_visual_NRH))
    head(dataclasses.replace(output, lower_text_NLH=text, lower_visual_NRH=visual)).square().sum().backward()
    assert bool(visual.grad[:, 1:].abs().sum(-1).bool().all())
    assert not bool(visual.grad[:, 0].any()), "the whole picture lies nowhere"
    assert bool(text.grad.abs().sum(-1).bool().all())
