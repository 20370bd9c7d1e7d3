"""What a text teacher reads of a choice: features are those of the readings, characters those of the whole text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from live_teacher import teachers_run
from run_logs import losses

from advl_pipeline.cache.reader import open_cache
from advl_pipeline.datasets.records import text_unit
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.errors import ConfigError
from advl_pipeline.extraction.config import ExtractConfig
from advl_pipeline.extraction.run import run_extract
from advl_pipeline.teachers.registry import open_teacher
from advl_pipeline.training.run import run_finetune


def extract(small_corpus: Any, output: Path, reads: str, **options: Any) -> None:
    run_extract(
        ExtractConfig(
            teacher="minilm-l6",
            dataset="scenes-vcr",
            data_root=small_corpus.data_root,
            output=output,
            text_units=reads,  # type: ignore[arg-type]
            dtype="float32",
            confidence=False,
            **options,
        )
    )


def test_a_candidate_is_read_alone_or_beside_its_question(small_corpus: Any, tmp_path: Path) -> None:
    for reads in ("candidate", "both"):
        extract(small_corpus, tmp_path / reads, reads)
    train = open_dataset("scenes-vcr", split="train", data_root=small_corpus.data_root)
    candidate = train[0].candidates[1]
    tower = open_teacher("minilm-l6").text
    assert tower is not None
    answer = candidate.text[candidate.answer_start :]
    alone, whole = tower.prepare([text_unit(answer)]), tower.prepare([candidate.text_unit])
    read_alone, read_whole = tower.encode(alone), tower.encode(whole)

    store = open_cache(tmp_path / "candidate").text
    assert store is not None
    ids = [candidate.text_unit.unit_id]
    np.testing.assert_allclose(store.token_features(ids)[0], read_alone.token_values[0], atol=1e-5)
    np.testing.assert_allclose(store.global_features(ids)[0], read_alone.global_ND[0], atol=1e-5)
    spelled = [candidate.text[start:end] for start, end in store.char_spans(ids)]
    assert alone[0].char_spans_M2 is not None
    assert spelled == [answer[start:end] for start, end in alone[0].char_spans_M2]

    both = open_cache(tmp_path / "both").text
    assert both is not None
    rows = torch.cat([read_whole.token_values[0], read_alone.token_values[0]])
    np.testing.assert_allclose(both.token_features(ids)[0], rows, atol=1e-5)
    mean = torch.nn.functional.normalize(read_whole.global_ND[0] + read_alone.global_ND[0], dim=0)
    np.testing.assert_allclose(both.global_features(ids)[0], mean, atol=1e-5)


@pytest.mark.parametrize("reads", ["candidate", "both"])
def test_a_run_learns_from_it_and_a_live_teacher_reads_the_same(
    small_corpus: Any, tmp_path: Path, reads: str
) -> None:
    extract(small_corpus, tmp_path / "cache", reads, shots=4)
    config = small_corpus.config(
        tmp_path / "cached",
        cache=(tmp_path / "cache",),
        task=(),
        shots=4,
        num_steps=2,
        adapt_texts=8,
        batch_size=2,
        weighting="uniform",
        num_workers=1,
    )
    run_finetune(config)
    with teachers_run(open_dataset("scenes-vcr", split="train", data_root=small_corpus.data_root)):
        run_finetune(replace(config, output=tmp_path / "live"))
    cached, live = ([record["raw/text"] for record in losses(tmp_path / name)] for name in ("cached", "live"))
    assert min(cached) > 0
    assert live == pytest.approx(cached, rel=1e-3)


def test_texts_without_a_question_are_read_whole(small_corpus: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has a question before a candidate"):
        run_extract(
            ExtractConfig(
                teacher="minilm-l6",
                dataset="scenes-snli-ve",
                data_root=small_corpus.data_root,
                output=tmp_path / "cache",
                text_units="candidate",
            )
        )
    assert not (tmp_path / "cache").exists()
