"""What is measured against one another computes the same, each row has a figure, and a run's rows fill the page."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from advl_pipeline.cache.reader import open_cache
from benchmarks.__main__ import main
from benchmarks.gpu import measure_gpu
from benchmarks.loaders import open_readers
from benchmarks.reading import build_cache, measure_reading, texts
from benchmarks.rows import MARKS, Row, ratio_row, render, write_page


def test_a_built_cache_holds_the_corpus(tmp_path: Path) -> None:
    corpus = texts(40)
    build_cache(tmp_path / "cache", corpus)
    store = open_cache(tmp_path / "cache").stores()["text"]
    for number, rows_MD in enumerate(corpus.units()):
        np.testing.assert_array_equal(store.token_features([corpus.unit_id(number)])[0], rows_MD)


def test_every_row_of_reading_has_a_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.reading.texts", lambda _: texts(130))
    monkeypatch.setattr("benchmarks.reading.pictures", lambda _: replace(texts(70), name="pictures"))
    monkeypatch.setattr("benchmarks.reading._MANY", 1)
    rows = measure_reading(tmp_path, True)
    assert all(row.value and row.goal and row.detail for row in rows)


def test_loaders_that_are_compared_give_equal_batches(tmp_path: Path) -> None:
    corpus = texts(70)
    build_cache(tmp_path / "cache", corpus)
    unpadded: dict[str, dict[str, torch.Tensor]] = {}
    for name, reader in open_readers(tmp_path, corpus).items():
        unpadded[name] = {}
        for batch in reader(0):
            features = batch["teachers"]["texts"] if "teachers" in batch else batch
            assert not features["tokens"][~features["mask"]].any()
            for row, unit in enumerate(batch["unit_id"]):
                tokens_MD = features["tokens"][row][features["mask"][row]]
                unpadded[name][unit] = torch.cat([features["global"][row][None], tokens_MD])
    ours = unpadded.pop("ours")
    assert len(ours) == 70
    for name, others in unpadded.items():
        assert all(torch.equal(others[unit], rows) for unit, rows in ours.items()), name


def test_verdicts_take_the_spread_of_the_rounds_into_account() -> None:
    assert Row(name="x", value=1.0, goal=1.0).verdict == "met"
    assert Row(name="x", value=1.0, goal=1.1).verdict == "missed"
    assert Row(name="x", value=1.0, goal=1.1, at_least=False).verdict == "met"
    assert Row(name="x", value=None, goal=1.0, at_least=False).verdict == "missed"
    assert Row(name="x", value=5.0).verdict == ""
    ours, others = [1.0, 2.0, 9.0], [2.0, 2.0, 3.0]
    for goal, at_least, verdict in (
        (0.5, True, "met"),
        (0.9, True, "within noise"),
        (1.1, True, "within noise"),
        (3.1, True, "missed"),
        (3.0, False, "met"),
        (1.1, False, "within noise"),
        (0.4, False, "missed"),
    ):
        row = ratio_row("x", ours, others, goal=goal, at_least=at_least, detail="")
        assert (row.value, row.verdict) == (1.0, verdict), goal
        assert row.measured == "1 (0.5 to 3)"


def test_the_page_takes_the_rows_of_a_run(tmp_path: Path) -> None:
    row = Row(name="int8, warm", value=1.22, goal=1.5, detail="122 of 100")
    sections = {"reading": {"machine": "two cores", "seconds": 61.2, "rows": [asdict(row)]}}
    page = tmp_path / "page.md"
    page.write_text("before\n{}\nstale\n{}\nafter\n".format(*MARKS))
    for _ in range(2):
        write_page(page, render(sections))
    content = page.read_text()
    assert content.startswith("before")
    assert content.endswith("after\n")
    assert "stale" not in content
    assert "**reading**: two cores; 61 s." in content
    assert content.count("| int8, warm | 1.22 | at least 1.5 | missed | 122 of 100 |") == 1
    (tmp_path / "bare.md").write_text("nothing")
    with pytest.raises(ValueError, match="no place"):
        write_page(tmp_path / "bare.md", "x")


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
