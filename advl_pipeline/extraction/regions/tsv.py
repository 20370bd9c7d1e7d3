"""TSV of bottom-up attention (6 columns) and of LXMERT (10 columns), one picture per line, arrays in base64.

BUTD: image_id, image_w, image_h, num_boxes, boxes, features. LXMERT: img_id, img_h, img_w, objects_id, objects_conf,
attrs_id, attrs_conf, num_boxes, boxes, features. The files reach tens of gigabytes: they are scanned for the offsets
of their lines, and a line is decoded when its picture is asked for.
"""

from __future__ import annotations

from pathlib import Path

from advl_pipeline.datasets.problems import Malformed
from advl_pipeline.datasets.row_files import MappedLines, scan_lines
from advl_pipeline.errors import DatasetError
from advl_pipeline.extraction.regions.interface import RegionFeatures, decode_floats, make_regions, positive

_BUTD = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
_LXMERT = (
    "img_id",
    "image_h",
    "image_w",
    "objects_id",
    "objects_conf",
    "attrs_id",
    "attrs_conf",
    "num_boxes",
    "boxes",
    "features",
)
_LAYOUTS = {len(_BUTD): _BUTD, len(_LXMERT): _LXMERT}


class TsvRegions:
    """Regions of a TSV file.

    Raises:
        DatasetError: missing, a line of another number of columns, or a picture twice; the line is named.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._rows = _scan(path)
        except OSError as error:
            raise DatasetError(
                "A file of region features cannot be read.",
                where=str(path),
                why=error.strerror or "it cannot be read",
            ) from None
        if not self._rows:
            raise DatasetError("A file of region features cannot be read.", where=str(path), why="it has no lines")
        self._lines = MappedLines(path)

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def read(self, name: str, *, width: int, height: int) -> RegionFeatures:
        if name not in self._rows:
            raise DatasetError("A picture has no region features.", where=str(self._path), why=f"no line for {name}")
        line, offset, length = self._rows[name]
        try:
            return _parse(self._lines.read(offset, length), (width, height))
        except Malformed as error:
            where = f"{self._path}:{line}"
            raise DatasetError("Region features are malformed.", where=where, why=f"{name}: {error}") from None


def _scan(path: Path) -> dict[str, tuple[int, int, int]]:
    """Return by picture the number, the offset and the length of its line."""
    rows: dict[str, tuple[int, int, int]] = {}
    for line in scan_lines(path):
        name = line.data.split(b"\t", 1)[0].decode("utf-8", "replace")
        num_columns = line.data.count(b"\t") + 1
        why = ""
        if num_columns not in _LAYOUTS:
            why = f"{num_columns} columns, expected {' or '.join(map(str, _LAYOUTS))}"
        elif name in rows:
            why = f"picture {name} was on line {rows[name][0]} already"
        if why:
            raise DatasetError("Region features are malformed.", where=f"{path}:{line.number}", why=why)
        rows[name] = (line.number, line.offset, len(line.data))
    return rows


def _parse(data: bytes, size: tuple[int, int]) -> RegionFeatures:
    cells = data.rstrip(b"\r\n").split(b"\t")
    fields = dict(zip(_LAYOUTS[len(cells)], cells, strict=True))
    count = positive(fields["num_boxes"], "num_boxes")
    confidence = fields.get("objects_conf")
    return make_regions(
        features_RF=decode_floats(fields["features"], rows=count, what="features"),
        boxes_R4=decode_floats(fields["boxes"], rows=count, what="boxes"),
        size=size,
        stated_size=(positive(fields["image_w"], "image_w"), positive(fields["image_h"], "image_h")),
        confidence_R=None if confidence is None else decode_floats(confidence, rows=count, what="confidences")[:, 0],
    )
