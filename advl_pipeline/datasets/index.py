"""The index of a dataset: all rows of all splits in one memory-mapped Arrow file, built once per content.

The file is in Arrow's IPC format with one record batch, named by the digest of its key. The key holds content digests
and reader versions, so a changed file gets another index and a stale one can never be opened.
A split is told by a row's column, else by its file. All rows are of one kind of task, that of the first row. Problems
lie in it too, so that each split fails on its own alone, and on lines whose split cannot be told.
"""

from __future__ import annotations

import hashlib
import json
import operator
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from advl_pipeline.base.configuration import config_to_dict
from advl_pipeline.base.errors import DatasetError, again
from advl_pipeline.datasets.cards import Kind
from advl_pipeline.datasets.fingerprint import FileDigests
from advl_pipeline.datasets.index_files import (
    SEAL_BYTES,
    Stamp,
    index_draft,
    keep,
    make_index_folder,
    remove_drafts,
    seal_index,
    sealed_size,
    stamp_of,
)
from advl_pipeline.datasets.own.columns import FACETS, columns_of, parse_item, recognise, shaped, split_of
from advl_pipeline.datasets.problems import Malformed, Problem, refuse
from advl_pipeline.datasets.records import Task
from advl_pipeline.datasets.rows import Held, Item, PictureFacts, Row, RowSource

_FACTS = b"advl"


class ArrowFile:
    """The record batch of an index, mapped when first used in any process: it is sent as its path.

    Its digest is compared with the content once, unless the file is as it was then by its `stamp`.
    """

    def __init__(self, path: Path, stamp: Stamp | None = None) -> None:
        self.path = path
        self._stamp = stamp
        self._numbers: dict[str, npt.NDArray[Any]] = {}

    def __reduce__(self) -> tuple[type[ArrowFile], tuple[Path, Stamp | None]]:
        return ArrowFile, (self.path, self._stamp)

    @cached_property
    def batch(self) -> Any:
        """The record batch; its buffers lie in the file.

        Raises:
            ValueError: the file is not what was written. OSError: it cannot be read.
        """
        stamp = stamp_of(self.path)
        size = sealed_size(self.path) if stamp != self._stamp else stamp[2] - SEAL_BYTES
        with pa.memory_map(str(self.path)) as file:
            content = file.read_buffer(size)
        if stamp_of(self.path) != stamp:
            raise ValueError(f"{self.path} changed while it was opened")
        self._stamp = stamp
        with pa.ipc.open_file(content) as reader:
            if reader.num_record_batches != 1:
                raise pa.ArrowInvalid("an index has one record batch")
            batch = reader.get_batch(0)
            batch.validate()
            return batch

    def __len__(self) -> int:
        return int(self.batch.num_rows)

    @property
    def facts(self) -> Mapping[str, Any]:
        """What was recorded of the whole, plain JSON types."""
        facts: Mapping[str, Any] = json.loads(self.batch.schema.metadata[_FACTS])
        return facts

    @cached_property
    def _columns(self) -> dict[str, Any]:
        # Arrow makes a column again each time it is asked for, a tenth of the time that an example may take.
        return dict(zip(self.batch.schema.names, self.batch.columns, strict=True))

    def numbers(self, name: str) -> npt.NDArray[Any]:
        """Return a column of numbers, or the codes of a dictionary column, without a copy."""
        if name not in self._numbers:
            column = self._columns[name]
            codes = column.indices if pa.types.is_dictionary(column.type) else column
            # Arrow's own way to NumPy imports pandas.
            self._numbers[name] = np.from_dlpack(codes)
        return self._numbers[name]

    def texts(self, name: str) -> Any:
        """Return a column of texts, or the distinct texts of a dictionary column by their codes: an Arrow array."""
        column = self._columns[name]
        return column.dictionary if pa.types.is_dictionary(column.type) else column

    def text(self, name: str, place: int) -> str:
        """Return one of the texts of a column."""
        text: str = self.texts(name)[place].as_py()
        return text

    def lists(self, name: str, row: int) -> list[Any]:
        """Return the list that a row has in a column of lists."""
        values: list[Any] = self._columns[name][row].as_py()
        return values

    def is_in(self, name: str, wanted: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Tell of each row whether its text in a column is one of the wanted ones."""
        import pyarrow.compute as pc

        mask = pc.is_in(self._columns[name], value_set=pa.array(wanted, pa.large_string()))
        member: npt.NDArray[np.bool_] = mask.to_numpy(zero_copy_only=False)
        return member


def record_batch(columns: Mapping[str, Any], facts: Mapping[str, Any] | None = None) -> Any:
    """Return a record batch of Arrow arrays, or of what they are made from, with facts about the whole."""
    batch = pa.record_batch(dict(columns))
    return batch.replace_schema_metadata({_FACTS: json.dumps(facts or {})})


def index_file(folder: Path, key: Mapping[str, Any]) -> Path:
    """Return where the index of `key` below `folder` lies, or is to lie."""
    canonical = json.dumps(key, sort_keys=True, separators=(",", ":"))
    return folder / f"{hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()}.arrow"


def open_index_file(folder: Path, key: Mapping[str, Any], build: Callable[[], Any]) -> ArrowFile:
    """Open the index of `key` below `folder`, building it first when it is not there or damaged.

    Args:
        folder: where indices lie; made when missing.
        key: plain JSON types that determine the content of the index.
        build: returns its `record_batch`; called at most once.

    Raises:
        DatasetError: the index cannot be written.
    """
    path = index_file(folder, key)
    with suppress(OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        file = ArrowFile(path)
        _ = file.batch, file.facts
        return file
    # It is absent, cut off, or no index.
    batch = build()
    with index_draft(path) as draft:
        with pa.OSFile(str(draft), "wb") as written, pa.ipc.new_file(written, batch.schema) as writer:
            writer.write_batch(batch)
        seal_index(draft, path.name)
    return ArrowFile(path)


PICTURES_FOLDER = "pictures"
"""Below the index: pictures that came inside a table, by the digest of their bytes."""

_RULES = 9
"""Raise it when the same files would yield other rows or problems; sound data keep their digests and caches."""

_CHUNK = 1 << 14
"""Rows that are held as Python objects while an index is built."""

_REPEATED = ("file", "split", "image", "label_name", "group", "stratum")
"""Columns whose texts are stored once each."""

_OF_ITEMS = ("num_choices", "cell", "texts", "answers", "counts", "entries", "group", "stratum", "facets")
"""Columns that hold what an `Item` says."""

_NOT_OF_ROWS = ("name", "facts", "files", "pictures", "measures", "ties", "reads", "asks")
"""Keys of a card that change no row."""

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
"""Columns while they are gathered."""


@dataclass(frozen=True, kw_only=True)
class Index:
    """Rows and problems of a dataset.

    `dataset` is the name that the user knows. `sources` are the files of its rows, `digests` their SHA-256 digests.
    `pictures` is the folder that names of pictures are relative to, and `folder` holds indices. With
    `is_published` the files are known by their own digests, and are of one split; other rows are known by what they
    say, and name their splits.
    """

    dataset: str
    file: ArrowFile
    folder: Path
    pictures: Path
    sources: tuple[Path, ...]
    digests: tuple[bytes, ...]
    is_published: bool

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
        if self.kind == "pictures":
            return ()
        if self.kind != "choice":
            return (self.kind,)
        return ("choice", "rationale") if self.facts["rationales"] else ("choice",)

    def rows_of(self, split: str) -> npt.NDArray[np.int64]:
        """Return the positions of a split's rows."""
        # By codes: Arrow's search would import pandas, half a second of every command that opens data.
        names = self.file.texts("split").to_pylist()
        if split not in names:
            return np.empty(0, np.int64)
        return np.flatnonzero(self.file.numbers("split") == names.index(split)).astype(np.int64)

    def is_labelled(self, split: str) -> bool:
        rows = self.rows_of(split)
        return bool(len(rows)) and bool((self.file.numbers("label")[rows] >= 0).all())

    def label_counts(self, rows: npt.NDArray[np.int64] | slice) -> dict[str, int]:
        """Return the class, or the most frequent answer, of any row -> how many of some rows have it."""
        names, codes = self.file.texts("label_name").to_pylist(), self.file.numbers("label")[rows]
        return dict(zip(names, np.bincount(codes[codes >= 0], minlength=len(names)).tolist(), strict=True))

    def left_out(self, split: str) -> str:
        """Return how many rows of a split the card's rules leave out, in words; "" for none."""
        count = self.facts["left_out"].get(split, 0)
        return f"{count:,} rows of {split} left out by the card" if count else ""

    def digests_of(self, split: str) -> tuple[bytes, ...]:
        """Return what the content of a split is known by.

        That is the SHA-256 digest of what its rows say, however they are stored; of published files, theirs.
        """
        digest = self.facts["splits"].get(split, "")
        return (bytes.fromhex(digest),) if digest else self.digests

    def problems_of(self, split: str | None) -> list[Problem]:
        """Return what is wrong with rows of a split, or with rows of nobody knows which; of all for None."""
        return [
            Problem(file=file, line=line, why=why)
            for file, line, row_split, why in self.facts["problems"]
            if split is None or row_split in (None, split)
        ]

    def picture(self, image: int) -> PictureFacts:
        """Return what the rows say of a picture, by its code in the column `image`."""
        return PictureFacts(*orjson.loads(self.file.text("image", image)))


def open_index(source: RowSource, *, dataset: str, folder: Path, is_published: bool = False) -> Index:
    """Open the index of a dataset's rows, building it first when their content is new.

    Args:
        folder: where indices lie.
        is_published: the content is known by the files, and what millions of rows say is not digested.

    Raises:
        DatasetError: a file cannot be read, no row can be used, or the rows are of no kind of task.
    """
    if source.files:
        make_index_folder(folder, source.files)
    before = _content_of(source, dataset, folder)
    digests = [digest for digest, _ in before if digest]
    card = {key: value for key, value in config_to_dict(source.card).items() if key not in _NOT_OF_ROWS}
    key = {
        "index": "rows",
        "rules": _RULES,
        "files": [digest.hex() for digest in digests],
        # Two files may change names: messages and ids of rows hold them.
        "names": [path.as_posix() for path in source.files],
        "version": source.version,
        "split": source.split,
        "kind": source.kind,
        "card": card,
    }

    def build() -> Any:
        remove_drafts(folder)
        batch = _Builder(source, dataset, folder, is_published).build()
        if _content_of(source, dataset, folder) != before:
            raise DatasetError(
                "The data changed while they were read.",
                where=", ".join(map(str, source.files)) or dataset,
                next_command=again("wait until they are written, then give the same command again"),
            )
        return batch

    return Index(
        dataset=dataset,
        file=open_index_file(folder, key, build),
        folder=folder,
        pictures=source.pictures,
        sources=source.files,
        digests=tuple(digests),
        is_published=is_published,
    )


def _content_of(source: RowSource, dataset: str, folder: Path) -> list[tuple[bytes, Any]]:
    """Return the digest of each file with its stamp, and what else tells whether the rows stay as they are."""
    files = FileDigests(Path("/"), folder / "annotations")
    contents: list[tuple[bytes, Any]] = []
    for path in source.files:
        try:
            contents.append((files.facts(path.absolute().as_posix()[1:]).digest, stamp_of(path)))
        except (Malformed, OSError) as error:
            problem = Problem(file=str(path), line=0, why=f"the file cannot be read: /{error}")
            raise refuse(dataset, source.split, [problem]) from None
    files.flush()
    return [*contents, (b"", source.state())] if source.state else contents


@dataclass
class _Split:
    """What is gathered of a split while its rows are read: ids -> where, pictures -> their number, a digest."""

    names: dict[str, str] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)
    digest: Any = field(default_factory=hashlib.sha256)


class _Builder:
    """Reads all rows into an Arrow record batch."""

    def __init__(self, source: RowSource, dataset: str, folder: Path, is_published: bool) -> None:
        self._source = source
        self._is_published = is_published
        self._dataset = dataset
        self._pictures = folder / PICTURES_FOLDER
        self._kind: Kind | None = source.kind
        self._first = ""
        self._has_rationales = False
        self._used_columns: tuple[str, ...] = ()
        self._splits: defaultdict[str, _Split] = defaultdict(_Split)
        self._left_out: Counter[str] = Counter()
        self._gathered: list[dict[str, Any]] = []
        self._chunks: list[Any] = []
        self._problems: list[tuple[str, int, str | None, str]] = []

    def build(self) -> Any:
        for row in shaped(self._source.rows(), self._source.card, dataset=self._dataset):
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
                self._add(row, record if isinstance(record, Item) else self._checked(row, record), name)
            except Malformed as error:
                self._problems.append((row.file, row.line, name, str(error)))
            finally:
                # A file that is of one split says so even where nothing of it can be used.
                if name is not None:
                    self._splits[name]
        if self._kind is not None:
            return self._batch()
        if self._problems:
            raise refuse(
                self._dataset,
                self._source.split,
                [Problem(file=file, line=line, why=why) for file, line, _, why in self._problems],
                next_command=again(
                    "mend the row, or say more in a card (docs/adding-a-dataset.md), then give the same command again"
                ),
            )
        where = ", ".join(map(str, self._source.files)) or self._dataset
        raise DatasetError("The data hold no row.", where=where, next_command="put rows into it")

    def _checked(self, row: Row, record: Mapping[str, Any]) -> Item:
        """Return the item of a row, which must be of the kind of the first one."""
        card_kind = self._source.card.task
        if self._kind is None:
            self._kind = recognise(record, card_kind)
            self._first, self._has_rationales = f"{row.file}:{row.line}", record.get("rationales") is not None
            self._used_columns = tuple(name for name in record if name != FACETS)
        try:
            kind = recognise(record, card_kind)
        except Malformed:
            # A row without answers or label tells no kind of its own; its fields are checked as the others' are.
            kind = self._kind
        if kind != self._kind:
            raise Malformed(
                f"the row is of the kind {columns_of(kind)}, the first row ({self._first}) is of the kind "
                f"{self._kind}: one dataset has one kind of task"
            )
        item = parse_item(record, kind, self._source.card)
        if kind == "choice" and bool(item.rationales) != self._has_rationales:
            other = "none" if item.rationales else "some"
            raise Malformed(f"field 'rationales' is not as in the first row ({self._first}), which has {other}")
        return item

    def _add(self, row: Row, item: Item, split_name: str) -> None:
        split = self._splits[split_name]
        name = item.item_id or f"{split_name}-{row.name}"
        if name in split.names:
            raise Malformed(f"field 'id' is {name!r}, which {split.names[name]} has already in split {split_name!r}")
        split.names[name] = f"{row.file}:{row.line}"
        picture = item.image
        if isinstance(picture, bytes):
            digest = hashlib.sha256(picture).hexdigest()
            keep(self._pictures / digest, picture)
            picture = f"/{digest}"
        elif isinstance(picture, Held):
            picture = picture.name
        # Rows that say the same of a picture share it.
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
                # Where there is no label, or no rationale, the number is -1.
                "label": None if is_named else label,
                "label_name": label if is_named else None,
                "rationale_label": -1 if item.rationale_label is None else item.rationale_label,
                **{column: getattr(item, column) for column in _OF_ITEMS},
            }
        )
        if len(self._gathered) == _CHUNK:
            self._settle_chunk()

    def _row_content(self, name: str, image: int, item: Item) -> bytes:
        """Return what the digest of a split holds of a row."""
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
        # Labels of another package's reader may be NumPy's.
        return json.dumps([*fields, item.group, item.stratum], default=operator.index).encode()

    def _settle_chunk(self) -> None:
        """Turn the gathered rows into an Arrow table, a fraction of the memory; texts that repeat stand once."""
        chunk = pa.Table.from_pylist(self._gathered, schema=_SCHEMA)
        for name in _REPEATED:
            chunk = chunk.set_column(chunk.schema.get_field_index(name), name, chunk[name].dictionary_encode())
        self._chunks.append(chunk)
        self._gathered = []

    def _batch(self) -> Any:
        import pyarrow.compute as pc

        self._settle_chunk()
        table = pa.concat_tables(self._chunks).unify_dictionaries()
        self._chunks = []
        columns: dict[str, Any] = {}
        for name in _SCHEMA.names:
            # Column by column, so that the whole is not held twice.
            columns[name] = table[name].combine_chunks()
            table = table.drop_columns([name])
        columns["label"] = pc.coalesce(columns["label"], columns["label_name"].indices)
        columns["cell"] = pc.coalesce(columns["cell"], columns["label"].cast(pa.int64()))
        labels, splits = (np.from_dlpack(column) for column in (columns["label"], columns["split"].indices))
        # A split may be without any label; where some rows have one, those without are problems.
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
            "left_out": self._left_out,
            "grouped": bool(self._source.card.items),
        }
        if is_bad.any():
            columns = {name: column.filter(pa.array(~is_bad)) for name, column in columns.items()}
        return record_batch(columns, facts)
