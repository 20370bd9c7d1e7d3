"""The index of one's own data: all rows of all splits as memory-mapped columns, built once per content.

A split is told by a row's column, else by its file. All rows are of one kind of task, that of the first row. Problems
lie in it too, so that each split fails on its own alone, and on lines whose split cannot be told.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from advl_pipeline.configuration import config_to_dict
from advl_pipeline.datasets.columns import Codes, Columns, StringColumn, open_columns
from advl_pipeline.datasets.fingerprint import FileDigests
from advl_pipeline.datasets.indexed import READER_VERSION
from advl_pipeline.datasets.own.fields import Item, parse_item, renamed, split_of
from advl_pipeline.datasets.own.kinds import EXPECTED, USED, recognise
from advl_pipeline.datasets.own.rows import COLUMNS, Kind, Row, RowSource
from advl_pipeline.datasets.problems import Malformed, Problem, refuse
from advl_pipeline.datasets.records import Task
from advl_pipeline.datasets.roots import index_unwritable
from advl_pipeline.errors import DatasetError, suggest_names

PICTURES_FOLDER = "pictures"
"""Below the index: pictures that came inside a table, by the digest of their bytes."""

_RULES = 3
"""Raise it when the same files would yield other rows or problems; sound data keep their digests and caches."""

_ANY = -1
"""Split of a problem whose split cannot be told."""


@dataclass(frozen=True)
class OwnIndex:
    """Rows and problems of a dataset; `facts` are its kind, whether it has rationales, and its columns."""

    columns: Columns
    folder: Path

    @cached_property
    def facts(self) -> Mapping[str, Any]:
        found: dict[str, Any] = json.loads(StringColumn(self.columns, "facts")[0])
        return found

    @property
    def kind(self) -> Kind:
        kind: Kind = self.facts["kind"]
        return kind

    @cached_property
    def splits(self) -> tuple[str, ...]:
        return tuple(StringColumn(self.columns, "split_name"))

    @property
    def tasks(self) -> tuple[Task, ...]:
        if self.kind != "choice":
            return (self.kind,)
        return ("choice", "rationale") if self.facts["rationales"] else ("choice",)

    def rows_of(self, split: str) -> npt.NDArray[np.int64]:
        """Return the positions of a split's rows."""
        return np.flatnonzero(self.columns["split"] == self.splits.index(split)).astype(np.int64)

    def is_labelled(self, split: str) -> bool:
        rows = self.rows_of(split)
        return bool(len(rows)) and bool((self.columns["label"][rows] >= 0).all())

    def digest_of(self, split: str) -> bytes:
        """Return the SHA-256 digest of a split's rows: of what they say, not of how or where it is stored."""
        return bytes.fromhex(StringColumn(self.columns, "split_digest")[self.splits.index(split)])

    def problems_of(self, split: str) -> list[Problem]:
        """Return what is wrong with rows of a split, or with rows of nobody knows which."""
        wanted = (_ANY, self.splits.index(split))
        files, reasons = StringColumn(self.columns, "file"), StringColumn(self.columns, "problem")
        places = self.columns["problem.place"].tolist()
        return [
            Problem(file=files[file], line=line, why=why)
            for (file, line, of), why in zip(places, reasons, strict=True)
            if of in wanted
        ]


def open_index(source: RowSource, *, dataset: str, folder: Path) -> OwnIndex:
    """Open the index of a dataset's rows, building it first when their content is new.

    Args:
        folder: where indices lie.

    Raises:
        DatasetError: a file cannot be read, no row can be used, or the rows are of no kind of task.
    """
    digests = FileDigests(Path("/"), folder / "annotations")
    try:
        files = [digests.facts(path.absolute().as_posix()[1:]).digest.hex() for path in source.files]
    except Malformed as error:
        raise refuse(dataset, "train", [Problem(file=f"/{error}", line=0, why="the file cannot be read")]) from None
    digests.flush()
    card = {key: value for key, value in config_to_dict(source.card).items() if key not in ("files", "pictures")}
    key = {
        "index": "own",
        "reader": READER_VERSION,
        "rules": _RULES,
        "files": files,
        # Two files may change names: messages and ids of rows hold them.
        "names": [path.as_posix() for path in source.files],
        "version": source.version,
        "split": source.split,
        "card": card,
    }
    return OwnIndex(open_columns(folder, key, lambda: _Builder(source, dataset, folder).build()), folder)


def describe(index: OwnIndex, name: str) -> str:
    """Return the line that tells a user what was made of the columns."""
    columns = index.facts["columns"]
    used = [column for column in USED[index.kind] if column in columns]
    also = [column for column in COLUMNS if column in columns and column not in used]
    parts = [
        f"{name}: task {index.kind}, from the columns {', '.join(used)}",
        *([f"also {', '.join(also)}"] if also else []),
        *([f"left alone: {', '.join(others)}"] if (others := sorted(set(columns) - set(COLUMNS))) else []),
        ", ".join(f"{len(index.rows_of(split)):,} {split}" for split in index.splits),
        *([f"{bad:,} malformed"] if (bad := len(index.columns["problem.place"])) else []),
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
    unlabelled: list[tuple[int, int, int]] = field(default_factory=list)
    num_labelled: int = 0


class _Builder:
    """Reads all rows into columns."""

    def __init__(self, source: RowSource, dataset: str, folder: Path) -> None:
        self._source = source
        self._dataset = dataset
        self._pictures = folder / PICTURES_FOLDER
        self._kind: Kind | None = None
        self._first = ""
        self._has_rationales = False
        self._used_columns: tuple[str, ...] = ()
        self._splits: dict[str, _Split] = {}
        self._codes = Codes()
        self._seen: set[str] = set()
        self._files, self._images = Codes(), Codes()
        self._labels, self._groups, self._strata = Codes(), Codes(), Codes()
        self._rows: list[tuple[int, ...]] = []
        self._ids: list[str] = []
        self._contents: list[str] = []
        self._problems: list[tuple[int, int, int, str]] = []

    def build(self) -> Columns:
        for row in self._source.rows():
            # A file that is of one split says so even where a line of it cannot be parsed.
            split = _ANY if row.split is None else self._codes[row.split]
            try:
                if isinstance(row.record, Malformed):
                    raise row.record
                self._seen.update(row.record)
                record = renamed(row.record, self._source.card)
                name = split_of(record, row.split) or self._source.split
                split = self._codes[name]
                self._add(row, record, name)
            except Malformed as error:
                self._problems.append((self._files[row.file], row.line, split, str(error)))
        self._require_renamed_columns()
        if self._kind is None:
            raise self._unusable()
        dropped = self._drop_unlabelled()
        return self._columns(dropped)

    def _require_renamed_columns(self) -> None:
        """Refuse a card that names a column which no row has: it is mistyped, and no row is to blame."""
        for ours, theirs in self._source.card.columns.items():
            if self._seen and theirs not in self._seen:
                raise DatasetError(
                    "The card names a column that no row has.",
                    where=f"{self._dataset} [columns] {ours}",
                    why=f"column {theirs!r}, which the card gives as {ours!r}, is missing; "
                    + suggest_names(theirs, self._seen),
                    next_command=f"mend or remove the line {ours} = {theirs!r} of the card, then give the same "
                    "command again",
                )

    def _unusable(self) -> DatasetError:
        problems = [
            Problem(file=list(self._files)[file], line=line, why=why) for file, line, _, why in self._problems
        ]
        if problems:
            advice = (
                "mend the row, or say more in a card (docs/adding-a-dataset.md), then give the same command again"
            )
            return refuse(self._dataset, self._source.split, problems, next_command=advice)
        where = ", ".join(str(path) for path in self._source.files) or self._dataset
        return DatasetError(
            "The data hold no row.", where=where, next_command=f"put rows into {where}; docs/adding-a-dataset.md"
        )

    def _add(self, row: Row, record: Mapping[str, Any], split_name: str) -> None:
        kind = self._kind_of(row, record)
        item = parse_item(record, kind, self._source.card)
        if kind == "choice" and ("rationales" in item.content) != self._has_rationales:
            other = "none" if "rationales" in item.content else "some"
            raise Malformed(f"field 'rationales' is not as in the first row ({self._first}), which has {other}")
        split = self._splits.setdefault(split_name, _Split())
        name, place = item.item_id or f"{split_name}-{row.name}", f"{row.file}:{row.line}"
        if name in split.names:
            raise Malformed(f"field 'id' is {name!r}, which {split.names[name]} has already in split {split_name!r}")
        split.names[name] = place
        image = self._image_of(item)
        label = item.label if not isinstance(item.label, str) else self._labels[item.label]
        if label is None:
            split.unlabelled.append((len(self._rows), self._files[row.file], row.line))
        else:
            split.num_labelled += 1
        content = json.dumps(item.content, ensure_ascii=False, sort_keys=True)
        rationale = -1 if item.rationale_label is None else item.rationale_label
        told = [name, split.images[image], image.partition("\n")[2], content, item.label, rationale]
        split.digest.update(json.dumps([*told, item.group, item.stratum]).encode())
        self._ids.append(name)
        self._contents.append(content)
        self._rows.append(
            (
                *(row.line, self._files[row.file], self._codes[split_name], self._images[image]),
                *(-1 if label is None else label, rationale),
                *(self._groups[item.group], self._strata[item.stratum]),
            )
        )

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
        """Return a picture's key: its name, or the digest of its bytes after a "/"; then its boxes in JSON."""
        name = item.image
        if isinstance(name, bytes):
            digest = hashlib.sha256(name).hexdigest()
            keep(self._pictures / digest, name)
            name = f"/{digest}"
        return f"{name}\n{json.dumps([item.boxes, item.box_labels])}"

    def _drop_unlabelled(self) -> set[int]:
        """Rows without a label are problems where others of their split have one; a split may be without any."""
        dropped = set()
        label = "answers" if self._kind == "answers" else "label"
        for name, split in self._splits.items():
            for row, file, line in split.unlabelled if split.num_labelled else ():
                dropped.add(row)
                why = f"field {label!r} is missing, other rows of split {name!r} have it"
                self._problems.append((file, line, self._codes[name], why))
        return dropped

    def _columns(self, dropped: set[int]) -> Columns:
        kept = [row for row in range(len(self._rows)) if row not in dropped]
        table = np.array([self._rows[row] for row in kept], dtype=np.int64).reshape(-1, 8)
        names = ("line", "file_number", "split", "image_number", "label", "rationale_label", "group", "stratum")
        facts = {"kind": self._kind, "rationales": self._has_rationales, "columns": self._used_columns}
        digests = [self._splits[name].digest.hexdigest() if name in self._splits else "" for name in self._codes]
        places = [problem[:3] for problem in self._problems]
        return {
            **{name: np.ascontiguousarray(table[:, column]) for column, name in enumerate(names)},
            "problem.place": np.array(places, dtype=np.int64).reshape(-1, 3),
            **StringColumn.encode("facts", [json.dumps(facts)]),
            **StringColumn.encode("split_name", self._codes),
            **StringColumn.encode("split_digest", digests),
            **StringColumn.encode("file", self._files),
            **StringColumn.encode("image", self._images),
            **StringColumn.encode("label_name", self._labels),
            **StringColumn.encode("group_name", self._groups),
            **StringColumn.encode("stratum_name", self._strata),
            **StringColumn.encode("id", [self._ids[row] for row in kept]),
            **StringColumn.encode("content", [self._contents[row] for row in kept]),
            **StringColumn.encode("problem", [problem[3] for problem in self._problems]),
        }
