"""Pictures inside Parquet files of a fixed hub revision: rows are read without them.

A picture is downloaded on first access, together with the other pictures of its row group. So a subset of a few
questions costs the texts of all rows and the row groups of its own pictures.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from advl_pipeline.base.errors import DatasetError, again
from advl_pipeline.base.folders import nearest_existing
from advl_pipeline.base.locations import hub_obstacle
from advl_pipeline.datasets.arrow_file import ArrowFile, index_file, open_index_file, record_batch
from advl_pipeline.datasets.index_files import PICTURES_FOLDER, keep
from advl_pipeline.datasets.own.hub_files import lies_inside, open_file
from advl_pipeline.datasets.problems import unfetched
from advl_pipeline.datasets.rows import Held

_GROUPS = "row-groups"
"""Folder below the index that lists the pictures of downloaded row groups."""


@dataclass(frozen=True)
class HeldRows:
    """Rows of Parquet files with `Held` pictures.

    `files` maps names of files in the repository to the locations to open, in order. `features` are those of the
    library, and `pictures` are the columns with pictures or lists of pictures.
    """

    repository: str
    files: Mapping[str, str]
    features: Any
    pictures: frozenset[str]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for name, place in self.files.items():
            with closing(open_file(place)) as file:
                yield from self._rows_of(file, f"{self.repository}/{name}")

    def _rows_of(self, file: IO[bytes], name: str) -> Iterator[dict[str, Any]]:
        import datasets
        import pyarrow.parquet as pq
        from datasets.table import table_cast

        table = pq.ParquetFile(file, pre_buffer=True)
        leaves = [table.schema.column(place).path for place in range(len(table.schema))]
        is_content = [leaf.partition(".")[0] in self.pictures and leaf.endswith(".bytes") for leaf in leaves]
        content = {place for place, is_of_picture in enumerate(is_content) if is_of_picture}
        wanted = [leaf for place, leaf in enumerate(leaves) if place not in content]
        texts = datasets.Features({key: kind for key, kind in self.features.items() if key not in self.pictures})
        for group in range(table.num_row_groups):
            chunks = [table.metadata.row_group(group).column(place) for place in content]
            sizes = {chunk.path_in_schema.partition(".")[0]: chunk.total_compressed_size for chunk in chunks}
            read = table.read_row_group(group, columns=wanted)
            rows = table_cast(read.select(list(texts)), texts.arrow_schema).to_pylist()
            for column in self.pictures:
                for number, (row, value) in enumerate(zip(rows, read[column].to_pylist(), strict=True)):
                    several = value if isinstance(value, list) else [value]
                    held = [
                        None if picture is None else Held(name, column, group, number, place, sizes[column])
                        for place, picture in enumerate(several)
                    ]
                    row[column] = held if isinstance(value, list) else held[0]
            yield from rows


@dataclass(frozen=True)
class HeldPictures:
    """Store of downloaded pictures.

    Args:
        root: datasets folder; copies of repositories below it take precedence over the hub.
        index: folder of the index.
    """

    root: Path
    index: Path
    _groups: dict[tuple[Any, ...], ArrowFile] = field(default_factory=dict)

    def file_of(self, name: str) -> Path:
        """Return the file of a picture; download its row group if the file is missing.

        Args:
            name: name of a `Held` picture.

        Raises:
            DatasetError: the picture cannot be downloaded, or the disk has no space for it.
        """
        held = Held.named(name)
        group = held.file, held.column, held.group
        if group not in self._groups:
            self.require_room([name])
            self._groups[group] = open_index_file(self._folder, self._key(held), lambda: self._fetched(held))
        digest: str = self._groups[group].lists("digests", held.row)[held.place]
        return self.index.absolute() / PICTURES_FOLDER / digest

    def require_room(self, names: Iterable[str]) -> None:
        """Refuse pictures that are not downloaded yet and that the disk has no space for.

        Raises:
            DatasetError: the disk has no space.
        """
        held = [Held.named(name) for name in names]
        groups = {(picture.file, picture.column, picture.group): picture for picture in held}
        absent = [
            picture for picture in groups.values() if not index_file(self._folder, self._key(picture)).is_file()
        ]
        if absent:
            require_space(sum(picture.num_bytes for picture in absent), absent[0].repository, self.index)

    @property
    def _folder(self) -> Path:
        return self.index / _GROUPS

    def _place(self, held: Held) -> str:
        repository = self.root / held.repository.partition("@")[0]
        copy = repository / held.inside
        is_here = copy.is_file() and lies_inside(copy, repository)
        return str(copy) if is_here else f"hf://datasets/{held.file}"

    def _key(self, held: Held) -> dict[str, Any]:
        place = Path(self._place(held))
        state = [place.stat().st_size, place.stat().st_mtime_ns] if place.is_file() else []
        return {"index": "row group", "file": held.file, "column": held.column, "group": held.group, "state": state}

    def _fetched(self, held: Held) -> Any:
        import pyarrow.parquet as pq

        place = self._place(held)
        try:
            if not Path(place).is_file() and (obstacle := hub_obstacle()):
                raise OSError(obstacle)
            with closing(open_file(place)) as file:
                column = pq.ParquetFile(file, pre_buffer=True).read_row_group(held.group, columns=[held.column])[0]
                pictures = column.to_pylist()
        except Exception as error:  # The network and the formats raise many types of errors.
            raise unfetched(
                "Pictures of the dataset cannot be fetched.",
                where=f"{held.file}, row group {held.group}",
                error=error,
            ) from None
        digests = []
        for value in pictures:
            contents = [(picture or {}).get("bytes") for picture in (value if isinstance(value, list) else [value])]
            digests.append([hashlib.sha256(content).hexdigest() if content else "" for content in contents])
            for digest, content in zip(digests[-1], contents, strict=True):
                if content:
                    keep(self.index / PICTURES_FOLDER / digest, content)
        return record_batch({"digests": digests})


def require_space(needed: float, where: str, folder: Path) -> None:
    """Refuse data larger than the free space on the disk of a folder.

    Raises:
        DatasetError: the disk has no space.
    """
    home = nearest_existing(folder.absolute())
    free = shutil.disk_usage(home).free
    if needed > free:
        raise DatasetError(
            "The dataset does not fit on the disk.",
            where=where,
            why=f"it takes {needed / 1e9:,.1f} GB, and {home} has {free / 1e9:,.1f} GB free",
            next_command=again(
                "set ADVL_DATA to a folder on a larger disk, take fewer questions by --shots, "
                "or the first rows alone by num_rows = 20000 in a card, then run the same command again"
            ),
        )
