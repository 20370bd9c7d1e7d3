"""Declares the interface of a teacher's towers.

Shapes: N units in a batch, D feature width, M tokens of one unit, K classes of the teacher's own classifier.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from advl_pipeline.datasets.records import ImageUnit, TextUnit


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedUnit:
    """One unit ready for the forward pass: `inputs` are CPU tensors without a batch axis.

    `num_tokens` is how many token rows the unit will have: known before the forward, so that shards can be planned.
    `char_spans_M2` (int32, text only) gives the characters of the unit's text that each token row covers. Where only
    some of the tower's tokens become rows, `kept_M` (int32, ascending) says which, of the unit `full`. Of rows that
    are regions, `regions` says where they are: array -> (M, ...), as `cache.layout.REGION_COLUMNS`. A text of which
    no piece is in the tokenizer's vocabulary is not `is_known`.
    """

    inputs: Mapping[str, torch.Tensor]
    num_tokens: int
    char_spans_M2: npt.NDArray[np.int32] | None = None
    kept_M: npt.NDArray[np.int32] | None = None
    full: PreparedUnit | None = None
    regions: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    is_known: bool = True


def unknown_texts(num_unknown: int, num_texts: int) -> str:
    """Return what is wrong where a tokenizer knows no piece of most of the texts, else ""."""
    if 2 * num_unknown <= num_texts:
        return ""
    return f"{num_unknown} of {num_texts} texts have no piece that the tokenizer knows"


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedBatch:
    """Features of N units, in order, float32, on the device that they were computed on.

    `token_values` holds one (M, D) tensor per unit. `stats` holds one (N,) tensor per statistic, such as
    "entropy" and "margin" of the teacher's classifier.
    """

    global_ND: torch.Tensor
    token_values: Sequence[torch.Tensor]
    stats: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def on_cpu(self) -> EncodedBatch:
        """Return the features in memory."""
        return EncodedBatch(
            global_ND=self.global_ND.cpu(),
            token_values=[values.cpu() for values in self.token_values],
            stats={name: values.cpu() for name, values in self.stats.items()},
        )


class Tower(Protocol):
    """Encodes units of one modality with frozen weights.

    Results never depend on what else is in a batch (up to rounding).
    """

    @property
    def global_dim(self) -> int: ...

    @property
    def token_dim(self) -> int: ...

    def describe(self) -> dict[str, Any]:
        """Return, as plain JSON types, everything that changes the numbers.

        The digest of the loaded parameters, processor or tokenizer with settings, layer and pooling, pad and
        truncation policy, token kind, compute dtype; never names of files, versions of libraries or the device.
        """
        ...

    def encode(self, units: Sequence[PreparedUnit]) -> EncodedBatch:
        """Run the frozen encoder, without gradient, on one batch."""
        ...


class ImageTower(Tower, Protocol):
    """Encodes pictures, whole and by grid cells or boxes."""

    def num_tokens(self, unit: ImageUnit) -> int:
        """Token rows of a unit (grid cells or boxes), without opening the picture."""
        ...

    def prepare(self, unit: ImageUnit) -> PreparedUnit:
        """Decode and preprocess. Raises `DatasetError` naming the picture when it cannot be read."""
        ...


class TextTower(Tower, Protocol):
    """Encodes texts, whole and by word pieces."""

    def prepare(self, units: Sequence[TextUnit]) -> list[PreparedUnit]:
        """Tokenise, with character spans into each unit's text; never cuts a text silently."""
        ...


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A named teacher: one tower, or two when it is an aligned pair (`aligned`), such as CLIP."""

    name: str
    image: ImageTower | None = None
    text: TextTower | None = None
    aligned: bool = False
    commit: str = ""
    """Of the repository of the hub that it was opened from, "" where it was not."""
    logit_scale: float | None = None
    """Temperature of an aligned pair: logits are logit_scale times the cosine of the two global features."""
