"""Familiarity: which words a student's pretraining taught, read off the student's states, without labels.

A student can name what it sees by the words that pretraining grounded: their states lie where visual states lie.
The score of word k is the mean over its `NUM_NEAREST` best visual tokens v of cos(k, v) - r(v), with states of one
modality each. r(v) is the mean of the `NUM_RIVALS` largest cosines of v with words: a visual token that is near to
many words says little about any of them (the correction for hubs of Conneau et al. 2018, "Word translation without
parallel data", on the visual side). A mixture of two normals divides the scores, and P(k) is the probability of the
upper one. Landmarks have P >= 0.5, moved words P < 0.03, and the words in between are held: a known word that is
moved costs more than an unknown one that is not.

The division is trusted only if the student finds its landmarks in pictures: on average over their occurrences, their
states are nearer to their own picture than to another one.
Shapes: N sequences, W words of a sequence, R visual tokens of a picture, H student width, F words by spelling, V
visual tokens of all pictures.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import stdtr
from torch.nn import functional

from advl_pipeline.datasets.words import WordClass
from advl_pipeline.distillation.relational import MIN_LANDMARKS

MIN_WORDS = 40
"""Minimum number of words to divide; two normals have five parameters."""

NUM_NEAREST = 4
"""Number of visual tokens that a word is compared with."""

NUM_RIVALS = 10
"""Number of words that a visual token is nearest to, as in the source of the correction."""

LANDMARK_FROM = 0.5
"""Words that are known with at least this probability are landmarks."""

MOVED_BELOW = 0.03
"""Words that are known with a smaller probability are moved."""

SIGNIFICANCE = 1e-3
"""Largest p at which own pictures count as nearer than others."""

_NUM_ROUNDS = 1000
_TOLERANCE = 1e-8


def peak_cosines(states_NWH: torch.Tensor, visual_NRH: torch.Tensor, mask_NR: torch.Tensor) -> torch.Tensor:
    """Return (N, W) float32: the largest cosine of each word's state and a visual state; -1 without visual tokens.

    Args:
        mask_NR: bool, the visual tokens that exist.
    """
    # In bf16, rounding would exceed the differences between words.
    with torch.autocast(states_NWH.device.type, enabled=False):
        words_NWH = functional.normalize(states_NWH.float(), dim=-1)
        visual_NRH = functional.normalize(visual_NRH.float(), dim=-1)
        cosine_NWR = words_NWH @ visual_NRH.transpose(1, 2)
    cosine_NWR = cosine_NWR.masked_fill(~mask_NR[:, None, :], -1.0)
    return cosine_NWR.amax(-1) if cosine_NWR.shape[-1] else cosine_NWR.new_full(cosine_NWR.shape[:2], -1.0)


@dataclass(frozen=True, kw_only=True)
class Familiarity:
    """What a student's states say about words.

    Attributes:
        score_F: float64, see above.
        known_F: float64, the probability that pretraining taught the word; None if the scores do not tell.
        why: the reason that they do not tell, or an empty string.
    """

    score_F: npt.NDArray[np.float64]
    known_F: npt.NDArray[np.float64] | None = None
    why: str = ""

    def classes(self) -> list[WordClass]:
        """Return the class of each word; all are held if the scores do not tell."""
        if self.known_F is None:
            return ["held"] * len(self.score_F)
        return [
            "landmark" if known >= LANDMARK_FROM else "moved" if known < MOVED_BELOW else "held"
            for known in self.known_F
        ]


def familiarity(states_FH: torch.Tensor, visual_VH: torch.Tensor, nearer_F: npt.NDArray[np.floating]) -> Familiarity:
    """Return the familiarity of words.

    Args:
        states_FH: mean state of each word over its occurrences.
        visual_VH: states of visual tokens of the inputs.
        nearer_F: `peak_cosines` with the word's own picture, less that with another one; mean over its occurrences.
    """
    score_F = nearness(states_FH, visual_VH)

    def untold(why: str) -> Familiarity:
        return Familiarity(score_F=score_F, why=why)

    if len(score_F) < MIN_WORDS:
        return untold(f"the inputs have {len(score_F)} words with a meaning, and {MIN_WORDS} are needed to tell")
    if np.ptp(score_F) < _TOLERANCE:
        return untold("its states of all words are equally near to those of pictures")
    known_F = upper_of_two_normals(score_F)
    is_landmark_F = known_F >= LANDMARK_FROM
    if is_landmark_F.sum() < MIN_LANDMARKS or not (known_F < MOVED_BELOW).any():
        return untold("its states of words do not fall into near and distant ones from those of pictures")
    if not p_above_zero(nearer_F[is_landmark_F]) < SIGNIFICANCE:
        return untold("its states of words are no nearer to their own pictures than to others")
    return Familiarity(score_F=score_F, known_F=known_F)


def p_above_zero(value_X: npt.NDArray[np.floating]) -> float:
    """Return the one-sided p of Student's t that the mean of values is not above 0; 1 if they are all equal."""
    error = value_X.std(ddof=1) / np.sqrt(len(value_X))
    return float(stdtr(len(value_X) - 1, -value_X.mean() / error)) if error > 0 else 1.0


def nearness(states_FH: torch.Tensor, visual_VH: torch.Tensor) -> npt.NDArray[np.float64]:
    """Return (F,) the score of each word, see above; zeros without visual tokens."""
    if not len(visual_VH):
        return np.zeros(len(states_FH))
    cosine_FV = functional.normalize(states_FH.float(), dim=-1) @ functional.normalize(visual_VH.float(), dim=-1).T
    rivals_XV = cosine_FV.topk(min(NUM_RIVALS, cosine_FV.shape[0]), dim=0).values
    nearest_FX = (cosine_FV - rivals_XV.mean(0)).topk(min(NUM_NEAREST, cosine_FV.shape[1]), dim=1).values
    return nearest_FX.double().mean(1).cpu().numpy()


def upper_of_two_normals(value_F: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Return (F,): the probability of the upper of two normals that are fitted to the values, never falling.

    Expectation maximisation from fixed values, so that equal inputs give equal results. Tails of the wider normal
    belong to the side on which they lie.
    """
    x_F = (value_F - value_F.mean()) / value_F.std()
    mean_2 = np.quantile(x_F, [0.3, 0.95])
    deviation_2 = np.ones(2)
    weight_2 = np.array([0.85, 0.15])
    upper_F = np.zeros_like(x_F, dtype=np.float64)
    for _ in range(_NUM_ROUNDS):
        before_F = upper_F
        log_F2 = np.log(weight_2 / deviation_2) - ((x_F[:, None] - mean_2) / deviation_2) ** 2 / 2
        share_F2 = np.exp(log_F2 - np.logaddexp.reduce(log_F2, axis=1, keepdims=True))
        upper_F = share_F2[:, 1]
        total_2 = share_F2.sum(0).clip(min=1e-9)
        weight_2 = total_2 / len(x_F)
        mean_2 = (share_F2 * x_F[:, None]).sum(0) / total_2
        variance_2 = (share_F2 * (x_F[:, None] - mean_2) ** 2).sum(0) / total_2
        # A normal of a single value would have no width.
        deviation_2 = np.sqrt(variance_2).clip(min=0.02)
        if np.abs(upper_F - before_F).max() < _TOLERANCE:
            break
    order_F = np.argsort(x_F, kind="stable")
    rising_F = np.maximum.accumulate(np.where(x_F < mean_2[0], 0.0, upper_F)[order_F])
    result_F = np.empty_like(rising_F)
    result_F[order_F] = rising_F
    return result_F
