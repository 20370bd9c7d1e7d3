"""Which kind of task a row is of, told from its columns."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping

from advl_pipeline.datasets.problems import Malformed
from advl_pipeline.datasets.rows import COLUMNS, DataCard, Kind

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

_SYNONYMS: Mapping[str, tuple[Kind, str]] = {
    "direct_answers": ("answers", "answers"),
    "multiple_choice_answer": ("answers", "answer"),
    "hypothesis": ("classes", "text"),
    "correct_choice_idx": ("choice", "label"),
}
"""Columns of A-OKVQA, VQA and SNLI-VE that have one meaning: the kind they belong to and our name."""

_LIKELY: Mapping[str, str] = {
    **dict.fromkeys(("file_name", "filename", "image_path", "picture", "photo"), "image"),
    **dict.fromkeys(("caption", "sentence", "sentence2", "statement", "claim"), "text"),
    **dict.fromkeys(("options", "candidates"), "choices"),
    **dict.fromkeys(("gold", "gold_label", "target", "answer_idx"), "label"),
    # Each is known where the other columns leave no doubt, and named where they do.
    **{theirs: ours for theirs, (_, ours) in _SYNONYMS.items()},
}
"""Columns of public datasets that often mean one of ours, without a certain meaning: for hints."""


def synonyms(columns: Collection[str], card: DataCard) -> dict[str, str]:
    """Return their name -> our name, of the columns of public datasets whose meaning is certain in such a row.

    A column of ours, or one that the card names, comes first; a row that fits another kind keeps its columns.
    """
    fits = [card.task] if card.task else _kinds_of(columns)
    found: dict[str, str] = {}
    for theirs, (kind, ours) in _SYNONYMS.items():
        marks = ours in MARKERS[kind]
        taken = {*columns, *card.columns, *found.values()}.intersection(MARKERS[kind] if marks else (ours,))
        if theirs in columns and not taken and (fits == [kind] or (marks and not fits)):
            found[theirs] = ours
    return found


def _kinds_of(columns: Collection[str]) -> list[Kind]:
    return [kind for kind, markers in MARKERS.items() if any(name in columns for name in markers)]


def recognise(columns: Collection[str], told: Kind | None) -> Kind:
    """Return the kind of task of a row with these columns.

    Args:
        columns: names, after those that a card gives were put in place of the file's own.
        told: kind that the card names.

    Raises:
        Malformed: the columns fit no kind, several, or not the one that the card names.
    """
    found = _kinds_of(columns)
    if told is None and len(found) > 1:
        fits = " and ".join(f"{kind} ({EXPECTED[kind]})" for kind in found)
        is_key = {"choice", "answers"} <= {*found} and "answer" in columns and "label" not in columns
        key = '; where the answer is the right one of the choices: [columns] label = "answer"' if is_key else ""
        raise Malformed(f"the columns are ambiguous: they fit {fits}; a card can say which: task = {found[0]!r}{key}")
    if told is None and not found:
        kinds = "; ".join(f"{kind}: {names}" for kind, names in EXPECTED.items())
        raise Malformed(f"the columns {_listed(columns)} fit no kind of task; {kinds}{_hint(columns, None)}")
    kind = told or found[0]
    for names in _NEEDED[kind]:
        if not any(name in columns for name in names):
            why = "the card says" if told else "the other columns say"
            raise Malformed(
                f"column {names[0]!r} is missing, {why} that the task is {kind} ({EXPECTED[kind]}); "
                f"found: {_listed(columns)}{_hint(columns, kind)}"
            )
    return kind


def _listed(columns: Collection[str]) -> str:
    return ", ".join(sorted(map(str, columns))) or "(none)"


def _hint(columns: Collection[str], kind: Kind | None) -> str:
    """Return a card's lines that would rename the columns which look like ours; those of one kind of task alone."""
    missing = [name for name in COLUMNS if name not in columns]
    looks_like: dict[str, str] = {}
    # A name that is known from public datasets says more than one that is spelt alike.
    for name in sorted(map(str, columns), key=lambda name: (name.lower() not in _LIKELY, name)):
        near = [_LIKELY.get(name.lower()) or "", *difflib.get_close_matches(name.lower(), missing, n=1, cutoff=0.6)]
        ours = next((one for one in near if one in missing), "")
        if name not in COLUMNS and ours:
            looks_like.setdefault(ours, name)
    kind = kind or next((one for one, names in MARKERS.items() if looks_like.keys() & {*names}), None)
    for other in MARKERS.keys() - {kind}:
        for ours in MARKERS[other]:
            looks_like.pop(ours, None)
    lines = [f'{ours} = "{looks_like[ours]}"' for ours in COLUMNS if ours in looks_like]
    return f"; a card renames columns: [columns] {' and '.join(lines)}" if lines else ""
