"""Cross-fitted linear probes: the probability of the ground truth under a head that never saw the example.

A head is a regularised logistic regression on standardised features. Its regularisation strength is chosen inside
the training folds, on the next fold, so that nothing of an example's own fold, labels included, reaches the head
that predicts it. Only the feature scaling and the head are fitted.

Shapes: N examples, C candidates (1 outside multiple choice), F features, K classes, n examples being fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.special import expit, log_softmax, logit, softmax

from advl_pipeline.base.logistic import (
    FloatArray,
    Likelihood,
    binary_loss,
    fit_logistic,
    of_candidates,
    of_classes,
    of_soft_labels,
)
from advl_pipeline.confidence.separation import outranked_candidates, outranked_classes

Kind = Literal["choice", "classes", "soft-labels"]

PENALTIES = (1.0, 0.1, 0.01, 0.001, 0.0001)
"""L2 penalties to try, from strong to weak, for features of about unit norm and the mean loss per example."""

DEFAULT_PENALTY = 0.1
"""Penalty with too few folds to choose one."""

MAX_FIT_EXAMPLES = 20_000
"""Maximum number of examples to fit one head on, evenly spaced over its training folds: a few hundred features need
no more, and memory stays bounded."""

MAX_FIT_CLASSES = 512
"""Maximum number of soft-label classes with weights, the most frequent ones of the training folds. VQA has
thousands, few of which occur in a subset; the head predicts the others by their frequency."""

MAX_FIT_TARGETS = 2_500_000
"""Maximum of examples times classes for a soft-label head: the time of a fit is proportional to it."""

MAX_RATE = 1 - 1e-6
"""Maximum initial rate of a class; a class that is always right has no finite score."""

PREDICT_BLOCK = 4096
"""Number of examples to score at a time, which bounds memory for thousands of classes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeData:
    """Features and truth of N examples.

    `choice`: `features_NCF` of each candidate, `label_N`; `valid_NC` is false for candidates that an example lacks.
    `classes`: C = 1, `label_N` in [0, num_classes). `soft-labels`: C = 1, `score_NK` in [0, 1],
    sparse because there are thousands of classes and few answers.
    """

    kind: Kind
    features_NCF: npt.NDArray[np.float32]
    valid_NC: npt.NDArray[np.bool_]
    label_N: npt.NDArray[np.int64] | None = None
    score_NK: csr_array | None = None
    num_classes: int = 0

    def __len__(self) -> int:
        return len(self.features_NCF)


@dataclass(frozen=True, kw_only=True, slots=True)
class TruthConfidence:
    """A teacher's confidence in the truth of N examples, and its separation of right and wrong.

    `probability_N`: of the ground truth, float32 in [0, 1]. `outranked_N`: the share of an example's wrong
    alternatives that the truth outranks (see `separation.py`), float32 in [0, 1]; NaN without a wrong alternative.
    """

    probability_N: npt.NDArray[np.float32]
    outranked_N: npt.NDArray[np.float32]


def cross_fitted_confidence(
    data: ProbeData, fold_N: npt.NDArray[np.int64], *, progress: Callable[[int], object] = lambda _: None
) -> TruthConfidence:
    """Return the confidence in the ground truth of each example.

    Multiple choice: softmax over the candidates. Classes: softmax over the classes; a class missing from the
    training folds gets its probability from the head's intercept. Soft labels:
    c = sum_a score(a) p(a) / sum_a score(a), 0 for an example without any score; p is the sigmoid, or the rate of a
    class that is too rare for the head. With only one fold, no head can be fitted: chance.

    Args:
        fold_N: fold of each example, from `estimators.assign_folds`.
        progress: called after each fold with its number of examples.
    """
    num_folds = int(fold_N.max(initial=0)) + 1
    if num_folds < 2:
        num_alternatives_N = np.full(len(data), data.num_classes)
        if data.kind == "choice":
            num_alternatives_N = data.valid_NC.sum(axis=1)
        return TruthConfidence(
            probability_N=(1.0 / num_alternatives_N).astype(np.float32),
            outranked_N=np.where(num_alternatives_N > 1, 0.5, np.nan).astype(np.float32),
        )
    centred = centred_features(data)
    probability_N = np.zeros(len(data), dtype=np.float32)
    outranked_N = np.zeros(len(data), dtype=np.float32)
    for fold in range(num_folds):
        held_out = np.flatnonzero(fold_N == fold)
        best = DEFAULT_PENALTY
        if num_folds > 2:
            inner = (fold + 1) % num_folds
            validation = _evenly_spaced(np.flatnonzero(fold_N == inner), MAX_FIT_EXAMPLES // 4)
            training = np.flatnonzero((fold_N != fold) & (fold_N != inner))
            best, lowest = PENALTIES[0], np.inf
            for penalty, head in zip(PENALTIES, ProbeHead.fit(data, centred, training, PENALTIES), strict=True):
                loss = head.mean_loss(data, centred, validation)
                # Still weaker penalties overfit more, and take the longest.
                if loss >= lowest:
                    break
                best, lowest = penalty, loss
        (head,) = ProbeHead.fit(data, centred, np.flatnonzero(fold_N != fold), [best])
        for block in _blocks(held_out):
            probability_N[block], outranked_N[block] = head.confidence(data, centred, block)
        progress(len(held_out))
    return TruthConfidence(probability_N=probability_N, outranked_N=outranked_N)


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeHead:
    """Weights (F, O) and intercepts (O,) on standardised features; O = 1 for multiple choice, else K.

    For soft labels O is the number of classes with weights, `class_O`; `rate_K` is the rate of each class.
    """

    weight_FO: FloatArray
    intercept_O: FloatArray
    mean_F: FloatArray
    scale_F: FloatArray
    class_O: npt.NDArray[np.int64] | None = None
    rate_K: FloatArray | None = None

    @classmethod
    def fit(
        cls,
        data: ProbeData,
        centred: npt.NDArray[np.float32],
        rows: npt.NDArray[np.int64],
        penalties: Sequence[float],
    ) -> Iterator[ProbeHead]:
        """Yield one head per penalty, fitted on the examples `rows`, each initialised with the previous one."""
        class_O, rate_K, most = None, None, MAX_FIT_EXAMPLES
        if data.score_NK is not None:
            total_K = np.asarray(data.score_NK[rows].sum(axis=0)).ravel().astype(np.float64)
            class_O = np.sort(np.argsort(-total_K, kind="stable")[: min(MAX_FIT_CLASSES, int((total_K > 0).sum()))])
            rate_K = (total_K + 0.5) / (len(rows) + 1.0)
            most = min(most, MAX_FIT_TARGETS // max(1, len(class_O)))
        rows = _evenly_spaced(rows, most)
        features = centred[rows]
        flat = features[data.valid_NC[rows]].astype(np.float64)
        mean_F = flat.mean(axis=0)
        deviation_F = flat.std(axis=0)
        # Constant features carry no information; the root of the number keeps an example's norm near one.
        varies_F = deviation_F > 1e-6
        scale_F = np.where(varies_F, 1.0 / np.where(varies_F, deviation_F, 1.0), 0.0) / np.sqrt(
            max(varies_F.sum(), 1)
        )
        scaled = (features.astype(np.float64) - mean_F) * scale_F
        likelihood, table = _likelihood(data, rows, scaled.shape[-1], class_O)
        for penalty in penalties:
            table = fit_logistic(
                scaled.reshape(-1, scaled.shape[-1]),
                likelihood,
                num_examples=len(rows),
                penalty=penalty,
                start_XO=table,
            )
            yield cls(
                weight_FO=table[:-1],
                intercept_O=table[-1],
                mean_F=mean_F,
                scale_F=scale_F,
                class_O=class_O,
                rate_K=rate_K,
            )

    def scores(self, centred: npt.NDArray[np.float32], rows: npt.NDArray[np.int64]) -> FloatArray:
        """Return (n, C, O) scores. The weights include the scaling, so the features are not copied."""
        weight_FO = self.weight_FO * self.scale_F[:, None]
        shift_O = self.intercept_O - self.mean_F @ weight_FO
        scores: FloatArray = centred[rows] @ weight_FO.astype(np.float32) + shift_O
        return scores

    def mean_loss(self, data: ProbeData, centred: npt.NDArray[np.float32], rows: npt.NDArray[np.int64]) -> float:
        """Return the mean negative log-likelihood per example."""
        total = 0.0
        for block in _blocks(rows):
            scores = self.scores(centred, block)
            if data.score_NK is not None:
                total += binary_loss(scores[:, 0], _targets(data.score_NK, block, self.class_O))[0]
                continue
            assert data.label_N is not None
            logits = masked_scores(scores[..., 0], data, block) if data.kind == "choice" else scores[:, 0]
            picked = np.take_along_axis(log_softmax(logits, axis=1), data.label_N[block][:, None], axis=1)
            total -= float(picked.sum())
        return total / len(rows)

    def confidence(
        self, data: ProbeData, centred: npt.NDArray[np.float32], rows: npt.NDArray[np.int64]
    ) -> tuple[FloatArray, npt.NDArray[np.float32]]:
        """Return (n,) probabilities of the ground truth, and the shares of wrong alternatives that it outranks."""
        scores = self.scores(centred, rows)
        if data.score_NK is not None:
            assert self.rate_K is not None
            probability_nO, truth_nO = expit(scores[:, 0]), _targets(data.score_NK, rows, self.class_O)
            total_n = np.asarray(data.score_NK[rows].sum(axis=1), np.float64).ravel()
            by_rate_n = data.score_NK[rows] @ self.rate_K - truth_nO @ self.rate_K[self.class_O]
            mean_n = ((truth_nO * probability_nO).sum(axis=1) + by_rate_n) / np.where(total_n > 0, total_n, 1.0)
            return mean_n, outranked_classes(probability_nO, truth_nO)
        assert data.label_N is not None
        label_n = data.label_N[rows]
        logits = masked_scores(scores[..., 0], data, rows) if data.kind == "choice" else scores[:, 0]
        probability = softmax(logits, axis=1)
        truth_n = np.take_along_axis(probability, label_n[:, None], axis=1)[:, 0]
        if data.kind == "choice":
            return truth_n, outranked_candidates(logits, label_n, data.valid_NC[rows])
        return truth_n, outranked_classes(probability, np.eye(data.num_classes)[label_n])


def _likelihood(
    data: ProbeData, rows: npt.NDArray[np.int64], num_features: int, class_O: npt.NDArray[np.int64] | None
) -> tuple[Likelihood, FloatArray]:
    """Return the likelihood of some examples and the initial weights (F + 1, O), with log-odds as intercepts."""
    if data.score_NK is not None:
        target_nO = _targets(data.score_NK, rows, class_O)
        rate_O = np.minimum((target_nO.sum(axis=0) + 0.5) / (len(rows) + 1.0), MAX_RATE)
        return of_soft_labels(target_nO), np.concatenate([np.zeros((num_features, len(rate_O))), logit(rate_O)[None]])
    start_XO = np.zeros((num_features + 1, 1 if data.kind == "choice" else data.num_classes))
    assert data.label_N is not None
    if data.kind == "classes":
        return of_classes(data.label_N[rows]), start_XO
    return of_candidates(data.label_N[rows], data.valid_NC[rows]), start_XO


def _targets(score_NK: csr_array, rows: npt.NDArray[np.int64], class_O: npt.NDArray[np.int64] | None) -> FloatArray:
    assert class_O is not None
    targets_nO: FloatArray = score_NK[rows].tocsc()[:, class_O].toarray().astype(np.float64)
    return targets_nO


def _evenly_spaced(rows: npt.NDArray[np.int64], most: int) -> npt.NDArray[np.int64]:
    if len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).round().astype(np.int64)]


def _blocks(rows: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    return np.array_split(rows, max(1, -(-len(rows) // PREDICT_BLOCK)))


def masked_scores(scores_nC: FloatArray, data: ProbeData, rows: npt.NDArray[np.int64]) -> FloatArray:
    """Return the scores of the examples `rows`, -inf for missing candidates."""
    return np.where(data.valid_NC[rows], scores_nC, -np.inf)


def centred_features(data: ProbeData) -> npt.NDArray[np.float32]:
    """For multiple choice, subtract the mean over an example's candidates: only differences matter."""
    if data.kind != "choice":
        return data.features_NCF
    valid_NC1 = data.valid_NC[..., None]
    mean_N1F = data.features_NCF.mean(axis=1, keepdims=True, where=valid_NC1)
    return np.where(valid_NC1, data.features_NCF - mean_N1F, np.float32(0))
