"""How the rows of a dataset become examples: tasks, wording, classes, and where pictures are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from advl_pipeline.datasets.own.remote_pictures import HeldPictures
from advl_pipeline.datasets.records import Candidate, Task, compose
from advl_pipeline.datasets.rows import PictureFacts

_ROLES: Mapping[Task, Task] = {"vcr-q2a": "choice", "vcr-qa2r": "rationale", "vqa": "answers", "snli-ve": "classes"}
"""Which of the kinds of task a benchmark's is; own data have the kinds themselves."""

Wording = Callable[[PictureFacts, Sequence[str], Sequence[str]], tuple[Candidate, ...]]
"""Words the candidates of an example: (picture, context, choices) -> one candidate each."""


@dataclass(frozen=True, slots=True)
class RowVariant:
    """One way to make an example of a row: its task, suffix of its id, answer that it is given."""

    task: Task
    suffix: str = ""
    conditioned_on: int | None = None

    @property
    def role(self) -> Task:
        """What is asked: which choice or rationale is right, which class its text has, how it is answered."""
        return _ROLES.get(self.task, self.task)


def word_as_written(picture: PictureFacts, context: Sequence[str], choices: Sequence[str]) -> tuple[Candidate, ...]:
    """Word texts that name boxes, if any, as own data do."""
    return tuple(compose(context, choice, len(picture.boxes)) for choice in choices)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the rows of one dataset are read.

    `classes` returns the class names, and is called once. `scores` gives the answers of a question, as text -> number
    of people, their soft scores. `locate` gives the name of a picture's file from the folder of the pictures and the
    name that the row has, where the two differ. `held` gives the pictures that nobody has fetched.
    """

    variants: tuple[RowVariant, ...]
    text_style: str = "plain"
    word: Wording = word_as_written
    classes: Callable[[], tuple[str, ...]] = tuple
    scores: Callable[[Mapping[str, int]], Mapping[str, float]] = dict
    locate: Callable[[Path, str], str] | None = None
    held: HeldPictures | None = None
