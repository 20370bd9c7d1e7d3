"""Decoding keeps all threads at work, whatever a shard holds; features are halved as the writer halves them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from tiny_extraction import TinyDataset, TinyImageTower, TinyTextTower, tiny_config, tiny_extract, tree_bytes

from advl_pipeline.cache.identity import PROVENANCE_FILE
from advl_pipeline.cache.quantise import to_float16
from advl_pipeline.cache.reader import open_cache
from advl_pipeline.cache.store import read_metadata
from advl_pipeline.datasets.records import ImageUnit
from advl_pipeline.extraction import encode
from advl_pipeline.extraction import run as extraction_run
from advl_pipeline.extraction.encode import halved
from advl_pipeline.extraction.prepare import PreparedExtract
from advl_pipeline.extraction.run import extract, run_extract, store_of
from advl_pipeline.teachers.interface import EncodedBatch, PreparedUnit, Teacher

WORKERS = 16


class PicturesDecodedTogether(TinyImageTower):
    """Pictures whose decoding waits until every thread decodes one, but for the last ones."""

    def __init__(self, num_together: int) -> None:
        super().__init__()
        self._left = iter(range(num_together))
        self._barrier = threading.Barrier(WORKERS)

    def prepare(self, unit: ImageUnit) -> PreparedUnit:
        if next(self._left, None) is not None:
            self._barrier.wait(timeout=60)
        return super().prepare(unit)


def test_all_threads_decode_though_a_shard_holds_few_batches(tmp_path: Path) -> None:
    tower, dataset = PicturesDecodedTogether(13 * WORKERS), TinyDataset(tmp_path / "data", num_images=240)
    # A shard holds a dozen batches or so: fewer than there are threads.
    config = tiny_config(tmp_path / "cache", batch_size=2, shard_rows=40, num_workers=WORKERS, modality="image")
    extract(config, Teacher(name="tiny", image=tower), dataset)
    assert len(open_cache(tmp_path / "cache").image.ids) == 240


def test_a_device_halves_features_as_the_writer_does() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(64, 32, generator=generator) * 10 ** torch.randint(-9, 7, (64, 1), generator=generator)
    found, clipped = halved(values)
    expected, also_clipped = to_float16(values.numpy())
    np.testing.assert_array_equal(found.numpy(), expected)
    assert int(clipped) == also_clipped > 0
    # What is no number stays so, for the writer to refuse.
    assert halved(torch.tensor([torch.inf, -torch.inf, torch.nan]))[0].isfinite().sum() == 0


class LimitedTower(TinyTextTower):
    """Has memory for so many units at once."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most
        self.sizes: list[int] = []

    def encode(self, units: Sequence[PreparedUnit]) -> EncodedBatch:
        self.sizes.append(len(units))
        if len(units) > self._most:
            raise torch.OutOfMemoryError
        return super().encode(units)


def test_a_batch_size_is_tried_recorded_and_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tower, dataset = LimitedTower(70), TinyDataset(tmp_path / "data")
    config = tiny_config(tmp_path / "cache", batch_size="auto", modality="text")
    teacher = Teacher(name="tiny", text=tower)
    prepared = PreparedExtract(config=config, part=dataset)
    with monkeypatch.context() as patched:
        patched.setattr(extraction_run, "encode_shards", lambda *_, **__: 1 / 0)
        # A batch of any size takes a second: a loaded machine would decide otherwise.
        patched.setattr(encode, "time", SimpleNamespace(perf_counter=partial(next, count())))
        with pytest.raises(ZeroDivisionError):
            run_extract(prepared, teacher)
    # 128 did not fit, so 64 did; a quarter leaves room for longer texts.
    assert max(tower.sizes) == 128
    assert read_metadata(store_of(config), PROVENANCE_FILE)["config"]["batch_size"] == 32
    tower.sizes.clear()
    run_extract(prepared, teacher)
    assert max(tower.sizes) <= 32
    tiny_extract(tmp_path / "data", tmp_path / "given", batch_size=32, modality="text", teacher={"towers": "text"})
    found, given = tree_bytes(tmp_path / "cache"), tree_bytes(tmp_path / "given")
    of_texts = [name for name in given if name.startswith("text/")]
    assert [found[name] for name in of_texts] == [given[name] for name in of_texts]


@pytest.mark.parametrize(("device", "resource"), [("cuda:3", "GPU"), ("auto", None), ("cpu", "CPU")])
def test_a_driver_without_a_gpu_leaves_the_device_to_its_tasks(
    device: str, resource: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = mock.Mock(side_effect=ZeroDivisionError)
    monkeypatch.setattr(extraction_run, "run_on_ray", start)
    config = tiny_config(tmp_path / "cache", engine="ray", device=device)
    with pytest.raises(ZeroDivisionError):
        run_extract(PreparedExtract(config=config, part=TinyDataset(tmp_path / "data")))
    (work,), options = start.call_args
    assert options["resource"] == resource
    assert (work.args[0].device, work.args[0].mixed_precision) == (device, "auto")
