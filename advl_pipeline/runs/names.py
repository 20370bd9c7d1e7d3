"""Names and paths in a run folder, as listed in docs/folders.md. `folders.py` defines the marker of the folder.

Training writes everything except the last two folders, which `advl evaluate` and `advl predict` fill.
"""

from __future__ import annotations

import re
from pathlib import Path

from advl_pipeline.base.folders import MARKERS

IDENTITY = MARKERS["run"].file
"""Written first: the options, settings, dataset and caches that determine the numbers."""
CONFIG = "config.json"
ENVIRONMENT = "environment.json"
CACHES = "caches.json"
SETTINGS = "settings.json"
METRICS = "metrics.jsonl"
CHECKPOINT = "checkpoint.safetensors"
"""Checkpoint of an unfinished run; a finished run has none."""
TENSORBOARD = "tensorboard"
WANDB = "wandb"
MLFLOW = "mlflow.db"
MLFLOW_FILES = "mlflow"
TRACKED = "tracked.json"
"""Ids of the run in its trackers, so that a resumed run continues the same run there."""
OF_TRACKERS = (TENSORBOARD, WANDB, MLFLOW, MLFLOW_FILES, TRACKED)
STUDENT = MARKERS["student"].file
STUDENT_WEIGHTS = "model.safetensors"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER = "adapter_config.json"
"""Adapter configuration, in peft's format, of a student saved as low-rank updates of other weights."""
TOKENIZER = "tokenizer.json"
"""Tokenizer of a student that does not use the package's own."""
PROCESSOR = "student_processor"
"""Folder with the processor of a student that reads texts and pictures through one."""
HEADS = "heads.json"
HEADS_WEIGHTS = "heads.safetensors"
SELECTED_WORDS = "selected_words.json"
READOUT = "readout.json"
WORDS = "words.csv"
"""Classes of words estimated from the student at the start, if nothing else says what pretraining taught."""
RESULT = "result.json"
"""Written last: a run with this file is finished."""
EVALUATION = "evaluation"
PREDICTIONS = "predictions"


def is_finished(run: Path) -> bool:
    """Return whether the training of a run has finished."""
    return (run / RESULT).is_file()


def weights_of(run: Path) -> list[Path]:
    """Return the files of the weights of a run's student, and of its heads."""
    adapter = run / ADAPTER_WEIGHTS
    return [adapter if adapter.exists() else run / STUDENT_WEIGHTS, run / HEADS_WEIGHTS]


def lacks_student(run: Path) -> bool:
    """Return whether the student of a run was saved and not kept: its description has no weights."""
    return (run / STUDENT).exists() and not all(file.exists() for file in weights_of(run))


def evaluation_file(run: Path, test_set: str, suffix: str) -> Path:
    """Return the file of a test set. One of another dataset, "vcr-shift/val", is filed as "vcr-shift--val"."""
    return run / EVALUATION / (test_set.replace("/", "--") + suffix)


def items_suffix(items_digest: str | None) -> str:
    """Return the suffix of the file of item scores, whose digest the document of an evaluation names.

    Args:
        items_digest: None for an evaluation of an earlier version, which named none.
    """
    return ".npz" if items_digest is None else f".{items_digest[:16]}.npz"


def files_of_evaluation(run: Path, test_set: str) -> list[Path]:
    """Return the document and the item scores of a test set, former ones, and what killed evaluations left."""
    stem = re.escape(evaluation_file(run, test_set, "").name)
    pattern = re.compile(stem + r"(\.[0-9a-f]{16}\.npz|\.npz|\.json)(\.\d+\.partial)?")
    return sorted(path for path in (run / EVALUATION).iterdir() if pattern.fullmatch(path.name))


def set_of(filed: str) -> str:
    """Return the test set from the name that scores are filed under, such as "val" from "val@2017"."""
    return re.sub("@[^/]*$", "", filed)
