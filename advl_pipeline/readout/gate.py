"""The gate: does a teacher add anything to what a student's own vectors hold? Asked before training, in seconds.

Probes of two linear maps (`confidence/match_probe.py`) answer the labelled questions at hand from pooled vectors of
text and picture: the student's own, the teacher's, and both. They are cross-fitted, and the questions of a picture
share a fold. A teacher can help a student only with what the student lacks, and only if the student's answer reads
the states that training moves.
Shapes: N questions, C candidates, T and V widths of the vectors of text and picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from advl_pipeline.base.errors import WeightsUnavailable, enumeration
from advl_pipeline.cache.reader import TeacherCache
from advl_pipeline.confidence.estimators import assign_folds, bags_of_words, by_candidate
from advl_pipeline.confidence.match_probe import MatchFeatures, Vectors, cross_fitted_scores, joined
from advl_pipeline.datasets.records import MULTIPLE_CHOICE_TASKS, TASKS, Example, Task, candidate_mask
from advl_pipeline.datasets.spec import DatasetSpec
from advl_pipeline.evaluation.statistics import Contribution, item_groups, joint_interval
from advl_pipeline.readout.config import ReadoutConfig
from advl_pipeline.readout.opened_student import OpenedStudent, open_student
from advl_pipeline.readout.prepare import prepare_look
from advl_pipeline.runs.evaluations import Interval
from advl_pipeline.students.interface import Perturbation, Student
from advl_pipeline.students.match import MatchStream
from advl_pipeline.students.options import DEFAULT_STUDENT

MIN_QUESTIONS: Final = 50
"""Fewest labelled questions of a task: with fewer the interval covers any gain."""

MAX_QUESTIONS: Final = 300
MAX_TEXTS: Final = 1500
"""Most questions and texts of a task: half a minute on one core, whatever the size of the split."""

FOLDS: Final = 5

NO_GAIN: Final = 2.0
"""Points: an upper bound below it is a gain that no study of few seeds would show."""

EXAMPLES_AT_ONCE: Final = 16


@dataclass(frozen=True, kw_only=True)
class Gain:
    """A gain in points, with the interval over pictures drawn again."""

    points: float
    interval: Interval

    def __str__(self) -> str:
        return f"{self.points:+.1f} points [{self.interval.low:.1f}, {self.interval.high:.1f}]"


@dataclass(frozen=True, kw_only=True)
class PooledVectors:
    """Pooled vectors of the texts, zeros for missing candidates, and of the pictures."""

    said_NCT: Vectors
    shown_NV: Vectors


@dataclass(frozen=True, kw_only=True)
class Questions:
    """Labelled questions of a task: labels, scores by class where an answer may be partly right, picture of each."""

    label_N: npt.NDArray[np.int64]
    cluster_N: Sequence[str]
    num_classes: int
    """0 for choices."""
    valid_NC: npt.NDArray[np.bool_] | None = None
    partly_right: Sequence[dict[int, float]] | None = None

    def right(self, scores_NK: Vectors) -> npt.NDArray[np.float64]:
        """Return the score of each question's likeliest choice, class or answer, in [0, 1]."""
        chosen_N: npt.NDArray[np.int64] = scores_NK.argmax(axis=1)
        if self.partly_right is None:
            return np.equal(chosen_N, self.label_N).astype(np.float64)
        return np.array([of.get(int(chosen), 0.0) for of, chosen in zip(self.partly_right, chosen_N, strict=True)])


@dataclass(frozen=True, kw_only=True)
class GateNames:
    """Names of what a gate is about."""

    teacher: str
    student: str
    task: Task


@dataclass(frozen=True, kw_only=True)
class TeacherGate:
    """What probes read off a student's own vectors, a teacher's, and both, in percent right; and the gains.

    A teacher of one modality is joined by the student's own vectors of the other. `adds` is the gain of both over the
    student's own. `adds_without_language` is the gain of the teacher's texts over bags of words, as for a student
    without language; None for a teacher without texts.
    """

    names: GateNames
    num_questions: int
    by_student: float
    by_teacher: float
    by_both: float
    adds: Gain
    without_language: float | None
    adds_without_language: Gain | None

    @property
    def verdict(self) -> str:
        """What the gain means for training."""
        if self.adds.interval.low > 0:
            return "it holds what the student lacks"
        if self.adds.interval.high < NO_GAIN:
            return "no gain is to be expected"
        return "so few questions do not decide it"

    def line(self) -> str:
        """Return the gate in a sentence."""
        held = f"what {self.names.student} holds ({self.by_student:.1f} % of {self.num_questions})"
        line = f"{self.names.teacher} adds {self.adds} to {held}: {self.verdict}"
        if self.adds_without_language is None:
            return line
        return f"{line}; for a student without language it adds {self.adds_without_language}"


@dataclass(frozen=True, kw_only=True)
class NoGate:
    """Why nothing says what teachers add to a student."""

    teachers: tuple[str, ...]
    student: str
    why: str

    def line(self) -> str:
        """Return the reason in a sentence."""
        return f"what {self.student} gains by {enumeration(self.teachers)} is not measured: {self.why}"


Gates = tuple[TeacherGate | NoGate, ...]


def measure_gate(
    questions: Questions,
    student: PooledVectors,
    teacher: PooledVectors,
    *,
    names: GateNames,
    words_NCT: Vectors | None = None,
) -> TeacherGate:
    """Return the gate of a teacher.

    The features of both are chosen for each fold, by the others, from the student's, the teacher's and their mean, so
    that a teacher who says nothing does no harm.

    Args:
        questions: labelled questions.
        student: the student's vectors.
        teacher: the teacher's vectors, the student's own in a modality that it lacks.
        names: of what is measured.
        words_NCT: bags of words, for a teacher with texts.
    """
    fold_N = assign_folds(questions.cluster_N, folds=FOLDS, seed=0)
    groups = item_groups(questions.cluster_N, [""] * len(questions.label_N))

    def features(vectors: PooledVectors) -> npt.NDArray[np.float64]:
        return MatchFeatures.of(vectors.said_NCT, vectors.shown_NV)(vectors.said_NCT, vectors.shown_NV)

    def right(*candidates: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        scores_NK = cross_fitted_scores(
            candidates,
            questions.label_N,
            fold_N,
            num_classes=questions.num_classes,
            valid_NC=questions.valid_NC,
        )
        return questions.right(scores_NK)

    def gain(more_N: npt.NDArray[np.float64], less_N: npt.NDArray[np.float64]) -> Gain:
        difference = Contribution(values_SN=(more_N - less_N)[None], groups=groups)
        interval = joint_interval([difference], resample_seeds=False)
        return Gain(points=100 * float((more_N - less_N).mean()), interval=interval)

    of_student = features(student)
    of_teacher = features(teacher)
    of_both = features(
        PooledVectors(
            said_NCT=joined(student.said_NCT, teacher.said_NCT), shown_NV=joined(student.shown_NV, teacher.shown_NV)
        )
    )
    student_N = right(of_student)
    teacher_N = right(of_teacher)
    both_N = right(of_student, of_teacher, of_both)
    scratch_N = None
    if words_NCT is not None:
        scratch_N = right(features(PooledVectors(said_NCT=words_NCT, shown_NV=student.shown_NV)))
    return TeacherGate(
        names=names,
        num_questions=len(questions.label_N),
        by_student=100 * float(student_N.mean()),
        by_teacher=100 * float(teacher_N.mean()),
        by_both=100 * float(both_N.mean()),
        adds=gain(both_N, student_N),
        without_language=None if scratch_N is None else 100 * float(scratch_N.mean()),
        adds_without_language=None if scratch_N is None else gain(teacher_N, scratch_N),
    )


def take_gates(opened: OpenedStudent) -> Gates:
    """Return the gate of each teacher for each task, or why a task gives none.

    A sample of the questions is read, the same for every teacher.
    """
    order = torch.randperm(len(opened.positions), generator=torch.Generator().manual_seed(0))
    of_task: dict[Task, list[Example]] = {task: [] for task in opened.dataset.tasks}
    texts_left = dict.fromkeys(opened.dataset.tasks, MAX_TEXTS)
    beyond: set[Task] = set()
    for place in order.tolist():
        if all(len(chosen) == MAX_QUESTIONS for chosen in of_task.values()):
            break
        task, candidates = opened.dataset.candidates_of(opened.positions[place])
        chosen = of_task[task]
        if len(chosen) == MAX_QUESTIONS:
            continue
        if texts_left[task] < len(candidates):
            beyond.add(task)
            continue
        example = opened.dataset[opened.positions[place]]
        if example.label is not None:
            chosen.append(example)
            texts_left[task] -= len(candidates)
    teachers = tuple(cache.teacher_name for cache in opened.caches)
    if not of_task:
        return (NoGate(teachers=teachers, student=opened.student.name, why="the data have no questions"),)
    gates: list[TeacherGate | NoGate] = []
    for task, examples in of_task.items():
        limit = f" with at most {MAX_TEXTS:,} texts in all" if task in beyond else ""
        if why := _too_few(task, examples, limit=limit):
            gates.append(NoGate(teachers=teachers, student=opened.student.name, why=why))
            continue
        questions = _questions(examples, opened)
        of_student = vectors_of_student(opened.student, examples)
        words_NCT = by_candidate(bags_of_words(examples), examples)
        gates += [
            measure_gate(
                questions,
                of_student,
                vectors_of_teacher(cache, examples, of_student),
                names=GateNames(teacher=cache.teacher_name, student=opened.student.name, task=task),
                words_NCT=None if cache.text is None else words_NCT,
            )
            for cache in opened.caches
        ]
    return tuple(gates)


@torch.inference_mode()
def vectors_of_student(student: Student, examples: Sequence[Example]) -> PooledVectors:
    """Return a student's pooled vectors before its fusion: what a match head reads, else means of its states."""
    device = next(student.parameters()).device
    said: list[Vectors] = []
    shown: list[Vectors] = []
    for first in range(0, len(examples), EXAMPLES_AT_ONCE):
        batch = student.collate(examples[first : first + EXAMPLES_AT_ONCE]).to(device)
        if isinstance(student, MatchStream):
            _, _, said_NT, shown_NV = student.embed(batch, Perturbation(), hidden=False)
        else:
            states = student.encode_unimodal(batch)
            said_NT = _mean(states.text_states_NLH, batch.token_mask_NL)
            shown_NV = _mean(states.visual_states_NRH, batch.visual_mask_NR)
        said.extend(said_NT.float().cpu().numpy())
        shown.extend(shown_NV.index_select(0, batch.first_B).float().cpu().numpy())
    return PooledVectors(said_NCT=by_candidate(np.stack(said), examples), shown_NV=np.stack(shown))


def vectors_of_teacher(cache: TeacherCache, examples: Sequence[Example], student: PooledVectors) -> PooledVectors:
    """Return a teacher's pooled vectors, and the student's own in a modality that it lacks."""
    said = shown = None
    if cache.text is not None:
        ids = [candidate.text_unit.unit_id for example in examples for candidate in example.candidates]
        said = by_candidate(cache.text.global_features(ids).astype(np.float32), examples)
    if cache.image is not None:
        shown = cache.image.global_features([example.image.unit_id for example in examples]).astype(np.float32)
    return PooledVectors(
        said_NCT=student.said_NCT if said is None else said, shown_NV=student.shown_NV if shown is None else shown
    )


def gate_by_default(cache: TeacherCache, dataset: DatasetSpec, *, data_root: Path | None, device: str) -> Gates:
    """Return the gates of a cache for the student that the user's own data train by default.

    Args:
        dataset: of the cache, as `read_dataset` returns it.
    """
    config = ReadoutConfig(
        student=Path(DEFAULT_STUDENT),
        cache=(cache.path,),
        dataset=dataset.name,
        data_root=data_root,
        device=device,
    )
    look = prepare_look(config, dataset, caches=[cache])
    try:
        return take_gates(open_student(look))
    except WeightsUnavailable as error:
        why = f"{error.what} {error.next_command}".strip()
        return (NoGate(teachers=(cache.teacher_name,), student=DEFAULT_STUDENT, why=why),)


def _too_few(task: Task, examples: Sequence[Example], *, limit: str) -> str:
    """Return why the labelled examples of a task give no gate; "" if they give one."""
    items = TASKS[task].items
    num_pictures = len({example.cluster for example in examples})
    if len(examples) >= MIN_QUESTIONS and num_pictures >= FOLDS:
        return ""
    pictures = "1 picture" if num_pictures == 1 else f"{num_pictures} pictures"
    labelled = f"{len(examples)} labelled {items} of {pictures}{limit}"
    if not examples and not limit:
        labelled = "no labels"
    return f"there are {labelled}, and at least {MIN_QUESTIONS} {items} of {FOLDS} pictures are needed"


def _questions(examples: Sequence[Example], opened: OpenedStudent) -> Questions:
    task = examples[0].task
    label_N = np.array([example.label for example in examples], np.int64)
    valid_NC = candidate_mask(examples)
    soft = [dict(example.soft_label) for example in examples]
    return Questions(
        label_N=label_N,
        cluster_N=[example.cluster for example in examples],
        num_classes=0 if task in MULTIPLE_CHOICE_TASKS else len(opened.dataset.label_names(task)),
        valid_NC=None if valid_NC.all() else valid_NC,
        partly_right=soft if any(soft) else None,
    )


def _mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
