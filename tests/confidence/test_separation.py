"""AUC of right against wrong: by hand, at its edges, and as often wrong about noise as it says."""

from __future__ import annotations

import numpy as np
import pytest

from advl_pipeline.confidence.separation import outranked_candidates, outranked_classes, separation


def test_shares_of_candidates_by_hand() -> None:
    score = np.array([[3.0, 1.0, 2.0, 2.0], [0.5, 0.5, 0.1, 9.0], [1.0, -np.inf, -np.inf, -np.inf]])
    valid = np.array([[True] * 4, [True, True, True, False], [True, False, False, False]])
    found = outranked_candidates(score, np.array([2, 0, 0]), valid)
    # One below and one level of three; one level and one below of two; nothing to outrank.
    np.testing.assert_allclose(found, [1.5 / 3, 1.5 / 2, np.nan])


def test_shares_of_classes_agree_with_a_loop_and_weigh_several_truths() -> None:
    generator = np.random.default_rng(0)
    score = generator.integers(0, 6, (12, 5)).astype(float)
    truth = np.zeros((12, 5))
    truth[np.arange(10), generator.integers(0, 5, 10)] = 0.25
    truth[:4, 0] = 1.0
    truth[11] = 1.0
    expected = []
    for item in range(12):
        total, weights = 0.0, 0.0
        wrong = [k for k in range(5) if truth[item, k] == 0]
        for right in (k for k in range(5) if truth[item, k] > 0):
            height = {
                k: sum((score[:, k] < score[item, k]) + 0.5 * (score[:, k] == score[item, k])) for k in range(5)
            }
            won = sum((height[k] < height[right]) + 0.5 * (height[k] == height[right]) for k in wrong)
            total += truth[item, right] * (won / len(wrong) if wrong else np.nan)
            weights += truth[item, right]
        expected.append(total / weights if weights else np.nan)
    np.testing.assert_allclose(outranked_classes(score, truth), expected, rtol=1e-6)


def test_a_frequent_class_is_no_knowledge() -> None:
    """Scores that say only how frequent a class is outrank nearly everything, and nothing once classes are ranked."""
    generator = np.random.default_rng(1)
    frequency = np.array([0.9, 0.05, 0.05])
    label = generator.choice(3, 2000, p=frequency)
    score = np.log(frequency) + 0.1 * generator.standard_normal((2000, 3))
    names = [str(item) for item in range(2000)]
    assert separation(outranked_candidates(score, label), names).auc > 0.9
    assert not separation(outranked_classes(score, np.eye(3)[label]), names).is_above_chance
    knowing = score + 0.1 * np.eye(3)[label]
    assert separation(outranked_classes(knowing, np.eye(3)[label]), names).is_above_chance


def test_noise_passes_for_knowledge_as_rarely_as_the_interval_says() -> None:
    """Items of one picture share their luck here: taken for independent, far more noise would pass."""
    generator = np.random.default_rng(2)
    passed = 0
    for _ in range(1000):
        luck = generator.integers(0, 4, 50).repeat(3)
        found = separation(luck / 3.0, [f"picture-{item // 3}" for item in range(150)])
        passed += found.is_above_chance
    assert 5 <= passed <= 45


@pytest.mark.parametrize("num", [1, 2, 3, 4])
def test_a_handful_of_lucky_items_is_not_enough(num: int) -> None:
    found = separation(np.ones(num), [str(item) for item in range(num)])
    assert found.auc == 1.0
    assert found.low < 0.5
    assert found.high == 1.0


def test_edges() -> None:
    assert separation(np.ones(40), [str(item) for item in range(40)]).is_above_chance
    assert not separation(np.ones(40), ["one picture"] * 40).is_above_chance
    assert not separation(np.full(500, 0.5), [str(item) for item in range(500)]).is_above_chance
    nothing = separation(np.array([np.nan, np.nan]), ["a", "b"])
    assert (nothing.auc, nothing.low, nothing.high, nothing.num_items) == (0.5, 0.0, 1.0, 0)
    some = separation(np.array([np.nan, 1.0, 0.0]), ["a", "b", "c"])
    assert (some.auc, some.num_items) == (0.5, 2)
