"""Datasets that go by a name: the facts on their cards, and how a benchmark, ours or a plug-in's, is read.

A card is `data/cards/NAME.toml`: files, counts, licence, how to get it. A plug-in is an entry point of the group
`advl.datasets`. It holds a `Benchmark`, or a function from the folder of the datasets to a `RowSource`
(`docs/adding-a-dataset.md`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from advl_pipeline.base.errors import ConfigError, unknown_name
from advl_pipeline.base.packages import data_files, entry_points, missing_data, read_data_file
from advl_pipeline.datasets.rows import ROWS

if TYPE_CHECKING:
    from advl_pipeline.datasets.indexed import IndexedDataset
    from advl_pipeline.datasets.problems import OnError
    from advl_pipeline.datasets.records import Task
    from advl_pipeline.datasets.snli_ve import LabelOrder
    from advl_pipeline.datasets.vcr_text import TextStyle


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """The facts of a dataset, and where its splits lie.

    `facts` is the parsed file; the attributes are what every card has. `splits` maps a split to its files and
    counts, in the fields of the card's `format`.
    """

    name: str
    title: str
    format: str
    splits: Mapping[str, Mapping[str, Any]]
    facts: Mapping[str, Any]

    def split(self, name: str) -> Mapping[str, Any]:
        """Return the facts of a split.

        Raises:
            ConfigError: there is no such split; the near names are listed.
        """
        if name not in self.splits:
            raise unknown_name(f"{self.name} has no split {name!r}.", name, self.splits)
        return self.splits[name]


JOIN = "+"
"""Joins the names of splits that are read together, as in train+val."""


def card_names() -> tuple[str, ...]:
    """Return the names of all cards, those of plug-ins included."""
    return tuple(data_files("cards"))


@cache
def load_card(name: str) -> Card:
    """Read a card.

    Raises:
        ConfigError: there is no card of that name.
    """
    cards = data_files("cards")
    if name not in cards:
        raise unknown_name(f"There is no dataset card {name!r}.", name, cards, note=missing_data())
    facts = read_data_file(cards[name])
    return Card(
        name=name,
        title=facts["title"],
        format=facts["format"],
        splits=facts.get("splits", {}),
        facts=facts,
    )


def readable_cards() -> Iterator[Card]:
    """Yield the cards, but for those that a plug-in brings damaged."""
    for name in card_names():
        with suppress(ConfigError):
            yield load_card(name)


@cache
def rows_card(name: str) -> Path | None:
    """Return the file of a card whose rows are read by what it says; None for other names."""
    return data_files("cards")[name] if name in card_names() and load_card(name).format == ROWS else None


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
    if dataset not in card_names():
        return (split,)
    card = load_card(dataset)
    filed_under: list[str] = []
    for part in split.split(JOIN):
        facts = card.split(part)
        filed_under += facts.get("picture_splits") or card.facts.get("picture_splits") or [facts.get("subtype", part)]
    return tuple(dict.fromkeys(filed_under))


def scored_split(dataset: str) -> str:
    """Return the split that a finished run is scored on: test, or val where there is no test with a public truth."""
    card = load_card(dataset) if dataset in card_names() else None
    if card is None or not card.splits:
        return "test"
    facts = card.splits.get("test", {"labelled": False})
    return "test" if facts.get("labelled", "annotations" in facts or card.format == ROWS) else "val"


ENTRY_POINT_GROUP = "advl.datasets"

AnswerList = Literal["train", "published"]
"""From whose annotations the answer vocabulary of VQA is built: of train alone, so that no other split has a say in
training, or of the splits that the published models count (`answer_lists` of the card)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadOptions:
    """How a dataset is read.

    `text_style` words VCR's object tags (`vcr_text`); None for the dataset's default. `every_answer` asks for VCR's
    rationales given each of the answers, in place of the right one. `label_order` orders the classes of SNLI-VE.
    `answers` is an answer vocabulary for VQA, or the classes or answers of one's own data; None to build the one that
    `answer_list` names. `on_error` says whether malformed items and unreadable pictures fail or are left out and
    listed in `skipped`.
    """

    tasks: tuple[Task, ...] = ()
    text_style: TextStyle | None = None
    every_answer: bool = False
    label_order: LabelOrder = "uniter"
    answers: tuple[str, ...] | None = None
    answer_list: AnswerList = "train"
    on_error: OnError = "fail"


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A dataset in files of a known form, which lie below the folder of the datasets.

    `card` holds its facts; several datasets may share one. `open` opens a split: (split, folder of the datasets,
    options) -> dataset. `common_name` gives a question of a split the name that it has in all splits that ask it.
    """

    name: str
    card: Card
    tasks: tuple[Task, ...]
    splits: tuple[str, ...]
    open: Callable[[str, Path, ReadOptions], IndexedDataset]
    common_name: Callable[[str, str], str] = lambda split, question: question


def dataset_plugins() -> dict[str, EntryPoint]:
    """Return the datasets of other packages by name; none of them is loaded."""
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
