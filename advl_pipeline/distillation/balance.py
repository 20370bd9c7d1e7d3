"""How several teachers share a pathway: with equal weights, with given ones, or with weights that are learned.

The paper fixes that teachers may be combined, not how; all of this is our reading. Learned weights are those of
homoscedastic uncertainty (Kendall et al. 2018, arXiv:1705.07115): exp(-s) L + s, with one log variance s for each
teacher. Whatever multiplies a pathway's loss (the weight of an instance, lambda) multiplies the term s too, so that
the best s, log L, follows the teacher's loss and not the strength of the distillation.
Shapes: K teachers, B examples.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch

from advl_pipeline.distillation.settings import Pathway, TeacherBalance
from advl_pipeline.errors import ConfigError

LARGEST_LOG_VARIANCE = 2.0
"""Bound of |s|: no teacher weighs more than e^2 or less than e^-2, and a loss near 0 cannot take over."""

STRETCH = 20.0
"""Of the parameter behind s. An Adam step moves a parameter by about the learning rate, whatever its gradient:
unstretched, 300 steps at 5e-4 could move s by less than 0.1."""


def weighted_teachers(losses_KB: torch.Tensor, weights_K: torch.Tensor) -> torch.Tensor:
    """Return (B,): the mean of the teachers' losses under weights >= 0 of any sum; 0 where all weights are 0."""
    share_K = weights_K / weights_K.sum().clamp(min=torch.finfo(weights_K.dtype).tiny)
    return (losses_KB * share_K[:, None]).sum(0)


def uncertain_teachers(losses_KB: torch.Tensor, log_variance_K: torch.Tensor) -> torch.Tensor:
    """Return (B,): the mean over teachers of exp(-s) L + s; with all s at 0 the mean of the losses."""
    return (losses_KB * torch.exp(-log_variance_K)[:, None] + log_variance_K[:, None]).mean(0)


def bounded_log_variance(free_K: torch.Tensor) -> torch.Tensor:
    """Return s in (-LARGEST_LOG_VARIANCE, LARGEST_LOG_VARIANCE), with a gradient everywhere; 0 at 0."""
    return LARGEST_LOG_VARIANCE * torch.tanh(free_K * (STRETCH / LARGEST_LOG_VARIANCE))


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
    if balance == "learned":
        return
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
