"""Which kind of task a row is of, told from its columns."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping

from advl_pipeline.datasets.problems import Malformed
from advl_pipeline.datasets.rows import COLUMNS, Kind

MARKERS: Mapping[Kind, tuple[str, ...]] = {
    "choice": ("choices", "choice_0"),
    "classes": ("text",),
    "answers": ("answers", "answer"),
}
"""Columns that only one kind has."""

EXPECTED: Mapping[Kind, str] = {
    "choice": "image, question, choices, label",
    "classes": "image, text, label",
    "answers": "image, question, answers (or answer)",
}

USED: Mapping[Kind, tuple[str, ...]] = {
    "choice": ("image", "question", "choices", "label"),
    "classes": ("image", "text", "label"),
    "answers": ("image", "question", "answers", "answer"),
}
"""Columns that the task is made of; the others that are known add to it."""

_NEEDED: Mapping[Kind, tuple[tuple[str, ...], ...]] = {
    "choice": (("image",), ("question",), MARKERS["choice"]),
    "classes": (("image",), ("text",)),
    "answers": (("image",), ("question",)),
}


def recognise(columns: Collection[str], told: Kind | None) -> Kind:
    """Return the kind of task of a row with these columns.

    Args:
        columns: names, after those that a card gives were put in place of the file's own.
        told: kind that the card names.

    Raises:
        Malformed: the columns fit no kind, several, or not the one that the card names.
    """
    found = [kind for kind, markers in MARKERS.items() if any(name in columns for name in markers)]
    if told is None and len(found) > 1:
        fits = " and ".join(f"{kind} ({EXPECTED[kind]})" for kind in found)
        raise Malformed(f"the columns are ambiguous: they fit {fits}; a card can say which: task = {found[0]!r}")
    if told is None and not found:
        kinds = "; ".join(f"{kind}: {names}" for kind, names in EXPECTED.items())
        raise Malformed(f"the columns {_listed(columns)} fit no kind of task; {kinds}{_hint(columns)}")
    kind = told or found[0]
    for names in _NEEDED[kind]:
        if not any(name in columns for name in names):
            why = "the card says" if told else "the other columns say"
            raise Malformed(
                f"column {names[0]!r} is missing, {why} that the task is {kind} ({EXPECTED[kind]}); "
                f"found: {_listed(columns)}{_hint(columns)}"
            )
    return kind


def _listed(columns: Collection[str]) -> str:
    return ", ".join(sorted(map(str, columns))) or "(none)"


def _hint(columns: Collection[str]) -> str:
    """Return a card's line that would rename a column which looks like one of ours."""
    for name in sorted(map(str, columns)):
        near = difflib.get_close_matches(name.lower(), set(COLUMNS) - set(columns), n=1, cutoff=0.6)
        if name not in COLUMNS and near:
            return f'; a card renames columns: [columns] {near[0]} = "{name}"'
    return ""
