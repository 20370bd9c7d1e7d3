"""UNITER's LMDB: key "<name>.npz", value msgpack of arrays, or compressed `.npz` bytes.

The folder's name gives the number of regions per picture: `feat_th0.2_max100_min10[_compressed]` keeps the regions
above a confidence, within these limits; `feat_numbb36` keeps 36; `all` keeps all. Rows are sorted by descending
confidence, and the first n are used. The sidecar `nbb_<...>.json` next to the folder gives n, else n is computed.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from advl_pipeline.base.packages import needs_extra
from advl_pipeline.datasets.problems import Malformed, unreadable
from advl_pipeline.extraction.imports.npz_regions import read_archive
from advl_pipeline.extraction.imports.regions import Arrays, Entry, read_numbers

_THRESHOLD = re.compile(r"feat_(?P<rule>th(?P<threshold>[0-9.]+)_max(?P<most>\d+)_min(?P<least>\d+))(_compressed)?")
_FIXED = re.compile(r"feat_numbb(?P<count>\d+)(_compressed)?")
_ZIP_MAGIC = b"PK\x03\x04"


def lmdb_entries(folder: Path, stack: ExitStack) -> Iterator[tuple[str, Entry]]:
    """Yield the entries of one LMDB folder, such as `img_db/coco_val2014/feat_th0.2_max100_min10`."""
    with needs_extra("uniter", where=str(folder)):
        import lmdb
        import msgpack  # noqa: F401
    try:
        opened = lmdb.open(str(folder), readonly=True, lock=False, readahead=False, create=False)
    except lmdb.Error as error:
        raise unreadable(folder, error, what="A file of region features") from None
    environment = stack.enter_context(opened)
    rule, counts = _THRESHOLD.fullmatch(folder.name), {}
    if rule and (sidecar := folder.parent / f"nbb_{rule['rule']}.json").exists():
        counts = read_numbers(sidecar, what="The counts of regions are malformed.")

    def read(key: bytes) -> Arrays:
        with environment.begin() as transaction:
            value: bytes = transaction.get(key) or b""
        arrays = read_archive(io.BytesIO(value)) if value.startswith(_ZIP_MAGIC) else _unpack(value)
        count = counts.get(key.decode())
        if fixed := _FIXED.fullmatch(folder.name):
            count = int(fixed["count"])
        elif rule and count is None:
            if "conf" not in arrays:
                raise Malformed("neither the sidecar nor confidences say how many regions are meant")
            above = int((arrays["conf"].astype(np.float32) > float(rule["threshold"])).sum())
            count = min(max(above, int(rule["least"])), int(rule["most"]))
        return arrays if count is None else {**arrays, "num_boxes": np.array(count)}

    with environment.begin() as transaction:
        for key in transaction.cursor().iternext(values=False):
            if key.endswith(b".npz"):
                name = key.decode("utf-8", "replace").removesuffix(".npz")
                yield name, Entry(f"{folder}: {name}", partial(read, bytes(key)))


def _unpack(value: bytes) -> Arrays:
    """Unpack a dictionary of arrays in msgpack_numpy's format; refuse its pickled objects."""
    import msgpack

    try:
        record = msgpack.unpackb(value, raw=True, strict_map_key=False)
    except (ValueError, msgpack.UnpackException) as error:
        raise Malformed(f"not msgpack: {error}") from None
    if not isinstance(record, dict):
        raise Malformed("not a dictionary of arrays")
    arrays = {}
    for key, entry in record.items():
        name = _text(key)
        if name == "soft_labels":
            continue
        fields = {_text(key): value for key, value in entry.items()} if isinstance(entry, dict) else {}
        if not fields.get("nd") or fields.get("kind") not in (b"", ""):
            raise Malformed(f"{name!r} is not a plain array")
        try:
            dtype = np.dtype(_text(fields["type"]))
            arrays[name] = np.frombuffer(fields["data"], dtype=dtype).reshape(fields["shape"])
        except (TypeError, ValueError, KeyError) as error:
            raise Malformed(f"{name!r} is not an array: {error}") from None
    return arrays


def _text(key: Any) -> str:
    return key.decode("utf-8", "replace") if isinstance(key, bytes) else str(key)
