"""Descriptions: what people say of a kind without naming it, the language of the tasks.

They are ours, or those of a user's file. The head of `data/scenes_descriptions.toml` says what a description is. A
user's file has the same form and speaks of the same kinds.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from advl_pipeline.errors import DatasetError
from advl_pipeline.packages import read_data

DESCRIPTIONS_FILE: Final = "scenes_descriptions.toml"
Aspect = Literal["does", "used_for", "met", "looks", "belongs"]
"""What a description speaks of: the headings of the file say what each means."""

ASPECTS: Final[tuple[Aspect, ...]] = ("does", "used_for", "met", "looks", "belongs")
HELD_OUT: Final = "held_out"

Phrasing = Literal["open", "held-out"]
"""Which descriptions a split speaks in: those that training texts may use, or those that no training text uses."""

# A bracket would be read as a tag, a sign of the end would stand inside a sentence.
_VERB_PHRASE: Final = re.compile(r"[a-z][^\[\]\n.?!]*[^\s\[\].?!]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    """One thing that people say about a kind: "purrs when somebody strokes it", of the aspect "does"."""

    text: str
    aspect: str
    """One of `ASPECTS`, or `HELD_OUT` for a phrasing that no training text may use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """What is said of one kind."""

    open: tuple[Description, ...] = ()
    """What any text may say."""
    held_out: tuple[Description, ...] = ()
    """Phrasings that no training text may use."""


def descriptions_text(path: Path | None) -> str:
    """Return the text of a user's file, or of ours for None.

    Raises:
        DatasetError: the file cannot be read.
    """
    if path is None:
        return read_data(DESCRIPTIONS_FILE)
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise _unfit(path, error.strerror or str(error)) from None
    except UnicodeDecodeError as error:
        raise _unfit(path, str(error)) from None


def read_descriptions(path: Path | None, names: Mapping[str, str]) -> dict[str, Said]:
    """Read what is said of each kind.

    Args:
        path: a user's file; None for ours.
        names: code -> plain name of every kind that is described.

    Returns:
        Code -> what is said of it.

    Raises:
        DatasetError: the file cannot be read, lacks a kind or knows another one, says nothing of a kind, or a
            description is no verb phrase or speaks the name of its kind.
    """
    try:
        tables = tomllib.loads(descriptions_text(path))
    except tomllib.TOMLDecodeError as error:
        raise _unfit(path, f"no valid TOML: {error}") from None
    for what, codes in {
        "kinds missing": names.keys() - tables.keys(),
        "no such kinds": tables.keys() - names,
    }.items():
        if codes:
            raise _unfit(
                path, f"{what}: {', '.join(f'[{code}]' for code in sorted(codes)[:5])} ({len(codes)} in all)"
            )
    return {code: _said(path, f"[{code}] ({name})", name, tables[code]) for code, name in names.items()}


def _said(path: Path | None, where: str, name: str, table: Any) -> Said:
    aspects = (*ASPECTS, HELD_OUT)
    if not isinstance(table, dict) or not table.keys() <= set(aspects):
        raise _unfit(path, f"{where} has something else than lists named {', '.join(aspects)}")
    named = re.compile(rf"\b{re.escape(name)}(s|es)?\b", flags=re.IGNORECASE)
    for aspect, texts in table.items():
        for text in texts if isinstance(texts, list) else [texts]:
            if not isinstance(text, str) or not _VERB_PHRASE.fullmatch(text):
                wanted = 'no verb phrase in small letters, such as "purrs when somebody strokes it"'
                raise _unfit(path, f"{where}, {aspect}: {text!r} is {wanted}")
            if named.search(text):
                raise _unfit(path, f"{where}, {aspect}: {text!r} speaks the name of its own kind")
    found = [Description(text=text, aspect=aspect) for aspect in aspects if aspect in table for text in table[aspect]]
    said = Said(
        open=tuple(one for one in found if one.aspect != HELD_OUT),
        held_out=tuple(one for one in found if one.aspect == HELD_OUT),
    )
    if not said.open or not said.held_out:
        raise _unfit(path, f"{where} needs at least one description to train on, and one under {HELD_OUT}")
    return said


def _unfit(path: Path | None, why: str) -> DatasetError:
    return DatasetError(
        "The descriptions of the corpus cannot be used.",
        where=str(path or DESCRIPTIONS_FILE),
        why=why,
        next_command="mend the file and run the same command again, or leave --descriptions out for ours",
    )
