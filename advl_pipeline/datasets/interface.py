"""What a dataset offers to the rest of the pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from advl_pipeline.datasets.records import Example, ImageUnit, Task, TextUnit


class Dataset(Protocol):
    """One split of one dataset, opened for one or more tasks.

    Example ids are unique within the split and carry the task where a split is opened for several
    ("train-12:vcr-qa2r"). Access is by position or by id; both are cheap and nothing is parsed twice.
    """

    name: str
    split: str
    tasks: tuple[Task, ...]
    text_style: str
    """How object tags become text; part of the identity of every cache of this dataset's texts."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    @property
    def identity_name(self) -> str:
        """What stands for the name in identities of caches and runs: the name itself, unless it is a path."""
        ...

    @property
    def example_ids(self) -> Sequence[str]: ...

    def label_names(self, task: Task) -> tuple[str, ...]:
        """Class names of a classification task in the order of the labels; () for multiple choice."""
        ...

    def content_digest(self) -> str:
        """Hexadecimal SHA-256 of everything that the examples hold, pictures included; never of paths or times."""
        ...

    def image_units(self) -> Sequence[ImageUnit]:
        """The split's pictures, each once, in order of first appearance."""
        ...

    def text_units(self) -> Sequence[TextUnit]:
        """The split's texts over all its tasks and candidates, each once, in order of first appearance."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class QuestionTable:
    """The questions of a split as low-shot subsets see them; a question may yield several examples.

    `example_ids[i]` are the examples of question i. `cells` (n,) int64 says which class-balance cell a question
    belongs to (labels, or combinations of them), cells being numbered in the order in which a subset takes from
    them. `strata` (n,) holds what is balanced proportionally inside a cell. `by_class` is False where classes are
    too many to be equally frequent (VQA): cells are then filled in proportion to their size.
    """

    question_ids: Sequence[str]
    example_ids: Sequence[tuple[str, ...]]
    cells: npt.NDArray[np.int64]
    strata: Sequence[str]
    by_class: bool


class StratifiedDataset(Dataset, Protocol):
    """A dataset that low-shot subsets can be drawn from."""

    def question_table(self) -> QuestionTable: ...
