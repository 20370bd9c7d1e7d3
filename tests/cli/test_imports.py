"""A command imports the packages that its work needs and no other: imports are most of a short command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from small_corpus import SMALL_WORDS, SmallCorpus

HEAVY = [
    *("accelerate", "datasets", "h5py", "huggingface_hub", "matplotlib", "obstore", "pandas", "peft", "ray"),
    *("scipy.optimize", "scipy.stats", "timm", "torchvision", "transformers", "zarr"),
    # Of torch itself: each takes as long as a third of it.
    *("sympy", "torch._dynamo", "torch.distributed.tensor"),
]
# Torch's optimisers import its compiler when the first of them is made.
OPTIMISER = {"sympy", "torch._dynamo", "torch.distributed.tensor"}
# Confidences that no cache holds are fitted, and so is the interval where all answers are right, or none is.
FITTING = {"scipy.optimize", "scipy.stats"}

CODE = f"""
import json, os, sys
import torch
from advl_cli.main import main
for words in json.loads(sys.argv[1]):
    if os.fork() == 0:
        try:
            main(words)
        except SystemExit as stop:
            assert not stop.code
        print(json.dumps(sorted(set({HEAVY}) & set(sys.modules))), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""
"""Each command runs in a fork of a process that has imported torch."""


@pytest.mark.slow
def test_a_command_imports_no_library_that_its_work_does_not_need(small_corpus: SmallCorpus, tmp_path: Path) -> None:
    # The index of a dataset is written once, which imports pandas.
    for split in ("val", "test"):
        small_corpus.dataset(split, task="vcr-q2a")
        small_corpus.dataset(split, task="vcr-qa2r")
    data = ("--data-root", small_corpus.data_root)
    caches = [word for cache in small_corpus.caches for word in ("--cache", cache)]
    steps = ("--num-steps", 1, "--adapt-steps", 1, "--batch-size", 4, "--confidence-check", "none")
    run = ("--student", "scenes-small", "--student-option", *SMALL_WORDS, "--output", "run", *steps)
    extract = ("extract", "--dataset", "scenes-vcr", "--shots", 2, "--confidence", "none", *data, "--teacher")
    commands = (
        ("finetune", "--dataset", "scenes-vcr", "--method", "advl", *data, *caches, *run),
        ("predict", "run", *data),
        ("evaluate", "run", *data),
        (*extract, "minilm-l6"),
        (*extract, "efficientnet-lite0", "--image-tokens", "none"),
    )
    words = json.dumps([list(map(str, command)) for command in commands])
    done = subprocess.run(
        [sys.executable, "-c", CODE, words], cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    told = [set(json.loads(line)) for line in done.stdout.splitlines() if line.startswith(("[]", '["'))]
    finetune, predict, evaluate, of_texts, of_pictures = told
    assert finetune - FITTING == {"accelerate"} | OPTIMISER
    # A finished student needs nothing of its training.
    assert not predict
    assert not evaluate - FITTING
    assert "transformers" in of_texts
    assert not of_texts & {"timm", "pandas", "scipy.stats", "datasets", "ray", "obstore"}
    assert "timm" in of_pictures
    assert not of_pictures & {"accelerate", "transformers", "pandas", "scipy.stats", "datasets", "ray", "obstore"}
