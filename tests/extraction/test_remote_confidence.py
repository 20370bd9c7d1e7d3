"""Sets of confidences in a real S3 store, read while others write them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from objects import flipped, objects, spoil
from tiny_extraction import tiny_extract

from advl_pipeline.base.errors import CorruptCache
from advl_pipeline.base.locations import Url
from advl_pipeline.cache.confidence import (
    confidence_key,
    confidence_record_path,
    read_confidence,
    write_confidence,
)
from advl_pipeline.cache.object_store import ObjectStore
from advl_pipeline.cache.verify import verify_cache

IDENTITY = {"estimator": "mine", "seed": 0}
RECORD = confidence_record_path(confidence_key(IDENTITY))
PROBABILITY = f"confidence/{confidence_key(IDENTITY)}/probability/c/0"
NAMES = [f"example-{number}" for number in range(200)]


def numbers(writer: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return what one machine estimates: its last bits are its own."""
    return np.linspace(0.1, 0.9, len(NAMES), dtype=np.float32) + np.float32(writer * 1e-7)


def replaced(url: Url) -> None:
    write_confidence(url, IDENTITY, NAMES, numbers(1), numbers(1))


def removed(url: Url) -> None:
    ObjectStore(url).delete(RECORD, *ObjectStore(url).list("confidence"))


@pytest.mark.parametrize(
    ("is_damaged", "act", "expected"), [(False, replaced, 0), (True, replaced, 1), (False, removed, None)]
)
def test_what_another_does_between_the_record_and_the_numbers(
    url: Url, monkeypatch: pytest.MonkeyPatch, is_damaged: bool, act: Callable[[Url], None], expected: int | None
) -> None:
    write_confidence(url, IDENTITY, NAMES, numbers(0), numbers(0))
    before = objects(url)
    if is_damaged:
        spoil(url, PROBABILITY, flipped(before[PROBABILITY]))
        with pytest.raises(CorruptCache, match=PROBABILITY):
            read_confidence(url, IDENTITY)
    acts, get = iter([act]), ObjectStore.get

    def get_later(store: ObjectStore, name: str) -> bytes:
        if name == PROBABILITY:
            next(acts, lambda _: None)(url)
        return get(store, name)

    monkeypatch.setattr(ObjectStore, "get", get_later)
    found = read_confidence(url, IDENTITY)
    assert next(acts, None) is None
    if expected is None:
        assert found is None
        return
    np.testing.assert_array_equal(found[1], numbers(expected))
    # A sound set stays as it was first written.
    assert (objects(url) == before) == (not is_damaged)


def test_writers_that_begin_together_and_a_reader_among_them(url: Url, tmp_path: Path) -> None:
    tiny_extract(tmp_path / "data", url, dataset={"num_images": 4})
    found = []
    with ThreadPoolExecutor(3) as pool:
        writers = [
            pool.submit(write_confidence, url, IDENTITY, NAMES, numbers(writer), numbers(writer))
            for writer in range(3)
        ]
        while not all(writer.done() for writer in writers):
            if (stored := read_confidence(url, IDENTITY)) is not None:
                assert stored.example_ids == NAMES
                found.append(stored.probability_N.tobytes())
    assert [writer.exception() for writer in writers] == [None] * 3
    last = read_confidence(url, IDENTITY)
    # Whoever came first has written it, and nobody ever saw anything else.
    assert {*found, last.probability_N.tobytes()} <= {numbers(writer).tobytes() for writer in range(3)}
    assert len({*found, last.probability_N.tobytes()}) == 1
    assert verify_cache(url).is_sound
