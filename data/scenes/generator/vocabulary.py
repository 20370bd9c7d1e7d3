"""Kinds of things in scenes, their descriptions without names, and the wording of texts about them.

Captions use plain names. The tasks use descriptions, and plain names in two of five texts, so that a student that
only knows captions has a start. The vocabulary is frozen. Descriptions are ours, or from a user's file; the head of
`descriptions.toml` defines them. In a sentence `[3]` is a tag.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from advl_data.scenes.generator.draws import Draws
from advl_pipeline.base.errors import DatasetError, again
from advl_pipeline.base.packages import read_data

DESCRIPTIONS_FILE: Final = "scenes/generator/descriptions.toml"
Aspect = Literal["does", "used_for", "met", "looks", "belongs"]
"""Aspect of a description; the headings of the file define each."""

ASPECTS: Final[tuple[Aspect, ...]] = ("does", "used_for", "met", "looks", "belongs")
HELD_OUT: Final = "held_out"

Phrasing = Literal["open", "held-out"]
"""Descriptions of a split: those that training texts may use, or those that no training text uses."""

# A bracket would be parsed as a tag, and end punctuation would be inside a sentence.
_VERB_PHRASE: Final = re.compile(r"[a-z][^\[\].?!]*[^\s\[\].?!]")
_WANTED: Final = 'is no verb phrase such as "purrs when somebody strokes it": small letters first, none of [ ] . ? !'


@dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    """One description of a kind: "purrs when somebody strokes it", of the aspect "does"."""

    text: str
    aspect: str
    """One of `ASPECTS`, or `HELD_OUT` for a phrasing that no training text may use."""


def read_tables(path: Path | None) -> dict[str, Any]:
    """Read the tables of a file of descriptions; None reads ours.

    Raises:
        DatasetError: the file cannot be read.
    """
    try:
        # Some editors write a byte order mark.
        return tomllib.loads(path.read_text(encoding="utf-8-sig") if path else read_data(DESCRIPTIONS_FILE))
    except OSError as error:
        raise unfit(path, error.strerror or str(error)) from None
    except (ValueError, RecursionError) as error:
        raise unfit(path, f"no valid TOML: {error}") from None


def read_descriptions(
    path: Path | None, tables: Mapping[str, Any], names: Mapping[str, str], unsaid: Iterable[str]
) -> dict[str, dict[str, tuple[Description, ...]]]:
    """Read the descriptions of each kind.

    Args:
        path: file of the tables, for errors; None for ours.
        tables: code -> aspect -> descriptions.
        names: code -> plain name of every described kind.
        unsaid: names of kinds and words for families, which no description may contain.

    Returns:
        Code -> the description fields of a `Kind`, in the order of `names`.

    Raises:
        DatasetError: a kind is missing, unknown or without a description; or a description is not a verb phrase,
            contains a name, or is a duplicate.
    """
    for what, codes in (("missing", names.keys() - tables.keys()), ("unknown", tables.keys() - names)):
        if codes:
            raise unfit(
                path,
                f"{len(codes)} of the kinds are {what}: {', '.join(f'[{code}]' for code in sorted(codes)[:5])}",
            )
    phrases = {_words(name) for name in unsaid}
    lengths = {len(phrase) for phrase in phrases}
    first: dict[tuple[str, ...], str] = {}
    said = {}
    for code, name in names.items():
        heading = f"[{code}] ({name})"
        every = list(_descriptions_of(path, heading, tables[code]))
        held_out = tuple(description for description in every if description.aspect == HELD_OUT)
        said[code] = {"descriptions": tuple(every[: len(every) - len(held_out)]), "held_out": held_out}
        if not all(said[code].values()):
            raise unfit(path, f"{heading} needs at least one description to train on, and one under {HELD_OUT}")
        for description in every:
            words = _words(description.text)
            parts = {words[start : start + length] for length in lengths for start in range(len(words))}
            if spoken := phrases & parts:
                raise unfit(
                    path,
                    f"{heading}, {description.aspect}: {description.text!r} speaks a name, {' '.join(min(spoken))!r}",
                )
            if words in first:
                # A duplicate would make two answers of a question right.
                raise unfit(path, f"{description.text!r} is said twice: of {first[words]}, and of {heading}")
            first[words] = heading
    return said


def _descriptions_of(path: Path | None, heading: str, table: Any) -> Iterator[Description]:
    aspects = (*ASPECTS, HELD_OUT)
    if not isinstance(table, dict) or not table.keys() <= set(aspects):
        raise unfit(path, f"{heading} has something else than lists named {', '.join(aspects)}")
    for aspect in filter(table.__contains__, aspects):
        texts = table[aspect]
        if not isinstance(texts, list):
            raise unfit(path, f"{heading}, {aspect}: {texts!r} is no list of descriptions")
        for text in texts:
            if not isinstance(text, str) or not text.isprintable() or not _VERB_PHRASE.fullmatch(text):
                raise unfit(path, f"{heading}, {aspect}: {text!r} {_WANTED}")
            yield Description(text=text, aspect=aspect)


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", text.lower()))


def plural_forms(name: str) -> tuple[str, ...]:
    """Return a name and its possible plurals, by the rules of English: "cherry", "cherries"."""
    return (name, f"{name}s", f"{name}es", re.sub("y$", "ies", name), re.sub("fe?$", "ves", name))


def unfit(path: Path | None, why: str) -> DatasetError:
    """Return the error for unusable descriptions."""
    return DatasetError(
        "The descriptions of the corpus cannot be used.",
        where=str(path or DESCRIPTIONS_FILE),
        why=why,
        next_command=again("correct the file and run the same command again, or leave --descriptions out for ours"),
    )


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
    """Subcategories of families whose kinds can be confused with this family's, and vice versa."""

    def __hash__(self) -> int:
        return hash(self.subcategory)


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """A kind of thing. Its `code` names its artwork, or the folder of its photographs."""

    code: str
    drawing: str
    """Code of its artwork, such as 1F54A-FE0F; empty without artwork."""
    name: str
    article: str
    family: Family
    labelled: bool
    """True if the tasks may show it; the others appear only in captions and in test-unseen."""
    named: bool
    """False if no caption names it, though caption pictures show it."""
    descriptions: tuple[Description, ...]
    """Descriptions for any text; empty for a container."""
    held_out: tuple[Description, ...]
    """Descriptions that no training text may use; empty for a container."""

    def __hash__(self) -> int:
        # The code identifies a kind; hashing all fields would dominate the planning time.
        return hash(self.code)

    @property
    def noun_phrase(self) -> str:
        """The plain name with its article: "a cat"."""
        return f"{self.article} {self.name}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Container(Kind):
    """A kind that may hide others. Tasks show it but have no questions about it."""

    hides: tuple[str, ...]
    """Groups that it may hide; every group has one such container."""

    resembles: tuple[str, ...]
    """Subcategories of families that it can be confused with; texts about its pictures do not mention them."""

    def __hash__(self) -> int:
        return hash(self.code)

    def may_hide(self, kind: Kind) -> bool:
        """Return whether an invisible thing may be in or behind it."""
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

    @property
    def groups(self) -> frozenset[str]:
        """The coarse words of the families."""
        return frozenset(kind.family.group for kind in (*self.labelled, *self.unseen))

    def hiding_place(self, kind: Kind) -> Container:
        """Return the one container that may hide a kind."""
        (container,) = (container for container in self.containers if container.may_hide(kind))
        return container


def load_vocabulary(descriptions: Path | None = None) -> Vocabulary:
    """Read the frozen vocabulary and the descriptions of its kinds.

    Args:
        descriptions: a file of descriptions instead of ours.

    Raises:
        DatasetError: the descriptions cannot be used.
    """
    document = json.loads(read_data(VOCABULARY_FILE))
    described = [*document["labelled"], *document["unseen"]]
    names = [kind["name"] for kind in (*described, *document["containers"])]
    of_families = (
        family[word] for family in document["families"].values() for word in ("hypernym", "plural", "group")
    )
    said = read_descriptions(
        descriptions,
        read_tables(descriptions),
        {entry["code"]: entry["name"] for entry in described},
        unsaid={*(form for name in names for form in plural_forms(name)), *of_families},
    )
    families = {
        name: Family(**{**entry, "subcategory": name, "overlaps": tuple(entry["overlaps"])})
        for name, entry in document["families"].items()
    }

    def kinds(heading: str) -> Iterator[Any]:
        for entry in document[heading]:
            listed: dict[str, Any] = {"descriptions": (), "held_out": ()} | said.get(entry["code"], {})
            listed |= {name: tuple(entry[name]) for name in ("hides", "resembles") if name in entry}
            yield (Container if "hides" in entry else Kind)(
                code=entry["code"],
                drawing=entry["code"],
                name=entry["name"],
                article=entry["article"],
                family=families[entry["subcategory"]],
                labelled=heading == "labelled",
                named=entry["name"] not in document["unnamed"],
                **listed,
            )

    labelled, unseen, containers = (tuple(kinds(heading)) for heading in ("labelled", "unseen", "containers"))
    return Vocabulary(labelled=labelled, unseen=unseen, containers=containers)


Manner = Literal["name", "described"]
"""Whether a text refers to a thing by its plain name or by a description."""

_NAMED: Final = 2
_SPOKEN: Final = 5
"""`_NAMED` of `_SPOKEN` texts use plain names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Voice:
    """Wording of a split: `seed` and `plan_split` name the draws, `split` names pictures and items.

    Splits of one plan have the same content: test-shift with other pictures, test-rephrased in the held-out phrasing.
    Every choice of words uses one draw in either phrasing, so that all other draws stay the same.
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

        An aspect restricts the open phrasing. Held-out descriptions have no aspect, and any of them may be drawn.
        """
        if self.phrasing == "held-out":
            return draws.pick(kind.held_out).text
        return draws.pick(
            [description for description in kind.descriptions if aspect in (None, description.aspect)]
        ).text

    def definite(self, kind: Kind, manner: Manner, draws: Draws) -> str:
        """Return "the cat" or "the thing that purrs when somebody strokes it"."""
        described = f"the thing that {self.description(kind, draws)}"
        return f"the {kind.name}" if manner == "name" else described

    def something(self, kind: Kind, manner: Manner, draws: Draws) -> str:
        """Return "a cat" or "something that purrs when somebody strokes it"."""
        described = f"something that {self.description(kind, draws)}"
        return kind.noun_phrase if manner == "name" else described


def draw_manner(draws: Draws) -> Manner:
    """Draw how a text refers to its things."""
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
