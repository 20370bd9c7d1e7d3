"""Cards: what is said of a dataset, for people and for its reader.

That of a published set is `data/cards/NAME.toml`: files, counts, licence, how to get it. A user's own says of data
what their columns do not (`docs/adding-a-dataset.md`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from advl_pipeline.base.configuration import Configuration, build_config, declared, option
from advl_pipeline.base.errors import ConfigError, unknown_name
from advl_pipeline.base.packages import data_files, missing_data, read_data_file
from advl_pipeline.base.toml import read_toml
from advl_pipeline.datasets.measures import Facet, Measure, Rule, Ties, require_measures
from advl_pipeline.datasets.roots import HUB_PREFIX

Kind = Literal["choice", "classes", "answers", "pictures"]
"""Kinds of tasks of rows; pictures alone have none, and are there to be extracted."""

LabelForm = Literal["index", "text", "letter"]

COLUMNS = (
    *("id", "image", "question", "text", "choices", "label", "rationales", "rationale_label", "answers", "answer"),
    *("boxes", "box_labels", "split", "group", "stratum"),
)
"""Columns that mean something; others are left alone."""

ROWS = "rows"
"""Format of a card that says what the columns of its rows mean (`Card`), as a user's own card does."""

ABOUT = frozenset(
    "title format tasks metrics splits evaluate_only lmms_eval harness instead_of homepage licence size scoring "
    "chance seen tried how_to_get".split()
)
"""Keys of the card of a published set that tell people of it; its rows are read without them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Join(Configuration):
    """Columns of other rows: those whose column `on` is what a row has in its column `key`."""

    files: Any
    """hf:NAME, or a table split -> hf:NAME."""
    key: str
    """Column of the rows."""
    on: str
    """Column of the joined rows."""
    columns: tuple[str, ...]
    """Columns that are taken over."""


def by_split(files: Any) -> dict[str | None, list[Any]]:
    """Return split -> what the `files` of a card name for it; None where one name stands for all splits."""
    named = files if isinstance(files, Mapping) else {None: files}
    return {split: names if isinstance(names, list) else [names] for split, names in named.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Card(Configuration):
    """What is said of a dataset: facts for people, where its splits are, how its rows are read and scored.

    A published set has one in `data/cards`, a user may write one, and data without a card have an empty one. A card
    of a published format is its facts alone; in others every key below may be left out.
    """

    name: str = ""
    """Of its file."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """The parsed file."""
    task: Kind | None = None
    """Kind of task, where the columns allow several."""
    files: Any = None
    """A file or hf:NAME, or a table split -> file, list of files or hf:NAME; relative to the card."""
    pictures: Path | None = None
    """Folder that picture names are relative to, itself relative to the card [default: the card's]."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Our column -> theirs, or several of theirs: joined with spaces where ours is a text, else a list."""
    constants: Mapping[str, Any] = field(default_factory=dict)
    """Our column -> what every row has in it."""
    items: tuple[Mapping[str, str], ...] = ()
    """Items of a row, our column -> theirs; they are a group."""
    join: Join | None = None
    """Columns that other rows have."""
    split_names: Mapping[str, str] = field(default_factory=dict)
    """Their split -> ours."""
    num_rows: int | None = option(None, help="Number of first rows of each split; others are not fetched.", minimum=1)
    only: Mapping[str, Any] = field(default_factory=dict)
    """Their column -> the values of rows that are read; others are left out and counted."""
    needs: tuple[str, ...] = ()
    """Our columns without which a row is left out and counted."""
    labels: tuple[str, ...] = ()
    """The classes, in order [default: those of train, sorted]."""
    label_is: LabelForm | None = None
    """How a label reads that could be read in several ways."""
    options_in_question: bool = False
    """The choices stand in the question, behind A, B and so on."""
    right_choice_first: bool = False
    """The first choice is the right one; their order is drawn."""
    rationale_choices: int | None = option(
        None, help="Rationales to choose from: the row's first one, and others from other rows.", minimum=2
    )
    min_answer_count: int = option(
        1, help="Number of train questions whose most frequent answer an answer must be to become a class.", minimum=1
    )
    facets: Mapping[str, Facet] = field(default_factory=dict)
    """What rows say of themselves that measures are taken over."""
    measures: tuple[Measure, ...] = ()
    """Numbers that the set is known by, besides its plain accuracy."""
    ties: Ties = "first"
    """What an item is worth whose right choice shares the highest score."""
    reads: Rule = "letter"
    """How a generated answer is read."""
    asks: Mapping[str, str] = field(default_factory=dict)
    """What follows a question whose answer is generated: of `letters`, `yes_no` and `answers`."""

    @property
    def title(self) -> str:
        return str(self.facts.get("title", ""))

    @property
    def format(self) -> str:
        """How its files are read: `rows`, by what the card says of columns, or a published format."""
        return str(self.facts.get("format", ROWS))

    @property
    def splits(self) -> Mapping[str, Mapping[str, Any]]:
        """Split -> its files and counts, in the fields of the format."""
        splits: Mapping[str, Mapping[str, Any]] = self.facts.get("splits", {})
        return splits

    def split(self, name: str) -> Mapping[str, Any]:
        """Return the facts of a split.

        Raises:
            ConfigError: there is no such split; the near names are listed.
        """
        if name not in self.splits:
            raise unknown_name(f"{self.name} has no split {name!r}.", name, self.splits)
        return self.splits[name]

    @property
    def is_of_hub(self) -> bool:
        """Whether the files are datasets of the hub, one for each split."""
        return all(len(names) == 1 and names[0].startswith(HUB_PREFIX) for names in by_split(self.files).values())


def read_card(path: Path) -> Card:
    """Read a card that a user wrote.

    Raises:
        ConfigError: a key or a value that cannot be used; file and key are named.
    """
    return _card_of_rows(read_toml(path), path)


def _card_of_rows(facts: Mapping[str, Any], path: Path) -> Card:
    keys = {key: value for key, value in facts.items() if key not in ABOUT} if facts.get("format") == ROWS else facts
    known = declared(Card).keys() - {"name", "facts"}
    if unknown := next((key for key in keys if key.replace("-", "_") not in known), ""):
        raise unknown_name(f"Unknown key {unknown!r}.", unknown, known, where=str(path))
    card = build_config(Card, keys, {"name": path.stem, "facts": facts}, where=str(path))
    for name in chain(card.columns, card.constants, *card.items, card.needs):
        if name not in COLUMNS:
            what, note = f"Unknown column {name!r} in the card.", "; the form is our column = theirs"
            raise unknown_name(what, name, COLUMNS, where=f"{path} [columns]", note=note)
    if len(set(card.labels)) != len(card.labels):
        raise ConfigError("A class is named twice.", where=f"{path} labels", why=", ".join(card.labels))
    asked = {"files": card.files} | ({"join.files": card.join.files} if card.join else {})
    for key, files in asked.items():
        named = by_split(files)
        texts = [*chain.from_iterable(named.values())]
        is_too_many = key != "files" and len(texts) > len(named)
        if is_too_many or not texts or not all(isinstance(text, str) and text for text in texts):
            of_files = "a file, hf:NAME, or a table split -> file or list of files"
            expected = of_files if key == "files" else "hf:NAME, or a table split -> hf:NAME"
            what, why = "The card does not say which files hold the data.", f"got {files!r}; expected {expected}"
            raise ConfigError(what, where=f"{path} {key}", why=why)
    require_measures(card.measures, card.facets, where=str(path))
    of_hub = {"join": card.join, "split_names": card.split_names, "num_rows": card.num_rows}
    if not card.is_of_hub and (done := next(filter(of_hub.get, of_hub), None)):
        what = "The card asks of files what is done for datasets of the hub alone."
        raise ConfigError(what, where=f"{path} {done}", why=f"files is {card.files!r}")
    return card


JOIN = "+"
"""Joins the names of splits that are read together, as in train+val."""


def card_names() -> tuple[str, ...]:
    """Return the names of all published cards, those of plug-ins included."""
    return tuple(data_files("cards"))


@cache
def load_card(name: str) -> Card:
    """Read a published card.

    Raises:
        ConfigError: there is no card of that name, or a plug-in's cannot be used.
    """
    cards = data_files("cards")
    if name not in cards:
        raise unknown_name(f"There is no dataset card {name!r}.", name, cards, note=missing_data())
    facts = read_data_file(cards[name])
    return _card_of_rows(facts, cards[name]) if facts.get("format") == ROWS else Card(name=name, facts=facts)


def known_card(name: str) -> Card:
    """Return the published card of a dataset; an empty one where there is none."""
    return load_card(name) if name in card_names() else Card()


def readable_cards() -> Iterator[Card]:
    """Yield the cards, but for those that a plug-in brings damaged."""
    for name in card_names():
        with suppress(ConfigError):
            yield load_card(name)


def card_instead_of(repository: str) -> str:
    """Return the card of a set that stands in for one of the hub which cannot be read; "" where there is none."""
    return next((card.name for card in readable_cards() if repository in card.facts.get("instead_of", ())), "")


def picture_splits(dataset: str, split: str) -> tuple[str, ...]:
    """Return the splits that the pictures of a split are filed under, as their publishers call them.

    Shifted sets show pictures of another split, and VQA's pictures are those of COCO's splits. It is the split itself
    where no card says otherwise.

    Raises:
        ConfigError: the dataset has a card and no such split.
    """
    card = known_card(dataset)
    if not card.name:
        return (split,)
    filed_under: list[str] = []
    for part in split.split(JOIN):
        facts = card.split(part)
        filed_under += facts.get("picture_splits") or card.facts.get("picture_splits") or [facts.get("subtype", part)]
    return tuple(dict.fromkeys(filed_under))
