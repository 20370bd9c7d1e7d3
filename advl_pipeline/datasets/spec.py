"""Specification of a dataset whose splits are not open yet: name, tasks, splits, and how one is opened.

A plug-in is an entry point of the group `advl.datasets`. It is a `DatasetSpec`, or a function that maps the datasets
folder to a `RowSource` (`docs/adding-a-dataset.md`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from advl_pipeline.base.packages import entry_points
from advl_pipeline.datasets.cards import ROWS, Card

if TYPE_CHECKING:
    from advl_pipeline.datasets.indexed import IndexedDataset
    from advl_pipeline.datasets.problems import OnError
    from advl_pipeline.datasets.records import Task
    from advl_pipeline.datasets.snli_ve import LabelOrder
    from advl_pipeline.datasets.vcr_text import TextStyle

ENTRY_POINT_GROUP = "advl.datasets"

AnswerList = Literal["train", "published"]
"""Annotations that the VQA answer vocabulary is built from: train only, so that no other split influences training,
or the splits that the published models count (`answer_lists` of the card)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadOptions:
    """Options for reading a dataset.

    `text_style` is the wording of VCR's object tags (`vcr_text`); None for the dataset's default. `every_answer`
    pairs VCR's rationales with each answer, not only the right one. `label_order` orders the classes of SNLI-VE.
    `answers` is an answer vocabulary for VQA, or the classes or answers of rows; None to use those that
    `answer_list` names, or those of train. `together` names the splits that are opened as one and share their
    classes. `on_error` says whether malformed items and unreadable pictures raise an error, or are left out and
    listed in `skipped`.
    """

    tasks: tuple[Task, ...] = ()
    text_style: TextStyle | None = None
    every_answer: bool = False
    label_order: LabelOrder = "uniter"
    answers: tuple[str, ...] | None = None
    answer_list: AnswerList = "train"
    together: tuple[str, ...] = ()
    on_error: OnError = "fail"


@dataclass(frozen=True, kw_only=True)
class DatasetSpec(ABC):
    """Specification of a dataset whose splits are not open yet.

    A command finds each dataset once, and hands it on (`registry.find_dataset`).

    `card` contains its facts; several datasets may share one. `labelled` lists the splits with public labels. `line`
    tells the user how the columns of rows were interpreted; it is "" if they are not read yet, or a package defines
    them. `is_described` says that a published card or a package describes it: others report results on its splits.
    """

    name: str
    card: Card
    tasks: tuple[Task, ...]
    splits: tuple[str, ...]
    labelled: tuple[str, ...] = ()
    line: str = ""
    is_described: bool = True

    @abstractmethod
    def open(self, split: str, data_root: Path | None, options: ReadOptions) -> IndexedDataset:
        """Open a split; `data_root` is None for the default datasets folder.

        Raises:
            DatasetError: a file is missing, a row or a picture is malformed, or no row is usable.
        """

    def common_name(self, split: str, question: str) -> str:
        """Return the name of a question of a split that all splits with this question share."""
        return question

    @property
    def has_published_format(self) -> bool:
        """Whether a reader of a benchmark's own format reads it; otherwise it is read as rows."""
        return self.card.format != ROWS

    @property
    def val_decides(self) -> bool:
        """Whether `val` may decide when a run ends: others report no results on it, but on a labelled `test`."""
        has_test = "test" in self.card.splits and self.card.splits["test"].get("labelled", True)
        return not self.is_described or (has_test and not self.has_published_format)


def dataset_plugins() -> dict[str, EntryPoint]:
    """Return the datasets of other packages by name, without loading them."""
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
