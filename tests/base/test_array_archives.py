"""Damaged and hostile archives of arrays give one error, never another one and never a wrong array."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advl_pipeline.base.array_archives import DamagedArchive, read_array_archive

ARRAYS = {"one": np.arange(12, dtype=np.float32).reshape(3, 4), "two": np.array([7], dtype=np.int64)}
ENCRYPTED = 0x1


def archive_bytes(*, compressed: bool) -> bytes:
    stream = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(stream, allow_pickle=False, **ARRAYS)
    return stream.getvalue()


def test_reads_the_wanted_arrays(tmp_path: Path) -> None:
    path = tmp_path / "arrays.npz"
    path.write_bytes(archive_bytes(compressed=True))
    arrays = read_array_archive(path, wanted=lambda name: name != "two")
    assert list(arrays) == ["one"]
    assert np.array_equal(arrays["one"], ARRAYS["one"])


def test_a_member_that_says_it_is_encrypted_and_a_damaged_stream() -> None:
    content = bytearray(archive_bytes(compressed=False))
    content[content.index(b"PK\x01\x02") + 8] |= ENCRYPTED
    with pytest.raises(DamagedArchive, match="encrypted"):
        read_array_archive(io.BytesIO(bytes(content)))
    content = bytearray(archive_bytes(compressed=True))
    member = zipfile.ZipFile(io.BytesIO(bytes(content))).getinfo("one.npy")
    start = member.header_offset + 30 + len(member.filename)
    content[start : start + 40] = b"\xff" * 40
    with pytest.raises(DamagedArchive):
        read_array_archive(io.BytesIO(bytes(content)))


def test_nothing_is_unpickled() -> None:
    stream = io.BytesIO()
    np.savez(stream, evil=np.array([{"a": 1}], dtype=object))
    for content in (stream.getvalue(), pickle.dumps([1])):
        with pytest.raises(DamagedArchive):
            read_array_archive(io.BytesIO(content))


def test_a_missing_file_stays_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_array_archive(tmp_path / "none.npz")


@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255), compressed=st.booleans())
@settings(max_examples=60, deadline=None)
def test_any_flipped_byte_is_damage_or_harmless(place: float, flip: int, compressed: bool) -> None:
    content = bytearray(archive_bytes(compressed=compressed))
    content[int(place * len(content))] ^= flip
    try:
        arrays = read_array_archive(io.BytesIO(bytes(content)))
    except DamagedArchive:
        return
    assert all(isinstance(value, np.ndarray) for value in arrays.values())
