"""Commands of other packages: listed without being loaded, run as ours are, and refused in words where they break."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from commands import exit_code

from advl_cli import main
from advl_cli.main import group

MINE = """
import click

@click.command("mine")
@click.argument("word")
def command(word):
    "Say a word."
    click.echo(f"said {word}")
"""


@pytest.fixture
def plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package of a user's with a command, one in a group of ours, and one that cannot be imported."""
    (tmp_path / "a_plug_in_of_mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    points = [
        EntryPoint(name="mine", value="a_plug_in_of_mine:command", group=main.COMMAND_GROUP),
        EntryPoint(name="datasets.mine", value="a_plug_in_of_mine:command", group=main.COMMAND_GROUP),
        EntryPoint(name="broken", value="no_such_module:command", group=main.COMMAND_GROUP),
        # A command of ours is not replaced.
        EntryPoint(name="cache", value="a_plug_in_of_mine:command", group=main.COMMAND_GROUP),
    ]
    monkeypatch.setattr(main, "entry_points", lambda *, group: [p for p in points if p.group == group])
    return "a_plug_in_of_mine"


@pytest.mark.parametrize("words", [["--help"], ["datasets", "--help"]])
def test_help_names_them_and_loads_none(plug_in: str, words: list[str]) -> None:
    shown = CliRunner().invoke(group, words)
    assert shown.exit_code == 0
    builtins, _, foreign = shown.output.partition("Commands of plug-ins:")
    assert "mine" not in builtins
    assert "mine" in foreign
    assert plug_in not in sys.modules


@pytest.mark.parametrize("words", [["mine", "hello"], ["datasets", "mine", "hello"]])
def test_they_run_where_their_names_put_them(
    plug_in: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(*words) == 0
    assert "said hello" in capsys.readouterr().out


def test_what_cannot_be_imported_says_so(plug_in: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("broken") == 2
    assert "no_such_module" in capsys.readouterr().err
    assert exit_code("brokn") == 2
    assert "did you mean broken" in capsys.readouterr().err


def test_a_command_of_ours_is_not_replaced(plug_in: str) -> None:
    subcommand = group.get_command(click.Context(group), "cache")
    assert isinstance(subcommand, click.Group)
