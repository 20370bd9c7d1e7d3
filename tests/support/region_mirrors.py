"""The same regions of the same COCO pictures in every published format."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import lmdb
import msgpack
import numpy as np

NUM_REGIONS = 3
FEATURE_SIZE = 24
SIZE = (64, 48)
BOXES = np.array([[0, 0, 32, 24], [8, 4, 60, 44], [16, 16, 40, 48]], dtype=np.float32)
CONFIDENCE = np.array([0.9, 0.8, 0.7], dtype=np.float32)
SHARES = np.concatenate([BOXES, BOXES[:, 2:] - BOXES[:, :2]], axis=1) / np.array([*SIZE] * 3, dtype=np.float32)


def features_of(picture: Path) -> np.ndarray:
    """Return features (3, 24) that depend on the picture's number."""
    random = np.random.default_rng(int(picture.stem[-12:]))
    return random.standard_normal((NUM_REGIONS, FEATURE_SIZE)).astype(np.float32)


def write_butd_tsv(
    folder: Path, pictures: Sequence[Path], *, features: np.ndarray | None = None, size: tuple[int, int] = SIZE
) -> Path:
    lines = []
    for path in pictures:
        rows = features_of(path) if features is None else features
        lines.append([str(int(path.stem[-12:])), *map(str, size), str(NUM_REGIONS), b64(BOXES), b64(rows)])
    return _tsv(folder, lines)


def write_lxmert_tsv(folder: Path, pictures: Sequence[Path]) -> Path:
    kinds = b64(np.arange(NUM_REGIONS))
    lines = []
    for path in pictures:
        class_fields = [kinds, b64(CONFIDENCE), kinds, b64(CONFIDENCE), str(NUM_REGIONS)]
        lines.append([path.stem, str(SIZE[1]), str(SIZE[0]), *class_fields, b64(BOXES), b64(features_of(path))])
    return _tsv(folder, lines)


def write_hdf5(folder: Path, pictures: Sequence[Path], *, ragged: bool = False) -> Path:
    folder.mkdir(parents=True)
    join = np.concatenate if ragged else np.stack
    with h5py.File(folder / "features.h5", "w") as file:
        file["image_features"] = join([features_of(path) for path in pictures])
        file["image_bb"] = join([BOXES] * len(pictures))
        if ragged:
            ends = NUM_REGIONS * np.arange(len(pictures) + 1)
            file["pos_boxes"] = np.stack([ends[:-1], ends[1:]], axis=1)
    rows = {int(path.stem[-12:]): row for row, path in enumerate(pictures)}
    (folder / "split36_imgid2idx.json").write_text(json.dumps(rows))
    return folder / "features.h5"


def write_npz(folder: Path, pictures: Sequence[Path], **changes: Any) -> Path:
    folder.mkdir(parents=True)
    for path in pictures:
        arrays = {"features": features_of(path), "boxes": BOXES, "image_w": SIZE[0], "image_h": SIZE[1]}
        np.savez(
            folder / f"{path.stem}.npz",
            **{name: array for name, array in (arrays | changes).items() if array is not None},
        )
    return folder


def write_vl_bert_json(folder: Path, pictures: Sequence[Path], *, whole: bool = False, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    for path in pictures:
        record = {"image_w": SIZE[0], "image_h": SIZE[1], "num_boxes": NUM_REGIONS}
        record |= {"boxes": b64(BOXES), "features": b64(features_of(path))}
        if whole:
            record["image_box_feature"] = b64(np.full(FEATURE_SIZE, 7, np.float32))
        (folder / f"{path.stem}.json").write_text(json.dumps(record | changes))
    return folder


def write_uniter_lmdb(folder: Path, pictures: Sequence[Path]) -> Path:
    return _lmdb(folder / "feat_th0.2_max100_min10", pictures, packed)


def write_uniter_lmdb_compressed(folder: Path, pictures: Sequence[Path]) -> Path:
    def archive(arrays: Mapping[str, np.ndarray]) -> bytes:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        return buffer.getvalue()

    return _lmdb(folder / "feat_th0.2_max100_min10_compressed", pictures, archive)


WRITERS: Mapping[str, Callable[[Path, Sequence[Path]], Path]] = {
    "npz": write_npz,
    "butd-tsv": write_butd_tsv,
    "lxmert-tsv": write_lxmert_tsv,
    "hdf5": write_hdf5,
    "vl-bert-json": write_vl_bert_json,
    "uniter-lmdb": write_uniter_lmdb,
    "uniter-lmdb-compressed": write_uniter_lmdb_compressed,
}
"""Format -> its writer."""


def write_uniter_layout(img_db: Path, name: str, regions: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Write one of UNITER's folders as published: the LMDB in a subfolder, the counts next to it.

    Args:
        img_db: parent folder.
        name: such as vcr_train, vcr_gt_train, coco_val2014.
        regions: picture name in UNITER's files -> features (R, F) and boxes (R, 4) in fractions of the picture.
    """
    own_boxes = name.startswith("vcr_gt_")
    folder = img_db / name / ("feat_numbb100" if own_boxes else "feat_th0.2_max100_min10")
    entries = {}
    for key, (features, shares_R4) in regions.items():
        positions = np.concatenate([shares_R4, shares_R4[:, 2:] - shares_R4[:, :2]], axis=1).astype(np.float32)
        confidence = np.linspace(0.9, 0.5, len(features), dtype=np.float32)
        entries[f"{key}.npz"] = {"features": features, "norm_bb": positions, "conf": confidence}
    write_lmdb(folder, {key: packed(arrays) for key, arrays in entries.items()})
    (folder / "lock.mdb").touch()
    if not own_boxes:
        counts = {key: len(arrays["features"]) for key, arrays in entries.items()}
        (folder.parent / "nbb_th0.2_max100_min10.json").write_text(json.dumps(counts))


def _lmdb(folder: Path, pictures: Sequence[Path], encode: Callable[[Mapping[str, np.ndarray]], bytes]) -> Path:
    arrays = {"norm_bb": SHARES.astype(np.float32), "conf": CONFIDENCE}
    return write_lmdb(
        folder, {f"coco_{path.stem[5:]}.npz": encode({"features": features_of(path), **arrays}) for path in pictures}
    )


def write_lmdb(folder: Path, entries: Mapping[str, bytes]) -> Path:
    """Write an LMDB with these entries; returns its folder."""
    folder.mkdir(parents=True)
    with lmdb.open(str(folder), map_size=1 << 22) as environment, environment.begin(write=True) as transaction:
        for name, entry in entries.items():
            transaction.put(name.encode(), entry)
        transaction.put(b"__keys__", json.dumps(list(entries)).encode())
    return folder


def packed(arrays: Mapping[str, np.ndarray], **changes: Any) -> bytes:
    """Pack arrays in the msgpack_numpy format; `changes` modify the metadata of each array."""

    def entry(array: np.ndarray) -> dict[bytes, Any]:
        fields = {
            "nd": True,
            "type": array.dtype.str,
            "kind": b"",
            "shape": list(array.shape),
            "data": array.tobytes(),
        }
        return {name.encode(): value for name, value in (fields | changes).items()}

    return bytes(msgpack.packb({name: entry(array) for name, array in arrays.items()}, use_bin_type=True))


def _tsv(folder: Path, lines: Sequence[Sequence[str]]) -> Path:
    folder.mkdir(parents=True)
    (folder / "features.tsv").write_text("".join("\t".join(line) + "\n" for line in lines))
    return folder / "features.tsv"


def b64(array: np.ndarray) -> str:
    """Return the bytes of an array in base64, as in the TSV and JSON formats."""
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
