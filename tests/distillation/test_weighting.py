"""Which words are distilled, and by what weight an instance is: against formulas written out, and their bounds."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advl_pipeline.datasets.words import fit_word_prior
from advl_pipeline.distillation.settings import DistillationSettings
from advl_pipeline.distillation.signal import TeacherSignal
from advl_pipeline.distillation.weighting import (
    EPSILON,
    WEIGHT_MAX,
    choice_confidence,
    min_max_scale,
    pathway_weights,
    select_words,
    soft_label_confidence,
)

PROBABILITY = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=8)


def weights(kind: Any, teacher_B: torch.Tensor, student_B: torch.Tensor) -> torch.Tensor:
    chosen, signal = DistillationSettings(weighting=kind), TeacherSignal(confidence={"text": teacher_B})
    return pathway_weights(chosen, signal, "text", student_B)


@given(PROBABILITY, st.floats(0.0, 1.0))
@settings(deadline=None)
def test_every_rule_is_its_formula_bounded(teacher: list[float], student: float) -> None:
    c_t = torch.tensor(teacher, dtype=torch.float64)
    c_s = torch.full_like(c_t, student)
    rules = {
        "ratio": [min(WEIGHT_MAX, t / (student + EPSILON)) for t in teacher],
        "uniform": [1.0 for _ in teacher],
    }
    for kind, expected in rules.items():
        assert weights(kind, c_t, c_s).tolist() == pytest.approx(expected)


def test_no_gradient_flows_into_the_student_through_a_weight() -> None:
    student = torch.tensor([0.5], requires_grad=True)
    assert not weights("ratio", torch.tensor([0.5]), student).requires_grad


def test_without_a_confidence_weights_are_uniform() -> None:
    for kind in ("ratio", "uniform"):
        chosen = DistillationSettings(weighting=kind)
        assert pathway_weights(chosen, TeacherSignal(), "text", torch.full((4,), 0.1)).tolist() == [1.0] * 4


def test_confidence_is_the_probability_of_the_ground_truth() -> None:
    logits = torch.tensor([[2.0, 0.0, -torch.inf]])
    assert choice_confidence(logits, torch.tensor([0])).item() == pytest.approx(1 / (1 + math.exp(-2)))
    scores = torch.tensor([[1.0, 0.3, 0.0], [0.0, 0.0, 0.0]])
    soft = soft_label_confidence(torch.tensor([[0.0, 1.0, 9.0], [1.0, 1.0, 1.0]]), scores)
    expected = (1.0 * 0.5 + 0.3 / (1 + math.exp(-1))) / 1.3
    assert soft.tolist() == pytest.approx([expected, 0.0])


@pytest.mark.parametrize("num_examples", [2, 3, 8])
def test_shuffled_weights_are_all_of_other_instances(num_examples: int) -> None:
    teacher_B = torch.arange(1, num_examples + 1) / 10
    signal = TeacherSignal(confidence={"text": teacher_B})
    options = DistillationSettings(weight_shuffle=True)
    by_ratio_B = weights("ratio", teacher_B, torch.ones(num_examples))
    for seed in range(20):
        found_B = pathway_weights(
            options, signal, "text", torch.ones(num_examples), generator=torch.Generator().manual_seed(seed)
        )
        assert found_B.sort().values.equal(by_ratio_B)
        assert not (found_B == by_ratio_B).any()


PRIOR = torch.tensor([[0.0, 3.0, 1.0, 2.0, 0.0, 0.0]])
RELEVANCE = torch.tensor([[0.9, 0.1, 0.2, 0.3, 0.8, 0.0]])
MASK = torch.tensor([[True, True, True, True, True, False]])


def chosen(kind: str, **changes: object) -> list[int]:
    settings_ = {"alpha": 0.5, "rho": 0.4, "relevance_NW": RELEVANCE, **changes}
    return select_words(kind, mask_NW=MASK, prior_NW=PRIOR, **settings_)[0].nonzero().flatten().tolist()


def test_each_option_scores_by_its_own_rule() -> None:
    assert chosen("prior") == [1, 3]
    assert chosen("all") == [0, 1, 2, 3, 4]
    # 0.5 * prior + 0.5 * relevance, both scaled: 0.5, 0.5, 0.23, 0.46, 0.4
    assert chosen("adaptive") == [0, 1]
    assert chosen("adaptive", alpha=1.0) == chosen("prior")
    assert chosen("adaptive", alpha=0.0) == [0, 4]
    assert chosen("adaptive", relevance_NW=None) == chosen("prior")


def test_random_takes_as_many_and_follows_its_generator() -> None:
    draws = {tuple(chosen("random", generator=torch.Generator().manual_seed(seed))) for seed in range(40)}
    assert all(len(draw) == 2 for draw in draws)
    assert len(draws) > 5
    again = chosen("random", generator=torch.Generator().manual_seed(7))
    assert again == chosen("random", generator=torch.Generator().manual_seed(7))


@given(num_words=st.integers(1, 12), padding=st.integers(0, 5), rho=st.floats(0.05, 1.0), seed=st.integers(0, 99))
@settings(deadline=None)
def test_keeps_the_stated_share_and_ignores_padding(num_words: int, padding: int, rho: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    prior = torch.rand(1, num_words, generator=generator)
    relevance = torch.rand(1, num_words, generator=generator)
    mask = torch.ones(1, num_words, dtype=torch.bool)
    plain = select_words("adaptive", mask_NW=mask, prior_NW=prior, relevance_NW=relevance, alpha=0.5, rho=rho)
    assert int(plain.sum()) == min(num_words, math.ceil(rho * num_words - 1e-6))
    extra = torch.full((1, padding), 9.0)
    padded = select_words(
        "adaptive",
        mask_NW=torch.cat([mask, torch.zeros(1, padding, dtype=torch.bool)], 1),
        prior_NW=torch.cat([prior, extra], 1),
        relevance_NW=torch.cat([relevance, extra], 1),
        alpha=0.5,
        rho=rho,
    )
    assert padded[:, :num_words].equal(plain)
    assert not padded[:, num_words:].any()


def test_scaling_is_inside_the_instance() -> None:
    values = torch.tensor([[1.0, 2.0, 3.0, 50.0], [5.0, 5.0, 5.0, 5.0]])
    mask = torch.tensor([[True, True, True, False], [True, True, True, True]])
    assert min_max_scale(values, mask).tolist() == [[0.0, 0.5, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]]


def test_prior_is_idf_with_function_words_at_zero() -> None:
    prior = fit_word_prior(["The cat sat.", "The dog sat.", "A cat!"])
    values = prior.of_text("The cat, the dog and a zebra.")
    the, cat, comma, _, dog, _, _, zebra, stop = values.tolist()
    assert the == comma == stop == 0.0
    assert cat == pytest.approx(math.log(4 / 3) + 1)
    assert dog == pytest.approx(math.log(4 / 2) + 1)
    assert zebra == pytest.approx(math.log(4) + 1)


def test_words_of_many_texts_are_frequent_and_those_of_few_never_are() -> None:
    many = fit_word_prior(
        [f"what is true of it {'rare' if number < 3 else ''} word{number}" for number in range(200)]
    )
    prior = dict(zip(("true", "rare", "word7"), many.of_text("true rare word7").tolist(), strict=True))
    assert 0 < prior["true"] < many.frequent_below < prior["rare"] < prior["word7"]
    few = fit_word_prior(["a cat", "a cat", "a cat", "a dog"])
    assert all(value > few.frequent_below for value in few.of_text("cat dog").tolist())
