"""The bridge: a text teacher's answers through the words that the student already names, without labels.

docs/method.md: a candidate scores sum_k p(k | region) p(k | words), over the known words k. The student at the start
gives p(k | region), for the tagged region. The teacher gives p(k | words), by the similarity of the candidate's own
words to word k. In a control the student gives that too: the same answers without the teacher's knowledge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from advl_pipeline.base.errors import ConfigError
from advl_pipeline.confidence.probe import TruthConfidence
from advl_pipeline.confidence.separation import Separation, outranked_candidates, separation
from advl_pipeline.datasets.records import MULTIPLE_CHOICE_TASKS, Dataset
from advl_pipeline.datasets.words import word_spans
from advl_pipeline.distillation.relational import (
    TEMPERATURE,
    Landmarks,
    mean_of_words,
    students_names,
    teacher_similarity,
)
from advl_pipeline.distillation.signal import Features, TextSignal
from advl_pipeline.students.interface import Student
from advl_pipeline.training.batch_order import inputs_visited
from advl_pipeline.training.inputs import Inputs
from advl_pipeline.training.landmarks.census import Census, StudentAtStart, take_census
from advl_pipeline.training.landmarks.search import FoundLandmarks
from advl_pipeline.training.resolved import Run
from advl_pipeline.training.signals.averages import box_shares

EXAMPLES_AT_ONCE = 32

THE_STUDENT = "the student"
"""Name in place of a teacher's when the student's own word similarities give the answers."""


def bridge_scores(
    region_NH: torch.Tensor,
    words_ND: torch.Tensor,
    landmarks: Landmarks,
) -> torch.Tensor:
    """Return (N,) in [0, 1]: the probability that region and words draw the same known word.

    Args:
        region_NH: the student's states of the region of each candidate; 0 for none, so that only words count.
        words_ND: the teacher's mean feature of each candidate's words.
    """
    named_NK = (students_names(region_NH, landmarks) / TEMPERATURE).softmax(-1)
    meant_NK = (teacher_similarity(words_ND, landmarks) / TEMPERATURE).softmax(-1)
    return (named_NK * meant_NK).sum(-1)


@dataclass(frozen=True, kw_only=True)
class TeacherAnswers:
    """The answers that the adapt stage learns: example id -> (C,) shares, empty without any; and the findings about
    them, with the `separation` of right from wrong on the labelled items if there is a bridge."""

    shares: Mapping[str, torch.Tensor]
    why: str
    separation: Separation | None = None
    whose: str = "the text teacher"

    def to_dict(self) -> dict[str, Any]:
        """Return the findings as JSON types."""
        measured = {} if self.separation is None else asdict(self.separation)
        return {"learned": bool(self.shares), "why": self.why, **measured}

    def lines(self) -> list[str]:
        """Return lines about the findings; empty if this run had no such answers to learn."""
        if self.separation is None:
            return []
        learned = "learns" if self.shares else "does not learn"
        return [f"the adapt stage {learned} how {self.whose} would answer: {self.why}"]


def find_answers(
    run: Run, start: StudentAtStart, found_landmarks: FoundLandmarks, inputs: Inputs
) -> TeacherAnswers | None:
    """Return the answers for the adapt stage; None for a method that learns no answers.

    By default a run learns them if they separate right from wrong on its labelled items.

    Raises:
        ConfigError: answers are requested (`--answer-weight`, `--answers-of`) and there is no bridge.
    """
    if run.method.settings.answer_weight == 0:
        return None
    is_asked = run.config.adapt.answer_weight is not None
    landmarks, whose = found_landmarks.words, "the text teacher"
    if is_own := run.method.settings.asks_itself:
        landmarks = {} if found_landmarks.of_student is None else {THE_STUDENT: found_landmarks.of_student}
        whose = "the student by its own similarities"
    if why := _why_no_bridge(landmarks, inputs.adapt_dataset):
        if is_asked or is_own:
            _require_bridge(
                landmarks, inputs.adapt_dataset, "--answer-weight" if is_asked else "--answers-of student"
            )
        return TeacherAnswers(shares={}, why=why)
    labelled = bridge_confidence(start, landmarks, inputs.dataset, inputs.labelled)
    measured = separation(labelled.outranked_N, [inputs.dataset[position].cluster for position in inputs.labelled])
    if not is_asked and not measured.is_above_chance:
        return TeacherAnswers(shares={}, why=f"{measured}; NOT ABOVE CHANCE", separation=measured, whose=whose)
    visited = inputs_visited(run, inputs)
    shares = bridge_answers(start, landmarks, inputs.adapt_dataset, visited)
    return TeacherAnswers(shares=shares, why=str(measured), separation=measured, whose=whose)


def _why_no_bridge(landmarks: Mapping[str, Landmarks], dataset: Dataset) -> str:
    """Return the reason that there is no bridge, or an empty string."""
    if not set(dataset.tasks) <= set(MULTIPLE_CHOICE_TASKS):
        return "only multiple choice has a bridge"
    if not landmarks:
        return "no known words of the student's pretraining are landmarks of a text teacher, or of its own"
    return ""


def _require_bridge(landmarks: Mapping[str, Landmarks], dataset: Dataset, option: str) -> None:
    if why := _why_no_bridge(landmarks, dataset):
        raise ConfigError(
            "There is no bridge from the teacher to answers.",
            where=option,
            why=why,
            next_command=f"leave out {option}",
        )


def bridge_confidence(
    start: StudentAtStart, landmarks: Mapping[str, Landmarks], dataset: Dataset, positions: Sequence[int]
) -> TruthConfidence:
    """Return the confidence in the ground truth of labelled items.

    Args:
        positions: of the items; as for `bridge_answers`.

    Raises:
        ConfigError: there is no bridge.
    """
    _require_bridge(landmarks, dataset, "--confidence bridge")
    answers = bridge_answers(start, landmarks, dataset, positions)
    probability_N, outranked_N = (np.empty(len(positions), np.float32) for _ in range(2))
    for row, position in enumerate(positions):
        example = dataset[position]
        assert example.label is not None
        share_C = answers[example.example_id].cpu()
        probability_N[row] = float(share_C[example.label])
        outranked_N[row] = outranked_candidates(share_C[None].numpy(), np.array([example.label]))[0]
    return TruthConfidence(probability_N=probability_N, outranked_N=outranked_N)


@torch.no_grad()
def bridge_answers(
    start: StudentAtStart, landmarks: Mapping[str, Landmarks], dataset: Dataset, positions: Sequence[int]
) -> dict[str, torch.Tensor]:
    """Return example id -> (C,) float32 on the device, the probability of each candidate; no label is read.

    Several text teachers are averaged. If a candidate has no word with a meaning or no tagged box, all candidates of
    its question are equally probable.

    Args:
        start: keeps its training or evaluation mode.
        landmarks: of the text teachers, or of `THE_STUDENT`.
        positions: of the items, of multiple choice.
    """
    answers: dict[str, torch.Tensor] = {}
    for census in take_census(start, dataset, positions, at_once=EXAMPLES_AT_ONCE):
        examples = census.examples
        of_teachers = [_score(start, census, of_teacher, name) for name, of_teacher in landmarks.items()]
        scores = torch.split(torch.stack(of_teachers).mean(0), [len(example.candidates) for example in examples])
        for example, score_C in zip(examples, scores, strict=True):
            is_silent = bool((score_C == 0).any())
            share_C = torch.full_like(score_C, 1 / len(score_C)) if is_silent else score_C / score_C.sum()
            answers[example.example_id] = share_C
    return answers


def _score(start: StudentAtStart, census: Census, landmarks: Landmarks, teacher: str) -> torch.Tensor:
    """Return (N,) scores of the candidates, 0 for those without words or boxes."""
    student_text = TextSignal(
        text=Features(values_MD=census.states.pooled_NP),
        words=Features(values_MD=census.states_NWH),
        word_mask_NW=census.words.word_mask_NW,
    )
    signal = student_text if teacher == THE_STUDENT else census.signal.text[teacher]
    assert signal.words_NWD is not None
    said_NW, region_NH, speaks_N = _said_of_boxes(start.student, census, signal)
    score_N = torch.zeros(len(said_NW), device=said_NW.device)
    score_N[speaks_N] = bridge_scores(
        region_NH[speaks_N],
        mean_of_words(signal.words_NWD, said_NW & speaks_N[:, None]),
        landmarks,
    )
    return score_N


def _said_of_boxes(
    student: Student, census: Census, text: TextSignal
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the states of each candidate's words and of the boxes that it points at.

    Args:
        text: the words, of a teacher or of the student.

    Returns:
        (N, W) bool, the words of the candidate's own part that have a meaning and are not frequent; (N, H) float32,
        the mean state of the boxes that it points at; (N,) bool, whether it has both.
    """
    words, batch = census.words, census.batch.student
    own_NW = torch.zeros(words.prior_NW.shape, dtype=torch.bool)
    place_NR = torch.zeros(batch.box_index_NR.shape, dtype=torch.float32)
    candidates = [candidate for example in census.examples for candidate in example.candidates]
    most = max(len(example.image.boxes_R4) for example in census.examples)
    place_BSR = box_shares(census.examples, batch, student.places, most)
    for row, (candidate, example) in enumerate(zip(candidates, batch.example_N.tolist(), strict=True)):
        for place, (begin, _) in enumerate(word_spans(candidate.text)):
            own_NW[row, place] = begin >= candidate.context_length
        if boxes := sorted({tag.box for tag in candidate.tags}):
            place_NR[row] = place_BSR[example, boxes].mean(0)
    device = census.states_NWH.device
    own_NW, place_NR = own_NW.to(device), place_NR.to(device)
    said_NW = census.meant(text) & ~words.frequent_NW & own_NW
    region_NH = torch.einsum("nr,nrh->nh", place_NR, census.states.visual_states_NRH.float())
    return said_NW, region_NH, said_NW.any(1) & (place_NR.sum(1) > 0)
