"""Words that a student's pretraining taught, with how often each came up.

Words are cut as `datasets/words.py` cuts them, in lower case.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from advl_pipeline.atomic import write_text
from advl_pipeline.errors import ConfigError

KNOWN_WORDS_FILE = "pretraining_words.json"


def write_known_words(folder: Path, counts: Mapping[str, int]) -> None:
    """Write the counts into a student's folder, the most frequent word first."""
    ordered = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
    write_text(folder / KNOWN_WORDS_FILE, json.dumps(ordered, indent=0, ensure_ascii=False) + "\n")


def known_words(student_folder: Path) -> Mapping[str, int] | None:
    """Return word -> count of a pretrained student; None for a folder or file without such a list.

    Raises:
        ConfigError: the list is damaged.
    """
    path = student_folder / KNOWN_WORDS_FILE
    return read_known_words(path) if path.is_file() else None


def read_known_words(path: Path) -> Mapping[str, int]:
    """Read word -> count from a JSON object, or from lines of word, tab, count; words come out in lower case.

    Raises:
        ConfigError: the file is not there or is neither.
    """
    try:
        text = path.read_text(encoding="utf-8")
        entries = _entries(text)
        counts: dict[str, int] = {}
        for word, count in entries:
            if not word or isinstance(count, bool) or not isinstance(count, int) or count < 0:
                raise ValueError(f"{word!r} has the count {count!r}")
            counts[word.lower()] = counts.get(word.lower(), 0) + count
    except (OSError, ValueError) as error:
        raise ConfigError(
            "The list of known words cannot be read.",
            where=str(path),
            why=str(error),
            next_command='give a JSON object such as {"cat": 12}, or lines of word, tab, count',
        ) from None
    return counts


def _entries(text: str) -> list[tuple[str, object]]:
    if text.lstrip().startswith("{"):
        return list(json.loads(text).items())
    entries: list[tuple[str, object]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        word, tab, count = line.partition("\t")
        if not tab or not count.strip().isdigit():
            raise ValueError(f"line {number} is not a word, a tab and a count")
        entries.append((word.strip(), int(count)))
    return entries
