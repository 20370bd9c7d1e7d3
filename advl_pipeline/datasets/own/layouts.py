"""Options beside an answer, as public sets of multiple-choice questions write them: which column is what.

The names alone leave open what `answer` means, so all rows decide: a reading of the answer must fit each of them, and
no other reading that fits may name another option.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, count
from string import ascii_lowercase
from typing import Any

from advl_pipeline.base.errors import DatasetError
from advl_pipeline.datasets.cards import Card, LabelForm
from advl_pipeline.datasets.own.columns import MIN_CHOICES, is_missing, listed_options, readings
from advl_pipeline.datasets.problems import Malformed, shown
from advl_pipeline.datasets.records import normalise_text
from advl_pipeline.datasets.row_files import parsed_cell
from advl_pipeline.datasets.rows import Row

_LISTS = ("choices", "options", "candidates", "answer_choices", "answer_options")
"""Names of a column with a list of options."""

_ONE_OPTION = re.compile(r"(?i:((?:option|choice|candidate)s?[ _]?)([a-z]|\d+))|([A-Z])")
"""Name of a column with one option: option_1, optionA, choice_a, "Choice A", A."""

_LABELS = ("label", "answer", "answers")


def option_columns(columns: Iterable[str]) -> list[tuple[str, ...]]:
    """Return each set of options that columns hold: a column with a list, or several columns in order."""
    names = list(map(str, columns))
    families: dict[str, dict[str, str]] = {}
    for name in names:
        if match := _ONE_OPTION.fullmatch(name):
            families.setdefault((match[1] or "").lower(), {})[(match[2] or match[3]).lower()] = name
    option_sets: list[tuple[str, ...]] = [(name,) for name in names if name.lower() in _LISTS]
    for family in families.values():
        runs = (_run(family, places) for places in (ascii_lowercase, map(str, count()), map(str, count(1))))
        option_sets += [run for run in runs if len(run) >= MIN_CHOICES][:1]
    return option_sets


def _run(family: Mapping[str, str], places: Iterable[str]) -> tuple[str, ...]:
    """Return the columns of a family from the first place on, without a gap."""
    run = []
    for place in places:
        if place not in family:
            break
        run.append(family[place])
    return tuple(run)


def has_options_beside_answer(record: Mapping[str, Any], card: Card) -> bool:
    """Return whether a row has columns that look like options, an answer, and no card that says how to read them."""
    is_ours = "choices" in record and not {"text", "answer", "answers"} & record.keys()
    return not (card.task or card.items or is_ours) and bool(_labels(record) and option_columns(record))


def options_beside_answer(record: Mapping[str, Any], card: Card) -> tuple[str, ...]:
    """Return the columns in which such a row has options; () for a row whose cells are empty."""
    if not has_options_beside_answer(record, card):
        return ()
    texts = {names: _texts(record, names) for names in option_columns(record)}
    return next((names for names, each in texts.items() if each is None or sum(map(bool, each)) >= MIN_CHOICES), ())


def _labels(columns: Container[str]) -> list[str]:
    return [name for name in _LABELS if name in columns]


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """A way to read the labels: their form, and the number of the first option."""

    form: LabelForm
    first: int = 0

    @property
    def words(self) -> str:
        forms = {"index": f"a position from {self.first}", "letter": "a letter", "text": "the text of an option"}
        return forms[self.form]

    @property
    def lines(self) -> dict[str, Any]:
        return {"label_is": self.form} | ({"first_label": self.first} if self.form == "index" else {})


_READINGS = (_Reading(form="index"), _Reading(form="index", first=1), _Reading(form="letter"), _Reading(form="text"))


def _possible(card: Card) -> list[_Reading]:
    """Return the readings that a card leaves open."""
    forms = [reading for reading in _READINGS if card.label_is in (None, reading.form)]
    return [reading for reading in forms if reading.form != "index" or card.first_label in (None, reading.first)]


@dataclass(kw_only=True)
class _Evidence:
    """What the rows say of the readings.

    `num_with` and `num_without` count the rows with and without options, `num_labelled` those of the first with a
    label. `fits` counts the rows that a reading fits. `differ` has the first row in which two readings name different
    options, `unread` the first one that no reading fits, `is_text` says whether a cell is a text that is no list.
    """

    options: tuple[str, ...]
    label: str
    fits: dict[_Reading, int]
    is_text: bool = False
    num_with: int = 0
    num_without: int = 0
    num_labelled: int = 0
    differ: dict[tuple[_Reading, _Reading], str] = field(default_factory=dict)
    unread: str = ""

    def add(self, record: Mapping[str, Any], where: str) -> None:
        texts, label = _texts(record, self.options), record.get(self.label)
        self.is_text |= texts is None
        if texts is not None and sum(map(bool, texts)) < MIN_CHOICES:
            self.num_without += 1
            return
        self.num_with += 1
        if is_missing(label):
            return
        self.num_labelled += 1
        texts = texts or []
        named = ((reading, readings(label, texts, first=reading.first).get(reading.form)) for reading in self.fits)
        places = {
            reading: place
            for reading, place in named
            if place is not None and texts[place] and (reading.form != "text" or texts.count(texts[place]) == 1)
        }
        for reading in places:
            self.fits[reading] += 1
        example = f"{where} has {shown(label)} beside {shown(texts)}"
        if not places:
            self.unread = self.unread or example
        for first, second in combinations(places, 2):
            if places[first] != places[second]:
                self.differ.setdefault((first, second), example)

    def doubts(self) -> Iterator[str]:
        """Yield the reasons why the rows do not settle what the columns mean."""
        if self.is_text:
            yield f"{self.options[0]} is a text"
        if self.num_without:
            yield f"{self.num_without:,} rows have no options, {self.num_with:,} have some"
        if not (fitting := self.fitting()):
            most = max(self.fits, key=self.fits.__getitem__)
            yield f"{self.label} is {most.words} in {self.fits[most]:,} of {self.num_labelled:,} rows"
            if self.unread:
                yield self.unread
        for first, second in combinations(fitting, 2):
            if example := self.differ.get((first, second)):
                yield f"{self.label} may be {first.words} or {second.words} in every row: {example}"

    def fitting(self) -> list[_Reading]:
        return [reading for reading, num_rows in self.fits.items() if num_rows == self.num_labelled]


def _texts(record: Mapping[str, Any], options: Sequence[str]) -> list[str] | None:
    """Return the options of a row, "" for a missing one; None for a text that is no list."""
    if len(options) > 1:
        cells: Any = [record.get(name) for name in options]
    elif is_missing(record.get(options[0])):
        cells = []
    else:
        try:
            cells = listed_options(parsed_cell(record, options[0]))
        except Malformed:
            return None
    return (
        ["" if is_missing(cell) else normalise_text(str(cell)) for cell in cells] if isinstance(cells, list) else None
    )


def settled(read: Callable[[], Iterable[Row]], card: Card, *, dataset: str) -> Card:
    """Return the card with the lines for options beside an answer that the rows leave no doubt about.

    Args:
        read: returns all rows, shaped by the card.
        card: the user's card, or an empty one.
        dataset: name for error messages.

    Raises:
        DatasetError: the rows can be read in several ways, or in none; the message has the lines that settle it.
    """
    option_sets: list[tuple[str, ...]] = []
    seen: dict[str, None] = {}
    while True:
        evidence: _Evidence | None = None
        for row in read():
            if isinstance(row.record, Mapping):
                seen.update(dict.fromkeys(row.record))
                option_sets = option_sets or option_columns(seen)
                if evidence is None:
                    fits = dict.fromkeys(_possible(card), 0)
                    evidence = _Evidence(options=option_sets[0], label=_labels(seen)[0], fits=fits)
                evidence.add(row.record, f"{row.file}:{row.line}")
        if option_columns(seen) == option_sets:
            break
        # Rows of JSON may lack the column of an option that they do not have.
        option_sets = option_columns(seen)
    if evidence is None or not evidence.num_with:
        return card  # The columns are empty: there are no options.
    doubts = []
    labels = _labels(seen)
    if len(option_sets) > 1:
        doubts.append(f"{' and '.join(', '.join(each) for each in option_sets)} both look like options")
    if len(labels) > 1 or labels == ["answers"]:
        doubts.append(f"beside them stand {' and '.join(labels)}")
    if "text" in seen:
        doubts.append("beside them stands text, as in rows of classes")
    doubts += evidence.doubts()
    columns: dict[str, Any] = {**card.columns, "label": card.columns.get(evidence.label, evidence.label)}
    if evidence.is_text:
        columns["question"] = [card.columns.get("question", "question"), evidence.options[0]]
    elif evidence.options != ("choices",):
        columns["choices"] = list(evidence.options) if len(evidence.options) > 1 else evidence.options[0]
    best = max(evidence.fits, key=evidence.fits.__getitem__)
    lines = (best.lines if evidence.num_labelled else {}) | {"task": "choice", "columns": columns}
    if not doubts:
        return replace(card, **{"label_is": None, **lines})
    if evidence.is_text:
        lines = {"options_in_question": True, "label_is": "letter", "task": "choice", "columns": columns}
    if evidence.num_without:
        lines["needs"] = ["choices"]
    others = [_listed(reading.lines) for reading in evidence.fitting() if reading != best]
    advice = "; or, ".join(
        [
            f"write a card (docs/adding-a-dataset.md) with the lines {_listed(lines)}",
            *(f"for another reading, {listed}" for listed in others if evidence.num_labelled),
            f'for an open {evidence.label}, task = "answers"',
        ]
    )
    raise DatasetError(
        "The rows do not say how options and answers belong together.",
        where=f"{dataset}, columns {', '.join(evidence.options)} and {evidence.label}",
        why="; ".join(doubts),
        next_command=f"{advice}; and give the card in place of the data",
    )


def lines_of(card: Card) -> str:
    """Return the lines that settle how rows are read, for messages."""
    lines = {"label_is": card.label_is, "first_label": card.first_label, "columns": dict(card.columns)}
    return _listed({key: value for key, value in lines.items() if value is not None})


def _listed(lines: Mapping[str, Any]) -> str:
    return " | ".join(f"{key} = {_toml(value)}" for key, value in lines.items())


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {_toml(inner)}' for key, inner in value.items())} }}"
    return json.dumps(value, ensure_ascii=False)
