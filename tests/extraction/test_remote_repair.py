"""Repair of a cache in a real S3 store: the same bytes again, as in a folder (`test_damage.py`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from objects import flipped, objects, spoil, upload
from tiny_extraction import TinyDataset, tiny_config, tiny_extract, tiny_teacher, tree_bytes

from advl_cli.main import main
from advl_pipeline.base.errors import ConfigError, CorruptCache
from advl_pipeline.base.locations import Url
from advl_pipeline.cache.object_store import ObjectStore
from advl_pipeline.cache.reader import open_cache
from advl_pipeline.extraction import repair as repair_module
from advl_pipeline.extraction import run
from advl_pipeline.extraction.config import RepairConfig
from advl_pipeline.extraction.repair import RepairResult, repair, run_repair

SMALL = {"num_images": 8}


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


def mend(pristine: Path, url: Url) -> RepairResult:
    config = tiny_config(url, confidence=True)
    return repair(config, tiny_teacher(), TinyDataset(pristine / "data", **SMALL))


def test_many_wounds_at_once_are_mended_by_the_command(
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

    monkeypatch.setattr(run, "open_teacher_and_data", open_inputs)
    confidence = next(name for name in expected if name.startswith("records/confidence-"))
    key = confidence.removeprefix("records/confidence-").removesuffix(".json")
    removed = {"text/tokens/values/c/0/0", "image/tokens/starts/c/0", "records/provenance.json", confidence}
    ObjectStore(url).delete(*removed)
    one, two = "image/tokens/values/c/0/0", "text/tokens/values/c/1/0"
    spoilt = {
        f"confidence/{key}/probability/c/0": b"short",
        "text/stray": b"x",
        "text/global/c/0/0": flipped(expected["text/global/c/0/0"]),
        one: expected[two],
        two: expected[one],
    }
    for name, content in spoilt.items():
        spoil(url, name, content)
    with pytest.raises(CorruptCache, match="advl cache repair s3://"):
        open_cache(url)
    with pytest.raises(SystemExit) as caught:
        main(["cache", "repair", str(url), "--json", "--disk-cache-gb", "1"])
    assert caught.value.code in (0, None)
    found = json.loads(capsys.readouterr().out)
    assert (found["path"], found["is_identical"]) == (url, True)
    assert {path for path, _ in found["findings"]} >= {"text/stray", "text/global/c/0/0", one, two, *removed}
    assert objects(url) == expected
    assert (opened[0].output, opened[0].disk_cache_gb, opened[0].teacher) == (url, 1.0, "tiny")
    assert mend(pristine, url).findings == ()
    with pytest.raises(ConfigError, match="no cache"):
        run_repair(RepairConfig(cache=Url(f"{url}-of-nothing")))


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
