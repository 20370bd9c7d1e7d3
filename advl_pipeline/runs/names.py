"""Names in a run folder, which docs/folders.md lists, and their paths. The marker of the folder is `folders.py`'s.

Training writes all but the last two folders, which `advl evaluate` and `advl predict` fill.
"""

from __future__ import annotations

import re
from pathlib import Path

from advl_pipeline.base.folders import MARKERS

IDENTITY = MARKERS["run"].file
"""Written first: options, settings, dataset and caches that decide the numbers."""
CONFIG = "config.json"
ENVIRONMENT = "environment.json"
CACHES = "caches.json"
SETTINGS = "settings.json"
METRICS = "metrics.jsonl"
CHECKPOINT = "checkpoint.safetensors"
"""Of an interrupted run; a finished one has none."""
TENSORBOARD = "tensorboard"
WANDB = "wandb"
MLFLOW = "mlflow.db"
MLFLOW_FILES = "mlflow"
TRACKED = "tracked.json"
"""Ids that trackers know the run by, so that a resumed run is the same run there."""
OF_TRACKERS = (TENSORBOARD, WANDB, MLFLOW, MLFLOW_FILES, TRACKED)
STUDENT = MARKERS["student"].file
STUDENT_WEIGHTS = "model.safetensors"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER = "adapter_config.json"
"""Of a student that is saved as low-rank updates of other weights, as peft has them."""
TOKENIZER = "tokenizer.json"
"""Of a student whose tokenizer is not the package's own."""
PROCESSOR = "student_processor"
"""Folder, of a student that reads texts and pictures through a processor."""
HEADS = "heads.json"
HEADS_WEIGHTS = "heads.safetensors"
SELECTED_WORDS = "selected_words.json"
READOUT = "readout.json"
RESULT = "result.json"
"""Written last: a run that has it is finished."""
EVALUATION = "evaluation"
PREDICTIONS = "predictions"


def is_finished(run: Path) -> bool:
    """Return whether a run was trained to its end."""
    return (run / RESULT).is_file()


def evaluation_file(run: Path, test_set: str, suffix: str) -> Path:
    """Return the file of a test set; a set of another dataset, "vcr-shift/val", is filed as "vcr-shift--val"."""
    return run / EVALUATION / (test_set.replace("/", "--") + suffix)


def set_of(filed: str) -> str:
    """Return the test set of a name that scores are filed under, such as "val" of "val@2017"."""
    return re.sub("@[^/]*$", "", filed)
