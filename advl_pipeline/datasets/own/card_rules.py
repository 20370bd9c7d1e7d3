"""Rules of a card for rows: rename columns, leave rows out, make items of pictures, draw choices.

Each rule is one function; `columns.py` checks the results.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, count, islice
from string import ascii_lowercase, ascii_uppercase
from typing import Any

from advl_pipeline.base.errors import DatasetError, again, suggest_names
from advl_pipeline.datasets.cards import Card
from advl_pipeline.datasets.lowshot import draw_key
from advl_pipeline.datasets.own.columns import FACETS, is_missing, listed_options
from advl_pipeline.datasets.own.conversations import turns_as_questions
from advl_pipeline.datasets.problems import Malformed
from advl_pipeline.datasets.row_files import parsed_cell
from advl_pipeline.datasets.rows import Held, Row

_OPTIONS = re.compile(r"\bOptions?:", re.IGNORECASE)
_LISTED = frozenset({"choices", "rationales", "boxes", "box_labels", "answers"})
"""Columns with JSON or Python lists in their cells if the format has no lists (CSV)."""

_OPTIONS_OF = ("choices", "rationales")
"""Columns with options that a label names."""

_ONE_OF_SEVERAL = re.compile(r".*\D\d+|(left|right)_.*")
"""Names of columns that contain one of several pictures."""

_BLOCK = 256
"""Number of rows in a block that rationales are drawn from."""


def shaped(rows: Iterable[Row], card: Card, *, dataset: str) -> Iterator[Row]:
    """Yield the items of rows under our columns; rows that their reader has checked pass through.

    Args:
        dataset: name for error messages.

    Raises:
        DatasetError: the card names a column that no row has.
    """
    seen: set[str] = set()
    items = (item for row in rows for item in _items_of(row, card, seen))
    yield from _with_drawn_rationales(items, card) if card.rationale_choices else items
    of_facets = {f"facets.{name}": facet.column.partition(".")[0] for name, facet in card.facets.items()}
    for ours, theirs in chain.from_iterable(table.items() for table in (card.columns, *card.items, of_facets)):
        for name in [theirs] if isinstance(theirs, str) else theirs:
            # The card has a typo, and the rows are not at fault.
            if seen and name not in seen:
                raise DatasetError(
                    "The card names a column that no row has.",
                    where=f"{dataset} {f'[{ours}]' if ours in of_facets else f'[columns] {ours}'}",
                    why=f"column {name!r}, which the card gives as {ours!r}, is missing; {suggest_names(name, seen)}",
                    next_command=again("correct or remove the line of the card, then run the same command again"),
                )


def _items_of(row: Row, card: Card, seen: set[str]) -> Iterator[Row]:
    """Yield the items that the card makes from a row; an item that it leaves out has no record."""
    record = row.record
    if not isinstance(record, Mapping):
        yield row
        return
    seen.update(record)
    # An empty text stands for an empty cell.
    read = {name: "" if record.get(name) is None else record[name] for name in card.only}
    accepted = {name: value if isinstance(value, list) else [value] for name, value in card.only.items()}
    if any(value not in accepted[name] for name, value in read.items()):
        yield row._replace(record=None)
        return
    pictures = [name for name, value in record.items() if _ONE_OF_SEVERAL.fullmatch(name) and _is_picture(value)]
    if len(pictures) > 1 and not card.items:
        why = f"the row holds several pictures ({', '.join(pictures)}), and an item is about one"
        yield row._replace(record=Malformed(f"{why}; where each is asked about, a card says so with [[items]]"))
        return
    try:
        asked = turns_as_questions(record) or [dict(record)]
    except Malformed as error:
        yield row._replace(record=error)
        return
    seen.update(*asked)
    items = [(each, columns) for each in asked for columns in card.items or (dict[str, str](),)]
    for number, (each, columns) in enumerate(items, start=1):
        name = f"{row.name}-{number}" if len(items) > 1 else row.name
        try:
            fields = renamed(each, {**card.columns, **columns}) | dict(card.constants)
        except Malformed as error:
            yield row._replace(record=error, name=name)
            continue
        if len(items) > 1:
            fields["group"] = row.name
            fields["id"] = None if fields.get("id") is None else f"{fields['id']}-{number}"
        if card.facets:
            fields[FACETS] = tuple(facet.of(each) for facet in card.facets.values())
        if card.options_in_question:
            fields["question"], options = split_options(fields.get("question"))
            # Choices in a card are for questions without options; the right answer is the text of one choice.
            is_constant = fields.get("label") in card.constants.get("choices", ())
            fields["choices"] = fields.get("choices") if options is None and is_constant else options
        if card.right_choice_first and isinstance(fields.get("choices"), list):
            fields["choices"], fields["label"] = _drawn_order(fields["choices"], row._replace(name=name))
        lacks = any(fields.get(needed) in (None, "", []) for needed in card.needs)
        yield row._replace(record=None if lacks else fields, name=name)


def _is_picture(value: Any) -> bool:
    return isinstance(value, (bytes, Held)) or (isinstance(value, Mapping) and value.keys() == {"bytes", "path"})


def renamed(record: Mapping[str, Any], columns: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record under our column names; parse lists in cells and merge `choice_0`, ... into one list.

    A row may lack a column that the card names, just like an optional column: a test set has no labels.

    Args:
        columns: ours -> theirs, or several of theirs; an empty list means that our column is absent.

    Raises:
        Malformed: a cell begins like a list but is not one.
    """
    fields = dict(record)
    for ours, theirs in columns.items():
        # The row's column with our name is something else: the card maps ours to another column.
        fields.pop(ours, None)
        if isinstance(theirs, str):
            if theirs not in columns:
                fields.pop(theirs, None)
            cells = [record[theirs]] if theirs in record else []
        else:
            values = [record.get(name) for name in theirs]
            there = [value for value in values if not is_missing(value)]
            # A missing option keeps its number and its letter (`columns.py`).
            listed = values if ours in _OPTIONS_OF and there else there
            cells = [listed if ours in _LISTED else " ".join(map(str, there))] if theirs else []
        fields.update((ours, cell) for cell in cells)
    for single, several in (("choice", "choices"), ("rationale", "rationales")):
        for places in (map(str, count()), iter(ascii_lowercase)):
            cells = []
            while (name := f"{single}_{next(places, '')}") in fields:
                cells.append(fields.pop(name))
            if cells and several not in fields:
                fields[several] = [] if all(map(is_missing, cells)) else cells
    fields |= {name: parsed_cell(fields, name) for name in _LISTED & fields.keys()}
    return fields | {name: listed_options(fields[name]) for name in _OPTIONS_OF if name in fields}


def split_options(text: Any) -> tuple[Any, list[str] | None]:
    """Return a question without its options, and the options after "A.", "B:", "(C)", ...; None for fewer than two.

    They begin after the last "Options:" or "Option:", where no space is needed after a letter ("A:Knit cap;").
    Without this word they are the longest run of letters, on a tie the last: a sentence of the question may end in
    "A." too. Lines below the last option are not part of it.
    """
    if not isinstance(text, str):
        return text, None
    for header in reversed([*_OPTIONS.finditer(text)]):
        if runs := _runs_of_options(text, header.end(), gap=r"\s*"):
            return text[: header.start()].strip(), runs[0][1]
    runs = _runs_of_options(text, 0, gap=r"\s+")
    if not runs:
        return text, None
    start, options = max(reversed(runs), key=lambda run: len(run[1]))
    return text[:start].strip(), options


def _runs_of_options(text: str, start: int, *, gap: str) -> list[tuple[int, list[str]]]:
    """Return the offset and the non-empty options of each run of two or more lettered options after an offset.

    Args:
        gap: pattern between a letter's mark and its option.
    """
    runs: list[tuple[int, list[str]]] = []
    for first in _option_mark("A", gap).finditer(text, start):
        marks = [first]
        for letter in ascii_uppercase[1:]:
            if (mark := _option_mark(letter, gap).search(text, marks[-1].end())) is None:
                break
            marks.append(mark)
        ends = [*(mark.start() for mark in marks[1:]), len(text)]
        options = [text[mark.end() : end].strip().rstrip(",; ") for mark, end in zip(marks, ends, strict=True)]
        options[-1] = options[-1].partition("\n")[0].strip().rstrip(",; ")
        if len(marks) > 1 and all(options):
            runs.append((first.start(), options))
    return runs


def _option_mark(letter: str, gap: str) -> re.Pattern[str]:
    return re.compile(rf"(?:^|(?<=[\s,;:]))(?:\((?i:{letter})\)[.:]?|{letter}[.:)]){gap}")


def _drawn_order(texts: Sequence[Any], row: Row) -> tuple[list[Any], int]:
    """Return texts in an order that depends only on the row's name, and the new position of the first one."""
    order = sorted(range(len(texts)), key=lambda place: _draw(row, str(place)))
    return [texts[place] for place in order], order.index(0)


def _draw(row: Row, *parts: str) -> bytes:
    return draw_key(0, row.split or "", row.name, *parts)


def _with_drawn_rationales(rows: Iterator[Row], card: Card) -> Iterator[Row]:
    """Add rationales of nearby rows in the file to the first rationale of each row.

    Rows without a label get no rationales.
    """
    before: list[tuple[str, str]] = []
    while block := list(islice(rows, _BLOCK)):
        by_row: dict[str, list[str]] = {}
        for row in block:
            value = row.record.get("rationales") if isinstance(row.record, Mapping) else None
            by_row[row.name] = [text for text in value if isinstance(text, str)] if isinstance(value, list) else []
        pool = [(name, texts[0]) for name, texts in by_row.items() if texts]
        lent = pool if len(pool) == _BLOCK else before + pool
        for row in block:
            if not isinstance(row.record, Mapping) or not (right := by_row[row.name]):
                yield row
                continue
            start = int.from_bytes(_draw(row, "rationales"), "big") % len(lent)
            others = (text for name, text in lent[start:] + lent[:start] if name != row.name and text not in right)
            texts = [right[0], *islice(dict.fromkeys(others), (card.rationale_choices or 1) - 1)]
            rationales, label = _drawn_order(texts, row)
            yield row._replace(record={**row.record, "rationales": rationales, "rationale_label": label})
        before = pool
