"""Conversion of the rows of a dataset to examples: tasks, wording, classes, and locations of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from advl_pipeline.datasets.own.remote_pictures import HeldPictures
from advl_pipeline.datasets.records import TASKS, Candidate, Task, TaskKind, compose
from advl_pipeline.datasets.rows import PictureFacts


@dataclass(frozen=True, slots=True)
class RowVariant:
    """One way to make an example from a row: its task, the suffix of its id, and the given answer."""

    task: Task
    suffix: str = ""
    conditioned_on: int | None = None

    @property
    def kind(self) -> TaskKind:
        """Kind of the task: pick a choice, pick a rationale, classify the text, or answer the question."""
        return TASKS[self.task].kind


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Rules for reading the rows of one dataset, by default texts as written.

    `given` are the classes or answers, in label order, that are known without a look at the rows; None for those that
    a subclass finds. `held` provides the pictures that are not downloaded yet.
    """

    variants: tuple[RowVariant, ...]
    text_style: str = "plain"
    given: tuple[str, ...] | None = None
    held: HeldPictures | None = None

    def word(self, picture: PictureFacts, context: Sequence[str], choices: Sequence[str]) -> tuple[Candidate, ...]:
        """Return a candidate for each choice; the texts may refer to boxes of the picture."""
        return tuple(compose(context, choice, len(picture.boxes)) for choice in choices)

    def classes(self) -> tuple[str, ...]:
        """Return the classes or answers in label order; called once, when they are first needed."""
        return self.given or ()

    def scores(self, people: Mapping[str, int]) -> Mapping[str, float]:
        """Return answer -> soft score, from answer -> number of people who gave it."""
        return {}

    def locate(self, pictures: Path, name: str) -> str:
        """Return the name of a picture's file in the folder of the pictures, from the name in its row."""
        return name
