"""Commands of other packages run as ours do; a plug-in that is broken or missing ends no command but its own."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from commands import advl, exit_code, printed
from own_rows import choice_row, write_json_lines, write_pictures

from advl_cli.reference import commands
from advl_pipeline.base import packages
from advl_pipeline.datasets import cards

MINE = """
import click

@click.command("mine")
@click.argument("word")
def anything(word):
    "Say a word."
    click.echo(f"said {word}")
"""

GROUPS = ("teachers", "students", "datasets", "commands", "data")
BROKEN = {
    "missing": None,
    "raises": "raise RuntimeError('broken by its author')",
    "exits": "raise SystemExit(9)",
    "has no such name": "",
    "is no Python": "def (",
}

OWN = {
    "teachers": ("teachers show zz-broken", "extract --teacher zz-broken --data data.jsonl"),
    "students": ("students show zz-broken", "finetune --student zz-broken --data data.jsonl --method plain"),
    "datasets": ("datasets check zz-broken", "extract --teacher minilm-l6 --dataset zz-broken"),
    "commands": ("zz-broken", "zz-broken --help"),
    "data": ("study zz-broken", "datasets card zz-broken"),
}

LISTS = ("teachers list", "students list", "datasets list", "study --list")
OTHERS = (
    *(*LISTS, "teachers show dinov2-b", "datasets card vcr"),
    *("study demo --dry-run", "datasets check data.jsonl", "extract --teacher minilm-l6 --data data.jsonl --dry-run"),
    *("scenes --help", "report none"),
)


def forget() -> None:
    """Have this process look for packages as a new one does."""
    sys.modules.pop("zz_module", None)
    for function in (packages.entry_points, packages._data_homes, cards.load_card):
        function.cache_clear()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that packages are imported from, with data of a user's, in which commands are given."""
    write_pictures(tmp_path / "pictures")
    write_json_lines(tmp_path / "data.jsonl", [choice_row(number) for number in range(20)])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "site")
    forget()
    yield tmp_path
    monkeypatch.undo()
    forget()


def install(place: Path, content: str | None, points: Mapping[str, str]) -> None:
    """Install a package with entry points, group -> names, as pip leaves it; None for a module that is missing."""
    metadata = place / "site" / "zz_package-1.0.dist-info"
    metadata.mkdir(parents=True, exist_ok=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: zz-package\nVersion: 1.0\n")
    lines = []
    for group, names in points.items():
        value = "zz_module" if group == "data" else "zz_module:anything"
        lines += [f"[advl.{group}]", *(f"{name} = {value}" for name in names.split())]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")
    if content is not None:
        (place / "site" / "zz_module.py").write_text(content)
    forget()


def outcome(capsys: pytest.CaptureFixture[str], words: str) -> tuple[int, list[str]]:
    """Return the exit code, and the lines on stdout that tell neither of the package nor of the machine."""
    code, out, messages = advl(capsys, *words.split())
    assert "Traceback" not in messages
    assert "Unexpected error" not in messages, messages
    lines = [" ".join(line.split()) for line in out.splitlines()]
    return code, [line for line in lines if not re.search(r"zz|\d s\b| GB", line)]


def test_commands_run_where_their_names_put_them(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Help loads none of them, and a command of ours is not replaced."""
    install(place, MINE, {"commands": "mine datasets.mine cache"})
    for words in ("--help", "datasets --help"):
        out, _ = printed(capsys, *words.split())
        builtins, _, foreign = out.partition("Commands of plug-ins:")
        assert "mine" not in builtins
        assert "From the package zz-package" in foreign
    assert "zz_module" not in sys.modules
    for words in ("mine hello", "datasets mine hello"):
        assert printed(capsys, *words.split())[0] == "said hello\n"
    assert exit_code("cache", "--help") == 0
    assert "did you mean mine" in printed(capsys, "mien", code=2)[1]


def test_no_other_command_notices_a_broken_one(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    walked = [*(f"{name.removeprefix('advl')} --help".strip() for name, _ in commands()), *OTHERS]
    assert len(walked) > 40
    before = {words: outcome(capsys, words) for words in walked}
    for content in (None, BROKEN["raises"]):
        install(place, content, dict.fromkeys(GROUPS, "zz-broken"))
        for words in walked if content is None else LISTS:
            assert outcome(capsys, words) == before[words], words


@pytest.mark.parametrize(
    ("group", "kind"),
    # A package of data has no name in it.
    [(group, kind) for group in GROUPS for kind in BROKEN if (group, kind) != ("data", "has no such name")],
)
def test_its_own_error_says_whose_it_is_and_how_to_be_rid_of_it(
    group: str, kind: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(place, BROKEN[kind], {group: "zz-broken"})
    for words in OWN[group]:
        more = ("--output", place / "made") if "--data" in words else ()
        _, message = printed(capsys, *words.split(), *more, code=2)
        for part in ("zz-package", f"advl.{group}: zz-broken = zz_module", "pip uninstall zz-package"):
            assert part in message, message
    assert not os.path.lexists(place / "made")


def test_a_damaged_file_of_a_plug_in_is_its_own_affair(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {words: outcome(capsys, words) for words in OTHERS}
    folder = place / "site" / "zz_module"
    for name in ("cards/zz-card.toml", "studies/zz-study.toml", "recipes/zz-recipe.toml", "students.toml"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("= no TOML")
    (folder / "__init__.py").touch()
    install(place, None, {"data": "zz-broken"})
    for words in OTHERS:
        assert outcome(capsys, words) == before[words], words
    for words in ("datasets card zz-card", "study zz-study --dry-run"):
        assert "pip uninstall zz-package" in printed(capsys, *words.split(), code=2)[1]
