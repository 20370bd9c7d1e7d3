"""Readers of a detector's region features in the file formats of published models.

TSV of bottom-up attention (6 columns) and of LXMERT (10 columns), one picture per line, arrays in base64. BUTD:
image_id, image_w, image_h, num_boxes, boxes, features. LXMERT: img_id, img_h, img_w, objects_id, objects_conf,
attrs_id, attrs_conf, num_boxes, boxes, features. The files can reach tens of gigabytes: they are scanned for the
offsets of their lines, and a line is decoded when its picture is requested.

HDF5 of bottom-up attention: `image_features` and `image_bb`, fixed (N, R, F) or ragged with `pos_boxes` (N, 2).
`<split>36_imgid2idx.json` maps pictures to rows; users make it from the published pickle. If `spatial_features`
exists, the boxes divided by it give the size of the original picture.

One file per picture: `.npz` (VisualBERT, ViLBERT and similar) has `features`; `boxes` or `bbox` in pixels, or
`norm_bb` in fractions (corners, then width and height); optionally `num_boxes`, `conf`, and `image_w` with `image_h`.
VL-BERT's `.json` has `num_boxes`, `boxes` and `features` in base64 of float32, optionally `image_w`, `image_h` and
`image_box_feature`.

UNITER's LMDB: key "<name>.npz", value msgpack of arrays, or compressed `.npz` bytes. The folder's name gives the
number of regions per picture: `feat_th0.2_max100_min10[_compressed]` keeps the regions above a confidence, within
these limits; `feat_numbb36` keeps 36; `all` keeps all. Rows are sorted by descending confidence, and the first n are
used. The sidecar `nbb_<...>.json` next to the folder gives n; without it n is computed.

Boxes have four columns. `.npz` files and LMDB may have more; only the first four (`norm_bb`: six) are used.

Shapes: R regions, F feature width.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from advl_pipeline.base.array_archives import DamagedArchive, read_array_archive
from advl_pipeline.base.errors import Advice, DatasetError, advise
from advl_pipeline.base.packages import needs_extra
from advl_pipeline.datasets.boxes import TOLERANCE
from advl_pipeline.datasets.problems import Malformed

Floats = npt.NDArray[np.float32]

SIZE_TOLERANCE = 1.5
"""Tolerance in pixels for a picture size computed from float32 fractions."""

_BUTD = "image_id image_w image_h num_boxes boxes features".split()
_LXMERT = "img_id image_h image_w objects_id objects_conf attrs_id attrs_conf num_boxes boxes features".split()
_LAYOUTS = {len(_BUTD): _BUTD, len(_LXMERT): _LXMERT}

_THRESHOLD = re.compile(r"feat_(?P<rule>th(?P<threshold>[0-9.]+)_max(?P<most>\d+)_min(?P<least>\d+))(_compressed)?")
_FIXED = re.compile(r"feat_numbb(?P<count>\d+)(_compressed)?")
_ZIP_MAGIC = b"PK\x03\x04"

_MALFORMED = "Region features are malformed."


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundFeatures:
    """Features of one picture from files, float32.

    `values` are token rows (M, D), or the feature of the entire picture (D,). If the rows are regions, `regions` has
    their columns (`cache.layout.REGION_COLUMNS`), and `whole_D` is the picture's own feature if the files have it.
    """

    values: Floats
    regions: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    whole_D: Floats | None = None


Arrays = dict[str, npt.NDArray[Any]]
"""Arrays of one picture from a file, by their names in `.npz` files; also `spatial_features` of HDF5 and
`image_box_feature` of VL-BERT's JSON."""


def regions_of(arrays: Arrays, size: tuple[int, int]) -> FoundFeatures:
    """Check named arrays and convert them to detected regions, which belong to none of the dataset's own boxes.

    Args:
        arrays: see the module's docstring for the names.
        size: (width, height) of the picture.

    Raises:
        Malformed: an array is missing or not numeric, shapes do not match, values are not finite, boxes are outside
            the picture, or the picture has another size.
    """
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub":
            raise Malformed(f"array {name!r} is of {array.dtype}, not of numbers")
    if "features" not in arrays:
        raise Malformed("there is no array 'features'")
    rows = positive(arrays["num_boxes"].reshape(-1)[:1].sum(), "num_boxes") if "num_boxes" in arrays else None
    if {"image_w", "image_h"} <= arrays.keys():
        stated = tuple(positive(arrays[name].sum(), name) for name in ("image_w", "image_h"))
        if stated != size:
            why = f"its features are for a picture of {stated[0]}x{stated[1]}, the picture is {size[0]}x{size[1]}"
            raise Malformed(why)
    boxes = next((arrays[name] for name in ("boxes", "bbox", "norm_bb") if name in arrays), None)
    if boxes is None or boxes.ndim != 2 or boxes.shape[1] < 4:
        raise Malformed("there is no array of boxes with four columns")
    boxes = boxes[:rows].astype(np.float32)
    size_4 = np.array([*size, *size], dtype=np.float32)
    is_shares = not {"boxes", "bbox"} & arrays.keys()
    boxes_R4 = boxes[:, :4] * size_4 if is_shares else boxes[:, :4]
    features_RF = arrays["features"][:rows].astype(np.float32)
    if features_RF.ndim != 2 or len(boxes_R4) != len(features_RF):
        raise Malformed(f"features of shape {features_RF.shape} and boxes of shape {boxes_R4.shape} do not fit")
    confidence_R = np.full(len(features_RF), -1, np.float32)
    if "conf" in arrays:
        confidence_R = arrays["conf"][:rows].astype(np.float32)
        if confidence_R.shape != (len(features_RF),):
            raise Malformed(f"{len(features_RF)} regions and confidences of shape {confidence_R.shape}")
    whole_F = arrays["image_box_feature"].astype(np.float32) if "image_box_feature" in arrays else None
    for what, values in (
        ("features", features_RF),
        ("boxes", boxes),
        ("confidences", confidence_R),
        ("feature of the whole picture", whole_F),
    ):
        if values is not None and not np.isfinite(values).all():
            raise Malformed(f"its {what} hold a value that is not finite")
    if "spatial_features" in arrays:
        _require_same_size(boxes_R4, arrays["spatial_features"], size)
    x1, y1, x2, y2 = boxes_R4.T
    # Half-precision fractions have an error of up to 2^-11 of a picture's side.
    reach_x, reach_y = TOLERANCE + size[0] / 2048, TOLERANCE + size[1] / 2048
    is_inside = (x1 >= -reach_x) & (y1 >= -reach_y) & (x2 <= size[0] + reach_x) & (y2 <= size[1] + reach_y)
    is_box = is_inside & (x1 <= x2) & (y1 <= y2)
    if not is_box.all():
        row = int(np.flatnonzero(~is_box)[0])
        raise Malformed(f"box {row} is outside the picture of {size[0]}x{size[1]}: {boxes_R4[row].tolist()}")
    corners_R4 = boxes_R4 / size_4
    # In half precision the stated sides differ from the differences of the corners.
    sides_R2 = boxes[:, 4:6] if is_shares and boxes.shape[1] >= 6 else corners_R4[:, 2:] - corners_R4[:, :2]
    return FoundFeatures(
        # Decoded bytes are read-only, which PyTorch warns about.
        values=np.require(features_RF, np.float32, ["C", "W"]),
        regions={
            "boxes": np.concatenate([corners_R4, sides_R2], axis=1).astype(np.float32),
            "box_index": np.full(len(features_RF), -1, np.int32),
            "confidence": confidence_R,
        },
        whole_D=None if whole_F is None else np.require(whole_F, np.float32, ["C", "W"]),
    )


def _require_same_size(boxes_R4: Floats, shares: npt.NDArray[Any], size: tuple[int, int]) -> None:
    if shares.shape[-1] < 4 or len(shares) != len(boxes_R4):
        raise Malformed(f"spatial_features of shape {shares.shape} do not fit")
    for axis, known in enumerate(size):
        # Pixels divided by their fraction give the size of the picture of the boxes.
        row = int(np.argmax(shares[:, 2 + axis]))
        if (share := shares[row, 2 + axis]) > 0:
            side = float(boxes_R4[row, 2 + axis] / share)
            if not abs(side - known) <= SIZE_TOLERANCE:
                raise Malformed(f"its features are for a picture with a side of {side:.0f}, the picture has {known}")


def decode_floats(value: Any, *, rows: int, what: str) -> Floats:
    """Decode base64 of float32 into (rows, columns).

    Raises:
        Malformed: the value is not base64, or its length does not match the rows.
    """
    if not isinstance(value, (str, bytes)):
        raise Malformed(f"{what} are not base64 text")
    try:
        data = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise Malformed(f"{what} are not base64") from None
    if rows <= 0 or not data or len(data) % (4 * rows):
        raise Malformed(f"{what} of {len(data)} bytes are not {rows} rows of float32")
    return np.frombuffer(data, dtype="<f4").reshape(rows, -1)


def positive(value: Any, what: str) -> int:
    """Return a positive integer given as text or as a number; raises `Malformed` for anything else."""
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = 0
    if number <= 0 or isinstance(value, bool):
        raise Malformed(f"{what} is {value!r}")
    return number


def _corners(boxes: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the boxes (R, 4) of a format with only their corners; raises `Malformed` for another shape."""
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise Malformed(f"boxes of shape {boxes.shape}, expected four columns")
    return boxes


class Entry(NamedTuple):
    """Location of a picture's features, for errors, and the function that reads them."""

    where: str
    read: Callable[[], Arrays]


def claim(pictures: dict[Any, Path], name: Any, picture: Path) -> None:
    """Assign a name to a picture; raises `DatasetError` if another picture has it."""
    if (other := pictures.setdefault(name, picture)) != picture:
        raise DatasetError(
            "Two pictures go by one name in features.",
            where=str(name),
            why=f"{other} and {picture}",
            next_command="give the pictures, and their features, names of their own: cats/0.npy for cats/0.png",
        )


class RegionFeatures:
    """Region features by the pictures' names in their format.

    Args:
        path: path of the files.
        entries: (name, entry) of all pictures.

    Raises:
        DatasetError: a file is missing or, as found on opening, malformed.
    """

    def __init__(self, path: Path, entries: Iterable[tuple[str, Entry]]) -> None:
        self._path = path
        self._entries: dict[str, Entry] = {}
        try:
            for name, entry in entries:
                if (other := self._entries.setdefault(name, entry)) is not entry:
                    why = f"{name} is at {other.where} too"
                    raise DatasetError("Features are there twice.", where=entry.where, why=why)
        except OSError as error:
            raise _unreadable(path, error) from None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def read(self, name: str, *, width: int, height: int) -> FoundFeatures:
        """Read the regions of one picture.

        Args:
            name: the picture's name in this format, see `tower.Naming`.
            width, height: the picture's size in pixels; boxes stored as fractions are scaled by it.

        Raises:
            DatasetError: the picture is missing, or its entry is damaged, has a value that is not finite, or is for
                a picture of another size.
        """
        if name not in self:
            raise DatasetError("A picture has no region features.", where=str(self._path), why=f"no entry for {name}")
        entry = self._entries[name]
        try:
            return regions_of(entry.read(), (width, height))
        except (Malformed, OSError, IndexError, ValueError) as error:
            raise DatasetError(_MALFORMED, where=entry.where, why=f"picture {name}: {error}") from None


def tsv_entries(path: Path) -> Iterator[tuple[str, Entry]]:
    """Yield the lines of a TSV file by picture; each is decoded on access."""
    offset, is_empty = 0, True
    with path.open("rb", buffering=1 << 20) as file:
        for number, line in enumerate(file, start=1):
            if not line.isspace():
                is_empty = False
                where, num_columns = f"{path}:{number}", line.count(b"\t") + 1
                if num_columns not in _LAYOUTS:
                    why = f"{num_columns} columns, expected {' or '.join(map(str, _LAYOUTS))}"
                    raise DatasetError(_MALFORMED, where=where, why=why)
                name = line.split(b"\t", 1)[0].decode("utf-8", "replace")
                yield name, Entry(where, partial(_read_line, path, offset, len(line)))
            offset += len(line)
    if is_empty:
        raise _unreadable(path, ValueError("it has no lines"))


def _read_line(path: Path, offset: int, length: int) -> Arrays:
    with path.open("rb") as file:
        file.seek(offset)
        cells = file.read(length).rstrip(b"\r\n").split(b"\t")
    fields = dict(zip(_LAYOUTS[len(cells)], cells, strict=True))
    arrays = _decoded(fields)
    if "objects_conf" in fields:
        rows = len(arrays["boxes"])
        arrays["conf"] = decode_floats(fields["objects_conf"], rows=rows, what="confidences")[:, 0]
    return arrays


def _decoded(record: Mapping[str, Any]) -> Arrays:
    """Decode the fields common to TSV and JSON: sizes, counts, and arrays of float32 in base64."""
    count = positive(record.get("num_boxes"), "num_boxes")
    arrays = {name: np.array(positive(record[name], name)) for name in ("image_w", "image_h") if name in record}
    arrays["features"] = decode_floats(record.get("features"), rows=count, what="features")
    arrays["boxes"] = _corners(decode_floats(record.get("boxes"), rows=count, what="boxes"))
    return arrays


def hdf5_entries(path: Path, stack: ExitStack) -> Iterator[tuple[str, Entry]]:
    """Yield the rows of an HDF5 file; the only `*imgid2idx.json` in its folder maps picture numbers to rows."""
    import h5py

    # BUTD names the index after the split and the number of boxes.
    tables = sorted(path.parent.glob("*imgid2idx.json"))
    matching = [file for file in tables if file.name.startswith(path.stem)] or tables
    if len(matching) != 1:
        raise DatasetError(
            "The index of region features is missing or not the only one.",
            where=str(path.parent),
            why=f"found {', '.join(file.name for file in matching) or 'no *imgid2idx.json'}",
            next_command=_make_json(sorted(path.parent.glob("*imgid2idx.pkl"))),
        )
    file: Any = stack.enter_context(h5py.File(path, "r"))
    for array in ("image_features", "image_bb"):
        if array not in file:
            raise DatasetError(_MALFORMED, where=str(path), why=f"no array {array!r}")
    rows = _read_numbers(matching[0], what="The index of region features cannot be used.")
    for picture, row in rows.items():
        yield picture, Entry(f"{path}: {picture}", partial(_read_row, file, row))


def _read_row(file: Any, row: int) -> Arrays:
    part: Any = slice(*map(int, file["pos_boxes"][row])) if "pos_boxes" in file else row
    names = {"features": "image_features", "boxes": "image_bb", "spatial_features": "spatial_features"}
    arrays = {name: np.asarray(file[stored][part]) for name, stored in names.items() if stored in file}
    return arrays | {"boxes": _corners(arrays["boxes"])}


def _make_json(pickles: Sequence[Path]) -> Advice | str:
    """Return the command that converts a single pickled index to JSON, else "". Loading a pickle executes code."""
    if len(pickles) != 1:
        return ""
    read, written = str(pickles[0]), str(pickles[0].with_suffix(".json"))
    code = f"import json, pickle; json.dump(pickle.load(open({read!r}, 'rb')), open({written!r}, 'w'))"
    return advise(["python", "-c", code], note="where you trust the file")


def _read_numbers(path: Path, *, what: str) -> dict[str, int]:
    """Read a dictionary of integers from JSON; raises `DatasetError` with the message `what`."""
    try:
        return {str(name): int(number) for name, number in json.loads(path.read_bytes()).items()}
    except (OSError, ValueError, OverflowError, TypeError, AttributeError, RecursionError) as error:
        raise DatasetError(what, where=str(path), why=getattr(error, "strerror", None) or str(error)) from None


def per_picture_entries(folder: Path, suffix: str) -> Iterator[tuple[str, Entry]]:
    """Yield the `.npz` or `.json` files of a folder, one per picture, by relative path without suffix."""
    read = {".npz": _archived, ".json": _read_json}[suffix]
    for file in folder.rglob(f"*{suffix}"):
        yield file.relative_to(folder).with_suffix("").as_posix(), Entry(str(file), partial(read, file))


def _read_json(path: Path) -> Arrays:
    try:
        record = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise Malformed(f"not JSON: {error}") from None
    if not isinstance(record, dict):
        raise Malformed("not an object")
    arrays = _decoded(record)
    if (whole := record.get("image_box_feature")) is not None:
        arrays["image_box_feature"] = decode_floats(whole, rows=1, what="image_box_feature")[0]
    return arrays


def _archived(file: Path | IO[bytes]) -> Arrays:
    try:
        return read_array_archive(file, wanted=lambda name: name != "soft_labels")
    except DamagedArchive as error:
        raise Malformed(str(error)) from None


def uniter_entries(folder: Path, stack: ExitStack) -> Iterator[tuple[str, Entry]]:
    """Yield the entries of one LMDB folder, such as `img_db/coco_val2014/feat_th0.2_max100_min10`."""
    with needs_extra("uniter", where=str(folder)):
        import lmdb
        import msgpack  # noqa: F401
    try:
        opened = lmdb.open(str(folder), readonly=True, lock=False, readahead=False, create=False)
    except lmdb.Error as error:
        raise _unreadable(folder, error) from None
    environment = stack.enter_context(opened)
    rule, counts = _THRESHOLD.fullmatch(folder.name), {}
    if rule and (sidecar := folder.parent / f"nbb_{rule['rule']}.json").exists():
        counts = _read_numbers(sidecar, what="The counts of regions are malformed.")

    def read(key: bytes) -> Arrays:
        with environment.begin() as transaction:
            value: bytes = transaction.get(key) or b""
        arrays = _archived(io.BytesIO(value)) if value.startswith(_ZIP_MAGIC) else _unpack(value)
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


def _unreadable(path: Path, error: Exception) -> DatasetError:
    why = getattr(error, "strerror", None) or str(error)
    return DatasetError("A file of region features cannot be read.", where=str(path), why=why)
