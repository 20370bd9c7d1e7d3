"""A dataset before one of its splits is opened: its name, tasks and splits, and what opens it.

A plug-in is an entry point of the group `advl.datasets`. It holds a `DatasetSpec`, or a function from the folder of
the datasets to a `RowSource` (`docs/adding-a-dataset.md`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from advl_pipeline.base.packages import entry_points
from advl_pipeline.datasets.cards import Card

if TYPE_CHECKING:
    from advl_pipeline.datasets.indexed import IndexedDataset
    from advl_pipeline.datasets.problems import OnError
    from advl_pipeline.datasets.records import Task
    from advl_pipeline.datasets.snli_ve import LabelOrder
    from advl_pipeline.datasets.vcr_text import TextStyle

ENTRY_POINT_GROUP = "advl.datasets"

AnswerList = Literal["train", "published"]
"""From whose annotations the answer vocabulary of VQA is built: of train alone, so that no other split has a say in
training, or of the splits that the published models count (`answer_lists` of the card)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadOptions:
    """How a dataset is read.

    `text_style` words VCR's object tags (`vcr_text`); None for the dataset's default. `every_answer` asks for VCR's
    rationales given each of the answers, instead of the right one. `label_order` orders the classes of SNLI-VE.
    `answers` is an answer vocabulary for VQA, or the classes or answers of rows; None to find those that
    `answer_list` names, or that train has. `together` names the splits that are opened as one, and so share their
    classes. `on_error` says whether malformed items and unreadable pictures fail, or are left out and listed in
    `skipped`.
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
class DatasetSpec:
    """A dataset before one of its splits is opened.

    `card` holds its facts; several datasets may share one. `open` opens a split: (split, folder of the datasets or
    None for the usual one, options) -> dataset. `common_name` gives a question of a split the name that it has in all
    splits that ask it. `labelled` are the splits whose truth is public. `line` tells a user what was made of the
    columns of rows; it is "" where the card or a package says what they are.
    """

    name: str
    card: Card
    tasks: tuple[Task, ...]
    splits: tuple[str, ...]
    open: Callable[[str, Path | None, ReadOptions], IndexedDataset]
    labelled: tuple[str, ...] = ()
    common_name: Callable[[str, str], str] = lambda split, question: question
    line: str = ""


def dataset_plugins() -> dict[str, EntryPoint]:
    """Return the datasets of other packages by name; none of them is loaded."""
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
