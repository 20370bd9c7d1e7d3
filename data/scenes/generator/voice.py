"""How the tasks speak of things: by plain name, or by a description. Sentences are plain strings; `[3]` is a tag.

Two of five times a thing goes by its plain name. That is the language of the captions, and gives a student that has
read nothing else something to start from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from advl_data.scenes.generator.descriptions import Aspect, Phrasing
from advl_data.scenes.generator.draws import Draws
from advl_data.scenes.generator.vocabulary import Kind

Manner = Literal["name", "described"]
"""Whether a text calls a thing by its plain name or says something about it."""

_NAMED: Final = 2
_SPOKEN: Final = 5
"""So many of so many texts go by plain names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Voice:
    """Who says something of a split: `seed` and `plan_split` name the draws, `split` names pictures and items.

    Two splits of one plan say the same: test-shift of other pictures, test-rephrased in the held-out phrasing.
    Every choice of words takes one draw whatever the phrasing is, so that all other draws stay the same.
    """

    seed: int
    plan_split: str
    split: str
    phrasing: Phrasing = "open"

    def draws(self, *name: str | int) -> Draws:
        """Return the draws of one purpose."""
        return Draws(self.seed, self.plan_split, *name)

    def description(self, kind: Kind, draws: Draws, aspect: Aspect | None = None) -> str:
        """Draw a verb phrase that is true of a kind, such as "purrs when somebody strokes it".

        An aspect narrows the open phrasing. Held-out descriptions have none, and any of them is said.
        """
        if self.phrasing == "held-out":
            return draws.pick(kind.held_out).text
        return draws.pick([one for one in kind.descriptions if aspect in (None, one.aspect)]).text

    def definite(self, kind: Kind, manner: Manner, draws: Draws) -> str:
        """Return "the cat" or "the thing that purrs when somebody strokes it"."""
        described = f"the thing that {self.description(kind, draws)}"
        return f"the {kind.name}" if manner == "name" else described

    def something(self, kind: Kind, manner: Manner, draws: Draws) -> str:
        """Return "a cat" or "something that purrs when somebody strokes it"."""
        described = f"something that {self.description(kind, draws)}"
        return kind.noun_phrase if manner == "name" else described


def draw_manner(draws: Draws) -> Manner:
    """Draw how a text calls the things that it is about."""
    return "name" if draws.below(_SPOKEN) < _NAMED else "described"


def indefinite(noun: str) -> str:
    """Return a noun with "a" or "an"."""
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def listing(phrases: Sequence[str]) -> str:
    """Join phrases as a list: "a cat, a dog and a bee"."""
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def capitalised(text: str) -> str:
    """Start a text with a capital letter."""
    return f"{text[0].upper()}{text[1:]}"


def sentence(text: str) -> str:
    """Start a text with a capital letter and end it with a full stop."""
    return f"{capitalised(text)}."
