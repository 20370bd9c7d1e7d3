"""Killed, stopped, crowded or out of disk: the same command again gives the bytes of an uninterrupted run."""

from __future__ import annotations

import io
import re
import signal
from pathlib import Path

import pytest
from chaos import make_job
from tiny_extraction import tiny_config, tiny_extract, tree_bytes

from advl_pipeline.base.errors import ConfigError, InUse, StorageError
from advl_pipeline.cache import parts, stores
from advl_pipeline.cache.commands import run_prune
from advl_pipeline.cache.config import PruneConfig
from advl_pipeline.cache.verify import verify_cache
from advl_pipeline.extraction.prepare import prepare_extract
from advl_pipeline.extraction.run import run_extract


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes], float]:
    folder = tmp_path_factory.mktemp("chaos")
    return folder, *make_job(folder, "reference").run_alone()


def test_killed_and_stopped_again_and_again(reference: tuple[Path, dict[str, bytes], float]) -> None:
    """Once by each signal, in the middle of its writing; then to the end. `make chaos` kills at 50 random moments."""
    folder, files, span = reference
    job = make_job(folder, "often")
    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGKILL, signal.SIGTERM):
        # Four tenths in all: a machine that is twice as fast by now has not finished.
        stopped = job.stop(number, span / 10)
        code, said = stopped.wait(), stopped.messages()
        assert code == (-number if number == signal.SIGKILL else 130), said
        assert number == signal.SIGKILL or "every committed shard is kept" in said
        assert "Traceback" not in said
    job.start().finish()
    assert tree_bytes(folder / "often") == files
    assert verify_cache(folder / "often").is_sound


def test_processes_that_are_given_parts_make_one_cache_though_one_dies(
    reference: tuple[Path, dict[str, bytes], float],
) -> None:
    folder, files, _ = reference
    dying, *others = (
        make_job(folder, "shared", delay=delay, part=f"{number}/3").start()
        for number, delay in ((1, 0.3), (2, 0.0), (3, 0.0))
    )
    assert dying.wait_for(folder / "shared/records/plan.json")
    dying.send(signal.SIGKILL)
    dying.wait()
    for running in others:
        running.finish()
    assert not (folder / "shared/records/complete.json").exists()
    make_job(folder, "shared", delay=0.0, part="1/3").start().finish()
    assert tree_bytes(folder / "shared") == files
    assert not (folder / "shared/.work").exists()


def test_a_second_process_on_the_same_shards_is_refused(
    reference: tuple[Path, dict[str, bytes], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, files, _ = reference
    running = make_job(folder, "twice", delay=1.0).start()
    assert running.wait_for(folder / "twice/records/plan.json")
    for refused in [make_job(folder, "twice", **part).start() for part in ({}, {"part": "1/2"})]:
        assert refused.wait() == 7, refused.messages()
        found = rf"Another process is writing this cache(?s:.)*process {running.pid} on"
        assert re.search(found, refused.messages())
    monkeypatch.setattr(parts, "_SECONDS_TO_DIE", 0.1)
    with pytest.raises(InUse, match="Another process is writing this cache"):
        run_prune(PruneConfig(cache=folder / "twice", all=True))
    running.send(signal.SIGKILL)
    running.wait()
    make_job(folder, "twice", delay=0).start().finish()
    assert tree_bytes(folder / "twice") == files


@pytest.mark.parametrize("part", ["0/2", "3/2", "a/b"])
def test_what_is_no_part_is_refused(tmp_path: Path, part: str) -> None:
    with pytest.raises(ConfigError, match="must be I/N"):
        run_extract(prepare_extract(tiny_config(tmp_path / "cache", part=part)))
    assert list(tmp_path.iterdir()) == []


# A file that is about to be written is a device whose writes fail: one has no space left, and the first bytes of a
# process's own memory give an input/output error.
FAILING = {"/dev/full": "No space left on device", "/proc/self/mem": "Input/output error"}


@pytest.mark.parametrize(
    ("target", "device"),
    [
        ("text/unit_id/c/0/0", "/dev/full"),
        ("text/tokens/values/c/1/0", "/proc/self/mem"),
        ("text/global/c/0/0", "/dev/full"),
    ],
    ids=["plan", "shard", "table"],
)
def test_the_same_call_resumes_to_the_same_bytes(
    pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, device: str
) -> None:
    cache = tmp_path / "cache"
    ending = f"-{target.replace('/', '_')}"
    open_new = stores._open_new

    def open_failing(path: Path) -> io.FileIO:
        file = open_new(path)
        if path.parent != cache / ".work/tmp" or not path.name.endswith(ending):
            return file
        file.close()
        return io.FileIO(device, "r+b")

    monkeypatch.setattr(stores, "_open_new", open_failing)
    with pytest.raises(StorageError) as caught:
        tiny_extract(pristine / "data", cache)
    monkeypatch.undo()
    assert caught.value.exit_code == 7
    assert FAILING[device] in caught.value.why
    assert caught.value.where == target
    assert not list(cache.glob(".work/tmp/*"))
    assert not (cache / "records/complete.json").exists()
    tiny_extract(pristine / "data", cache)
    assert tree_bytes(cache) == tree_bytes(pristine / "cache")
    assert verify_cache(cache).is_sound
