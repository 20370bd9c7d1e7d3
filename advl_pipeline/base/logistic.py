"""Logistic regression by L-BFGS for any features and likelihood: probes and text-only models.

The objective is the mean negative log-likelihood of N examples plus half the penalty times the squared norm of the
weights. Intercepts are not penalised.
Shapes: N examples, M rows of features (C per example for candidates, else one), F features, O outputs, K classes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.special import logsumexp

FloatArray = npt.NDArray[np.float64]

Likelihood = Callable[[FloatArray], tuple[float, FloatArray]]
"""Scores (M, O) -> negative log-likelihood summed over examples, and its gradient with respect to the scores."""

MAX_ITERATIONS = 60

TOLERANCE = 1e-6
"""Relative decrease of the loss below which fitting stops."""


def of_classes(label_N: npt.NDArray[np.int64]) -> Likelihood:
    """Return the likelihood of one class per example: a softmax over O = K scores."""
    rows_N = np.arange(len(label_N))

    def evaluate(scores_NK: FloatArray) -> tuple[float, FloatArray]:
        normaliser_N = logsumexp(scores_NK, axis=1)
        loss = float((normaliser_N - scores_NK[rows_N, label_N]).sum())
        residual_NK = np.exp(scores_NK - normaliser_N[:, None])
        residual_NK[rows_N, label_N] -= 1.0
        return loss, residual_NK

    return evaluate


def of_candidates(label_N: npt.NDArray[np.int64], valid_NC: npt.NDArray[np.bool_] | None = None) -> Likelihood:
    """Return the likelihood of one candidate per example: a softmax over C rows with O = 1 score each.

    Args:
        label_N: the correct candidate.
        valid_NC: false for candidates that an example lacks; None if none are missing.
    """
    of_example = of_classes(label_N)

    def evaluate(scores_M1: FloatArray) -> tuple[float, FloatArray]:
        scores_NC = scores_M1.reshape(len(label_N), -1)
        masked_NC = scores_NC if valid_NC is None else np.where(valid_NC, scores_NC, -np.inf)
        loss, residual_NC = of_example(masked_NC)
        return loss, residual_NC.reshape(scores_M1.shape)

    return evaluate


def of_soft_labels(target_NK: FloatArray) -> Likelihood:
    """Return the likelihood of K yes-or-no questions per example, each with a target in [0, 1]."""
    return lambda scores_NK: binary_loss(scores_NK, target_NK)


def binary_loss(scores_NK: FloatArray, target_NK: npt.NDArray[np.floating]) -> tuple[float, FloatArray]:
    """Return the binary cross-entropy summed over all entries, and its gradient with respect to the scores.

    Both share one single-precision exponential, which dominates the fitting time over hundreds of classes.
    """
    decay_NK = np.exp(-np.abs(scores_NK).astype(np.float32))
    sigmoid_NK = np.where(scores_NK >= 0, np.float32(1), decay_NK) / (1 + decay_NK)
    loss_NK = np.maximum(scores_NK, 0.0) + np.log1p(decay_NK) - target_NK * scores_NK
    return float(loss_NK.sum()), sigmoid_NK - target_NK


def fit_logistic(
    features_MF: FloatArray | csr_array,
    likelihood: Likelihood,
    *,
    num_examples: int,
    penalty: float,
    start_XO: FloatArray,
) -> FloatArray:
    """Return the fitted parameters (F + 1, O): the weights, then a row of intercepts.

    Args:
        features_MF: dense or sparse.
        likelihood: of the scores, from this module.
        num_examples: N, the divisor of the likelihood.
        penalty: coefficient of the squared norm of the weights, relative to the mean loss.
        start_XO: initial parameters.
    """

    def objective(parameters: FloatArray) -> tuple[float, FloatArray]:
        table_XO = parameters.reshape(start_XO.shape)
        weight_FO = table_XO[:-1]
        loss, residual_MO = likelihood(np.asarray(features_MF @ weight_FO) + table_XO[-1])
        gradient_XO = np.zeros_like(table_XO)
        gradient_XO[:-1] = np.asarray(features_MF.T @ residual_MO) / num_examples + penalty * weight_FO
        # An intercept shared by all candidates of an example has no effect and keeps its initial value.
        if start_XO.shape[1] > 1:
            gradient_XO[-1] = residual_MO.sum(axis=0) / num_examples
        return loss / num_examples + 0.5 * penalty * float((weight_FO**2).sum()), gradient_XO.ravel()

    return minimised(objective, start_XO.ravel()).reshape(start_XO.shape)


def minimised(objective: Callable[[FloatArray], tuple[float, FloatArray]], start_X: FloatArray) -> FloatArray:
    """Return the parameters at which L-BFGS stops.

    Args:
        objective: parameters (X,) -> their loss, and its gradient (X,).
        start_X: initial parameters.
    """
    # The import takes half a second; only fits should pay for it.
    from scipy.optimize import minimize

    optimum = minimize(
        objective,
        start_X,
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": MAX_ITERATIONS, "ftol": TOLERANCE, "gtol": 1e-5},
    )
    fitted_X: FloatArray = optimum.x
    return fitted_X
