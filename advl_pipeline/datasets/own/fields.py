"""One row becomes one item: its kind of task is told from its columns, and every field is checked.

Each complaint names the field, what it is and what was expected. Boxes stand in the text: "Why is [the dog|0]
running?" says that the words "the dog" stand for box 0. Only rows that have boxes are read so; elsewhere a bracket is
a bracket.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from advl_pipeline.datasets.boxes import is_number
from advl_pipeline.datasets.problems import Malformed
from advl_pipeline.datasets.records import Candidate, ObjectTag, normalise_text, text_unit
from advl_pipeline.datasets.roots import is_safe_name
from advl_pipeline.datasets.rows import COLUMNS, DataCard, Item, Kind

MIN_CHOICES = 2

_SPLIT_NAME = re.compile(r"(?!\.)[\w.-]+")

_LETTER = re.compile(r"\(?([A-Z])\)?[.:]?")


def parse_item(record: Mapping[str, Any], kind: Kind, card: DataCard) -> Item:
    """Check a record under our names.

    Raises:
        Malformed: with the field at fault.
    """
    boxes = _boxes(record.get("boxes"))
    count = len(boxes)
    label: int | str | None
    rationale_label, answers = None, {}
    texts = [_text(record, "text" if kind == "classes" else "question", count)]
    choices: list[str] = []
    if kind == "choice":
        choices = _texts(record, "choices", count)
        label = _right_one(record, "label", choices, card)
        texts += choices
        if record.get("rationales") is not None:
            rationales = _texts(record, "rationales", count)
            rationale_label = _right_one(record, "rationale_label", rationales, card)
            if (label is None) != (rationale_label is None):
                missing = "label" if label is None else "rationale_label"
                raise Malformed(f"field {missing!r} is missing; a row with rationales has both labels or none")
            texts += rationales
    elif kind == "classes":
        label = _class(record, card)
    else:
        answers = _answers(record)
        label = max(answers, key=answers.__getitem__, default=None)
    return Item(
        item_id=_name(record, "id"),
        image=_image(record.get("image")),
        boxes=boxes,
        box_labels=_box_labels(record.get("box_labels"), count),
        texts=tuple(texts),
        num_choices=len(choices),
        label=label,
        rationale_label=rationale_label,
        answers=tuple(answers),
        counts=tuple(answers.values()),
        group=_name(record, "group") or "",
        stratum=_name(record, "stratum") or "",
    )


def split_of(record: Mapping[str, Any], told: str | None) -> str | None:
    """Return the split that a record names, else the one of its file.

    Raises:
        Malformed: the two differ, or the field is no text or cannot name a split.
    """
    own = _name(record, "split")
    if own is not None and told is not None and own != told:
        raise Malformed(f"field 'split' is {own!r}, the file is given as the split {told!r}")
    name = own or told
    if name is not None and not _SPLIT_NAME.fullmatch(name):
        # Splits name folders of caches, `--on` takes DATASET/SPLIT, and + joins splits.
        where = "field 'split' is" if own is not None else "the file is given as the split"
        raise Malformed(f"{where} {name!r}, expected letters, digits, '_', '-' and '.', not '.' first")
    return name


def _name(record: Mapping[str, Any], name: str) -> str | None:
    value = record.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise Malformed(f"field {name!r} is {_shown(value)}, expected a text or a whole number")
    return str(value)


def _text(record: Mapping[str, Any], name: str, num_boxes: int) -> str:
    value = record.get(name)
    if not isinstance(value, str) or not value.strip():
        raise Malformed(f"field {name!r} is {_shown(value)}, expected a text")
    parse_tagged(value, num_boxes)
    return value


def _texts(record: Mapping[str, Any], name: str, num_boxes: int) -> list[str]:
    value = record.get(name)
    if not isinstance(value, list) or len(value) < MIN_CHOICES:
        raise Malformed(f"field {name!r} is {_shown(value)}, expected a list of {MIN_CHOICES} texts or more")
    return [_text({f"{name}[{place}]": text}, f"{name}[{place}]", num_boxes) for place, text in enumerate(value)]


def _right_one(record: Mapping[str, Any], name: str, choices: list[str], card: DataCard) -> int | None:
    """Return the position of the right choice, which is given by position, by its text, or by a letter."""
    value = record.get(name)
    if value is None or value == "":
        return None
    expected = (
        f"expected a position from 0 to {len(choices) - 1}, or the text of one of the choices, or a letter from A on"
    )
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise Malformed(f"field {name!r} is {_shown(value)}, {expected}")
    # As texts are read: an accent, or a space at the end, may be written in several ways.
    texts = [normalise_text(choice) for choice in choices]
    value = normalise_text(value) if isinstance(value, str) else value
    by_text = isinstance(value, str) and value in texts
    by_index = isinstance(value, int) or value.isdecimal()
    if card.label_is is not None:
        by_text, by_index = by_text and card.label_is == "text", by_index and card.label_is == "index"
    letter = (
        _LETTER.fullmatch(value) if isinstance(value, str) and (not by_text or card.label_is == "letter") else None
    )
    if letter and card.label_is in (None, "letter") and ord(letter[1]) - ord("A") < len(choices):
        return ord(letter[1]) - ord("A")
    if by_text and by_index and texts.index(str(value)) != int(value):
        raise Malformed(
            f"field {name!r} is ambiguous: {value!r} is a position and also the text of choice "
            f'{texts.index(str(value))}; a card can say which: label_is = "index" or "text"'
        )
    if by_text and texts.count(str(value)) > 1:
        raise Malformed(f"field {name!r} is ambiguous: two choices read {value!r}")
    if by_text:
        return texts.index(str(value))
    if by_index and 0 <= int(value) < len(choices):
        return int(value)
    raise Malformed(f"field {name!r} is {_shown(value)}, {expected}")


def _class(record: Mapping[str, Any], card: DataCard) -> str | None:
    value = record.get("label")
    if isinstance(value, str):
        # As texts are read: "ja " is no class beside "ja", nor is an accent written in another way.
        value = normalise_text(value)
    if value is None or value == "":
        return None
    if isinstance(value, bool):
        value = str(value).lower()
    if not isinstance(value, (str, int)):
        raise Malformed(f"field 'label' is {_shown(value)}, expected the name or the number of a class")
    name = str(value)
    if not card.labels:
        return name
    by_text = [label for label in card.labels if normalise_text(label) == name]
    by_index = [card.labels[int(name)]] if name.isdecimal() and int(name) < len(card.labels) else []
    if by_text and by_index and by_text != by_index and card.label_is is None:
        raise Malformed(
            f"field 'label' is ambiguous: {value!r} is a class of the card, and the position of its class "
            f'{by_index[0]!r}; a card can say which: label_is = "index" or "text"'
        )
    found = by_index + by_text if card.label_is == "index" else by_text + by_index
    if not found:
        raise Malformed(f"field 'label' is {value!r}, the card's labels are {', '.join(card.labels)}")
    return found[0]


def _answers(record: Mapping[str, Any]) -> dict[str, int]:
    """Return answer -> how many gave it; nothing where there is none."""
    if record.get("answers") is not None and record.get("answer") is not None:
        raise Malformed("fields 'answers' and 'answer' are both there, expected one of them")
    name = "answers" if record.get("answers") is not None else "answer"
    value = record.get(name)
    if value is None or value == "":
        return {}
    if isinstance(value, (str, int)):
        value = [value]
    if isinstance(value, list):
        texts: list[Any] = [item.get("answer") if isinstance(item, dict) else item for item in value]
        if texts and all(isinstance(text, (str, int)) and str(text).strip() for text in texts):
            return dict(Counter(_plain(text) for text in texts))
    elif isinstance(value, dict) and all(type(count) is int and count > 0 for count in value.values()):
        counts: Counter[str] = Counter()
        for text, count in value.items():
            counts[_plain(text)] += count
        if counts and all(counts):
            return dict(counts)
    raise Malformed(
        f"field {name!r} is {_shown(value)}, expected a text, a list of texts, or texts with counts above 0"
    )


def _plain(text: str | int | bool) -> str:
    return str(text).lower() if isinstance(text, bool) else normalise_text(str(text))


def _image(value: Any) -> str | bytes:
    """Return a name or bytes; libraries write a picture inside a table as {bytes, path}, or in a list of one."""
    if isinstance(value, list) and value:
        if len(value) > 1:
            raise Malformed(f"field 'image' holds {len(value)} pictures, and an item is about one")
        value = value[0]
    if isinstance(value, dict) and (value.get("bytes") or value.get("path")):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes) and value:
        return value
    if not isinstance(value, str) or not value:
        raise Malformed(f"field 'image' is {_shown(value)}, expected the file name of a picture")
    if not is_safe_name(value):
        raise Malformed(f"field 'image' is {value!r}, which leaves the pictures' folder; expected a name below it")
    return value


def _boxes(value: Any) -> tuple[tuple[float, float, float, float], ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise Malformed(f"field 'boxes' is {_shown(value)}, expected a list of [x1, y1, x2, y2] in pixels")
    for place, box in enumerate(value):
        if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
            raise Malformed(f"field 'boxes[{place}]' is {_shown(box)}, expected [x1, y1, x2, y2] in pixels")
        if not (box[0] < box[2] and box[1] < box[3]):
            raise Malformed(f"field 'boxes[{place}]' is {_shown(box)}, expected x1 < x2 and y1 < y2")
    return tuple((float(x1), float(y1), float(x2), float(y2)) for x1, y1, x2, y2 in value)


def _box_labels(value: Any, count: int) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) != count or not all(isinstance(text, str) for text in value):
        raise Malformed(f"field 'box_labels' is {_shown(value)}, expected one text for each of the {count} boxes")
    return tuple(value)


def _shown(value: Any) -> str:
    """Return a value for a message, cut short."""
    if value is None:
        return "missing"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


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


_TAG = re.compile(r"\[([^\[\]|]*[^\[\]|\s][^\[\]|]*)\|(\d+)\]")


def parse_tagged(text: str, num_boxes: int) -> tuple[str, tuple[ObjectTag, ...]]:
    """Return a text in normal form without the marks of its tags, and the tags.

    Raises:
        Malformed: a tag names a box that the row does not have.
    """
    normal = normalise_text(text)
    if not num_boxes:
        return normal, ()
    plain, tags, end = "", [], 0
    for found in _TAG.finditer(normal):
        words, box = found[1].strip(), int(found[2])
        if box >= num_boxes:
            raise Malformed(f"tag {found[0]!r} names box {box}, the row has {num_boxes} (counted from 0)")
        plain += normal[end : found.start()]
        tags.append(ObjectTag(start=len(plain), end=len(plain) + len(words), box=box))
        plain, end = plain + words, found.end()
    plain += normal[end:]
    if normalise_text(plain) != plain:
        raise Malformed(f"a tag of {text!r} parts a letter from its accent")
    return plain, tuple(tags)


def compose(context: Sequence[str], choice: str, num_boxes: int) -> Candidate:
    """Join the question, the answer that a rationale is for if there is one, and a choice, each with its tags."""
    pieces: list[str] = []
    tags: list[ObjectTag] = []
    ends: list[int] = []
    position = 0
    for text in (*context, choice):
        plain, found = parse_tagged(text, num_boxes)
        tags += [replace(tag, start=tag.start + position, end=tag.end + position) for tag in found]
        pieces.append(plain)
        ends.append(position + len(plain))
        position = ends[-1] + 1
    return Candidate(
        text_unit=text_unit(" ".join(pieces)),
        context_length=ends[-2] if context else 0,
        question_length=ends[0] if len(context) > 1 else 0,
        tags=tuple(tags),
    )
