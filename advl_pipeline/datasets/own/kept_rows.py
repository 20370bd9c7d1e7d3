"""Storage of rows from Python as files, so that later commands can refer to them by path.

They are below the datasets folder as `given/rows-DIGEST.jsonl`, with a card and the pictures that were in memory. The
digest covers the content of the rows, so that equal rows give the same files.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from advl_pipeline.base.atomic import make_folder, write_text
from advl_pipeline.base.errors import DatasetError
from advl_pipeline.base.locations import read_regular
from advl_pipeline.datasets.cards import Card
from advl_pipeline.datasets.index_files import PICTURES_FOLDER, keep
from advl_pipeline.datasets.own.hub import library_source
from advl_pipeline.datasets.pictures import as_file
from advl_pipeline.datasets.problems import unreadable
from advl_pipeline.datasets.roots import resolve_data_root
from advl_pipeline.datasets.rows import Row, RowSource

Rows = Iterable[Mapping[str, Any]]

_PICTURES = (bytes, bytearray, Image.Image)

FOLDER = "given"
"""Folder below the datasets folder."""


def keep_rows(rows: Rows | Mapping[str, Rows], *, pictures: Path | None) -> Path:
    """Write rows to files; return the card that names them.

    Args:
        rows: dictionaries of the columns in `docs/adding-a-dataset.md`, or a `datasets.Dataset`; or split -> such
            rows, as in a `datasets.DatasetDict`. A picture is a file name, a path, its bytes, or a Pillow image.
        pictures: folder that picture names are relative to; None for the current one. It does not apply to paths.

    Raises:
        DatasetError: no rows, a value that cannot be stored in a file, or both picture names and pictures in memory.
        StorageError: the datasets folder cannot be written.
    """
    home = resolve_data_root(None) / FOLDER
    source = _source(rows)
    lines: list[str] = []
    kinds: dict[bool, str] = {}
    for row in source.rows():
        place = f"data, {f'split {row.split}, ' if row.split else ''}row {row.line}"
        if not isinstance(row.record, Mapping):
            raise _refused("A row is no dictionary.", place, f"got {type(row.record).__name__}")
        picture = _bytes_of(row.record.get("image"))
        kinds.setdefault(picture is None, place)
        kept: dict[str, Any] = {} if row.split is None else {"split": row.split}
        for column, value in row.record.items():
            is_picture = isinstance(value, _PICTURES) or (column == "image" and picture is not None)
            if not is_picture:  # Other pictures than the row's own are ignored.
                kept[column] = value.tolist() if hasattr(value, "tolist") else value
                try:
                    json.dumps(kept[column])
                except (TypeError, ValueError) as error:
                    raise _refused(
                        "A value of a row cannot be kept.", f"{place}, column {column!r}", str(error)
                    ) from None
        if picture is not None:
            kept["image"] = hashlib.sha256(picture).hexdigest()
            keep(home / PICTURES_FOLDER / kept["image"], picture)
        lines.append(json.dumps(kept, ensure_ascii=False, sort_keys=True) + "\n")
    if not lines:
        raise _refused("The dataset has no rows.", "data", "a run needs one at least")
    if len(kinds) > 1:
        raise _refused(
            "Some pictures are names, others are in memory.",
            ", ".join(kinds.values()),
            "give all as names, which are relative to one folder, or all as paths, bytes or images, which are kept",
        )
    folder = str((pictures or Path()).absolute()) if True in kinds else PICTURES_FOLDER
    labels = "".join(
        f"{key} = {json.dumps(value, ensure_ascii=False)}\n"
        for key, value in (
            ("labels", list(source.card.labels)),
            ("label_is", source.card.label_is),
            ("first_label", source.card.first_label),
        )
        if value not in (None, [])
    )
    content, card_lines = "".join(lines), f"pictures = {json.dumps(folder, ensure_ascii=False)}\n{labels}"
    name = f"rows-{hashlib.sha256((card_lines + content).encode()).hexdigest()[:12]}"
    card = home / f"{name}.toml"
    if not card.is_file():
        make_folder(home)
        write_text(home / f"{name}.jsonl", content)
        # The card refers to the rows, so it is written last.
        write_text(card, f'files = "{name}.jsonl"\n{card_lines}')
    return card


def _source(rows: Rows | Mapping[str, Rows]) -> RowSource:
    parts: list[tuple[str | None, Any]] = [*rows.items()] if isinstance(rows, Mapping) else [(None, rows)]
    if parts and all(hasattr(part, "cast_column") for _, part in parts):
        return library_source(dict(parts), Card(), name="data", pictures=Path())

    numbered = ((split, enumerate(part, start=1)) for split, part in parts)
    listed = (Row(record, str(number), split, "", number) for split, part in numbered for number, record in part)
    return RowSource(rows=lambda: listed, pictures=Path())


def _refused(what: str, where: str, why: str) -> DatasetError:
    return DatasetError(
        what,
        where=where,
        why=why,
        next_command="give rows such as {'image': 'red.png', 'question': ..., 'choices': [...]}, "
        "of texts, numbers and lists",
    )


def _bytes_of(picture: Any) -> bytes | None:
    """Return the bytes of a picture given in memory or as a path; None for a name."""
    if isinstance(picture, Mapping):
        picture = picture.get("bytes")
    if isinstance(picture, os.PathLike):
        try:
            return read_regular(Path(picture))
        except OSError as error:
            raise unreadable(os.fspath(picture), error, what="A picture") from None
    return as_file(picture) if isinstance(picture, _PICTURES) else None
