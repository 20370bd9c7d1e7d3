"""Cross-fitted probes: no leak, right at the extremes and the edges, exact against a plain reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.sparse import csr_array
from scipy.special import softmax

from advl_pipeline.confidence import probe
from advl_pipeline.confidence.estimators import assign_folds
from advl_pipeline.confidence.probe import ProbeData, cross_fitted_confidence

Labels = npt.NDArray[np.int64]


def cross_fitted_probability(data: ProbeData, fold_N: Labels) -> npt.NDArray[np.float32]:
    return cross_fitted_confidence(data, fold_N).probability_N


def all_there(features_NCF: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    return np.ones(features_NCF.shape[:2], np.bool_)


def choice_data(num: int, *, informative: bool, width: int = 48, seed: int = 0) -> ProbeData:
    generator = np.random.default_rng(seed)
    features = generator.standard_normal((num, 4, width)).astype(np.float32)
    label_N = generator.integers(0, 4, num)
    if informative:
        features[np.arange(num), label_N, :12] += 2.0
    return ProbeData(kind="choice", features_NCF=features, valid_NC=all_there(features), label_N=label_N)


def folds_of(num: int, *, folds: int = 5, seed: int = 0) -> Labels:
    return assign_folds([f"picture-{index // 2}" for index in range(num)], folds=folds, seed=seed)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=120), st.integers(2, 8), st.integers(0, 3), st.randoms())
def test_folds_keep_groups_together_whatever_the_order(
    numbers: list[int], folds: int, seed: int, random: object
) -> None:
    groups = [f"g{number}" for number in numbers]
    fold_N = assign_folds(groups, folds=folds, seed=seed)
    fold_of = dict(zip(groups, fold_N.tolist(), strict=True))
    assert [fold_of[group] for group in groups] == fold_N.tolist()
    assert set(fold_N.tolist()) == set(range(min(folds, len(fold_of))))
    shuffled = groups.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert dict(zip(shuffled, assign_folds(shuffled, folds=folds, seed=seed).tolist(), strict=True)) == fold_of
    loads = np.bincount(fold_N)
    largest = max(groups.count(group) for group in fold_of)
    assert loads.max() - loads.min() <= largest


@pytest.mark.parametrize("kind", ["choice", "classes"])
def test_labels_of_a_fold_never_reach_the_head_that_predicts_it(kind: str) -> None:
    """Permuting labels inside a fold leaves that fold's predicted distributions as they were, to the last bit."""
    data = choice_data(120, informative=True)
    if kind == "classes":
        first_N1F = data.features_NCF[:, :1]
        data = replace(data, kind="classes", features_NCF=first_N1F, valid_NC=all_there(first_N1F), num_classes=4)
    fold_N = folds_of(120)
    for fold in (0, 4):
        held_out = np.flatnonzero(fold_N == fold)
        distribution = []
        # The probability of "the truth" under every label in turn is the whole distribution.
        for shift in range(4):
            label_N = data.label_N.copy()
            label_N[held_out] = (data.label_N[held_out] + shift) % 4
            distribution.append(cross_fitted_probability(replace(data, label_N=label_N), fold_N)[held_out])
        np.testing.assert_allclose(np.sum(distribution, axis=0), 1.0, atol=1e-5)
        permuted = data.label_N.copy()
        permuted[held_out] = np.random.default_rng(fold).permutation(permuted[held_out])
        found = cross_fitted_probability(replace(data, label_N=permuted), fold_N)[held_out]
        shifts = (permuted[held_out] - data.label_N[held_out]) % 4
        np.testing.assert_array_equal(found, np.array(distribution)[shifts, np.arange(len(held_out))])


def soft_data(scores_NK: npt.NDArray[np.float32], *, width: int = 24) -> ProbeData:
    """One feature for each answer, large where annotators gave it, in noise; the features are always the same."""
    generator = np.random.default_rng(0)
    features = generator.standard_normal((len(scores_NK), 1, width)).astype(np.float32)
    features[:, 0, : scores_NK.shape[1]] += 3.0 * soft_scores(len(scores_NK))
    num_classes = scores_NK.shape[1]
    return ProbeData(
        kind="soft-labels",
        features_NCF=features,
        valid_NC=all_there(features),
        score_NK=csr_array(scores_NK),
        num_classes=num_classes,
    )


def soft_scores(num: int) -> npt.NDArray[np.float32]:
    """Scores of five answers as VQA has them: two answers of a question, or none that is known."""
    generator = np.random.default_rng(1)
    scores = np.zeros((num, 5), np.float32)
    for row in range(num):
        first, second = generator.permutation(5)[:2]
        scores[row, first] = generator.choice([0.6, 0.9, 1.0])
        scores[row, second] = generator.choice([0.0, 0.3])
    scores[::17] = 0.0
    return scores


def test_scores_of_a_fold_never_reach_the_head_that_predicts_it() -> None:
    """As above for soft labels: the probability of each answer is what it was, whatever the fold's scores are."""
    scores = soft_scores(120)
    fold_N = folds_of(120)
    for fold in (0, 4):
        held_out = np.flatnonzero(fold_N == fold)
        probability_nK = np.empty((len(held_out), 5), np.float32)
        for answer in range(5):
            alone = scores.copy()
            alone[held_out] = np.eye(5, dtype=np.float32)[answer]
            probability_nK[:, answer] = cross_fitted_probability(soft_data(alone), fold_N)[held_out]
        turned = scores.copy()
        answers = np.random.default_rng(fold).integers(0, 5, len(held_out))
        turned[held_out] = np.eye(5, dtype=np.float32)[answers]
        found = cross_fitted_probability(soft_data(turned), fold_N)[held_out]
        np.testing.assert_array_equal(found, probability_nK[np.arange(len(held_out)), answers])
        permuted = scores.copy()
        permuted[held_out] = np.random.default_rng(fold).permutation(permuted[held_out])
        for changed in (scores, permuted):
            found = cross_fitted_probability(soft_data(changed), fold_N)[held_out]
            total_n = changed[held_out].sum(axis=1)
            expected = (changed[held_out] * probability_nK).sum(axis=1) / np.where(total_n > 0, total_n, 1.0)
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_scores_and_labels_of_other_folds_do_matter() -> None:
    scores, data, fold_N = soft_scores(120), choice_data(120, informative=True), folds_of(120)
    assert data.label_N is not None
    answered = (fold_N == 0) & (scores.sum(axis=1) > 0)
    changed = np.where((fold_N == 0)[:, None], scores, np.roll(scores, 1, axis=1))
    before, after = (cross_fitted_probability(soft_data(values), fold_N)[answered] for values in (scores, changed))
    assert before.mean() > after.mean() + 0.3
    others = np.where(fold_N == 0, data.label_N, (data.label_N + 1) % 4)
    before, after = (
        cross_fitted_probability(replace(data, label_N=labels), fold_N) for labels in (data.label_N, others)
    )
    assert (before[fold_N == 0] > 0.8).mean() > 0.9
    assert (after[fold_N == 0] < 0.2).mean() > 0.9


def test_a_head_is_the_minimum_of_the_penalised_loss() -> None:
    """Against an independent formulation, minimised without our gradient."""
    data = choice_data(40, informative=True, width=3)
    assert data.label_N is not None
    rows = np.arange(40)
    (head,) = probe.ProbeHead.fit(data, probe.centred_features(data), rows, [0.05])
    features = data.features_NCF.astype(np.float64)
    features -= features.mean(axis=1, keepdims=True)
    flat = features.reshape(-1, 3)
    features = (features - flat.mean(axis=0)) / flat.std(axis=0) / np.sqrt(3)

    def loss(weight_F: npt.NDArray[np.float64]) -> float:
        p_NC = softmax(features @ weight_F, axis=1)
        return float(-np.log(p_NC[rows, data.label_N]).mean() + 0.025 * weight_F @ weight_F)

    reference = minimize(loss, np.zeros(3), method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-12})
    np.testing.assert_allclose(head.weight_FO[:, 0], reference.x, rtol=2e-2, atol=2e-2)
    assert loss(head.weight_FO[:, 0]) == pytest.approx(reference.fun, abs=1e-5)


def test_absent_candidates_take_no_part() -> None:
    """Padding an example with candidates that it lacks changes nothing, whatever the padding holds."""
    data = choice_data(60, informative=True)
    valid_NC = np.ones((60, 6), np.bool_)
    valid_NC[:, 4:] = False
    padded = np.full((60, 6, data.features_NCF.shape[2]), 99.0, np.float32)
    padded[:, :4] = data.features_NCF
    wide = ProbeData(kind="choice", features_NCF=padded, valid_NC=valid_NC, label_N=data.label_N)
    np.testing.assert_allclose(
        cross_fitted_probability(wide, folds_of(60)), cross_fitted_probability(data, folds_of(60)), atol=1e-4
    )


@pytest.mark.parametrize("num_groups", [1, 2, 3])
def test_fewer_groups_than_folds(num_groups: int) -> None:
    data = choice_data(24, informative=True)
    fold_N = assign_folds([str(index % num_groups) for index in range(24)], folds=5, seed=0)
    found = cross_fitted_probability(data, fold_N)
    assert np.isfinite(found).all()
    if num_groups == 1:
        np.testing.assert_array_equal(found, 0.25)
    else:
        assert found.mean() > 0.4


def test_one_class_alone_and_classes_the_training_folds_lack() -> None:
    generator = np.random.default_rng(0)
    features = generator.standard_normal((40, 1, 8)).astype(np.float32)
    same = ProbeData(
        kind="classes",
        features_NCF=features,
        valid_NC=all_there(features),
        label_N=np.ones(40, np.int64),
        num_classes=3,
    )
    assert cross_fitted_probability(same, folds_of(40)).min() > 0.8
    rare_N = np.ones(40, np.int64)
    rare_N[0] = 2
    found = cross_fitted_probability(replace(same, label_N=rare_N), folds_of(40))
    assert 0.0 <= found[0] < 0.2


def test_constant_features_give_chance() -> None:
    label_N = np.random.default_rng(0).integers(0, 4, 50)
    data = replace(choice_data(50, informative=False, width=6), features_NCF=np.ones((50, 4, 6), np.float32))
    data = replace(data, label_N=label_N)
    np.testing.assert_allclose(cross_fitted_probability(data, folds_of(50)), 0.25, atol=1e-6)


def test_the_fit_is_bounded_by_a_sample_of_the_training_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    data = choice_data(200, informative=True)
    whole = cross_fitted_probability(data, folds_of(200))
    monkeypatch.setattr(probe, "MAX_FIT_EXAMPLES", 80)
    monkeypatch.setattr(probe, "PREDICT_BLOCK", 7)
    sampled = cross_fitted_probability(data, folds_of(200))
    assert not np.array_equal(whole, sampled)
    assert sampled.mean() > 0.8


def test_thousands_of_answers_cost_as_much_as_the_frequent_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers too rare for weights keep their rate; those that have weights come out as without the others."""
    scores = np.zeros((200, 40), np.float32)
    scores[:, :5] = soft_scores(200)
    scores[::50, 5 + np.arange(4)] = 1.0
    monkeypatch.setattr(probe, "MAX_FIT_CLASSES", 5)
    done: list[int] = []
    data = replace(soft_data(scores[:, :5]), score_NK=csr_array(scores), num_classes=40)
    found = cross_fitted_confidence(data, folds_of(200), progress=done.append)
    assert sum(done) == 200
    few = cross_fitted_probability(soft_data(scores[:, :5]), folds_of(200))
    both = scores[:, :5].sum(axis=1) > 0
    only_frequent = both & (scores[:, 5:].sum(axis=1) == 0)
    np.testing.assert_allclose(found.probability_N[only_frequent], few[only_frequent], atol=1e-5)
    monkeypatch.setattr(probe, "MAX_FIT_TARGETS", 5 * 40)
    assert not np.array_equal(cross_fitted_probability(data, folds_of(200)), found.probability_N)
