"""Rows that Python hands over become data of one's own in files: whatever names files can name them, ever after.

They lie below the folder of the datasets as `given/rows-DIGEST.jsonl`, with a card and the pictures that came in
memory. The digest is of what the rows say, so that the same rows are the same files.
"""

from __future__ import annotations

import hashlib
import io
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
from advl_pipeline.datasets.roots import resolve_data_root
from advl_pipeline.datasets.rows import Row, RowSource

Rows = Iterable[Mapping[str, Any]]

_PICTURES = (bytes, bytearray, Image.Image)

FOLDER = "given"
"""Below the folder of the datasets."""


def keep_rows(rows: Rows | Mapping[str, Rows], *, pictures: Path | None) -> Path:
    """Write rows as data of one's own; return the card that names them.

    Args:
        rows: dictionaries of the columns in `docs/adding-a-dataset.md`, or a `datasets.Dataset`; or split -> such
            rows, as in a `datasets.DatasetDict`. A picture is the name of a file, a path, its bytes, or an image of
            Pillow.
        pictures: folder that names of pictures are relative to; None for the current one. A path is read as it is.

    Raises:
        DatasetError: no rows, a value that no file can hold, or both names of pictures and pictures in memory.
        StorageError: the folder of the datasets cannot be written.
    """
    home = resolve_data_root(None) / FOLDER
    source = _source(rows)
    lines: list[str] = []
    kinds: dict[bool, str] = {}
    for row in source.rows():
        place = f"data, {f'split {row.split}, ' if row.split else ''}row {row.line}"
        if not isinstance(row.record, Mapping):
            raise DatasetError(
                "A row is no dictionary.",
                where=place,
                why=f"got {type(row.record).__name__}",
                next_command="give rows such as {'image': 'red.png', 'question': ..., 'choices': [...]}",
            )
        picture = _bytes_of(row.record.get("image"))
        kinds.setdefault(picture is None, place)
        kept: dict[str, Any] = {} if row.split is None else {"split": row.split}
        for column, value in row.record.items():
            if not isinstance(value, _PICTURES):  # Other pictures in a row are left alone.
                kept[column] = value.tolist() if hasattr(value, "tolist") else value
        if picture is not None:
            kept["image"] = hashlib.sha256(picture).hexdigest()
            keep(home / PICTURES_FOLDER / kept["image"], picture)
        try:
            lines.append(json.dumps(kept, ensure_ascii=False, sort_keys=True) + "\n")
        except (TypeError, ValueError) as error:
            columns = ", ".join(repr(name) for name, value in kept.items() if not _can_be_kept({name: value}))
            raise DatasetError(
                "A value of a row cannot be kept.",
                where=f"{place}, column {columns}" if columns else place,
                why=str(error),
                next_command="leave out the column, or give texts, numbers and lists of them",
            ) from None
    if not lines:
        raise DatasetError("The data hold no row.", where="data", next_command="give at least one row")
    if len(kinds) > 1:
        raise DatasetError(
            "Some pictures are names, others are in memory.",
            where=", ".join(kinds.values()),
            why="names are relative to one folder, and pictures in memory are kept in another",
            next_command="give all pictures as names, or all as paths, bytes or images",
        )
    folder = str((pictures or Path()).absolute()) if True in kinds else PICTURES_FOLDER
    labels = "".join(
        f"{key} = {json.dumps(value, ensure_ascii=False)}\n"
        for key, value in (("labels", list(source.card.labels)), ("label_is", source.card.label_is))
        if value
    )
    content, card_lines = "".join(lines), f"pictures = {json.dumps(folder, ensure_ascii=False)}\n{labels}"
    name = f"rows-{hashlib.sha256((card_lines + content).encode()).hexdigest()[:12]}"
    card = home / f"{name}.toml"
    if not card.is_file():
        make_folder(home)
        write_text(home / f"{name}.jsonl", content)
        # The card names the rows, so it comes last.
        write_text(card, f'files = "{name}.jsonl"\n{card_lines}')
    return card


def _source(rows: Rows | Mapping[str, Rows]) -> RowSource:
    parts: list[tuple[str | None, Any]] = [*rows.items()] if isinstance(rows, Mapping) else [(None, rows)]
    if parts and all(hasattr(part, "cast_column") for _, part in parts):
        return library_source(dict(parts), Card(), name="data", pictures=Path())

    numbered = ((split, enumerate(part, start=1)) for split, part in parts)
    listed = (Row(record, str(number), split, "", number) for split, part in numbered for number, record in part)
    return RowSource(rows=lambda: listed, pictures=Path())


def _can_be_kept(cell: Mapping[str, Any]) -> bool:
    try:
        json.dumps(cell)
    except (TypeError, ValueError):
        return False
    return True


def _bytes_of(picture: Any) -> bytes | None:
    """Return the bytes of a picture that came in memory or as a path; None for a name."""
    if isinstance(picture, Mapping):
        picture = picture.get("bytes")
    if isinstance(picture, Image.Image):
        content = io.BytesIO()
        picture.save(content, "PNG")
        return content.getvalue()
    if isinstance(picture, os.PathLike):
        try:
            return read_regular(Path(picture))
        except OSError as error:
            raise DatasetError(
                "A picture cannot be read.", where=os.fspath(picture), why=error.strerror or str(error)
            ) from None
    return bytes(picture) if isinstance(picture, (bytes, bytearray)) else None
