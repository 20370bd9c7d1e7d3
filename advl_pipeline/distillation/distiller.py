"""The trainable side of the distillation: projections per teacher, and the loss terms of a batch.

A `Distiller` lives only in training. Nothing of it is saved with the student, so inference costs exactly what the
student costs.
Shapes: B examples, N sequences, L tokens, R visual tokens, S boxes, W words, H width, E common space.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from advl_pipeline.distillation.balance import (
    STRETCH,
    bounded_log_variance,
    check_balance,
    uncertain_teachers,
    weighted_teachers,
)
from advl_pipeline.distillation.contrastive import batch_contrast
from advl_pipeline.distillation.landmarks import (
    Landmarks,
    RegionLandmarks,
    placed_nodes,
    placed_texts,
    unplaced_words,
)
from advl_pipeline.distillation.pathways import (
    Pair,
    TeacherWidths,
    TextProjections,
    VisionProjections,
    VisionTarget,
    pairs_loss,
    text_pairs,
    vision_pairs,
)
from advl_pipeline.distillation.pooling import (
    example_of_sequence,
    first_sequences,
    image_state,
    masked_mean,
    mean_by_example,
    pool_to_regions,
    pool_to_words,
)
from advl_pipeline.distillation.relational import (
    ALONE,
    Everywhere,
    divergences,
    related_texts,
    related_vision,
    require_relations,
)
from advl_pipeline.distillation.selection import select_words
from advl_pipeline.distillation.settings import DistillationSettings
from advl_pipeline.distillation.signal import TeacherSignal, TextSignal, WordAlignment, shared_words
from advl_pipeline.distillation.terms import DistillationTerms, PathwayTerm, Target, check_targets
from advl_pipeline.students.interface import StudentBatch, StudentOutput

INITIAL_TEMPERATURE = 0.07
"""Start of the learned temperature of the contrastive objective, as in CLIP."""

_UNUSED_KIND: Mapping[VisionTarget, str] = {"image": "region", "regions": "image"}
"""Kind of a vision teacher's features that is projected and not distilled."""


class Distiller(nn.Module):
    """The pathways of every teacher: projections from the student's width where coordinates are distilled, and to the
    common space of the adapt step.

    `teachers` names those of each pathway.
    """

    def __init__(
        self,
        settings: DistillationSettings,
        teachers: Mapping[str, TeacherWidths],
        *,
        hidden_size: int,
        pooled_size: int,
        vision_targets: Mapping[str, VisionTarget] | None = None,
        contrast_size: int = 128,
    ) -> None:
        """Args:
        teachers: the widths of each teacher's features.
        hidden_size, pooled_size: of the student.
        vision_targets: what is distilled of each vision teacher [default: regions where it has them, else the
            picture].
        contrast_size: width of the common space.
        """
        super().__init__()
        self.settings = settings
        self.vision_targets = dict(vision_targets or {})
        self.everywhere: Everywhere = ALONE
        """Where the rest of a batch is that several processes share; set for as long as they do."""
        self.teachers: dict[str, list[str]] = {
            "vision": [name for name, widths in teachers.items() if widths.image_global],
            "text": [name for name, widths in teachers.items() if widths.text_global],
        }
        if teachers:
            check_balance(settings.teacher_balance, settings.teacher_weights, self.teachers, pathway=settings.pathway)
        for pathway in ("vision", "text"):
            if settings.pathway not in ("both", pathway):
                self.teachers[pathway] = []
        check_targets(settings, self.teachers, teachers)
        self.vision = nn.ModuleDict()
        self.text = nn.ModuleDict()
        if settings.distance != "relational":
            for name in self.teachers["vision"]:
                self.vision[module_key(name)] = VisionProjections(hidden_size, teachers[name])
            for name in self.teachers["text"]:
                self.text[module_key(name)] = TextProjections(pooled_size, hidden_size, teachers[name])
        self.free_log_variance = nn.ParameterDict()
        for pathway, names in self.teachers.items():
            if settings.teacher_balance == "learned" and len(names) > 1:
                for name in names:
                    free = nn.Parameter(torch.zeros(()))
                    # Its stretched gradient would take over the norm that all gradients are clipped by.
                    free.register_hook(lambda gradient: gradient / STRETCH)  # type: ignore[no-untyped-call]
                    self.free_log_variance[f"{pathway}/{module_key(name)}"] = free
        self.landmarks: dict[str, Landmarks] = {}
        """Of each text teacher whose likenesses to known words are followed; the others' are among the batch."""
        self.region_landmarks: dict[str, RegionLandmarks] = {}
        """Likewise of each vision teacher, of regions that the student names."""
        self.contrast_image = nn.Linear(hidden_size, contrast_size)
        self.contrast_text = nn.Linear(pooled_size, contrast_size)
        self.log_temperature = nn.Parameter(torch.tensor(INITIAL_TEMPERATURE).log())

    @property
    def needs_relevance(self) -> bool:
        """Whether the student must report its attention to the picture."""
        return bool(self.teachers["text"]) and self.settings.selection in ("adaptive", "visual")

    def terms(
        self,
        distilled: StudentOutput,
        batch: StudentBatch,
        signal: TeacherSignal,
        right_N: torch.Tensor,
        image_ids_B: torch.Tensor,
        *,
        relevance_NL: torch.Tensor | None = None,
        known: Mapping[str, torch.Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> DistillationTerms:
        """Compute the pathway losses of a batch.

        Args:
            distilled: the student's states that are compared with the teachers'.
            right_N: bool, the sequence of each example's right candidate, for `candidates = right`; a row of an
                example without one must be all True.
            image_ids_B: int64, equal where two examples show the same picture.
            relevance_NL: the student's attention from each token to the picture.
            known: which regions are known, by teacher [default: by `known_regions` of `distilled`].
            generator: of words and regions that are drawn.
        """
        example_N = example_of_sequence(batch.num_candidates, distilled.text_states_NLH.device)
        counted_N = right_N if self.settings.candidates == "right" else torch.ones_like(right_N)
        num_examples = len(batch.num_candidates)
        pairs: dict[Target, Pair] = {}
        if known is None:
            known = self.known_regions(distilled, batch, signal)
        vision_N = self._vision(distilled, known, batch, signal, example_N, image_ids_B, generator, pairs)
        text_N, selected_NW = self._text(distilled, signal, relevance_NL, generator, pairs)
        return DistillationTerms(
            pathways={
                pathway: self._balanced(
                    pathway,
                    {
                        name: mean_by_example(value_N, example_N, num_examples, counted_N)
                        for name, value_N in losses_N.items()
                    },
                )
                for pathway, losses_N in (("vision", vision_N), ("text", text_N))
                if losses_N
            },
            selected_NW=selected_NW,
            pairs=pairs,
        )

    def leave_out(self, target: Target) -> None:
        """Distil a coordinate target no more; a teacher without any other is out of the pathway."""
        projections, key = getattr(self, target.pathway), module_key(target.teacher)
        setattr(projections[key], target.kind, None)
        unused = _UNUSED_KIND.get(self.vision_targets.get(target.teacher, "both"))
        left = {kind for kind, _ in projections[key].named_children()}
        if left - {unused}:
            return
        if not left:
            del projections[key]
        self.teachers[target.pathway].remove(target.teacher)
        if (name := f"{target.pathway}/{key}") in self.free_log_variance:
            del self.free_log_variance[name]

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
            right_B: int64, the sequence of each example's right candidate.
            image_ids: int64 (B,), equal where two examples show the same picture.
            known_B: bool, whether the right candidate is known; None for all. All candidates of an input without a
                label belong to its picture, as a group. Of the others the right one does; its rivals are left out,
                since what is said of another thing in the picture may be true as well.
        """
        return batch_contrast(
            self.contrast_image(image_state(separate, batch)[right_B]),
            self.contrast_text(separate.pooled_NP),
            right_B,
            image_ids,
            num_candidates=batch.num_candidates,
            known_B=known_B,
            temperature=self.log_temperature.exp().clamp(min=0.01),
            everywhere=self.everywhere,
        )

    def known_regions(
        self, states: StudentOutput, batch: StudentBatch, signal: TeacherSignal
    ) -> dict[str, torch.Tensor]:
        """Return (B, S) bool of each teacher with landmarks: which regions the student names clearly.

        Of a teacher that is not among them all regions are distilled.
        """
        first_B = first_sequences(batch.num_candidates, states.visual_states_NRH.device)
        return {
            name: landmarks.known(
                pool_to_regions(states.visual_states_NRH[first_B].detach(), signal.vision[name].shares_BSR)[0]
            )
            for name, landmarks in self.region_landmarks.items()
            if name in signal.vision
        }

    def _vision(
        self,
        distilled: StudentOutput,
        known: Mapping[str, torch.Tensor],
        batch: StudentBatch,
        signal: TeacherSignal,
        example_N: torch.Tensor,
        image_ids_B: torch.Tensor,
        generator: torch.Generator | None,
        compared: dict[Target, Pair],
    ) -> dict[str, torch.Tensor]:
        losses = {}
        for name, one in signal.vision.items():
            if name not in self.teachers["vision"]:
                continue
            default: VisionTarget = "image" if one.regions_BSD is None else "regions"
            target = self.vision_targets.get(name, default)
            if self.settings.distance == "relational":
                losses[name] = related_vision(
                    self.settings,
                    target,
                    distilled,
                    batch,
                    one,
                    image_ids_B,
                    landmarks=self.region_landmarks.get(name),
                    known_BS=known.get(name),
                    generator=generator,
                    everywhere=self.everywhere,
                )[example_N]
                continue
            expanded = one.of_sequences(example_N)
            regions_NSH, seen_NS = pool_to_regions(distilled.visual_states_NRH, expanded.shares_BSR)
            projections = self.vision[module_key(name)]
            assert isinstance(projections, VisionProjections)
            pairs = vision_pairs(
                projections,
                expanded,
                image_BH=image_state(distilled, batch),
                regions_BSH=regions_NSH,
                region_seen_BS=seen_NS,
                target=target,
            )
            compared |= {Target("vision", name, kind): pair for kind, pair in pairs.items()}
            losses[name] = pairs_loss(pairs, self.settings.distance, like_N=example_N)
        return losses

    def _text(
        self,
        distilled: StudentOutput,
        signal: TeacherSignal,
        relevance_NL: torch.Tensor | None,
        generator: torch.Generator | None,
        compared: dict[Target, Pair],
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
        if not self.teachers["text"] or not signal.text:
            return {}, None
        words = signal.words
        assert words is not None
        num_words = words.prior_NW.shape[1]
        words_NWH, seen_NW = pool_to_words(distilled.text_states_NLH, words.word_of_token_NL, num_words)
        relevance_NW = self._relevance(relevance_NL, signal, num_words)
        losses = {}
        selected_NW = None
        for name, one in signal.text.items():
            if name not in self.teachers["text"]:
                continue
            mask_NW = shared_words(words, one, seen_NW)
            # A cache may hold only some of the words that a share is taken of.
            counted_NW = words.word_mask_NW & seen_NW if one.is_selected else mask_NW
            pairs: dict[str, Pair] = {}
            landmarks = self.landmarks.get(name)
            if self.settings.distance == "relational":
                # Function words are like everything and like nothing.
                mask_NW, counted_NW = (mask & (words.prior_NW > 0) for mask in (mask_NW, counted_NW))
                if landmarks is None:
                    require_relations(mask_NW, words.form_NW, name, self.everywhere)
                else:
                    mask_NW, counted_NW = (unplaced_words(mask, words) for mask in (mask_NW, counted_NW))
            else:
                projections = self.text[module_key(name)]
                assert isinstance(projections, TextProjections)
                pairs = text_pairs(projections, one, pooled_NP=distilled.pooled_NP, words_NWH=words_NWH)
                if "word" not in pairs:
                    mask_NW = torch.zeros_like(mask_NW)
            each_NW = None
            if self.settings.selection == "need":
                if self.settings.distance == "relational":
                    each_NW = self._each_word(words_NWH, one, words, mask_NW, mask_NW, landmarks)
                else:
                    each_NW = pairs["word"].distances(self.settings.distance) if "word" in pairs else mask_NW.float()
            selected_NW = select_words(
                self.settings.selection,
                mask_NW=mask_NW,
                prior_NW=words.prior_NW,
                relevance_NW=relevance_NW,
                alpha=self.settings.selection_alpha,
                rho=self.settings.selection_rho,
                generator=generator,
                counted_NW=counted_NW,
                need_NW=None if each_NW is None else each_NW.detach(),
            )
            if self.settings.distance == "relational":
                related = []
                if self.settings.relational_nodes in ("words", "both"):
                    if each_NW is None:
                        each_NW = self._each_word(words_NWH, one, words, mask_NW, selected_NW, landmarks)
                    related.append(masked_mean(each_NW, selected_NW))
                if self.settings.relational_nodes in ("texts", "both"):
                    related.append(
                        related_texts(self.settings, words_NWH, one, mask_NW, words, self.everywhere)
                        if landmarks is None
                        else placed_texts(self.settings, words_NWH, one, mask_NW, landmarks)
                    )
                losses[name] = torch.stack(related).sum(0)
            else:
                if "word" in pairs:
                    pairs["word"] = replace(pairs["word"], mask_NX=selected_NW)
                compared |= {Target("text", name, kind): pair for kind, pair in pairs.items()}
                losses[name] = pairs_loss(pairs, self.settings.distance, like_N=words_NWH[:, 0, 0])
        return losses, selected_NW

    def _each_word(
        self,
        words_NWH: torch.Tensor,
        one: TextSignal,
        words: WordAlignment,
        node_NW: torch.Tensor,
        asked_NW: torch.Tensor,
        landmarks: Landmarks | None,
    ) -> torch.Tensor:
        """Return (N, W): the divergence of the nodes that are asked for, 0 elsewhere."""
        assert one.words_NWD is not None
        if landmarks is None:
            return divergences(
                self.settings,
                words_NWH,
                one.words_NWD,
                node_NW,
                words.form_NW,
                asked_NW=asked_NW,
                everywhere=self.everywhere,
            )
        return placed_nodes(self.settings, words_NWH, one.words_NWD, asked_NW, landmarks)

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

    def _relevance(
        self, relevance_NL: torch.Tensor | None, signal: TeacherSignal, num_words: int
    ) -> torch.Tensor | None:
        for one in signal.text.values():
            if one.relevance_NW is not None:
                return one.relevance_NW
        if relevance_NL is None:
            return None
        assert signal.words is not None
        pooled, _ = pool_to_words(relevance_NL[..., None], signal.words.word_of_token_NL, num_words)
        return pooled[..., 0]


def module_key(teacher: str) -> str:
    """Return a teacher's name as a key that a module dictionary takes (it takes no dots)."""
    return teacher.replace(".", "_")
