"""Named variants of a method: the controls and ablations of docs/method.md, each a base method with other options.

Every variant shares subset, seeds, optimiser steps and evaluation with all others of its study; only what its
entry states differs. A study file can define more under `[variants.NAME]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from advl_pipeline.configuration import option
from advl_pipeline.errors import ConfigError, suggest_names

Role = Literal["baseline", "method", "control", "ablation"]
PARTS = frozenset({"vision pathway", "language pathway", "token selection", "confidence weighting", "two steps"})
"""The parts that make up the method, each of which claim C5 is about."""
TEACHERLESS = frozenset({"plain", "plain-two-step"})
"""Base methods that read no cache."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """A row of a study: a base method and what is changed about it."""

    method: str = option(help="Base method of `advl finetune`.")
    role: Role = option("method", help="How the report treats it.")
    label: str = option("", help="Name in tables and figures.")
    note: str = option("", help="What the variant is there to show.")
    baseline: str | None = option(None, help="Variant it is compared with, in place of the study's baseline.")
    part: str = option("", help="Of an ablation: the part of the method that is left out.")
    teachers: tuple[str, ...] | None = option(None, help="Teachers in place of the setting's.")
    teacher_prefix: str = option("", help="Put before every teacher's name, such as 'random:'.")
    teacher_suffix: str = option("", help="Put after every teacher's name, such as '@1'.")
    training: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """Fields of `FinetuneConfig` that this variant sets."""

    @property
    def uses_teachers(self) -> bool:
        return self.method not in TEACHERLESS


def _variant(
    method: str,
    role: Role,
    label: str,
    note: str,
    *,
    part: str = "",
    teacher_prefix: str = "",
    teacher_suffix: str = "",
    **training: Any,
) -> Variant:
    return Variant(
        method=method,
        role=role,
        label=label,
        note=note,
        part=part,
        teacher_prefix=teacher_prefix,
        teacher_suffix=teacher_suffix,
        training=MappingProxyType(dict(training)),
    )


SHIPPED: Mapping[str, Variant] = MappingProxyType(
    {
        "plain": _variant("plain", "baseline", "plain", "Finetuning without a teacher."),
        "plain-two-step": _variant(
            "plain-two-step", "control", "plain, two steps", "The same two steps and budget without teacher terms."
        ),
        "plain-no-picture": _variant(
            "plain",
            "control",
            "plain, no picture",
            "A student that never sees a picture, in training or in evaluation: what the texts alone give away.",
            hide_picture=True,
        ),
        "naive-kd": _variant("naive-kd", "method", "naive KD", "All tokens, every weight 1, one step."),
        "advl": _variant("advl", "method", "ADVL", "Both pathways, selection, confidence weights, two steps."),
        "advl-shuffled": _variant(
            "advl",
            "control",
            "ADVL, shuffled teacher",
            "The teacher's features belong to other units: what remains is regularisation, not knowledge.",
            teacher_control="shuffle",
        ),
        "advl-shuffled-cells": _variant(
            "advl",
            "control",
            "ADVL, shuffled cells",
            "The cells of the teacher's grid are permuted inside each picture: it knows what is shown, not where.",
            teacher_control="shuffle-cells",
        ),
        "advl-shifted-grid": _variant(
            "advl",
            "control",
            "ADVL, shifted grid",
            "The teacher's grid is shifted by half its size: neighbours stay neighbours, in the wrong places.",
            teacher_control="shift-grid",
        ),
        "advl-random": _variant(
            "advl",
            "control",
            "ADVL, random teacher",
            "A teacher of the same architecture that was never trained.",
            teacher_prefix="random:",
        ),
        "advl-random-1": _variant(
            "advl",
            "control",
            "ADVL, random teacher 1",
            "Another draw of its weights.",
            teacher_prefix="random:",
            teacher_suffix="@1",
        ),
        "advl-random-2": _variant(
            "advl",
            "control",
            "ADVL, random teacher 2",
            "A third draw of its weights.",
            teacher_prefix="random:",
            teacher_suffix="@2",
        ),
        "naive-kd-shuffled": _variant(
            "naive-kd",
            "control",
            "naive KD, shuffled teacher",
            "Naive KD from features of other units.",
            teacher_control="shuffle",
        ),
        "advl-weights-shuffled": _variant(
            "advl",
            "control",
            "ADVL, shuffled weights",
            "The same confidence weights given to the wrong instances.",
            weight_shuffle=True,
        ),
        "advl-random-tokens": _variant(
            "advl", "control", "ADVL, random tokens", "As many words, chosen at random.", selection="random"
        ),
        "advl-no-vision": _variant(
            "advl",
            "ablation",
            "ADVL, text only",
            "Without the vision pathway.",
            part="vision pathway",
            pathway="text",
        ),
        "advl-no-text": _variant(
            "advl",
            "ablation",
            "ADVL, vision only",
            "Without the language pathway.",
            part="language pathway",
            pathway="vision",
        ),
        "advl-no-selection": _variant(
            "advl",
            "ablation",
            "ADVL, all tokens",
            "Without Adaptive Text Token Selection.",
            part="token selection",
            selection="all",
        ),
        "advl-no-weighting": _variant(
            "advl",
            "ablation",
            "ADVL, uniform weights",
            "Without Adaptive Confidence-based Weighting.",
            part="confidence weighting",
            weighting="uniform",
        ),
        "advl-one-step": _variant(
            "advl", "ablation", "ADVL, one step", "Without the adapt step.", part="two steps", steps="one"
        ),
        "advl-coordinates": _variant(
            "advl",
            "ablation",
            "ADVL, coordinates",
            "The teacher's coordinates through a projection, in place of its relations.",
            part="relations",
            distance="mse",
        ),
        "advl-fused": _variant(
            "advl",
            "ablation",
            "ADVL, fused states",
            "Distils states that have seen both modalities.",
            part="states of one modality",
            distill_layer="fused",
        ),
        "advl-no-anchor": _variant(
            "advl",
            "ablation",
            "ADVL, no anchor",
            "The adapt step does not hold what pretraining knew.",
            part="anchor",
            anchor_weight=0.0,
        ),
        "advl-subset": _variant(
            "advl",
            "ablation",
            "ADVL, labelled inputs",
            "The adapt step sees the labelled subset alone.",
            part="inputs without labels",
            adapt_on=("subset",),
        ),
        "advl-contrast": _variant(
            "advl",
            "method",
            "ADVL, with contrast",
            "The adapt step also learns the contrast of pictures and texts.",
            adapt_objective="contrastive",
        ),
        "advl-first-reading": _variant(
            "advl",
            "control",
            "ADVL, first reading",
            "Coordinates of fused states, a contrast, a short adapt step on the labelled subset: it helped nobody.",
            distance="mse",
            distill_layer="fused",
            adapt_objective="contrastive",
            adapt_on=("subset",),
            adapt_steps=30,
            adapt_lr_scale=0.1,
            anchor_weight=0.0,
        ),
    }
)


def find_variant(name: str, own: Mapping[str, Variant], *, where: str) -> Variant:
    """Return the variant of that name, a study's own before the shipped ones.

    Raises:
        ConfigError: there is none.
    """
    variant = own.get(name) or SHIPPED.get(name)
    if variant is None:
        raise ConfigError(
            f"Unknown method {name!r}.",
            where=where,
            why=suggest_names(name, {*own, *SHIPPED}),
            next_command=f"define it in the study file under [variants.{name}]",
        )
    return variant
