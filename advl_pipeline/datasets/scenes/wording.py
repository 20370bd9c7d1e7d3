"""How the tasks speak: keywords that tell one kind from others, and sentences around them.

A description names a kind by two of its keywords that nobody uses for any of the rivals. Sentences are plain
strings; `[3]` in one is a tag.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from advl_pipeline.datasets.scenes.draws import Draws
from advl_pipeline.datasets.scenes.vocabulary import Kind, phrase_stems, spoken_stems

KEYWORDS_PER_DESCRIPTION: Final = 2

_NOUN_PHRASES: Final = (
    "the thing that goes with {a} and {b}",
    "what people link with {a} and {b}",
    "the thing for {a} and {b}",
    "the {hypernym} that makes one think of {a} and {b}",
)
_SOMETHINGS: Final = (
    "something that goes with {a} and {b}",
    "something people link with {a} and {b}",
    "something that brings {a} and {b} to mind",
    "{hypernym_phrase} that goes with {a} and {b}",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Voice:
    """Who says something of a split: `seed` and `plan_split` name the draws, `split` names pictures and items.

    Two splits of one plan (test and test-shift) say the same of different pictures.
    """

    seed: int
    plan_split: str
    split: str

    def draws(self, *name: str | int) -> Draws:
        """Return the draws of one purpose."""
        return Draws(self.seed, self.plan_split, *name)


@dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    """A kind as two of its keywords: apt for it, apt for none of the kinds that it was made against."""

    kind: Kind
    keywords: tuple[str, str]

    def fill(self, template: str) -> str:
        """Put keywords and hypernym into a template with {a}, {b}, {hypernym}, {hypernym_phrase}."""
        hypernym = self.kind.family.hypernym
        return template.format(
            a=self.keywords[0], b=self.keywords[1], hypernym=hypernym, hypernym_phrase=indefinite(hypernym)
        )

    def definite(self, draws: Draws) -> str:
        """Return a definite noun phrase, such as "the thing that goes with meow and feline"."""
        return self.fill(draws.pick(_NOUN_PHRASES))

    def something(self, draws: Draws) -> str:
        """Return an indefinite noun phrase, such as "something that goes with meow and feline"."""
        return self.fill(draws.pick(_SOMETHINGS))


def telling_keywords(kind: Kind, rivals: Iterable[Kind]) -> tuple[str, ...]:
    """Return the keywords of a kind that share no stem with any word used for a rival, each stem once."""
    heard: set[str] = set().union(*(spoken_stems(rival) for rival in rivals if rival.code != kind.code))
    return _telling(kind, lambda stems: stems.isdisjoint(heard))


def can_join(newcomers: tuple[Kind, ...], described: Sequence[Kind], rivals: Sequence[Kind], *, named: bool) -> bool:
    """Tell whether newcomers fit beside kinds that are described and their rivals, which fit already.

    Args:
        newcomers: kinds to be added; with `named` they only go by their plain names and need no description.
        described: kinds that must keep enough telling keywords.
        rivals: all kinds so far, the described ones among them.
    """
    heard = frozenset().union(*(spoken_stems(kind) for kind in rivals))
    if all(spoken_stems(kind).isdisjoint(heard) for kind in newcomers):
        return named or can_describe(newcomers)
    return can_describe((*described, *(() if named else newcomers)), (*rivals, *newcomers))


@functools.lru_cache(maxsize=4096)
def can_describe(kinds: tuple[Kind, ...], rivals: tuple[Kind, ...] = ()) -> bool:
    """Tell whether each of the kinds has enough keywords against all the others and the rivals."""
    speakers = Counter(stem for kind in {*kinds, *rivals} for stem in spoken_stems(kind))

    def own(stems: frozenset[str]) -> bool:
        return all(speakers[stem] == 1 for stem in stems)

    return all(len(_telling(kind, own)) >= KEYWORDS_PER_DESCRIPTION for kind in kinds)


def _telling(kind: Kind, tells: Callable[[frozenset[str]], bool]) -> tuple[str, ...]:
    kept: list[str] = []
    said: set[str] = set()
    for keyword in kind.keywords:
        stems = phrase_stems(keyword)
        if tells(stems) and stems.isdisjoint(said):
            kept.append(keyword)
            said |= stems
    return tuple(kept)


def describe(kind: Kind, rivals: Sequence[Kind], draws: Draws) -> Description:
    """Draw a description of a kind against the rivals (which must allow one, see `can_describe`)."""
    first, second = draws.some(telling_keywords(kind, rivals), KEYWORDS_PER_DESCRIPTION)
    return Description(kind=kind, keywords=(first, second))


def indefinite(noun: str) -> str:
    """Return a noun with "a" or "an"."""
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def listing(phrases: Sequence[str]) -> str:
    """Join phrases as a list: "a cat, a dog and a bee"."""
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def sentence(text: str) -> str:
    """Start a text with a capital letter and end it with a full stop."""
    return f"{text[0].upper()}{text[1:]}."
