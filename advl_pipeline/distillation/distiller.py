"""The trainable side of the distillation: projections per teacher, and the loss terms of a batch.

A `Distiller` lives only in training. Nothing of it is saved with the student, so inference costs exactly what the
student costs.
Shapes: B examples, N sequences, L tokens, R visual tokens, S boxes, W words, H width, E common space.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from advl_pipeline.distillation.balance import (
    STRETCH,
    bounded_log_variance,
    check_balance,
    uncertain_teachers,
    weighted_teachers,
)
from advl_pipeline.distillation.contrastive import image_text_contrast
from advl_pipeline.distillation.pathways import (
    TextProjections,
    VisionProjections,
    text_loss,
    vision_loss,
)
from advl_pipeline.distillation.pooling import pool_to_words
from advl_pipeline.distillation.selection import select_words
from advl_pipeline.distillation.settings import DistillationSettings
from advl_pipeline.distillation.signal import TeacherSignal, VisionSignal
from advl_pipeline.distillation.weighting import instance_weights, normalise_to_batch_mean
from advl_pipeline.students.interface import StudentBatch, StudentOutput

INITIAL_TEMPERATURE = 0.07
"""Start of the learned temperature of the contrastive objective, as in CLIP."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherWidths:
    """Feature widths of one teacher, by modality; None where it has no such features."""

    image_global: int | None = None
    image_region: int | None = None
    text_global: int | None = None
    text_token: int | None = None


@dataclass(frozen=True, kw_only=True)
class PathwayTerm:
    """The loss of one pathway: means over candidates, without weight of the instance or lambda.

    `value_B` is balanced over the teachers and may be negative where the balance is learned. `raw_B` is their plain
    mean, detached; `by_teacher` holds each teacher's (B,) and `balance` its factor (scalar), detached.
    """

    value_B: torch.Tensor
    raw_B: torch.Tensor
    by_teacher: Mapping[str, torch.Tensor]
    balance: Mapping[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class DistillationTerms:
    """Loss terms by pathway, `vision` and `text`, of those that have a teacher, and the words that were distilled.

    `selected_NW` is bool.
    """

    pathways: Mapping[str, PathwayTerm]
    selected_NW: torch.Tensor | None


class Distiller(nn.Module):
    """Projections from the student's width to every teacher's, and to the common space of the adapt step."""

    def __init__(
        self,
        settings: DistillationSettings,
        teachers: Mapping[str, TeacherWidths],
        *,
        hidden_size: int,
        pooled_size: int,
        contrast_size: int = 128,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.vision = nn.ModuleDict()
        self.text = nn.ModuleDict()
        for name, widths in teachers.items():
            key = module_key(name)
            if widths.image_global and settings.pathway in ("both", "vision"):
                self.vision[key] = VisionProjections(hidden_size, widths.image_global, widths.image_region)
            if widths.text_global and settings.pathway in ("both", "text"):
                self.text[key] = TextProjections(pooled_size, hidden_size, widths.text_global, widths.text_token)
        self.free_log_variance = nn.ParameterDict()
        if teachers:
            sharing = {
                "vision": [name for name, widths in teachers.items() if widths.image_global],
                "text": [name for name, widths in teachers.items() if widths.text_global],
            }
            check_balance(settings.teacher_balance, settings.teacher_weights, sharing, pathway=settings.pathway)
        for pathway, projections in (("vision", self.vision), ("text", self.text)):
            if settings.teacher_balance == "learned" and len(projections) > 1:
                for key in projections:
                    free = nn.Parameter(torch.zeros(()))
                    # Its stretched gradient would take over the norm that all gradients are clipped by.
                    free.register_hook(lambda gradient: gradient / STRETCH)  # type: ignore[no-untyped-call]
                    self.free_log_variance[f"{pathway}/{key}"] = free
        self.contrast_image = nn.Linear(hidden_size, contrast_size)
        self.contrast_text = nn.Linear(pooled_size, contrast_size)
        self.log_temperature = nn.Parameter(torch.tensor(INITIAL_TEMPERATURE).log())

    @property
    def needs_relevance(self) -> bool:
        """Whether the student must report its attention to the picture."""
        return bool(self.text) and self.settings.selection in ("adaptive", "visual")

    def terms(
        self,
        output: StudentOutput,
        batch: StudentBatch,
        signal: TeacherSignal,
        right_N: torch.Tensor,
        *,
        text_only: StudentOutput | None = None,
        generator: torch.Generator | None = None,
    ) -> DistillationTerms:
        """Compute the pathway losses of a batch.

        Args:
            output: of the student's ordinary pass.
            text_only: of a pass that hides the picture, whose states the language pathway then distils.
            batch: what it was computed from.
            signal: the teachers on the same examples.
            right_N: bool, the sequence of each example's right candidate, for `candidates = right`; a row of an
                example without one must be all True.
            generator: of random word selection.
        """
        example_N = example_of_sequence(batch.num_candidates, output.pooled_NP.device)
        counted_N = right_N if self.settings.candidates == "right" else torch.ones_like(right_N)
        num_examples = len(batch.num_candidates)
        vision_N = self._vision(output, batch, signal, example_N)
        text_N, selected_NW = self._text(output if text_only is None else text_only, output, signal, generator)
        return DistillationTerms(
            pathways={
                pathway: self._balanced(
                    pathway,
                    {
                        name: _mean_by_example(value_N, example_N, num_examples, counted_N)
                        for name, value_N in losses_N.items()
                    },
                )
                for pathway, losses_N in (("vision", vision_N), ("text", text_N))
                if losses_N
            },
            selected_NW=selected_NW,
        )

    def weights(
        self,
        signal: TeacherSignal,
        modality: str,
        student_B: torch.Tensor,
        *,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Return (B,) instance weights of a pathway from the teacher's and the student's confidence.

        A joint confidence serves both pathways; without any confidence the weights are uniform. None exceeds
        `weight_max`, normalised or not.
        """
        teacher_B = signal.confidence.get(modality, signal.confidence.get("joint"))
        weights_B = instance_weights(
            "uniform" if teacher_B is None else self.settings.weighting,
            teacher_B=student_B if teacher_B is None else teacher_B,
            student_B=student_B,
            weight_max=self.settings.weight_max,
        )
        if self.settings.weight_shuffle:
            weights_B = weights_B[torch.randperm(len(weights_B), generator=generator).to(weights_B.device)]
        if self.settings.weight_normalise == "batch-mean":
            weights_B = normalise_to_batch_mean(weights_B, weight_max=self.settings.weight_max)
        return weights_B

    def contrast(
        self,
        separate: StudentOutput,
        batch: StudentBatch,
        right_B: torch.Tensor,
        image_ids: torch.Tensor,
        *,
        known_B: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the contrastive term from a pass with the modalities hidden from one another.

        Args:
            separate: output of `encode(..., mask_visual=True)`.
            batch: what it was computed from.
            right_B: int64, the sequence of each example's right candidate.
            image_ids: int64 (B,), equal where two examples show the same picture.
            known_B: bool, whether the right candidate is known; None for all. An input without a label is pulled to
                the candidate given in `right_B`, whichever it is, and its others are no negatives of it.
        """
        example_N = example_of_sequence(batch.num_candidates, right_B.device)
        image_NH = image_state(separate, batch)
        other_BN = example_N[None, :] != torch.arange(len(right_B), device=right_B.device)[:, None]
        same_BN = image_ids[:, None] == image_ids[example_N][None, :]
        no_negative_BN = same_BN & other_BN
        if known_B is not None:
            chosen_BN = right_B[:, None] == torch.arange(len(example_N), device=right_B.device)[None, :]
            no_negative_BN = no_negative_BN | (~known_B[:, None] & ~other_BN & ~chosen_BN)
        return image_text_contrast(
            self.contrast_image(image_NH[right_B]),
            self.contrast_text(separate.pooled_NP),
            right_B,
            same_image_BN=no_negative_BN,
            temperature=self.log_temperature.exp().clamp(min=0.01),
        )

    def _vision(
        self, output: StudentOutput, batch: StudentBatch, signal: TeacherSignal, example_N: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        losses = {}
        for name, one in signal.vision.items():
            key = module_key(name)
            if key not in self.vision:
                continue
            regions = seen = None
            expanded = _expand_vision(one, example_N)
            if expanded.regions_BSD is not None:
                regions, seen = pool_to_words(
                    output.visual_states_NRH, batch.box_index_NR, expanded.regions_BSD.shape[1]
                )
            projections = self.vision[key]
            assert isinstance(projections, VisionProjections)
            losses[name] = vision_loss(
                projections,
                expanded,
                image_BH=image_state(output, batch),
                regions_BSH=regions,
                region_seen_BS=seen,
                target=self.settings.vision_target,
                kind=self.settings.distance,
            )
        return losses

    def _text(
        self,
        distilled: StudentOutput,
        output: StudentOutput,
        signal: TeacherSignal,
        generator: torch.Generator | None,
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
        if not self.text or not signal.text:
            return {}, None
        assert signal.words is not None
        num_words = signal.words.prior_NW.shape[1]
        words_NWH, seen_NW = pool_to_words(distilled.text_states_NLH, signal.words.word_of_token_NL, num_words)
        relevance_NW = self._relevance(output, signal, num_words)
        losses = {}
        selected_NW = None
        for name, one in signal.text.items():
            key = module_key(name)
            if key not in self.text:
                continue
            mask_NW = signal.words.word_mask_NW & seen_NW
            if one.word_mask_NW is not None:
                mask_NW = mask_NW & one.word_mask_NW
            selected_NW = select_words(
                self.settings.selection,
                mask_NW=mask_NW,
                prior_NW=signal.words.prior_NW,
                relevance_NW=relevance_NW,
                alpha=self.settings.selection_alpha,
                rho=self.settings.selection_rho,
                generator=generator,
                counted_NW=signal.words.word_mask_NW & seen_NW if one.is_selected else None,
            )
            projections = self.text[key]
            assert isinstance(projections, TextProjections)
            losses[name] = text_loss(
                projections,
                one,
                pooled_NP=distilled.pooled_NP,
                words_NWH=words_NWH,
                selected_NW=selected_NW,
                kind=self.settings.distance,
            )
        return losses, selected_NW

    def _balanced(self, pathway: str, losses_B: dict[str, torch.Tensor]) -> PathwayTerm:
        losses_KB = torch.stack(list(losses_B.values()))
        if self.settings.teacher_balance == "learned" and len(losses_B) > 1:
            free_K = torch.stack([self.free_log_variance[f"{pathway}/{module_key(name)}"] for name in losses_B])
            log_variance_K = bounded_log_variance(free_K)
            factor_K = torch.exp(-log_variance_K)
            value_B = uncertain_teachers(losses_KB, log_variance_K)
        else:
            given = self.settings.teacher_weights
            factor_K = losses_KB.new_tensor([given.get(name, 1.0) for name in losses_B])
            value_B = weighted_teachers(losses_KB, factor_K)
        return PathwayTerm(
            value_B=value_B,
            raw_B=losses_KB.detach().mean(0),
            by_teacher={name: value.detach() for name, value in losses_B.items()},
            balance=dict(zip(losses_B, factor_K.detach(), strict=True)),
        )

    def _relevance(self, output: StudentOutput, signal: TeacherSignal, num_words: int) -> torch.Tensor | None:
        for one in signal.text.values():
            if one.relevance_NW is not None:
                return one.relevance_NW
        if output.relevance_NL is None:
            return None
        assert signal.words is not None
        pooled, _ = pool_to_words(output.relevance_NL[..., None], signal.words.word_of_token_NL, num_words)
        return pooled[..., 0]


def module_key(teacher: str) -> str:
    """Return a teacher's name as a key that a module dictionary takes (it takes no dots)."""
    return teacher.replace(".", "_")


def image_state(output: StudentOutput, batch: StudentBatch) -> torch.Tensor:
    """Return (N, H): the student's whole-picture token when it has one, else the mean of its visual states."""
    if output.image_state_NH is not None:
        return output.image_state_NH
    mask = batch.visual_mask_NR[..., None].to(output.visual_states_NRH.dtype)
    return (output.visual_states_NRH * mask).sum(1) / mask.sum(1).clamp(min=1)


def example_of_sequence(num_candidates: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Return (N,) int64: the example that each sequence belongs to."""
    counts = torch.tensor(num_candidates, device=device)
    return torch.repeat_interleave(torch.arange(len(num_candidates), device=device), counts)


def _expand_vision(signal: VisionSignal, example_N: torch.Tensor) -> VisionSignal:
    return VisionSignal(
        global_BD=signal.global_BD[example_N],
        regions_BSD=None if signal.regions_BSD is None else signal.regions_BSD[example_N],
        region_mask_BS=None if signal.region_mask_BS is None else signal.region_mask_BS[example_N],
    )


def _mean_by_example(
    values_N: torch.Tensor, example_N: torch.Tensor, num_examples: int, counted_N: torch.Tensor
) -> torch.Tensor:
    counted = counted_N.to(values_N.dtype)
    sums = values_N.new_zeros(num_examples).index_add(0, example_N, values_N * counted)
    return sums / values_N.new_zeros(num_examples).index_add(0, example_N, counted).clamp(min=1)
