"""`--engine ray` on a real local cluster: the bytes of one process, errors in words, resumed after a stop."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest
import real_processes  # noqa: F401
from tiny_extraction import open_tiny, tiny_config, tree_bytes

from advl_pipeline.base.errors import ClusterError, StorageError
from advl_pipeline.cache.parts import ExtractionPart
from advl_pipeline.extraction.cluster import run_task
from advl_pipeline.extraction.run import extract, extract_part

SUPPORT = Path(__file__).parents[1] / "support"
DRIVER = """
import json, sys
from pathlib import Path
from tiny_extraction import open_tiny, tiny_config
from advl_pipeline.base.errors import AdvlError
from advl_pipeline.base.interruption import interruptible
from advl_pipeline.extraction.run import extract_on_ray

if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    try:
        with interruptible("The extraction", kept="every committed shard is kept"):
            print(extract_on_ray(tiny_config(Path(settings.pop("output")), **settings), open_tiny).encoded_units)
    except AdvlError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
"""


def start(tmp_path: Path, output: Path, data: Path, address: str = "") -> subprocess.Popen[str]:

    settings = {"output": str(output), "data_root": str(data), "engine": "ray", "ray_tasks": 2}
    environment = os.environ | {"PYTHONPATH": str(SUPPORT), "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    if address:
        environment["RAY_ADDRESS"] = address
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, json.dumps(settings)],
        env=environment,
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_same_bytes_and_resumed_after_a_stop(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "one", data_root=str(tmp_path / "data"))
    extract(config, *open_tiny(config))
    stopped = start(tmp_path, tmp_path / "shared", tmp_path / "data")
    deadline = time.monotonic() + 300
    while stopped.poll() is None and not list((tmp_path / "shared").glob("records/*-[0-9]*.json")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    stopped.terminate()
    _, messages = stopped.communicate(timeout=120)
    assert stopped.returncode == 130, messages
    assert "every committed shard is kept" in messages
    assert not (tmp_path / "shared/records/complete.json").exists()
    resumed = start(tmp_path, tmp_path / "shared", tmp_path / "data")
    _, messages = resumed.communicate(timeout=240)
    assert resumed.returncode == 0, messages
    assert tree_bytes(tmp_path / "shared") == tree_bytes(tmp_path / "one")


def test_error_of_a_task_comes_back_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "blocked").write_text("in the way")
    config = tiny_config(tmp_path / "blocked/cache", data_root=str(tmp_path / "data"))
    work = partial(extract_part, config, open_tiny)
    # The server of `real_processes` has imported torch.
    monkeypatch.setenv("PYTHONPATH", str(SUPPORT))
    with ProcessPoolExecutor(1, mp_context=get_context("forkserver")) as worker:
        outcome = worker.submit(run_task, work, str(tmp_path), {}, ExtractionPart(1, 2)).result()
        elsewhere = worker.submit(run_task, work, str(tmp_path / "absent"), {}, ExtractionPart(1, 2)).result()
    assert isinstance(outcome, StorageError)
    assert isinstance(elsewhere, ClusterError)
    assert "absent" in elsewhere.where


def test_unreachable_cluster_is_known_at_once(tmp_path: Path) -> None:
    begin = time.monotonic()
    driver = start(tmp_path, tmp_path / "cache", tmp_path / "data", address="127.0.0.1:9")
    _, messages = driver.communicate(timeout=120)
    assert driver.returncode == 8, messages
    assert "ray start --head" in messages
    assert "Traceback" not in messages
    assert time.monotonic() - begin < 60
