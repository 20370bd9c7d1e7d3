"""The interface of a teacher's towers.

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

    `num_tokens` is the number of token rows, known before the forward pass so that shards can be planned.
    `char_spans_M2` (int32, text only) gives the characters of the text that each token row covers. If only some
    tokens of the tower become rows, `kept_M` (int32, ascending) lists their rows in the unit `full`. For
    rows that are regions, `regions` gives their positions: array -> (M, ...), as `cache.layout.REGION_COLUMNS`.
    `is_known` is false for a text without a single piece in the tokenizer's vocabulary.
    """

    inputs: Mapping[str, torch.Tensor]
    num_tokens: int
    char_spans_M2: npt.NDArray[np.int32] | None = None
    kept_M: npt.NDArray[np.int32] | None = None
    full: PreparedUnit | None = None
    regions: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    is_known: bool = True


def unknown_texts(num_unknown: int, num_texts: int) -> str:
    """Return the problem if a tokenizer knows no piece of most of the texts, else ""."""
    if 2 * num_unknown <= num_texts:
        return ""
    return f"{num_unknown} of {num_texts} texts have no piece that the tokenizer knows"


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedBatch:
    """Features of N units, in order, float32, on the device that computed them.

    `token_values` contains one (M, D) tensor per unit. `stats` contains one (N,) tensor per statistic, such as
    "entropy" and "margin" of the teacher's classifier.
    """

    global_ND: torch.Tensor
    token_values: Sequence[torch.Tensor]
    stats: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def on_cpu(self) -> EncodedBatch:
        """Return the features in CPU memory."""
        return EncodedBatch(
            global_ND=self.global_ND.cpu(),
            token_values=[values.cpu() for values in self.token_values],
            stats={name: values.cpu() for name, values in self.stats.items()},
        )


class Tower(Protocol):
    """A frozen encoder of units of one modality.

    The features of a unit never depend on the rest of its batch (up to rounding).
    """

    @property
    def global_dim(self) -> int: ...

    @property
    def token_dim(self) -> int: ...

    def describe(self) -> dict[str, Any]:
        """Return, as plain JSON types, everything that changes the numbers.

        This includes the digest of the loaded parameters, processor or tokenizer with settings, layer and pooling,
        padding and truncation policy, token kind and compute dtype, but never file names, library versions or the
        device.
        """
        ...

    def encode(self, units: Sequence[PreparedUnit]) -> EncodedBatch:
        """Run the frozen encoder on one batch, without gradients."""
        ...


class ImageTower(Tower, Protocol):
    """An encoder of pictures, with a global feature and grid or box features."""

    def num_tokens(self, unit: ImageUnit) -> int:
        """Return the number of token rows (grid patches or boxes) of a unit, without opening the picture."""
        ...

    def prepare(self, unit: ImageUnit) -> PreparedUnit:
        """Decode and preprocess a picture. Raises `DatasetError` naming a picture that cannot be read."""
        ...


class TextTower(Tower, Protocol):
    """An encoder of texts, with a global feature and word-piece features."""

    def prepare(self, units: Sequence[TextUnit]) -> list[PreparedUnit]:
        """Tokenise texts, with character spans into each text. A text is never truncated silently."""
        ...


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A named teacher: one tower, or two for an aligned pair (`aligned`) such as CLIP."""

    name: str
    image: ImageTower | None = None
    text: TextTower | None = None
    aligned: bool = False
    commit: str = ""
    """The commit of its hub repository, "" if it was not opened from the hub."""
    logit_scale: float | None = None
    """Logit scale of an aligned pair: logits are logit_scale times the cosine of the two global features."""
