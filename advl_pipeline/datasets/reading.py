"""Conversion of the rows of a dataset to examples: tasks, wording, classes, and locations of pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from advl_pipeline.datasets.own.remote_pictures import HeldPictures
from advl_pipeline.datasets.records import TASKS, Candidate, Task, TaskKind, compose
from advl_pipeline.datasets.rows import PictureFacts

Wording = Callable[[PictureFacts, Sequence[str], Sequence[str]], tuple[Candidate, ...]]
"""Function that words the candidates of an example: (picture, context, choices) -> one candidate per choice."""


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


def word_as_written(picture: PictureFacts, context: Sequence[str], choices: Sequence[str]) -> tuple[Candidate, ...]:
    """Word the texts of your own data, which may refer to boxes."""
    return tuple(compose(context, choice, len(picture.boxes)) for choice in choices)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Rules for reading the rows of one dataset.

    `classes` returns the class names and is called once. `scores` maps the answers of a question (text -> number of
    people) to soft scores. `locate` maps the pictures folder and the name in the row to the name of the picture
    file, if the two names differ. `held` provides the pictures that are not downloaded yet.
    """

    variants: tuple[RowVariant, ...]
    text_style: str = "plain"
    word: Wording = word_as_written
    classes: Callable[[], tuple[str, ...]] = tuple
    scores: Callable[[Mapping[str, int]], Mapping[str, float]] = dict
    locate: Callable[[Path, str], str] | None = None
    held: HeldPictures | None = None
