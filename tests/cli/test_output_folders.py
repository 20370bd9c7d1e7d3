"""A command writes into a folder of its own kind, or an empty one, and into no other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import complaint as advl
from own_rows import choice_row, write_json_lines
from tiny_extraction import tiny_extract, tree_bytes

from advl_pipeline.errors import ConfigError
from advl_pipeline.folders import MARKERS, FolderKind, folder_kind, require_folder


def write(folder: Path, **files: object) -> Path:
    folder.mkdir(parents=True)
    for stem, content in files.items():
        (folder / f"{stem}.json").write_text(json.dumps(content), encoding="utf-8")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


MADE: dict[str, Callable[[Path], Path]] = {
    "cache": lambda folder: Path(str(tiny_extract(folder.parent / "data", folder).path)),
    "corpus": lambda folder: write(folder, corpus={"corpus": "scenes"}),
    "study": lambda folder: write(folder, study={"study": {}}),
    "run": lambda folder: write(folder, run={"options": {}}, student={"student": "scenes-small"}),
    "student": lambda folder: write(folder, student={"student": "scenes-small"}),
    "foreign": lambda folder: write(folder, config={"model_type": "bert"}),
}

COMMANDS: dict[FolderKind, tuple[str, ...]] = {
    "cache": ("extract", "--teacher", "minilm-l6", "--dataset", "scenes-vcr", "--output", "{folder}"),
    "corpus": ("scenes", "build", "--replace", "--data-root", "{parent}"),
    "study": ("study", "demo", "--output", "{folder}"),
    "run": ("finetune", "--dataset", "scenes-vcr", "--method", "plain", "--no-resume", "--output", "{folder}"),
    "student": ("scenes", "pretrain", "--output", "{folder}"),
}


@pytest.mark.parametrize("kind", MADE)
def test_every_command_refuses_folders_that_are_not_its_own(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = MADE[kind](tmp_path / "scenes")
    assert folder_kind(folder) == (None if kind == "foreign" else kind)
    before = tree_bytes(tmp_path)
    for writes, command in COMMANDS.items():
        if writes == kind:
            require_folder(folder, writes)
            continue
        code, said = advl(capsys, *(part.format(folder=folder, parent=tmp_path) for part in command))
        assert code == 2, said
        assert f"cannot take {MARKERS[writes].name}" in said
        if kind == "foreign":
            assert "it is not empty and has no" in said
            assert "config.json" in said
        else:
            assert f"it holds {MARKERS[folder_kind(folder) or 'run'].name}" in said
        assert tree_bytes(tmp_path) == before
    file = tmp_path / "file"
    file.touch()
    for writes in COMMANDS:
        with pytest.raises(ConfigError, match="cannot take"):
            require_folder(file, writes)


@pytest.mark.parametrize(
    "command",
    [
        ("finetune", "--config", "."),
        ("finetune", "--config", "data.jsonl/x.toml"),
        ("study", "."),
        ("datasets", "subset", "data.jsonl", "--shots", "4", "--output", "."),
        ("datasets", "subset", "data.jsonl", "--shots", "4", "--output", "pictures"),
    ],
    ids=" ".join,
)
def test_a_folder_is_no_file(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json_lines(tmp_path / "data.jsonl", [choice_row(number) for number in range(20)])
    monkeypatch.chdir(tmp_path)
    code, said = advl(capsys, *command)
    assert code == 2, said
    assert "cannot be read" in said or "cannot be written in place of a folder" in said
    assert "next:" in said


def test_nothing_is_written_inside_a_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = MADE["cache"](tmp_path / "cache")
    before = tree_bytes(tmp_path)
    for command in (
        (*COMMANDS["run"][:-1], cache / "runs" / "one"),
        (*COMMANDS["student"][:-1], cache / "student"),
        ("cache", "export", cache, "--to", "hdf5", "--output", cache / "features.h5"),
    ):
        code, said = advl(capsys, *command)
        assert code == 2, said
        assert "inside a teacher cache" in said
        assert tree_bytes(tmp_path) == before


def test_what_a_killed_command_left_before_its_first_record_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / "run" / ".work" / "claims").mkdir(parents=True)
    (tmp_path / "run" / "run.json.77.partial").write_text("{", encoding="utf-8")
    require_folder(tmp_path / "run", "run")


def test_a_damaged_marker_still_tells_whose_folder_it_is(tmp_path: Path) -> None:
    cache = MADE["cache"](tmp_path / "cache")
    for spoil in (
        lambda: (cache / "identity.json").write_bytes(b"\xff{"),
        lambda: (cache / "identity.json").unlink(),
    ):
        spoil()
        assert folder_kind(cache) == "cache"
        with pytest.raises(ConfigError, match="holds a teacher cache"):
            require_folder(cache, "run")
