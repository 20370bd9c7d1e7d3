"""What a dataset offers to the rest of the pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

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
