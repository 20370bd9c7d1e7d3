"""Names and texts of others' data command neither a spreadsheet, nor a terminal, nor a reader of JSON."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from commands import advl, exit_code, printed
from own_rows import class_row, write_json_lines, write_pictures

from advl_cli.main import group
from advl_pipeline.runs.run_folder import RunFolder

FORMULAS = ('=HYPERLINK("http://example.invalid")', "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "-12", "harmless")
ESCAPE, TURNED = "\x1b]0;owned\x07", "\N{RIGHT-TO-LEFT OVERRIDE}"
MARKUP = "<script>alert(1)</script> ![x](http://example.invalid) https://example.invalid | `x` \n# title"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data whose ids are formulas and whose texts hold control characters."""
    folder = tmp_path_factory.mktemp("hostile")
    write_pictures(folder / "pictures")
    rows = [
        class_row(number, text=f"It is {ESCAPE} {TURNED} {number}.", label=f"no{ESCAPE}{MARKUP}")
        for number in range(20)
    ]
    for number, row in enumerate(rows):
        row["id"] = f"{FORMULAS[number % len(FORMULAS)]}{number:03}" if number % 6 != 4 else str(-number)
        row["label"] = row["label"] if number % 2 else "yes"
    write_json_lines(folder / "data.jsonl", rows)
    return folder


def strict(text: str) -> Any:
    def refuse(name: str) -> Any:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    run = folder / f"run {ESCAPE}"
    assert exit_code(*finetune(folder, run)) == 0
    assert exit_code("evaluate", run, "--on", "test", "--probe", "none") == 0
    return run


def finetune(folder: Path, run: Path) -> tuple[object, ...]:
    student = ("--method", "plain", "--student", "vilt-tiny", "--recipe", "none")
    steps = ("--num-steps", "1", "--batch-size", "4")
    return "finetune", "--data", folder / "data.jsonl", *student, *steps, "--output", run


def test_a_report_of_hostile_data_is_inert(folder: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def commands(group: click.Command, *words: str) -> Iterator[str]:
    """Yield every command of the command line."""
    if not isinstance(group, click.Group):
        yield " ".join(words)
        return
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield from commands(command, *words, name)


OF_NO_SET = {
    *("cache import", "cache pull", "cache push", "scenes build"),
    *("scenes pretrain", "students list", "students load-check", "students show"),
    *("teachers check", "teachers install", "teachers list", "teachers show", "datasets list"),
}
"""Commands that open no set of the user's, or that need a network or a benchmark."""


def test_no_command_prints_what_commands_a_terminal(
    folder: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, cache, elsewhere = folder / "data.jsonl", folder / f"cache {ESCAPE}", folder / f"gone {ESCAPE}"
    study = folder / "study.toml"
    setting = {"name": f"s {ESCAPE}", "dataset": str(data), "tasks": ["classes"]}
    study.write_text(
        f'name = "t"\ntitle = {json.dumps(MARKUP)}\nquestion = "?"\nmethods = ["plain"]\nshots = [4]\nseeds = [0]\n'
        'test_sets = ["test"]\n[[settings]]\nstudent = "vilt-tiny"\n'
        + "".join(f"{key} = {json.dumps(value)}\n" for key, value in setting.items())
    )
    lines: list[tuple[str, tuple[object, ...]]] = [
        ("extract", ("--teacher", "random:minilm-l6", "--data", data, "--output", cache, "--confidence", "none")),
        *((f"cache {name}", (cache,)) for name in ("info", "verify", "repair", "prune")),
        ("cache export", (cache, "--to", "hdf5", "--output", folder / f"out {ESCAPE}.h5")),
        ("datasets card", (data,)),
        ("datasets check", (data,)),
        ("datasets check", (data, "--deep")),
        ("datasets check", (folder / "bad.jsonl",)),
        ("datasets check", (elsewhere,)),
        ("datasets subset", (data, "--shots", 4, "--output", folder / f"ids {ESCAPE}.json")),
        ("prepare", ("--data", data, "--size", 16, "--output", folder / f"stored {ESCAPE}")),
        ("finetune", finetune(folder, run)[1:]),
        ("evaluate", (run, "--on", "test")),
        ("predict", (run, "--on", "test")),
        ("readout", (run, "--cache", cache)),
        ("students words", (run, "--cache", cache, "--output", folder / f"words {ESCAPE}.csv")),
        ("score shift", (run, "--on", "test")),
        ("report", (run,)),
        ("export", (run, "--output", folder / f"exported {ESCAPE}")),
        ("study", (study, "--dry-run")),
        ("study", (study, "--dry-run", "--json")),
        ("evaluate", (elsewhere, "--on", f"test {ESCAPE}")),
    ]
    (folder / "bad.jsonl").write_text(json.dumps({"image": f"x{ESCAPE}.png", "question": ESCAPE, "label": ESCAPE}))
    assert {name for name, _ in lines} | OF_NO_SET == set(commands(group))
    said = ""
    for name, words in lines:
        code, out, messages = advl(capsys, *name.split(), *words)
        assert code != 1, messages
        assert not {"\x1b", "\x07", TURNED} & set(out + messages), (name, out + messages)
        said += out + messages
    assert "owned" in said
    printed(capsys, "report", run, "--to", "md", "--output", folder / "shown.md")
    card = (folder / f"exported {ESCAPE}" / "README.md").read_text(encoding="utf-8").partition("\n---\n")[2]
    shown = (folder / "shown.md").read_text(encoding="utf-8")
    for page in (re.sub("```.*?\n```", "", card, flags=re.DOTALL), shown):
        assert "alert" in page
        assert not re.search(r"<script|\]\(|https?://|^# title|(?<!\\)`x", page, flags=re.MULTILINE)


def test_a_number_that_json_lacks_is_null_in_every_document_of_a_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_json("readout.json", {"names_kept": math.nan, "more": [-math.inf, 0.5]})
    folder.log([{"step": 0, "grad_norm": math.inf}])
    assert strict((tmp_path / "readout.json").read_text()) == {"more": [None, 0.5], "names_kept": None}
    assert strict((tmp_path / "metrics.jsonl").read_text()) == {"step": 0, "grad_norm": None}
