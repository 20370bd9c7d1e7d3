"""How long a cache took to make: a line per command that encoded something, in a file beside the cache.

Beside and not inside: equal caches stay equal byte for byte, however long they took and however often they were
interrupted.
"""

from __future__ import annotations

import json
from pathlib import Path

from advl_pipeline.errors import CorruptCache


def journal_path(cache: Path) -> Path:
    """Return the journal of a cache, such as train.extraction.jsonl beside train/."""
    return cache.with_name(f"{cache.name}.extraction.jsonl")


def record_extraction(cache: Path, *, seconds: float, num_units: int, device: str) -> None:
    """Append what one command did; commands of several processes add up."""
    line = json.dumps({"seconds": seconds, "num_units": num_units, "device": device})
    with journal_path(cache).open("a", encoding="utf-8") as file:
        file.write(line + "\n")


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
