"""A cache in a real S3 store: the bytes of a folder, resumed after kills, checked, read through a bounded disk."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import numpy as np
import pytest
from chaos import make_job
from objects import flipped, objects, spoil, upload
from s3_server import ACCESS_KEY, SECRET_KEY, S3Server, client_environment, environment_of
from tiny_extraction import tiny_extract, tree_bytes

from advl_pipeline.base.errors import ConfigError, CorruptCache, IdentityMismatch, StorageError
from advl_pipeline.base.locations import Url, parse_location
from advl_pipeline.cache.commands import run_info, run_prune
from advl_pipeline.cache.config import InfoConfig, PruneConfig
from advl_pipeline.cache.object_store import ObjectStore
from advl_pipeline.cache.reader import open_cache
from advl_pipeline.cache.verify import verify_cache


@pytest.fixture
def finished(url: Url, pristine: Path) -> Url:
    """Where a finished cache lies."""
    upload(url, tree_bytes(pristine / "cache"))
    return url


def batches(ids: list[str], size: int, *, seed: int) -> list[list[str]]:
    """Return all ids in another order, cut into batches."""
    order = np.random.default_rng(seed).permutation(len(ids)).tolist()
    return [[ids[place] for place in order[first : first + size]] for first in range(0, len(ids), size)]


def test_same_bytes_as_in_a_folder(url: Url, tmp_path: Path) -> None:
    result = tiny_extract(tmp_path / "data", url, confidence=True)
    tiny_extract(tmp_path / "data", tmp_path / "folder", confidence=True)
    assert objects(url) == tree_bytes(tmp_path / "folder")
    assert result.path == url
    assert tiny_extract(tmp_path / "data", url, confidence=True).encoded_units == 0
    assert verify_cache(url).is_sound
    assert list((tmp_path / "disk-cache/writing").glob("*/")) == []
    info = run_info(InfoConfig(cache=url))
    local = run_info(InfoConfig(cache=tmp_path / "folder"))
    assert info["num_bytes"] == local["num_bytes"]
    assert info["modalities"] == local["modalities"]
    assert info["confidences"] == local["confidences"]
    # Neither the objects nor what is kept on this disk tells how to get at them.
    kept = b"".join(tree_bytes(tmp_path / "disk-cache").values()) + b"".join(objects(url).values())
    assert SECRET_KEY.encode() not in kept
    assert ACCESS_KEY.encode() not in kept
    with pytest.raises(IdentityMismatch, match="s3://"):
        tiny_extract(tmp_path / "data", url, dtype="float32")
    keys = [item["key"] for item in info["confidences"]]
    pruned = run_prune(PruneConfig(cache=url, all_confidences=True))
    assert pruned["removed"] == [f"confidence/{key}" for key in keys]
    assert pruned["num_bytes"] > 0
    assert not any("confidence" in name for name in objects(url))
    assert verify_cache(url).is_sound
    run_prune(PruneConfig(cache=url, all=True))
    assert objects(url) == {}
    with pytest.raises(ConfigError, match="no cache"):
        open_cache(url)


def test_read_through_a_bounded_disk_cache(url: Url, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_extract(tmp_path / "data", tmp_path / "folder", dtype="int8")
    upload(url, tree_bytes(tmp_path / "folder"))
    # Less than the cache.
    total = sum(len(content) for content in objects(url).values())
    bound = total * 9 // 10
    remote, local = open_cache(url, disk_cache_gb=bound / 1e9), open_cache(tmp_path / "folder")
    for name, store in local.stores().items():
        ids = list(store.ids)
        np.testing.assert_array_equal(remote.stores()[name].global_features(ids), store.global_features(ids))
        for number in (len(ids), 5):
            found = remote.stores()[name].token_features(ids[:number])
            np.testing.assert_array_equal(found[0], store.token_features(ids[:number])[0])
        for _ in range(2):
            for batch in batches(ids, 8, seed=1):
                remote.stores()[name].announce(batch)
                found = remote.stores()[name].stored_tokens(batch)
                for here, there in zip(store.stored_tokens(batch), found, strict=True):
                    np.testing.assert_array_equal(there, here)
            kept = [path for path in (tmp_path / "disk-cache/reading").rglob("*") if path.suffix != ".lock"]
            used = sum(path.stat().st_size for path in kept if path.is_file())
            assert used <= bound
    monkeypatch.setenv("ADVL_DISK_CACHE", str(tmp_path / "none"))
    with pytest.raises(StorageError, match="too small"):
        open_cache(url, disk_cache_gb=1e-8)


def test_shards_are_fetched_before_they_are_read(finished: Url, tmp_path: Path) -> None:
    url = finished
    here = tmp_path / "disk-cache/reading"

    def shards(array: str) -> set[str]:
        return {str(path).split(array)[1] for path in here.glob(f"*/{array}/c/*/0")}

    def wait_for_fetches() -> None:
        for thread in threading.enumerate():
            if thread.name == "advl-fetch-ahead":
                thread.join(30)

    text = open_cache(url).text
    every = {name.removeprefix("text/tokens/values") for name in objects(url) if "text/tokens/values/c/" in name}
    assert len(every) > 5
    ids = list(text.ids)
    text.announce(ids[:64])
    text.global_features(ids[:4])
    wait_for_fetches()
    assert shards("text/tokens/values") == set()  # Nobody reads tokens.
    text.token_features(ids[:4])
    text.announce(ids[:64])
    wait_for_fetches()
    # 64 units are announced; the first four need one shard.
    assert 1 < len(shards("text/tokens/values")) < len(every)
    assert shards("text/tokens/char_spans") == set()
    text.announce(ids)
    wait_for_fetches()
    assert shards("text/tokens/values") == every


def test_damage_in_the_store_is_found(finished: Url, tmp_path: Path) -> None:
    url = finished
    name = "text/tokens/values/c/1/0"
    content = ObjectStore(url).get(name)
    spoil(url, name, flipped(content))
    assert list(verify_cache(url).findings) == [name]
    text = open_cache(url).stores()["text"]
    # What goes wrong ahead is told when it is read.
    text.token_features([text.ids[0]])
    text.announce(list(text.ids))
    with pytest.raises(CorruptCache, match=rf"{name}(?s:.)*content changed"):
        text.token_features(list(text.ids))
    spoil(url, name, content[:-1])
    assert list(verify_cache(url).findings) == [name]
    with pytest.raises(CorruptCache, match=name):
        open_cache(url)
    spoil(url, name, content)
    assert verify_cache(url).is_sound
    values = text.token_features(list(text.ids))[0]
    # Damage of the copy on this disk is found by the next process, and mended.
    (copy,) = (tmp_path / "disk-cache/reading").glob(f"*/{name}")
    copy.write_bytes(flipped(copy.read_bytes()))
    again = open_cache(url).text
    np.testing.assert_array_equal(again.token_features(list(again.ids))[0], values)
    spoil(url, "text/stray", b"x")
    assert list(verify_cache(url).findings) == ["text/stray"]
    ObjectStore(url).delete("records/complete.json")
    with pytest.raises(CorruptCache, match="not finished"):
        open_cache(url)


@pytest.mark.slow
def test_killed_and_shared(url: Url, tmp_path: Path, s3_server: S3Server) -> None:
    reference = make_job(tmp_path, "folder")
    reference.finish()
    job = make_job(tmp_path, "remote")
    job.settings["config"]["output"] = str(url)
    job.settings.update({"environment": s3_server.environment})
    killed = 0
    for moment in (0.3, 0.6):
        running = job.start()
        store = ObjectStore(url)
        while running.is_running() and "records/plan.json" not in store.list("records"):
            time.sleep(0.05)
        time.sleep(moment)
        killed += running.is_running()
        running.send(signal.SIGKILL)
        running.wait()
    assert killed
    parts = []
    for number in (1, 2):
        job.settings["config"]["part"] = f"{number}/2"
        parts.append(job.start())
    for running in parts:
        assert running.wait() == 0, running.messages()
    assert objects(url) == tree_bytes(tmp_path / "folder")
    assert verify_cache(url).is_sound


@pytest.mark.parametrize("cause", ["secret", "bucket", "endpoint"])
def test_stores_that_cannot_be_used(url: Url, tmp_path: Path, s3_server: S3Server, cause: str) -> None:
    endpoint = "http://127.0.0.1:9" if cause == "endpoint" else s3_server.endpoint
    target = parse_location("s3://no-such-bucket/cache") if cause == "bucket" else url
    begin = time.monotonic()
    with environment_of(client_environment(endpoint, ACCESS_KEY, "wrong" if cause == "secret" else SECRET_KEY)):
        for call in (lambda: open_cache(target), lambda: tiny_extract(tmp_path / "data", target)):
            with pytest.raises(StorageError) as caught:
                call()
            message = str(caught.value)
            assert {"secret": "refuses", "bucket": "no bucket", "endpoint": "reached"}[cause] in message
            assert SECRET_KEY not in message
            assert caught.value.next_command
    assert time.monotonic() - begin < 30


def test_urls_that_are_folders_and_those_that_are_refused(tmp_path: Path) -> None:
    assert parse_location((tmp_path / "a b").as_uri()) == tmp_path / "a b"
    refused = "s3://key:SESAME@bucket/x s3://bucket/x?sig=SESAME ftp://host/x s3://bucket s3://b/../x file://x"
    for text in refused.split():
        with pytest.raises(ConfigError) as caught:
            parse_location(text)
        assert "SESAME" not in str(caught.value)


def read_in_fork(store: ObjectStore, answers: SimpleQueue[str]) -> None:
    try:
        answers.put(store.get("identity.json").decode())
    except ConfigError as error:
        answers.put(str(error))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:lance is not fork-safe")
def test_a_forked_process_is_told_instead_of_waiting_forever(finished: Url) -> None:
    store = ObjectStore(finished)
    store.get("identity.json")
    context = multiprocessing.get_context("fork")
    answers: SimpleQueue[str] = context.SimpleQueue()
    child = context.Process(target=read_in_fork, args=(store, answers), daemon=True)
    child.start()
    child.join(60)
    try:
        assert child.exitcode == 0
        assert "spawn" in answers.get()
    finally:
        child.kill()
