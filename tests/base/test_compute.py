"""Where to compute and in what: one declaration for every command, resolved once, the same when a run goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import exit_code

from advl_pipeline.base.compute import ComputeConfig, allow_tf32, open_device, peak_memory_bytes, resolved
from advl_pipeline.base.errors import ConfigError
from advl_pipeline.cache.reader import open_cache
from advl_pipeline.extraction.config import ExtractConfig
from advl_pipeline.extraction.planning import resumed_config
from advl_pipeline.runs.run_folder import RunFolder
from advl_pipeline.studies.config import StudyRunConfig, asked_study
from advl_pipeline.training.config import FinetuneConfig


class Gpu:
    """A machine with a GPU, as far as the choice of device and precision asks for one."""

    def __init__(self, patch: pytest.MonkeyPatch, *, bf16: bool) -> None:
        patch.setattr(torch.accelerator, "is_available", lambda: True)
        patch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
        patch.setattr(torch.accelerator, "current_device_index", lambda: 0)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: bf16)


@pytest.mark.parametrize(("bf16", "precision"), [(True, "bf16"), (False, "no")])
def test_auto_takes_the_gpu_and_what_it_computes_in(
    monkeypatch: pytest.MonkeyPatch, bf16: bool, precision: str
) -> None:
    Gpu(monkeypatch, bf16=bf16)
    resolution = resolved(ComputeConfig())
    assert (resolution.device, resolution.mixed_precision) == ("cuda:0", precision)
    assert resolved(ComputeConfig(device="cpu")).mixed_precision == "no"
    assert resolved(ComputeConfig(device="cpu", mixed_precision="bf16")).mixed_precision == "bf16"


def test_a_machine_without_a_gpu_computes_on_the_cpu_in_fp32_and_refuses_the_rest() -> None:
    if torch.accelerator.is_available():
        pytest.skip("this machine has a GPU")
    resolution = resolved(ComputeConfig())
    assert (resolution.device, resolution.mixed_precision) == ("cpu", "no")
    for device in ("cuda:7", "nonsense"):
        with pytest.raises(ConfigError, match="cannot be used"):
            open_device(device)
    with pytest.raises(ConfigError, match="CPU does not compute in fp16"):
        resolved(ComputeConfig(mixed_precision="fp16"))
    with pytest.raises(ConfigError, match="Teachers compute in fp32 or bf16"):
        _ = ExtractConfig(teacher="minilm-l6", dataset="vcr", mixed_precision="fp16").compute_dtype


def test_what_was_begun_in_one_precision_goes_on_in_it(
    small_corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache and a run of a machine without a GPU, taken to one with a GPU."""
    recorded = open_cache(small_corpus.caches[0]).provenance["config"]
    assert (recorded["device"], recorded["mixed_precision"]) == ("cpu", "no")
    run = tmp_path / "run"
    words = ["--method", "plain", "--num-steps", "1", "--batch-size", "2", "--task", "vcr-q2a"]
    options = ["--dataset", "scenes-vcr", "--data-root", small_corpus.data_root, "--device", "cpu", "--output", run]
    assert exit_code("finetune", *options, *words) == 0
    environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    assert environment["device"].startswith("cpu (")
    assert environment["mixed_precision"] == "no"
    Gpu(monkeypatch, bf16=True)
    extraction = ExtractConfig(teacher="minilm-l6", dataset="scenes-vcr", output=small_corpus.caches[0])
    assert resolved(resumed_config(extraction)).mixed_precision == "no"
    training = FinetuneConfig(dataset="scenes-vcr", output=run)
    assert resolved(RunFolder(run).resumed_config(training)).mixed_precision == "no"
    assert resolved(training).mixed_precision == "bf16"


def test_a_study_hands_both_options_on() -> None:
    plain = asked_study(StudyRunConfig(study="demo"))
    assert "device" not in {**plain.training, **plain.extraction, **plain.evaluation}
    study = asked_study(StudyRunConfig(study="demo", device="cpu", mixed_precision="bf16"))
    for table in (study.training, study.extraction, study.evaluation):
        assert (table["device"], table["mixed_precision"]) == ("cpu", "bf16")


@pytest.mark.parametrize(
    ("device", "capability", "expected"),
    [("cuda:0", (8, 0), True), ("cuda:0", (7, 5), False), ("cpu", (9, 0), False), ("mps", (9, 0), False)],
)
def test_products_are_in_tf32_where_a_gpu_has_it(
    monkeypatch: pytest.MonkeyPatch, device: str, capability: tuple[int, int], expected: bool
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", asked.append)
    assert allow_tf32(torch.device(device)) is expected
    assert asked == (["high"] if expected else [])


def test_a_fork_takes_its_turn_whatever_another_thread_of_its_parent_does() -> None:
    script = """
import os, threading
from advl_pipeline.base.compute import drawing, one_training
taken, ended = threading.Event(), threading.Event()

def hold():
    with one_training(), drawing():
        taken.set()
        ended.wait()

threading.Thread(target=hold).start()
taken.wait()
if (child := os.fork()) == 0:
    with one_training(), drawing(0):
        os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
ended.set()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200, check=True)
    assert done.stdout == "0\n"


BLOCK_BYTES = 400_000_000
PROGRAM = f"""
import numpy as np
from advl_pipeline.base.compute import forget_peak_memory, peak_memory_bytes

begun = peak_memory_bytes()
block = np.ones({BLOCK_BYTES} // 2, np.uint8)
before = peak_memory_bytes()
del block
forget_peak_memory()
print(begun, before, peak_memory_bytes())
"""


def test_the_peak_counts_what_was_held_and_not_what_the_parent_held() -> None:
    block = np.ones(BLOCK_BYTES, np.uint8)
    assert peak_memory_bytes() >= len(block)
    printed = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True).stdout
    begun, before, after = map(int, printed.split())
    assert 1_000_000 < begun < len(block) // 2 <= before
    if sys.platform == "linux":  # It alone lets a process forget its peak.
        assert after < before - len(block) // 4
