"""Progress of an extraction: a bar on stderr, the same numbers as JSON lines, and where the time goes.

How long a cache took stands in a file next to it, a line per command that encoded something. Not inside:
equal caches stay equal byte for byte, however long they took and however often they were interrupted.
"""

from __future__ import annotations

import errno
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TextIO

from tqdm import tqdm

from advl_pipeline.base.atomic import make_folder, writing
from advl_pipeline.base.errors import CorruptCache
from advl_pipeline.base.folders import may_note
from advl_pipeline.cache.store import journal_path

Stage = Literal["read", "encode", "write"]

_SECONDS_BETWEEN_LINES = 1.0
_SECONDS_BETWEEN_BARS = 0.5
_SECONDS_BETWEEN_BARS_IN_A_FILE = 30.0
"""The log of a batch job keeps every state of the bar."""


class Progress:
    """Counts units and the seconds that the loop waits for reading, encodes, and waits for writing."""

    def __init__(self, *, label: str, total: int, done: int = 0, file: Path | None = None) -> None:
        self.seconds: dict[str, float] = {"read": 0.0, "encode": 0.0, "write": 0.0}
        self._label = label
        self._total, self._done = total, done
        self._started = self._last_line = time.perf_counter()
        self._already = done
        self._handle: TextIO | None = None
        if file is not None:
            make_folder(file.parent)
            with writing(file):
                self._handle = file.open("a", encoding="utf-8")
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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write_line()
        self._bar.close()
        if self._handle is not None:
            self._handle.close()

    @contextmanager
    def stage(self, stage: Stage) -> Iterator[None]:
        """Count the block's time for a stage."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - begin

    def advance(self, units: int) -> None:
        """Count finished units."""
        self._done += units
        self._bar.update(units)
        now = time.perf_counter()
        if now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            self._bar.set_postfix_str(
                " ".join(f"{name} {share:.0%}" for name, share in self.shares().items()), refresh=False
            )
            self._write_line()

    def shares(self) -> dict[str, float]:
        """Return the share of the loop's time that each stage took."""
        total = sum(self.seconds.values()) or 1.0
        return {name: seconds / total for name, seconds in self.seconds.items()}

    def _write_line(self) -> None:
        if self._handle is None:
            return
        elapsed = time.perf_counter() - self._started
        rate = (self._done - self._already) / elapsed if elapsed > 0 else 0.0
        line = {
            "event": "progress",
            "stage": self._label,
            "done": self._done,
            "total": self._total,
            "units_per_second": round(rate, 2),
            "eta_seconds": round((self._total - self._done) / rate, 1) if rate else None,
            "shares": {name: round(share, 3) for name, share in self.shares().items()},
        }
        with writing(Path(self._handle.name)):
            self._handle.write(json.dumps(line) + "\n")
            self._handle.flush()


def record_extraction(cache: Path, *, seconds: float, num_units: int, device: str) -> None:
    """Append what one command did; commands of several processes add up. Where that cannot be written, it is said."""
    line = json.dumps({"seconds": seconds, "num_units": num_units, "device": device})
    try:
        if not may_note(journal_path(cache)):
            raise FileExistsError(errno.EEXIST, "something else lies there")
        with journal_path(cache).open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        # The cache is complete.
        tqdm.write(f"how long it took could not be noted: {journal_path(cache)}: {error.strerror}", file=sys.stderr)


def extraction_seconds(cache: Path) -> float | None:
    """Return the seconds of all commands that made a cache, or None where nothing was recorded.

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
