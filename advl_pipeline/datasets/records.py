"""Records that every dataset yields (units that teachers encode, candidates, examples), and its interface.

A *unit* is one input of a teacher, identified by its content. An *example* is one labelled item: one image
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
from advl_pipeline.datasets.problems import Malformed, Problem, shown, written_number

TaskKind = Literal["choice", "rationale", "classes", "answers", "captions"]
"""Kinds of task: they decide the head, the loss and the layout. Your own data have a kind as their task."""

Task = Literal[TaskKind, "vcr-q2a", "vcr-qa2r", "vqa", "snli-ve"]
"""Kinds, and the tasks of published benchmarks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskFacts:
    """Facts about a task.

    `metric` names its score in files ("" if it is not scored), `title` on pages, and `items` what is scored.
    `instruction` is what a chat model is asked after the question. `by_annotators` says that answers are scored as
    texts against those of several annotators, by the official evaluator of VQA. `has_wordless_tags` says that texts
    name objects by number, which a text style turns into words. `has_fixed_classes` says that the task states its
    classes: no list of them is counted or given.
    """

    kind: TaskKind
    metric: str = ""
    title: str = ""
    items: str = "questions"
    instruction: str = ""
    by_annotators: bool = False
    has_wordless_tags: bool = False
    has_fixed_classes: bool = False


TASKS: Mapping[str, TaskFacts] = {
    "vcr-q2a": TaskFacts(kind="choice", metric="q2a", title="Q→A accuracy", has_wordless_tags=True),
    "vcr-qa2r": TaskFacts(
        kind="rationale", metric="qa2r", title="QA→R accuracy", items="rationales", has_wordless_tags=True
    ),
    "vqa": TaskFacts(
        kind="answers", metric="vqa", title="VQA accuracy", instruction="Answer briefly.", by_annotators=True
    ),
    "snli-ve": TaskFacts(
        kind="classes",
        metric="snli_ve",
        title="SNLI-VE accuracy",
        items="hypotheses",
        instruction="Is this entailment, neutral or contradiction?",
        has_fixed_classes=True,
    ),
    "choice": TaskFacts(kind="choice", metric="choice", title="choice accuracy"),
    "rationale": TaskFacts(kind="rationale", metric="rationale", title="rationale accuracy", items="rationales"),
    "classes": TaskFacts(kind="classes", metric="classes", title="class accuracy", items="items"),
    "answers": TaskFacts(kind="answers", metric="answers", title="answer accuracy"),
    "captions": TaskFacts(kind="captions"),
}
"""Facts about each task."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JointMetric:
    """The metric of two tasks of a question: both must be right."""

    tasks: tuple[Task, Task]
    metric: str
    title: str


JOINT_METRICS = (
    JointMetric(tasks=("vcr-q2a", "vcr-qa2r"), metric="q2ar", title="Q→AR accuracy"),
    JointMetric(tasks=("choice", "rationale"), metric="joint", title="choice and rationale accuracy"),
)
"""The joint metrics of pairs of tasks."""

PUBLISHED_FOR: Mapping[str, str] = {"answers": "vqa", "classes": "snli-ve", "choice": "vcr"}
"""Head -> the benchmark that recipes and earlier run folders name it after; most families were finetuned on VQA."""

_TAG = re.compile(r"\[([^\[\]|]*)\|([0-9]+)\]")
"""Words that refer to a box: in "Why is [the dog|0] running?" the words "the dog" refer to box 0."""

UNIT_ID_LENGTH = 32
"""Hexadecimal digits of a unit id (128 bits of BLAKE2b)."""


def head_name(task: str) -> str:
    """Return the head of a task, which is its kind, except that rationales share the head of choices.

    The head also determines the text layout and the published recipe.
    """
    kind = TASKS[task].kind
    return "choice" if kind == "rationale" else kind


MULTIPLE_CHOICE_TASKS: frozenset[str] = frozenset(task for task in TASKS if head_name(task) == "choice")
"""Tasks whose label is an index into the candidates. The others have one candidate and a list of classes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageUnit:
    """One picture with its boxes from the dataset.

    `boxes_R4` contains (x1, y1, x2, y2) in pixels of the full picture, float32, in dataset order; object tags index
    its rows. It has no rows if the dataset provides no boxes. `file_digest` is the SHA-256 of the file, 32 bytes.
    """

    unit_id: str
    path: Path
    file_digest: bytes
    width: int
    height: int
    boxes_R4: npt.NDArray[np.float32]
    box_labels: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class TextUnit:
    """One text in the wording of the task: the input of a text teacher."""

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

    `text` is canonical: the character spans of teacher tokens and of student tokens all refer to it.
    Characters [0, context_length) are the context (question, or question and answer). The answer follows after one
    space. A text without context has context_length 0 and no leading space.
    If the context is a question and its answer (VCR's QA->R), the question is characters [0, question_length) and
    the answer follows after one space; otherwise question_length is 0.
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

    @property
    def answer(self) -> str:
        """The answer part, the whole text without context."""
        return self.text[self.answer_start :]


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One item of a task: a picture, the candidates and the label.

    `label` indexes the candidates (VCR) or the dataset's `label_names` (SNLI-VE, VQA's best answer); None if the
    split has no labels. `soft_label` contains (class index, score) pairs for VQA. Low-shot subsets are balanced over
    the label and over `stratum`, such as the question type. `group` names a set of dependent items, if that is more
    than the items of one picture.
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
        """Unit that folds and resampling keep together: the group, else the picture."""
        return self.group or self.image.unit_id


def candidate_mask(examples: Sequence[Example]) -> npt.NDArray[np.bool_]:
    """Return (N, C), false for candidates that an example lacks."""
    counts_N = np.array([len(example.candidates) for example in examples])
    mask_NC: npt.NDArray[np.bool_] = np.arange(counts_N.max()) < counts_N[:, None]
    return mask_NC


def normalise_text(text: str) -> str:
    """Return the canonical form of a text: Unicode NFC, white space collapsed to single spaces, trimmed."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def text_unit(text: str) -> TextUnit:
    """Return the unit of a text; equal normalised texts give equal units."""
    normal = normalise_text(text)
    return TextUnit(unit_id=_digest(b"text\0", normal.encode()), text=normal)


def parse_tagged(text: str, num_boxes: int) -> tuple[str, tuple[ObjectTag, ...]]:
    """Return a text in canonical form without tag markup, and its tags.

    Without boxes, brackets are ordinary text.

    Raises:
        Malformed: a tag names a box that the row does not have.
    """
    normal = normalise_text(text)
    if not num_boxes:
        return normal, ()
    plain, tags, end = "", [], 0
    for match in _TAG.finditer(normal):
        words, box = match[1].strip(), written_number(match[2])
        if not words:
            continue
        if box is None or box >= num_boxes:
            raise Malformed(
                f"tag {shown(match[0])} names box {shown(match[2])[1:-1]}, the row has {num_boxes} (counted from 0)"
            )
        plain += normal[end : match.start()]
        tags.append(ObjectTag(start=len(plain), end=len(plain) + len(words), box=box))
        plain, end = plain + words, match.end()
    plain += normal[end:]
    if normalise_text(plain) != plain:
        raise Malformed(f"a tag of {shown(text)} parts a letter from its accent")
    return plain, tuple(tags)


def compose(context: Sequence[str], choice: str, num_boxes: int) -> Candidate:
    """Join the question, for a rationale its answer, and a choice, each with its tags."""
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
    """Return the id of a picture with its boxes, from the 32-byte SHA-256 digest of the file."""
    return _digest(b"image\0", image_digest, np.ascontiguousarray(boxes_R4, dtype="<f4").tobytes())


def _digest(*parts: bytes) -> str:
    state = hashlib.blake2b(digest_size=UNIT_ID_LENGTH // 2)
    for part in parts:
        state.update(part)
    return state.hexdigest()


def text_unit_id(text: str, answer: str = "") -> str:
    """Return the id of a text in the wording of its task.

    Args:
        text: the complete text, or the question.
        answer: the answer, if a candidate is a question and an answer; both are joined by a space.
    """
    return text_unit(f"{text} {answer}").unit_id


def picture_unit_id(path: str | Path, boxes: Sequence[Sequence[float]] = ()) -> str:
    """Return the id of a picture file with its boxes from the dataset.

    Args:
        path: the file; its bytes enter the id, its name does not.
        boxes: x1, y1, x2, y2 in pixels, in the dataset's order; empty if it provides none.
    """
    with regular_file(Path(path)) as file:
        digest = hashlib.file_digest(file, "sha256").digest()
    return image_unit_id(digest, np.asarray(boxes, np.float32).reshape(-1, 4))


class Dataset(Protocol):
    """One split of one dataset, opened for one or more tasks.

    Example ids are unique within the split. They include the task if the split is opened for several
    ("train-12:vcr-qa2r"). Access by position and by id is cheap, and nothing is parsed twice.
    """

    name: str
    split: str
    tasks: tuple[Task, ...]
    text_style: str
    """Wording of object tags; part of the identity of every cache of this dataset's texts."""
    skipped: tuple[Problem, ...]
    """Malformed items that were left out."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def candidates_of(self, index: int) -> tuple[Task, tuple[Candidate, ...]]:
        """Return the task and the candidates of an example without opening its picture."""
        ...

    @property
    def identity_name(self) -> str:
        """Return the name in identities of caches and runs: the name itself, unless it is a path."""
        ...

    @property
    def example_ids(self) -> Sequence[str]: ...

    def label_names(self, task: Task) -> tuple[str, ...]:
        """Return the class names of a classification task in label order; () for multiple choice."""
        ...

    def content_digest(self) -> str:
        """Return the hexadecimal SHA-256 of the examples' content, pictures included, without paths or times."""
        ...

    def image_units(self) -> Sequence[ImageUnit]:
        """Return the split's pictures, each once, in order of first appearance."""
        ...

    def text_units(self) -> Sequence[TextUnit]:
        """Return the split's texts over all tasks and candidates, each once, in order of first appearance."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class QuestionTable:
    """Questions of a split for low-shot sampling; a question may yield several examples.

    `example_ids[i]` are the examples of question i. `cells` (n,) int64 is the class-balance cell of each question
    (a label, or a combination of labels). Subsets draw from the cells in the order of their numbers. `strata` (n,)
    are balanced proportionally inside a cell. `by_class` is False if there are too many classes for equal
    frequencies (VQA): cells are then filled in proportion to their size.
    """

    question_ids: Sequence[str]
    example_ids: Sequence[tuple[str, ...]]
    cells: npt.NDArray[np.int64]
    strata: Sequence[str]
    by_class: bool


class StratifiedDataset(Dataset, Protocol):
    """A dataset that low-shot subsets can be drawn from."""

    def question_table(self) -> QuestionTable: ...
