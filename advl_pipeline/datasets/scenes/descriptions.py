"""What people say about a kind: verb phrases without their subject, some of them held out of all training texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

DESCRIPTIONS_FILE: Final = "scenes_descriptions.toml"
Aspect = Literal["does", "used_for", "met", "looks", "belongs"]
"""What a description speaks of: the headings of the file say what each means."""

ASPECTS: Final[tuple[Aspect, ...]] = ("does", "used_for", "met", "looks", "belongs")
HELD_OUT: Final = "held_out"

Phrasing = Literal["open", "held-out"]
"""Which descriptions a split speaks in: those that training texts may use, or those that no training text uses."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    """One thing that people say about a kind: "purrs when somebody strokes it", of the aspect "does"."""

    text: str
    aspect: str
    """One of `ASPECTS`, or `HELD_OUT` for a phrasing that no training text may use."""


def parse_descriptions(table: Mapping[str, Sequence[str]]) -> tuple[Description, ...]:
    """Return the descriptions that training texts may use, aspect by aspect, from the table of one kind."""
    return tuple(Description(text=text, aspect=aspect) for aspect in ASPECTS for text in table.get(aspect, ()))


def parse_held_out(table: Mapping[str, Sequence[str]]) -> tuple[Description, ...]:
    """Return the phrasings held out of all training texts from the table of one kind."""
    return tuple(Description(text=text, aspect=HELD_OUT) for text in table.get(HELD_OUT, ()))
