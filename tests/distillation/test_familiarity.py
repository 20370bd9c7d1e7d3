"""Which words pretraining taught, read off states: planted words are found, and a student without any is told so."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advl_pipeline.distillation.familiarity import (
    MIN_WORDS,
    familiarity,
    nearness,
    peak_cosines,
    upper_of_two_normals,
)

NUM_KNOWN, NUM_UNKNOWN, WIDTH = 30, 170, 32


def planted(seed: int, *, near: float) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Return states of words, the first of which lie near visual states, states of regions, and nearness."""
    generator = torch.Generator().manual_seed(seed)
    kinds_KH = torch.randn(NUM_KNOWN, WIDTH, generator=generator)
    visual_VH = (kinds_KH[:, None] + 0.3 * torch.randn(NUM_KNOWN, 20, WIDTH, generator=generator)).flatten(0, 1)
    words_FH = torch.randn(NUM_KNOWN + NUM_UNKNOWN, WIDTH, generator=generator)
    words_FH[:NUM_KNOWN] += near * kinds_KH
    nearer_F = 0.02 * np.random.default_rng(seed).standard_normal(len(words_FH))
    nearer_F[:NUM_KNOWN] += 0.1 * near
    return words_FH, visual_VH, nearer_F


@pytest.mark.parametrize("seed", range(3))
def test_planted_words_are_landmarks_and_others_are_moved_or_held(seed: int) -> None:
    words_FH, visual_VH, nearer_F = planted(seed, near=3.0)
    found = familiarity(words_FH, visual_VH, nearer_F)
    assert not found.why
    classes = found.classes()
    assert classes[:NUM_KNOWN].count("landmark") >= 0.9 * NUM_KNOWN
    assert classes[NUM_KNOWN:].count("landmark") == 0
    assert classes[NUM_KNOWN:].count("moved") >= 0.7 * NUM_UNKNOWN
    # The order of words, and a common scale of all states, change nothing.
    order = np.random.default_rng(seed).permutation(len(classes))
    again = familiarity(7 * words_FH[order], 7 * visual_VH, nearer_F[order])
    assert again.classes() == [classes[place] for place in order]


@pytest.mark.parametrize("seed", range(3))
def test_a_student_whose_words_are_unrelated_to_its_pictures_tells_nothing(seed: int) -> None:
    words_FH, visual_VH, nearer_F = planted(seed, near=0.0)
    found = familiarity(words_FH, visual_VH, nearer_F)
    assert found.why
    assert set(found.classes()) == {"held"}


def test_words_near_all_pictures_alike_are_no_landmarks() -> None:
    words_FH, visual_VH, _ = planted(0, near=3.0)
    nearer_F = 0.02 * np.random.default_rng(0).standard_normal(len(words_FH))
    assert "no nearer to their own pictures" in familiarity(words_FH, visual_VH, nearer_F).why


@pytest.mark.parametrize("seed", range(3))
def test_a_visual_token_near_many_words_makes_none_of_them_a_landmark(seed: int) -> None:
    words_FH, visual_VH, nearer_F = planted(seed, near=3.0)
    # Words that language puts together, and visual tokens that lie there.
    common_H = torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed + 100))
    words_FH[-40:] += 3 * common_H
    hubs_VH = common_H + 0.1 * torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(seed))
    classes = familiarity(words_FH, torch.cat([visual_VH, hubs_VH]), nearer_F).classes()
    assert classes[:NUM_KNOWN].count("landmark") >= 0.9 * NUM_KNOWN
    assert classes[NUM_KNOWN:].count("landmark") == 0


def test_few_words_and_equal_states_tell_nothing() -> None:
    words_FH, visual_VH, nearer_F = planted(0, near=3.0)
    few = slice(MIN_WORDS - 1)
    assert str(MIN_WORDS) in familiarity(words_FH[few], visual_VH, nearer_F[few]).why
    assert familiarity(torch.ones_like(words_FH), visual_VH, nearer_F).why
    assert familiarity(words_FH, visual_VH[:0], nearer_F).why


@given(seed=st.integers(0, 999), share=st.floats(0.05, 0.9), gap=st.floats(0.0, 8.0))
@settings(max_examples=30, deadline=None)
def test_the_upper_share_rises_with_the_value_and_ignores_scale_and_place(
    seed: int, share: float, gap: float
) -> None:
    random = np.random.default_rng(seed)
    value_F = random.standard_normal(300) + gap * (random.random(300) < share)
    upper_F = upper_of_two_normals(value_F)
    assert ((upper_F >= 0) & (upper_F <= 1)).all()
    assert (np.diff(upper_F[np.argsort(value_F)]) >= 0).all()
    np.testing.assert_allclose(upper_of_two_normals(3 * value_F - 2), upper_F, atol=1e-4)


def test_hidden_visual_tokens_and_missing_ones_are_not_near() -> None:
    words_NWH = torch.eye(4)[None]
    visual_NRH = torch.eye(4)[None, :3]
    mask_NR = torch.tensor([[True, False, True]])
    torch.testing.assert_close(peak_cosines(words_NWH, visual_NRH, mask_NR), torch.tensor([[1.0, 0.0, 1.0, 0.0]]))
    assert peak_cosines(words_NWH, visual_NRH[:, :0], mask_NR[:, :0]).tolist() == [[-1.0] * 4]
    assert nearness(words_NWH[0], visual_NRH[0, :0]).tolist() == [0.0] * 4
