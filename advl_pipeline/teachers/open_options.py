"""Options for opening a teacher of any family."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from advl_pipeline.base.compute import DeviceConfig, open_device
from advl_pipeline.base.configuration import option
from advl_pipeline.base.errors import WeightsUnavailable

if TYPE_CHECKING:
    import torch

ImageTokenKind = Literal["boxes", "grid", "none"]
"""`boxes`: every box is cropped and encoded separately. `grid`: patches of the network's last feature map. `none`:
no token features."""

PICTURES = "pictures:"
"""Prefix of the name that replaces a teacher's when pictures themselves are stored."""

ComputeDtype = Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenOptions:
    """Settings that every teacher accepts.

    `weights` overrides the source of the weights: a folder, or a tensor file for timm networks. `random_seed` opens
    the same architecture with random weights drawn from this seed, for the random-teacher control. `revision` is a
    commit, branch or tag of the hub repository, None for its main branch. `grid_side` is the maximum number of rows
    and columns of a grid, None for the network's own.
    """

    name: str
    weights: Path | None = None
    revision: str | None = None
    device: str = "cpu"
    image_tokens: ImageTokenKind = "boxes"
    grid_side: int | None = None
    dtype: ComputeDtype = "fp32"
    random_seed: int | None = None

    @property
    def torch_dtype(self) -> torch.dtype:
        import torch

        return {"fp32": torch.float32, "bf16": torch.bfloat16}[self.dtype]

    @property
    def torch_device(self) -> torch.device:
        """The device, verified to exist.

        Raises:
            ConfigError: this machine has no such device.
        """
        return open_device(self.device)

    def bad_weights(self, what: str, where: Path | str, why: str, *, next_command: str = "") -> WeightsUnavailable:
        """Return the error for unusable weights.

        Args:
            what: the problem, a predicate such as "are incomplete".
        """
        return WeightsUnavailable(
            f"The weights of teacher {self.name!r} {what}.", where=str(where), why=why, next_command=next_command
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckTeacherConfig(DeviceConfig):
    """Configuration of a teacher check on a few synthetic units."""

    name: str = option(help="Teacher to check.")
    weights: Path | None = option(None, help="Local weights of the teacher instead of the known source.")
    image_tokens: ImageTokenKind = option("boxes", help="Token features of a picture.")
    compute_dtype: ComputeDtype = option("fp32", help="Compute dtype of the teacher.")
