"""How several teachers share a pathway: with equal weights, or with given ones.

The paper fixes that teachers may be combined, not how; this is our reading.
Shapes: K teachers, B examples.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch

from advl_pipeline.distillation.settings import Pathway, TeacherBalance
from advl_pipeline.errors import ConfigError


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
