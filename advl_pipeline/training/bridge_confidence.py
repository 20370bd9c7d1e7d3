"""The bridge: how probable a text teacher finds the truth, by way of what the student already names, without labels.

docs/method.md: a candidate scores sum_k p(k | region) p(k | words), over the known words k. The student as it starts
says which of them names the tagged region, the teacher which of them the candidate's own words are like. Labels only
look up the truth's share; no head is fitted on any.
Shapes: N candidates, W words, R visual tokens, K landmarks, H student width, D teacher width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from advl_pipeline.confidence.probe import TruthConfidence
from advl_pipeline.confidence.separation import outranked_candidates
from advl_pipeline.datasets.interface import Dataset
from advl_pipeline.datasets.records import MULTIPLE_CHOICE_TASKS, Example
from advl_pipeline.datasets.words import word_spans
from advl_pipeline.distillation.landmarks import Landmarks, mean_of_words, students_names, teachers_likeness
from advl_pipeline.distillation.pooling import pool_to_words
from advl_pipeline.distillation.signal import TextSignal, shared_words
from advl_pipeline.errors import ConfigError
from advl_pipeline.students.interface import Student, StudentOutput
from advl_pipeline.training.batches import TrainingBatch, collate_batch
from advl_pipeline.training.finetune_model import FinetuneModel
from advl_pipeline.training.pretrain_objectives import places_of_boxes
from advl_pipeline.training.signals import SignalSource

EXAMPLES_AT_ONCE = 32


def bridge_scores(
    region_NH: torch.Tensor, words_ND: torch.Tensor, landmarks: Landmarks, *, student: float, teacher: float
) -> torch.Tensor:
    """Return (N,) in [0, 1]: the probability that region and words draw the same known word.

    Args:
        region_NH: the student's states of what each candidate speaks of; 0 for nothing, which scores by words alone.
        words_ND: the teacher's mean feature of each candidate's words.
        student: temperature of the student's names.
        teacher: temperature of the teacher's likenesses.
    """
    named_NK = (students_names(region_NH, landmarks) / student).softmax(-1)
    meant_NK = (teachers_likeness(words_ND, landmarks) / teacher).softmax(-1)
    return (named_NK * meant_NK).sum(-1)


@torch.no_grad()
def bridge_confidence(
    model: FinetuneModel, dataset: Dataset, positions: Sequence[int], source: SignalSource, *, device: torch.device
) -> TruthConfidence:
    """Return the confidence in the truth of labelled items; several text teachers are averaged.

    A candidate without a word that means something, or without a tagged box, says nothing: its item's candidates are
    equally probable, and its truth outranks half of them.

    Args:
        model: before its first step, with its landmarks; left in the mode that it was in.
        positions: of the items.

    Raises:
        ConfigError: a task that is no multiple choice, or a run without landmarks of words.
    """
    landmarks = model.distiller.landmarks
    if not landmarks or any(dataset[position].task not in MULTIPLE_CHOICE_TASKS for position in positions):
        raise ConfigError(
            "The bridge confidence cannot be found here.",
            where="--confidence bridge",
            why="it needs a text teacher with tokens, known words of the student's pretraining, relational distances "
            "to known landmarks, and multiple choice",
            next_command="use --confidence probe",
        )
    was_training = model.training
    model.eval()
    probability_N, outranked_N = (np.empty(len(positions), np.float32) for _ in range(2))
    for task in dict.fromkeys(dataset[position].task for position in positions):
        rows = [row for row, position in enumerate(positions) if dataset[position].task == task]
        for first in range(0, len(rows), EXAMPLES_AT_ONCE):
            chosen = rows[first : first + EXAMPLES_AT_ONCE]
            examples = [dataset[positions[row]] for row in chosen]
            batch = collate_batch(examples, dataset, model.student, source, labelled=False).to(device)
            of_teachers = [_score(model, examples, batch, found, name) for name, found in landmarks.items()]
            score_N = torch.stack(of_teachers).mean(0)
            counts = [len(example.candidates) for example in examples]
            for row, example, score_C in zip(chosen, examples, torch.split(score_N.cpu(), counts), strict=True):
                assert example.label is not None
                is_silent = bool((score_C == 0).any())
                share_C = torch.full_like(score_C, 1 / len(score_C)) if is_silent else score_C / score_C.sum()
                probability_N[row] = float(share_C[example.label])
                outranked_N[row] = outranked_candidates(share_C[None].numpy(), np.array([example.label]))[0]
    model.train(was_training)
    return TruthConfidence(probability_N=probability_N, outranked_N=outranked_N)


def _score(
    model: FinetuneModel, examples: Sequence[Example], batch: TrainingBatch, landmarks: Landmarks, teacher: str
) -> torch.Tensor:
    """Return (N,) scores of the candidates, 0 for those that say nothing."""
    assert batch.signal is not None
    signal, settings = batch.signal.text[teacher], model.distiller.settings
    assert signal.words_NWD is not None
    states = model.states(batch.student)
    said_NW = _said_words(examples, batch, signal, states)
    place_NR = _places(model.student, examples, batch)
    speaks_N = said_NW.any(1) & (place_NR.sum(1) > 0)
    region_NH = torch.einsum("nr,nrh->nh", place_NR, states.visual_states_NRH.float())
    score_N = torch.zeros(len(said_NW), device=said_NW.device)
    score_N[speaks_N] = bridge_scores(
        region_NH[speaks_N],
        mean_of_words(signal.words_NWD, said_NW & speaks_N[:, None]),
        landmarks,
        student=settings.student_temperature,
        teacher=settings.teacher_temperature,
    )
    return score_N


def _said_words(
    examples: Sequence[Example], batch: TrainingBatch, one: TextSignal, states: StudentOutput
) -> torch.Tensor:
    """Return (N, W) bool: the words of each candidate's own part that mean something, as both sides have them."""
    assert batch.signal is not None
    assert batch.signal.words is not None
    words = batch.signal.words
    _, seen_NW = pool_to_words(states.text_states_NLH, words.word_of_token_NL, words.prior_NW.shape[1])
    own_NW = torch.zeros(words.prior_NW.shape, dtype=torch.bool)
    candidates = [candidate for example in examples for candidate in example.candidates]
    for row, candidate in enumerate(candidates):
        for place, (start, _) in enumerate(word_spans(candidate.text)):
            own_NW[row, place] = start >= candidate.context_length
    means_NW = shared_words(words, one, seen_NW) & (words.prior_NW > 0) & ~words.frequent_NW
    return means_NW & own_NW.to(means_NW.device)


def _places(student: Student, examples: Sequence[Example], batch: TrainingBatch) -> torch.Tensor:
    """Return (N, R): the mean place of the boxes that each candidate tags; 0 where it tags none that is seen."""
    box_index_NR = batch.student.box_index_NR
    place_NR = torch.zeros(box_index_NR.shape, dtype=torch.float32)
    row = 0
    for example in examples:
        for candidate in example.candidates:
            boxes = sorted({tag.box for tag in candidate.tags})
            if boxes:
                place_NR[row] = places_of_boxes(student, example, box_index_NR[row].cpu())[boxes].mean(0)
            row += 1
    return place_NR.to(box_index_NR.device)
