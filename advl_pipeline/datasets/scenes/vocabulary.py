"""The frozen vocabulary: which kinds of things there are, their plain names and what people say about them.

Plain names are the language of captions. Keywords and hypernyms are the language of the tasks; no keyword is the
plain name of any kind, so a student that has read only captions has met none of them as a name. Descriptions are
what people say of a kind without naming it.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from advl_pipeline.datasets.scenes.descriptions import (
    DESCRIPTIONS_FILE,
    Description,
    parse_descriptions,
    parse_held_out,
)

VOCABULARY_FILE: Final = "scenes_vocabulary.json"
SELECTION_FILE: Final = "scenes_selection.toml"

_SUFFIXES: Final = ("ing", "ies", "es", "ed", "s", "y", "e")
_MIN_STEM: Final = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """Kinds of one subcategory of the emoji chart, with the word for any of them."""

    subcategory: str
    category: str
    hypernym: str
    plural: str
    group: str
    """A coarser word, in the plural, such as "animals"; several families share one."""

    def __hash__(self) -> int:
        return hash(self.subcategory)


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """One kind of thing. `code` is its code point sequence, such as 1F54A-FE0F; it names the artwork."""

    code: str
    name: str
    article: str
    family: Family
    keywords: tuple[str, ...]
    labelled: bool
    """True when the tasks may show it; the others appear in captions and in test-unseen alone."""
    named: bool
    """False when no caption ever calls it by its name, though caption pictures show it."""
    descriptions: tuple[Description, ...]
    """What any text may say of it; empty for a container."""
    held_out: tuple[Description, ...]
    """Phrasings that no training text may use; empty for a container."""

    def __hash__(self) -> int:
        # The code names a kind; hashing all fields would dominate the planning of scenes.
        return hash(self.code)

    @property
    def character(self) -> str:
        """The emoji itself."""
        return "".join(chr(int(part, 16)) for part in self.code.split("-"))

    @property
    def noun_phrase(self) -> str:
        """The plain name with its article: "a cat"."""
        return f"{self.article} {self.name}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """All kinds in a fixed order: the labelled ones, the unseen ones, then the containers that may hide a thing."""

    labelled: tuple[Kind, ...]
    unseen: tuple[Kind, ...]
    containers: tuple[Kind, ...]

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return (*self.labelled, *self.unseen, *self.containers)

    @property
    def unnamed(self) -> tuple[Kind, ...]:
        """The kinds that captions show and never name: about a quarter of the labelled ones."""
        return tuple(kind for kind in self.labelled if not kind.named)


def stem(word: str) -> str:
    """Return a crude stem, good enough to see that "stripe" and "stripes" say the same."""
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= _MIN_STEM:
            return word[: -len(suffix)]
    return word


@functools.cache
def phrase_stems(phrase: str) -> frozenset[str]:
    """Return the stems of a phrase's words."""
    return frozenset(stem(word) for word in phrase.split())


@functools.cache
def spoken_stems(kind: Kind) -> frozenset[str]:
    """Return the stems of every word that anybody uses for the kind: name, hypernym, keywords."""
    phrases = (kind.name, kind.family.hypernym, *kind.keywords)
    return frozenset().union(*(phrase_stems(phrase) for phrase in phrases))


def read_data(name: str) -> str:
    """Return the text of a file in `data/`, which installs under its own import name."""
    return importlib.resources.files("advl_data").joinpath(name).read_text(encoding="utf-8")


@functools.cache
def load_vocabulary() -> Vocabulary:
    """Read the frozen vocabulary and what people say about its kinds."""
    return parse_vocabulary(json.loads(read_data(VOCABULARY_FILE)), tomllib.loads(read_data(DESCRIPTIONS_FILE)))


def parse_vocabulary(
    document: Mapping[str, Any], descriptions: Mapping[str, Mapping[str, Sequence[str]]]
) -> Vocabulary:
    """Build the vocabulary from its JSON document (`annotations.make_vocabulary` makes it).

    `descriptions` maps the code of a kind to its table of `data/scenes_descriptions.toml`.
    """
    families = {
        name: Family(
            subcategory=name,
            category=entry["category"],
            hypernym=entry["hypernym"],
            plural=entry["plural"],
            group=entry["group"],
        )
        for name, entry in document["families"].items()
    }

    unnamed = frozenset(document["unnamed"])

    def kinds(part: str) -> tuple[Kind, ...]:
        return tuple(
            Kind(
                code=entry["code"],
                name=entry["name"],
                article=entry["article"],
                family=families[entry["subcategory"]],
                keywords=tuple(entry["keywords"]),
                labelled=part == "labelled",
                named=entry["name"] not in unnamed,
                descriptions=parse_descriptions(descriptions.get(entry["code"], {})),
                held_out=parse_held_out(descriptions.get(entry["code"], {})),
            )
            for entry in document[part]
        )

    return Vocabulary(labelled=kinds("labelled"), unseen=kinds("unseen"), containers=kinds("containers"))
