"""`scenes-smolvlm` scores by likelihood and agreement: against a loop, and by likelihood alone without a picture."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from advl_data.scenes.students.scenes_smolvlm import meant_tokens
from advl_pipeline.datasets.records import Candidate, Example, TextUnit
from advl_pipeline.datasets.words import is_function_word, word_spans
from advl_pipeline.students.registry import build_student


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
