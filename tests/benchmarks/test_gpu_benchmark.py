"""`make bench-gpu` says where it cannot measure, and measures a row of everything where it can."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.gpu import measure_gpu


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_a_sentence_says_so_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    monkeypatch.setattr("sys.argv", ["benchmarks", "--only", "gpu", "--markdown", str(page)])
    with pytest.raises(SystemExit, match=r"no GPU here that torch can use.* nothing was written"):
        main()
    assert not page.exists()


@pytest.mark.slow
def test_every_student_and_teacher_has_a_row(tmp_path: Path) -> None:
    rows = measure_gpu(
        tmp_path,
        torch.device("cpu"),
        num_photos=12,
        num_steps=6,
        batch_size=4,
        teachers=("minilm-l6",),
        students={"uniter-tiny": {"student_option": ("feature_size=2048",)}, "scenes-small": {"tokenizer": None}},
    )
    assert len(rows) == 1 + 2 * 1
    assert all(row.value and row.detail for row in rows)
