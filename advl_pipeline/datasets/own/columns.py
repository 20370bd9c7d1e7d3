"""Conversion of a row under our columns to an item: the columns determine its kind of task; every field is checked.

Each error names the field, its value and the expected one.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from advl_pipeline.datasets.boxes import checked_boxes
from advl_pipeline.datasets.cards import COLUMNS, Card, Kind, LabelForm
from advl_pipeline.datasets.problems import Malformed, shown, unlike, written_number
from advl_pipeline.datasets.records import normalise_text, parse_tagged
from advl_pipeline.datasets.roots import is_safe_name
from advl_pipeline.datasets.rows import Held, Item

MADE_OF: Mapping[Kind, tuple[str, ...]] = {
    "choice": ("image", "question", "choices", "label"),
    "classes": ("image", "text", "label"),
    "answers": ("image", "question", "answers", "answer"),
    "pictures": ("image",),
}
"""Columns of each kind of task; the first two are required, the others optional."""

_MARKERS: Mapping[Kind, tuple[str, ...]] = {
    "choice": ("choices", "choice_0"),
    "classes": ("text",),
    "answers": ("answers", "answer"),
}
"""Columns that only one kind of task has."""

_OF_PICTURES = frozenset({"id", "image", "boxes", "box_labels", "split", "group", "stratum"})
"""Columns that only concern the picture."""

_LIKELY: Mapping[str, str] = {
    **dict.fromkeys(("file_name", "filename", "image_path", "picture", "photo"), "image"),
    **dict.fromkeys(("caption", "hypothesis", "sentence", "sentence2", "statement", "claim"), "text"),
    **dict.fromkeys(("options", "candidates"), "choices"),
    **dict.fromkeys(("query", "prompt", "problem", "instruction"), "question"),
    **dict.fromkeys(("gold", "gold_label", "target", "answer_idx", "answer_index", "answerkey"), "label"),
    **dict.fromkeys(("correct_choice_idx", "correct_answer", "correct_option", "correct_idx"), "label"),
    "direct_answers": "answers",
    "multiple_choice_answer": "answer",
}
"""Columns of public datasets that often correspond to one of ours, for hints."""

MIN_CHOICES = 2
_LONGEST_NAME = 1024
"""Most characters of a picture's name; longer texts are pictures in base64."""

_SPLIT_NAME = re.compile(r"(?!\.)[\w.-]+")
_LETTER = re.compile(r"\(?([A-Z])\)?[.:]?|\(([a-z])\)")


def columns_of(kind: Kind) -> str:
    """Return a kind of task with its columns, for messages."""
    return f"{kind} ({', '.join(MADE_OF[kind])})"


def recognise(columns: Mapping[str, Any], card_kind: Kind | None) -> Kind:
    """Return the kind of task of a row with these columns.

    Args:
        columns: the row, after the card's renaming.
        card_kind: the kind that the card names.

    Raises:
        Malformed: the columns fit no kind, several kinds, or not the one that the card names, or the label has
            another name.
    """
    if card_kind:
        kinds: list[Kind] = [card_kind]
    elif "image" in columns and _OF_PICTURES.issuperset(columns):
        kinds = ["pictures"]
    else:
        kinds = [kind for kind, markers in _MARKERS.items() if any(name in columns for name in markers)]
    if len(kinds) > 1:
        is_key = {"choice", "answers"} <= {*kinds} and "answer" in columns and "label" not in columns
        raise Malformed(
            f"the columns are ambiguous: they fit {' and '.join(map(columns_of, kinds))}; "
            f"a card can say which: task = {kinds[0]!r}"
            + ('; where the answer is the right one of the choices: [columns] label = "answer"' if is_key else "")
        )
    listed = ", ".join(sorted(map(str, columns))) or "(none)"
    if not kinds:
        raise Malformed(
            f"the columns {listed} fit no kind of task; {'; '.join(map(columns_of, MADE_OF))}{_hint(columns, None)}"
        )
    (kind,) = kinds
    needed = [(name,) for name in MADE_OF[kind][:2]] + ([_MARKERS[kind]] if kind == "choice" else [])
    for names in needed:
        if not any(name in columns for name in names):
            raise Malformed(
                f"column {names[0]!r} is missing, {'the card says' if card_kind else 'the other columns say'} "
                f"that the task is {columns_of(kind)}; found: {listed}{_hint(columns, kind)}"
            )
    labels = [name for name, value in columns.items() if _LIKELY.get(name.lower()) == "label" and value is not None]
    if labels and "label" in MADE_OF[kind] and "label" not in columns:
        raise Malformed(f"column 'label' is missing, and {labels[0]} looks like it{_hint(columns, kind)}")
    return kind


def _hint(columns: Collection[str], kind: Kind | None) -> str:
    """Return lines for a card that rename columns similar to ours, only for one kind of task."""
    missing = [name for name in COLUMNS if name not in columns]
    looks_like: dict[str, str] = {}
    # A name known from public datasets is better evidence than a similar spelling.
    for name in sorted(map(str, columns), key=lambda name: (name.lower() not in _LIKELY, name)):
        near = [_LIKELY.get(name.lower(), ""), *difflib.get_close_matches(name.lower(), missing, n=1, cutoff=0.6)]
        ours = next((column for column in near if column in missing), "")
        if name not in COLUMNS and ours:
            looks_like.setdefault(ours, name)
    kind = kind or next((likely for likely, names in _MARKERS.items() if looks_like.keys() & {*names}), None)
    if kind is None and "label" in columns and "question" in {*columns, *looks_like}:
        # A question with neither options nor a text is answered openly.
        kind, looks_like["answers"] = "answers", "label"
    others = {name for other, names in _MARKERS.items() if other != kind for name in names}
    lines = [f'{ours} = "{looks_like[ours]}"' for ours in COLUMNS if ours in looks_like.keys() - others]
    if lines and "rationales" in columns and "rationale_label" not in {*columns, *looks_like}:
        lines.append("rationales = []")
    return f"; a card renames columns: [columns] {' and '.join(lines)}" if lines else ""


FACETS = "facets"
"""Key of a record for the facets of its card. They only label items for measures, so the digest of a split excludes
them."""


def parse_item(record: Mapping[str, Any], kind: Kind, card: Card) -> Item:
    """Check a record under our names.

    Raises:
        Malformed: a field is invalid; the message names it.
    """
    given = record.get("boxes")
    _require_few("boxes", given, "max_boxes", card)
    boxes = () if given is None else checked_boxes(given)
    label: int | str | None
    rationale_label, answers = None, {}
    texts = (
        [] if kind == "pictures" else [_text(record, "text" if kind == "classes" else "question", card, len(boxes))]
    )
    choices: list[str] = []
    if kind == "choice":
        choices, label = _chosen(record, "choices", "label", card, len(boxes))
        texts += choices
        if record.get("rationales") is not None:
            rationales, rationale_label = _chosen(record, "rationales", "rationale_label", card, len(boxes))
            if (label is None) != (rationale_label is None):
                raise Malformed(
                    f"field {'label' if label is None else 'rationale_label'!r} is missing; "
                    "a row with rationales has both labels or none"
                )
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
        raise unlike("box_labels", value, f"one text for each of the {len(boxes)} boxes")
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
        Malformed: the two differ, or the field is not a text or not a valid name of a split.
    """
    row_split = _name(record, "split")
    if row_split is not None and file_split is not None and row_split != file_split:
        raise Malformed(f"field 'split' is {shown(row_split)}, the file is given as the split {file_split!r}")
    name = row_split or file_split
    if name is not None and not _SPLIT_NAME.fullmatch(name):
        # Splits name folders of caches, `--on` takes DATASET/SPLIT, and + joins splits.
        raise Malformed(
            ("field 'split' is" if row_split is not None else "the file is given as the split")
            + f" {shown(name)}, expected letters, digits, '_', '-' and '.', not '.' first"
        )
    return name


def _name(record: Mapping[str, Any], name: str) -> str | None:
    value = record.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise unlike(name, value, "a text or a whole number")
    return str(value)


def _require_few(name: str, value: Any, key: str, card: Card) -> None:
    """Refuse a list or a text that is longer than the card allows: memory and time grow with it."""
    most = getattr(card, key)
    if isinstance(value, str if key == "max_characters" else list) and len(value) > most:
        things = key.removeprefix("max_")
        raise Malformed(
            f"field {name!r} has {len(value):,} {things}, and at most {most:,} are read; a card can raise this: "
            f"{key} = {len(value)}"
        )


def _text(record: Mapping[str, Any], name: str, card: Card, num_boxes: int) -> str:
    value = record.get(name)
    _require_few(name, value, "max_characters", card)
    if not isinstance(value, str) or not value.strip():
        raise unlike(name, value, "a text")
    parse_tagged(value, num_boxes)
    return value


def listed_options(cell: Any) -> Any:
    """Return the options of a cell {"A": ..., "B": ...} as a list; another cell unchanged."""
    is_lettered = isinstance(cell, Mapping) and cell and [*cell] == [*ascii_uppercase[: len(cell)]]
    return list(cell.values()) if is_lettered else cell


def is_missing(text: Any) -> bool:
    """Return whether a cell holds no option: it is empty, or pandas wrote it as "nan"."""
    return text is None or text != text or (isinstance(text, str) and text.strip() in ("", "nan"))


def _chosen(
    record: Mapping[str, Any], name: str, label_name: str, card: Card, num_boxes: int
) -> tuple[list[str], int | None]:
    """Return the options of a list without missing ones, and the position of the labelled one among them.

    A missing option keeps its number and its letter: without C, "D" is the third of three.
    """
    value = record.get(name)
    _require_few(name, value, "max_choices", card)
    written = value if isinstance(value, list) else []
    there = [place for place, text in enumerate(written) if not is_missing(text)]
    if len(there) < MIN_CHOICES:
        raise unlike(name, value, f"a list of {MIN_CHOICES} texts or more")
    options = [_text({f"{name}[{place}]": written[place]}, f"{name}[{place}]", card, num_boxes) for place in there]
    texts = [normalise_text(text) if place in there else "" for place, text in enumerate(written)]
    label = None if is_missing(record.get(label_name)) else record[label_name]
    place = _place(label_name, label, texts, card, has_letters=True)
    if place is not None and place not in there:
        raise unlike(label_name, label, f"an option that is there: {shown(texts)}")
    return options, None if place is None else there.index(place)


def readings(label: Any, texts: Sequence[str], *, first: int = 0, has_letters: bool = True) -> dict[LabelForm, int]:
    """Return form -> position for each form in which a label names one of some texts.

    Args:
        label: the label; True and False have no number.
        texts: normalised; "" for a missing one.
        first: number of the first text.
        has_letters: whether letters can refer to the texts, as for choices.
    """
    value = normalise_text(str(label))
    places: dict[LabelForm, int] = {}
    if value and value in texts:
        places["text"] = texts.index(value)
    number = None if isinstance(label, bool) else written_number(value)
    if number is not None and 0 <= number - first < len(texts):
        places["index"] = number - first
    if has_letters and (letter := _LETTER.fullmatch(value)):
        place = ascii_uppercase.index((letter[1] or letter[2]).upper())
        if place < len(texts):
            places["letter"] = place
    return places


def _place(name: str, label: Any, texts: Sequence[str], card: Card, *, has_letters: bool) -> int | None:
    """Return the position among texts that a label gives by number, by text, or by a letter from A on.

    Args:
        has_letters: whether letters can refer to the texts, as for choices.
    """
    value = normalise_text(str(label))
    if label is None or not value:
        return None
    places = readings(label, texts, first=card.first_label or 0, has_letters=has_letters)
    if not isinstance(label, str):
        places.pop("text", None)
    if card.label_is in places:
        places = {card.label_is: places[card.label_is]}
    if "text" in places and texts.count(value) > 1:
        raise Malformed(f"field {name!r} is ambiguous: two choices read {shown(value)}")
    positions = {*places.values()}
    if len(positions) > 1:
        form, other = ("position", "index") if "index" in places else ("letter", "letter")
        raise Malformed(
            f"field {name!r} is ambiguous: {shown(value)} is a {form} and also the text of another; a card can say "
            f'which: label_is = "{other}" or "text"'
        )
    if not positions:
        first = card.first_label or 0
        raise unlike(
            name,
            label,
            f"a position from {first} to {first + len(texts) - 1}"
            + (", one of the texts, or a letter from A on" if has_letters else " or one of the texts")
            + f": {shown(texts)}",
        )
    return positions.pop()


def numbers_of(record: Mapping[str, Any], kind: Kind, card: Card) -> Iterator[tuple[str, int, int]]:
    """Yield each label of a row that is a number: its field, the number, and how many texts there are to number."""
    listed = [("label", list(card.labels) if kind == "classes" else record.get("choices"))]
    if card.rationale_choices is None:
        listed.append(("rationale_label", record.get("rationales")))
    for name, texts in () if card.right_choice_first else listed:
        label = record.get(name)
        value = normalise_text(str(label))
        if not isinstance(texts, list) or len(texts) < MIN_CHOICES:
            continue
        number = None if isinstance(label, bool) else written_number(value)
        if number is not None:
            is_text = isinstance(label, str) or kind == "classes"
            is_text = is_text and value in [normalise_text(str(text)) for text in texts]
            if not is_text or (card.label_is == "index" and number < len(texts)):
                yield name, number, len(texts)


def _class(record: Mapping[str, Any], card: Card) -> str | None:
    value = record.get("label")
    if value is not None and not isinstance(value, (str, int)):
        raise unlike("label", value, "the name or the number of a class")
    # In canonical form: "ja " is the same class as "ja", and Unicode forms of an accent do not differ.
    name = "" if value is None else _plain(value)
    if not card.labels:
        return name or None
    labels = list(map(normalise_text, card.labels))
    # "A" is more often the name of a class missing from the card than a letter for its first class.
    place = _place("label", name, labels, card, has_letters=card.label_is == "letter")
    return None if place is None else card.labels[place]


def _answers(record: Mapping[str, Any]) -> dict[str, int]:
    """Return answer -> number of people who gave it; empty without answers."""
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
        raise unlike(name, value, "a text, a list of texts, or texts with counts above 0")
    counts: Counter[str] = Counter()
    for text, number in zip(plain, people, strict=True):
        counts[text] += number
    return dict(counts)


def _plain(text: str | int | bool) -> str:
    return str(text).lower() if isinstance(text, bool) else normalise_text(str(text))


def _image(value: Any) -> str | bytes | Held:
    """Return a picture's name, its bytes, or its location on the hub.

    Libraries write a picture inside a table as {bytes, path}, or as a list with one such entry.
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
        raise unlike("image", value, "the file name of a picture")
    if len(value) > _LONGEST_NAME:
        raise unlike("image", value, f"the file name of a picture; it has {len(value):,} characters, as base64 has")
    if not is_safe_name(value):
        raise Malformed(
            f"field 'image' is {shown(value)}, which leaves the pictures' folder; expected a name below it "
            "(your own data may hold a link to a folder elsewhere)"
        )
    return value
