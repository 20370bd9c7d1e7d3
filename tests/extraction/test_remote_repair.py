"""Repair of a cache in a real S3 store: the same bytes again, and nothing written but what was bad."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from objects import objects, spoil, upload
from tiny_extraction import TinyDataset, tiny_config, tiny_extract, tiny_teacher, tree_bytes

from advl_cli.main import main
from advl_pipeline.cache.reader import open_cache
from advl_pipeline.cache.stores import FolderStore, ObjectStore
from advl_pipeline.cache.verify import verify_cache
from advl_pipeline.cache.writer import CacheWriter
from advl_pipeline.errors import ConfigError, CorruptCache
from advl_pipeline.extraction import repair as repair_module
from advl_pipeline.extraction import run
from advl_pipeline.extraction.config import RepairConfig
from advl_pipeline.extraction.repair import RepairResult, repair, run_repair
from advl_pipeline.locations import Url

SMALL = {"num_images": 12}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("remote-repair")
    tiny_extract(folder / "data", folder / "cache", dataset=SMALL, confidence=True)
    return folder


@pytest.fixture
def expected(pristine: Path, url: Url) -> dict[str, bytes]:
    """What lies under `url`."""
    content = tree_bytes(pristine / "cache")
    upload(url, content)
    return content


def mend(pristine: Path, url: Url, **teacher: Any) -> RepairResult:
    config = tiny_config(url, confidence=True)
    return repair(config, tiny_teacher(**teacher), TinyDataset(pristine / "data", **SMALL))


def flipped(content: bytes, place: float = 0.3) -> bytes:
    position = int(place * (len(content) - 1))
    return content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :]


@contextmanager
def changes(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Record which objects are written or removed within the block, work in progress aside."""
    changed: set[str] = set()
    put, delete = ObjectStore._put, ObjectStore.delete

    def record_put(self: ObjectStore, name: str, *arguments: Any) -> Any:
        version = put(self, name, *arguments)
        changed.add(name)
        return version

    def record_delete(self: ObjectStore, *names: str) -> None:
        changed.update(names)
        delete(self, *names)

    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "_put", record_put)
        patch.setattr(ObjectStore, "delete", record_delete)
        yield changed
    for name in [name for name in changed if name.startswith(".work/")]:
        changed.remove(name)


DAMAGED = (
    "text/tokens/values/c/1/0",
    "text/tokens/char_spans/c/0/0",
    "text/tokens/lengths/c/0",
    "text/stats/norm/c/0",
    "text/global/zarr.json",
    "image/global/c/0/0",
    "records/text-00001.json",
    "records/image-tables.json",
    "records/plan.json",
    "records/complete.json",
    "identity.json",
    "zarr.json",
    "confidence/zarr.json",
)


def test_only_what_is_bad_is_written(
    pristine: Path, url: Url, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, name in enumerate(DAMAGED):
        if number % 2:
            ObjectStore(url).delete(name)
        else:
            spoil(url, name, flipped(expected[name]))
        assert verify_cache(url).bad_paths() == {name}
        with changes(monkeypatch) as changed:
            result = mend(pristine, url)
        assert [path for path, _ in result.findings] == [name]
        assert result.is_identical
        assert objects(url) == expected
        # Records of shards that are encoded again, and the one that completes the cache, are written anew.
        assert {path for path in changed if not path.startswith("records/")} <= {name}
        if name == "text/tokens/values/c/1/0":
            units = CacheWriter(FolderStore(pristine / "cache")).placement("text").units_of(1)
            assert result.encoded_units == len(units)
            assert changed == {name, "records/text-00001.json", "records/complete.json"}


def test_many_wounds_at_once(pristine: Path, url: Url, expected: dict[str, bytes]) -> None:
    (confidence,) = [name for name in expected if name.startswith("records/confidence-")][:1]
    key = confidence.removeprefix("records/confidence-").removesuffix(".json")
    store = ObjectStore(url)
    for name in ("text/tokens/values/c/0/0", "image/tokens/starts/c/0", "records/provenance.json", confidence):
        store.delete(name)
    spoil(url, f"confidence/{key}/probability/c/0", b"short")
    spoil(url, "text/stray", b"x")
    one, two = "image/tokens/values/c/0/0", "text/tokens/values/c/1/0"
    spoil(url, one, expected[two])
    spoil(url, two, expected[one])
    with pytest.raises(CorruptCache, match="advl cache repair s3://"):
        open_cache(url)
    assert mend(pristine, url).is_identical
    assert objects(url) == expected
    assert mend(pristine, url).findings == ()


def test_a_repair_that_was_cut_off_is_given_again(
    pristine: Path, url: Url, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    ObjectStore(url).delete("text/tokens/values/c/1/0")
    stage, staged = repair_module.stage, []

    def stop(store: Any, modality: str, shard: int, content: Any, **options: Any) -> None:
        if len(staged) == 1:
            raise KeyboardInterrupt
        staged.append(shard)
        stage(store, modality, shard, content, **options)

    with monkeypatch.context() as patch:
        patch.setattr(repair_module, "stage", stop)
        with pytest.raises(KeyboardInterrupt):
            mend(pristine, url)
    with pytest.raises(CorruptCache, match="not finished"):
        open_cache(url)
    # Extraction cannot go on from here, and says what can.
    with pytest.raises(CorruptCache, match="advl cache repair"):
        tiny_extract(pristine / "data", url, dataset=SMALL, confidence=True)
    assert mend(pristine, url).is_identical
    assert objects(url) == expected


def test_command(
    pristine: Path,
    url: Url,
    expected: dict[str, bytes],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[Any] = []

    def open_inputs(config: Any) -> tuple[Any, Any]:
        opened.append(config)
        return tiny_teacher(), TinyDataset(pristine / "data", **SMALL)

    monkeypatch.setattr(run, "open_inputs", open_inputs)
    ObjectStore(url).delete("records/provenance.json")
    spoil(url, "text/global/c/0/0", flipped(expected["text/global/c/0/0"]))
    with pytest.raises(SystemExit) as caught:
        main(["cache", "repair", str(url), "--json", "--disk-cache-gb", "1"])
    assert caught.value.code in (0, None)
    found = json.loads(capsys.readouterr().out)
    assert found["path"] == url
    assert found["is_identical"]
    assert {path for path, _ in found["findings"]} == {"records/provenance.json", "text/global/c/0/0"}
    assert objects(url) == expected
    assert (opened[0].output, opened[0].disk_cache_gb, opened[0].teacher) == (url, 1.0, "tiny")
    with pytest.raises(ConfigError, match="no cache"):
        run_repair(RepairConfig(cache=Url(f"{url}-of-nothing")))
