"""Relations and landmarks against loops, and what they must not depend on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from advl_pipeline.distillation.adapt_objectives import drift
from advl_pipeline.distillation.relational import (
    CLEAR_SHARE,
    TEMPERATURE,
    Landmarks,
    LandmarkSums,
    landmark_divergence,
    mean_of_words,
    region_landmarks,
    relational_divergence,
    unplaced_words,
)
from advl_pipeline.distillation.signal import WordAlignment


def by_loop(student: torch.Tensor, teacher: torch.Tensor, group: torch.Tensor) -> list[float]:
    found = []
    for i in range(len(student)):
        others = [j for j in range(len(student)) if group[j] != group[i]]
        rows = []
        for states in (teacher, student):
            centred = states - states.mean(0)
            cosines = [float(functional.cosine_similarity(centred[i], centred[j], dim=0)) for j in others]
            top = max(cosines, default=0.0)
            powers = [math.exp((value - top) / TEMPERATURE) for value in cosines]
            rows.append([power / sum(powers) for power in powers])
        found.append(sum(p * math.log(p / q) for p, q in zip(*rows, strict=True) if p > 0))
    return found


@settings(deadline=None, max_examples=30)
@given(st.integers(3, 9), st.integers(0, 10_000), st.integers(1, 4))
def test_equals_a_loop_over_pairs(num_nodes: int, seed: int, num_groups: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(num_nodes, 6, generator=generator)
    teacher = torch.randn(num_nodes, 4, generator=generator)
    group = torch.randint(num_groups, (num_nodes,), generator=generator)
    expected = torch.tensor(by_loop(student, teacher, group), dtype=torch.float32)
    torch.testing.assert_close(relational_divergence(student, teacher, group), expected, atol=1e-3, rtol=1e-3)


def test_is_zero_for_the_teacher_s_own_relations_and_has_no_gradient_into_the_teacher() -> None:
    teacher = torch.randn(8, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    student = teacher.detach().clone().requires_grad_()
    value = relational_divergence(student, teacher, torch.arange(8)).sum()
    assert float(value.detach()) == pytest.approx(0.0, abs=1e-5)
    value.backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_a_node_without_others_has_no_divergence_and_a_finite_gradient() -> None:
    student = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    value = relational_divergence(student, torch.randn(3, 5), torch.zeros(3, dtype=torch.long))
    assert value.tolist() == [0.0, 0.0, 0.0]
    value.sum().backward()
    assert bool(student.grad.isfinite().all())


def test_drift_counts_what_pretraining_knew_in_units_of_variance() -> None:
    reference = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    moved = reference.clone()
    moved[0] += 2.0
    variance = float(reference.var(0, unbiased=False).mean())
    weight = torch.zeros(40)
    shown = torch.ones(40, dtype=torch.bool)
    assert float(drift(moved, reference, weight, shown)) == 0.0
    weight[:4] = 1.0
    assert float(drift(moved, reference, weight, shown)) == pytest.approx(4.0 / variance / 4, rel=1e-4)
    assert float(drift(10 * moved, 10 * reference, weight, shown)) == pytest.approx(4.0 / variance / 4, rel=1e-4)
    padded = [functional.pad(rows, (0, 0, 0, 9), value=7.0) for rows in (2 * moved, reference)]
    padded[0][:40] = moved
    expected = drift(moved, reference, weight, shown)
    torch.testing.assert_close(
        drift(*padded, functional.pad(weight, (0, 9), value=1.0), functional.pad(shown, (0, 9))), expected
    )


def test_drift_from_nodes_that_are_all_alike_is_no_term() -> None:
    reference = torch.randn(1, 6, generator=torch.Generator().manual_seed(0)).expand(5, 6)
    states = (reference + 1e-3).detach().requires_grad_()
    value = drift(states, reference, torch.ones(5), torch.ones(5, dtype=torch.bool))
    value.backward()
    assert float(value.detach()) == 0.0
    assert not states.grad.any()


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_divergence_equals_a_loop() -> None:
    landmarks = Landmarks(states_KH=draw(6, 5, seed=1), features_KD=draw(6, 8, seed=2), mean_D=draw(8, seed=3))
    states, features = draw(4, 5, seed=4), draw(4, 8, seed=5)
    found = landmark_divergence(states, features, landmarks)
    centre_h, centre_t = landmarks.states_KH.mean(0).numpy(), landmarks.features_KD.mean(0).numpy()
    for node in range(4):
        similarities = []
        for vector, others, centre in (
            (features[node] - landmarks.mean_D, landmarks.features_KD, centre_t),
            (states[node] - torch.tensor(centre_h), landmarks.states_KH, centre_h),
        ):
            one = vector.numpy()
            cosines = [
                float(one @ (other - centre) / np.linalg.norm(one) / np.linalg.norm(other - centre))
                for other in others.numpy()
            ]
            raised = np.exp(np.array(cosines) / TEMPERATURE)
            similarities.append(raised / raised.sum())
        p, q = similarities
        assert float(found[node]) == pytest.approx(float((p * np.log(p / q)).sum()), rel=1e-4, abs=1e-5)


def test_sums_over_batches_are_means_of_known_words_whatever_the_batches() -> None:
    states, features = draw(3, 4, 5, seed=7), draw(3, 4, 8, seed=8)
    form = torch.tensor([[1, 2, 3, 4], [1, 5, 6, 0], [2, 2, 4, 6]])
    known = torch.tensor([[1, 1, 0, 1], [1, 0, 1, 1], [1, 1, 1, 1]]) > 0
    node = torch.tensor([[True] * 4, [True, True, True, False], [True] * 4])
    found = []
    for batches in ([[0, 1, 2]], [[2], [0, 1]]):
        sums = LandmarkSums()
        for rows in batches:
            taken = node[rows]
            sums.add(states[rows][taken], features[rows][taken], form[rows][taken], known[rows][taken])
        found.append(sums.landmarks())
    whole, parts = found
    torch.testing.assert_close(whole.states_KH, parts.states_KH)
    torch.testing.assert_close(whole.features_KD, parts.features_KD)
    torch.testing.assert_close(whole.mean_D, features[node].mean(0))
    # Words 1, 2, 4 and 6 are known; 0 is no word that both sides have.
    expected = [states[0, 0] + states[1, 0], states[0, 1] + states[2, 0] + states[2, 1], states[0, 3] + states[2, 2]]
    torch.testing.assert_close(whole.states_KH[:3], torch.stack([expected[0] / 2, expected[1] / 3, expected[2] / 2]))
    assert len(whole.states_KH) == 4


def test_too_few_known_words_are_no_landmarks() -> None:
    sums = LandmarkSums()
    sums.add(draw(3, 5, seed=0), draw(3, 8, seed=1), torch.tensor([1, 2, 3]), torch.ones(3, dtype=torch.bool))
    assert sums.landmarks() is None


def test_known_and_frequent_words_are_not_placed_and_a_text_is_the_mean_of_the_others() -> None:
    form_NW = torch.tensor([[1, 2, 3], [4, 5, 6]])
    words = WordAlignment(
        word_of_token_NL=torch.zeros_like(form_NW),
        prior_NW=torch.ones(form_NW.shape),
        word_mask_NW=form_NW > 0,
        form_NW=form_NW,
        known_NW=torch.tensor([[0.0, 1.0, 0.0], [1.0, 1.0, 1.0]]),
        held_NW=torch.zeros(2, 3, dtype=torch.bool),
        frequent_NW=form_NW == 3,
    )
    unplaced = unplaced_words(torch.ones(2, 3, dtype=torch.bool), words)
    assert unplaced.tolist() == [[True, False, False], [False, False, False]]
    values = draw(2, 3, 4, seed=0)
    torch.testing.assert_close(mean_of_words(values, unplaced), values[:1, 0])


def test_regions_with_a_clear_name_are_landmarks_under_it() -> None:
    words, states, features = draw(6, 5, seed=0), draw(60, 5, seed=1), draw(60, 8, seed=2)
    found = region_landmarks(states, features, words)
    assert found is not None
    leads, names = [], []
    for state in states.numpy():
        cosines = [float(state @ word / np.linalg.norm(state) / np.linalg.norm(word)) for word in words.numpy()]
        leads.append(sorted(cosines)[-1] - sorted(cosines)[-2])
        names.append(int(np.argmax(cosines)))
    is_clear = np.array(leads) >= np.quantile(leads, 1 - CLEAR_SHARE)
    rows = {word: [row for row in range(60) if is_clear[row] and names[row] == word] for word in sorted(set(names))}
    rows = {word: of_word for word, of_word in rows.items() if len(of_word) > 1}
    assert len(rows) >= 4
    torch.testing.assert_close(found.states_KH, torch.stack([states[of_word].mean(0) for of_word in rows.values()]))
    torch.testing.assert_close(
        found.features_KD, torch.stack([features[of_word].mean(0) for of_word in rows.values()])
    )
    torch.testing.assert_close(found.mean_D, features.mean(0))
    assert found.known(states[None])[0].tolist() == is_clear.tolist()
    longer = torch.arange(1, 61)[:, None]
    assert found.known((longer * states)[None])[0].tolist() == is_clear.tolist(), "only directions count"


def test_regions_of_too_few_names_are_no_landmarks() -> None:
    words = draw(6, 5, seed=0)
    alike = words[:3].repeat(20, 1) + 0.01 * draw(60, 5, seed=1)
    assert region_landmarks(alike, draw(60, 8, seed=2), words) is None
    assert region_landmarks(alike[:0], draw(0, 8, seed=2), words) is None
