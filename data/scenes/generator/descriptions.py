"""Descriptions: what people say of a kind without naming it, the language of the tasks.

They are ours, or those of a user's file. The head of `descriptions.toml` says what a description is. A user's file
has the same form and speaks of the same kinds.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from advl_pipeline.errors import DatasetError, again
from advl_pipeline.packages import read_data

DESCRIPTIONS_FILE: Final = "scenes/generator/descriptions.toml"
Aspect = Literal["does", "used_for", "met", "looks", "belongs"]
"""What a description speaks of: the headings of the file say what each means."""

ASPECTS: Final[tuple[Aspect, ...]] = ("does", "used_for", "met", "looks", "belongs")
HELD_OUT: Final = "held_out"

Phrasing = Literal["open", "held-out"]
"""Which descriptions a split speaks in: those that training texts may use, or those that no training text uses."""

# A bracket would be read as a tag, a sign of the end would stand inside a sentence.
_VERB_PHRASE: Final = re.compile(r"[a-z][^\[\].?!]*[^\s\[\].?!]")
_WANTED: Final = 'is no verb phrase such as "purrs when somebody strokes it": small letters first, none of [ ] . ? !'


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


def read_descriptions(path: Path | None, names: Mapping[str, str], unsaid: Iterable[str]) -> dict[str, Said]:
    """Read what is said of each kind.

    Args:
        path: a user's file; None for ours.
        names: code -> plain name of every kind that is described.
        unsaid: names of kinds and words for families, which no description may speak.

    Returns:
        Code -> what is said of it, kinds in the order of `names`.

    Raises:
        DatasetError: the file cannot be read, lacks a kind or knows another one, or says nothing of a kind; or a
            description is no verb phrase, speaks a name, or stands there twice.
    """
    try:
        # Editors of some systems begin a file with a mark of its encoding.
        tables = tomllib.loads(path.read_text(encoding="utf-8-sig") if path else read_data(DESCRIPTIONS_FILE))
    except OSError as error:
        raise _unfit(path, error.strerror or str(error)) from None
    except (ValueError, RecursionError) as error:
        raise _unfit(path, f"no valid TOML: {error}") from None
    for what, codes in (("missing", names.keys() - tables.keys()), ("unknown", tables.keys() - names)):
        if codes:
            listed = ", ".join(f"[{code}]" for code in sorted(codes)[:5])
            raise _unfit(path, f"{len(codes)} of the kinds are {what}: {listed}")
    said = {code: _said(path, _heading(code, name), tables[code]) for code, name in names.items()}
    _require_telling(path, {_heading(code, name): said[code] for code, name in names.items()}, unsaid)
    return said


def _heading(code: str, name: str) -> str:
    return f"[{code}] ({name})"


def _said(path: Path | None, heading: str, table: Any) -> Said:
    aspects = (*ASPECTS, HELD_OUT)
    if not isinstance(table, dict) or not table.keys() <= set(aspects):
        raise _unfit(path, f"{heading} has something else than lists named {', '.join(aspects)}")
    found = []
    for aspect in (aspect for aspect in aspects if aspect in table):
        texts = table[aspect]
        if not isinstance(texts, list):
            raise _unfit(path, f"{heading}, {aspect}: {texts!r} is no list of descriptions")
        for text in texts:
            if not isinstance(text, str) or not text.isprintable() or not _VERB_PHRASE.fullmatch(text):
                raise _unfit(path, f"{heading}, {aspect}: {text!r} {_WANTED}")
            found.append(Description(text=text, aspect=aspect))
    said = Said(
        open=tuple(one for one in found if one.aspect != HELD_OUT),
        held_out=tuple(one for one in found if one.aspect == HELD_OUT),
    )
    if not said.open or not said.held_out:
        raise _unfit(path, f"{heading} needs at least one description to train on, and one under {HELD_OUT}")
    return said


def _require_telling(path: Path | None, said: Mapping[str, Said], unsaid: Iterable[str]) -> None:
    """Refuse a description that speaks a name, and one that is said twice: it would make two answers right."""
    phrases = {_words(name) for name in unsaid}
    lengths = {len(phrase) for phrase in phrases}
    first: dict[tuple[str, ...], str] = {}
    for heading, about in said.items():
        for one in (*about.open, *about.held_out):
            words = _words(one.text)
            parts = {words[start : start + length] for length in lengths for start in range(len(words))}
            if found := phrases & parts:
                raise _unfit(path, f"{heading}, {one.aspect}: {one.text!r} speaks a name, {' '.join(min(found))!r}")
            if words in first:
                raise _unfit(path, f"{one.text!r} is said twice: of {first[words]}, and of {heading}")
            first[words] = heading


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", text.lower()))


def plural_forms(name: str) -> tuple[str, ...]:
    """Return a name and what its plural may be, by the rules of English: "cherry", "cherries"."""
    return (name, f"{name}s", f"{name}es", re.sub("y$", "ies", name), re.sub("fe?$", "ves", name))


def _unfit(path: Path | None, why: str) -> DatasetError:
    return DatasetError(
        "The descriptions of the corpus cannot be used.",
        where=str(path or DESCRIPTIONS_FILE),
        why=why,
        next_command=again("mend the file and run the same command again, or leave --descriptions out for ours"),
    )
