"""Losses of a batch: those of tasks by name, which fit which head; and the states that are distilled."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_corpus import SmallCorpus
from torch import nn
from torch.nn import functional

from advl_pipeline.base.errors import ConfigError
from advl_pipeline.cache.reader import open_cache
from advl_pipeline.datasets.words import fit_word_prior
from advl_pipeline.distillation.distiller import Distiller
from advl_pipeline.distillation.settings import DistillationSettings
from advl_pipeline.students.interface import StudentOutput
from advl_pipeline.students.registry import build_student
from advl_pipeline.students.uniter import TwoWayChoiceHead
from advl_pipeline.training.batches import collate_batch
from advl_pipeline.training.config import TaskLoss
from advl_pipeline.training.landmarks.census import StudentAtStart
from advl_pipeline.training.signals.stored_signals import SignalSource
from advl_pipeline.training.signals.teacher_features import cached_teacher
from advl_pipeline.training.step import FinetuneModel, Stage, StepConditions
from advl_pipeline.training.targets import TaskTargets, require_fitting_loss, score_task, student_confidence

CHOICE = TaskTargets(is_choice=True, label_B=torch.tensor([1, 2]), scores_BK=None)
CLASSES = TaskTargets(is_choice=False, label_B=torch.tensor([1, 2]), scores_BK=None)


def states(pooled_NP: torch.Tensor) -> StudentOutput:
    """Return what a student computes, as far as a head reads it."""
    words_N1P = pooled_NP[:, None]
    return StudentOutput(text_states_NLH=words_N1P, visual_states_NRH=words_N1P, pooled_NP=pooled_NP)


def test_two_way_choice_is_uniters_loss_and_scores_by_the_second_logit() -> None:
    torch.manual_seed(0)
    head, pooled = TwoWayChoiceHead(8), torch.randn(7, 8)
    scored = score_task("two-way-choice", head, states(pooled), (4, 3), CHOICE)
    two_way = head.two_way(pooled)
    right = torch.tensor([0, 1, 0, 0, 0, 0, 1])
    torch.testing.assert_close(scored.loss, functional.cross_entropy(two_way, right))
    torch.testing.assert_close(scored.logits[0], two_way[:4, 1])
    torch.testing.assert_close(scored.logits[1, :3], two_way[4:, 1])
    assert scored.logits[1, 3] == -torch.inf
    # What inference computes is the same score.
    torch.testing.assert_close(head(pooled)[:, 0], two_way[:, 1])
    softmax = score_task("softmax-choice", head, states(pooled), (4, 3), CHOICE)
    torch.testing.assert_close(softmax.logits, scored.logits)
    assert not torch.isclose(softmax.loss, scored.loss)


def test_sigmoid_choice_leaves_out_candidates_that_are_not_there() -> None:
    head, pooled = nn.Linear(8, 1), torch.randn(7, 8)
    scored = score_task("sigmoid-choice", head, states(pooled), (4, 3), CHOICE)
    right = torch.tensor([0.0, 1, 0, 0, 0, 0, 1])
    torch.testing.assert_close(scored.loss, functional.binary_cross_entropy_with_logits(head(pooled)[:, 0], right))


def test_one_hot_bce_for_classes_is_uniters_snli_ve() -> None:
    head, pooled = nn.Linear(8, 3), torch.randn(2, 8)
    scored = score_task("soft-target-bce", head, states(pooled), (1, 1), CLASSES)
    one_hot = torch.tensor([[0.0, 1, 0], [0, 0, 1]])
    torch.testing.assert_close(scored.loss, 3 * functional.binary_cross_entropy_with_logits(head(pooled), one_hot))


def test_confidence_of_answers_trained_as_one_distribution_is_a_softmax() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0]])
    targets = TaskTargets(is_choice=False, label_B=None, scores_BK=torch.tensor([[1.0, 0.0, 0.0]]))
    assert student_confidence("soft-target-kl", logits, targets).item() == pytest.approx(
        torch.softmax(logits, 1)[0, 0].item(), abs=1e-5
    )
    assert student_confidence("soft-target-bce", logits, targets).item() == pytest.approx(
        torch.sigmoid(logits)[0, 0].item()
    )


@pytest.mark.parametrize(
    ("kind", "task", "head"),
    [
        ("two-way-choice", "vcr-q2a", nn.Linear(8, 1)),
        ("two-way-choice", "vqa", nn.Linear(8, 5)),
        ("softmax-choice", "vqa", nn.Linear(8, 5)),
        ("soft-target-bce", "vcr-q2a", nn.Linear(8, 1)),
        ("sigmoid-choice", "snli-ve", nn.Linear(8, 3)),
    ],
)
def test_a_loss_that_does_not_fit_is_refused(kind: TaskLoss, task: str, head: nn.Module) -> None:
    with pytest.raises(ConfigError):
        require_fitting_loss(kind, task, head)


@pytest.mark.parametrize(
    ("stage", "adapt_objective", "distance"),
    [
        ("adapt", "contrastive", "relational"),
        ("adapt", "distil-only", "mse"),
        ("finetune", "distil-only", "relational"),
    ],
)
@pytest.mark.parametrize(("layer", "sees"), [("fused", True), ("unimodal", False)])
def test_only_fused_states_of_words_have_seen_the_picture(
    small_corpus: SmallCorpus, stage: Stage, adapt_objective: str, distance: str, layer: str, sees: bool
) -> None:
    dataset, examples = small_corpus.dataset(), small_corpus.examples(number=4)
    source = SignalSource(
        [cached_teacher(open_cache(path)) for path in small_corpus.caches],
        prior=fit_word_prior(candidate.text for example in examples for candidate in example.candidates),
    )
    torch.manual_seed(0)
    student = build_student("scenes-small")
    settings = DistillationSettings(
        distill_layer=layer, adapt_objective=adapt_objective, distance=distance, selection="all"
    )
    sizes = {"hidden_size": student.hidden_size, "pooled_size": student.pooled_size}
    start = StudentAtStart(student=student, heads={"choice": student.build_head("choice", 1)}, settings=settings)
    model = FinetuneModel(start, Distiller(settings, source.widths(), **sizes), task_loss="softmax-choice").eval()
    batch = collate_batch(examples, dataset, student, source, labelled=False).to(torch.device("cpu"))
    # The same question with its picture turned into its negative.
    negative = replace(batch.student, features_BRF=255 - batch.student.features_BRF)  # type: ignore[attr-defined,call-arg]
    terms = [
        model(replace(batch, student=inputs), StepConditions(stage=stage)).raw for inputs in (batch.student, negative)
    ]
    assert terms[0]["vision"] != terms[1]["vision"]
    assert (terms[0]["text"] != terms[1]["text"]) == sees
