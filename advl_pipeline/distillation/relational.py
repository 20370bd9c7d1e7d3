"""Relations instead of coordinates: the student's similarities among words, or regions, follow the teacher's.

docs/method.md, second reading: p_ij = softmax_j(cos(t_i, t_j) / tau), q_ij = softmax_j(cos(h_i, h_j) / tau), with
centred vectors and without i = j; L_rel = mean_i KL(p_i || q_i). Relations need the items of all processes that share
a batch, and the loss code gathers them. The approach is known: Park et al. 2019, Tung and Mori 2019, affinity
mimicking in TinyCLIP and CLIP-KD.

With landmarks, i runs over the words that pretraining did not teach. They are placed by known words, not by other
unknown words. p_ik = softmax_k(cos(t_i, T_k) / tau), q_ik = softmax_k(cos(h_i, H_k) / tau), with k over all known
words of the inputs. T_k is the mean of the teacher's features of word k, and H_k the mean of the student's pretrained
states of it; L = mean_i KL(p_i || q_i). For regions, T_k and H_k are means over the regions that the student clearly
names by word k. The anchor preserves what is known; it is not distilled. A linear map learned from the few words that
a student knows does not generalise to the others; similarities to the known words do.
Shapes: K landmarks, X nodes (words, texts or regions), B examples, N sequences, S regions, W words, H student width,
D teacher width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch.nn import functional

from advl_pipeline.base.errors import ConfigError
from advl_pipeline.distillation.pooling import image_state, masked_mean, pool_to_regions
from advl_pipeline.distillation.settings import VisionTarget
from advl_pipeline.distillation.signal import Nodes, TextSignal, VisionSignal, WordAlignment
from advl_pipeline.distillation.weighting import min_max_scale
from advl_pipeline.students.interface import StudentBatch, StudentOutput

Gather = Callable[..., tuple[torch.Tensor, ...]]
"""Given tensors with the same number of rows, returns the rows of all processes that share a batch, in order.

Gradients go to the process of each row, summed over the processes. The number of rows may differ between processes;
the other axes and the dtypes are equal.
"""


def gather_alone(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the rows of a single process: its own."""
    return values


TEMPERATURE = 0.1
"""Temperature of the similarity distributions of student and teacher."""

KNOWN = 0.5
"""A word with at least this score counts as known: pretraining saw it about `KnownWords.half` times or more."""

MIN_LANDMARKS = 4
"""Minimum number of landmarks; similarities to fewer carry almost no information."""

CLEAR_SHARE = 0.5
"""Share of the regions that count as known: those whose best name has the largest margin over the next."""

_MIN_REGIONS = 2
"""Minimum regions of a name that serves as a landmark; a single region resembles its picture."""


@dataclass(frozen=True, kw_only=True)
class Landmarks:
    """Known words or regions: student states (K, H), teacher features (K, D), the mean (D,) of all the latter."""

    states_KH: torch.Tensor
    features_KD: torch.Tensor
    mean_D: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class RegionLandmarks(Landmarks):
    """Landmarks that are means over regions, the words (N, H) that name them, and the margin of a clear name."""

    names_NH: torch.Tensor
    margin: float

    def known(self, states_BSH: torch.Tensor) -> torch.Tensor:
        """Return (B, S) bool: which regions the student names clearly."""
        return _best_names(states_BSH, self.names_NH)[0] >= self.margin


def region_landmarks(
    states_XH: torch.Tensor, features_XD: torch.Tensor, names_NH: torch.Tensor
) -> RegionLandmarks | None:
    """Return the names that regions have as landmarks; None if there are too few.

    Args:
        states_XH: the pretrained student's states of regions of the inputs.
        features_XD: a teacher's features of the same regions.
        names_NH: the student's states of known words.
    """
    if not len(states_XH):
        return None
    lead_X, name_X = _best_names(states_XH, names_NH)
    margin = float(lead_X.quantile(1 - CLEAR_SHARE))
    sums = LandmarkSums()
    sums.add(states_XH, features_XD, name_X, lead_X >= margin)
    if (named := sums.landmarks(fewest=_MIN_REGIONS)) is None:
        return None
    return RegionLandmarks(**vars(named), names_NH=names_NH, margin=margin)


def _best_names(states_XH: torch.Tensor, names_NH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return, for each region, the margin of the best name over the next in cosine, and the best name's index."""
    best = _cosines(states_XH.float(), names_NH).topk(2, dim=-1)
    return best.values[..., 0] - best.values[..., 1], best.indices[..., 0]


class GroupSums:
    """Sums of rows by group over batches: group -> (Y,) float64.

    The sums are in double precision so that their order does not matter, and on the host because some devices have no
    double precision.
    """

    def __init__(self) -> None:
        self.of_group: dict[int, torch.Tensor] = {}

    def add(self, rows_XY: torch.Tensor, group_X: torch.Tensor) -> None:
        """Add the rows of a batch, each to its group (int64)."""
        rows_XY = rows_XY.cpu().double()
        groups_G, place_X = torch.unique(group_X.cpu(), return_inverse=True)
        sums_GY = rows_XY.new_zeros(len(groups_G), rows_XY.shape[1]).index_add_(0, place_X, rows_XY)
        for group, sums_Y in zip(groups_G.tolist(), sums_GY, strict=True):
            self.of_group[group] = self.of_group.get(group, 0.0) + sums_Y


class LandmarkSums:
    """Accumulator of `Landmarks` over batches."""

    def __init__(self) -> None:
        self._sums = GroupSums()
        self._of_all: torch.Tensor | float = 0.0

    def add(
        self, states_XH: torch.Tensor, features_XD: torch.Tensor, group_X: torch.Tensor, known_X: torch.Tensor
    ) -> None:
        """Add the words, or regions, of a batch.

        Args:
            states_XH: states of the pretrained student.
            group_X: int64, the word of each occurrence, or the name of each region.
            known_X: bool, nodes whose means are landmarks; the others count only in the common mean.
        """
        self._device, self._widths = states_XH.device, [1, states_XH.shape[1], features_XD.shape[1]]
        rows_XY = torch.cat([torch.ones_like(states_XH[:, :1]), states_XH, features_XD], 1).cpu().double()
        self._of_all = self._of_all + rows_XY.sum(0)
        known_X = known_X.cpu()
        self._sums.add(rows_XY[known_X], group_X.cpu()[known_X])

    def landmarks(self, *, fewest: int = 1) -> Landmarks | None:
        """Return the means in the order of the groups; None if there are too few.

        Args:
            fewest: minimum members of a group that is a landmark.
        """
        kept = [sums_Y for _, sums_Y in sorted(self._sums.of_group.items()) if sums_Y[0] >= fewest]
        if len(kept) < MIN_LANDMARKS:
            return None
        assert isinstance(self._of_all, torch.Tensor)
        rows_KY = torch.stack([*kept, self._of_all])
        _, states_KH, features_KD = torch.split((rows_KY / rows_KY[:, :1]).float().to(self._device), self._widths, 1)
        return Landmarks(states_KH=states_KH[:-1], features_KD=features_KD[:-1], mean_D=features_KD[-1])


def landmark_divergence(states_XH: torch.Tensor, features_XD: torch.Tensor, landmarks: Landmarks) -> torch.Tensor:
    """Return (X,): the divergence of the student's similarities to the landmarks from the teacher's, in nats.

    The student's states and landmarks are centred on the mean of its landmarks, and so are the teacher's landmarks.
    The teacher's nodes are centred on the mean of all its words. A common component says nothing of a single node.
    """
    centre_H = landmarks.states_KH.mean(0)
    of_student_XK = _cosines(states_XH.float() - centre_H, landmarks.states_KH - centre_H) / TEMPERATURE
    of_teacher_XK = teacher_similarity(features_XD, landmarks) / TEMPERATURE
    log_p_XK, log_q_XK = of_teacher_XK.log_softmax(-1), of_student_XK.log_softmax(-1)
    return (log_p_XK.exp() * (log_p_XK - log_q_XK)).sum(-1)


def teacher_similarity(features_XD: torch.Tensor, landmarks: Landmarks) -> torch.Tensor:
    """Return (X, K) cosines of a teacher's features to its landmarks, centred as in `landmark_divergence`."""
    centred_XD = features_XD.detach().float() - landmarks.mean_D
    return _cosines(centred_XD, landmarks.features_KD - landmarks.features_KD.mean(0))


def students_names(states_XH: torch.Tensor, landmarks: Landmarks) -> torch.Tensor:
    """Return (X, K) cosines of the student's states of regions to its states of known words, which pretraining
    aligned."""
    return _cosines(states_XH.float(), landmarks.states_KH)


def landmark_words(words: WordAlignment) -> torch.Tensor:
    """Return (N, W) bool: the words that pretraining taught, by which others are placed."""
    return (words.known_NW >= KNOWN) & ~words.held_NW


def unplaced_words(node_NW: torch.Tensor, words: WordAlignment) -> torch.Tensor:
    """Return (N, W) bool: the words that a teacher places, of those that both sides have.

    Known words already have their place, and frequent ones belong to the wording of the task.
    """
    return node_NW & (words.known_NW < KNOWN) & ~words.frequent_NW


def mean_of_words(values_NWX: torch.Tensor, unplaced_NW: torch.Tensor, nodes: Nodes | None = None) -> torch.Tensor:
    """Return (T, X): the mean over the unplaced words of each of the T texts that have any, in order.

    Args:
        nodes: of `unplaced_NW` [default: computed].
    """
    row_T = (nodes or Nodes.of_mask(unplaced_NW)).row_Y
    unplaced_TW = unplaced_NW.index_select(0, row_T)
    share_TW = unplaced_TW / unplaced_TW.sum(1, keepdim=True)
    return torch.einsum("tw,twx->tx", share_TW, values_NWX.index_select(0, row_T))


def _cosines(states_XH: torch.Tensor, others_KH: torch.Tensor) -> torch.Tensor:
    # In bf16, rounding of similarities over a small temperature would exceed the differences between words.
    with torch.autocast(states_XH.device.type, enabled=False):
        return functional.normalize(states_XH, dim=-1) @ functional.normalize(others_KH, dim=-1).T


def compared_words(words: WordAlignment, word_mask_NW: torch.Tensor) -> tuple[Nodes, Nodes, int]:
    """Return the words of which a teacher and the student have states: `TextSignal.meant`, `unplaced`, `num_forms`.

    Args:
        word_mask_NW: bool, the teacher's words.
    """
    meant_NW = words.word_mask_NW & (words.prior_NW > 0) & word_mask_NW
    num_forms = len(torch.unique(words.form_NW[meant_NW]))
    return Nodes.of_mask(meant_NW), Nodes.of_mask(unplaced_words(meant_NW, words)), num_forms


MAX_RELATED = 1024
"""Maximum regions of a batch that are related; a batch of pictures has thousands of patches."""

MOST_REGIONS = 1 << 16
"""More than any picture has, so that a region's number and its picture's id combine into one number."""


def some_of(place_X: torch.Tensor, most: int, generator: torch.Generator | None) -> torch.Tensor:
    """Return at most `most` places in order, drawn at random."""
    if len(place_X) <= most:
        return place_X
    kept_X = torch.randperm(len(place_X), generator=generator)[:most].sort().values
    return place_X.index_select(0, kept_X.to(place_X.device, non_blocking=True))


def log_similarities(states_XH: torch.Tensor, others_YH: torch.Tensor, left_out_XY: torch.Tensor) -> torch.Tensor:
    """Return (X, Y): log of each node's similarity distribution over the others, about -1e38 where left out.

    Args:
        states_XH: vectors of the nodes; only their directions from the mean of the others count.
        others_YH: vectors of all nodes of the batch.
        left_out_XY: bool, pairs that are not compared; they must include each node with itself. A row without
            compared pairs is uniform.
    """
    mean_H = others_YH.float().mean(0)
    centred_XH, centred_YH = (
        functional.normalize(values.float() - mean_H, dim=-1) for values in (states_XH, others_YH)
    )
    # In bf16, rounding of similarities over a small temperature would exceed the differences between nodes.
    with torch.autocast(states_XH.device.type, enabled=False):
        cosine_XY = centred_XH / TEMPERATURE @ centred_YH.T
    # The lowest finite value instead of -inf: a row without compared pairs stays finite.
    return cosine_XY.masked_fill_(left_out_XY, torch.finfo(torch.float32).min).log_softmax(1)


def relational_divergence(
    student_XH: torch.Tensor,
    teacher_XD: torch.Tensor,
    group_X: torch.Tensor,
    *,
    gather: Gather = gather_alone,
) -> torch.Tensor:
    """Return, for each node, the divergence of the student's similarities from the teacher's, in nats.

    Args:
        group_X: int64; nodes of one group, such as two occurrences of one word, are not compared, because they are
            similar regardless of knowledge.
        gather: collects tensors from the processes that share the batch.

    A node without compared nodes has divergence 0.
    """

    teacher_XD = teacher_XD.detach()
    group_Y, teacher_YD, student_YH = gather(group_X, teacher_XD, student_XH)
    left_out_XY = group_X[:, None] == group_Y[None, :]
    log_p_XY = log_similarities(teacher_XD, teacher_YD, left_out_XY)
    log_q_XY = log_similarities(student_XH, student_YH, left_out_XY)
    return (log_p_XY.exp() * (log_p_XY - log_q_XY)).sum(1)


@dataclass(frozen=True, kw_only=True)
class Relations:
    """Divergences of the student's similarities from a teacher's, to landmarks if given, else among the batch.

    `gather` collects tensors from the processes that share the batch. `generator` draws regions if they are too many.
    """

    gather: Gather = gather_alone
    generator: torch.Generator | None = None

    def of_nodes(
        self, states_XH: torch.Tensor, features_XD: torch.Tensor, group_X: torch.Tensor, landmarks: Landmarks | None
    ) -> torch.Tensor:
        """Return (X,): the divergence of each node; nodes of one group are not compared with each other."""
        if landmarks is not None:
            return landmark_divergence(states_XH, features_XD, landmarks)
        return relational_divergence(states_XH, features_XD, group_X, gather=self.gather)

    def of_pictures(
        self,
        target: VisionTarget,
        distilled: StudentOutput,
        batch: StudentBatch,
        part: VisionSignal,
        image_ids_B: torch.Tensor,
        *,
        landmarks: Landmarks | None,
        known_BS: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return (B,): the divergence of each picture's regions, and of the picture itself.

        Known regions are not nodes. A picture is represented by the states of its first sequence; below the fusion
        they are the same in all of its sequences. At most `MAX_RELATED` regions are drawn, because every region is
        compared with every other.
        """
        loss_B = torch.zeros(len(image_ids_B), device=image_ids_B.device)
        if target in ("regions", "both") and part.regions_BSD is not None:
            num_regions = part.regions_BSD.shape[1]
            states_BRH = distilled.visual_states_NRH.index_select(0, batch.first_B)
            regions_BSH = pool_to_regions(states_BRH, part.shares_BSR)
            node_BS = part.shared_BS
            nodes = part.seen or Nodes.of_mask(node_BS)
            if landmarks is not None:
                assert known_BS is not None
                node_BS = node_BS & ~known_BS
            else:
                nodes = replace(nodes, place_X=some_of(nodes.place_X, MAX_RELATED, self.generator))
                node_BS = torch.zeros_like(node_BS).flatten().index_fill(0, nodes.place_X, True).view_as(node_BS)
            group_BS = image_ids_B[:, None] * MOST_REGIONS + torch.arange(num_regions, device=image_ids_B.device)
            states_XH, features_XD = nodes.take(regions_BSH), nodes.take(part.regions_BSD)
            each_X = self.of_nodes(states_XH, features_XD, nodes.take(group_BS), landmarks)
            loss_B = loss_B + masked_mean(nodes.spread(each_X, node_BS.shape), node_BS)
        if target in ("image", "both"):
            image_BH = image_state(distilled, batch).index_select(0, batch.first_B)
            loss_B = loss_B + self.of_nodes(image_BH, part.global_BD, image_ids_B, None)
        return loss_B

    def require_partners(self, nodes: Nodes, words: WordAlignment, name: str, num_forms: int) -> None:
        """Refuse a batch whose words cannot be related.

        Args:
            num_forms: the number of words of this process that are known to differ.

        Raises:
            ConfigError: a training batch has fewer than two. An evaluation batch may be one short text.
        """
        (forms_X,) = self.gather(nodes.take(words.form_NW))
        if torch.is_grad_enabled() and num_forms < 2 and len(set(forms_X.tolist())) < 2:
            raise ConfigError(
                "The relational distance needs two different content words in each batch, and this one has fewer.",
                where=name,
                next_command="--batch-size with more examples to a micro-batch, or --distance mse",
            )

    def of_words(
        self,
        words_NWH: torch.Tensor,
        part: TextSignal,
        node_NW: torch.Tensor,
        nodes: Nodes,
        words: WordAlignment,
        landmarks: Landmarks | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the divergence (N, W) of each word and (N,) of each text; 0 where there are no nodes.

        A text is represented by the mean of its words, because words together can distinguish what a single one
        cannot. Without landmarks, words are weighted by their information, and texts of the same words are not
        compared.

        Args:
            nodes: of `node_NW`, words with a meaning that both sides have.
        """
        assert part.words_NWD is not None
        states_XH, features_XD = nodes.take(words_NWH), nodes.take(part.words_NWD)
        each_X = self.of_nodes(states_XH, features_XD, nodes.take(words.form_NW), landmarks)
        if landmarks is not None:
            states_TH, features_TD = (mean_of_words(values, node_NW, nodes) for values in (words_NWH, part.words_NWD))
            group_T = nodes.row_Y
        else:
            weight_NW = min_max_scale(words.prior_NW, node_NW)
            weight_NW = torch.where((weight_NW > 0).any(1, keepdim=True), weight_NW, node_NW.to(weight_NW.dtype))
            weight_NW = weight_NW / weight_NW.sum(1, keepdim=True).clamp(min=1e-6)
            states_TH, features_TD = (
                torch.einsum("nw,nwd->nd", weight_NW, values).index_select(0, nodes.row_Y)
                for values in (words_NWH, part.words_NWD)
            )
            group_T = torch.where(node_NW, words.form_NW, 0).sum(1).index_select(0, nodes.row_Y)
        each_T = self.of_nodes(states_TH, features_TD, group_T, landmarks)
        each_N = each_T.new_zeros(len(node_NW)).index_copy(0, nodes.row_Y, each_T)
        return nodes.spread(each_X, node_NW.shape), each_N
