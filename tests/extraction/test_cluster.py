"""`--engine ray` on a real local cluster: the bytes of one process, errors in words, resumed after a stop."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from tiny_extraction import open_tiny, tiny_config, tree_bytes

from advl_pipeline.base.compute import resolved
from advl_pipeline.base.errors import ClusterError, StorageError
from advl_pipeline.cache.parts import ExtractionPart
from advl_pipeline.extraction.cluster import run_task
from advl_pipeline.extraction.run import extract, extract_on_ray, extract_part

SUPPORT = Path(__file__).parents[1] / "support"
DRIVER = """
import sys
from pathlib import Path
from tiny_extraction import open_tiny, tiny_config
from advl_pipeline.base.errors import AdvlError
from advl_pipeline.base.interruption import interruptible
from advl_pipeline.extraction.run import extract_on_ray

if __name__ == "__main__":
    config = tiny_config(Path(sys.argv[1]), data_root=sys.argv[2], engine="ray", ray_tasks=2)
    try:
        with interruptible("The extraction", kept="every committed shard is kept"):
            print(extract_on_ray(config, open_tiny).encoded_units)
    except AdvlError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
"""


def start(tmp_path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, tmp_path / "shared", tmp_path / "data"],
        env=os.environ | {"PYTHONPATH": str(SUPPORT), "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_same_bytes_and_resumed_after_a_stop(tmp_path: Path) -> None:
    config = resolved(tiny_config(tmp_path / "one", data_root=str(tmp_path / "data")))
    extract(config, *open_tiny(config))
    stopped = start(tmp_path)
    deadline = time.monotonic() + 300
    while stopped.poll() is None and not list((tmp_path / "shared").glob("records/*-[0-9]*.json")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    stopped.terminate()
    _, messages = stopped.communicate(timeout=120)
    assert stopped.returncode == 130, messages
    assert "every committed shard is kept" in messages
    assert not (tmp_path / "shared/records/complete.json").exists()
    resumed = start(tmp_path)
    _, messages = resumed.communicate(timeout=240)
    assert resumed.returncode == 0, messages
    assert tree_bytes(tmp_path / "shared") == tree_bytes(tmp_path / "one")


def test_error_of_a_task_comes_back_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "blocked").write_text("in the way")
    config = tiny_config(tmp_path / "blocked/cache", data_root=str(tmp_path / "data"))
    monkeypatch.setenv("TQDM_DISABLE", "0")
    monkeypatch.chdir(tmp_path)
    for folder, kind in ((tmp_path, StorageError), (tmp_path / "absent", ClusterError)):
        outcome = run_task(partial(extract_part, config, open_tiny), str(folder), {}, ExtractionPart(1, 2))
        assert isinstance(outcome, kind)
        assert folder.name in outcome.where or kind is StorageError


def test_unreachable_cluster_is_known_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    begin = time.monotonic()
    with pytest.raises(ClusterError, match=r"127\.0\.0\.1:9") as caught:
        extract_on_ray(tiny_config(tmp_path / "cache", engine="ray"), open_tiny)
    assert caught.value.exit_code == 8
    assert "ray start --head" in caught.value.next_command
    assert time.monotonic() - begin < 60
