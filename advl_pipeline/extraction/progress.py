"""Progress of an extraction: a bar on stderr, the time per stage, and the total time of a cache.

The total time is in a file next to the cache, with one line per command that encoded something. It is not inside the
cache, so that equal caches are equal byte for byte, however long they took and however often they were interrupted.
"""

from __future__ import annotations

import errno
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from advl_pipeline.base.errors import CorruptCache
from advl_pipeline.base.folders import may_note
from advl_pipeline.cache.store import journal_path

PipelineStage = Literal["read", "encode", "write"]

_SECONDS_BETWEEN_SHARES = 1.0
_SECONDS_BETWEEN_BARS = 0.5
_SECONDS_BETWEEN_BARS_IN_A_FILE = 30.0
"""Interval between bars if stderr is a file: the log of a batch job keeps every state of the bar."""


class Progress:
    """Counter of units, and of the seconds spent waiting for reads, encoding, and waiting for writes.

    `close` ends the bar.
    """

    def __init__(self, *, label: str, total: int, done: int) -> None:
        self.seconds: dict[str, float] = {"read": 0.0, "encode": 0.0, "write": 0.0}
        self._shown = time.perf_counter()
        between = _SECONDS_BETWEEN_BARS if sys.stderr.isatty() else _SECONDS_BETWEEN_BARS_IN_A_FILE
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=label,
            unit="unit",
            mininterval=between,
            maxinterval=max(between, 10.0),
            dynamic_ncols=True,
        )
        self.close = self._bar.close

    @contextmanager
    def stage(self, stage: PipelineStage) -> Iterator[None]:
        """Add the time of the block to a stage of the pipeline."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - begin

    def advance(self, units: int) -> None:
        """Count finished units."""
        self._bar.update(units)
        now = time.perf_counter()
        if now - self._shown >= _SECONDS_BETWEEN_SHARES:
            self._shown = now
            total = sum(self.seconds.values()) or 1.0
            shares = " ".join(f"{name} {seconds / total:.0%}" for name, seconds in self.seconds.items())
            self._bar.set_postfix_str(shares, refresh=False)


def record_extraction(cache: Path, *, seconds: float, num_units: int, device: str) -> None:
    """Append the time of one command; several processes add up. Print a message if it cannot be written."""
    line = json.dumps({"seconds": seconds, "num_units": num_units, "device": device})
    try:
        if not may_note(journal_path(cache)):
            raise FileExistsError(errno.EEXIST, "there is something else")
        with journal_path(cache).open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        # The cache itself is complete, so only report this.
        tqdm.write(f"how long it took could not be noted: {journal_path(cache)}: {error.strerror}", file=sys.stderr)


def extraction_seconds(cache: Path) -> float | None:
    """Return the total seconds of all commands that made a cache, or None if none were recorded.

    Raises:
        CorruptCache: the journal cannot be read.
    """
    path = journal_path(cache)
    if not path.exists():
        return None
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return sum(float(json.loads(line)["seconds"]) for line in lines)
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptCache(
            "The journal of an extraction is damaged.",
            where=str(path),
            why=str(error),
            next_command="delete it: it only says how long the cache took",
        ) from error
