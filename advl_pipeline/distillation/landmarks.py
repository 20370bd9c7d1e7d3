"""Landmarks: what pretraining taught, by which a teacher's likenesses place what it did not teach.

docs/method.md, second reading: p_ik = softmax_k(cos(t_i, T_k) / tau_T), q_ik = softmax_k(cos(h_i, H_k) / tau_S),
with k over all known words of the inputs, T_k the mean of the teacher's features of word k and H_k that of the
student's states as pretraining left them; L = mean_i KL(p_i || q_i). Of regions, T_k and H_k are means over those
that the student clearly names by word k. What is known is held by the anchor and not distilled.
Shapes: K landmarks, X nodes (words, texts or regions), N sequences, W words, B examples, S regions, H student
width, D teacher width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from advl_pipeline.distillation.signal import Nodes, WordAlignment, WordNodes

KNOWN = 0.5
"""A word counts as known when pretraining saw it about as often as `KnownWords.half`, or more."""

MIN_LANDMARKS = 4
"""With fewer, a place among them says next to nothing."""

CLEAR_SHARE = 0.5
"""Share of the regions that count as known: those whose best name is furthest ahead of the next."""

_MIN_REGIONS = 2
"""Of a name, before it is a landmark: what looks like one region alone looks like its picture."""


@dataclass(frozen=True, kw_only=True)
class Landmarks:
    """What is known: the student's states (K, H), a teacher's features (K, D), the mean (D,) of all its features."""

    states_KH: torch.Tensor
    features_KD: torch.Tensor
    mean_D: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class RegionLandmarks(Landmarks):
    """Landmarks that are means over regions, the words (N, H) that name these, and by how much a clear name leads."""

    names_NH: torch.Tensor
    margin: float

    def known(self, states_BSH: torch.Tensor) -> torch.Tensor:
        """Return (B, S) bool: which regions the student names clearly."""
        return _best_names(states_BSH, self.names_NH)[0] >= self.margin


def region_landmarks(
    states_XH: torch.Tensor, features_XD: torch.Tensor, names_NH: torch.Tensor
) -> RegionLandmarks | None:
    """Return the names that regions have as landmarks; None where there are too few.

    Args:
        states_XH: the student's, of regions of the inputs, as it was pretrained.
        features_XD: the same regions as a teacher sees them.
        names_NH: the student's states of known words.
    """
    if not len(states_XH):
        return None
    lead_X, name_X = _best_names(states_XH, names_NH)
    margin = float(lead_X.quantile(1 - CLEAR_SHARE))
    clear_X = lead_X >= margin
    counts_N = torch.bincount(name_X[clear_X], minlength=len(names_NH))
    kept_N = counts_N >= _MIN_REGIONS
    if int(kept_N.sum()) < MIN_LANDMARKS:
        return None
    device = states_XH.device
    name_X, clear_X, counts_N, kept_N = (values.cpu() for values in (name_X, clear_X, counts_N, kept_N))
    # On the host, since some devices have no double precision.
    states_KH, features_KD = (
        torch.zeros(len(names_NH), values.shape[1], dtype=torch.float64).index_add_(
            0, name_X[clear_X], values.cpu()[clear_X].double()
        )[kept_N]
        / counts_N[kept_N, None]
        for values in (states_XH, features_XD)
    )
    return RegionLandmarks(
        states_KH=states_KH.float().to(device),
        features_KD=features_KD.float().to(device),
        mean_D=features_XD.cpu().double().mean(0).float().to(device),
        names_NH=names_NH,
        margin=margin,
    )


def _best_names(states_XH: torch.Tensor, names_NH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return, of each region, how far the best name is ahead of the next in cosine, and which it is."""
    best = _cosines(states_XH.float(), names_NH).topk(2, dim=-1)
    return best.values[..., 0] - best.values[..., 1], best.indices[..., 0]


class LandmarkSums:
    """Gathers `Landmarks` over batches: sums by word, in double precision so that their order does not matter.

    They are kept on the host, since some devices have no double precision.
    """

    def __init__(self) -> None:
        self._device = torch.device("cpu")
        self._of_word: dict[int, tuple[torch.Tensor, torch.Tensor, int]] = {}
        self._all: torch.Tensor | float = 0.0
        self._num_all = 0

    def add(
        self, states_NWH: torch.Tensor, features_NWD: torch.Tensor, node_NW: torch.Tensor, words: WordAlignment
    ) -> None:
        """Add the words of a batch.

        Args:
            states_NWH: the student's, as it was pretrained.
            node_NW: bool, words with a meaning that both sides have.
            words: which of them pretraining knew.
        """
        self._device = states_NWH.device
        known_NW = (node_NW & (words.known_NW >= KNOWN)).cpu()
        states_NWH, features_NWD, node_NW = states_NWH.cpu(), features_NWD.cpu(), node_NW.cpu()
        self._all = self._all + features_NWD[node_NW].double().sum(0)
        self._num_all += int(node_NW.sum())
        forms_G, place_X = torch.unique(words.form_NW.cpu()[known_NW], return_inverse=True)
        sums = [
            torch.zeros(len(forms_G), values.shape[-1], dtype=torch.float64).index_add_(
                0, place_X, values[known_NW].double()
            )
            for values in (states_NWH, features_NWD)
        ]
        counts_G = torch.bincount(place_X, minlength=len(forms_G))
        for row, form in enumerate(forms_G.tolist()):
            state, feature, count = self._of_word.get(form, (0.0, 0.0, 0))
            self._of_word[form] = (sums[0][row] + state, sums[1][row] + feature, int(counts_G[row]) + count)

    def landmarks(self) -> Landmarks | None:
        """Return them in the order of the words' numbers; None where there are too few."""
        if len(self._of_word) < MIN_LANDMARKS:
            return None
        rows = [self._of_word[form] for form in sorted(self._of_word)]
        assert isinstance(self._all, torch.Tensor)
        return Landmarks(
            states_KH=torch.stack([state / count for state, _, count in rows]).float().to(self._device),
            features_KD=torch.stack([feature / count for _, feature, count in rows]).float().to(self._device),
            mean_D=(self._all / self._num_all).float().to(self._device),
        )


def landmark_divergence(
    states_XH: torch.Tensor,
    features_XD: torch.Tensor,
    landmarks: Landmarks,
    *,
    student_temperature: float,
    teacher_temperature: float,
) -> torch.Tensor:
    """Return (X,): how far the student's likenesses of each node to the landmarks are from the teacher's, in nats.

    States are centred on the mean of the landmarks, so are the teacher's landmarks, and its nodes on the mean of all
    its words: what all have in common says nothing of one.
    """
    centre_H = landmarks.states_KH.mean(0)
    of_student_XK = _cosines(states_XH.float() - centre_H, landmarks.states_KH - centre_H) / student_temperature
    of_teacher_XK = teachers_likeness(features_XD, landmarks) / teacher_temperature
    log_p_XK, log_q_XK = of_teacher_XK.log_softmax(-1), of_student_XK.log_softmax(-1)
    return (log_p_XK.exp() * (log_p_XK - log_q_XK)).sum(-1)


def teachers_likeness(features_XD: torch.Tensor, landmarks: Landmarks) -> torch.Tensor:
    """Return (X, K) cosines of a teacher's features to its landmarks, both centred as `landmark_divergence` says."""
    centred_XD = features_XD.detach().float() - landmarks.mean_D
    return _cosines(centred_XD, landmarks.features_KD - landmarks.features_KD.mean(0))


def students_names(states_XH: torch.Tensor, landmarks: Landmarks) -> torch.Tensor:
    """Return (X, K) cosines of the student's states of regions to its states of known words, as pretraining aligns
    the two."""
    return _cosines(states_XH.float(), landmarks.states_KH)


def unplaced_words(node_NW: torch.Tensor, words: WordAlignment) -> torch.Tensor:
    """Return (N, W) bool: the words that a teacher places, of those that both sides have.

    Known ones have their place, and frequent ones are part of how the task asks.
    """
    return node_NW & (words.known_NW < KNOWN) & ~words.frequent_NW


def mean_of_words(values_NWX: torch.Tensor, unplaced_NW: torch.Tensor, nodes: Nodes | None = None) -> torch.Tensor:
    """Return (T, X): the mean over the unplaced words of each of the T texts that have any, in order.

    Args:
        nodes: of `unplaced_NW` [default: they are found].
    """
    row_T = (nodes or Nodes.of(unplaced_NW)).row_Y
    unplaced_TW = unplaced_NW.index_select(0, row_T)
    share_TW = unplaced_TW / unplaced_TW.sum(1, keepdim=True)
    return torch.einsum("tw,twx->tx", share_TW, values_NWX.index_select(0, row_T))


def _cosines(states_XH: torch.Tensor, others_KH: torch.Tensor) -> torch.Tensor:
    # In bf16, likenesses over a small temperature would be rounded to steps larger than what tells words apart.
    with torch.autocast(states_XH.device.type, enabled=False):
        return functional.normalize(states_XH, dim=-1) @ functional.normalize(others_KH, dim=-1).T


def seen_regions(region_mask_BS: torch.Tensor, shares_BSR: torch.Tensor | None) -> Nodes:
    """Return the regions that have a target and that the student sees; arguments as in `VisionSignal`."""
    return Nodes.of(region_mask_BS if shares_BSR is None else region_mask_BS & shares_BSR.any(2))


def compared_words(words: WordAlignment, word_mask_NW: torch.Tensor | None) -> WordNodes:
    """Return the words of which a teacher and the student have states.

    Args:
        word_mask_NW: bool, those of the teacher; None for all.
    """
    num_texts, num_words = words.prior_NW.shape
    bucket_NL = torch.where(words.word_of_token_NL >= 0, words.word_of_token_NL, num_words)
    has_token_NW = torch.zeros(num_texts, num_words + 1, dtype=torch.bool).scatter_(1, bucket_NL, True)[:, :num_words]
    meant_NW = words.word_mask_NW & has_token_NW & (words.prior_NW > 0)
    if word_mask_NW is not None:
        meant_NW = meant_NW & word_mask_NW
    return WordNodes(
        meant=Nodes.of(meant_NW),
        num_forms=len(torch.unique(words.form_NW[meant_NW])),
        unplaced=Nodes.of(unplaced_words(meant_NW, words)),
    )
