"""The index of a dataset: all rows of all splits in one memory-mapped Arrow file, built once per content.

A split is told by a row's column, else by its file. All rows are of one kind of task, that of the first row. Problems
lie in it too, so that each split fails on its own alone, and on lines whose split cannot be told.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from advl_pipeline.configuration import config_to_dict
from advl_pipeline.datasets.arrow_file import ArrowFile, Codes, open_index_file, record_batch
from advl_pipeline.datasets.fingerprint import FileDigests
from advl_pipeline.datasets.own.fields import EXPECTED, USED, parse_item, recognise, split_of
from advl_pipeline.datasets.own.shaping import shaped
from advl_pipeline.datasets.problems import Malformed, Problem, refuse
from advl_pipeline.datasets.records import Task
from advl_pipeline.datasets.roots import index_unwritable
from advl_pipeline.datasets.rows import COLUMNS, Item, Kind, Row, RowSource
from advl_pipeline.errors import DatasetError, again

PICTURES_FOLDER = "pictures"
"""Below the index: pictures that came inside a table, by the digest of their bytes."""

_RULES = 6
"""Raise it when the same files would yield other rows or problems; sound data keep their digests and caches."""

_ANY = -1
"""Split of a problem whose split cannot be told."""

_CHUNK = 1 << 14
"""Rows that are held as Python objects while an index is built."""

_NUMBERS: Mapping[str, Any] = {
    **dict.fromkeys(("line", "cell"), pa.int64()),
    **dict.fromkeys(("num_choices", "label", "rationale_label"), pa.int32()),
    **dict.fromkeys(("file", "split", "image", "label_name", "group", "stratum"), pa.int32()),
}
_LISTS: Mapping[str, Any] = {
    "texts": pa.list_(pa.large_string()),
    "answers": pa.list_(pa.large_string()),
    "counts": pa.list_(pa.int32()),
    "entries": pa.list_(pa.int8()),
}
_TYPES: Mapping[str, Any] = {"id": pa.large_string(), **_NUMBERS, **_LISTS}
"""Columns while they are gathered; those of `_Builder.codes` become dictionary columns, their texts each once."""


class PictureFacts(NamedTuple):
    """What rows say of a picture; see `Item`. A name that begins with "/" is the digest of a picture in a table."""

    name: str
    boxes: Sequence[Sequence[float]]
    box_labels: Sequence[str]
    boxes_file: str
    size: Sequence[int] | None


@dataclass(frozen=True)
class Index:
    """Rows and problems of a dataset; `digests` are the SHA-256 digests of its files, in the order of the source."""

    file: ArrowFile
    folder: Path
    digests: tuple[bytes, ...]

    @cached_property
    def facts(self) -> Mapping[str, Any]:
        """Kind, rationales, columns, splits with their digests, problems, rows left out, whether rows are groups."""
        return self.file.facts

    @property
    def kind(self) -> Kind:
        kind: Kind = self.facts["kind"]
        return kind

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.facts["splits"])

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Tasks of data of one's own, named by their kind."""
        if self.kind != "choice":
            return (self.kind,)
        return ("choice", "rationale") if self.facts["rationales"] else ("choice",)

    def rows_of(self, split: str) -> npt.NDArray[np.int64]:
        """Return the positions of a split's rows."""
        return np.flatnonzero(self.file.numbers("split") == self.splits.index(split)).astype(np.int64)

    def is_labelled(self, split: str) -> bool:
        rows = self.rows_of(split)
        return bool(len(rows)) and bool((self.file.numbers("label")[rows] >= 0).all())

    def left_out(self, split: str) -> str:
        """Return how many rows of a split the card's rules leave out, in words; "" for none."""
        count = self.facts["left_out"].get(split, 0)
        return f"{count:,} rows of {split} left out by the card" if count else ""

    def digest_of(self, split: str) -> bytes:
        """Return the SHA-256 digest of a split's rows: of what they say, not of how or where it is stored."""
        return bytes.fromhex(self.facts["digests"][self.splits.index(split)])

    def problems_of(self, split: str | None) -> list[Problem]:
        """Return what is wrong with rows of a split, or with rows of nobody knows which; of all for None."""
        of = range(_ANY, len(self.splits)) if split is None else (_ANY, self.splits.index(split))
        return [
            Problem(file=file, line=line, why=why) for file, line, place, why in self.facts["problems"] if place in of
        ]

    def picture(self, image: int) -> PictureFacts:
        """Return what the rows say of a picture, by its code in the column `image`."""
        return PictureFacts(*orjson.loads(self.file.names("image")[image]))


def open_index(source: RowSource, *, dataset: str, folder: Path) -> Index:
    """Open the index of a dataset's rows, building it first when their content is new.

    Args:
        folder: where indices lie.

    Raises:
        DatasetError: a file cannot be read, no row can be used, or the rows are of no kind of task.
    """
    digests = FileDigests(Path("/"), folder / "annotations")
    found: list[bytes] = []
    for path in source.files:
        try:
            found.append(digests.facts(path.absolute().as_posix()[1:]).digest)
        except Malformed as error:
            problem = Problem(file=str(path), line=0, why=f"the file cannot be read: /{error}")
            raise refuse(dataset, source.split, [problem]) from None
    digests.flush()
    card = {key: value for key, value in config_to_dict(source.card).items() if key not in ("files", "pictures")}
    key = {
        "index": "rows",
        "rules": _RULES,
        "files": [digest.hex() for digest in found],
        # Two files may change names: messages and ids of rows hold them.
        "names": [path.as_posix() for path in source.files],
        "version": source.version,
        "split": source.split,
        "kind": source.kind,
        "card": card,
    }
    file = open_index_file(folder, key, lambda: _Builder(source, dataset, folder).build())
    return Index(file, folder, tuple(found))


def describe(index: Index, name: str) -> str:
    """Return the line that tells a user what was made of the columns."""
    columns = index.facts["columns"]
    used = [column for column in USED[index.kind] if column in columns]
    also = [column for column in COLUMNS if column in columns and column not in used]
    parts = [
        f"{name}: task {index.kind}, from the columns {', '.join(used)}",
        *([f"also {', '.join(also)}"] if also else []),
        *([f"left alone: {', '.join(others)}"] if (others := sorted(set(columns) - set(COLUMNS))) else []),
        ", ".join(f"{len(index.rows_of(split)):,} {split}" for split in index.splits),
        *([", ".join(index.left_out(split) for split in left)] if (left := index.facts["left_out"]) else []),
        *([f"{bad:,} malformed"] if (bad := len(index.facts["problems"])) else []),
    ]
    return "; ".join(parts)


def keep(path: Path, content: bytes) -> None:
    """Write a file unless it is there; it appears as a whole, since its name says what is in it."""
    if path.is_file():
        return
    draft = path.with_name(f"{path.name}.{uuid.uuid4().hex}.draft")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(content)
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise index_unwritable(path.parent, error) from None


@dataclass
class _Split:
    """What is gathered of a split while its rows are read."""

    names: dict[str, str] = field(default_factory=dict)
    images: Codes = field(default_factory=Codes)
    digest: Any = field(default_factory=hashlib.sha256)
    unlabelled: list[tuple[int, str, int]] = field(default_factory=list)
    num_labelled: int = 0


class _Builder:
    """Reads all rows into an Arrow record batch."""

    def __init__(self, source: RowSource, dataset: str, folder: Path) -> None:
        self._source = source
        self._dataset = dataset
        self._pictures = folder / PICTURES_FOLDER
        self._kind: Kind | None = source.kind
        self._first = ""
        self._has_rationales = False
        self._used_columns: tuple[str, ...] = ()
        self._splits: dict[str, _Split] = {}
        self._left_out: Counter[str] = Counter()
        self._codes = {name: Codes() for name in ("file", "split", "image", "label_name", "group", "stratum")}
        self._num_rows = 0
        self._gathered: list[tuple[Any, ...]] = []
        self._chunks: dict[str, list[Any]] = {name: [] for name in _TYPES}
        self._problems: list[tuple[str, int, int, str]] = []

    def build(self) -> Any:
        splits = self._codes["split"]
        for row in shaped(self._source.rows(), self._source.card, dataset=self._dataset):
            # A file that is of one split says so even where a line of it cannot be parsed.
            split = _ANY if row.split is None else splits[row.split]
            try:
                if row.record is None:
                    self._left_out[row.split or self._source.split] += 1
                    continue
                if isinstance(row.record, Malformed):
                    raise row.record
                if isinstance(row.record, Item):
                    name, item = row.split or self._source.split, row.record
                    split = splits[name]
                else:
                    name = split_of(row.record, row.split) or self._source.split
                    split = splits[name]
                    item = self._checked(row, row.record)
                self._add(row, item, name)
            except Malformed as error:
                self._problems.append((row.file, row.line, split, str(error)))
        if self._kind is None:
            raise self._unusable()
        return self._batch(self._drop_unlabelled() if self._source.kind is None else set())

    def _unusable(self) -> DatasetError:
        problems = [Problem(file=file, line=line, why=why) for file, line, _, why in self._problems]
        if problems:
            advice = again(
                "mend the row, or say more in a card (docs/adding-a-dataset.md), then give the same command again"
            )
            return refuse(self._dataset, self._source.split, problems, next_command=advice)
        where = ", ".join(str(path) for path in self._source.files) or self._dataset
        return DatasetError(
            "The data hold no row.", where=where, next_command=f"put rows into {where}; docs/adding-a-dataset.md"
        )

    def _checked(self, row: Row, record: Mapping[str, Any]) -> Item:
        kind = self._kind_of(row, record)
        item = parse_item(record, kind, self._source.card)
        if kind == "choice" and (_num_rationales(item) > 0) != self._has_rationales:
            other = "none" if _num_rationales(item) else "some"
            raise Malformed(f"field 'rationales' is not as in the first row ({self._first}), which has {other}")
        return item

    def _add(self, row: Row, item: Item, split_name: str) -> None:
        split = self._splits.setdefault(split_name, _Split())
        name, place = item.item_id or f"{split_name}-{row.name}", f"{row.file}:{row.line}"
        if name in split.names:
            raise Malformed(f"field 'id' is {name!r}, which {split.names[name]} has already in split {split_name!r}")
        split.names[name] = place
        image = self._image_of(item)
        named = self._codes["label_name"][item.label] if isinstance(item.label, str) else None
        label = item.label if named is None else named
        if self._source.kind is None:
            if label is None:
                split.unlabelled.append((self._num_rows, row.file, row.line))
            else:
                split.num_labelled += 1
            split.digest.update(self._told(name, split.images[image], item))
        # Where there is no label, or no rationale, the number is -1.
        label, rationale = (-1 if value is None else value for value in (label, item.rationale_label))
        self._gathered.append(
            (
                *(name, row.line, label if item.cell is None else item.cell),
                *(item.num_choices, label, rationale),
                *(self._codes["file"][row.file], self._codes["split"][split_name], self._codes["image"][image]),
                *(named, self._codes["group"][item.group], self._codes["stratum"][item.stratum]),
                *(item.texts, item.answers, item.counts, item.entries),
            )
        )
        self._num_rows += 1
        if len(self._gathered) == _CHUNK:
            self._settle_chunk()

    def _told(self, name: str, image: int, item: Item) -> bytes:
        """Return what the digest of a split holds of a row."""
        content: dict[str, Any] = {"question": item.texts[0]}
        if self._kind == "choice":
            content["choices"] = item.texts[1 : 1 + item.num_choices]
            if _num_rationales(item):
                content["rationales"] = item.texts[1 + item.num_choices :]
        elif self._kind == "answers":
            content["answers"] = dict(zip(item.answers, item.counts, strict=True))
        rationale = -1 if item.rationale_label is None else item.rationale_label
        boxes = json.dumps([item.boxes, item.box_labels])
        told = [name, image, boxes, json.dumps(content, ensure_ascii=False, sort_keys=True), item.label, rationale]
        return json.dumps([*told, item.group, item.stratum]).encode()

    def _settle_chunk(self) -> None:
        """Turn the gathered rows into Arrow arrays, which take a fraction of the memory."""
        for place, (name, kind) in enumerate(_TYPES.items()):
            self._chunks[name].append(pa.array([row[place] for row in self._gathered], kind))
        self._gathered = []

    def _kind_of(self, row: Row, record: Mapping[str, Any]) -> Kind:
        """Return the kind of all rows: the first one's, which the columns of every other one must fit."""
        place = f"{row.file}:{row.line}"
        if self._kind is None:
            self._kind = recognise(record, self._source.card.task)
            self._first, self._has_rationales = place, record.get("rationales") is not None
            self._used_columns = tuple(record)
        try:
            kind = recognise(record, self._source.card.task)
        except Malformed:
            # A row without answers or label tells no kind of its own; its fields are checked as the others' are.
            kind = self._kind
        if kind != self._kind:
            raise Malformed(
                f"the row is of the kind {kind} ({EXPECTED[kind]}), the first row ({self._first}) is of the kind "
                f"{self._kind}: one dataset has one kind of task"
            )
        return kind

    def _image_of(self, item: Item) -> str:
        """Return the facts of a picture as JSON: rows that say the same of it share the picture."""
        name = item.image
        if isinstance(name, bytes):
            digest = hashlib.sha256(name).hexdigest()
            keep(self._pictures / digest, name)
            name = f"/{digest}"
        facts = PictureFacts(name, item.boxes, item.box_labels, item.boxes_file, item.size)
        return orjson.dumps(tuple(facts)).decode()

    def _drop_unlabelled(self) -> set[int]:
        """Rows without a label are problems where others of their split have one; a split may be without any."""
        dropped = set()
        label = "answers" if self._kind == "answers" else "label"
        for name, split in self._splits.items():
            for row, file, line in split.unlabelled if split.num_labelled else ():
                dropped.add(row)
                why = f"field {label!r} is missing, other rows of split {name!r} have it"
                self._problems.append((file, line, self._codes["split"][name], why))
        return dropped

    def _batch(self, dropped: set[int]) -> Any:
        self._settle_chunk()
        kept = np.ones(self._num_rows, dtype=bool)
        kept[list(dropped)] = False
        columns: dict[str, Any] = {}
        for name in _TYPES:
            whole = pa.concat_arrays(self._chunks.pop(name))
            whole = whole.filter(pa.array(kept)) if dropped else whole
            columns[name] = self._codes[name].column(whole) if name in self._codes else whole
        facts = {
            "kind": self._kind,
            "rationales": self._has_rationales,
            "columns": self._used_columns,
            "splits": list(self._codes["split"]),
            "digests": [
                self._splits[name].digest.hexdigest() if name in self._splits else "" for name in self._codes["split"]
            ],
            "problems": self._problems,
            "left_out": self._left_out,
            "grouped": bool(self._source.card.items),
        }
        return record_batch(columns, facts)


def _num_rationales(item: Item) -> int:
    return len(item.texts) - 1 - item.num_choices
