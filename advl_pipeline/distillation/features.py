"""Teachers' features of a batch as caches store them, and what makes targets of them where the student computes.

What travels to a device is half as wide as targets are, or a quarter. There it is widened, averaged to words, boxes
or patches, and standardised. Which rows are averaged is settled before, with the batch.
Shapes: M stored rows, P places of a target, X rows that are averaged, each as often as it counts, D teacher width, F
words without rows, N sequences, W words.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from scipy.sparse import csr_matrix

from advl_pipeline.cache.quantise import dequantise, from_int8


@dataclass(frozen=True, kw_only=True)
class Averages:
    """What each place is the weighted sum of, divided by its count where counts are given; places lie in `shape`.

    Place p is of the rows `row_X[start_P1[p] : start_P1[p + 1]]`. Indices are int32, weights and counts float32.
    """

    shape: tuple[int, ...]
    start_P1: torch.Tensor
    row_X: torch.Tensor
    weight_X: torch.Tensor
    count_P: torch.Tensor | None = None

    def apply(self, rows_MD: torch.Tensor) -> torch.Tensor:
        """Return (*shape, D) float32; zeros where a place has no row."""
        num_places = prod(self.shape)
        if rows_MD.device.type == "cpu":
            indices = (self.row_X.numpy(), self.start_P1.numpy())
            weights_PM = csr_matrix((self.weight_X.numpy(), *indices), shape=(num_places, len(rows_MD)))
            sums_PD = torch.from_numpy(weights_PM @ rows_MD.numpy())
        else:
            # The same sums by what every device has.
            place_X = torch.repeat_interleave(self.start_P1.diff(), output_size=len(self.row_X))
            weighted_XD = rows_MD.index_select(0, self.row_X) * self.weight_X[:, None]
            sums_PD = rows_MD.new_zeros(num_places, rows_MD.shape[1]).index_add_(0, place_X, weighted_XD)
        if self.count_P is not None:
            sums_PD /= self.count_P[:, None]
        return sums_PD.view(*self.shape, rows_MD.shape[1])


@dataclass(frozen=True, kw_only=True)
class Features:
    """Rows (M, D) as a cache stores them, and what makes targets of them.

    They are float16, float32, or int8 codes with their scales (M,). Targets are `averages` of them, where given, and
    standardised by a mean and variance (D,), where given.
    """

    values_MD: torch.Tensor
    scale_M: torch.Tensor | None = None
    averages: Averages | None = None
    mean_D: torch.Tensor | None = None
    variance_D: torch.Tensor | None = None

    def averaged(self) -> torch.Tensor:
        """Return (M, D) or (*shape, D) float32, not standardised."""
        if self.scale_M is None:
            rows_MD = self.values_MD.float()
        elif self.values_MD.device.type == "cpu":
            rows_MD = torch.from_numpy(from_int8(self.values_MD.numpy(), self.scale_M.numpy())).float()
        else:
            rows_MD = dequantise(self.values_MD, self.scale_M).float()
        return rows_MD if self.averages is None else self.averages.apply(rows_MD)

    def standardised(self, values_D: torch.Tensor) -> torch.Tensor:
        """Return (..., D) as targets are."""
        if self.mean_D is None or self.variance_D is None:
            return values_D
        return standardise(values_D, self.mean_D, self.variance_D)

    def targets(self) -> torch.Tensor:
        """Return what the loss sees."""
        return self.standardised(self.averaged())


@dataclass(frozen=True, kw_only=True)
class Fillings:
    """Features (F, D), float32, of words without rows, and their places (F,) among all N * W."""

    place_F: torch.Tensor
    mean_FD: torch.Tensor


def standardise(values_D: torch.Tensor, mean_D: torch.Tensor, variance_D: torch.Tensor) -> torch.Tensor:
    """Scale each dimension of teacher features to mean 0 and variance 1 over the cache.

    Dimensions that never vary carry nothing and become 0.
    """
    deviation = variance_D.clamp(min=0).sqrt()
    scale = torch.where(deviation > 1e-6, 1.0 / deviation.clamp(min=1e-6), torch.zeros_like(deviation))
    return (values_D.float() - mean_D).mul_(scale)
