"""A run folder takes up only the run that it was begun for; its names stand in one place, and in docs/folders.md."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from advl_pipeline.base.errors import IdentityMismatch
from advl_pipeline.base.folders import folder_kind
from advl_pipeline.runs import names
from advl_pipeline.runs.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
FILES = {value for key, value in vars(names).items() if key.isupper() and isinstance(value, str)}
OF_OTHERS = {"model.safetensors", "tokenizer.json", "config.json", "tensorboard", "wandb", "mlflow"}
"""Names that published models and Python packages have too."""


def begin(path: Path, identity: dict[str, Any], *, resume: bool = True, cache: str = "here") -> RunFolder:
    folder = RunFolder(path)
    if resume:
        folder.require_same_run(identity)
    folder.begin(
        identity,
        config={"cache": [cache]},
        command="advl finetune",
        settings={},
        caches=[(cache, {"name": "clip"})],
        computed_on={"device": "cpu", "mixed_precision": "no"},
        resume=resume,
    )
    return folder


def test_a_folder_takes_the_same_run_again_and_no_other(tmp_path: Path) -> None:
    begin(tmp_path, {"options": {"method": "advl", "distance": None}, "settings": {"betas": (0.9, 0.98)}})
    assert folder_kind(tmp_path) == "run"
    begin(
        tmp_path, {"options": {"method": "advl", "distance": None}, "settings": {"betas": [0.9, 0.98]}}, cache="there"
    )
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["cache"] == ["there"]
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(IdentityMismatch, match=r"other settings or data \(2 differ\)") as refusal:
        begin(tmp_path, {"options": {"method": "advl"}, "settings": {"betas": [0.9, 0.999]}})
    lines = [line.split() for line in refusal.value.why.splitlines()]
    assert ["setting", "asked", "for", "found"] in lines
    assert ["options.distance", "(absent)", "null"] in lines
    assert ["settings.betas", "[0.9,0.999]", "[0.9,0.98]"] in lines
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_run_of_another_version_is_told_apart_from_one_of_other_settings(tmp_path: Path) -> None:
    begin(tmp_path, {"options": {"method": "advl"}})
    with pytest.raises(IdentityMismatch, match="another version") as refusal:
        begin(tmp_path, {"options": {"method": "advl"}, "schema": 3})
    assert "schema None" in refusal.value.why
    assert "can still be evaluated" not in str(refusal.value.next_command)


def test_a_damaged_record_is_no_leave_to_go_on(tmp_path: Path) -> None:
    begin(tmp_path, {"options": {}})
    for content in ("{", "[1]", "3"):
        (tmp_path / "run.json").write_text(content, encoding="utf-8")
        with pytest.raises(IdentityMismatch, match="damaged"):
            begin(tmp_path, {"options": {}})


def test_starting_over_leaves_nothing_of_the_former_run_but_what_is_not_its_own(tmp_path: Path) -> None:
    folder = begin(tmp_path, {"options": {"seed": 0}})
    left = (
        "checkpoint.safetensors",
        "result.json",
        "metrics.jsonl",
        "model.safetensors",
        "student.json",
        "heads.json",
    )
    for name in (*left, "evaluation/test.json", "predictions/test.csv", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}", encoding="utf-8")
    begin(tmp_path, {"options": {"seed": 1}}, resume=False)
    assert folder.read_result() is None
    kept = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert kept == {
        *("run.json", "config.json", "environment.json", "caches.json", "settings.json", "notes.txt"),
    }


def test_what_a_kill_left_half_written_is_removed(tmp_path: Path) -> None:
    (tmp_path / "run.json.123.partial").write_text("{", encoding="utf-8")
    (tmp_path / "model.safetensors.partial").mkdir()
    (tmp_path / "model.safetensors.partial" / ".tmp0aZ").write_bytes(b"half")
    begin(tmp_path, {"options": {}})
    assert not list(tmp_path.glob("*.partial"))


def test_a_kill_while_tensors_are_written_leaves_nothing_that_the_next_run_does_not_remove(tmp_path: Path) -> None:
    """The library draws names of its own for what it has not finished: none of them lies in the run folder."""
    script = (
        "import os, pathlib, sys, threading, time, torch\n"
        "from advl_pipeline.base.tensors import save_tensors\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "def kill():\n"
        "    while not any(p.is_file() for p in folder.rglob('*')): pass\n"
        "    os.kill(os.getpid(), 9)\n"
        "tensors = {'a': torch.zeros(40_000_000)}\n"
        "threading.Thread(target=kill, daemon=True).start()\n"
        "save_tensors(folder / 'model.safetensors', tensors)\n"
        "time.sleep(10)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False, capture_output=True)
    assert done.returncode == -9, done.stderr
    assert {path.name for path in tmp_path.iterdir()} <= {"model.safetensors", "model.safetensors.partial"}
    begin(tmp_path, {"options": {}})
    assert not list(tmp_path.glob("*.partial"))


def test_no_other_module_spells_the_name_of_a_run_file() -> None:
    spelt = []
    for path in [*(ROOT / "advl_pipeline").rglob("*.py"), *(ROOT / "cli").rglob("*.py")]:
        if path.name in ("names.py", "folders.py"):
            continue
        spelt += [
            f"{path.relative_to(ROOT)}:{node.lineno} {node.value}"
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant) and node.value in FILES - OF_OTHERS
        ]
    assert not spelt, "\n".join(spelt)


def test_the_page_about_folders_lists_every_name() -> None:
    page = (ROOT / "docs" / "folders.md").read_text(encoding="utf-8").partition("## The run folder")[2]
    table = page.partition("\n\n`run.json` decides")[0]
    assert {name for name in FILES if f"`{name}" not in table} == set()
