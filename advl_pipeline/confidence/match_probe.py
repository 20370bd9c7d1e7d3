"""A probe of pooled vectors of text and picture: what few labels read off them without any layer of fusion.

Two linear maps into a common space score how well a text and a picture match: together they are a bilinear form. Its
regularised fit is a logistic regression whose features are the products of all pairs of coordinates of the two
vectors. These are too many to write down, but their inner product is that of the texts times that of the pictures. So
the features used here are coordinates relative to some pairs of text and picture, which span the same fits (Nystroem;
exact if these are all pairs). It takes no choice of steps or seed. Classes and answers are read off the vectors
themselves as well.

Shapes: N questions, C candidates (1 without choices), T and V widths of the vectors of text and picture, P pairs that
span the features, K candidates or classes, O outputs (1 for choices, else K).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax

from advl_pipeline.base.logistic import FloatArray, fit_logistic, of_candidates, of_classes

PENALTY: Final = 3e-4
"""L2 penalty. A third and three times of it differ by less than a point on photographs and captions."""

MAX_PAIRS: Final = 2500
"""Maximum number P of pairs."""

JITTER: Final = 1e-6
"""Added to the diagonal of the inner products, so that equal pairs can be factorised."""

Vectors = npt.NDArray[np.floating]


def unit(vectors: Vectors) -> FloatArray:
    """Return vectors without their mean over coordinates, each of norm 1; zeros stay zeros."""
    centred = np.asarray(vectors, np.float64) - np.mean(vectors, axis=-1, keepdims=True, dtype=np.float64)
    lengths: FloatArray = np.linalg.norm(centred, axis=-1, keepdims=True)
    scaled: FloatArray = centred / np.maximum(lengths, 1e-12)
    return scaled


def joined(*vectors: Vectors) -> FloatArray:
    """Return the vectors of several models as one, in which each model weighs the same."""
    return np.concatenate([unit(each) for each in vectors], axis=-1)


@dataclass(frozen=True, kw_only=True)
class MatchFeatures:
    """The features of pairs of text and picture, spanned by P pairs. No label enters them."""

    has_choices: bool
    mean_T: FloatArray
    mean_V: FloatArray
    said_PT: FloatArray
    shown_PV: FloatArray
    root_PP: FloatArray

    @classmethod
    def of(cls, said_NCT: Vectors, shown_NV: Vectors) -> Self:
        """Return the features that evenly spaced pairs of some questions span."""
        num_questions, num_candidates, _ = said_NCT.shape
        num_pairs = num_questions * num_candidates
        pairs = np.unique(np.linspace(0, num_pairs - 1, min(num_pairs, MAX_PAIRS)).round().astype(np.int64))
        said, shown = unit(said_NCT).reshape(num_pairs, -1), unit(shown_NV)
        mean_T, mean_V = said.mean(axis=0), shown.mean(axis=0)
        features = cls(
            has_choices=num_candidates > 1,
            mean_T=mean_T,
            mean_V=mean_V,
            said_PT=unit(said[pairs] - mean_T),
            shown_PV=unit(shown[pairs // num_candidates] - mean_V),
            root_PP=np.zeros((0, 0)),
        )
        products_PP = features._products(features.said_PT, features.shown_PV)
        root_PP = np.linalg.cholesky(products_PP + JITTER * np.eye(len(pairs)))
        return cls(**{**vars(features), "root_PP": root_PP})

    def __call__(self, said_NCT: Vectors, shown_NV: Vectors) -> FloatArray:
        """Return (N, C, P); those of choices are relative to their mean over a question's candidates."""
        from scipy.linalg import solve_triangular

        num_questions, num_candidates, _ = said_NCT.shape
        said = unit(unit(said_NCT).reshape(num_questions * num_candidates, -1) - self.mean_T)
        shown = np.repeat(unit(unit(shown_NV) - self.mean_V), num_candidates, axis=0)
        flat = solve_triangular(self.root_PP, self._products(said, shown).T, lower=True).T
        features_NCP: FloatArray = flat.reshape(num_questions, num_candidates, -1)
        return features_NCP - features_NCP.mean(axis=1, keepdims=True) if self.has_choices else features_NCP

    def _products(self, said: FloatArray, shown: FloatArray) -> FloatArray:
        """Return the inner products of pairs with those that span the features."""
        by_text, by_picture = said @ self.said_PT.T, shown @ self.shown_PV.T
        match: FloatArray = by_text * by_picture
        return match if self.has_choices else match + by_text + by_picture


@dataclass(frozen=True, kw_only=True)
class FittedProbe:
    """The weights (P, O) and intercepts (O,) of a probe over features."""

    weight_PO: FloatArray
    intercept_O: FloatArray

    @classmethod
    def fit(
        cls,
        features_NCP: FloatArray,
        label_N: npt.NDArray[np.int64],
        *,
        num_classes: int,
        valid_NC: npt.NDArray[np.bool_] | None = None,
    ) -> Self:
        """Fit the weights; `num_classes` is 0 for choices, of which `valid_NC` is false for missing ones."""
        num_questions, _, num_features = features_NCP.shape
        start_XO = np.zeros((num_features + 1, max(1, num_classes)))
        if num_classes:
            counts_K = np.bincount(label_N, minlength=num_classes) + 0.5
            start_XO[-1] = np.log(counts_K / counts_K.sum())
        table = fit_logistic(
            features_NCP.reshape(-1, num_features),
            of_classes(label_N) if num_classes else of_candidates(label_N, valid_NC),
            num_examples=num_questions,
            penalty=PENALTY,
            start_XO=start_XO,
        )
        return cls(weight_PO=table[:-1], intercept_O=table[-1])

    def scores(self, features_NCP: FloatArray, *, valid_NC: npt.NDArray[np.bool_] | None = None) -> FloatArray:
        """Return (N, K), -inf for missing choices."""
        scores_NCO: FloatArray = features_NCP @ self.weight_PO + self.intercept_O
        if features_NCP.shape[1] == 1:
            return scores_NCO[:, 0]
        return scores_NCO[..., 0] if valid_NC is None else np.where(valid_NC, scores_NCO[..., 0], -np.inf)


@dataclass(frozen=True, kw_only=True)
class MatchProbe:
    """Two linear maps that score how well texts and pictures match, or read classes and answers off them."""

    features: MatchFeatures
    fitted: FittedProbe

    @classmethod
    def fit(
        cls,
        said_NCT: Vectors,
        shown_NV: Vectors,
        label_N: npt.ArrayLike,
        *,
        num_classes: int = 0,
    ) -> Self:
        """Fit the probe to labelled questions.

        Args:
            said_NCT: vectors of texts, one for each choice; C is 1 for classes and answers.
            shown_NV: vectors of pictures.
            label_N: the correct choice, class or answer of each question.
            num_classes: number of classes or answers; 0 for choices.
        """
        features = MatchFeatures.of(said_NCT, shown_NV)
        labels = np.asarray(label_N, np.int64)
        fitted = FittedProbe.fit(features(said_NCT, shown_NV), labels, num_classes=num_classes)
        return cls(features=features, fitted=fitted)

    def scores(self, said_NCT: Vectors, shown_NV: Vectors) -> FloatArray:
        """Return the scores of choices, classes or answers, (N, K)."""
        return self.fitted.scores(self.features(said_NCT, shown_NV))


def cross_fitted_scores(
    candidates: Sequence[FloatArray],
    label_N: npt.NDArray[np.int64],
    fold_N: npt.NDArray[np.int64],
    *,
    num_classes: int,
    valid_NC: npt.NDArray[np.bool_] | None = None,
) -> FloatArray:
    """Return the scores (N, K) of each question under a probe that was fitted on the other folds.

    Args:
        candidates: features (N, C, P) to choose from. Each fold takes the first, unless others lower the loss on the
            next fold, after a fit on the rest, by more than a standard error. Its own labels have no part in it.
        label_N: the correct choice or class.
        fold_N: fold of each question, from `estimators.assign_folds`; at least three, if there is a choice.
        num_classes: number of classes; 0 for choices.
        valid_NC: false for choices that a question lacks; None if none is missing.
    """
    num_folds = int(fold_N.max()) + 1

    def fitted(features_NCP: FloatArray, rows: npt.NDArray[np.bool_]) -> FittedProbe:
        valid = None if valid_NC is None else valid_NC[rows]
        return FittedProbe.fit(features_NCP[rows], label_N[rows], num_classes=num_classes, valid_NC=valid)

    def scored(features_NCP: FloatArray, trained: npt.NDArray[np.bool_], rows: npt.NDArray[np.bool_]) -> FloatArray:
        valid = None if valid_NC is None else valid_NC[rows]
        return fitted(features_NCP, trained).scores(features_NCP[rows], valid_NC=valid)

    scores_NK = np.zeros((len(label_N), num_classes or candidates[0].shape[1]))
    for fold in range(num_folds):
        held_out = fold_N == fold
        best = candidates[0]
        if len(candidates) > 1:
            inner = fold_N == (fold + 1) % num_folds
            lowest_n = np.full(int(inner.sum()), np.inf)
            for features in candidates:
                shares_nK = log_softmax(scored(features, ~held_out & ~inner, inner), axis=1)
                loss_n = -np.take_along_axis(shares_nK, label_N[inner][:, None], axis=1)[:, 0]
                gain_n = lowest_n - loss_n
                if features is candidates[0] or gain_n.mean() > gain_n.std() / np.sqrt(len(gain_n)):
                    lowest_n = loss_n
                    best = features
        scores_NK[held_out] = scored(best, ~held_out, held_out)
    return scores_NK
