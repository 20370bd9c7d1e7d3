"""The command line answers fast, names its commands, explains errors and keeps its exit codes."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from advl_cli.main import COMMANDS, group, main
from advl_cli.reference import commands
from advl_pipeline.training import prepare as training_prepare
from advl_pipeline.training.config import FinetuneConfig


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys, advl_cli.main as m\n"
        "heavy = {'torch', 'zarr', 'transformers', 'timm', 'numpy'}\n"
        "try: m.main(['--help'])\n"
        "finally: print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    seconds: list[float] = []
    # A busy machine slows single tries; one quick try shows what the command itself costs.
    while len(seconds) < 10 and min(seconds, default=1.0) >= 0.5:
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - began)
        assert done.stderr.strip() == "[]"
    assert min(seconds) < 0.5
    assert all(name in done.stdout for name in COMMANDS)


def test_help_is_short_has_an_example_and_with_help_all_shows_every_option() -> None:
    for name, command in [*commands()][1:]:
        assert command.help
        assert name in command.help, f"the help of `{name}` shows no example"
        shown = CliRunner().invoke(group, [*name.split()[1:], "--help"], terminal_width=80).output
        assert len(shown.splitlines()) <= 100, name
        if "--help-all" in shown:
            shown = CliRunner().invoke(group, [*name.split()[1:], "--help-all"], terminal_width=80).output
        for option in command.params:
            if isinstance(option, click.Option) and not option.hidden:
                assert option.help, f"`{name} {option.opts[0]}` has no help"
                assert re.search(rf"(?<![\w-]){option.opts[0]}(?![\w-])", shown), f"{name} {option.opts[0]}"


@pytest.mark.parametrize("words", [["cache"], ["--debug", "cache"]])
def test_an_unexpected_error_proposes_debug_once(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(group, "main", broken)
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 1
    printed = capsys.readouterr().err
    assert "RuntimeError: broken" in printed
    assert printed.rstrip().endswith("next:  advl --debug cache")
    assert ("Traceback" in printed) == ("--debug" in words)


def test_an_option_that_help_leaves_out_is_taken_by_flag_and_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[FinetuneConfig] = []

    def note(config: FinetuneConfig, *_: object) -> None:
        asked.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr(training_prepare, "prepare_finetune", note)
    file = tmp_path / "run.toml"
    file.write_text("adapt-texts = 3\nanchor-weight = 0.5\n")
    words = ["finetune", "--dataset", "vcr", "--output", "runs/a", "--config", str(file), "--adapt-texts", "2"]
    with pytest.raises(SystemExit):
        main(words)
    assert (asked[0].adapt.adapt_texts, asked[0].adapt.anchor_weight) == (2, 0.5)
