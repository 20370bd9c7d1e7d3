"""The hypothesis-only-hard subset of SNLI-VE: what a model that never sees the picture gets wrong.

The model is multinomial logistic regression over hashed words and word pairs of the hypothesis, fitted on train.
A pair it calls rightly may be answered from the way hypotheses were written; what is left needs the picture.

Shapes: N pairs, C classes, D hashed features.
"""

from __future__ import annotations

import itertools
import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import sparse

from advl_pipeline.atomic import make_folder, write_text
from advl_pipeline.datasets.cards import load_card
from advl_pipeline.datasets.indexed import IndexedDataset
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.datasets.roots import resolve_data_root
from advl_pipeline.errors import ConfigError, again
from advl_pipeline.evaluation.config import HardSubsetConfig
from advl_pipeline.logistic import FloatArray, fit_logistic, of_classes
from advl_pipeline.outputs import require_outputs

NUM_FEATURES = 1 << 18
PENALTY = 1e-6
"""Strength of the squared norm of the weights, relative to the mean loss: the same for all, or lists would differ."""

_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, kw_only=True, slots=True)
class HardSubsetResult:
    """Where the list lies, how many pairs it has of how many, and the accuracy in percent that made it."""

    path: Path
    num_pairs: int
    num_hard: int
    accuracy: float


def run_hard_subset(config: HardSubsetConfig) -> HardSubsetResult:
    """Fit the hypothesis-only model on train and list the pairs of a split that it gets wrong.

    Raises:
        ConfigError: the dataset is not of hypotheses, the split is the one that the model is fitted on, or a
            file that is no such list lies there.
        DatasetError: a split is missing or malformed.
    """
    if config.split == "train":
        raise ConfigError("The hard subset of train would be chosen by a model that was fitted on it.")
    path = config.output
    if path is None:
        # Where the card of the dataset looks for the list.
        facts = load_card("snli-ve").splits.get(f"{config.split}-hard", {})
        if config.name != "snli-ve" or "ids" not in facts:
            raise ConfigError(
                "Say where the list of hard pairs goes.",
                why=f"{config.name} {config.split} has no place for one",
                next_command=again("the same command with --output FILE"),
            )
        home = resolve_data_root(config.data_root) / str(load_card("snli-ve").facts["folder"])
        path = home / str(facts["ids"])
    require_outputs(config, output=path)
    train, split = _open(config, "train"), _open(config, config.split)
    texts, labels_N = train.texts_and_labels()
    weights_DC = fit(texts, labels_N, num_classes=len(train.label_names("snli-ve")))
    texts, labels_N = split.texts_and_labels()
    called_N = np.asarray(hashed_words(texts) @ weights_DC).argmax(axis=1)
    hard = [pair_id for pair_id, wrong in zip(split.example_ids, called_N != labels_N, strict=True) if wrong]
    accuracy = 100.0 * (len(texts) - len(hard)) / len(texts)
    make_folder(path.parent)
    document = {
        "dataset": config.name,
        "split": config.split,
        "model": {"kind": "hypothesis-only logistic regression", "penalty": PENALTY, "features": NUM_FEATURES},
        "fitted_on": train.name + " train",
        "accuracy": accuracy,
        "pair_ids": hard,
    }
    write_text(path, json.dumps(document, indent=1) + "\n")
    return HardSubsetResult(path=path, num_pairs=len(texts), num_hard=len(hard), accuracy=accuracy)


def hashed_words(texts: Sequence[str]) -> sparse.csr_array:
    """Return (N, D) float64: 1 where a text holds a word or a pair of neighbouring words of that hash."""
    columns: list[int] = []
    starts = [0]
    for text in texts:
        words = ["^", *_WORD.findall(text.lower()), "$"]
        pairs = (f"{first} {second}" for first, second in itertools.pairwise(words))
        columns += sorted({zlib.crc32(feature.encode()) % NUM_FEATURES for feature in (*words, *pairs)})
        starts.append(len(columns))
    ones = np.ones(len(columns))
    return sparse.csr_array((ones, np.array(columns), np.array(starts)), shape=(len(texts), NUM_FEATURES))


def fit(texts: Sequence[str], labels_N: npt.NDArray[np.int64], *, num_classes: int) -> FloatArray:
    """Fit logistic regression from zero.

    Args:
        labels_N: their classes.
        num_classes: C.

    Returns:
        Weights (D, C), float64.
    """
    return fit_logistic(
        hashed_words(texts),
        of_classes(labels_N),
        num_examples=len(texts),
        penalty=PENALTY,
        start_XO=np.zeros((NUM_FEATURES, num_classes)),
        has_intercept=False,
    )


def _open(config: HardSubsetConfig, split: str) -> IndexedDataset:
    dataset = open_dataset(config.name, split=split, data_root=config.data_root)
    if dataset.tasks != ("snli-ve",):
        raise ConfigError(f"{config.name} holds no hypotheses.", why="expected snli-ve or a dataset in its format")
    return dataset
