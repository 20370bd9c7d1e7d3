"""Seconds that an estimate of confidences will take, from heads over drawn features, before there are others."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import numpy as np
import numpy.typing as npt

from advl_pipeline.base.logistic import (
    FloatArray,
    Likelihood,
    fit_logistic,
    of_candidates,
    of_classes,
    of_soft_labels,
)
from advl_pipeline.cache.reader import TeacherCache
from advl_pipeline.confidence.estimators import Modality, probe_data
from advl_pipeline.confidence.probe import (
    DEFAULT_PENALTY,
    MAX_FIT_CLASSES,
    MAX_FIT_EXAMPLES,
    MAX_FIT_TARGETS,
    Kind,
)
from advl_pipeline.datasets.records import Dataset, Example

if TYPE_CHECKING:
    from advl_pipeline.cache.reader import FeatureStore

NUM_READ: Final = 4000
"""Examples that are read, to count labels and classes."""

NUM_TRIED: Final = 500
"""Examples of a task with drawn features."""

EVALUATIONS: Final[Mapping[Kind, int]] = {"choice": 30, "classes": 200, "soft-labels": 150}
"""Evaluations of the loss in a fold, over all penalties: 14 to 57 for choices, 97 to 243 for questions of DAQUAR."""


class DrawnFeatures:
    """What a head reads of a `FeatureStore`, with random numbers as global features and without tokens."""

    has_tokens = False

    def __init__(self, width: int) -> None:
        self.global_mean = np.zeros(width, np.float32)
        self.global_variance = np.ones(width, np.float32)
        self._drawn = np.random.default_rng(0)

    def global_features(self, ids: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return a row for each unit."""
        return self._drawn.standard_normal((len(ids), len(self.global_mean)), np.float32)


def forecast_seconds(dataset: Dataset, widths: Mapping[Modality, int], *, num_examples: int, folds: int) -> float:
    """Estimate the time of `load_or_estimate_confidence` with the probe. Features of boxes are left out.

    Args:
        dataset: the split; some of its examples are read.
        widths: width of the global features of each modality of the teacher.
        num_examples: examples to estimate, labelled or not.
        folds: folds of the cross-fitting.
    """
    places = np.unique(np.linspace(0, len(dataset) - 1, min(len(dataset), NUM_READ)).astype(int)).tolist()
    examples = [dataset[place] for place in places]
    seconds = 0.0
    for task in dataset.tasks:
        of_task = [example for example in examples if example.task == task]
        labelled = [example for example in of_task if example.label is not None or example.soft_label]
        num_labelled = num_examples * len(labelled) / max(1, len(places))
        for modality, width in widths.items() if labelled else ():
            seconds += _seconds_of_head(dataset, labelled, modality, width, num_labelled=num_labelled, folds=folds)
    return seconds


def _seconds_of_head(
    dataset: Dataset,
    labelled: Sequence[Example],
    modality: Modality,
    width: int,
    *,
    num_labelled: float,
    folds: int,
) -> float:
    """Return the time for one task and modality: of making the features, and of fitting heads to them."""
    store = cast("FeatureStore", DrawnFeatures(width))
    drawn = TeacherCache(
        path=Path(),
        identity={},
        provenance={},
        image=store if modality == "vision" else None,
        text=store if modality == "text" else None,
    )
    tried = labelled[:: -(-len(labelled) // NUM_TRIED)]
    begun = time.perf_counter()
    data = probe_data([drawn], dataset, tried, modality)
    made_by = time.perf_counter()
    features = data.features_NCF.reshape(-1, data.features_NCF.shape[-1]).astype(np.float64)
    label_n = np.zeros(len(tried), np.int64)
    # Most fits try a penalty: they leave out the fold of the examples and the next one.
    num_fitted = min(num_labelled * max(1, folds - 2) / folds, MAX_FIT_EXAMPLES)
    if data.kind == "soft-labels":
        classes = {index for example in labelled for index, _ in example.soft_label}
        num_outputs = min(MAX_FIT_CLASSES, len(classes))
        num_fitted = min(num_fitted, MAX_FIT_TARGETS / num_outputs)
        likelihood = of_soft_labels(np.zeros((len(tried), num_outputs)))
    elif data.kind == "classes":
        num_outputs = data.num_classes
        likelihood = of_classes(label_n)
    else:
        num_outputs = 1
        likelihood = of_candidates(label_n)
    evaluating = _seconds_of_evaluation(features, likelihood, num_outputs, num_examples=len(tried))
    making = made_by - begun
    return (num_labelled * making + folds * EVALUATIONS[data.kind] * num_fitted * evaluating) / len(tried)


def _seconds_of_evaluation(
    features_MF: FloatArray, likelihood: Likelihood, num_outputs: int, *, num_examples: int
) -> float:
    num_evaluations = 0

    def counted(scores_MO: FloatArray) -> tuple[float, FloatArray]:
        nonlocal num_evaluations
        num_evaluations += 1
        return likelihood(scores_MO)

    def fit() -> None:
        fit_logistic(
            features_MF,
            counted,
            num_examples=num_examples,
            penalty=DEFAULT_PENALTY,
            start_XO=np.ones((features_MF.shape[1] + 1, num_outputs)),
        )

    fit()  # The first fit includes an import.
    num_evaluations = 0
    begun = time.perf_counter()
    fit()
    return (time.perf_counter() - begun) / num_evaluations
