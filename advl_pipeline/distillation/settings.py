"""The named options of the method, free of any heavy import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from advl_pipeline.base.configuration import Configuration, option, rare_option

Pathway = Literal["both", "vision", "text"]
AdaptObjective = Literal["contrastive", "distil-only"]
Selection = Literal["adaptive", "prior", "random", "all"]
Projector = Literal["linear", "mlp", "frozen", "batch-norm", "shared"]
Weighting = Literal["ratio", "uniform", "oracle"]
VisionTarget = Literal["image", "regions", "both"]
"""What is distilled of one vision teacher, once it is decided."""


@dataclass(frozen=True, kw_only=True)
class DistillationOptions(Configuration):
    """Options of docs/method.md on what is distilled, and how strongly."""

    title: ClassVar[str] = "Distillation"

    distill_weight: float = option(
        0.01,
        help="lambda: strength of the distillation terms against the task loss; in the adapt step it is 1. "
        "For scale: the loss of a choice of four begins at 1.4; with --distance mse each target of a pathway begins "
        "near 2.",
        minimum=0,
        needs=("teachers",),
    )
    pathway: Pathway = rare_option(
        "both",
        help="Pathways in use.",
        needs=("teachers",),
    )
    distance: Literal["relational", "mse", "l1", "cosine", "smooth-l1"] = rare_option(
        "relational",
        help="What of a teacher is followed. relational: its likenesses among the words (regions) of a batch. mse, "
        "l1, cosine, smooth-l1: the coordinates of its features, through a projection.",
        needs=("teachers",),
    )
    distill_layer: Literal["unimodal", "fused"] = rare_option(
        "unimodal",
        help="Which states are distilled. unimodal: those that have seen one modality, from below the fusion where "
        "the student has such layers, else from a pass that hides the other. fused: those after the fusion.",
        needs=("teachers",),
    )
    vision_target: Literal["auto", "patches", "regions", "image", "both"] = rare_option(
        "auto",
        help="Targets of the vision pathway: the student's patches or grid cells, its regions, the whole picture, or "
        "both places and picture. auto takes the places where student and cache have them, else the picture.",
        needs=("teachers", "the vision pathway"),
    )
    projector: Projector = rare_option(
        "linear",
        help="Of the other distances: the map from visual states of the student to features of the teacher. linear; "
        "mlp, of three layers; frozen, such a one that stays random; batch-norm, two layers behind a normalisation; "
        "shared, one mlp for the layers of a chat model from half to three quarters of its depth.",
        needs=("teachers", "coordinates", "the vision pathway", "distillation"),
    )
    selection: Selection | None = rare_option(
        None,
        help="Adaptive Text Token Selection: how words are scored.",
        needs=("teachers", "the text pathway"),
    )
    weighting: Weighting | None = rare_option(
        None,
        help="Adaptive Confidence-based Weighting: the weight of an instance. oracle is a control of studies, which "
        "reads labels: 1 where the bridge is right, else 0, in both steps.",
        needs=("teachers",),
    )
    weight_shuffle: bool = rare_option(
        False,
        help="Control: permute the weights inside the batch.",
        needs=("teachers", "weights", "confidence"),
    )

    @property
    def reads_labels(self) -> bool:
        """Whether weights are those of the oracle: a control, for labels decide them."""
        return self.weighting == "oracle"


@dataclass(frozen=True, kw_only=True)
class AdaptOptions(Configuration):
    """The options decide the adapt step, which comes before the labels are learned: what it learns and holds."""

    title: ClassVar[str] = "Adapt step"

    steps: Literal["one", "two"] | None = rare_option(None, help="Two-step finetuning, or the finetune step alone.")
    adapt_steps: int = option(
        400,
        help="Optimiser steps of the adapt step, added to those of the finetune step.",
        minimum=1,
        needs=("an adapt step",),
    )
    adapt_texts: int = rare_option(
        64,
        help="Texts of an adapt step, over all candidates of its examples: how many words are related at once.",
        minimum=2,
        needs=("an adapt step",),
    )
    adapt_lr_scale: float | None = rare_option(
        None,
        help="Learning rate of the student in the adapt step, relative to its own in the finetune step. Projections, "
        "which start fresh, learn at their own [default: the recipe's, else 1].",
        minimum=0,
        needs=("an adapt step",),
    )
    adapt_on: tuple[str, ...] = rare_option(
        ("inputs",),
        help="Inputs of the adapt step, without labels: inputs, all of the split; subset, the labelled ones; or "
        "DATASET/SPLIT, such as pictures in the style of the target. Caches of that split must be given too. "
        "Repeatable.",
        metavar="INPUTS",
        needs=("an adapt step",),
    )
    adapt_objective: AdaptObjective | None = rare_option(
        None,
        help="What the adapt step learns: distillation alone, or the contrast of pictures and texts with it "
        "[default: contrastive for plain-two-step, else distil-only].",
        needs=("an adapt step",),
    )
    anchor_weight: float = rare_option(
        20.0,
        help="How strongly the adapt step holds what pictures show, and words that pretraining knew, where it left "
        "them. It is in units of their variance; 0 lets them go.",
        minimum=0,
        needs=("an adapt step",),
    )
    hold_weight: float = rare_option(
        0.0,
        help="How strongly the finetune step goes on to hold them: 5 keeps more of the names that were learned "
        "before labels (docs/method.md). 0 lets them go.",
        minimum=0,
        needs=("an adapt step",),
    )
    answer_weight: float | None = rare_option(
        None,
        help="How strongly the adapt step learns to answer as a text teacher would by way of what the student names "
        "the tagged regions (docs/method.md, the bridge). 0 leaves it out [default: 1 where that tells right from "
        "wrong on the labelled items, else 0; the run says which].",
        minimum=0,
    )
    answers_of: Literal["teacher", "student"] = rare_option(
        "teacher",
        help="Whose likenesses of words say how a candidate is answered. student is a control, which needs no "
        "teacher: the student's own likenesses, as it starts.",
        needs=("an adapt step", "answers"),
    )

    @property
    def anchors(self) -> bool:
        """Whether a step holds states where pretraining left them."""
        return self.anchor_weight > 0 or self.hold_weight > 0

    @property
    def asks_itself(self) -> bool:
        """Whether answers are the student's own: a control, for no teacher says them."""
        return self.answers_of == "student"


@dataclass(frozen=True, kw_only=True)
class DistillationSettings(DistillationOptions, AdaptOptions):
    """The same, decided, with the defaults of `advl`: what the distiller is given."""

    selection: Selection = "adaptive"
    weighting: Weighting = "ratio"
    adapt_objective: AdaptObjective = "contrastive"
    answer_weight: float = 0.0
