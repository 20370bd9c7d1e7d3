"""A dataset that goes by a name, and how one is read: what a published benchmark says, and what a plug-in hands over.

A plug-in is an entry point of the group `advl.datasets`. It holds a `Benchmark`, or a function from the folder of the
datasets to a `RowSource` (`docs/adding-a-dataset.md`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, Literal

from advl_pipeline.datasets.cards import Card
from advl_pipeline.datasets.indexed import IndexedDataset
from advl_pipeline.datasets.problems import OnError
from advl_pipeline.datasets.records import Task
from advl_pipeline.datasets.snli_ve import LabelOrder
from advl_pipeline.datasets.vcr import Conditioning
from advl_pipeline.datasets.vcr_text import TextStyle
from advl_pipeline.errors import (
    ConfigError,
    again,
)
from advl_pipeline.packages import entry_points

ENTRY_POINT_GROUP = "advl.datasets"

AnswerList = Literal["train", "published"]
"""From whose annotations the answer vocabulary of VQA is built: of train alone, so that no other split has a say in
training, or of the splits that the published models count (`answer_lists` of the card)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadOptions:
    """How a dataset is read.

    `text_style` words VCR's object tags (`vcr_text`); None for the dataset's default. `conditioning` is the answers
    that VCR rationales are given; None for the right one where it is known. `label_order` orders the classes of
    SNLI-VE. `answers` is an answer vocabulary for VQA, or the classes or answers of one's own data, or a file with
    them; None to build the one that `answer_list` names. `on_error` says whether malformed items and unreadable
    pictures fail or are left out and listed in `skipped`.
    """

    tasks: tuple[Task, ...] = ()
    text_style: TextStyle | None = None
    conditioning: Conditioning | None = None
    label_order: LabelOrder = "uniter"
    answers: Path | tuple[str, ...] | None = None
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

    @property
    def has_answer_lists(self) -> bool:
        """Whether answers may be those of the published models as well as those of train."""
        return "answer_lists" in self.card.facts

    def is_in(self, root: Path) -> bool:
        """Tell whether the folder of the dataset is there; nothing of its content."""
        return Path(root, self.card.facts["folder"]).is_dir()


def plugin_entry_points() -> dict[str, EntryPoint]:
    """Return the datasets of other packages by name; none of them is loaded."""
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}


def load_plugin(point: EntryPoint) -> Any:
    """Return what the entry point of a dataset holds.

    Raises:
        ConfigError: it cannot be imported.
    """
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"The plug-in of the dataset {point.name!r} cannot be imported.",
            where=f"entry point {point.value}",
            why=str(error),
            next_command=again("install what it needs, then give the same command again"),
        ) from error
