"""Words are placed by landmarks as a teacher places them: against loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from advl_pipeline.distillation.relational import (
    CLEAR_SHARE,
    TEMPERATURE,
    Landmarks,
    LandmarkSums,
    landmark_divergence,
    mean_of_words,
    region_landmarks,
    unplaced_words,
)
from advl_pipeline.distillation.signal import WordAlignment


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some_landmarks(num: int = 6, width: int = 5, teacher_width: int = 8) -> Landmarks:
    return Landmarks(
        states_KH=draw(num, width, seed=1), features_KD=draw(num, teacher_width, seed=2), mean_D=draw(8, seed=3)
    )


def alignment(form: list[list[int]], known: list[list[float]], frequent: list[list[bool]]) -> WordAlignment:
    form_NW = torch.tensor(form)
    return WordAlignment(
        word_of_token_NL=torch.zeros_like(form_NW),
        prior_NW=torch.ones(form_NW.shape),
        word_mask_NW=torch.ones(form_NW.shape, dtype=torch.bool),
        form_NW=form_NW,
        known_NW=torch.tensor(known),
        frequent_NW=torch.tensor(frequent),
    )


def test_the_divergence_equals_a_loop() -> None:
    landmarks, states, features = some_landmarks(), draw(4, 5, seed=4), draw(4, 8, seed=5)
    found = landmark_divergence(states, features, landmarks)
    centre_h, centre_t = landmarks.states_KH.mean(0).numpy(), landmarks.features_KD.mean(0).numpy()
    for node in range(4):
        likenesses = []
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
            likenesses.append(raised / raised.sum())
        p, q = likenesses
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
    words = alignment([[1, 2, 3], [4, 5, 6]], [[0.0, 1.0, 0.0], [1.0, 1.0, 1.0]], [[False, False, True], [False] * 3])
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
