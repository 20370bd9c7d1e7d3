"""What is known of the words that a student's pretraining taught: a record of counts, or a table of classes.

The record lies next to the weights of a student that was pretrained here. The table is estimated from any student
(`training/landmarks/word_estimate.py`), and `--known-words` takes it back after it was edited.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from advl_pipeline.base.atomic import write_text
from advl_pipeline.base.errors import ConfigError, advise
from advl_pipeline.datasets.words import KnownWords, WordClass
from advl_pipeline.students.presets import family_facts

KNOWN_WORDS_FILE = "pretraining_words.json"
"""Words of a student's pretraining, split as in `datasets/words.py`, with their counts."""

ESTIMATE = 1
"""Incremented whenever the same student and inputs give other classes; part of the identity of runs that use them."""

COLUMNS = ("word", "occurrences", "score", "class")
"""Columns of the table; `word` and `class` are read back."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WordRow:
    """A word of the inputs: its occurrences in the sample, its score, and its class."""

    word: str
    num_occurrences: int
    score: float
    word_class: WordClass


def write_known_words(folder: Path, counts: Mapping[str, int]) -> None:
    """Write word counts to a student's folder, the most frequent word first."""
    ordered = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
    write_text(folder / KNOWN_WORDS_FILE, json.dumps(ordered, indent=0, ensure_ascii=False) + "\n")


def recorded_words(init: Path | None, *, student: str = "") -> KnownWords:
    """Return the record of a pretrained student's folder; without one, nothing is known.

    A student whose word vectors start at random knows no word, which its facts say (`knows_words` of
    `data/students.toml`).

    Args:
        init: pretrained student; None for the weights that it has by its name.
        student: its name.

    Raises:
        ConfigError: the record is damaged.
    """
    if init is None and not family_facts(student).get("knows_words", True):
        return KnownWords(counts={})
    if init is None or not (init / KNOWN_WORDS_FILE).is_file():
        return KnownWords()
    return read_known_words(init / KNOWN_WORDS_FILE)


def read_known_words(path: Path) -> KnownWords:
    """Read counts from a JSON object, or classes from a table (`.csv`); words are lower-cased.

    Raises:
        ConfigError: the file is missing, or is not an object of words and counts, or a table of words and classes.
    """
    try:
        if path.suffix.lower() == ".csv":
            return KnownWords(classes=_classes(path.read_text(encoding="utf-8-sig")))
        return KnownWords(counts=_counts(path.read_bytes()))
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise ConfigError(
            "The list of known words cannot be read.",
            where=str(path),
            why=str(error),
            next_command=advise(
                ["advl", "students", "words", "STUDENT", "--cache", "CACHE"],
                note='it writes such a table; a JSON object such as {"cat": 12} is read too',
            ),
        ) from None


def _counts(content: bytes) -> dict[str, int]:
    counts: dict[str, int] = {}
    for word, count in dict(json.loads(content)).items():
        if not word or isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise ValueError(f"{word!r} has the count {count!r}")
        counts[word.lower()] = counts.get(word.lower(), 0) + count
    return counts


def _classes(content: str) -> dict[str, WordClass]:
    reader = csv.DictReader(io.StringIO(content, newline=""))
    if missing := {"word", "class"} - set(reader.fieldnames or ()):
        raise ValueError(f"there is no column {' and no column '.join(sorted(missing))}")
    classes: dict[str, WordClass] = {}
    for row in reader:
        word = str(row["word"]).lower()
        word_class = next((known for known in get_args(WordClass) if known == row["class"]), None)
        if not word or word_class is None:
            raise ValueError(
                f"line {reader.line_num}: {word!r} has the class {row['class']!r}, not one of "
                f"{', '.join(get_args(WordClass))}"
            )
        if classes.setdefault(word, word_class) != word_class:
            raise ValueError(f"line {reader.line_num}: {word!r} has two classes")
    return classes


def word_table(rows: Iterable[WordRow]) -> str:
    """Return the table as CSV, the highest score first."""
    content = io.StringIO(newline="")
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in sorted(rows, key=lambda row: (-row.score, row.word)):
        writer.writerow([row.word, row.num_occurrences, f"{row.score:.4f}", row.word_class])
    return content.getvalue()
