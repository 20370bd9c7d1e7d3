"""What is measured against one another computes the same, and a run's rows fill the page."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from advl_pipeline.cache.reader import open_cache
from benchmarks.corpus import build_cache, texts
from benchmarks.dense_targets import measure_dense_targets
from benchmarks.disk import measure_disk
from benchmarks.extraction import vcr_like_texts
from benchmarks.page import BEGIN, END, render, write_page
from benchmarks.reading import measure_reading
from benchmarks.rows import Row, median_ratio
from benchmarks.students import build_uniter, measure_students, original_pass, our_pass, questions


def test_a_built_cache_holds_the_corpus(tmp_path: Path) -> None:
    corpus = texts(40)
    build_cache(tmp_path / "cache", corpus)
    store = open_cache(tmp_path / "cache").stores()["text"]
    for number, rows_MD in enumerate(corpus.units()):
        np.testing.assert_array_equal(store.token_features([corpus.unit_id(number)])[0], rows_MD)


def test_every_row_of_reading_has_a_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.reading.texts", lambda _: texts(130))
    monkeypatch.setattr("benchmarks.reading.pictures", lambda _: texts(70))

    def refused(folder: Path, kib: int) -> None:
        raise OSError(f"not allowed to read {kib} kB ahead in {folder}")

    monkeypatch.setattr("benchmarks.reading._read_ahead", refused)
    rows = measure_reading(tmp_path, True)
    assert [row.name for row in rows if row.value is None] == [row.name for row in rows if "read-ahead" in row.name]
    assert all(row.goal is not None and row.detail for row in rows)


def test_the_arithmetic_of_disks_is_that_of_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.disk.vcr_like_texts", lambda _: vcr_like_texts(160))
    sample, vcr, *others = measure_disk(tmp_path, True)
    assert sample.value is not None
    assert sample.value < 0.3, "so few texts leave much of their last chunk empty"
    assert vcr.verdict == "PASS"
    assert len(others) == 8


def test_both_formulations_of_uniter_compute_the_same() -> None:
    student = build_uniter("uniter-tiny").eval()
    batch = student.collate(questions(6, seed=3))
    with torch.no_grad():
        ours, original = our_pass(student, batch), original_pass(student, batch)
    torch.testing.assert_close(ours, original, atol=2e-5, rtol=0.0)


def test_the_layers_of_a_student_compute_no_padding() -> None:
    found = measure_students("uniter-tiny", rounds=1, batches=2, num_lengths=400)
    assert found.layer_padding == 0.0
    assert 0.0 < found.grid_padding < 0.1 < found.random_padding < 0.5
    assert min(found.ours, found.original, found.original_by_tokens, found.ratio) > 0


def test_dense_targets_are_measured_on_places_that_have_one() -> None:
    found = measure_dense_targets(4, 3, 8, 3, rounds=1)
    assert 0.5 < found.share_with_target < 1.0
    assert min(found.averaging, found.dense_product, found.relational, found.mse) > 0


def test_verdicts() -> None:
    assert Row(name="x", value=1.0, goal=1.0).verdict == "PASS"
    assert Row(name="x", value=1.0, goal=1.1).verdict == "FAIL"
    assert Row(name="x", value=1.0, goal=1.1, at_least=False).verdict == "PASS"
    assert Row(name="x", value=None, goal=1.0, at_least=False).verdict == "FAIL"
    assert Row(name="x", value=5.0).verdict == ""
    assert median_ratio([1.0, 2.0, 9.0], [2.0, 2.0, 3.0]) == 1.0


def test_the_page_takes_the_rows_of_a_run(tmp_path: Path) -> None:
    row = Row(name="int8, warm", value=1.22, goal=1.5, detail="122 of 100")
    sections = {"reading": {"machine": "two cores", "seconds": 61.2, "rows": [asdict(row)]}}
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nstale\n{END}\nafter\n")
    for _ in range(2):
        write_page(page, render(sections))
    content = page.read_text()
    assert content.startswith("before")
    assert content.endswith("after\n")
    assert "stale" not in content
    assert "**reading**: two cores; 61 s." in content
    assert content.count("| int8, warm | 1.22 | at least 1.5 | FAIL | 122 of 100 |") == 1
    (tmp_path / "bare.md").write_text("nothing")
    with pytest.raises(ValueError, match="no place"):
        write_page(tmp_path / "bare.md", "x")
