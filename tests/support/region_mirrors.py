"""The same regions of the same pictures in every published format, for pictures of COCO."""

from __future__ import annotations

import base64
import io
import json
import pickle
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
    """Features (3, 24) that depend on the picture's number."""
    random = np.random.default_rng(int(picture.stem[-12:]))
    return random.standard_normal((NUM_REGIONS, FEATURE_SIZE)).astype(np.float32)


def write_butd_tsv(folder: Path, pictures: Sequence[Path]) -> Path:
    lines = [
        [str(int(path.stem[-12:])), *map(str, SIZE), str(NUM_REGIONS), _b64(BOXES), _b64(features_of(path))]
        for path in pictures
    ]
    return _tsv(folder, lines)


def write_lxmert_tsv(folder: Path, pictures: Sequence[Path]) -> Path:
    kinds = _b64(np.arange(NUM_REGIONS))
    lines = []
    for path in pictures:
        found = [kinds, _b64(CONFIDENCE), kinds, _b64(CONFIDENCE), str(NUM_REGIONS)]
        lines.append([path.stem, str(SIZE[1]), str(SIZE[0]), *found, _b64(BOXES), _b64(features_of(path))])
    return _tsv(folder, lines)


def write_hdf5(folder: Path, pictures: Sequence[Path]) -> Path:
    folder.mkdir(parents=True)
    with h5py.File(folder / "features.h5", "w") as file:
        file["image_features"] = np.stack([features_of(path) for path in pictures])
        file["image_bb"] = np.stack([BOXES] * len(pictures))
        file["spatial_features"] = np.stack([SHARES] * len(pictures))
    rows = {int(path.stem[-12:]): row for row, path in enumerate(pictures)}
    (folder / "split36_imgid2idx.pkl").write_bytes(pickle.dumps(rows, protocol=2))
    return folder / "features.h5"


def write_npz(folder: Path, pictures: Sequence[Path]) -> Path:
    folder.mkdir(parents=True)
    for path in pictures:
        width, height = SIZE
        np.savez(folder / f"{path.stem}.npz", features=features_of(path), boxes=BOXES, image_w=width, image_h=height)
    return folder


def write_vl_bert_json(folder: Path, pictures: Sequence[Path], *, whole: bool = False) -> Path:
    folder.mkdir(parents=True)
    for path in pictures:
        record = {"image_w": SIZE[0], "image_h": SIZE[1], "num_boxes": NUM_REGIONS}
        record |= {"boxes": _b64(BOXES), "features": _b64(features_of(path))}
        if whole:
            record["image_box_feature"] = _b64(np.full(FEATURE_SIZE, 7, np.float32))
        (folder / f"{path.stem}.json").write_text(json.dumps(record))
    return folder


def write_uniter_lmdb(folder: Path, pictures: Sequence[Path]) -> Path:
    return _lmdb(folder / "feat_th0.2_max100_min10", pictures, _packed)


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
"""Format -> what writes it."""


def write_uniter_layout(img_db: Path, name: str, regions: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Write one of UNITER's folders as published: the LMDB in a folder of its own, the counts beside it.

    Args:
        img_db: folder of all of them.
        name: such as vcr_train, vcr_gt_train, coco_val2014.
        regions: name of a picture in UNITER's files -> features (R, F) and boxes (R, 4) in shares.
    """
    own_boxes = name.startswith("vcr_gt_")
    folder = img_db / name / ("feat_numbb100" if own_boxes else "feat_th0.2_max100_min10")
    entries = {}
    for key, (features, shares_R4) in regions.items():
        positions = np.concatenate([shares_R4, shares_R4[:, 2:] - shares_R4[:, :2]], axis=1).astype(np.float32)
        confidence = np.linspace(0.9, 0.5, len(features), dtype=np.float32)
        entries[f"{key}.npz"] = {"features": features, "norm_bb": positions, "conf": confidence}
    _write_lmdb(folder, {key: _packed(arrays) for key, arrays in entries.items()})
    (folder / "lock.mdb").touch()
    if not own_boxes:
        counts = {key: len(arrays["features"]) for key, arrays in entries.items()}
        (folder.parent / "nbb_th0.2_max100_min10.json").write_text(json.dumps(counts))


def _lmdb(folder: Path, pictures: Sequence[Path], encode: Callable[[Mapping[str, np.ndarray]], bytes]) -> Path:
    arrays = {"norm_bb": SHARES.astype(np.float32), "conf": CONFIDENCE}
    return _write_lmdb(
        folder, {f"coco_{path.stem[5:]}.npz": encode({"features": features_of(path), **arrays}) for path in pictures}
    )


def _write_lmdb(folder: Path, entries: Mapping[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    with lmdb.open(str(folder), map_size=1 << 22) as environment, environment.begin(write=True) as transaction:
        for name, entry in entries.items():
            transaction.put(name.encode(), entry)
        transaction.put(b"__keys__", json.dumps(list(entries)).encode())
    return folder


def _packed(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The form of msgpack_numpy."""

    def entry(array: np.ndarray) -> dict[bytes, Any]:
        return {
            b"nd": True,
            b"type": array.dtype.str,
            b"kind": b"",
            b"shape": list(array.shape),
            b"data": array.tobytes(),
        }

    return bytes(msgpack.packb({name: entry(array) for name, array in arrays.items()}, use_bin_type=True))


def _tsv(folder: Path, lines: Sequence[Sequence[str]]) -> Path:
    folder.mkdir(parents=True)
    (folder / "features.tsv").write_text("".join("\t".join(line) + "\n" for line in lines))
    return folder / "features.tsv"


def _b64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
