"""One module that holds what is trained together: the student, its task heads and the projections of the method.

`forward` returns the loss terms of one batch in one of the two steps, so that data parallelism and mixed precision
wrap the whole computation.
Shapes: B examples, N sequences, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from advl_pipeline.datasets.records import head_name
from advl_pipeline.distillation.adapt_objectives import anchor_loss
from advl_pipeline.distillation.distiller import DistillationTerms, Distiller, PathwayTerm
from advl_pipeline.distillation.own_tokens import with_own_tokens
from advl_pipeline.distillation.relational import Gather, gather_alone
from advl_pipeline.distillation.signal import TeacherSignal
from advl_pipeline.distillation.weighting import pathway_weights
from advl_pipeline.students.interface import Perturbation, Student, StudentBatch, StudentOutput
from advl_pipeline.training.confidences import StudentConfidence
from advl_pipeline.training.config import TaskLoss
from advl_pipeline.training.targets import (
    TaskTargets,
    right_sequences,
    score_task,
    shape_logits,
    student_confidence,
)

Phase = Literal["adapt", "finetune"]


@dataclass(kw_only=True)
class LossTerms:
    """Scalars to be added up, raw terms for the log, and the weights and words behind them.

    `weighted` are the summands of the loss; `raw` the same terms without weight or lambda, detached. `confidence` is
    the probability of the ground truth: "student", and of the teachers by modality. Where several teachers share a
    pathway, `raw` also has each one's term, and `balance` its factor, under "pathway/teacher".
    """

    weighted: dict[str, torch.Tensor] = field(default_factory=dict)
    raw: dict[str, torch.Tensor] = field(default_factory=dict)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    confidence: dict[str, torch.Tensor] = field(default_factory=dict)
    balance: dict[str, torch.Tensor] = field(default_factory=dict)
    num_correct: torch.Tensor | None = None
    compared: torch.Tensor | None = None
    """Logits that adversarial finetuning compares with the clean pass's."""

    @property
    def total(self) -> torch.Tensor:
        return torch.stack(list(self.weighted.values())).sum()

    @property
    def has_gradient(self) -> bool:
        """Whether anything is learned: not where an adapt step of distillation alone has no target left."""
        return any(value.requires_grad for value in self.weighted.values())

    def note(self, pathway: str, term: PathwayTerm) -> None:
        """Keep what the log tells of a pathway."""
        self.raw[pathway] = term.raw_B.mean()
        if len(term.by_teacher) > 1:
            self.raw |= {f"{pathway}/{name}": value_B.mean() for name, value_B in term.by_teacher.items()}
            self.balance |= {f"{pathway}/{name}": factor for name, factor in term.balance.items()}


class FinetuneModel(nn.Module):
    """Student, heads by name, and the distiller (projections exist for methods without teachers too, unused)."""

    def __init__(
        self,
        student: Student,
        heads: Mapping[str, nn.Module],
        distiller: Distiller,
        *,
        task_loss: TaskLoss,
        hide_picture: bool = False,
        reference: Student | None = None,
        answers: Mapping[str, torch.Tensor] | None = None,
        remembered: StudentConfidence | None = None,
        teaches_itself: bool = False,
    ) -> None:
        """Args:
        task_loss: of the finetune step.
        hide_picture: the student is never shown a picture.
        reference: the student as it was pretrained, which the adapt step holds known words to.
        answers: example id -> (C,) answers of a teacher that the adapt step learns to give.
        remembered: what the student's confidence was, where weights do not follow the current one.
        teaches_itself: its own visual tokens stand in a vision teacher's place.
        """
        super().__init__()
        self.hide_picture = hide_picture
        self.student = student
        self.heads = nn.ModuleDict(dict(heads))
        self.distiller = distiller
        self.task_loss: TaskLoss = task_loss
        # In a tuple it is no part of the module: neither trained nor saved.
        self._reference = () if reference is None else (reference,)
        self.answers = answers or {}
        self.remembered = remembered
        self.teaches_itself = teaches_itself

    def forward(
        self,
        batch: StudentBatch,
        targets: TaskTargets,
        signal: TeacherSignal | None,
        *,
        task: str,
        phase: Phase,
        strength: float,
        image_ids_B: torch.Tensor,
        anchored_B: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        perturbation: Perturbation | None = None,
        example_ids: Sequence[str] = (),
        gather: Gather = gather_alone,
    ) -> LossTerms:
        """Return the loss terms of one batch.

        Args:
            targets: used in the finetune step; in the adapt step only to pick the right candidate.
            signal: of the teachers, None for methods without.
            task: of every example of the batch, up to the head that it uses.
            phase: `adapt` (no label is learned from) or `finetune`.
            strength: lambda.
            image_ids_B: int64, equal where two examples show the same picture.
            anchored_B: bool, pictures of a kind that pretraining saw; None for all.
            perturbation: of the student's inputs in the finetune step.
            example_ids: of the batch, where the student's confidences or a teacher's answers are remembered.
            gather: of the processes that share the batch.
        """
        with self.student.sharing() if perturbation is None else nullcontext():
            if phase == "adapt":
                terms = self._adapt(batch, targets, signal, image_ids_B, anchored_B, generator, gather)
                if self.answers:
                    shares = [self.answers[name] for name in example_ids]
                    self._answer(terms, batch, targets, task, shares, terms.weights.get("text"))
                return terms
            return self._finetune(
                batch, targets, signal, image_ids_B, task, strength, generator, perturbation, example_ids, gather
            )

    def logits(self, batch: StudentBatch, task: str, *, is_choice: bool) -> torch.Tensor:
        """Return (B, C) candidate scores or (B, K) class scores: what inference computes."""
        scores = self.student.class_logits(self.heads[head_name(task)], batch)
        return shape_logits(scores, batch.num_candidates, is_choice)

    def _adapt(
        self,
        batch: StudentBatch,
        targets: TaskTargets,
        signal: TeacherSignal | None,
        image_ids_B: torch.Tensor,
        anchored_B: torch.Tensor | None,
        generator: torch.Generator | None,
        gather: Gather,
    ) -> LossTerms:
        terms = LossTerms()
        contrasts = self.distiller.settings.adapt_objective == "contrastive"
        needs_apart = contrasts or self._reference or self._distils_apart(signal)
        apart = self.student.encode_unimodal(batch) if needs_apart else None
        if contrasts:
            assert apart is not None
            right_B = right_sequences(targets, batch.first_B)
            contrast = self.distiller.contrast(
                apart, batch, right_B, image_ids_B, known_B=targets.known_B, gather=gather
            )
            terms.weighted["contrast"] = contrast
            terms.raw["contrast"] = contrast.detach()
        reference = known = None
        if self._reference:
            assert signal is not None
            with torch.no_grad():
                reference = self._reference[0].encode_unimodal(batch)
            known = self.distiller.known_regions(reference, batch, signal)
        if signal is not None:
            for name, term in self.distilled(
                batch, targets, signal, image_ids_B, None, apart, generator, gather, known=known
            ).items():
                value_B = term.value_B
                if self.distiller.settings.weighting == "oracle":
                    weights_B = pathway_weights(
                        self.distiller.settings, signal, name, torch.ones_like(value_B), generator=generator
                    )
                    terms.weights[name], value_B = weights_B, weights_B * value_B
                terms.weighted[name] = value_B.mean()
                terms.note(name, term)
        if reference is not None:
            assert apart is not None
            assert signal is not None
            assert known is not None
            if self.hide_picture:
                anchored_B = torch.zeros_like(image_ids_B, dtype=torch.bool)
            drift = anchor_loss(apart, reference, batch, signal, known, anchored_B, gather=gather)
            terms.weighted["drift"] = self.distiller.settings.anchor_weight * drift
            terms.raw["drift"] = drift.detach()
        return terms

    def _answer(
        self,
        terms: LossTerms,
        batch: StudentBatch,
        targets: TaskTargets,
        task: str,
        answers: Sequence[torch.Tensor],
        weights_B: torch.Tensor | None,
    ) -> None:
        """Add how far the student's answers are from a teacher's: cross-entropy, of each example's candidates.

        docs/method.md: L = -sum_c b_c log softmax_c(s_c), with b_c the bridge's shares and s_c what the student
        compares candidates by: a head's logits or, of answers in words, their likelihood per token.
        """
        output = self.encode(batch, need_relevance=False)
        scored = score_task(self.task_loss, self.heads[head_name(task)], output, batch.num_candidates, targets)
        share_BC = pad_sequence(list(answers), batch_first=True)
        log_share_BC = scored.logits.log_softmax(1).masked_fill(share_BC == 0, 0.0)
        loss_B = -(share_BC * log_share_BC).sum(1)
        loss = (loss_B if weights_B is None else weights_B * loss_B).mean()
        terms.weighted["answers"] = self.distiller.settings.answer_weight * loss
        terms.raw["answers"] = loss.detach()

    def _finetune(
        self,
        batch: StudentBatch,
        targets: TaskTargets,
        signal: TeacherSignal | None,
        image_ids_B: torch.Tensor,
        task: str,
        strength: float,
        generator: torch.Generator | None,
        perturbation: Perturbation | None,
        example_ids: Sequence[str],
        gather: Gather,
    ) -> LossTerms:
        distils = signal is not None and strength != 0.0 and any(self.distiller.teachers.values())
        if distils and (self.distiller.needs_relevance or not self._distils_apart(signal)):
            need_relevance = self.distiller.needs_relevance
            output = self.encode(batch, perturbation=perturbation, need_relevance=need_relevance)
        else:
            output = self.student.encode_pooled(batch, perturbation=perturbation, mask_visual=self.hide_picture)
        head = self.heads[head_name(task)]
        scored = score_task(self.task_loss, head, output, batch.num_candidates, targets)
        logits, loss = scored.logits, scored.loss
        terms = LossTerms(weighted={"task": loss}, raw={"task": loss.detach()}, compared=scored.compared)
        if targets.label_B is not None:
            terms.num_correct = (logits.detach().argmax(1) == targets.label_B).sum()
        if signal is None or not distils:
            return terms
        confidence_B = student_confidence(self.task_loss, logits, targets)
        if self.remembered is not None:
            confidence_B = self.remembered.look_up(example_ids)
        terms.confidence = {"student": confidence_B, **signal.confidence}
        distilled = self.distilled(batch, targets, signal, image_ids_B, output, None, generator, gather)
        for name, term in distilled.items():
            weights_B = pathway_weights(self.distiller.settings, signal, name, confidence_B, generator=generator)
            terms.weighted[name] = strength * (weights_B * term.value_B).mean()
            terms.note(name, term)
            terms.weights[name] = weights_B
        return terms

    def distilled(
        self,
        batch: StudentBatch,
        targets: TaskTargets,
        signal: TeacherSignal,
        image_ids_B: torch.Tensor,
        fused: StudentOutput | None,
        apart: StudentOutput | None,
        generator: torch.Generator | None,
        gather: Gather,
        *,
        known: Mapping[str, torch.Tensor] | None = None,
    ) -> Mapping[str, PathwayTerm]:
        """Return the pathways' terms.

        Args:
            image_ids_B: int64, equal where two examples show the same picture.
            fused: the ordinary pass, where there is one already.
            apart: the pass in which neither modality has seen the other, where there is one already.
            known: which regions the student as it was pretrained names clearly, in the adapt step.
        """
        right_B = right_sequences(targets, batch.first_B)
        is_right_N = self._right_mask(batch, right_B, targets)
        return self.distillation_terms(
            batch,
            signal,
            is_right_N,
            image_ids_B,
            fused=fused,
            apart=apart,
            known=known,
            generator=generator,
            gather=gather,
        ).pathways

    def distillation_terms(
        self,
        batch: StudentBatch,
        signal: TeacherSignal,
        is_right_N: torch.Tensor,
        image_ids_B: torch.Tensor,
        *,
        fused: StudentOutput | None = None,
        apart: StudentOutput | None = None,
        known: Mapping[str, torch.Tensor] | None = None,
        generator: torch.Generator | None = None,
        gather: Gather = gather_alone,
    ) -> DistillationTerms:
        """Return terms and selected words from the states that the run distils; see `distilled`."""
        needs_relevance = self.distiller.needs_relevance
        if apart is None and self._distils_apart(signal):
            apart = self.student.encode_unimodal(batch)
        if fused is None and (needs_relevance or not self._distils_apart(signal)):
            # Nothing is learned from a pass that only tells which words matter.
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self._distils_apart(signal)):
                fused = self.encode(batch, need_relevance=needs_relevance)
        states = apart if self._distils_apart(signal) else fused
        assert states is not None
        if self.teaches_itself:
            # After the passes that take gradients, whose layers below the fusion may be shared.
            with torch.no_grad():
                signal = with_own_tokens(signal, self.student.visual_tokens(batch), batch)
        return self.distiller.terms(
            states,
            batch,
            signal,
            is_right_N,
            image_ids_B,
            relevance_NL=None if fused is None else fused.relevance_NL,
            known=known,
            generator=generator,
            gather=gather,
        )

    def _distils_apart(self, signal: TeacherSignal | None) -> bool:
        has_teachers = signal is not None and any(self.distiller.teachers.values())
        return has_teachers and self.distiller.settings.distill_layer == "unimodal"

    def encode(
        self, batch: StudentBatch, *, need_relevance: bool, perturbation: Perturbation | None = None
    ) -> StudentOutput:
        """Run the student, without its picture where the run hides it."""
        return self.student.encode(
            batch, perturbation=perturbation, mask_visual=self.hide_picture, need_relevance=need_relevance
        )

    @staticmethod
    def _right_mask(batch: StudentBatch, right_B: torch.Tensor, targets: TaskTargets) -> torch.Tensor:
        if not targets.is_choice:
            return torch.ones(batch.num_sequences, dtype=torch.bool, device=right_B.device)
        example_N = batch.example_N
        is_right_N = right_B[example_N] == torch.arange(batch.num_sequences, device=right_B.device)
        # Which candidate of an unlabelled input is right is not known, so all of them count.
        return is_right_N if targets.known_B is None else is_right_N | ~targets.known_B[example_N]
