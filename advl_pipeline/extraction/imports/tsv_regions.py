"""TSV of bottom-up attention (6 columns) and of LXMERT (10), one picture a line, arrays in base64.

The files can reach tens of gigabytes: they are scanned for the offsets of their lines, and a line is decoded when its
picture is requested.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from advl_pipeline.base.errors import DatasetError
from advl_pipeline.datasets.problems import unreadable
from advl_pipeline.extraction.imports.regions import (
    MALFORMED_REGIONS,
    Arrays,
    Entry,
    decode_floats,
    decode_record,
)

_BUTD = "image_id image_w image_h num_boxes boxes features".split()
_LXMERT = "img_id image_h image_w objects_id objects_conf attrs_id attrs_conf num_boxes boxes features".split()
_LAYOUTS = {len(_BUTD): _BUTD, len(_LXMERT): _LXMERT}


def tsv_entries(path: Path) -> Iterator[tuple[str, Entry]]:
    """Yield the lines of a TSV file by picture; each is decoded on access."""
    offset, is_empty = 0, True
    with path.open("rb", buffering=1 << 20) as file:
        for number, line in enumerate(file, start=1):
            if not line.isspace():
                is_empty = False
                where, num_columns = f"{path}:{number}", line.count(b"\t") + 1
                if num_columns not in _LAYOUTS:
                    raise DatasetError(
                        MALFORMED_REGIONS,
                        where=where,
                        why=f"{num_columns} columns, expected {' or '.join(map(str, _LAYOUTS))}",
                    )
                name = line.split(b"\t", 1)[0].decode("utf-8", "replace")
                yield name, Entry(where, partial(_read_line, path, offset, len(line)))
            offset += len(line)
    if is_empty:
        raise unreadable(path, ValueError("it has no lines"), what="A file of region features")


def _read_line(path: Path, offset: int, length: int) -> Arrays:
    with path.open("rb") as file:
        file.seek(offset)
        cells = file.read(length).rstrip(b"\r\n").split(b"\t")
    fields = dict(zip(_LAYOUTS[len(cells)], cells, strict=True))
    arrays = decode_record(fields)
    if "objects_conf" in fields:
        rows = len(arrays["boxes"])
        arrays["conf"] = decode_floats(fields["objects_conf"], rows=rows, what="confidences")[:, 0]
    return arrays
