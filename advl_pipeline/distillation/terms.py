"""What distillation is asked for by teacher, and what it gives: targets, and loss terms by pathway.

Shapes: B examples, N sequences, W words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from advl_pipeline.distillation.pathways import Pair, TeacherWidths
from advl_pipeline.distillation.settings import DistillationSettings
from advl_pipeline.errors import ConfigError


class Target(NamedTuple):
    """A kind of a teacher's features in a pathway: `image` or `region` of `vision`, `summary` or `word` of `text`."""

    pathway: Literal["vision", "text"]
    teacher: str
    kind: str

    def __str__(self) -> str:
        return "/".join(self)


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

    `selected_NW` is bool. `pairs` holds what the coordinate distances compared.
    """

    pathways: Mapping[str, PathwayTerm]
    selected_NW: torch.Tensor | None
    pairs: Mapping[Target, Pair]


def check_targets(
    settings: DistillationSettings, pathways: Mapping[str, list[str]], teachers: Mapping[str, TeacherWidths]
) -> None:
    """Refuse words of a teacher that has none; of vision targets `training/vision_targets.py` decides.

    Raises:
        ConfigError: relations between words of a teacher that stored none.
    """
    for name in pathways["text"]:
        if settings.distance == "relational" and not teachers[name].text_token:
            raise ConfigError(
                "This teacher's cache has no features of words, so no words can be related.",
                where=name,
                why="it was made with global features alone",
                next_command="--distance mse, or extract with token features",
            )
