"""The trainable part of the distillation: projections per teacher, and the loss terms of a batch.

A `Distiller` exists only during training. It is not saved with the student, so inference costs the same as without
it.

Shapes: B examples, N sequences, L tokens, R visual tokens, S boxes, W words, X vectors of a sequence, H student
width, D teacher width, E common space.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from advl_pipeline.base.errors import ConfigError
from advl_pipeline.distillation.adapt_objectives import image_text_contrast
from advl_pipeline.distillation.pooling import (
    image_state,
    masked_mean,
    mean_by_example,
    pool_to_regions,
    pool_to_words,
)
from advl_pipeline.distillation.projected import Projections, projected_text, projected_vision
from advl_pipeline.distillation.relational import (
    Gather,
    Landmarks,
    RegionLandmarks,
    Relations,
    gather_alone,
    unplaced_words,
)
from advl_pipeline.distillation.settings import DistillationSettings, VisionTarget
from advl_pipeline.distillation.signal import (
    Nodes,
    TeacherSignal,
    Widths,
    teachers_by_pathway,
)
from advl_pipeline.distillation.weighting import select_words
from advl_pipeline.students.interface import StudentBatch, StudentOutput

CONTRAST_SIZE = 128
"""Width E of the common space."""

INITIAL_TEMPERATURE = 0.07
"""Initial value of the learned temperature of the contrastive objective, as in CLIP."""


Terms = dict[str, dict[str, torch.Tensor]]
"""Pathway, `vision` or `text`, if it has a teacher -> teacher -> (B,) loss, the mean over the candidates."""


class Distiller(nn.Module):
    """The pathways of every teacher: projections from the student's width for coordinate distillation, and to the
    common space of the adapt stage.

    `teachers` lists the teachers of each pathway.
    """

    def __init__(
        self,
        settings: DistillationSettings,
        teachers: Mapping[str, Widths],
        *,
        hidden_size: int,
        pooled_size: int,
        vision_targets: Mapping[str, VisionTarget] | None = None,
        landmarks: Mapping[str, Landmarks] | None = None,
        region_landmarks: Mapping[str, RegionLandmarks] | None = None,
    ) -> None:
        """Args:
        teachers: the feature widths of each teacher.
        hidden_size, pooled_size: widths of the student.
        vision_targets: what is distilled from each vision teacher [default: regions if it has them, else the
            picture].
        landmarks: of each text teacher whose similarities to known words are distilled; for other teachers the
            similarities are among the batch.
        region_landmarks: likewise for each vision teacher, for regions that the student names.

        Raises:
            ConfigError: a teacher has no features of words, which their relations require.
        """
        super().__init__()
        self.settings = settings
        self.vision_targets = dict(vision_targets or {})
        self.teachers = teachers_by_pathway(settings, teachers)
        for name in self.teachers["text"]:
            if settings.distance == "relational" and "word" not in teachers[name]:
                raise ConfigError(
                    "The distance compares words, and this teacher's cache has no features of words.",
                    where=name,
                    why="it was made with global features alone",
                    next_command="--distance mse, or extract with token features",
                )
        self.vision = nn.ModuleDict()
        self.text = nn.ModuleDict()
        if settings.distance != "relational":
            for name in self.teachers["vision"]:
                image, region = (teachers[name].get(kind) for kind in ("image", "region"))
                self.vision[module_key(name)] = Projections(
                    settings.projector, image=(hidden_size, image), region=(hidden_size, region)
                )
            for name in self.teachers["text"]:
                summary, word = (teachers[name].get(kind) for kind in ("summary", "word"))
                self.text[module_key(name)] = Projections(summary=(pooled_size, summary), word=(hidden_size, word))
        self.landmarks, self.region_landmarks = landmarks or {}, region_landmarks or {}
        if settings.adapt_objective == "contrastive":
            self.contrast_image = nn.Linear(hidden_size, CONTRAST_SIZE)
            self.contrast_text = nn.Linear(pooled_size, CONTRAST_SIZE)
            self.log_temperature = nn.Parameter(torch.tensor(INITIAL_TEMPERATURE).log())

    @property
    def needs_relevance(self) -> bool:
        """Whether the student must report its attention to the picture."""
        return bool(self.teachers["text"]) and self.settings.selection == "adaptive"

    def terms(
        self,
        distilled: StudentOutput,
        batch: StudentBatch,
        signal: TeacherSignal,
        image_ids_B: torch.Tensor,
        *,
        relevance_NL: torch.Tensor | None = None,
        known: Mapping[str, torch.Tensor] | None = None,
        generator: torch.Generator | None = None,
        gather: Gather = gather_alone,
    ) -> tuple[Terms, torch.Tensor | None]:
        """Return the losses of a batch, without instance weights or lambda, and the distilled words.

        Args:
            distilled: the student's states that are compared with the teachers'.
            image_ids_B: int64, equal where two examples show the same picture.
            relevance_NL: the student's attention from each token to the picture.
            known: which regions are known, by teacher [default: `known_regions` of `distilled`].
            generator: draws words and regions.
            gather: collects tensors from the processes that share the batch.

        Returns:
            The losses, and (N, W) bool; None where no words are distilled.
        """
        if known is None:
            known = self.known_regions(distilled, batch, signal)
        relations = Relations(gather=gather, generator=generator)
        vision_N = self._follow_pictures(distilled, known, batch, signal, image_ids_B, relations)
        text_N, selected_NW = self._follow_text(distilled, signal, relevance_NL, relations)
        terms = {
            pathway: {
                name: mean_by_example(value_N, batch.example_N, len(batch.num_candidates))
                for name, value_N in losses_N.items()
            }
            for pathway, losses_N in (("vision", vision_N), ("text", text_N))
            if losses_N
        }
        return terms, selected_NW

    def contrast(
        self,
        separate: StudentOutput,
        batch: StudentBatch,
        right_B: torch.Tensor,
        image_ids_B: torch.Tensor,
        *,
        known_B: torch.Tensor | None = None,
        gather: Gather = gather_alone,
    ) -> torch.Tensor:
        """Return the contrastive term from a pass with the modalities hidden from each other.

        Args:
            separate: output of `encode(..., mask_visual=True)`.
            right_B: int64, the sequence of each example's correct candidate.
            image_ids_B: int64, equal where two examples show the same picture.
            known_B: bool, whether the correct candidate is known; None for all. For an input without a label, all
                candidates belong to its picture, as a group. With a label, only the correct candidate does; its
                rivals are left out, because a statement about another object in the picture may also be true.
        """
        own_image_BE = self.contrast_image(image_state(separate, batch).index_select(0, right_B))
        counts_B = torch.zeros_like(batch.first_B).index_add(0, batch.example_N, torch.ones_like(batch.example_N))
        is_known_B = torch.ones_like(right_B, dtype=torch.bool) if known_B is None else known_B
        counts_B, places_B, image_ids_B, is_known_B, image_BE = gather(
            counts_B, right_B - batch.first_B, image_ids_B, is_known_B, own_image_BE
        )
        (text_NE,) = gather(self.contrast_text(separate.pooled_NP))
        right_B = counts_B.cumsum(0) - counts_B + places_B
        place_B = torch.arange(len(counts_B), device=right_B.device)
        example_N = place_B.repeat_interleave(counts_B, output_size=len(text_NE))
        pulled_BN = torch.arange(len(example_N), device=right_B.device)[None, :] == right_B[:, None]
        if known_B is not None:
            is_own_BN = example_N[None, :] == place_B[:, None]
            pulled_BN = torch.where(is_known_B[:, None], pulled_BN, is_own_BN)
        same_picture_BN = image_ids_B[:, None] == image_ids_B[example_N][None, :]
        return image_text_contrast(
            image_BE,
            text_NE,
            pulled_BN,
            left_out_BN=same_picture_BN & ~pulled_BN,
            temperature=self.log_temperature.exp().clamp(min=0.01),
        )

    def known_regions(
        self, states: StudentOutput, batch: StudentBatch, signal: TeacherSignal
    ) -> dict[str, torch.Tensor]:
        """Return (B, S) bool for each teacher with landmarks: which regions the student names clearly.

        For a teacher without landmarks all regions are distilled.
        """
        states_BRH = states.visual_states_NRH.detach().index_select(0, batch.first_B)
        return {
            name: landmarks.known(pool_to_regions(states_BRH, signal.vision[name].shares_BSR))
            for name, landmarks in self.region_landmarks.items()
            if name in signal.vision
        }

    def _follow_pictures(
        self,
        distilled: StudentOutput,
        known: Mapping[str, torch.Tensor],
        batch: StudentBatch,
        signal: TeacherSignal,
        image_ids_B: torch.Tensor,
        relations: Relations,
    ) -> dict[str, torch.Tensor]:
        """Return (N,), the loss of each vision teacher."""
        losses, distance = {}, self.settings.distance
        for name in self.teachers["vision"]:
            if (part := signal.vision.get(name)) is None:
                continue
            target = self.vision_targets.get(name, "image" if part.regions_BSD is None else "regions")
            if distance == "relational":
                landmarks, known_BS = self.region_landmarks.get(name), known.get(name)
                loss_B = relations.of_pictures(
                    target, distilled, batch, part, image_ids_B, landmarks=landmarks, known_BS=known_BS
                )
                losses[name] = loss_B.index_select(0, batch.example_N)
            else:
                projections = self.vision[module_key(name)]
                assert isinstance(projections, Projections)
                by_sequence = part.of_sequences(batch.example_N)
                losses[name] = projected_vision(projections, distilled, batch, by_sequence, target, distance)
        return losses

    def _follow_text(
        self,
        distilled: StudentOutput,
        signal: TeacherSignal,
        relevance_NL: torch.Tensor | None,
        relations: Relations,
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
        """Return (N,), the loss of each text teacher, and the distilled words."""
        if not self.teachers["text"] or not signal.text:
            return {}, None
        words = signal.words
        assert words is not None
        num_words = words.prior_NW.shape[1]
        words_NWH = pool_to_words(distilled.text_states_NLH, words.word_of_token_NL, num_words)
        # Visual relevance of a word: from an aligned pair of towers, else from the student's attention.
        relevance_NW = next(
            (part.relevance_NW for part in signal.text.values() if part.relevance_NW is not None), None
        )
        if relevance_NW is None and relevance_NL is not None:
            relevance_NW = pool_to_words(relevance_NL[..., None], words.word_of_token_NL, num_words)[..., 0]
        losses = {}
        selected_NW = None
        for name, part in signal.text.items():
            if name not in self.teachers["text"]:
                continue
            mask_NW = words.shared_with(part)
            landmarks = self.landmarks.get(name)
            if self.settings.distance == "relational":
                # Function words have no distinctive similarities.
                mask_NW = mask_NW & (words.prior_NW > 0)
                if landmarks is None:
                    nodes = part.meant or Nodes.of_mask(mask_NW)
                    relations.require_partners(nodes, words, name, part.num_forms)
                else:
                    mask_NW = unplaced_words(mask_NW, words)
                    nodes = part.unplaced or Nodes.of_mask(mask_NW)
            elif part.words_NWD is None:
                mask_NW = torch.zeros_like(mask_NW)
            selected_NW = select_words(
                self.settings.selection,
                mask_NW=mask_NW,
                prior_NW=words.prior_NW,
                relevance_NW=relevance_NW,
                generator=relations.generator,
            )
            if self.settings.distance == "relational":
                each_NW, each_N = relations.of_words(words_NWH, part, mask_NW, nodes, words, landmarks)
                losses[name] = masked_mean(each_NW, selected_NW) + each_N
            else:
                projections = self.text[module_key(name)]
                assert isinstance(projections, Projections)
                losses[name] = projected_text(
                    projections, distilled.pooled_NP, words_NWH, part, selected_NW, self.settings.distance
                )
        return losses, selected_NW


def module_key(teacher: str) -> str:
    """Return a teacher's name as a key for a module dictionary, which allows no dots."""
    return teacher.replace(".", "_")
