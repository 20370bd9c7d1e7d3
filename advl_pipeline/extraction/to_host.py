"""Features on their way from the device that computed them: halved there where they are stored so, then copied.

A copy begins when the features are asked for and goes on while the device computes the next batch; who writes them
waits for it. What was computed on the CPU is there already, and the writer halves it.

Shapes: N units, M token rows, D feature width.
"""

from __future__ import annotations

import torch

from advl_pipeline.cache.quantise import FLOAT16_MAX, StoredDtype
from advl_pipeline.teachers.interface import EncodedBatch


class HostCopy:
    """A batch of features that is being copied to memory; `clipped` counts values beyond the stored range."""

    def __init__(self, encoded: EncodedBatch, stored: StoredDtype) -> None:
        self._is_there: torch.cuda.Event | None = None
        self._encoded = encoded
        self._clipped = torch.zeros((), dtype=torch.int64)
        if encoded.global_ND.device.type == "cpu":
            return
        with torch.inference_mode():
            lengths = [len(values) for values in encoded.token_values]
            rows_MD = torch.cat(list(encoded.token_values))
            global_ND = encoded.global_ND
            if stored == "float16":
                (global_ND, clipped), (rows_MD, also_clipped) = halved(global_ND), halved(rows_MD)
                self._clipped = self._copied(clipped + also_clipped)
            self._encoded = EncodedBatch(
                global_ND=self._copied(global_ND),
                token_values=torch.split(self._copied(rows_MD), lengths),
                stats={name: self._copied(values) for name, values in encoded.stats.items()},
            )
            if encoded.global_ND.device.type == "cuda":
                self._is_there = torch.cuda.Event()  # type: ignore[no-untyped-call]
                self._is_there.record(torch.cuda.current_stream(encoded.global_ND.device))

    @property
    def clipped(self) -> int:
        return int(self._clipped)

    def wait(self) -> EncodedBatch:
        """Return the features once they are in memory."""
        if self._is_there is not None:
            self._is_there.synchronize()
        return self._encoded

    @staticmethod
    def _copied(values: torch.Tensor) -> torch.Tensor:
        if values.device.type != "cuda":
            return values.cpu()
        # The device writes into memory that is never paged out, without this thread.
        return torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)


def halved(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round to float16 and clip what lies beyond its range, but infinity; return also how many were clipped, ()."""
    is_beyond = (values.abs() > FLOAT16_MAX) & values.isfinite()
    clipped = torch.where(is_beyond, values.clamp(-FLOAT16_MAX, FLOAT16_MAX), values)
    return clipped.half(), is_beyond.sum()
