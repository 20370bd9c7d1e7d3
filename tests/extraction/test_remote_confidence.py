"""Sets of confidences in a real S3 store, read while other processes write them."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from objects import objects, spoil, write_set
from tiny_extraction import tiny_extract

from advl_pipeline.cache.confidence import (
    confidence_key,
    confidence_record_path,
    read_confidence,
    write_confidence,
)
from advl_pipeline.cache.stores import ObjectStore
from advl_pipeline.cache.verify import verify_cache
from advl_pipeline.errors import CorruptCache
from advl_pipeline.locations import Url

IDENTITY = {"estimator": "mine", "seed": 0}
RECORD = confidence_record_path(confidence_key(IDENTITY))
PROBABILITY = f"confidence/{confidence_key(IDENTITY)}/probability/c/0"
NAMES = [f"example-{number}" for number in range(200)]
_SPAWN = multiprocessing.get_context("spawn")


def numbers(writer: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return what one machine estimates: its last bits are its own."""
    return np.linspace(0.1, 0.9, len(NAMES), dtype=np.float32) + np.float32(writer * 1e-7)


def write_elsewhere(url: Url, writer: int) -> Any:
    """Start a process that writes the set."""
    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    arguments = (str(url), IDENTITY, NAMES, numbers(writer), environment)
    process = _SPAWN.Process(target=write_set, args=arguments, daemon=True)
    process.start()
    return process


def ended(process: Any) -> None:
    process.join(120)
    assert process.exitcode == 0


def between_record_and_probabilities(monkeypatch: pytest.MonkeyPatch, act: Any) -> None:
    """Have something happen when a reader has the record, and not yet the probabilities that it lists."""
    acts: Iterator[Any] = iter([act])
    get = ObjectStore.get

    def get_later(store: ObjectStore, name: str) -> bytes:
        if name == PROBABILITY:
            next(acts, lambda: None)()
        return get(store, name)

    monkeypatch.setattr(ObjectStore, "get", get_later)


def test_a_set_that_another_process_writes_meanwhile(url: Url, monkeypatch: pytest.MonkeyPatch) -> None:
    write_confidence(url, IDENTITY, NAMES, numbers(0), numbers(0))
    before = objects(url)
    between_record_and_probabilities(monkeypatch, lambda: ended(write_elsewhere(url, 1)))
    found = read_confidence(url, IDENTITY)
    assert found is not None
    np.testing.assert_array_equal(found[1], numbers(0))
    assert objects(url) == before


def test_a_damaged_set_that_another_process_mends_meanwhile(url: Url, monkeypatch: pytest.MonkeyPatch) -> None:
    write_confidence(url, IDENTITY, NAMES, numbers(0), numbers(0))
    content = ObjectStore(url).get(PROBABILITY)
    spoil(url, PROBABILITY, content[:7] + bytes([content[7] ^ 1]) + content[8:])
    with pytest.raises(CorruptCache, match=PROBABILITY):
        read_confidence(url, IDENTITY)
    between_record_and_probabilities(monkeypatch, lambda: ended(write_elsewhere(url, 1)))
    found = read_confidence(url, IDENTITY)
    assert found is not None
    np.testing.assert_array_equal(found[1], numbers(1))


def test_a_set_that_is_removed_meanwhile(url: Url, monkeypatch: pytest.MonkeyPatch) -> None:
    write_confidence(url, IDENTITY, NAMES, numbers(0), numbers(0))

    def remove() -> None:
        for name in [RECORD, *ObjectStore(url).list("confidence")]:
            ObjectStore(url).delete(name)

    between_record_and_probabilities(monkeypatch, remove)
    assert read_confidence(url, IDENTITY) is None


@pytest.mark.slow
def test_writers_that_begin_together_and_a_reader_among_them(url: Url, tmp_path: Path) -> None:
    tiny_extract(tmp_path / "data", url, dataset={"num_images": 4})
    writers = [write_elsewhere(url, writer) for writer in range(3)]
    found = []
    while any(process.is_alive() for process in writers):
        stored = read_confidence(url, IDENTITY)
        if stored is not None:
            assert stored[0] == NAMES
            found.append(stored[1].tobytes())
    for process in writers:
        ended(process)
    last = read_confidence(url, IDENTITY)
    assert last is not None
    # Whoever came first has written it, and nobody ever saw anything else.
    assert {*found, last[1].tobytes()} <= {numbers(writer).tobytes() for writer in range(3)}
    assert len({*found, last[1].tobytes()}) == 1
    assert verify_cache(url).is_sound
