"""A run folder takes up only the run that it was begun for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from advl_pipeline.errors import IdentityMismatch
from advl_pipeline.training.run_folder import RunFolder


def settings(**values: Any) -> dict[str, Any]:
    return {"settings": {key: {"value": value, "source": "mine.toml"} for key, value in values.items()}}


def open_folder(path: Path, config: dict[str, Any], *names: str) -> None:
    RunFolder(path).open(config, resume=True, cache_identities=lambda: [{"name": name} for name in names])


def test_caches_may_move_but_not_change(tmp_path: Path) -> None:
    open_folder(tmp_path, {"cache": ["here"]})
    with pytest.raises(IdentityMismatch, match="other settings"):
        open_folder(tmp_path, {"cache": ["there"]}, "clip")
    RunFolder(tmp_path).keep_caches([("here", {"name": "clip"})])
    open_folder(tmp_path, {"cache": ["there"]}, "clip")
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["cache"] == ["there"]
    for others in (["dino"], [], ["clip", "dino"]):
        with pytest.raises(IdentityMismatch, match="here \\['there'\\], asked for \\['elsewhere'\\]"):
            open_folder(tmp_path, {"cache": ["elsewhere"]}, *others)


def test_a_run_does_not_go_on_with_other_numbers(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.keep_settings(settings(learning_rate=1e-4, betas=(0.9, 0.98), accumulate=4))
    folder.checkpoint.touch()
    folder.keep_settings(settings(learning_rate=1e-4, betas=(0.9, 0.98), accumulate=2))
    with pytest.raises(IdentityMismatch) as refusal:
        folder.keep_settings(settings(learning_rate=2e-4, betas=(0.9, 0.98), accumulate=2))
    assert refusal.value.why == "learning_rate: here 0.0001, asked for 0.0002"
    kept = json.loads((tmp_path / "settings.json").read_text(encoding="utf-8"))
    assert kept["settings"]["learning_rate"]["value"] == 1e-4
    folder.checkpoint.unlink()
    folder.keep_settings(settings(learning_rate=2e-4))


def test_an_option_that_the_run_did_not_know_is_named_as_absent(tmp_path: Path) -> None:
    open_folder(tmp_path, {"method": "advl"})
    with pytest.raises(IdentityMismatch) as refusal:
        open_folder(tmp_path, {"method": "advl", "distance": None})
    assert refusal.value.why == "distance: here (absent), asked for None"
