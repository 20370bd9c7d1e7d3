"""A command imports the packages that its work needs and no other: imports are most of a short command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from small_corpus import SmallCorpus

from advl_pipeline.datasets.records import Task

HEAVY = [
    *("accelerate", "datasets", "h5py", "huggingface_hub", "matplotlib", "obstore", "pandas", "peft", "ray"),
    *("scipy.optimize", "scipy.stats", "timm", "torch", "torchvision", "transformers", "zarr"),
    # Of torch itself: each takes as long as a third of it.
    *("sympy", "torch._dynamo", "torch.distributed.tensor"),
]
# Torch's optimisers import its compiler when the first of them is made.
OPTIMISER = {"sympy", "torch._dynamo", "torch.distributed.tensor"}
CODE = f"""
import json, sys
from advl_cli.main import main
packages = []
for words in json.loads(sys.argv[1]):
    try:
        main(words)
    except SystemExit as stop:
        assert not stop.code
    packages.append(sorted(set({HEAVY}) & set(sys.modules)))
print(json.dumps(packages))
"""


def packages_of(folder: Path, *commands: Sequence[object]) -> list[set[str]]:
    """Run commands in one process; return the heavy packages that are imported after each."""
    words = json.dumps([list(map(str, command)) for command in commands])
    done = subprocess.run(
        [sys.executable, "-c", CODE, words], cwd=folder, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return [set(packages) for packages in json.loads(done.stdout.splitlines()[-1])]


def test_a_run_imports_no_library_of_models_that_its_student_is_not_made_of(
    small_corpus: SmallCorpus, tmp_path: Path
) -> None:
    # The index of a dataset is written once, which imports pandas.
    tasks: tuple[Task, ...] = ("vcr-q2a", "vcr-qa2r")
    for task in tasks:
        small_corpus.dataset("test", task=task)
    small_corpus.run(tmp_path / "done", task=(), num_steps=1, adapt_steps=1)
    data = ("--data-root", small_corpus.data_root)
    caches = [word for cache in small_corpus.caches for word in ("--cache", cache)]
    steps = ("--num-steps", 1, "--adapt-steps", 1, "--batch-size", 4, "--confidence-check", "none")
    run = ("--student", "scenes-small", "--output", "run", *steps)
    # Those that import least come first.
    predict, evaluate, finetune = packages_of(
        tmp_path,
        ("predict", "done", *data),
        ("evaluate", "done", *data),
        ("finetune", "--dataset", "scenes-vcr", "--method", "advl", *data, *caches, *run),
    )
    assert predict == {"torch", "accelerate"}
    # Confidences that no cache holds are fitted, and so is the interval where all answers are right, or none is.
    fitting = {"scipy.optimize", "scipy.stats"}
    assert evaluate - fitting == {"torch", "accelerate"}
    assert finetune - fitting == {"torch", "accelerate"} | OPTIMISER


def test_an_extraction_imports_the_library_of_its_teacher_alone(small_corpus: SmallCorpus, tmp_path: Path) -> None:
    data = ("--dataset", "scenes-vcr", "--data-root", small_corpus.data_root, "--no-confidence")
    (both,) = packages_of(tmp_path, ("extract", "--teacher", "minilm-l6", "--shots", 2, *data))
    assert "transformers" in both
    assert not both & {"timm", "pandas", "scipy.stats", "datasets", "ray", "obstore"}
    (planned,) = packages_of(tmp_path, ("extract", "--teacher", "efficientnet-lite0", "--dry-run", *data))
    assert "timm" in planned
    assert not planned & {"accelerate", "transformers", "pandas", "scipy.stats", "datasets", "ray", "obstore"}
