"""The records that every dataset yields (units that teachers encode, candidates, examples), and what it offers.

A *unit* is one thing a teacher encodes, named by its content. An *example* is one labelled item: one image
unit, and one text unit per candidate.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from advl_pipeline.base.locations import regular_file
from advl_pipeline.datasets.problems import Malformed, Problem

Task = Literal["vcr-q2a", "vcr-qa2r", "vqa", "snli-ve", "captions", "choice", "rationale", "classes", "answers"]
"""The benchmarks' tasks, and the kinds of task that own data has (`own/`)."""

MULTIPLE_CHOICE_TASKS: frozenset[str] = frozenset({"vcr-q2a", "vcr-qa2r", "choice", "rationale"})
"""Tasks whose label is an index into the candidates; the others have one candidate and a list of classes."""

_HEADS: Mapping[str, str] = {**dict.fromkeys(MULTIPLE_CHOICE_TASKS, "vcr"), "answers": "vqa", "classes": "snli-ve"}

_TAG = re.compile(r"\[([^\[\]|]*[^\[\]|\s][^\[\]|]*)\|(\d+)\]")
"""Words that name a box: "Why is [the dog|0] running?" says that the words "the dog" stand for box 0."""

UNIT_ID_LENGTH = 32
"""Hexadecimal digits of a unit id (128 bits of BLAKE2b)."""


def head_name(task: str) -> str:
    """Return the head that a task uses, named after the benchmark that it was published for.

    All choices share one, as both VCR tasks do in UNITER: "vcr". Open answers with soft labels have "vqa", classes
    have "snli-ve". Layouts of the text and published recipes follow the head too.
    """
    return _HEADS.get(task, task)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageUnit:
    """One picture with the boxes that its dataset gives for it.

    `boxes_R4` holds (x1, y1, x2, y2) in pixels of the full picture, float32, in dataset order; object tags index
    its rows. It has no rows where the dataset gives no boxes.
    """

    unit_id: str
    path: Path
    width: int
    height: int
    boxes_R4: npt.NDArray[np.float32]
    box_labels: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class TextUnit:
    """One text as the task words it: what a text teacher is given."""

    unit_id: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectTag:
    """Characters [start, end) of a text refer to row `box` of the image unit's boxes."""

    start: int
    end: int
    box: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One answer choice with its context.

    `text` is canonical: every character span in the project, of a teacher's tokens or of a student's, refers to it.
    Characters [0, context_length) are the context (question, or question and answer); the answer follows one
    space later. A text without context has context_length 0 and starts at once.
    Where the context is itself a question and its answer (VCR's QA->R), the question is characters
    [0, question_length) and the answer follows one space later; question_length is 0 elsewhere.
    """

    text_unit: TextUnit
    context_length: int = 0
    question_length: int = 0
    tags: tuple[ObjectTag, ...] = ()

    @property
    def text(self) -> str:
        return self.text_unit.text

    @property
    def answer_start(self) -> int:
        """First character of the answer part."""
        return self.context_length + 1 if self.context_length else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One item of a task: a picture, the candidates and the label.

    `label` indexes the candidates (VCR) or the dataset's `label_names` (SNLI-VE, VQA's best answer); None where the
    split has no labels. `soft_label` holds (class index, score) pairs for VQA. `stratum` is what low-shot
    subsets are balanced over besides the label, such as the question type. `group` names what items are not
    independent within, where that is more than their picture.
    """

    example_id: str
    task: Task
    image: ImageUnit
    candidates: tuple[Candidate, ...]
    label: int | None
    soft_label: tuple[tuple[int, float], ...] = ()
    stratum: str = ""
    group: str = ""

    @property
    def cluster(self) -> str:
        """What folds and resampling keep together: the group, else the picture."""
        return self.group or self.image.unit_id


def normalise_text(text: str) -> str:
    """Return the canonical form of a text: Unicode NFC, runs of white space folded to one space, trimmed."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def text_unit(text: str) -> TextUnit:
    """Make the unit of a text; equal normalised texts give equal units."""
    normal = normalise_text(text)
    return TextUnit(unit_id=_digest(b"text\0", normal.encode()), text=normal)


def parse_tagged(text: str, num_boxes: int) -> tuple[str, tuple[ObjectTag, ...]]:
    """Return a text in normal form without the marks of its tags, and the tags.

    Where there are no boxes, a bracket is a bracket.

    Raises:
        Malformed: a tag names a box that the row does not have.
    """
    normal = normalise_text(text)
    if not num_boxes:
        return normal, ()
    plain, tags, end = "", [], 0
    for match in _TAG.finditer(normal):
        words, box = match[1].strip(), int(match[2])
        if box >= num_boxes:
            raise Malformed(f"tag {match[0]!r} names box {box}, the row has {num_boxes} (counted from 0)")
        plain += normal[end : match.start()]
        tags.append(ObjectTag(start=len(plain), end=len(plain) + len(words), box=box))
        plain, end = plain + words, match.end()
    plain += normal[end:]
    if normalise_text(plain) != plain:
        raise Malformed(f"a tag of {text!r} parts a letter from its accent")
    return plain, tuple(tags)


def compose(context: Sequence[str], choice: str, num_boxes: int) -> Candidate:
    """Join the question, the answer that a rationale is for if there is one, and a choice, each with its tags."""
    pieces: list[str] = []
    tags: list[ObjectTag] = []
    ends: list[int] = []
    position = 0
    for text in (*context, choice):
        plain, text_tags = parse_tagged(text, num_boxes)
        tags += [replace(tag, start=tag.start + position, end=tag.end + position) for tag in text_tags]
        pieces.append(plain)
        ends.append(position + len(plain))
        position = ends[-1] + 1
    return Candidate(
        text_unit=text_unit(" ".join(pieces)),
        context_length=ends[-2] if context else 0,
        question_length=ends[0] if len(context) > 1 else 0,
        tags=tuple(tags),
    )


def image_unit_id(image_digest: bytes, boxes_R4: npt.NDArray[np.float32]) -> str:
    """Return the id of a picture with its boxes, from the 32-byte SHA-256 digest of the file's bytes."""
    return _digest(b"image\0", image_digest, np.ascontiguousarray(boxes_R4, dtype="<f4").tobytes())


def _digest(*parts: bytes) -> str:
    state = hashlib.blake2b(digest_size=UNIT_ID_LENGTH // 2)
    for part in parts:
        state.update(part)
    return state.hexdigest()


def text_unit_id(text: str, answer: str = "") -> str:
    """Return the id of a text, as a task words it.

    Args:
        text: the whole text, or the question.
        answer: of a question, where a candidate is both: they are joined by a space.
    """
    return text_unit(f"{text} {answer}").unit_id


def picture_unit_id(path: str | Path, boxes: Sequence[Sequence[float]] = ()) -> str:
    """Return the id of a picture file with the boxes that its dataset gives for it.

    Args:
        path: of the file, whose bytes count and whose name does not.
        boxes: x1, y1, x2, y2 in pixels, in the dataset's order; none where it gives none.
    """
    with regular_file(Path(path)) as file:
        digest = hashlib.file_digest(file, "sha256").digest()
    return image_unit_id(digest, np.asarray(boxes, np.float32).reshape(-1, 4))


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
    skipped: tuple[Problem, ...]
    """What was left out as malformed."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def candidates_of(self, index: int) -> tuple[Task, tuple[Candidate, ...]]:
        """Return the task and the candidates of an example; its picture is not opened."""
        ...

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
