"""Closed-form start of a projection: ridge regression from the frozen student's states to a teacher's features.

A projection that starts at random learns next to nothing in a few hundred steps, and what reaches the student
through it is noise. The best linear map is known before the first step. The same fit says whether a target can be
told from the student's states at all: its R2 on held-out inputs. Our reading of the method (docs/method.md).

Targets are layer-normalised, as the distances compare them. Sums are kept as Gram matrices in float64, so that memory
does not grow with the inputs.
Shapes: M rows, H student width, D teacher width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from advl_pipeline.distillation.distance import Distance, distance

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Tried, relative to the mean variance of the student's dimensions."""

UNCHECKED_PENALTY = 1e-1
"""Where nothing is held out to choose one by."""

MIN_R2 = 0.05
"""A target whose held-out R2 is below this cannot be predicted; the best of several penalties reaches a little above
0 by luck."""

MAX_ROWS_KEPT = 4096
"""Held-out rows that the distance is measured on."""


class Moments:
    """Sums of rows and of their products, float64 on the CPU."""

    def __init__(self, student_width: int, teacher_width: int) -> None:
        self.num_rows = 0
        self.x_H = torch.zeros(student_width, dtype=torch.float64)
        self.y_D = torch.zeros(teacher_width, dtype=torch.float64)
        self.xx_HH = torch.zeros(student_width, student_width, dtype=torch.float64)
        self.xy_HD = torch.zeros(student_width, teacher_width, dtype=torch.float64)
        self.yy = 0.0

    def add(self, states_MH: torch.Tensor, targets_MD: torch.Tensor) -> None:
        """Count rows in."""
        x_MH, y_MD = states_MH.double().cpu(), targets_MD.double().cpu()
        self.num_rows += len(x_MH)
        self.x_H += x_MH.sum(0)
        self.y_D += y_MD.sum(0)
        self.xx_HH += x_MH.T @ x_MH
        self.xy_HD += x_MH.T @ y_MD
        self.yy += float(y_MD.square().sum())

    def __add__(self, other: Moments) -> Moments:
        total = Moments(len(self.x_H), len(self.y_D))
        for name in ("num_rows", "x_H", "y_D", "xx_HH", "xy_HD", "yy"):
            setattr(total, name, getattr(self, name) + getattr(other, name))
        return total


@dataclass(frozen=True, kw_only=True)
class LinearMap:
    """y = x W + b; float64."""

    weight_HD: torch.Tensor
    bias_D: torch.Tensor


def solve_ridge(moments: Moments, penalties: tuple[float, ...]) -> list[LinearMap]:
    """Return, for each penalty, the map that minimises the mean of |y - x W - b|^2 + penalty v |W|^2.

    v is the mean variance of the student's dimensions, so that the scale of the states does not matter. The intercept
    is not penalised.

    Args:
        moments: of at least one row.
        penalties: above 0.
    """
    mean_x_H, mean_y_D = moments.x_H / moments.num_rows, moments.y_D / moments.num_rows
    covariance_HH = moments.xx_HH / moments.num_rows - torch.outer(mean_x_H, mean_x_H)
    cross_HD = moments.xy_HD / moments.num_rows - torch.outer(mean_x_H, mean_y_D)
    value_H, vector_HH = torch.linalg.eigh(covariance_HH)
    # Rounding leaves values a little below 0, and states that never vary have no scale of their own.
    value_H = value_H.clamp(min=0.0)
    scale = max(float(value_H.mean()), torch.finfo(torch.float64).tiny)
    rotated_HD = vector_HH.T @ cross_HD
    maps = []
    for penalty in penalties:
        weight_HD = vector_HH @ (rotated_HD / (value_H + penalty * scale)[:, None])
        maps.append(LinearMap(weight_HD=weight_HD, bias_D=mean_y_D - mean_x_H @ weight_HD))
    return maps


def explained_share(found: LinearMap, held_out: Moments, baseline_D: torch.Tensor) -> float:
    """Return R2 on held-out rows: 1 - squared error of the map / squared error of a constant, over all dimensions.

    Args:
        found: fitted on other rows.
        held_out: of at least one row.
        baseline_D: the constant, the mean of the other rows.
    """

    def error(weight_HD: torch.Tensor, bias_D: torch.Tensor) -> float:
        fitted = (weight_HD * (held_out.xx_HH @ weight_HD)).sum() - 2 * (weight_HD * held_out.xy_HD).sum()
        shift = 2 * (held_out.x_H @ weight_HD - held_out.y_D) @ bias_D + held_out.num_rows * bias_D @ bias_D
        return held_out.yy + float(fitted + shift)

    constant = error(torch.zeros_like(found.weight_HD), baseline_D)
    return 1.0 - error(found.weight_HD, found.bias_D) / constant if constant > 0 else 0.0


@dataclass(frozen=True, kw_only=True)
class FittedProjection:
    """The map from all rows, and what held-out rows say of it.

    `r2` is None where nothing was held out. `distance_before` and `distance_after` are the means of D on held-out
    rows (on all, where nothing was held out) with the projection as it was, and with a map fitted on the other rows.
    """

    map: LinearMap
    penalty: float
    r2: float | None
    num_rows: int
    distance_before: float
    distance_after: float

    @property
    def is_predictable(self) -> bool:
        """Whether the target can be told from the student's states, as far as is known."""
        return self.r2 is None or self.r2 >= MIN_R2


class ProjectionFit:
    """Gathers the rows of one projection, then solves it."""

    def __init__(self, student_width: int, teacher_width: int) -> None:
        self._fitted_on = Moments(student_width, teacher_width)
        self._held_out = Moments(student_width, teacher_width)
        self._kept: dict[bool, list[tuple[torch.Tensor, torch.Tensor]]] = {True: [], False: []}
        self._num_kept = {True: 0, False: 0}

    def add(self, states_MH: torch.Tensor, targets_MD: torch.Tensor, is_held_out_M: torch.Tensor) -> None:
        """Count rows in; without gradient.

        Args:
            is_held_out_M: bool, rows that the penalty is chosen by.
        """
        states_MH, targets_MD, is_held_out_M = (
            value.detach().cpu() for value in (states_MH, targets_MD, is_held_out_M)
        )
        normal_MD = functional.layer_norm(targets_MD.float(), targets_MD.shape[-1:])
        for is_held_out, moments in ((False, self._fitted_on), (True, self._held_out)):
            chosen_M = is_held_out_M == is_held_out
            moments.add(states_MH[chosen_M], normal_MD[chosen_M])
            room = MAX_ROWS_KEPT - self._num_kept[is_held_out]
            kept = states_MH[chosen_M][:room].float(), targets_MD[chosen_M][:room].float()
            self._kept[is_held_out].append(kept)
            self._num_kept[is_held_out] += len(kept[0])

    def solve(self, projection: torch.nn.Linear, kind: Distance) -> FittedProjection | None:
        """Return the fitted map, or None where there is no row at all.

        Args:
            projection: as it is before the fit.
            kind: the distance that is told.
        """
        total = self._fitted_on + self._held_out
        if total.num_rows == 0:
            return None
        is_checked = min(self._fitted_on.num_rows, self._held_out.num_rows) > 0
        penalty, r2 = UNCHECKED_PENALTY, None
        if is_checked:
            maps = solve_ridge(self._fitted_on, PENALTIES)
            baseline_D = self._fitted_on.y_D / self._fitted_on.num_rows
            shares = [explained_share(found, self._held_out, baseline_D) for found in maps]
            r2 = max(shares)
            penalty = PENALTIES[shares.index(r2)]
        told_from = self._fitted_on if is_checked else total
        (judged,) = solve_ridge(told_from, (penalty,))
        (final,) = solve_ridge(total, (penalty,))
        kept = self._kept[True] if is_checked else [*self._kept[False], *self._kept[True]]
        states_MH, targets_MD = (torch.cat(part) for part in zip(*kept, strict=True))
        weight_DH, bias_D = projection.weight.detach().float().cpu(), projection.bias.detach().float().cpu()
        return FittedProjection(
            map=final,
            penalty=penalty,
            r2=r2,
            num_rows=total.num_rows,
            distance_before=float(distance(states_MH @ weight_DH.T + bias_D, targets_MD, kind).mean()),
            distance_after=float(
                distance(states_MH.double() @ judged.weight_HD + judged.bias_D, targets_MD, kind).mean()
            ),
        )
