"""The trainable side of the distillation: projections per teacher, and the loss terms of a batch.

A `Distiller` lives only in training. Nothing of it is saved with the student, so inference costs exactly what the
student costs.
Shapes: B examples, N sequences, L tokens, R visual tokens, S boxes, W words, H width, E common space.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from advl_pipeline.distillation.adapt_objectives import batch_contrast
from advl_pipeline.distillation.landmarks import (
    Landmarks,
    RegionLandmarks,
    placed_nodes,
    placed_texts,
    unplaced_words,
)
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
    divergences,
    gather_alone,
    related_texts,
    related_vision,
    require_relations,
)
from advl_pipeline.distillation.selection import select_words
from advl_pipeline.distillation.settings import DistillationSettings, Pathway, TeacherBalance, VisionTarget
from advl_pipeline.distillation.signal import (
    Nodes,
    TeacherSignal,
    TeacherWidths,
    shared_words,
    teachers_by_pathway,
)
from advl_pipeline.errors import ConfigError
from advl_pipeline.students.interface import StudentBatch, StudentOutput


def weighted_teachers(losses_KB: torch.Tensor, weights_K: torch.Tensor) -> torch.Tensor:
    """Return (B,): the mean of the teachers' losses under weights >= 0 of any sum; 0 where all weights are 0."""
    share_K = weights_K / weights_K.sum().clamp(min=torch.finfo(weights_K.dtype).tiny)
    return (losses_KB * share_K[:, None]).sum(0)


def check_balance(
    balance: TeacherBalance,
    weights: Mapping[str, float],
    teachers: Mapping[str, Collection[str]],
    *,
    pathway: Pathway,
) -> None:
    """Refuse a balance that has nothing to do, and weights that do not fit the teachers.

    Args:
        weights: by teacher, of `fixed` alone.
        teachers: names of the teachers that have features for `vision` and for `text`.
        pathway: in use; an ablation of the other one keeps its balance.

    Raises:
        ConfigError: as said.
    """
    if balance != "fixed" and weights:
        raise ConfigError("Weights of teachers are given, but not used.", next_command="add --teacher-balance fixed")
    if balance == "equal":
        return
    if all(len(names) < 2 for names in teachers.values()):
        found = "; ".join(f"{kind}: {', '.join(names) or 'none'}" for kind, names in teachers.items())
        raise ConfigError(
            f"--teacher-balance {balance} has nothing to balance.",
            why=f"no pathway has two teachers ({found})",
            next_command="give a second --cache whose teacher has the same modality, or leave the option out",
        )
    known = {name for names in teachers.values() for name in names}
    if known != set(weights):
        missing, strange = sorted(known - set(weights)), sorted(set(weights) - known)
        raise ConfigError(
            "The weights do not fit the teachers.",
            why=f"without a weight: {', '.join(missing) or 'none'}; without a cache: {', '.join(strange) or 'none'}",
            next_command="give --teacher-weight NAME=NUMBER once for each teacher",
        )
    for kind, names in teachers.items():
        if pathway in ("both", kind) and names and not sum(weights[name] for name in names):
            raise ConfigError(
                f"The weights of the {kind} pathway's teachers add up to 0.",
                next_command="leave the pathway out: --pathway " + ("text" if kind == "vision" else "vision"),
            )


INITIAL_TEMPERATURE = 0.07
"""Start of the learned temperature of the contrastive objective, as in CLIP."""


@dataclass(frozen=True, kw_only=True)
class PathwayTerm:
    """The loss of one pathway: means over candidates, without weight of the instance or lambda.

    `value_B` is balanced over the teachers. `raw_B` is their plain mean, detached; `by_teacher` holds each teacher's
    (B,) and `balance` its factor (scalar), detached.
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
        landmarks: Mapping[str, Landmarks] | None = None,
        region_landmarks: Mapping[str, RegionLandmarks] | None = None,
        contrast_size: int = 128,
    ) -> None:
        """Args:
        teachers: the widths of each teacher's features.
        hidden_size, pooled_size: of the student.
        vision_targets: what is distilled of each vision teacher [default: regions where it has them, else the
            picture].
        landmarks: of each text teacher whose likenesses to known words are followed; those of others are among the
            batch.
        region_landmarks: likewise of each vision teacher, of regions that the student names.
        contrast_size: width of the common space.

        Raises:
            ConfigError: a balance that does not fit the teachers, or relations between words that one did not store.
        """
        super().__init__()
        self.settings = settings
        self.vision_targets = dict(vision_targets or {})
        if teachers:
            everyone = teachers_by_pathway(replace(settings, pathway="both"), teachers)
            check_balance(settings.teacher_balance, settings.teacher_weights, everyone, pathway=settings.pathway)
        self.teachers = teachers_by_pathway(settings, teachers)
        for name in self.teachers["text"]:
            if settings.distance == "relational" and not teachers[name].text_token:
                raise ConfigError(
                    "This teacher's cache has no features of words, so no words can be related.",
                    where=name,
                    why="it was made with global features alone",
                    next_command="--distance mse, or extract with token features",
                )
        self.vision = nn.ModuleDict()
        self.text = nn.ModuleDict()
        if settings.distance != "relational":
            for name in self.teachers["vision"]:
                widths = teachers[name]
                self.vision[module_key(name)] = Projections(
                    settings.projector,
                    image=(hidden_size, widths.image_global),
                    region=(hidden_size, widths.image_region),
                )
            for name in self.teachers["text"]:
                widths = teachers[name]
                self.text[module_key(name)] = Projections(
                    summary=(pooled_size, widths.text_global), word=(hidden_size, widths.text_token)
                )
        self.landmarks, self.region_landmarks = landmarks or {}, region_landmarks or {}
        self.contrast_image = nn.Linear(hidden_size, contrast_size)
        self.contrast_text = nn.Linear(pooled_size, contrast_size)
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
        right_N: torch.Tensor,
        image_ids_B: torch.Tensor,
        *,
        relevance_NL: torch.Tensor | None = None,
        known: Mapping[str, torch.Tensor] | None = None,
        generator: torch.Generator | None = None,
        gather: Gather = gather_alone,
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
            gather: of the processes that share the batch.
        """
        example_N = batch.example_N
        counted_N = right_N if self.settings.candidates == "right" else torch.ones_like(right_N)
        num_examples = len(batch.num_candidates)
        if known is None:
            known = self.known_regions(distilled, batch, signal)
        vision_N = self._vision(distilled, known, batch, signal, example_N, image_ids_B, generator, gather)
        text_N, selected_NW = self._text(distilled, signal, relevance_NL, generator, gather)
        return DistillationTerms(
            pathways={
                pathway: self._balanced(
                    {
                        name: mean_by_example(value_N, example_N, num_examples, counted_N)
                        for name, value_N in losses_N.items()
                    }
                )
                for pathway, losses_N in (("vision", vision_N), ("text", text_N))
                if losses_N
            },
            selected_NW=selected_NW,
        )

    def contrast(
        self,
        separate: StudentOutput,
        batch: StudentBatch,
        right_B: torch.Tensor,
        image_ids: torch.Tensor,
        *,
        known_B: torch.Tensor | None = None,
        gather: Gather = gather_alone,
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
            self.contrast_image(image_state(separate, batch).index_select(0, right_B)),
            self.contrast_text(separate.pooled_NP),
            right_B,
            image_ids,
            batch,
            known_B=known_B,
            temperature=self.log_temperature.exp().clamp(min=0.01),
            gather=gather,
        )

    def known_regions(
        self, states: StudentOutput, batch: StudentBatch, signal: TeacherSignal
    ) -> dict[str, torch.Tensor]:
        """Return (B, S) bool of each teacher with landmarks: which regions the student names clearly.

        Of a teacher that is not among them all regions are distilled.
        """
        states_BRH = states.visual_states_NRH.detach().index_select(0, batch.first_B)
        return {
            name: landmarks.known(pool_to_regions(states_BRH, signal.vision[name].shares_BSR)[0])
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
        gather: Gather,
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
                    gather=gather,
                ).index_select(0, example_N)
                continue
            projections = self.vision[module_key(name)]
            assert isinstance(projections, Projections)
            losses[name] = projected_vision(
                projections, distilled, batch, one.of_sequences(example_N), target, self.settings.distance
            )
        return losses

    def _text(
        self,
        distilled: StudentOutput,
        signal: TeacherSignal,
        relevance_NL: torch.Tensor | None,
        generator: torch.Generator | None,
        gather: Gather,
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
            landmarks = self.landmarks.get(name)
            if self.settings.distance == "relational":
                # Function words are like everything and like nothing.
                mask_NW, counted_NW = (mask & (words.prior_NW > 0) for mask in (mask_NW, counted_NW))
                if landmarks is None:
                    nodes = one.nodes.meant if one.nodes else Nodes.of(mask_NW)
                    require_relations(nodes, words, name, one.nodes.num_forms if one.nodes else None, gather)
                else:
                    mask_NW, counted_NW = (unplaced_words(mask, words) for mask in (mask_NW, counted_NW))
                    nodes = one.nodes.unplaced if one.nodes else Nodes.of(mask_NW)
            elif one.words_NWD is None:
                mask_NW = torch.zeros_like(mask_NW)
            selected_NW = select_words(
                self.settings.selection,
                mask_NW=mask_NW,
                prior_NW=words.prior_NW,
                relevance_NW=relevance_NW,
                alpha=self.settings.selection_alpha,
                rho=self.settings.selection_rho,
                generator=generator,
                counted_NW=counted_NW,
            )
            if self.settings.distance == "relational":
                assert one.words_NWD is not None
                if landmarks is None:
                    each_NW = divergences(
                        self.settings, words_NWH, one.words_NWD, nodes, words.form_NW, gather=gather
                    )
                    each_N = related_texts(self.settings, words_NWH, one, mask_NW, nodes, words, gather)
                else:
                    each_NW = placed_nodes(self.settings, words_NWH, one.words_NWD, nodes, landmarks)
                    each_N = placed_texts(self.settings, words_NWH, one, mask_NW, nodes, landmarks)
                losses[name] = masked_mean(each_NW, selected_NW) + each_N
            else:
                projections = self.text[module_key(name)]
                assert isinstance(projections, Projections)
                losses[name] = projected_text(
                    projections, distilled.pooled_NP, words_NWH, one, selected_NW, self.settings.distance
                )
        return losses, selected_NW

    def _balanced(self, losses_B: dict[str, torch.Tensor]) -> PathwayTerm:
        losses_KB = torch.stack(list(losses_B.values()))
        given = self.settings.teacher_weights
        factor_K = torch.stack([losses_KB.new_full((), given.get(name, 1.0)) for name in losses_B])
        return PathwayTerm(
            value_B=weighted_teachers(losses_KB, factor_K),
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
