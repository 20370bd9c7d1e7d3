"""The log of a run for TensorBoard, beside the JSON lines that are always written.

An extra: `pip install "advl-pipeline[tensorboard]"`, then `tensorboard --logdir runs`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from advl_pipeline.errors import ConfigError

_NOT_LOGGED = frozenset({"step", "phase"})


def require_tensorboard() -> None:
    """Raise `ConfigError` when TensorBoard is not installed."""
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        raise ConfigError(
            "TensorBoard is not installed.",
            where="--tensorboard",
            next_command="pip install 'advl-pipeline[tensorboard]', or do without: metrics.jsonl has it all",
        ) from None


class TensorBoardLog:
    """Writes logged steps as scalars and histograms."""

    def __init__(self, folder: Path, *, first_step: int) -> None:
        """Args:
        folder: of the event files.
        first_step: steps from here on that an interrupted run left are purged, as in metrics.jsonl.
        """
        require_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder), purge_step=first_step)

    def log(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Write records of metrics.jsonl; numbers become scalars, histograms histograms."""
        for record in records:
            for name, value in record.items():
                if name in _NOT_LOGGED:
                    continue
                if isinstance(value, Mapping):
                    self._histogram(name, value, record["step"])
                else:
                    self._writer.add_scalar(name, value, record["step"])
        self._writer.flush()

    def close(self) -> None:
        """Finish the event file."""
        self._writer.close()

    def _histogram(self, name: str, value: Mapping[str, Any], step: int) -> None:
        counts, width = value["counts"], value["bin_width"]
        limits = [width * (index + 1) for index in range(len(counts))]
        number = sum(counts)
        self._writer.add_histogram_raw(
            name,
            min=0.0,
            max=value["max"],
            num=number,
            sum=value["mean"] * number,
            sum_squares=sum(count * (limit - width / 2) ** 2 for count, limit in zip(counts, limits, strict=True)),
            bucket_limits=limits,
            bucket_counts=counts,
            global_step=step,
        )
