"""Killed, stopped, crowded or out of disk: the same command again gives the bytes of an uninterrupted run."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import pytest
from chaos import kill_and_resume, make_job, reference_run
from tiny_extraction import tiny_config, tree_bytes

from advl_pipeline.cache.commands import run_prune
from advl_pipeline.cache.config import PruneConfig
from advl_pipeline.cache.reader import open_cache
from advl_pipeline.cache.verify import verify_cache
from advl_pipeline.errors import ConfigError, InUse
from advl_pipeline.extraction.run import run_extract


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes], float]:
    folder = tmp_path_factory.mktemp("chaos")
    files, span = reference_run(folder)
    return folder, files, span


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_at_random_moments(reference: tuple[Path, dict[str, bytes], float]) -> None:
    folder, files, span = reference
    committed = [kill_and_resume(folder, files, span, name=f"kill-{seed}", seed=seed)[1] for seed in range(8)]
    # The kills must have hit extractions in the middle, or nothing was tested.
    assert len({count for count in committed if count}) > 2


def test_killed_again_and_again(reference: tuple[Path, dict[str, bytes], float]) -> None:
    folder, files, span = reference
    job = make_job(folder, "often")
    for _ in range(3):
        running = job.start()
        if running.wait_for(folder / "often"):
            time.sleep(span / 3)
        running.send(signal.SIGKILL)
        running.wait()
    job.finish()
    assert tree_bytes(folder / "often") == files


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_a_signal(reference: tuple[Path, dict[str, bytes], float], number: signal.Signals) -> None:
    folder, files, span = reference
    job = make_job(folder, number.name)
    running = job.start()
    assert running.wait_for(folder / number.name)
    time.sleep(span / 3)
    running.send(number)
    assert running.wait() == 130, running.messages()
    assert "every committed shard is kept" in running.messages()
    assert "Traceback" not in running.messages()
    job.finish()
    assert tree_bytes(folder / number.name) == files


def test_processes_that_are_given_parts_make_one_cache(reference: tuple[Path, dict[str, bytes], float]) -> None:
    folder, files, _ = reference
    jobs = [make_job(folder, "shared", part=f"{number}/3") for number in (1, 2, 3)]
    for running in [job.start() for job in jobs]:
        assert running.wait() == 0, running.messages()
    assert tree_bytes(folder / "shared") == files
    assert not (folder / "shared/.work").exists()


def test_a_part_whose_process_dies_is_done_by_the_same_command(
    reference: tuple[Path, dict[str, bytes], float],
) -> None:
    folder, files, _ = reference
    slow, first, second = (
        make_job(folder, "widow", delay=delay, part=part) for delay, part in ((0.3, "1/2"), (0, "1/2"), (0, "2/2"))
    )
    dying, other = slow.start(), second.start()
    assert dying.wait_for(folder / "widow/records/plan.json")
    dying.send(signal.SIGKILL)
    dying.wait()
    assert other.wait() == 0, other.messages()
    assert not (folder / "widow/records/complete.json").exists()
    first.finish()
    assert tree_bytes(folder / "widow") == files


@pytest.mark.parametrize("second", [{}, {"part": "1/2"}], ids=["same", "other parts"])
def test_a_second_process_on_the_same_shards_is_refused(
    reference: tuple[Path, dict[str, bytes], float], second: dict[str, str]
) -> None:
    folder, files, _ = reference
    output = f"twice-{len(second)}"
    running = make_job(folder, output, delay=1.0).start()
    assert running.wait_for(folder / output / "records/plan.json")
    refused = make_job(folder, output, **second).start()
    assert refused.wait() == 7, refused.messages()
    assert re.search(rf"Another process is writing this cache(?s:.)*process {running.pid} on", refused.messages())
    with pytest.raises(InUse, match="Another process is writing this cache"):
        run_prune(PruneConfig(cache=folder / output, all=True))
    running.send(signal.SIGKILL)
    running.wait()
    make_job(folder, output, delay=0).finish()
    assert tree_bytes(folder / output) == files


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "1/0", "a/b", "-1/2"])
def test_what_is_no_part_is_refused(tmp_path: Path, part: str) -> None:
    with pytest.raises(ConfigError, match="no part of a cache"):
        run_extract(tiny_config(tmp_path / "cache", part=part))
    assert list(tmp_path.iterdir()) == []


def test_file_size_limit_in_mid_write(reference: tuple[Path, dict[str, bytes], float]) -> None:
    folder, files, _ = reference
    job = make_job(folder, "limited")
    job.settings["file_size_limit"] = 1024
    running = job.start()
    assert running.wait() == 7, running.messages()
    assert "size limit" in running.messages()
    assert "Traceback" not in running.messages()
    assert not list((folder / "limited" / ".work").glob("tmp/*"))
    del job.settings["file_size_limit"]
    job.finish()
    assert tree_bytes(folder / "limited") == files


def test_finished_cache_is_sound(reference: tuple[Path, dict[str, bytes], float]) -> None:
    folder, files, _ = reference
    assert verify_cache(folder / "reference").is_sound
    assert any(name.startswith("confidence/") for name in files)
    assert open_cache(folder / "reference").text is not None
