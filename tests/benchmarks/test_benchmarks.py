"""Every format that is measured gives back what was written, and a run's figures fill the page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from advl_pipeline.cache.order import epoch_order
from benchmarks.corpus import texts
from benchmarks.dense_targets import measure_dense_targets
from benchmarks.formats import FORMATS, Format
from benchmarks.page import BEGIN, END, render, write_page
from benchmarks.students import build_uniter, measure_students, original_pass, our_pass, questions


@pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: kind.name)
@pytest.mark.filterwarnings("ignore")
def test_formats_give_back_what_was_written(kind: type[Format], tmp_path: Path) -> None:
    if not kind.is_available():
        pytest.skip(f"{kind.needs} is not installed")
    corpus = texts(40)
    expected = [rows.tobytes() for rows in corpus.units()]
    kind().build(tmp_path, corpus)
    item = kind()
    item.open(tmp_path, corpus)
    order = epoch_order(len(corpus), seed=0, epoch=0)
    found = [np.asarray(rows).tobytes() for batch in item.batches(order, 16) for rows in batch]
    item.close()
    assert found == [expected[unit] for unit in order]


def test_both_formulations_of_uniter_compute_the_same() -> None:
    student = build_uniter("uniter-tiny").eval()
    batch = student.collate(questions(6, seed=3))
    with torch.no_grad():
        ours, original = our_pass(student, batch), original_pass(student, batch)
    torch.testing.assert_close(ours, original, atol=2e-5, rtol=0.0)


def test_the_layers_of_a_student_compute_no_padding() -> None:
    found = measure_students("uniter-tiny", rounds=1, batches=2, num_lengths=400)
    assert found.layer_padding == 0.0
    assert 0.1 < found.grid_padding < found.random_padding < 0.5
    assert min(found.ours, found.original, found.original_by_tokens, found.ratio) > 0


def test_dense_targets_are_measured_on_places_that_have_one() -> None:
    found = measure_dense_targets(4, 3, 8, 3, rounds=1)
    assert 0.5 < found.share_with_target < 1.0
    assert min(found.averaging, found.dense_product, found.relational, found.mse) > 0


def test_the_page_takes_the_tables_of_a_run(tmp_path: Path) -> None:
    figures = {
        "machine": "two cores",
        "sizes": "quick",
        "reading": {"texts": [{"name": "ours", "warm": 41_234.0, "cold": 9_000.0}]},
        "skipped": ["LMDB (lmdb is not installed)"],
        "variants": [{"name": "int8", "num_bytes": 5e6, "units_per_second": 2e4, "cosine_error": 1e-4}],
    }
    figures["students"] = {"ours": 0.5, "original": 0.25, "ratio": 2.0}
    goal = {"name": "warm", "value": 1.22, "target": 1.5, "at_least": True, "is_met": False}
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nstale\n{END}\nafter\n")
    for _ in range(2):
        write_page(page, render(figures, [goal]))
    content = page.read_text()
    assert content.startswith("before")
    assert content.endswith("after\n")
    assert "stale" not in content
    assert content.count("| ours | 41.2 | 9.0 |") == 1
    assert "| warm | 1.22 (at least 1.5) | FAIL |" in content
    assert content.count("| ratio | 2.00 |") == 1
    assert "LMDB (lmdb is not installed)" in content
    (tmp_path / "bare.md").write_text("nothing")
    with pytest.raises(ValueError, match="no place"):
        write_page(tmp_path / "bare.md", "x")
