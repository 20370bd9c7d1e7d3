"""The index of a dataset: all rows of all splits in one memory-mapped Arrow file, built once per content.

The digest of the key is the file name. The key contains content digests and reader versions, so a changed file gets
a new index and a stale one is never opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from advl_pipeline.base.configuration import config_to_dict
from advl_pipeline.base.errors import DatasetError, again
from advl_pipeline.datasets.arrow_file import ArrowFile, open_index_file
from advl_pipeline.datasets.cards import Kind
from advl_pipeline.datasets.fingerprint import FileDigests
from advl_pipeline.datasets.index_builder import IndexBuilder
from advl_pipeline.datasets.index_files import make_index_folder, remove_drafts, stamp_of
from advl_pipeline.datasets.problems import Malformed, Problem, refuse
from advl_pipeline.datasets.records import Task
from advl_pipeline.datasets.rows import PictureFacts, RowSource

_RULES = 10
"""Version; increase it when the same files would yield other rows or problems. Valid data keep digests and caches."""

_NOT_OF_ROWS = ("name", "facts", "files", "pictures", "measures", "ties", "reads", "asks")
"""Keys of a card that do not affect rows."""


@dataclass(frozen=True, kw_only=True)
class Index:
    """Rows and problems of a dataset.

    `dataset` is the user's name for it. `source` locates rows and pictures and is not read again; `digests` are the
    SHA-256 digests of its files. `folder` contains indices. With `is_published` the files are identified by their
    digests and belong to one split. Other rows are identified by their content and name their splits.
    """

    dataset: str
    file: ArrowFile
    folder: Path
    source: RowSource
    digests: tuple[bytes, ...]
    is_published: bool

    @cached_property
    def facts(self) -> Mapping[str, Any]:
        """Kind, rationales, columns, splits with digests, problems, rows left out, whether rows are groups."""
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
        """Tasks of your own data, named by their kind."""
        if self.kind == "pictures":
            return ()
        if self.kind != "choice":
            return (self.kind,)
        return ("choice", "rationale") if self.facts["rationales"] else ("choice",)

    def rows_of(self, split: str) -> npt.NDArray[np.int64]:
        """Return the positions of a split's rows."""
        if self.is_published:
            return np.arange(len(self.file), dtype=np.int64)
        # By codes: Arrow's search would import pandas, half a second for every command that opens data.
        names = self.file.texts("split").to_pylist()
        if split not in names:
            return np.empty(0, np.int64)
        return np.flatnonzero(self.file.numbers("split") == names.index(split)).astype(np.int64)

    def is_labelled(self, split: str) -> bool:
        rows = self.rows_of(split)
        return bool(len(rows)) and bool((self.file.numbers("label")[rows] >= 0).all())

    def label_counts(self, rows: npt.NDArray[np.int64]) -> dict[str, int]:
        """Return class, or most frequent answer, of any row -> its number among the given rows."""
        names, codes = self.file.texts("label_name").to_pylist(), self.file.numbers("label")[rows]
        return dict(zip(names, np.bincount(codes[codes >= 0], minlength=len(names)).tolist(), strict=True))

    def left_out(self, split: str) -> str:
        """Return a message on the rows of a split that the card's rules leave out; "" for none."""
        count = self.facts["left_out"].get(split, 0)
        return f"{count:,} rows of {split} left out by the card" if count else ""

    def digests_of(self, split: str) -> tuple[bytes, ...]:
        """Return the digests that identify the content of a split.

        That is the SHA-256 digest of its rows, independent of their storage; for published files, the file digests.
        """
        digest = self.facts["splits"].get(split, "")
        return (bytes.fromhex(digest),) if digest else self.digests

    def problems_of(self, split: str) -> list[Problem]:
        """Return the problems of a split, including those of rows with unknown split."""
        return [
            Problem(file=file, line=line, why=why)
            for file, line, row_split, why in self.facts["problems"]
            if self.is_published or row_split in (None, split)
        ]

    def require_counted(self, split: str) -> None:
        """Refuse a split whose labels seem to count from another number than 0, which no skipped row mends.

        Raises:
            DatasetError: the labels may be off by one; the message has the line of the card.
        """
        if why := self.facts["miscounted"].get(split):
            raise DatasetError(
                f"The labels of {self.dataset} may be off by one.",
                where=f"split {split}",
                why=why,
                next_command="write a card (docs/adding-a-dataset.md) with the line first_label = 1, "
                "or first_label = 0 if they count from 0; and give the card in place of the data",
            )

    def where(self, row: int) -> str:
        """Return file and line of a row."""
        return f"{self.file.text('file', self.file.numbers('file')[row])}:{self.file.numbers('line')[row]}"

    def picture(self, image: int) -> PictureFacts:
        """Return the facts that rows give of a picture, by its code in the column `image`."""
        return PictureFacts(*orjson.loads(self.file.text("image", image)))


def open_index(source: RowSource, *, dataset: str, folder: Path, is_published: bool = False) -> Index:
    """Open the index of a dataset's rows; build it first if the content is new.

    Args:
        folder: folder of the indices.
        is_published: identify the content by the files, without digesting millions of rows.

    Raises:
        DatasetError: a file cannot be read, no row is usable, or the rows fit no kind of task.
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
        # Names enter the key, since two files may swap names: messages and row ids contain them.
        "names": [path.as_posix() for path in source.files],
        "version": source.version,
        "split": source.split,
        "kind": source.kind,
        "card": card,
    }

    def build() -> Any:
        remove_drafts(folder)
        batch = IndexBuilder(source, dataset, folder, is_published).build()
        if _content_of(source, dataset, folder) != before:
            raise DatasetError(
                "The data changed while they were read.",
                where=", ".join(map(str, source.files)) or dataset,
                next_command=again("wait until they are written, then run the same command again"),
            )
        return batch

    return Index(
        dataset=dataset,
        file=open_index_file(folder, key, build),
        folder=folder,
        # The reader of the rows cannot be sent to another process.
        source=replace(source, rows=tuple, state=None),
        digests=tuple(digests),
        is_published=is_published,
    )


def _content_of(source: RowSource, dataset: str, folder: Path) -> list[tuple[bytes, Any]]:
    """Return the digest of each file with its stamp, and the state that tells whether the rows changed."""
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
