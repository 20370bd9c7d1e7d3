"""The form that labelled choices determine: its optimum, and what other questions teach."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax

from advl_pipeline.students.contrastive_form import PENALTY, fit_contrastive_form

TEXT, PICTURE = 8, 6


def unit(vectors: Any) -> Any:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def questions(num_questions: int, num_choices: int, *, seed: int = 0) -> tuple[Any, Any, Any, Any]:
    """Questions whose right text is a noisy linear map of their picture: texts, pictures, labels, valid choices."""
    rng = np.random.default_rng(seed)
    shown_NV = unit(rng.normal(size=(num_questions, PICTURE)))
    said_NCT = rng.normal(size=(num_questions, num_choices, TEXT))
    label_N = rng.integers(num_choices, size=num_questions)
    truth_VT = np.random.default_rng(1).normal(size=(PICTURE, TEXT))
    said_NCT[np.arange(num_questions), label_N] = 2 * shown_NV @ truth_VT + 0.3 * rng.normal(
        size=(num_questions, TEXT)
    )
    return unit(said_NCT), shown_NV, label_N, np.ones((num_questions, num_choices), np.bool_)


def loss(form_TV: Any, said_NCT: Any, shown_NV: Any, label_N: Any, valid_NC: Any, negative_NN: Any) -> float:
    """The objective, question by question."""
    total = 0.0
    rights = [said[label] for said, label in zip(said_NCT, label_N, strict=True)]
    for place, (said, shown, label) in enumerate(zip(said_NCT, shown_NV, label_N, strict=True)):
        own = [text @ form_TV @ shown if valid_NC[place, choice] else -np.inf for choice, text in enumerate(said)]
        others = [text @ form_TV @ shown for other, text in enumerate(rights) if negative_NN[place, other]]
        total -= log_softmax([*own, *others])[label]
    return total / len(said_NCT) + PENALTY / 2 * float((form_TV**2).sum())


@pytest.mark.parametrize("has_negatives", [False, True])
def test_fitted_form_is_a_minimum(has_negatives: bool) -> None:
    said_NCT, shown_NV, label_N, valid_NC = questions(12, 3)
    valid_NC[np.arange(4), (label_N[:4] + 1) % 3] = False
    rng = np.random.default_rng(2)
    negative_NN = rng.random((12, 12)) < (0.7 if has_negatives else 0.0)
    np.fill_diagonal(negative_NN, False)
    form_TV = fit_contrastive_form(said_NCT, shown_NV, label_N, valid_NC=valid_NC, negative_NN=negative_NN)
    data = (said_NCT, shown_NV, label_N, valid_NC, negative_NN)
    best = loss(form_TV, *data)
    assert best < 0.5 * loss(np.zeros_like(form_TV), *data)
    for _ in range(20):
        step_TV = rng.normal(size=form_TV.shape)
        assert loss(form_TV + 0.3 * step_TV * np.abs(form_TV).mean(), *data) > best


def test_missing_choices_do_not_change_the_form() -> None:
    said_NCT, shown_NV, label_N, valid_NC = questions(20, 3)
    valid_NC[np.arange(20), (label_N + 1) % 3] = False
    negative_NN = ~np.eye(20, dtype=np.bool_)
    forms = []
    for filling in (0.0, 1.0):
        said_NCT[~valid_NC] = filling
        forms.append(fit_contrastive_form(said_NCT, shown_NV, label_N, valid_NC=valid_NC, negative_NN=negative_NN))
    np.testing.assert_array_equal(forms[0], forms[1])


def test_negatives_of_other_pictures_improve_the_form() -> None:
    said_NCT, shown_NV, label_N, valid_NC = questions(15, 3)
    asked_NCT, pictures_NV, right_N, _ = questions(400, 3, seed=3)
    shares = []
    for negative_NN in (np.zeros((15, 15), np.bool_), ~np.eye(15, dtype=np.bool_)):
        form_TV = fit_contrastive_form(said_NCT, shown_NV, label_N, valid_NC=valid_NC, negative_NN=negative_NN)
        chosen_N = np.einsum("nct,tv,nv->nc", asked_NCT, form_TV, pictures_NV).argmax(axis=1)
        shares.append(float((chosen_N == right_N).mean()))
    assert shares[1] > shares[0] + 0.02 > 0.5
