"""Names and texts of others' data command neither a spreadsheet, nor a terminal, nor a reader of JSON."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
from commands import printed
from own_rows import class_row, write_json_lines, write_pictures

from advl_pipeline.runs.run_folder import RunFolder

FORMULAS = ('=HYPERLINK("http://example.invalid")', "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "-12", "harmless")
ESCAPE, TURNED = "\x1b]0;owned\x07", "\N{RIGHT-TO-LEFT OVERRIDE}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data whose ids are formulas and whose texts hold control characters."""
    folder = tmp_path_factory.mktemp("hostile")
    write_pictures(folder / "pictures")
    rows = [class_row(number, text=f"It is {ESCAPE} {TURNED} {number}.", label=f"no{ESCAPE}") for number in range(20)]
    for number, row in enumerate(rows):
        row["id"] = f"{FORMULAS[number % len(FORMULAS)]}{number:03}" if number % 6 != 4 else str(-number)
        row["label"] = row["label"] if number % 2 else "yes"
    write_json_lines(folder / "data.jsonl", rows)
    return folder


def strict(text: str) -> Any:
    def refuse(name: str) -> Any:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_a_report_of_hostile_data_is_inert(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder / f"run {ESCAPE}"
    printed(
        capsys,
        *("finetune", "--data", folder / "data.jsonl", "--method", "plain", "--student", "vilt-tiny"),
        *("--recipe", "none", "--num-steps", "1", "--batch-size", "4", "--output", run),
    )
    printed(capsys, "evaluate", run, "--on", "test", "--probe", "none")
    printed(capsys, "predict", run, "--on", "test", "--output", folder / "report.predictions")
    for form in ("items", "csv", "md", "html", "json"):
        printed(capsys, "report", run, "--to", form, "--output", folder / f"report.{form}")
    tables = [
        list(csv.reader((folder / f"report.{form}").read_text(encoding="utf-8").splitlines()))
        for form in ("items", "csv", "predictions")
    ]
    for name, (header, *rows) in zip(("item", "id"), tables[::2], strict=True):
        items = [row[header.index(name)] for row in rows]
        assert any(item.startswith("'=HYPERLINK") for item in items)
        assert any(item.startswith("-") for item in items), "a number is no formula"
    cells = [cell for table in tables for row in table for cell in row]
    commanding = [cell for cell in cells if cell[:1] in ("=", "+", "-", "@", "\t", "\r")]
    assert all(math.isfinite(float(cell)) for cell in commanding)
    for form in ("md", "html"):
        page = (folder / f"report.{form}").read_text(encoding="utf-8")
        assert "owned" in page
        assert not {"\x1b", "\x07", TURNED} & set(page)
    strict((folder / "report.json").read_text(encoding="utf-8"))
    for path in run.rglob("*.json"):
        strict(path.read_text(encoding="utf-8"))


def test_a_number_that_json_lacks_is_null_in_every_document_of_a_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_json("readout.json", {"names_kept": math.nan, "more": [-math.inf, 0.5]})
    folder.log([{"step": 0, "grad_norm": math.inf}])
    assert strict((tmp_path / "readout.json").read_text()) == {"more": [None, 0.5], "names_kept": None}
    assert strict((tmp_path / "metrics.jsonl").read_text()) == {"step": 0, "grad_norm": None}
