"""One row becomes one item, under our columns: what a card says of it, its kind of task, and every field checked.

The card's rules rename columns, choose rows and draw what is to be drawn, one function a rule. The kind of task is
told from the columns. Each complaint names the field, what it is and what was expected.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, count, islice
from string import ascii_lowercase, ascii_uppercase
from typing import Any

from advl_pipeline.base.errors import DatasetError, again, suggest_names
from advl_pipeline.datasets.boxes import checked_boxes
from advl_pipeline.datasets.cards import COLUMNS, Card, Kind
from advl_pipeline.datasets.own.conversations import turns_as_questions
from advl_pipeline.datasets.problems import Malformed, shown
from advl_pipeline.datasets.records import normalise_text, parse_tagged
from advl_pipeline.datasets.roots import is_safe_name
from advl_pipeline.datasets.rows import Held, Item, Row

MADE_OF: Mapping[Kind, tuple[str, ...]] = {
    "choice": ("image", "question", "choices", "label"),
    "classes": ("image", "text", "label"),
    "answers": ("image", "question", "answers", "answer"),
    "pictures": ("image",),
}
"""Columns that a task is made of, a row of which has the first two; the others that are known add to it."""

_MARKERS: Mapping[Kind, tuple[str, ...]] = {
    "choice": ("choices", "choice_0"),
    "classes": ("text",),
    "answers": ("answers", "answer"),
}
"""Columns that only one kind has."""

_OF_PICTURES = frozenset({"id", "image", "boxes", "box_labels", "split", "group", "stratum"})
"""Columns that are about a picture alone."""

_LIKELY: Mapping[str, str] = {
    **dict.fromkeys(("file_name", "filename", "image_path", "picture", "photo"), "image"),
    **dict.fromkeys(("caption", "hypothesis", "sentence", "sentence2", "statement", "claim"), "text"),
    **dict.fromkeys(("options", "candidates"), "choices"),
    **dict.fromkeys(("gold", "gold_label", "target", "answer_idx", "correct_choice_idx"), "label"),
    "direct_answers": "answers",
    "multiple_choice_answer": "answer",
}
"""Columns of public datasets that often mean one of ours: for hints."""

MIN_CHOICES = 2
_SPLIT_NAME = re.compile(r"(?!\.)[\w.-]+")
_OPTIONS = re.compile(r"\bOptions?:", re.IGNORECASE)
_LETTER = re.compile(r"\(?([A-Z])\)?[.:]?|\(([a-z])\)")


def columns_of(kind: Kind) -> str:
    """Return a kind of task with the columns that it is made of, for messages."""
    return f"{kind} ({', '.join(MADE_OF[kind])})"


def _kinds_of(columns: Collection[str]) -> list[Kind]:
    if "image" in columns and _OF_PICTURES.issuperset(columns):
        return ["pictures"]
    return [kind for kind, markers in _MARKERS.items() if any(name in columns for name in markers)]


def recognise(columns: Collection[str], card_kind: Kind | None) -> Kind:
    """Return the kind of task of a row with these columns.

    Args:
        columns: names, after those that a card gives were put in place of the file's own.
        told: kind that the card names.

    Raises:
        Malformed: the columns fit no kind, several, or not the one that the card names.
    """
    kinds = [card_kind] if card_kind else _kinds_of(columns)
    if len(kinds) > 1:
        is_key = {"choice", "answers"} <= {*kinds} and "answer" in columns and "label" not in columns
        key = '; where the answer is the right one of the choices: [columns] label = "answer"' if is_key else ""
        fits = " and ".join(map(columns_of, kinds))
        raise Malformed(f"the columns are ambiguous: they fit {fits}; a card can say which: task = {kinds[0]!r}{key}")
    listed = ", ".join(sorted(map(str, columns))) or "(none)"
    if not kinds:
        known = "; ".join(map(columns_of, MADE_OF))
        raise Malformed(f"the columns {listed} fit no kind of task; {known}{_hint(columns, None)}")
    (kind,) = kinds
    needed = [(name,) for name in MADE_OF[kind][:2]] + ([_MARKERS[kind]] if kind == "choice" else [])
    for names in needed:
        if not any(name in columns for name in names):
            why = "the card says" if card_kind else "the other columns say"
            raise Malformed(
                f"column {names[0]!r} is missing, {why} that the task is {columns_of(kind)}; found: {listed}"
                + _hint(columns, kind)
            )
    return kind


def _hint(columns: Collection[str], kind: Kind | None) -> str:
    """Return a card's lines that would rename the columns which look like ours; those of one kind of task alone."""
    missing = [name for name in COLUMNS if name not in columns]
    looks_like: dict[str, str] = {}
    # A name that is known from public datasets says more than one that is spelt alike.
    for name in sorted(map(str, columns), key=lambda name: (name.lower() not in _LIKELY, name)):
        near = [_LIKELY.get(name.lower(), ""), *difflib.get_close_matches(name.lower(), missing, n=1, cutoff=0.6)]
        ours = next((column for column in near if column in missing), "")
        if name not in COLUMNS and ours:
            looks_like.setdefault(ours, name)
    kind = kind or next((likely for likely, names in _MARKERS.items() if looks_like.keys() & {*names}), None)
    others = {name for other, names in _MARKERS.items() if other != kind for name in names}
    lines = [f'{ours} = "{looks_like[ours]}"' for ours in COLUMNS if ours in looks_like.keys() - others]
    return f"; a card renames columns: [columns] {' and '.join(lines)}" if lines else ""


_LISTED = frozenset({"choices", "rationales", "boxes", "box_labels", "answers"})
"""Columns whose cells hold JSON, or a list of Python, where a format has no lists (CSV)."""

FACETS = "facets"
"""Where a record under our columns has the facets that its card asks for. They label items of measures alone, so the
digest of a split does not hold them."""

_ONE_OF_SEVERAL = re.compile(r".*\D\d+|(left|right)_.*")
"""Names of columns that hold one of several pictures."""

_BLOCK = 256
"""Rows that rationales are drawn from at once."""


def shaped(rows: Iterable[Row], card: Card, *, dataset: str) -> Iterator[Row]:
    """Yield the items of rows under our columns; rows of a reader that checks them itself pass through.

    Args:
        dataset: named in errors.

    Raises:
        DatasetError: the card names a column that no row has.
    """
    seen: set[str] = set()
    items = (item for row in rows for item in _items_of(row, card, seen))
    yield from _with_drawn_rationales(items, card) if card.rationale_choices else items
    of_facets = {f"facets.{name}": facet.column.partition(".")[0] for name, facet in card.facets.items()}
    for ours, theirs in chain.from_iterable(table.items() for table in (card.columns, *card.items, of_facets)):
        for name in [theirs] if isinstance(theirs, str) else theirs:
            # It is mistyped, and no row is to blame.
            if seen and name not in seen:
                raise DatasetError(
                    "The card names a column that no row has.",
                    where=f"{dataset} {f'[{ours}]' if ours in of_facets else f'[columns] {ours}'}",
                    why=f"column {name!r}, which the card gives as {ours!r}, is missing; "
                    + suggest_names(name, seen),
                    next_command=again("mend or remove the line of the card, then give the same command again"),
                )


def _items_of(row: Row, card: Card, seen: set[str]) -> Iterator[Row]:
    """Yield the items that the card makes of a row; without a record where the card leaves one out."""
    record = row.record
    if not isinstance(record, Mapping):
        yield row
        return
    seen.update(record)
    read = {name: value if isinstance(value, list) else [value] for name, value in card.only.items()}
    if any(record.get(name) not in values for name, values in read.items()):
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
            # A card's own choices are for questions without options, whose right answer is the text of one.
            is_constant = fields.get("label") in card.constants.get("choices", ())
            fields["choices"] = fields.get("choices") if options is None and is_constant else options
        if card.right_choice_first and isinstance(fields.get("choices"), list):
            fields["choices"], fields["label"] = _drawn_order(fields["choices"], row._replace(name=name), card)
        lacks = any(fields.get(needed) in (None, "", []) for needed in card.needs)
        yield row._replace(record=None if lacks else fields, name=name)


def _is_picture(value: Any) -> bool:
    return isinstance(value, (bytes, Held)) or (isinstance(value, Mapping) and value.keys() == {"bytes", "path"})


def renamed(record: Mapping[str, Any], columns: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record under our names of its columns; lists in cells are parsed, `choice_0`, ... become one list.

    A row may lack a column that the card names, as an optional one under our name: a test set has no labels.

    Args:
        columns: ours -> theirs, or several of theirs; none of them says that there is nothing under our name.

    Raises:
        Malformed: a cell begins like a list and is none.
    """
    fields = dict(record)
    for ours, theirs in columns.items():
        # What the row has under our name is something else: the card says how ours is called.
        fields.pop(ours, None)
        if isinstance(theirs, str):
            if theirs not in columns:
                fields.pop(theirs, None)
            cells = [record[theirs]] if theirs in record else []
        else:
            values = [record.get(name) for name in theirs if record.get(name) not in (None, "")]
            cells = [values if ours in _LISTED else " ".join(map(str, values))] if theirs else []
        fields.update((ours, cell) for cell in cells)
    for single, several in (("choice", "choices"), ("rationale", "rationales")):
        for places in (map(str, count()), iter(ascii_lowercase)):
            cells = []
            while (name := f"{single}_{next(places, '')}") in fields:
                cells.append(fields.pop(name))
            if cells and several not in fields:
                while cells and cells[-1] in (None, ""):
                    cells.pop()
                fields[several] = cells
    for name in _LISTED & fields.keys():
        text = fields[name]
        if isinstance(text, str) and text.lstrip()[:1] in ("[", "{"):
            fields[name] = _parsed(name, text)
    return fields


def _parsed(name: str, text: str) -> Any:
    """Return what a text holds: JSON, or a list or table as Python prints it."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            raise Malformed(f"field {name!r} begins like JSON and is none: {error}") from None


def split_options(text: Any) -> tuple[Any, list[str] | None]:
    """Return a question without its options, and the options behind "A.", "B:", "(C)" and so on; None without two.

    They begin behind the last "Options:" or "Option:", where a letter may touch its option ("A:Knit cap;"). Without
    one they are the longest run of letters, of two alike the last: a sentence of the question may end in "A." too.
    What stands on lines below the last option is no part of it.
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
    """Return where each run of two lettered options or more begins behind a place, and the options, none empty.

    Args:
        gap: pattern of what stands between a letter's mark and its option.
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


def _drawn_order(texts: Sequence[Any], row: Row, card: Card) -> tuple[list[Any], int]:
    """Return texts in an order that depends on the seed and on the row's name alone, and where the first one went."""
    order = sorted(range(len(texts)), key=lambda place: _draw(card, row, str(place)))
    return [texts[place] for place in order], order.index(0)


def _draw(card: Card, row: Row, *parts: str) -> bytes:
    seed_text = "\0".join((str(card.shuffle_seed), row.split or "", row.name, *parts))
    return hashlib.blake2b(seed_text.encode(), digest_size=8).digest()


def _with_drawn_rationales(rows: Iterator[Row], card: Card) -> Iterator[Row]:
    """Add others' rationales to the first one of each row; rows near it in the file give them.

    Rows without a label have none to choose from.
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
            start = int.from_bytes(_draw(card, row, "rationales"), "big") % len(lent)
            others = (text for name, text in lent[start:] + lent[:start] if name != row.name and text not in right)
            texts = [right[0], *islice(dict.fromkeys(others), (card.rationale_choices or 1) - 1)]
            rationales, label = _drawn_order(texts, row, card)
            yield row._replace(record={**row.record, "rationales": rationales, "rationale_label": label})
        before = pool


def parse_item(record: Mapping[str, Any], kind: Kind, card: Card) -> Item:
    """Check a record under our names.

    Raises:
        Malformed: with the field at fault.
    """
    boxes = () if record.get("boxes") is None else checked_boxes(record["boxes"])
    label: int | str | None
    rationale_label, answers = None, {}
    texts = [] if kind == "pictures" else [_text(record, "text" if kind == "classes" else "question", len(boxes))]
    choices: list[str] = []
    if kind == "choice":
        choices = _texts(record, "choices", len(boxes))
        label = _place("label", record.get("label"), list(map(normalise_text, choices)), card, has_letters=True)
        texts += choices
        if record.get("rationales") is not None:
            rationales = _texts(record, "rationales", len(boxes))
            raw_label, read = record.get("rationale_label"), list(map(normalise_text, rationales))
            rationale_label = _place("rationale_label", raw_label, read, card, has_letters=True)
            if (label is None) != (rationale_label is None):
                missing = "label" if label is None else "rationale_label"
                raise Malformed(f"field {missing!r} is missing; a row with rationales has both labels or none")
            texts += rationales
    elif kind == "classes":
        label = _class(record, card)
    elif kind == "pictures":
        label = None
    else:
        answers = _answers(record)
        label = max(answers, key=answers.__getitem__, default=None)
    value = record.get("box_labels")
    if value is not None and not (
        isinstance(value, list) and len(value) == len(boxes) and all(isinstance(text, str) for text in value)
    ):
        raise _unlike("box_labels", value, f"one text for each of the {len(boxes)} boxes")
    return Item(
        item_id=_name(record, "id"),
        image=_image(record.get("image")),
        boxes=boxes,
        box_labels=tuple(value or ()),
        texts=tuple(texts),
        num_choices=len(choices),
        label=label,
        rationale_label=rationale_label,
        answers=tuple(answers),
        counts=tuple(answers.values()),
        group=_name(record, "group") or "",
        stratum=_name(record, "stratum") or "",
        facets=record[FACETS] if card.facets else (),
    )


def split_of(record: Mapping[str, Any], file_split: str | None) -> str | None:
    """Return the split that a record names, else the one of its file.

    Raises:
        Malformed: the two differ, or the field is no text or cannot name a split.
    """
    row_split = _name(record, "split")
    if row_split is not None and file_split is not None and row_split != file_split:
        raise Malformed(f"field 'split' is {row_split!r}, the file is given as the split {file_split!r}")
    name = row_split or file_split
    if name is not None and not _SPLIT_NAME.fullmatch(name):
        # Splits name folders of caches, `--on` takes DATASET/SPLIT, and + joins splits.
        where = "field 'split' is" if row_split is not None else "the file is given as the split"
        raise Malformed(f"{where} {name!r}, expected letters, digits, '_', '-' and '.', not '.' first")
    return name


def _unlike(name: str, value: Any, expected: str) -> Malformed:
    """Return the complaint about a field that is not what was expected; long values are cut short."""
    return Malformed(f"field {name!r} is {'missing' if value is None else shown(value)}, expected {expected}")


def _name(record: Mapping[str, Any], name: str) -> str | None:
    value = record.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise _unlike(name, value, "a text or a whole number")
    return str(value)


def _text(record: Mapping[str, Any], name: str, num_boxes: int) -> str:
    value = record.get(name)
    if not isinstance(value, str) or not value.strip():
        raise _unlike(name, value, "a text")
    parse_tagged(value, num_boxes)
    return value


def _texts(record: Mapping[str, Any], name: str, num_boxes: int) -> list[str]:
    value = record.get(name)
    if not isinstance(value, list) or len(value) < MIN_CHOICES:
        raise _unlike(name, value, f"a list of {MIN_CHOICES} texts or more")
    return [_text({f"{name}[{place}]": text}, f"{name}[{place}]", num_boxes) for place, text in enumerate(value)]


def _place(name: str, label: Any, texts: Sequence[str], card: Card, *, has_letters: bool) -> int | None:
    """Return the position among texts that a label gives by number, by text, or by a letter from A on.

    A letter is none where a text reads so, unless the card says otherwise.

    Args:
        has_letters: texts go by letters, as choices do.
    """
    value = normalise_text(str(label))
    if label is None or not value:
        return None
    places: dict[str, int] = {}
    if isinstance(label, str) and value in texts:
        places["text"] = texts.index(value)
    if (value.isdecimal() and not isinstance(label, bool)) and int(value) < len(texts):
        places["index"] = int(value)
    letter = _LETTER.fullmatch(value) if has_letters else None
    number = ascii_uppercase.index((letter[1] or letter[2]).upper()) if letter else len(texts)
    if number < len(texts) and ("text" not in places or card.label_is == "letter"):
        places["letter"] = number
    form = card.label_is or ""
    read = {form: places[form]} if form in places else places
    if "text" in read and texts.count(value) > 1:
        raise Malformed(f"field {name!r} is ambiguous: two choices read {shown(value)}")
    positions = {*read.values()}
    if len(positions) > 1:
        raise Malformed(
            f"field {name!r} is ambiguous: {shown(value)} is a position and also the text of the one at position "
            f'{places["text"]}; a card can say which: label_is = "index" or "text"'
        )
    if not positions:
        forms = ", one of the texts, or a letter from A on" if has_letters else " or one of the texts"
        raise _unlike(name, label, f"a position from 0 to {len(texts) - 1}{forms}: {shown(texts)}")
    return positions.pop()


def _class(record: Mapping[str, Any], card: Card) -> str | None:
    value = record.get("label")
    if value is not None and not isinstance(value, (str, int)):
        raise _unlike("label", value, "the name or the number of a class")
    # As texts are read: "ja " is no other class than "ja", nor is an accent written in another way.
    name = "" if value is None else _plain(value)
    if not card.labels:
        return name or None
    labels = list(map(normalise_text, card.labels))
    # "A" is more often the name of a class that the card lacks than the first of its classes.
    place = _place("label", name, labels, card, has_letters=card.label_is == "letter")
    return None if place is None else card.labels[place]


def _answers(record: Mapping[str, Any]) -> dict[str, int]:
    """Return answer -> how many gave it; nothing where there is none."""
    present = {name: record[name] for name in ("answers", "answer") if record.get(name) is not None}
    if len(present) > 1:
        raise Malformed("fields 'answers' and 'answer' are both there, expected one of them")
    name, value = next(iter(present.items()), ("answer", ""))
    if value == "":
        return {}
    texts: list[Any] = value if isinstance(value, list) else [value]
    texts = [item.get("answer") if isinstance(item, dict) else item for item in texts]
    people = [1] * len(texts)
    if isinstance(value, dict):
        texts, people = [*value], [*value.values()]
    plain = [_plain(text) if isinstance(text, (str, int)) else "" for text in texts]
    if not plain or not all(plain) or not all(type(number) is int and number > 0 for number in people):
        raise _unlike(name, value, "a text, a list of texts, or texts with counts above 0")
    counts: Counter[str] = Counter()
    for text, number in zip(plain, people, strict=True):
        counts[text] += number
    return dict(counts)


def _plain(text: str | int | bool) -> str:
    return str(text).lower() if isinstance(text, bool) else normalise_text(str(text))


def _image(value: Any) -> str | bytes | Held:
    """Return a name, bytes, or where the picture is held.

    Libraries write a picture inside a table as {bytes, path}, or in a list of one.
    """
    if isinstance(value, list) and value:
        if len(value) > 1:
            raise Malformed(f"field 'image' holds {len(value)} pictures, and an item is about one")
        value = value[0]
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path") or value
    if isinstance(value, Held) or (isinstance(value, bytes) and value):
        return value
    if not isinstance(value, str) or not value:
        raise _unlike("image", value, "the file name of a picture")
    if not is_safe_name(value):
        raise Malformed(f"field 'image' is {value!r}, which leaves the pictures' folder; expected a name below it")
    return value
