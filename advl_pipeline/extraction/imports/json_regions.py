"""A folder of VL-BERT's `.json` files, one per picture, arrays in base64 of float32."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from advl_pipeline.datasets.problems import Malformed
from advl_pipeline.extraction.imports.regions import Arrays, Entry, decode_floats, decode_record


def json_entries(folder: Path) -> Iterator[tuple[str, Entry]]:
    """Yield the files of a folder by relative path without suffix."""
    for file in folder.rglob("*.json"):
        yield file.relative_to(folder).with_suffix("").as_posix(), Entry(str(file), partial(_read_json, file))


def _read_json(path: Path) -> Arrays:
    try:
        record = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise Malformed(f"not JSON: {error}") from None
    if not isinstance(record, dict):
        raise Malformed("not an object")
    arrays = decode_record(record)
    if (whole := record.get("image_box_feature")) is not None:
        arrays["image_box_feature"] = decode_floats(whole, rows=1, what="image_box_feature")[0]
    return arrays
