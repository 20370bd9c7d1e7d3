"""The named options of the method, without heavy imports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, Literal

from advl_pipeline.base.configuration import Configuration, option, rare_option

Pathway = Literal["both", "vision", "text"]
AdaptObjective = Literal["contrastive", "distil-only"]
Selection = Literal["adaptive", "prior", "random", "all"]
Projector = Literal["linear", "mlp"]
Weighting = Literal["ratio", "uniform"]
VisionTarget = Literal["image", "regions", "both"]
"""The resolved distillation target of a vision teacher."""


@dataclass(frozen=True, kw_only=True)
class DistillationOptions(Configuration):
    """Options of docs/method.md that select what is distilled, and its strength."""

    title: ClassVar[str] = "Distillation"

    distill_weight: float = option(
        0.01,
        help="lambda: weight of the distillation terms relative to the task loss; 1 in the adapt stage. For scale: "
        "the loss of a choice of four starts at 1.4; with --distance mse each target of a pathway starts near 2.",
        minimum=0,
        needs=("teachers",),
    )
    pathway: Pathway = rare_option(
        "both",
        help="Pathways to distil.",
        needs=("teachers",),
    )
    distance: Literal["relational", "mse", "l1", "cosine", "smooth-l1"] = rare_option(
        "relational",
        help="What the student matches. relational: the teacher's similarities of words (regions). mse, l1, cosine, "
        "smooth-l1: the teacher's features, through a projection.",
        needs=("teachers",),
    )
    distill_layer: Literal["unimodal", "fused"] = rare_option(
        "unimodal",
        help="States to distil. unimodal: states that have seen one modality, from below the fusion if the student "
        "has such layers, else from a pass that hides the other modality. fused: states after the fusion.",
        needs=("teachers",),
    )
    vision_target: Literal["auto", "patches", "regions", "image", "both"] = rare_option(
        "auto",
        help="Targets of the vision pathway: the student's patches, its regions, the picture as a "
        "whole (image), or both places and picture. auto uses places if student and cache have them, else the "
        "picture.",
        needs=("teachers", "the vision pathway"),
    )
    projector: Projector = rare_option(
        "linear",
        help="Projection from the student's visual states to the teacher's features, for a --distance other than "
        "relational: linear; mlp, three layers.",
        needs=("teachers", "coordinates", "the vision pathway", "distillation"),
    )
    selection: Selection | None = rare_option(
        None,
        help="Adaptive Text Token Selection: how words are scored.",
        needs=("teachers", "the text pathway"),
    )
    weighting: Weighting | None = rare_option(
        None,
        help="Adaptive Confidence-based Weighting: the weight of an instance.",
        needs=("teachers",),
    )
    weight_shuffle: bool = rare_option(
        False,
        help="Control: permute the weights within the batch.",
        needs=("teachers", "weights", "confidence"),
    )


ADAPT_STEPS: Final = 400
"""Steps of the adapt stage without `adapt_steps`."""


@dataclass(frozen=True, kw_only=True)
class AdaptOptions(Configuration):
    """Options of the adapt stage, which precedes learning from labels: its objectives and anchors."""

    title: ClassVar[str] = "Adapt stage"

    stages: Literal["one", "two"] | None = rare_option(
        None,
        help="Two stages, adapt and finetune, or only the finetune stage.",
        formerly="--steps",
        recorded_as="steps",
    )
    adapt_steps: int | None = option(
        None,
        help=f"Steps of the adapt stage [default: {ADAPT_STEPS}, and at most 50 epochs of your own data].",
        minimum=1,
        needs=("an adapt stage",),
    )
    adapt_texts: int = rare_option(
        64,
        help="Texts per step of the adapt stage, over all candidates of its examples; it bounds how many words are "
        "compared at once.",
        minimum=2,
        needs=("an adapt stage",),
    )
    adapt_lr_scale: float | None = rare_option(
        None,
        help="Learning rate of the student in the adapt stage, relative to the finetune stage. Projections start "
        "from scratch and keep their own rate [default: the recipe's, else 1].",
        minimum=0,
        needs=("an adapt stage",),
    )
    adapt_on: tuple[str, ...] = rare_option(
        ("inputs",),
        help="Inputs of the adapt stage, without labels: inputs, all of the split; subset, the labelled ones; or "
        "DATASET/SPLIT, such as pictures in the style of the target, which also needs caches of that split. "
        "Repeatable.",
        metavar="INPUTS",
        needs=("an adapt stage",),
    )
    adapt_objective: AdaptObjective | None = rare_option(
        None,
        help="Loss of the adapt stage: only distillation, or also the contrast of pictures and texts [default: "
        "contrastive for plain-two-step, else distil-only].",
        needs=("an adapt stage",),
    )
    anchor_weight: float = rare_option(
        20.0,
        help="Weight of the anchor in the adapt stage, which keeps the states of pictures, and of words known from "
        "pretraining, where they were. In units of their variance; 0 turns it off.",
        minimum=0,
        needs=("an adapt stage",),
    )
    hold_weight: float = rare_option(
        0.0,
        help="Weight of the anchor in the finetune stage: 5 keeps more of the names that were learned before labels "
        "(docs/method.md); 0 turns it off.",
        minimum=0,
        needs=("an adapt stage",),
    )
    answer_weight: float | None = rare_option(
        None,
        help="Weight of the answers that a text teacher gives through the names of the tagged regions "
        "(docs/method.md, the bridge), in the adapt stage. 0 turns them off [default: 1 if they separate correct "
        "from wrong on the labelled items, else 0; the run prints which].",
        minimum=0,
    )
    answers_of: Literal["teacher", "student"] = rare_option(
        "teacher",
        help="Source of the word similarities behind these answers. student is a control without a teacher: the "
        "initial student's own similarities.",
        needs=("an adapt stage", "answers"),
    )

    @property
    def anchors(self) -> bool:
        """Whether a step anchors states to their pretrained values."""
        return self.anchor_weight > 0 or self.hold_weight > 0

    @property
    def asks_itself(self) -> bool:
        """Whether the answers are the student's own: a control, because no teacher gives them."""
        return self.answers_of == "student"


@dataclass(frozen=True, kw_only=True)
class DistillationSettings(DistillationOptions, AdaptOptions):
    """The resolved options, with the defaults of `advl`, as the distiller receives them."""

    selection: Selection = "adaptive"
    weighting: Weighting = "ratio"
    adapt_objective: AdaptObjective = "contrastive"
    answer_weight: float = 0.0
