"""A gate before a vision step: a student's accuracy in naming what it sees, and how much it could gain.

In a name question, each candidate points at boxes, and its own words are all known from the student's pretraining.
The answer is by cosine between the state of the boxes and that of the words, without a head.
A linear map of the regions (ridge regression, fitted on other pictures) estimates the possible gain of a step that
moves regions. It maps them onto the words of the true candidates or, as its control, of those that the student picks
itself. The estimate is not an upper bound, because trained layers may fit more than a linear map.
The control reads the same regions and fits the same number of parameters, without new knowledge.
Shapes: N candidates, W words, R visual tokens, H student width, Q name questions, C candidates of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

import torch
from torch.nn import functional

from advl_pipeline.datasets.records import Dataset
from advl_pipeline.datasets.words import word_spans
from advl_pipeline.distillation.relational import landmark_words, mean_of_words
from advl_pipeline.distillation.signal import TextSignal
from advl_pipeline.students.interface import Student
from advl_pipeline.training.landmarks.census import Census, StudentAtStart, take_census
from advl_pipeline.training.signals.averages import box_shares

EXAMPLES_AT_ONCE = 32

NUM_FOLDS = 5
"""Number of folds of pictures; a map is evaluated on pictures that it was not fitted to."""

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Ridge penalties, in units of the mean variance of the regions; each fit uses the best one on held-out pictures."""

WORTH_POINTS = 5.0
"""Minimum gain in points of true names over the control for a vision step to be worth running."""


@dataclass(frozen=True, kw_only=True)
class NamingGate:
    """Percent of name questions that are answered correctly by cosine.

    Attributes:
        as_it_is: by the student's own regions.
        own_names: after the map onto the candidates that the student picks itself, the control.
        true_names: after the map onto the true candidates.
    """

    num_asked: int
    chance: float
    as_it_is: float
    own_names: float
    true_names: float

    @property
    def gain(self) -> float:
        """Gain of true names over the control, in points."""
        return self.true_names - self.own_names

    @property
    def is_worth_running(self) -> bool:
        """Whether the possible gain justifies a vision step."""
        return self.gain >= WORTH_POINTS


def said_of_boxes(
    student: Student, census: Census, text: TextSignal | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the states of each candidate's words and of the boxes that it points at.

    Args:
        text: of a teacher whose words are used [default: those of the student].

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


class NameQuestion(NamedTuple):
    """A labelled question for a name: the states of each candidate's boxes, and of its words."""

    regions_CH: torch.Tensor
    words_CH: torch.Tensor
    label: int
    picture: str


@torch.no_grad()
def name_questions(start: StudentAtStart, dataset: Dataset, positions: Sequence[int]) -> list[NameQuestion]:
    """Return the labelled questions among some examples whose candidates name what they point at.

    Args:
        start: keeps its training or evaluation mode.
        dataset: of the examples, of multiple choice.
        positions: of the examples.
    """
    questions = []
    for census in take_census(start, dataset, positions, at_once=EXAMPLES_AT_ONCE):
        said_NW, regions_NH, speaks_N = said_of_boxes(start.student, census)
        is_name_N = speaks_N & ~(said_NW & ~landmark_words(census.words)).any(1)
        words_NH = torch.zeros_like(regions_NH)
        words_NH[said_NW.any(1)] = mean_of_words(census.states_NWH.float(), said_NW)
        first = 0
        for example in census.examples:
            rows = slice(first, first := first + len(example.candidates))
            if example.label is not None and bool(is_name_N[rows].all()):
                states = regions_NH[rows].cpu(), words_NH[rows].cpu()
                questions.append(NameQuestion(*states, label=example.label, picture=example.cluster))
    return questions


def naming_gate(questions: Sequence[NameQuestion]) -> NamingGate | None:
    """Return the accuracy on the questions; None if they are of too few pictures for the folds."""
    pictures = sorted({question.picture for question in questions})
    if len(pictures) < NUM_FOLDS:
        return None
    fold_of = {picture: number % NUM_FOLDS for number, picture in enumerate(pictures)}
    folds = [[question for question in questions if fold_of[question.picture] == fold] for fold in range(NUM_FOLDS)]
    in_order = [question for fold in folds for question in fold]
    true_Q = [question.label for question in in_order]
    own_Q = [_answer(question.regions_CH, question.words_CH) for question in in_order]

    def right(answer_Q: Sequence[int]) -> float:
        return 100 * fmean(answer == label for answer, label in zip(answer_Q, true_Q, strict=True))

    def after_map(name_Q: Sequence[int]) -> float:
        return max(right(_answers_after_map(folds, name_Q, penalty)) for penalty in PENALTIES)

    return NamingGate(
        num_asked=len(in_order),
        chance=100 * fmean(1 / len(question.words_CH) for question in in_order),
        as_it_is=right(own_Q),
        own_names=after_map(own_Q),
        true_names=after_map(true_Q),
    )


def _answer(regions_CH: torch.Tensor, words_CH: torch.Tensor) -> int:
    return int(functional.cosine_similarity(regions_CH, words_CH, dim=-1).argmax())


def _answers_after_map(folds: Sequence[Sequence[NameQuestion]], name_Q: Sequence[int], penalty: float) -> list[int]:
    """Return the answers of all folds, each after the map from regions to names that was fitted on the others."""
    questions = [question for fold in folds for question in fold]
    region_QH = torch.stack([question.regions_CH[name] for question, name in zip(questions, name_Q, strict=True)])
    name_QH = torch.stack([question.words_CH[name] for question, name in zip(questions, name_Q, strict=True)])
    fold_Q = torch.tensor([number for number, fold in enumerate(folds) for _ in fold])
    answers = []
    for number, fold in enumerate(folds):
        is_seen_Q = fold_Q != number
        region_H, name_H = region_QH[is_seen_Q].mean(0), name_QH[is_seen_Q].mean(0)
        centred_QH = region_QH[is_seen_Q] - region_H
        gram_HH = centred_QH.T @ centred_QH
        ridge = penalty * gram_HH.diagonal().mean().clamp(min=torch.finfo(gram_HH.dtype).tiny)
        map_HH = torch.linalg.solve(
            gram_HH + ridge * torch.eye(len(gram_HH)), centred_QH.T @ (name_QH[is_seen_Q] - name_H)
        )
        answers += [
            _answer((question.regions_CH - region_H) @ map_HH + name_H, question.words_CH) for question in fold
        ]
    return answers
