"""Does a student place words and regions as a teacher does? Read from likenesses, without labels and in seconds.

Of `num_choices` nodes, one of which the teacher finds most like a node, the student finds one most like it. A student
that knows nothing of the teacher's relations agrees with chance 1 / num_choices; the teacher itself agrees always.
Shapes: X nodes, H student width, D teacher width, Q nodes that are asked about, C choices.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

NUM_CHOICES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """How often the student picks what the teacher picks: `share` of `num_asked`, by chance `chance`."""

    share: float
    num_asked: int
    chance: float


def mean_by_group(states_XH: torch.Tensor, group_X: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (G, H) the mean state of each group, such as of a word's occurrences, and (G,) the groups, ascending."""
    groups_G, place_X = torch.unique(group_X, return_inverse=True)
    sums_GH = states_XH.new_zeros(len(groups_G), states_XH.shape[1]).index_add_(0, place_X, states_XH)
    counts_G = torch.bincount(place_X, minlength=len(groups_G))
    return sums_GH / counts_G[:, None], groups_G


def agreement(
    student_XH: torch.Tensor,
    teacher_XD: torch.Tensor,
    *,
    asked_X: torch.Tensor,
    offered_X: torch.Tensor,
    kin_X: torch.Tensor,
    generator: torch.Generator,
    num_choices: int = NUM_CHOICES,
) -> Agreement | None:
    """Ask of each node which of several others is most like it, the teacher and then the student.

    Args:
        asked_X: bool, nodes that are asked about, such as words that pretraining did not teach.
        offered_X: bool, nodes that may be chosen, such as words that it did.
        kin_X: int64; nodes of one kin, such as the regions of one picture, are never offered for one another.
        num_choices: C.

    Returns:
        None where there are too few nodes to choose among.
    """
    student_XX, teacher_XX = (_cosines(states) for states in (student_XH, teacher_XD))
    hits: list[bool] = []
    for node in torch.nonzero(asked_X).flatten().tolist():
        allowed_Y = torch.nonzero(offered_X & (kin_X != kin_X[node])).flatten()
        if len(allowed_Y) < num_choices:
            continue
        best = allowed_Y[teacher_XX[node, allowed_Y].argmax()]
        others_Y = allowed_Y[(allowed_Y != best) & (kin_X[allowed_Y] != kin_X[best])]
        if len(others_Y) < num_choices - 1:
            continue
        drawn_Y = others_Y[torch.randperm(len(others_Y), generator=generator)[: num_choices - 1]]
        choices_C = torch.cat([best[None], drawn_Y])
        hits.append(int(student_XX[node, choices_C].argmax()) == 0)
    if not hits:
        return None
    return Agreement(share=sum(hits) / len(hits), num_asked=len(hits), chance=1 / num_choices)


def _cosines(states_XH: torch.Tensor) -> torch.Tensor:
    centred_XH = functional.normalize(states_XH.float() - states_XH.float().mean(0), dim=-1)
    return centred_XH @ centred_XH.T
