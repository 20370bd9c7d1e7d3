"""The bilinear form of text and picture that labelled choices determine best.

A question's right text has to win against its other choices and against the right texts of questions about other
pictures, its negatives, as in contrastive pretraining (InfoNCE, van den Oord et al. 2018, arXiv:1807.03748). N
labels then give some N x N comparisons. The fit is a logistic regression whose features are all products of a
coordinate of the text and one of the picture. It is convex, so the result depends on no seed and no number of steps.

Shapes: N questions, C choices, X choices and texts of other questions, T and V widths of text and picture.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from advl_pipeline.base.logistic import FloatArray, minimised, of_classes

PENALTY: Final = 3e-4
"""L2 penalty. A third and three times of it differ by less than two points on photographs and captions."""


def fit_contrastive_form(
    said_NCT: FloatArray,
    shown_NV: FloatArray,
    label_N: npt.NDArray[np.int64],
    *,
    valid_NC: npt.NDArray[np.bool_],
    negative_NN: npt.NDArray[np.bool_],
) -> FloatArray:
    """Return the form (T, V) whose value for a text and a picture is their score.

    Args:
        said_NCT: vectors of the choices' texts, of norm 1.
        shown_NV: vectors of the pictures, of norm 1.
        label_N: the right choice.
        valid_NC: false for choices that a question lacks.
        negative_NN: whether the right text of the column's question is a negative of the row's question.
    """
    num_questions, num_choices, text_size = said_NCT.shape
    right_NT = said_NCT[np.arange(num_questions), label_N]
    likelihood = of_classes(label_N)

    def objective(parameters: FloatArray) -> tuple[float, FloatArray]:
        form_TV = parameters.reshape(text_size, -1)
        projected_NT = shown_NV @ form_TV.T
        own_NC = np.where(valid_NC, np.einsum("nct,nt->nc", said_NCT, projected_NT), -np.inf)
        other_NN = np.where(negative_NN, projected_NT @ right_NT.T, -np.inf)
        loss, residual_NX = likelihood(np.concatenate([own_NC, other_NN], axis=1))
        text_NT = np.einsum("nc,nct->nt", residual_NX[:, :num_choices], said_NCT)
        text_NT += residual_NX[:, num_choices:] @ right_NT
        gradient_TV = text_NT.T @ shown_NV / num_questions + PENALTY * form_TV
        return loss / num_questions + 0.5 * PENALTY * float((form_TV**2).sum()), gradient_TV.ravel()

    return minimised(objective, np.zeros(text_size * shown_NV.shape[1])).reshape(text_size, -1)
