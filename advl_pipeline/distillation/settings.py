"""The named options of the method, free of any heavy import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

Pathway = Literal["both", "vision", "text"]
TeacherBalance = Literal["equal", "fixed", "learned"]
AdaptObjective = Literal["contrastive", "distil-only", "projections-only"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillationSettings:
    """Options of docs/method.md with the defaults of `advl`; what each does is told where it is used."""

    pathway: Pathway = "both"
    distance: Literal["relational", "mse", "l1", "cosine", "smooth-l1"] = "relational"
    relational_nodes: Literal["words", "texts", "both"] = "both"
    landmarks: Literal["all", "known"] = "known"
    student_temperature: float = 0.1
    teacher_temperature: float = 0.1
    distill_layer: Literal["unimodal", "fused"] = "unimodal"
    projection_start: Literal["ridge", "random"] = "ridge"
    target_check: Literal["r2", "none"] = "r2"
    vision_target: Literal["auto", "patches", "regions", "image", "both"] = "auto"
    teacher_balance: TeacherBalance = "equal"
    teacher_weights: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    selection: Literal["adaptive", "prior", "visual", "need", "random", "all"] = "adaptive"
    selection_alpha: float = 0.5
    selection_rho: float = 0.3
    candidates: Literal["all", "right"] = "all"
    weighting: Literal["ratio", "teacher", "gap", "uniform"] = "ratio"
    weight_max: float = 2.0
    weight_normalise: Literal["none", "batch-mean"] = "none"
    weight_shuffle: bool = False
    adapt_objective: AdaptObjective = "contrastive"
    anchor_weight: float = 20.0
