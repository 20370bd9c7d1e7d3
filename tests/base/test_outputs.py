"""No command writes over what it did not make: every option that names an output is aimed at things of others."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path

import click
import pytest
from aimed_outputs import FILES, OUTPUTS, OutputOption, configurations, make_things, words_of
from commands import complaint
from tiny_extraction import tree_bytes

from advl_cli.reference import commands
from advl_pipeline.base.configuration import declared, flag_of
from advl_pipeline.base.errors import ConfigError
from advl_pipeline.base.folders import MARKERS, FolderKind, folder_kind, require_folder
from advl_pipeline.base.outputs import require_outputs
from advl_pipeline.evaluation.config import PredictConfig

INPUTS = frozenset(
    "answers annotations cache data_root descriptions ground_truth_regions head_answers ids init known_words "
    "photographs pictures questions rationales regions results run source student weights".split()
)
"""Options with a path that commands read, and folders of ours that a command completes or mends."""


def is_path(hint: typing.Any) -> bool:
    return hint is Path or any(map(is_path, typing.get_args(hint)))


def test_every_path_of_every_command_is_known_as_an_input_or_as_an_output() -> None:
    fields = {(command, field.name) for command, cls in configurations() for field in dataclasses.fields(cls)}
    unknown = [
        f"{command} {name}"
        for command, cls in configurations()
        for name, declaration in declared(cls).items()
        if is_path(declaration.hint) and declaration.option.output is None and name not in INPUTS
    ]
    assert not unknown, "say what the command makes of the path: configuration.option(output=...)"
    for name, command in commands():
        for item in command.params:
            if isinstance(item.type, click.Path) and (name.removeprefix("advl "), item.name) not in fields:
                assert item.name in INPUTS | {"config_file", "checkpoint"}, f"{name} {item.name}"
    assert len(OUTPUTS) >= 13


@pytest.fixture
def things(pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one thing of each kind, in which the command is given."""
    folder = make_things(tmp_path / "things", cache=pristine / "cache")
    monkeypatch.chdir(folder)
    return folder


OF_OURS = (
    *("cache/identity.json", "cache/new.json", "into-cache/new.json", "linked.json"),
    *("scenes/corpus.json", "scenes/new.json", "study/study.json", "study/new.json", "study/cells/new.json"),
    *("run/run.json", "run/result.json", "run/checkpoint.safetensors", "run/model.safetensors", "run/new.csv"),
    *("student/model.safetensors", "student/new.json"),
)
"""Never written, whatever is asked for."""
OF_OTHERS = ("data.jsonl", "pictures/red.png", "notes.txt", "results.csv", "empty.json")
"""Replaced by those who ask for it."""


@pytest.mark.parametrize("option", [option for option in OUTPUTS if option.output.makes in FILES], ids=str)
def test_no_file_of_others_is_written_over(
    option: OutputOption, things: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree_bytes(things)
    is_replaced = any(field.name == "replace" for field in dataclasses.fields(option.config))
    for name in (*OF_OURS, *OF_OTHERS, "pipe", "dangling.json"):
        code, message = complaint(capsys, *words_of(option, things / name))
        assert code == 2, f"{name}: {message}"
        assert f"give another {flag_of(option.name)}" in message, message
        assert ("--replace" in message.partition("next:")[2]) == (is_replaced and name in OF_OTHERS)
    for name in (*OF_OURS, "pipe", "dangling.json") if is_replaced else ():
        code, message = complaint(capsys, *words_of(option, things / name, "--replace"))
        assert code == 2, f"{name}: {message}"
        assert f"give another {flag_of(option.name)}" in message, message
    assert tree_bytes(things) == before


@pytest.mark.parametrize("option", [option for option in OUTPUTS if option.output.makes not in FILES], ids=str)
def test_no_folder_is_made_in_or_of_a_folder_of_another_kind(
    option: OutputOption, things: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (things / "foreign").mkdir()
    (things / "foreign" / "config.json").write_text("{}", encoding="utf-8")
    before = tree_bytes(things)
    folders = {"cache": "cache", "corpus": "scenes", "study": "study", "run": "run", "student": "student"}
    for kind, name in folders.items():
        assert folder_kind(things / name) == kind
        for place in (things / name, things / name / "new"):
            completes = option.output.makes == kind and place.name == name
            if completes or (kind, option.output.makes) == ("study", "run"):
                continue
            code, message = complaint(capsys, *words_of(option, place))
            assert code == 2, message
            assert f"give another {flag_of(option.name)}" in message, message
            assert MARKERS[typing.cast(FolderKind, kind)].name in message
    if option.output.makes != "folders":
        for name, why in (("foreign", "it is not empty and has no"), ("notes.txt", "it is a file")):
            code, message = complaint(capsys, *words_of(option, things / name))
            assert code == 2, message
            assert why in message
    assert tree_bytes(things) == before


def test_a_damaged_marker_still_tells_whose_folder_it_is(things: Path) -> None:
    identity = things / "cache" / "identity.json"
    for spoil in (lambda: identity.write_bytes(b"\xff{"), identity.unlink):
        spoil()
        with pytest.raises(ConfigError, match="holds a teacher cache"):
            require_folder(things / "cache", "run")


def test_what_a_killed_command_left_before_its_first_record_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / "run" / ".work" / "claims").mkdir(parents=True)
    (tmp_path / "run" / "run.json.77.partial").write_text("{", encoding="utf-8")
    before = tree_bytes(tmp_path)
    require_folder(tmp_path / "run", "run")
    assert tree_bytes(tmp_path) == before


def test_an_input_is_never_the_output(things: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree_bytes(things)
    draw = ("datasets", "subset", "data.jsonl", "--shots", 4)
    for words in (
        (*draw, "--output", "data.jsonl", "--replace"),
        (*draw, "--data-root", "pictures", "--output", "pictures/red.png", "--replace"),
    ):
        code, message = complaint(capsys, *words)
        assert code == 2, message
        assert "take the place of an input" in message
    assert tree_bytes(things) == before


BEGINNINGS = {
    "vcr": "annot_id,answer_0,answer_1\n",
    "vqa": '[{"question_id": 7, "answer": "red"}]\n',
    "snli-ve": "pairID,label\n",
    "own": "id,index,prediction\n",
}


@pytest.mark.parametrize("form", BEGINNINGS)
def test_predictions_take_the_place_of_predictions(form: str, things: Path) -> None:
    path = things / "predicted"
    path.write_text(BEGINNINGS[form], encoding="utf-8")
    require_outputs(PredictConfig(run=things / "run", output=path))
    for output in ("run/predictions/test.csv", "run/predictions/again/test.csv"):
        require_outputs(PredictConfig(run=things / "run", output=things / output))
    with pytest.raises(ConfigError, match="inside a finetuning run"):
        require_outputs(PredictConfig(run=things / "run", output=things / "run" / "test.csv"))
    path.write_text("x" + path.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(ConfigError, match="did not write"):
        require_outputs(PredictConfig(run=things / "run", output=path))
    require_outputs(PredictConfig(run=things / "run", output=path, replace=True))
