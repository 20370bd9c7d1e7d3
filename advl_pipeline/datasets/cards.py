"""Cards: descriptions of datasets, for people and for the reader.

The card of a published dataset is `data/cards/NAME.toml`: files, counts, licence, how to get it. A user's card
describes data beyond their columns (`docs/adding-a-dataset.md`).
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
from advl_pipeline.base.repositories import HUB_PREFIX
from advl_pipeline.base.toml import read_toml
from advl_pipeline.datasets.measures import Facet, Measure, Rule, Ties, require_measures

Kind = Literal["choice", "classes", "answers", "pictures"]
"""Kinds of task of rows; `pictures` has no task and only serves extraction."""

LabelForm = Literal["index", "text", "letter"]

COLUMNS = (
    *("id", "image", "question", "text", "choices", "label", "rationales", "rationale_label", "answers", "answer"),
    *("boxes", "box_labels", "split", "group", "stratum"),
)
"""Columns with a meaning; others are ignored."""

ROWS = "rows"
"""Format of a card that defines the columns of its rows (`Card`), as a user's card does."""

ABOUT = frozenset(
    "title format tasks metrics splits evaluate_only lmms_eval harness instead_of homepage licence size scoring "
    "chance seen tried how_to_get".split()
)
"""Keys of a published card that only inform people; reading rows does not use them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Join(Configuration):
    """Join of columns from other rows: those whose column `on` equals the row's column `key`."""

    files: Any
    """hf:NAME, or a table split -> hf:NAME."""
    key: str
    """Key column of the rows."""
    on: str
    """Key column of the joined rows."""
    columns: tuple[str, ...]
    """Columns to copy from the joined rows."""


def by_split(files: Any) -> dict[str | None, list[Any]]:
    """Return split -> entries of a card's `files`; the key is None if one name covers all splits."""
    named = files if isinstance(files, Mapping) else {None: files}
    return {split: names if isinstance(names, list) else [names] for split, names in named.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Card(Configuration):
    """Description of a dataset: facts for people, the files of its splits, and rules for reading and scoring rows.

    A published dataset has a card in `data/cards`, a user may write one, and data without a card have an empty one.
    A card of a published format only contains facts; in other cards every key below is optional.
    """

    name: str = ""
    """Name of the card's file."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """The parsed file."""
    task: Kind | None = None
    """Kind of task, if the columns allow several."""
    reader: Literal["daquar", "flickr-captions"] | None = None
    """Reader of a published dataset's own files (`people.py`), in place of `files`."""
    files: Any = None
    """A file or hf:NAME, or a table split -> file, list of files or hf:NAME; relative to the card."""
    pictures: Path | None = None
    """Folder that picture names are relative to, itself relative to the card [default: the card's]."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Our column -> theirs, or several of theirs: joined with spaces if ours is a text, else a list."""
    constants: Mapping[str, Any] = field(default_factory=dict)
    """Our column -> constant value for every row."""
    items: tuple[Mapping[str, str], ...] = ()
    """Items of a row, each as our column -> theirs; they form a group."""
    join: Join | None = None
    """Columns from other rows."""
    split_names: Mapping[str, str] = field(default_factory=dict)
    """Their split -> ours."""
    num_rows: int | None = option(None, help="Number of first rows of each split; others are not fetched.", minimum=1)
    only: Mapping[str, Any] = field(default_factory=dict)
    """Their column -> accepted values; rows with other values are left out and counted."""
    needs: tuple[str, ...] = ()
    """Our required columns; rows without them are left out and counted."""
    labels: tuple[str, ...] = ()
    """The classes, in order [default: those of train, sorted]."""
    label_is: LabelForm | None = None
    """Form of an ambiguous label."""
    first_label: int | None = option(
        None, help="Number of the first choice or class where labels are numbers: 0 or 1.", minimum=0, maximum=1
    )
    options_in_question: bool = False
    """The question contains the choices, after A, B and so on."""
    right_choice_first: bool = False
    """The first choice is the right one; the choices are then shuffled."""
    rationale_choices: int | None = option(
        None, help="Rationales to choose from: the row's first one, and others from other rows.", minimum=2
    )
    max_boxes: int = option(1_000, help="Number of boxes that a row may have.", minimum=1)
    max_choices: int = option(1_000, help="Number of choices that a row may have.", minimum=2)
    max_characters: int = option(100_000, help="Length that a text of a row may have.", minimum=1)
    min_answer_count: int = option(
        1, help="Number of train questions whose most frequent answer an answer must be to become a class.", minimum=1
    )
    facets: Mapping[str, Facet] = field(default_factory=dict)
    """Facets of rows for the measures."""
    measures: tuple[Measure, ...] = ()
    """Metrics of the dataset besides its plain accuracy."""
    ties: Ties = "first"
    """Score of an item whose right choice ties for the highest score."""
    reads: Rule = "letter"
    """Rule for parsing a generated answer."""
    asks: Mapping[str, str] = field(default_factory=dict)
    """Text after a question with a generated answer: for `letters`, `yes_no` and `answers`."""

    @property
    def title(self) -> str:
        return str(self.facts.get("title", ""))

    @property
    def format(self) -> str:
        """Format of the files: `rows` (the card defines the columns) or a published format."""
        return str(self.facts.get("format", ROWS))

    @property
    def splits(self) -> Mapping[str, Mapping[str, Any]]:
        """Split -> its files and counts, with the fields of the format."""
        splits: Mapping[str, Mapping[str, Any]] = self.facts.get("splits", {})
        return splits

    def split(self, name: str) -> Mapping[str, Any]:
        """Return the facts of a split.

        Raises:
            ConfigError: the split does not exist; the message lists similar names.
        """
        if name not in self.splits:
            raise unknown_name(f"{self.name} has no split {name!r}.", name, self.splits)
        return self.splits[name]

    @property
    def is_of_hub(self) -> bool:
        """Whether the files are datasets of the hub, one per split."""
        return not self.reader and all(
            len(names) == 1 and names[0].startswith(HUB_PREFIX) for names in by_split(self.files).values()
        )


def read_card(path: Path) -> Card:
    """Read a user's card.

    Raises:
        ConfigError: a key or a value is invalid; the message names file and key.
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
            raise unknown_name(
                f"Unknown column {name!r} in the card.",
                name,
                COLUMNS,
                where=f"{path} [columns]",
                note="; the form is our column = theirs",
            )
    if len(set(card.labels)) != len(card.labels):
        raise ConfigError("A class is named twice.", where=f"{path} labels", why=", ".join(card.labels))
    asked = ({} if card.reader else {"files": card.files}) | ({"join.files": card.join.files} if card.join else {})
    for key, files in asked.items():
        named = by_split(files)
        texts = [*chain.from_iterable(named.values())]
        is_too_many = key != "files" and len(texts) > len(named)
        if is_too_many or not texts or not all(isinstance(text, str) and text for text in texts):
            raise ConfigError(
                "The card does not say which files hold the data.",
                where=f"{path} {key}",
                why=f"got {files!r}; expected "
                + (
                    "a file, hf:NAME, or a table split -> file or list of files"
                    if key == "files"
                    else "hf:NAME, or a table split -> hf:NAME"
                ),
            )
    require_measures(card.measures, card.facets, where=str(path))
    of_hub = {"join": card.join, "split_names": card.split_names, "num_rows": card.num_rows}
    if not card.is_of_hub and (done := next(filter(of_hub.get, of_hub), None)):
        raise ConfigError(
            "This key of a card is for datasets of the hub, and the card names files.",
            where=f"{path} {done}",
            why=f"files is {card.files!r}",
        )
    return card


JOIN = "+"
"""Separator of splits that are read together, as in train+val."""


def card_names() -> tuple[str, ...]:
    """Return the names of all published cards, including those of plug-ins."""
    return tuple(data_files("cards"))


@cache
def load_card(name: str) -> Card:
    """Read a published card.

    Raises:
        ConfigError: the card does not exist, or the card of a plug-in is invalid.
    """
    cards = data_files("cards")
    if name not in cards:
        raise unknown_name(f"There is no dataset card {name!r}.", name, cards, note=missing_data())
    facts = read_data_file(cards[name])
    return _card_of_rows(facts, cards[name]) if facts.get("format") == ROWS else Card(name=name, facts=facts)


def known_card(name: str) -> Card:
    """Return the published card of a dataset, or an empty card."""
    return load_card(name) if name in card_names() else Card()


def readable_cards() -> Iterator[Card]:
    """Yield the published cards, except invalid ones of plug-ins."""
    for name in card_names():
        with suppress(ConfigError):
            yield load_card(name)


def card_instead_of(repository: str) -> str:
    """Return the name of the card that replaces an unreadable hub dataset; "" without one."""
    return next((card.name for card in readable_cards() if repository in card.facts.get("instead_of", ())), "")


def picture_splits(dataset: str, split: str) -> tuple[str, ...]:
    """Return the publishers' names of the splits that contain the pictures of a split.

    Shifted datasets use pictures of another split, and VQA uses the pictures of COCO's splits. Without an entry in a
    card it is the split itself.

    Raises:
        ConfigError: the dataset has a card, but not this split.
    """
    card = known_card(dataset)
    if not card.name:
        return (split,)
    filed_under: list[str] = []
    for part in split.split(JOIN):
        facts = card.split(part)
        filed_under += facts.get("picture_splits") or card.facts.get("picture_splits") or [facts.get("subtype", part)]
    return tuple(dict.fromkeys(filed_under))
