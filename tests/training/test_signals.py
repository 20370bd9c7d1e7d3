"""What the loss sees of an aligned pair of towers: the cosine of each word and the picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from closeness import assert_near
from held_features import HeldFeatures
from hypothesis import given, settings
from hypothesis import strategies as st

from advl_pipeline.datasets.records import Candidate, Example, ImageUnit, text_unit
from advl_pipeline.datasets.words import fit_word_prior, word_spans
from advl_pipeline.distillation.pooling import pool_to_words
from advl_pipeline.students.interface import StudentBatch
from advl_pipeline.training.signals.averages import word_averages
from advl_pipeline.training.signals.stored_signals import SignalSource
from advl_pipeline.training.signals.teacher_features import TeacherFeatures

TEXT = "a playful dog"
PIECES = [(0, 1), (2, 6), (6, 9), (10, 13)]
"""The teacher's tokens; the student's are whole words."""


def examples() -> list[Example]:
    candidate = Candidate(text_unit=text_unit(TEXT))
    none_R4 = np.zeros((0, 4), np.float32)
    images = [
        ImageUnit(unit_id=name, path=Path("none.png"), width=9, height=9, boxes_R4=none_R4) for name in ("one", "two")
    ]
    return [
        Example(example_id=image.unit_id, task="snli-ve", image=image, candidates=(candidate,), label=0)
        for image in images
    ]


def signal_of(*, aligned: bool, image_dim: int = 3) -> Any:
    pictures = {"one": [1.0, 0.0, 0.0], "two": [0.0, 2.0, 0.0]}
    if image_dim != 3:
        pictures = {name: [1.0] * image_dim for name in pictures}
    words = [[3.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 3.0, 0.0], [1.0, 1.0, 0.0]]
    text = text_unit(TEXT).unit_id
    images = HeldFeatures(pictures, dict.fromkeys(pictures, np.zeros((1, image_dim))), moments=(0.5, 4.0))
    texts = HeldFeatures({text: [1.0, 2.0, 3.0]}, {text: words}, moments=(0.5, 4.0), spans=PIECES)
    teacher: Any = TeacherFeatures(
        name="pair",
        image=images,  # type: ignore[arg-type]
        text=texts,  # type: ignore[arg-type]
        image_places=None,
        aligned=aligned,
    )
    spans = torch.tensor([[(0, 0), *word_spans(TEXT)]] * 2)
    batch = StudentBatch(
        num_candidates=(1, 1),
        token_ids_NL=torch.zeros(2, 4, dtype=torch.int64),
        token_mask_NL=torch.ones(2, 4),
        char_spans_NL2=spans,
        visual_mask_NR=torch.ones(2, 1, dtype=torch.bool),
        box_index_NR=torch.full((2, 1), -1),
    )
    source = SignalSource([teacher], prior=fit_word_prior([TEXT]))
    return source.signal(examples(), batch, with_confidence=False)


def test_words_are_compared_with_the_picture_in_the_towers_own_space() -> None:
    """Before the targets are standardised: afterwards a cosine would mean nothing."""
    text_signal = signal_of(aligned=True).text["pair"]
    half = 0.5**0.5
    expected = torch.tensor([[1.0, 0.0, half], [0.0, 1.0, half]])
    assert_near(text_signal.relevance_NW, expected, roundings=1, dtype=torch.float16)
    # "playful" is the mean of its two pieces, on the scale of the moments.
    assert text_signal.words_NWD[0, 1].tolist() == pytest.approx([-0.25, 0.75, -0.25])


def test_students_and_teachers_pieces_meet_at_words() -> None:
    words = signal_of(aligned=False).words
    assert words.word_of_token_NL.tolist() == [[-1, 0, 1, 2]] * 2
    assert words.word_mask_NW.tolist() == [[True] * 3] * 2
    assert words.prior_NW[0, 0] == 0 < words.prior_NW[0, 1]


@pytest.mark.parametrize("changes", [{"aligned": False}, {"aligned": True, "image_dim": 4}])
def test_towers_that_share_no_space_give_no_relevance(changes: dict[str, Any]) -> None:
    assert signal_of(**changes).text["pair"].relevance_NW is None


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1000), num_texts=st.integers(1, 5), num_words=st.integers(1, 6))
def test_rows_are_pooled_to_words_as_padded_states_are(seed: int, num_texts: int, num_words: int) -> None:
    generator = np.random.default_rng(seed)
    lengths = generator.integers(0, 8, num_texts).astype(np.int32)
    lengths[0] = max(lengths[0], 1)
    is_row_NM = np.arange(lengths.max()) < lengths[:, None]
    word_NM = np.where(is_row_NM, generator.integers(-1, num_words, is_row_NM.shape), -1)
    padded_NMD = np.where(is_row_NM[..., None], generator.standard_normal((*is_row_NM.shape, 3)), 0).astype(
        np.float32
    )
    rows_MD = torch.from_numpy(padded_NMD[is_row_NM])
    averages, mask_NW = word_averages(word_NM[is_row_NM], lengths, (num_texts, num_words))
    expected = pool_to_words(torch.from_numpy(padded_NMD), torch.from_numpy(word_NM), num_words)
    assert torch.equal(averages.apply(rows_MD), expected[0])
    assert torch.equal(mask_NW, expected[1])
