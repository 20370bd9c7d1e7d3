"""A cache in a real S3 store: the bytes of a folder, resumed, checked, mended, read through a bounded disk."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from chaos import make_job
from commands import printed
from objects import flipped, objects, spoil, upload, wait_for_fetches
from s3_server import ACCESS_KEY, SECRET_KEY, S3Server, client_environment
from tiny_extraction import TinyDataset, tiny_config, tiny_extract, tiny_teacher, tree_bytes

from advl_pipeline.base.errors import ConfigError, CorruptCache, IdentityMismatch, StorageError
from advl_pipeline.base.locations import Url, parse_location
from advl_pipeline.cache.commands import run_info, run_prune
from advl_pipeline.cache.confidence import (
    ConfidenceSet,
    confidence_key,
    confidence_record_path,
    read_confidence,
    write_confidence,
)
from advl_pipeline.cache.config import InfoConfig, PruneConfig
from advl_pipeline.cache.object_store import ObjectStore
from advl_pipeline.cache.reader import open_cache
from advl_pipeline.cache.verify import verify_cache
from advl_pipeline.extraction import repair as repair_module
from advl_pipeline.extraction.config import ExtractConfig, RepairConfig
from advl_pipeline.extraction.repair import RepairResult, repair, run_repair


@pytest.fixture
def finished(url: Url, estimated: Path) -> Url:
    """Where a finished cache lies."""
    upload(url, tree_bytes(estimated / "cache"))
    return url


def test_same_bytes_as_in_a_folder(url: Url, estimated: Path, tmp_path: Path) -> None:
    result = tiny_extract(estimated / "data", url, confidence="probe")
    assert objects(url) == tree_bytes(estimated / "cache")
    assert result.path == url
    assert tiny_extract(estimated / "data", url, confidence="probe").encoded_units == 0
    assert verify_cache(url).is_sound
    assert list((tmp_path / "disk-cache/writing").glob("*/")) == []
    info, local = (run_info(InfoConfig(cache=place)) for place in (url, estimated / "cache"))
    found, expected = ((each.num_bytes, each.modalities, each.confidences) for each in (info, local))
    assert found == expected
    # Neither the objects nor what is kept on this disk tells how to get at them.
    kept = b"".join([*tree_bytes(tmp_path / "disk-cache").values(), *objects(url).values()])
    assert SECRET_KEY.encode() not in kept
    assert ACCESS_KEY.encode() not in kept
    with pytest.raises(IdentityMismatch, match="s3://"):
        tiny_extract(estimated / "data", url, dtype="float32")
    pruned = run_prune(PruneConfig(cache=url, all_confidences=True))
    assert pruned.removed == tuple(f"confidence/{item.key}" for item in info.confidences)
    assert pruned.num_bytes > 0
    assert not any("confidence" in name for name in objects(url))
    assert verify_cache(url).is_sound
    run_prune(PruneConfig(cache=url, all=True))
    assert objects(url) == {}
    with pytest.raises(ConfigError, match="no cache"):
        open_cache(url)


def test_a_remote_cache_reads_as_its_folder(url: Url, tmp_path: Path) -> None:
    tiny_extract(tmp_path / "data", tmp_path / "folder", dtype="int8")
    content = tree_bytes(tmp_path / "folder")
    upload(url, content)
    remote, local = open_cache(url), open_cache(tmp_path / "folder")
    for name, store in local.stores().items():
        ids, there = list(store.ids), remote.stores()[name]
        np.testing.assert_array_equal(there.global_features(ids), store.global_features(ids))
        order = np.random.default_rng(1).permutation(ids).tolist()
        batches = [order[first : first + 8] for first in range(0, len(order), 8)]
        for batch in [ids, ids[:5], *batches, *batches]:
            there.announce(batch)
            np.testing.assert_array_equal(there.token_features(batch)[0], store.token_features(batch)[0])
            for here, found in zip(store.stored_tokens(batch), there.stored_tokens(batch), strict=True):
                np.testing.assert_array_equal(found, here)


def test_shards_are_fetched_before_they_are_read(finished: Url, tmp_path: Path) -> None:
    def shards(array: str) -> set[str]:
        here = tmp_path / "disk-cache/reading"
        return {str(path).split(array)[1] for path in here.glob(f"*/{array}/c/*/0")}

    text = open_cache(finished).text
    every = {name.removeprefix("text/tokens/values") for name in objects(finished) if "text/tokens/values/c/" in name}
    assert len(every) > 3
    ids = list(text.ids)
    text.announce(ids[:20])
    text.global_features(ids[:4])
    wait_for_fetches()
    assert shards("text/tokens/values") == set()  # Nobody reads tokens.
    text.token_features(ids[:4])
    text.announce(ids[:20])
    wait_for_fetches()
    # Twenty units are announced; the first four need one shard.
    assert 1 < len(shards("text/tokens/values")) < len(every)
    assert shards("text/tokens/char_spans") == set()
    text.announce(ids)
    wait_for_fetches()
    assert shards("text/tokens/values") == every


def test_damage_in_the_store_is_found(finished: Url) -> None:
    name = "text/tokens/values/c/1/0"
    content = ObjectStore(finished).get(name)
    spoil(finished, name, flipped(content))
    assert list(verify_cache(finished).findings) == [name]
    text = open_cache(finished).stores()["text"]
    # What goes wrong ahead is told when it is read.
    text.token_features([text.ids[0]])
    text.announce(list(text.ids))
    with pytest.raises(CorruptCache, match=rf"{name}(?s:.)*content changed"):
        text.token_features(list(text.ids))
    spoil(finished, name, content[:-1])
    assert list(verify_cache(finished).findings) == [name]
    with pytest.raises(CorruptCache, match=name):
        open_cache(finished)
    spoil(finished, name, content)
    assert verify_cache(finished).is_sound
    text.token_features(list(text.ids))


@pytest.mark.slow
def test_killed_and_shared(url: Url, tmp_path: Path, s3_server: S3Server) -> None:
    make_job(tmp_path, "folder", delay=0.0).start().finish()
    job, store = make_job(tmp_path, "remote"), ObjectStore(url)
    job.settings["config"]["output"] = str(url)
    job.settings["environment"] = s3_server.environment
    killed = 0
    for moment in (0.3, 0.6):
        running = job.start()
        while running.is_running() and "records/plan.json" not in store.list("records"):
            time.sleep(0.05)
        time.sleep(moment)
        killed += running.is_running()
        running.send(signal.SIGKILL)
        running.wait()
    assert killed
    job.settings["teacher"]["delay"] = 0.0
    parts = []
    for number in (1, 2):
        job.settings["config"]["part"] = f"{number}/2"
        parts.append(job.start())
    for running in parts:
        running.finish()
    assert objects(url) == tree_bytes(tmp_path / "folder")
    assert verify_cache(url).is_sound


@pytest.mark.parametrize(
    ("bucket", "endpoint", "secret", "says"),
    [
        (None, None, "wrong", "refuses"),
        ("no-such-bucket", None, SECRET_KEY, "no bucket"),
        (None, "http://127.0.0.1:9", SECRET_KEY, "reached"),
    ],
)
def test_stores_that_cannot_be_used(
    url: Url, tmp_path: Path, s3_server: S3Server, bucket: str | None, endpoint: str | None, secret: str, says: str
) -> None:
    target = url if bucket is None else parse_location(f"s3://{bucket}/cache")
    begin = time.monotonic()
    environment = client_environment(endpoint or s3_server.endpoint, secret)
    with mock.patch.dict(os.environ, environment):
        for call in (lambda: open_cache(target), lambda: tiny_extract(tmp_path / "data", target)):
            with pytest.raises(StorageError, match=says) as caught:
                call()
            assert SECRET_KEY not in str(caught.value)
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


IDENTITY = {"estimator": "mine", "seed": 0}
KEY = confidence_key(IDENTITY)
PROBABILITY = f"confidence/{KEY}/probability/c/0"
NAMES = [f"example-{number}" for number in range(200)]


def numbers(writer: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return what one machine estimates: its last bits are its own."""
    return np.linspace(0.1, 0.9, len(NAMES), dtype=np.float32) + np.float32(writer * 1e-7)


def write(url: Url, writer: int) -> None:
    write_confidence(url, IDENTITY, ConfidenceSet(NAMES, numbers(writer), numbers(writer)))


def removed(url: Url) -> None:
    ObjectStore(url).delete(confidence_record_path(KEY), *ObjectStore(url).list("confidence"))


@pytest.mark.parametrize(
    ("is_damaged", "act", "expected"),
    [(False, lambda url: write(url, 1), 0), (True, lambda url: write(url, 1), 1), (False, removed, None)],
    ids=["sound and replaced", "damaged and replaced", "removed"],
)
def test_what_another_does_between_the_record_and_the_numbers(
    url: Url, monkeypatch: pytest.MonkeyPatch, is_damaged: bool, act: Callable[[Url], None], expected: int | None
) -> None:
    write(url, 0)
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
    np.testing.assert_array_equal(found.probability_N, numbers(expected))
    # A sound set stays as it was first written.
    assert (objects(url) == before) == (not is_damaged)


def test_writers_that_begin_together_and_a_reader_among_them(finished: Url) -> None:
    found = []
    with ThreadPoolExecutor(3) as pool:
        writers = [pool.submit(write, finished, writer) for writer in range(3)]
        while not all(writer.done() for writer in writers):
            if (stored := read_confidence(finished, IDENTITY)) is not None:
                assert stored.example_ids == NAMES
                found.append(stored.probability_N.tobytes())
    assert [writer.exception() for writer in writers] == [None] * 3
    # Whoever came first has written it, and nobody ever saw anything else.
    (seen,) = {*found, read_confidence(finished, IDENTITY).probability_N.tobytes()}
    assert seen in {numbers(writer).tobytes() for writer in range(3)}
    assert verify_cache(finished).is_sound


def mend(estimated: Path, url: Url) -> RepairResult:
    return repair(tiny_config(url, confidence="probe"), tiny_teacher(), TinyDataset(estimated / "data"))


def test_many_wounds_at_once_are_mended_by_the_command(
    estimated: Path, finished: Url, opened: list[ExtractConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    expected = objects(finished)
    confidence = next(name for name in expected if name.startswith("records/confidence-"))
    key = confidence.removeprefix("records/confidence-").removesuffix(".json")
    removed = {"text/tokens/values/c/0/0", "image/tokens/starts/c/0", "records/provenance.json", confidence}
    ObjectStore(finished).delete(*removed)
    one, two = "image/tokens/values/c/0/0", "text/tokens/values/c/1/0"
    spoilt = {
        f"confidence/{key}/probability/c/0": b"short",
        "text/stray": b"x",
        "text/global/c/0/0": flipped(expected["text/global/c/0/0"]),
        one: expected[two],
        two: expected[one],
    }
    for name, content in spoilt.items():
        spoil(finished, name, content)
    with pytest.raises(CorruptCache, match="advl cache repair s3://"):
        open_cache(finished)
    found = json.loads(printed(capsys, "cache", "repair", finished, "--json")[0])
    assert (found["path"], found["is_identical"]) == (finished, True)
    assert {path for path, _ in found["findings"]} >= {"text/stray", "text/global/c/0/0", one, two, *removed}
    assert objects(finished) == expected
    (config,) = opened
    assert (config.output, config.teacher) == (finished, "tiny")
    assert mend(estimated, finished).findings == ()
    with pytest.raises(ConfigError, match="no cache"):
        run_repair(RepairConfig(cache=Url(f"{finished}-of-nothing")))


def test_a_repair_that_was_cut_off_is_given_again(
    estimated: Path, finished: Url, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = objects(finished)
    ObjectStore(finished).delete("text/tokens/values/c/1/0")
    stage, staged = repair_module.stage, iter([1])

    def stop_after_one(*arguments: Any) -> None:
        if next(staged, None) is None:
            raise KeyboardInterrupt
        stage(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(repair_module, "stage", stop_after_one)
        with pytest.raises(KeyboardInterrupt):
            mend(estimated, finished)
    with pytest.raises(CorruptCache, match="not finished"):
        open_cache(finished)
    # Extraction cannot go on from here, and says what can.
    with pytest.raises(CorruptCache, match="advl cache repair"):
        tiny_extract(estimated / "data", finished, confidence="probe")
    assert mend(estimated, finished).is_identical
    assert objects(finished) == expected
