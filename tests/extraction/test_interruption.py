"""Killed, stopped, crowded or out of disk: the same command again gives the bytes of an uninterrupted run."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from chaos import kill_and_resume, make_job, reference_run, started_writing
from tiny_extraction import tree_bytes

from advl_pipeline.cache.reader import open_cache
from advl_pipeline.cache.verify import verify_cache


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
        if started_writing(running, folder / "often"):
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
    assert started_writing(running, folder / number.name)
    time.sleep(span / 3)
    running.send(number)
    assert running.wait() == 130, running.messages()
    assert "it resumes" in running.messages()
    assert "Traceback" not in running.messages()
    job.finish()
    assert tree_bytes(folder / number.name) == files


def test_two_processes_share_one_cache(reference: tuple[Path, dict[str, bytes], float]) -> None:
    folder, files, _ = reference
    job = make_job(folder, "shared", progress_file=str(folder / "shared.jsonl"))
    for running in [job.start() for _ in range(2)]:
        assert running.wait() == 0, running.messages()
    assert tree_bytes(folder / "shared") == files


def test_dead_claimer_is_taken_over(reference: tuple[Path, dict[str, bytes], float]) -> None:
    folder, files, span = reference
    job = make_job(folder, "widow")
    first = job.start()
    assert started_writing(first, folder / "widow")
    second = job.start()
    time.sleep(span / 2)
    first.send(signal.SIGKILL)
    first.wait()
    assert second.wait() == 0, second.messages()
    assert tree_bytes(folder / "widow") == files


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
