"""The loss of a step, with its terms in the order of summation.

The adapt stage uses no labels. Its loss is

    contrast + sum_p mean_B(w_p d_p) + anchor_weight * drift + answer_weight * mean_B(w_text a)

and the loss of the finetune stage, with lambda for `--distill-weight` and k for VILLA's perturbed passes, is

    task + hold_weight * drift + lambda * sum_p mean_B(w_p d_p) + kl_weight * divergence_k

over the pathways p, vision and text. Here d_p is the distance between the relations of the student's states and those
of the teachers of the pathway (`distillation/distiller.py`). w_p is the confidence weight of an example, 1 in the
adapt stage (`distillation/weighting.py`). docs/method.md has the formulas of the distances.

`FinetuneModel` contains all trained modules: the student, its task heads and the projections of the method. Data
parallelism and mixed precision therefore wrap the complete computation.
Shapes: B examples, N sequences, C candidates, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from advl_pipeline.datasets.records import head_name
from advl_pipeline.distillation.adapt_objectives import anchor_loss
from advl_pipeline.distillation.distiller import Distiller, Terms
from advl_pipeline.distillation.relational import Gather, gather_alone
from advl_pipeline.distillation.signal import TeacherSignal
from advl_pipeline.distillation.weighting import pathway_weights
from advl_pipeline.students.interface import Perturbation, Student, StudentBatch, StudentOutput
from advl_pipeline.training.batches import TrainingBatch
from advl_pipeline.training.config import TaskLoss
from advl_pipeline.training.landmarks.census import StudentAtStart
from advl_pipeline.training.signals.confidences import StudentConfidence
from advl_pipeline.training.targets import TaskScores, right_sequences, score_task, student_confidence

Stage = Literal["adapt", "finetune"]


@dataclass(kw_only=True)
class LossTerms:
    """The summands of a loss, raw terms for the log, and the weights and words behind them.

    `weighted` are the summands of the loss; `raw` are the same terms without weight or lambda, detached. `confidence`
    is the probability of the ground truth, of the student ("student") and of the teachers by modality. If several
    teachers share a pathway, `raw` also has a term for each, under "pathway/teacher".
    """

    weighted: dict[str, torch.Tensor] = field(default_factory=dict)
    raw: dict[str, torch.Tensor] = field(default_factory=dict)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    confidence: dict[str, torch.Tensor] = field(default_factory=dict)
    num_correct: torch.Tensor | None = None
    compared: torch.Tensor | None = None
    """Logits that adversarial finetuning compares with those of the clean pass."""

    @property
    def total(self) -> torch.Tensor:
        return torch.stack(list(self.weighted.values())).sum()

    @property
    def has_gradient(self) -> bool:
        """Return whether the loss has a gradient: an adapt stage of distillation only may have no targets."""
        return any(value.requires_grad for value in self.weighted.values())

    def add(self, name: str, value: torch.Tensor, weight: float = 1.0) -> None:
        """Add a summand, and keep it for the log."""
        self.weighted[name] = value if weight == 1.0 else weight * value
        self.raw[name] = value.detach()

    def add_pathway(
        self,
        pathway: str,
        losses_B: Mapping[str, torch.Tensor],
        weights_B: torch.Tensor | None = None,
        *,
        strength: float | None = None,
    ) -> None:
        """Add the mean over teachers and examples, weighted if weights are given; also log each teacher's term."""
        value_B = torch.stack(list(losses_B.values())).mean(0)
        self.raw[pathway] = value_B.detach().mean()
        if weights_B is not None:
            self.weights[pathway], value_B = weights_B, weights_B * value_B
        self.weighted[pathway] = value_B.mean() if strength is None else strength * value_B.mean()
        if len(losses_B) > 1:
            self.raw |= {f"{pathway}/{name}": loss_B.detach().mean() for name, loss_B in losses_B.items()}


@dataclass(frozen=True, kw_only=True)
class StepConditions:
    """The conditions of an optimiser step, common to its micro-batches.

    The stage `adapt` uses no labels. `generator` draws words and regions, and `gather` collects tensors from the
    processes that share the batch.
    """

    stage: Stage
    generator: torch.Generator | None = None
    gather: Gather = gather_alone


class FinetuneModel(nn.Module):
    """The student, its heads by name, and the distiller; without teachers the distiller's projections are unused."""

    def __init__(
        self,
        start: StudentAtStart,
        distiller: Distiller,
        *,
        task_loss: TaskLoss,
        reference: Student | None = None,
        answers: Mapping[str, torch.Tensor] | None = None,
        remembered: StudentConfidence | None = None,
    ) -> None:
        """Args:
        start: student and heads, which are trained in place, and their inputs.
        task_loss: loss of the finetune stage.
        reference: the student as pretrained, which anchors known words.
        answers: example id -> (C,) answers of a teacher, the target of the adapt stage.
        remembered: earlier confidences of the student, if the weights do not follow the current ones.
        """
        super().__init__()
        self.hide_picture, self.control = start.hide_picture, start.control
        self.student = start.student
        self.heads = nn.ModuleDict(dict(start.heads))
        self.distiller = distiller
        self.task_loss: TaskLoss = task_loss
        # In a tuple the reference is no submodule, so it is neither trained nor saved.
        self.references: tuple[Student, ...] = () if reference is None else (reference,)
        self.answers = answers or {}
        self.remembered = remembered

    def forward(
        self, batch: TrainingBatch, step: StepConditions, *, perturbation: Perturbation | None = None
    ) -> LossTerms:
        """Return the loss terms of a batch.

        Args:
            perturbation: of the student's inputs in the finetune stage; teacher targets come from clean inputs only.
        """
        with self.student.sharing() if perturbation is None else nullcontext():
            return self._adapt(batch, step) if step.stage == "adapt" else self._finetune(batch, step, perturbation)

    def _adapt(self, batch: TrainingBatch, step: StepConditions) -> LossTerms:
        terms, signal, settings = LossTerms(), batch.signal, self.distiller.settings
        contrasts = settings.adapt_objective == "contrastive"
        needs_apart = contrasts or self.references or self._distils_apart(signal)
        apart = self.student.encode_unimodal(batch.student) if needs_apart else None
        # contrast = (InfoNCE(picture -> its texts) + InfoNCE(texts -> their picture)) / 2
        if contrasts:
            assert apart is not None
            contrast = self.distiller.contrast(
                apart,
                batch.student,
                right_sequences(batch.targets, batch.student.first_B),
                batch.image_ids_B,
                known_B=batch.targets.known_B,
                gather=step.gather,
            )
            terms.add("contrast", contrast)
        reference = known = None
        if self.references:
            assert signal is not None
            reference, known = self._as_pretrained(batch, signal)
        # vision, text = mean_B(d_p)
        if signal is not None:
            pathways, _ = self.distillation_terms(batch, signal, step, apart=apart, known=known)
            for name, losses_B in pathways.items():
                terms.add_pathway(name, losses_B)
        # drift = mean |h - h_0|^2 / var(h_0), for the pretrained states h_0 that the step is to preserve
        if reference is not None:
            assert apart is not None
            assert signal is not None
            assert known is not None
            terms.add("drift", self._drift(batch, signal, step, apart, reference, known), settings.anchor_weight)
        # answers = mean_B(-sum_c b_c log softmax_c(s_c)), with the bridge's shares b_c and the student's candidate
        # scores s_c: a head's logits or, for answers in words, their likelihood per token
        if self.answers:
            scored = self._score(batch, self.encode(batch.student, need_relevance=False))
            share_BC = pad_sequence([self.answers[name] for name in batch.example_ids], batch_first=True)
            log_share_BC = scored.logits.log_softmax(1).masked_fill(share_BC == 0, 0.0)
            terms.add("answers", -(share_BC * log_share_BC).sum(1).mean(), settings.answer_weight)
        return terms

    def _finetune(self, batch: TrainingBatch, step: StepConditions, perturbation: Perturbation | None) -> LossTerms:
        signal = batch.signal if perturbation is None else None
        strength = self.distiller.settings.distill_weight
        distils = signal is not None and strength != 0.0 and any(self.distiller.teachers.values())
        needs_relevance = self.distiller.needs_relevance
        if distils and (needs_relevance or not self._distils_apart(signal)):
            output = self.encode(batch.student, perturbation=perturbation, need_relevance=needs_relevance)
        else:
            output = self.student.encode_pooled(
                batch.student, perturbation=perturbation, mask_visual=self.hide_picture
            )
        # task: the recipe's loss of the logits and the labels; `adversarial.py` computes it again under perturbations
        scored = self._score(batch, output)
        terms = LossTerms(compared=scored.compared)
        terms.add("task", scored.loss)
        if batch.targets.label_B is not None:
            terms.num_correct = (scored.logits.detach().argmax(1) == batch.targets.label_B).sum()
        # drift, as in the adapt stage
        if self.references and signal is not None and (weight := self.distiller.settings.hold_weight):
            apart = self.student.encode_unimodal(batch.student)
            reference, known = self._as_pretrained(batch, signal)
            terms.add("drift", self._drift(batch, signal, step, apart, reference, known), weight)
        # vision, text = lambda * mean_B(w_p d_p)
        if signal is None or not distils:
            return terms
        if self.remembered is None:
            confidence_B = student_confidence(self.task_loss, scored.logits, batch.targets)
        else:
            confidence_B = self.remembered.look_up(batch.example_ids)
        terms.confidence = {"student": confidence_B, **signal.confidence}
        pathways, _ = self.distillation_terms(batch, signal, step, fused=output)
        for name, losses_B in pathways.items():
            weights_B = pathway_weights(self.distiller.settings, signal, name, confidence_B, generator=step.generator)
            terms.add_pathway(name, losses_B, weights_B, strength=strength)
        return terms

    def _as_pretrained(
        self, batch: TrainingBatch, signal: TeacherSignal
    ) -> tuple[StudentOutput, Mapping[str, torch.Tensor]]:
        """Return the states of the pretrained student, and which regions it names clearly."""
        with torch.no_grad():
            reference = self.references[0].encode_unimodal(batch.student)
        return reference, self.distiller.known_regions(reference, batch.student, signal)

    def _drift(
        self,
        batch: TrainingBatch,
        signal: TeacherSignal,
        step: StepConditions,
        apart: StudentOutput,
        reference: StudentOutput,
        known: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:
        anchored_B = torch.zeros_like(batch.anchored_B) if self.hide_picture else batch.anchored_B
        return anchor_loss(apart, reference, batch.student, signal, known, anchored_B, gather=step.gather)

    def _score(self, batch: TrainingBatch, output: StudentOutput) -> TaskScores:
        head = self.heads[head_name(batch.task)]
        return score_task(self.task_loss, head, output, batch.student.num_candidates, batch.targets)

    def distillation_terms(
        self,
        batch: TrainingBatch,
        signal: TeacherSignal,
        step: StepConditions,
        *,
        fused: StudentOutput | None = None,
        apart: StudentOutput | None = None,
        known: Mapping[str, torch.Tensor] | None = None,
    ) -> tuple[Terms, torch.Tensor | None]:
        """Return the losses of the pathways and the selected words, from the states that the run distils.

        Args:
            fused: output of the ordinary pass, if it has been computed.
            apart: output of the pass with the modalities hidden from each other, if it has been computed.
            known: regions that the pretrained student names clearly, in the adapt stage.
        """
        student = batch.student
        needs_relevance, distils_apart = self.distiller.needs_relevance, self._distils_apart(signal)
        if apart is None and distils_apart:
            apart = self.student.encode_unimodal(student)
        if fused is None and (needs_relevance or not distils_apart):
            # This pass only selects words, so it needs no gradient.
            with torch.set_grad_enabled(torch.is_grad_enabled() and not distils_apart):
                fused = self.encode(student, need_relevance=needs_relevance)
        states = apart if distils_apart else fused
        assert states is not None
        # After the passes with gradients, whose layers below the fusion may be shared.
        signal = self.control.signal(signal, self.student, student)
        return self.distiller.terms(
            states,
            student,
            signal,
            batch.image_ids_B,
            relevance_NL=None if fused is None else fused.relevance_NL,
            known=known,
            generator=step.generator,
            gather=step.gather,
        )

    def _distils_apart(self, signal: TeacherSignal | None) -> bool:
        has_teachers = signal is not None and any(self.distiller.teachers.values())
        return has_teachers and self.distiller.settings.distill_layer == "unimodal"

    def encode(
        self, batch: StudentBatch, *, need_relevance: bool, perturbation: Perturbation | None = None
    ) -> StudentOutput:
        """Run the student, without the picture if the run hides it."""
        return self.student.encode(
            batch, perturbation=perturbation, mask_visual=self.hide_picture, need_relevance=need_relevance
        )
