"""The task's side of a batch: targets, loss and the student's confidence, by kind of task.

The losses are those of the students' original code, selected by name. For every loss, the prediction is the first
maximum of the logits: of each candidate's own logit (the second of the two for UNITER's VCR) or of each class's.
Shapes: B examples, N sequences, C candidates, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from advl_pipeline.base.errors import ConfigError, DatasetError
from advl_pipeline.datasets.records import MULTIPLE_CHOICE_TASKS, Example, head_name
from advl_pipeline.distillation.weighting import choice_confidence, soft_label_confidence
from advl_pipeline.students.heads import shape_logits
from advl_pipeline.students.interface import Answered, AnswerHead, StudentOutput
from advl_pipeline.training.config import TaskLoss


@dataclass(kw_only=True)
class TaskTargets:
    """Targets of a batch. `label_B` is None for soft labels, `scores_BK` (float32) is None for the others.

    `known_B` (bool) is False for inputs that the adapt stage sees without their labels; None if all are known.
    """

    is_choice: bool
    label_B: torch.Tensor | None
    scores_BK: torch.Tensor | None
    known_B: torch.Tensor | None = None


def collate_targets(
    examples: Sequence[Example], num_classes: int, *, labelled_ids: frozenset[str] | None = None
) -> TaskTargets:
    """Collate the targets of examples of one kind of task.

    Args:
        num_classes: K.
        labelled_ids: examples whose labels may be used, None for all; the labels of others are not read.

    Raises:
        DatasetError: an example has no label.
    """
    known = [labelled_ids is None or example.example_id in labelled_ids for example in examples]
    known_B = None if labelled_ids is None else torch.tensor(known)
    if head_name(examples[0].task) == "answers":
        scores = torch.zeros(len(examples), num_classes)
        for row, example in enumerate(examples):
            for index, score in example.soft_label if known[row] else ():
                scores[row, index] = score
        return TaskTargets(is_choice=False, label_B=None, scores_BK=scores, known_B=known_B)
    labels = [example.label if is_known else 0 for example, is_known in zip(examples, known, strict=True)]
    if None in labels:
        raise DatasetError(
            "An example has no label; this split cannot be trained on.", where=examples[labels.index(None)].example_id
        )
    return TaskTargets(
        is_choice=examples[0].task in MULTIPLE_CHOICE_TASKS,
        label_B=torch.tensor(labels),
        scores_BK=None,
        known_B=known_B,
    )


@dataclass(kw_only=True)
class TaskScores:
    """Logits (B, C) or (B, K), scalar loss, and the logits (N, 2), (B, C) or (B, K) that a divergence compares."""

    logits: torch.Tensor
    loss: torch.Tensor
    compared: torch.Tensor


ANSWERS_IN_WORDS: tuple[TaskLoss, ...] = ("answer-lm", "softmax-choice")
"""Losses of a student that answers in words: of the words of the correct answer, or over the candidate answers."""


def require_fitting_loss(kind: TaskLoss, task: str, head: nn.Module) -> None:
    """Refuse a loss that does not fit the task's labels or the student's head.

    Raises:
        ConfigError: the loss does not fit.
    """
    is_choice, whose = task in MULTIPLE_CHOICE_TASKS, ""
    allowed: tuple[TaskLoss, ...] = ("soft-target-bce", "soft-target-kl")
    if isinstance(head, AnswerHead):
        # Open questions have thousands of answers, so training scores only those that annotators gave.
        allowed = ANSWERS_IN_WORDS[:1] if head_name(task) == "answers" else ANSWERS_IN_WORDS
        whose = " of a student that answers in words"
    elif is_choice:
        allowed = ("softmax-choice", "sigmoid-choice", "two-way-choice")
    elif head_name(task) != "answers":
        allowed = (*allowed, "softmax-choice")
    if kind not in allowed:
        raise ConfigError(
            f"The loss {kind} does not fit {task}{whose}.",
            why=f"there are: {', '.join(allowed)}",
            next_command=f"--recipe FILE.toml with the line loss = {allowed[0]!r}",
        )
    if kind == "two-way-choice" and not hasattr(head, "two_way"):
        raise ConfigError(
            "This student's head gives one logit per candidate, and two-way-choice needs two.",
            next_command="--recipe FILE.toml with the line loss = 'sigmoid-choice'",
        )


def score_task(
    kind: TaskLoss, head: nn.Module, output: StudentOutput, num_candidates: Sequence[int], targets: TaskTargets
) -> TaskScores:
    """Return logits and loss of a batch.

    Args:
        num_candidates: sequences of each example.
    """
    if kind == "two-way-choice":
        two_way: torch.Tensor = head.two_way(output.pooled_NP)  # type: ignore[operator]
        assert targets.label_B is not None
        counts_B = torch.tensor(num_candidates)
        first_B = (counts_B.cumsum(0) - counts_B).to(two_way.device, non_blocking=True)
        right_B = right_sequences(targets, first_B)
        right_N = torch.zeros(len(two_way), dtype=torch.bool, device=two_way.device).index_fill(0, right_B, True)
        logits = shape_logits(two_way[:, 1:], num_candidates, True)
        return TaskScores(logits=logits, loss=two_way_choice(two_way, right_N), compared=two_way)
    logits = shape_logits(output.class_logits(head), num_candidates, targets.is_choice)
    if kind == "answer-lm":
        assert output.answered is not None
        loss = answer_loss(output.answered, num_candidates, targets)
    elif kind in ("softmax-choice", "sigmoid-choice"):
        assert targets.label_B is not None
        loss = (softmax_choice if kind == "softmax-choice" else sigmoid_choice)(logits, targets.label_B)
    else:
        scores_BK = targets.scores_BK
        if scores_BK is None:
            assert targets.label_B is not None
            scores_BK = functional.one_hot(targets.label_B, logits.shape[1]).to(logits.dtype)
        loss = (soft_target_bce if kind == "soft-target-bce" else soft_target_kl)(logits, scores_BK)
    return TaskScores(logits=logits, loss=loss, compared=logits)


def answer_loss(answered: Answered, num_candidates: Sequence[int], targets: TaskTargets) -> torch.Tensor:
    """Return the mean negative log-likelihood of the correct answers' words, weighted equally in a micro-batch.

    This is the loss of transformers' language models with labels only on the answers. If annotators gave several
    answers, each is weighted by its share of their score, as in ALBEF; an item without any counts nothing.
    """
    likelihood, number = (
        shape_logits(value, num_candidates, targets.is_choice)
        for value in (answered.log_likelihood_NK, answered.num_tokens_NK.float())
    )
    if targets.scores_BK is not None:
        share = targets.scores_BK / targets.scores_BK.sum(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    else:
        assert targets.label_B is not None
        share = functional.one_hot(targets.label_B, likelihood.shape[1]).to(likelihood.dtype)
    wanted = share > 0
    num_words = (share * number.masked_fill(~wanted, 0.0)).sum()
    return -(share * likelihood.masked_fill(~wanted, 0.0)).sum() / num_words.clamp(min=1.0)


def student_confidence(kind: TaskLoss, logits_BK: torch.Tensor, targets: TaskTargets) -> torch.Tensor:
    """Return (B,): the student's probability of the ground truth, without gradient.

    Candidates and classes compete (softmax) for every loss, as they do for the teachers' probe. VQA's answers are
    judged independently (sigmoid) unless they are trained as one distribution or are words, which have a likelihood.
    """
    logits = logits_BK.detach()
    if targets.scores_BK is not None:
        if kind == "soft-target-kl":
            logits = torch.logit(torch.softmax(logits.float(), dim=1), eps=1e-7)
        elif kind == "answer-lm":
            # An answer's likelihood is its probability among all texts, regardless of the candidates.
            logits = torch.logit(logits.float().exp(), eps=1e-7)
        return soft_label_confidence(logits, targets.scores_BK)
    assert targets.label_B is not None
    return choice_confidence(logits, targets.label_B)


def right_sequences(targets: TaskTargets, first_B: torch.Tensor) -> torch.Tensor:
    """Return (B,) int64: the sequence of each example's correct candidate; the only one outside multiple choice.

    Args:
        first_B: the first sequence of each example.
    """
    return first_B + targets.label_B if targets.is_choice and targets.label_B is not None else first_B


def soft_target_bce(logits_BK: torch.Tensor, scores_BK: torch.Tensor) -> torch.Tensor:
    """Return binary cross-entropy summed over classes, averaged over examples.

    VQA of UNITER, VILLA, LXMERT, VL-BERT, CLIP-ViL, METER, ViLT; SNLI-VE of UNITER and VILLA with one-hot scores.
    """
    return functional.binary_cross_entropy_with_logits(logits_BK, scores_BK) * logits_BK.shape[1]


def soft_target_kl(logits_BK: torch.Tensor, scores_BK: torch.Tensor) -> torch.Tensor:
    """Return KL(scores || softmax(logits)), averaged over examples: VisualBERT's VQA loss.

    Scores are not normalised to a distribution, as in the original.
    """
    return functional.kl_div(torch.log_softmax(logits_BK, dim=-1), scores_BK, reduction="batchmean")


def two_way_choice(two_way_N2: torch.Tensor, is_right_N: torch.Tensor) -> torch.Tensor:
    """Return the mean 2-way cross-entropy of each candidate independently: VCR of UNITER and VILLA.

    Candidates do not compete; at inference the score of a candidate is only `two_way_N2[:, 1]`.
    """
    return functional.cross_entropy(two_way_N2, is_right_N.long())


def sigmoid_choice(scores_BC: torch.Tensor, label_B: torch.Tensor) -> torch.Tensor:
    """Return the mean sigmoid cross-entropy over all candidates: VCR of VL-BERT.

    Missing candidates have the score -inf and do not count.
    """
    present_BC = scores_BC > -torch.inf
    is_right_BC = functional.one_hot(label_B, scores_BC.shape[1]).to(scores_BC.dtype)
    each_BC = functional.binary_cross_entropy_with_logits(
        scores_BC.masked_fill(~present_BC, 0.0), is_right_BC, reduction="none"
    )
    return (each_BC * present_BC).sum() / present_BC.sum()


def softmax_choice(scores_BC: torch.Tensor, label_B: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy over candidates or classes: VCR of VisualBERT, SNLI-VE of METER and CLIP-ViL."""
    return functional.cross_entropy(scores_BC, label_B)
