"""Rows as they were published become rows under our columns: what a card says of them, one function a rule."""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, count, islice
from string import ascii_lowercase, ascii_uppercase
from typing import Any

from advl_pipeline.datasets.own.fields import synonyms
from advl_pipeline.datasets.problems import Malformed
from advl_pipeline.datasets.rows import DataCard, Row
from advl_pipeline.errors import DatasetError, again, suggest_names

_LISTED = frozenset({"choices", "rationales", "boxes", "box_labels", "answers"})
"""Columns whose cells hold JSON, or a list of Python, where a format has no lists (CSV)."""

_ONE_OF_SEVERAL = re.compile(r".*\D\d+|(left|right)_.*")
"""Names of columns that hold one of several pictures."""

_BLOCK = 256
"""Rows that rationales are drawn from at once."""


def shaped(rows: Iterable[Row], card: DataCard, *, dataset: str) -> Iterator[Row]:
    """Yield the items of rows under our columns; rows of a reader that checks them itself pass through.

    Args:
        dataset: named in errors.

    Raises:
        DatasetError: the card names a column that no row has.
    """
    seen: set[str] = set()
    found = (_under_our_columns(item, card) for row in rows for item in _items_of(row, card, seen))
    yield from _with_drawn_rationales(found, card) if card.rationale_choices else found
    for ours, theirs in chain.from_iterable(table.items() for table in (card.columns, *card.items)):
        for name in [theirs] if isinstance(theirs, str) else theirs:
            # It is mistyped, and no row is to blame.
            if seen and name not in seen:
                raise DatasetError(
                    "The card names a column that no row has.",
                    where=f"{dataset} [columns] {ours}",
                    why=f"column {name!r}, which the card gives as {ours!r}, is missing; "
                    + suggest_names(name, seen),
                    next_command=again(
                        f"mend or remove the line {ours} = {name!r} of the card, then give the same command again"
                    ),
                )


def _items_of(row: Row, card: DataCard, seen: set[str]) -> Iterator[Row]:
    """Yield the items that the card makes of a row, or the row; without a record where the card leaves it out."""
    record = row.record
    if not isinstance(record, Mapping):
        yield row
        return
    seen.update(record)
    if any(
        record.get(name) not in (value if isinstance(value, list) else [value]) for name, value in card.only.items()
    ):
        yield row._replace(record=None)
        return
    if not card.items:
        yield row
    for number, columns in enumerate(card.items, start=1):
        item = {ours: record.get(theirs) for ours, theirs in columns.items()}
        yield row._replace(record={**record, "group": row.name, **item}, name=f"{row.name}-{number}")


def _under_our_columns(row: Row, card: DataCard) -> Row:
    if not isinstance(row.record, Mapping):
        return row
    try:
        found = renamed(row.record, card)
        if not card.items:
            _refuse_several_pictures(row.record)
    except Malformed as error:
        return row._replace(record=error)
    found |= card.constants
    if card.items and found.get("id") is not None:
        found["id"] = f"{found['id']}-{row.name.rpartition('-')[2]}"
    if card.options_in_question:
        found["question"], found["choices"] = split_options(found.get("question"))
    if card.right_choice_first and isinstance(found.get("choices"), list):
        found["choices"], found["label"] = _drawn_order(found["choices"], row, card)
    if any(found.get(name) in (None, "", []) for name in card.needs):
        return row._replace(record=None)
    return row._replace(record=found)


def renamed(record: Mapping[str, Any], card: DataCard) -> dict[str, Any]:
    """Return a record under our names of its columns; lists in cells are parsed, `choice_0`, ... become one list.

    Names of public datasets that mean one thing need no card, such as `multiple_choice_answer`.
    A row may lack a column that the card names, as an optional one under our name: a test set has no labels.

    Raises:
        Malformed: a cell begins like a list and is none.
    """
    found = dict(record)
    for ours, theirs in card.columns.items():
        if not isinstance(theirs, str):
            cells = [record.get(name) for name in theirs if record.get(name) not in (None, "")]
            found[ours] = cells if ours in _LISTED else " ".join(map(str, cells))
        elif theirs in record:
            found[ours] = record[theirs]
        else:
            # What the row has under our name is something else: the card says how ours is called.
            found.pop(ours, None)
        if isinstance(theirs, str) and theirs not in card.columns:
            found.pop(theirs, None)
    for theirs, ours in synonyms(found, card).items():
        found[ours] = found.pop(theirs)
    if "correct_choice_idx" in record and "rationale_label" not in found and not card.rationale_choices:
        # Rationales beside such a label explain the right choice, and all are right: there is none to choose.
        found.pop("rationales", None)
    for one, several in (("choice", "choices"), ("rationale", "rationales")):
        for places in (map(str, count()), iter(ascii_lowercase)):
            cells = []
            while (name := f"{one}_{next(places, '')}") in found:
                cells.append(found.pop(name))
            if cells and several not in found:
                while cells and cells[-1] in (None, ""):
                    cells.pop()
                found[several] = cells
    for name in _LISTED & found.keys():
        text = found[name]
        if isinstance(text, str) and text.lstrip()[:1] in ("[", "{"):
            found[name] = _parsed(name, text)
    return found


def _parsed(name: str, text: str) -> Any:
    """Return what a text holds: JSON, or a list or table as Python prints it."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            raise Malformed(f"field {name!r} begins like JSON and is none: {error}") from None


def _refuse_several_pictures(record: Mapping[str, Any]) -> None:
    pictures = [name for name, value in record.items() if isinstance(value, bytes) or _is_stored_picture(value)]
    several = [name for name in pictures if _ONE_OF_SEVERAL.fullmatch(name)]
    if len(several) > 1:
        raise Malformed(
            f"the row holds several pictures ({', '.join(several)}), and an item is about one; where each is asked "
            "about on its own, a card says so with [[items]]"
        )


def _is_stored_picture(value: Any) -> bool:
    return isinstance(value, Mapping) and value.keys() == {"bytes", "path"}


def split_options(text: Any) -> tuple[Any, list[str] | None]:
    """Return a question without its options, and the options behind "A.", "B:", "(C)" and so on; None without two.

    What stands on lines below the last option is no part of it, nor is "Options:" above them.
    """
    marks: list[re.Match[str]] = []
    for letter in ascii_uppercase if isinstance(text, str) else "":
        mark = re.compile(rf"(?:^|(?<=[\s,;:]))(?:\({letter}\)[.:]?|{letter}[.:)])\s+")
        found = mark.search(text, marks[-1].end() if marks else 0)
        if found is None:
            break
        marks.append(found)
    if len(marks) < 2:
        return text, None
    ends = [*(found.start() for found in marks[1:]), len(text)]
    options = [text[found.end() : end].strip().rstrip(",; ") for found, end in zip(marks, ends, strict=True)]
    options[-1] = options[-1].partition("\n")[0].strip()
    return text[: marks[0].start()].strip().removesuffix("Options:").strip(), options


def _drawn_order(texts: Sequence[Any], row: Row, card: DataCard) -> tuple[list[Any], int]:
    """Return texts in an order that depends on the seed and on the row's name alone, and where the first one went."""
    order = sorted(range(len(texts)), key=lambda place: _draw(card, row, str(place)))
    return [texts[place] for place in order], order.index(0)


def _draw(card: DataCard, row: Row, *parts: str) -> bytes:
    told = "\0".join((str(card.shuffle_seed), row.split or "", row.name, *parts))
    return hashlib.blake2b(told.encode(), digest_size=8).digest()


def _with_drawn_rationales(rows: Iterator[Row], card: DataCard) -> Iterator[Row]:
    """Put others' rationales beside the first one of each row; rows near it in the file give them.

    Rows without a label have none to choose from.
    """
    assert card.rationale_choices is not None
    before: list[tuple[str, str]] = []
    while block := list(islice(rows, _BLOCK)):
        own = {row.name: _rationales(row) for row in block}
        pool = [(name, texts[0]) for name, texts in own.items() if texts]
        lent = pool if len(pool) == _BLOCK else before + pool
        for row in block:
            if not isinstance(row.record, Mapping) or not (right := own[row.name]):
                yield row
                continue
            start = int.from_bytes(_draw(card, row, "rationales"), "big")
            turned = (lent[(start + place) % len(lent)] for place in range(len(lent)))
            others = (text for name, text in turned if name != row.name and text not in right)
            texts = [right[0], *islice(dict.fromkeys(others), card.rationale_choices - 1)]
            rationales, label = _drawn_order(texts, row, card)
            yield row._replace(record={**row.record, "rationales": rationales, "rationale_label": label})
        before = pool


def _rationales(row: Row) -> list[str]:
    found = row.record.get("rationales") if isinstance(row.record, Mapping) else None
    return [text for text in found if isinstance(text, str)] if isinstance(found, list) else []
