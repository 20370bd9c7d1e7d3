"""Conversion of rows to the record batch of an index: check, collect, and digest each row with its split.

A column of the row names its split, else its file does. All rows have the kind of task of the first row. Problems
are stored, so that a split fails only on its own problems and on lines whose split is unknown.
"""

from __future__ import annotations

import hashlib
import json
import operator
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from advl_pipeline.base.errors import DatasetError, again
from advl_pipeline.datasets.arrow_file import record_batch
from advl_pipeline.datasets.cards import Kind
from advl_pipeline.datasets.index_files import PICTURES_FOLDER, keep
from advl_pipeline.datasets.own.card_rules import shaped
from advl_pipeline.datasets.own.columns import FACETS, columns_of, numbers_of, parse_item, recognise, split_of
from advl_pipeline.datasets.own.layouts import has_options_beside_answer, lines_of, options_beside_answer, settled
from advl_pipeline.datasets.problems import Malformed, Problem, refuse, shown
from advl_pipeline.datasets.rows import Held, Item, PictureFacts, Row, RowSource

_CHUNK = 1 << 14
"""Maximum number of rows kept as Python objects while an index is built."""

_REPEATED = ("file", "split", "image", "label_name", "group", "stratum")
"""Columns that store each distinct text once."""

_OF_ITEMS = ("num_choices", "cell", "texts", "answers", "counts", "entries", "group", "stratum", "facets")
"""Columns with the fields of an `Item`."""

_SCHEMA = pa.schema(
    {
        **dict.fromkeys(("id", *_REPEATED), pa.large_string()),
        **dict.fromkeys(("line", "cell"), pa.int64()),
        **dict.fromkeys(("num_choices", "label", "rationale_label"), pa.int32()),
        **dict.fromkeys(("texts", "answers", "facets"), pa.list_(pa.large_string())),
        "counts": pa.list_(pa.int32()),
        "entries": pa.list_(pa.int8()),
    }
)
"""Schema of the columns during the build."""


_UNLIKELY = 1e-3
"""Chance below which the lack of a label 0 means that labels do not count from 0."""


@dataclass
class _Split:
    """State of a split during the build: ids -> place, pictures -> number, and a digest."""

    names: dict[str, str] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)
    digest: Any = field(default_factory=hashlib.sha256)


@dataclass
class _Numbers:
    """Facts of the labels of a split that are numbers.

    `beyond` has the first label that equals the number of its choices, `lack` is the chance that no label at random
    is 0, `most` the largest number of choices.
    """

    num_labels: int = 0
    has_zero: bool = False
    beyond: str = ""
    lack: float = 1.0
    most: int = 0

    def add(self, label: int, num_texts: int, where: str) -> None:
        self.num_labels += 1
        self.has_zero |= label == 0
        self.lack *= 1 - 1 / num_texts
        self.most = max(self.most, num_texts)
        if label == num_texts and not self.beyond:
            self.beyond = f"{where} has the label {label} of {num_texts}"


class IndexBuilder:
    """Builder of the Arrow record batch with all rows of a source.

    Args:
        source: the rows.
        dataset: name for error messages.
        folder: folder of the index, which stores pictures from tables.
        is_published: do not digest the content of rows.
    """

    def __init__(self, source: RowSource, dataset: str, folder: Path, is_published: bool) -> None:
        self._source = source
        self._is_published = is_published
        self._dataset = dataset
        self._pictures = folder / PICTURES_FOLDER
        self._kind: Kind | None = source.kind
        self._card = source.card
        self._first = ""
        self._numbers: dict[str, defaultdict[str, _Numbers]] = {
            name: defaultdict(_Numbers) for name in ("label", "rationale_label")
        }
        self._has_rationales = False
        self._used_columns: tuple[str, ...] = ()
        self._splits: defaultdict[str, _Split] = defaultdict(_Split)
        self._left_out: Counter[str] = Counter()
        self._gathered: list[dict[str, Any]] = []
        self._chunks: list[Any] = []
        self._problems: list[tuple[str, int, str | None, str]] = []

    def build(self) -> Any:
        for row in self._shaped_rows():
            name, record = row.split, row.record
            try:
                if record is None:
                    self._left_out[name or self._source.split] += 1
                    continue
                if isinstance(record, Malformed):
                    raise record
                if not isinstance(record, Item):
                    name = split_of(record, name)
                name = name or self._source.split
                self._add(row, record if isinstance(record, Item) else self._checked(row, record, name), name)
            except Malformed as error:
                self._problems.append((row.file, row.line, name, str(error)))
            finally:
                # The file of a split registers the split even if none of its rows can be used.
                if name is not None:
                    self._splits[name]
        if self._kind is not None:
            return self._batch()
        if self._problems:
            raise refuse(
                self._dataset,
                self._source.split,
                [Problem(file=file, line=line, why=why) for file, line, _, why in self._problems],
                next_command=again("correct the row, or say more in a card, then run the same command again"),
            )
        raise DatasetError(
            "The dataset has no rows.",
            where=", ".join(map(str, self._source.files)) or self._dataset,
            next_command="put rows into it",
        )

    def _shaped_rows(self) -> Iterator[Row]:
        """Return the rows under our columns; options beside an answer are read before, to settle the card."""
        rows, head = self._read(), []
        for row in rows:
            head.append(row)
            if isinstance(row.record, Mapping) and has_options_beside_answer(row.record, self._card):
                self._card = settled(self._read, self._card, dataset=self._dataset)
                return self._read()
            if isinstance(row.record, Mapping | Item):
                break
        return chain(head, rows)

    def _read(self) -> Iterator[Row]:
        return shaped(self._source.rows(), self._card, dataset=self._dataset)

    def _checked(self, row: Row, record: Mapping[str, Any], split: str) -> Item:
        """Return the item of a row, which must have the kind of the first row."""
        card_kind = self._card.task
        if self._kind is None:
            self._kind = recognise(record, card_kind)
            self._first, self._has_rationales = f"{row.file}:{row.line}", record.get("rationales") is not None
            self._used_columns = tuple(name for name in record if name != FACETS)
        try:
            kind = recognise(record, card_kind)
        except Malformed:
            # A row without answers or label does not determine its kind; its fields are checked like the others'.
            kind = self._kind
        if kind != "choice" and (options := options_beside_answer(record, self._card)):
            raise Malformed(f"the row has options ({', '.join(options)}), the first row ({self._first}) has none")
        if kind != self._kind:
            raise Malformed(
                f"the row is of the kind {columns_of(kind)}, the first row ({self._first}) of the kind {self._kind}: "
                "one dataset has one kind of task"
            )
        for name, label, num_texts in numbers_of(record, kind, self._card):
            self._numbers[name][split].add(label, num_texts, f"{row.file}:{row.line}")
        item = parse_item(record, kind, self._card)
        if kind == "choice" and bool(item.rationales) != self._has_rationales:
            raise Malformed(
                f"field 'rationales' is not as in the first row ({self._first}), which has "
                f"{'none' if item.rationales else 'some'}"
            )
        return item

    def _add(self, row: Row, item: Item, split_name: str) -> None:
        split = self._splits[split_name]
        name = item.item_id or f"{split_name}-{row.name}"
        if name in split.names:
            raise Malformed(
                f"field 'id' is {shown(name)}, which {split.names[name]} has already in split {split_name!r}"
            )
        split.names[name] = f"{row.file}:{row.line}"
        picture = item.image
        if isinstance(picture, bytes):
            digest = hashlib.sha256(picture).hexdigest()
            keep(self._pictures / digest, picture)
            picture = f"/{digest}"
        elif isinstance(picture, Held):
            picture = picture.name
        # Rows with equal facts of a picture share it.
        facts = PictureFacts(picture, item.boxes, item.box_labels, item.boxes_file, item.size)
        image = orjson.dumps(tuple(facts)).decode()
        if not self._is_published:
            split.digest.update(self._row_content(name, split.images.setdefault(image, len(split.images)), item))
        is_named, label = isinstance(item.label, str), -1 if item.label is None else item.label
        self._gathered.append(
            {
                "id": name,
                "file": row.file,
                "line": row.line,
                "split": split_name,
                "image": image,
                # -1 stands for a missing label or rationale.
                "label": None if is_named else label,
                "label_name": label if is_named else None,
                "rationale_label": -1 if item.rationale_label is None else item.rationale_label,
                **{column: getattr(item, column) for column in _OF_ITEMS},
            }
        )
        if len(self._gathered) == _CHUNK:
            self._settle_chunk()

    def _row_content(self, name: str, image: int, item: Item) -> bytes:
        """Return the bytes of a row that enter the digest of its split."""
        content: dict[str, Any] = {"question": item.texts[0]} if item.texts else {}
        if self._kind == "choice":
            content["choices"] = item.choices
            if item.rationales:
                content["rationales"] = item.rationales
        elif self._kind == "answers":
            are_counted = len(item.answers) == len(item.counts)
            content["answers"] = dict(zip(item.answers, item.counts, strict=True)) if are_counted else item.answers
        rationale = -1 if item.rationale_label is None else item.rationale_label
        boxes = json.dumps([item.boxes, item.box_labels])
        fields = [name, image, boxes, json.dumps(content, ensure_ascii=False, sort_keys=True), item.label, rationale]
        # Labels from another package's reader may be NumPy integers.
        return json.dumps([*fields, item.group, item.stratum], default=operator.index).encode()

    def _settle_chunk(self) -> None:
        """Convert the collected rows to an Arrow table, which needs far less memory and stores texts once."""
        chunk = pa.Table.from_pylist(self._gathered, schema=_SCHEMA)
        for name in _REPEATED:
            chunk = chunk.set_column(chunk.schema.get_field_index(name), name, chunk[name].dictionary_encode())
        self._chunks.append(chunk)
        self._gathered = []

    def _miscounted(self) -> dict[str, str]:
        """Return split -> why its labels do not seem to count from the number that they are read with."""
        reasons: dict[str, str] = {}
        names = self._card.labels if self._kind == "choice" else ()
        some_are_zero = any(numbers.has_zero for splits in self._numbers.values() for numbers in splits.values())
        for splits in self._numbers.values():
            most = max((numbers.most for numbers in splits.values()), default=0)
            if self._card.first_label is not None:
                if self._card.first_label and 0 < len(names) < most:
                    why = f"labels are named 1 to {len(names)}, and a question has {most} choices"
                    reasons |= dict.fromkeys(splits, why)
                continue
            lacking = {name: numbers for name, numbers in splits.items() if not numbers.has_zero}
            beyond = next(filter(None, (numbers.beyond for numbers in lacking.values())), "")
            if beyond:
                reasons |= dict.fromkeys(lacking, f"labels seem to count from 1: {beyond}, and none is 0")
            elif not some_are_zero and prod(numbers.lack for numbers in lacking.values()) < _UNLIKELY:
                num_labels = sum(numbers.num_labels for numbers in lacking.values())
                reasons |= dict.fromkeys(lacking, f"labels may count from 1: none of {num_labels:,} is 0")
        return reasons

    def _batch(self) -> Any:
        import pyarrow.compute as pc

        self._settle_chunk()
        table = pa.concat_tables(self._chunks).unify_dictionaries()
        self._chunks = []
        columns: dict[str, Any] = {}
        for name in _SCHEMA.names:
            # Column by column, so that memory never holds two copies of the table.
            columns[name] = table[name].combine_chunks()
            table = table.drop_columns([name])
        columns["label"] = pc.coalesce(columns["label"], columns["label_name"].indices)
        columns["cell"] = pc.coalesce(columns["cell"], columns["label"].cast(pa.int64()))
        labels, splits = (np.from_dlpack(column) for column in (columns["label"], columns["split"].indices))
        # A split may have no labels at all; if some rows have one, rows without a label are problems.
        is_bad = (labels < 0) & np.isin(splits, splits[labels >= 0]) & (self._source.kind is None)
        for place in np.flatnonzero(is_bad).tolist():
            file, line, split = (columns[name][place].as_py() for name in ("file", "line", "split"))
            missing = "answers" if self._kind == "answers" else "label"
            why = f"field {missing!r} is missing, other rows of split {split!r} have it"
            self._problems.append((file, line, split, why))
        facts = {
            "kind": self._kind,
            "rationales": self._has_rationales,
            "columns": self._used_columns,
            "splits": {
                name: "" if self._is_published else split.digest.hexdigest() for name, split in self._splits.items()
            },
            "problems": self._problems,
            "miscounted": self._miscounted(),
            "left_out": self._left_out,
            "grouped": bool(self._source.card.items),
            "settled": "" if self._card is self._source.card else lines_of(self._card),
        }
        if is_bad.any():
            columns = {name: column.filter(pa.array(~is_bad)) for name, column in columns.items()}
        return record_batch(columns, facts)
