"""The frozen vocabulary: which kinds of things there are, their plain names, their families, and what hides them.

Plain names are the language of captions, descriptions (`descriptions`) that of the tasks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from advl_data.scenes.generator.descriptions import Description, Said, plural_forms, read_descriptions
from advl_pipeline.packages import read_data

VOCABULARY_FILE: Final = "scenes/generator/vocabulary.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """Kinds of one subcategory of the emoji chart, with the word for any of them."""

    subcategory: str
    category: str
    hypernym: str
    plural: str
    group: str
    """A coarser word, in the plural, such as "animals"; several families share one."""
    overlaps: tuple[str, ...]
    """Subcategories of families whose kinds may pass for one of this family's, and the other way round."""

    def __hash__(self) -> int:
        return hash(self.subcategory)


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """One kind of thing. `code` is its code point sequence, such as 1F54A-FE0F; it names the artwork."""

    code: str
    name: str
    article: str
    family: Family
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
    def noun_phrase(self) -> str:
        """The plain name with its article: "a cat"."""
        return f"{self.article} {self.name}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Container(Kind):
    """A kind that may hide others. Tasks show it and never ask about it."""

    hides: tuple[str, ...]
    """The groups of what it may hide; every group has one such container."""

    resembles: tuple[str, ...]
    """Subcategories of families that it may be taken for: nothing is said of them where it stands."""

    def __hash__(self) -> int:
        return hash(self.code)

    def may_hide(self, kind: Kind) -> bool:
        """Whether something that is not to be seen may be in or behind it."""
        return kind.family.group in self.hides


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """All kinds in a fixed order: the labelled ones, the unseen ones, then the containers that may hide a thing."""

    labelled: tuple[Kind, ...]
    unseen: tuple[Kind, ...]
    containers: tuple[Container, ...]

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return (*self.labelled, *self.unseen, *self.containers)

    def hiding_place(self, kind: Kind) -> Container:
        """Return the one container that may hide a kind."""
        (container,) = (container for container in self.containers if container.may_hide(kind))
        return container


def load_vocabulary(descriptions: Path | None = None) -> Vocabulary:
    """Read the frozen vocabulary (`annotations.make_vocabulary` makes it) and what people say about its kinds.

    Args:
        descriptions: a file of descriptions in place of ours.

    Raises:
        DatasetError: the descriptions cannot be used.
    """
    document = json.loads(read_data(VOCABULARY_FILE))
    described = [*document["labelled"], *document["unseen"]]
    of_kinds = (
        form for part in (described, document["containers"]) for kind in part for form in plural_forms(kind["name"])
    )
    of_families = (one[word] for one in document["families"].values() for word in ("hypernym", "plural", "group"))
    said = read_descriptions(
        descriptions,
        {entry["code"]: entry["name"] for entry in described},
        unsaid={*of_kinds, *of_families},
    )
    families = {
        name: Family(**{**entry, "subcategory": name, "overlaps": tuple(entry["overlaps"])})
        for name, entry in document["families"].items()
    }
    unnamed = frozenset(document["unnamed"])

    def fields(entry: Mapping[str, Any]) -> dict[str, Any]:
        about = said.get(entry["code"], Said())
        return {
            "code": entry["code"],
            "name": entry["name"],
            "article": entry["article"],
            "family": families[entry["subcategory"]],
            "named": entry["name"] not in unnamed,
            "descriptions": about.open,
            "held_out": about.held_out,
        }

    labelled, unseen = (
        tuple(Kind(**fields(entry), labelled=part == "labelled") for entry in document[part])
        for part in ("labelled", "unseen")
    )
    containers = tuple(
        Container(
            **fields(entry),
            labelled=False,
            hides=tuple(entry["hides"]),
            resembles=tuple(entry["resembles"]),
        )
        for entry in document["containers"]
    )
    return Vocabulary(labelled=labelled, unseen=unseen, containers=containers)
