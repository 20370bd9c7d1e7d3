"""A teacher's rows are pooled to words as the student's padded states are."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advl_pipeline.distillation.pooling import pool_to_words
from advl_pipeline.training.signals.averages import word_averages


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
