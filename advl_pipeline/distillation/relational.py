"""Relations instead of coordinates: the student's likenesses among words, or regions, follow the teacher's.

docs/method.md, second reading: p_ij = softmax_j(cos(t_i, t_j) / tau_T), q_ij = softmax_j(cos(h_i, h_j) / tau_S),
vectors centred, i = j left out, L_rel = mean_i KL(p_i || q_i). With landmarks, j runs over the words that
pretraining taught and i over the others: they are placed by what is known, not by words that are lost themselves. A
linear map that is learned from the few words that a student knows does not carry to the others; likenesses to the
known words do. The family is known: Park et al. 2019, Tung and Mori 2019, affinity mimicking in TinyCLIP and
CLIP-KD.
Shapes: X nodes (words or regions of a batch), B examples, N sequences, S regions, W words, H student width, D
teacher width.

Relations need the items of all processes that share a batch: the loss code gathers them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import torch
from torch.nn import functional

from advl_pipeline.distillation.landmarks import Landmarks, landmark_divergence, mean_of_words
from advl_pipeline.distillation.pooling import image_state, masked_mean, pool_to_regions
from advl_pipeline.distillation.settings import DistillationSettings, VisionTarget
from advl_pipeline.distillation.signal import Nodes, TextSignal, VisionSignal, WordAlignment
from advl_pipeline.distillation.weighting import min_max_scale
from advl_pipeline.errors import ConfigError
from advl_pipeline.students.interface import StudentBatch, StudentOutput


class Gather(Protocol):
    """Gives the rows of all processes that share a batch, in order, with gradients to the process that each is of.

    Gradients of what the processes compute of them are added up. The rows may be of another number in each process;
    their other axes, and the type of the values, are alike.
    """

    def __call__(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the rows of each of several tensors, which have as many rows as one another."""
        ...


def gather_alone(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the rows of the one process that there is: its own."""
    return values


MAX_RELATED = 1024
"""Most regions of a batch that are related: patches of a batch of pictures are thousands."""

MOST_REGIONS = 1 << 16
"""More than any picture has: a region's number and its picture's id make one number."""


def some_of(place_X: torch.Tensor, most: int, generator: torch.Generator | None) -> torch.Tensor:
    """Return places in their order, at most so many, drawn at random."""
    if len(place_X) <= most:
        return place_X
    kept_X = torch.randperm(len(place_X), generator=generator)[:most].sort().values
    return place_X.index_select(0, kept_X.to(place_X.device, non_blocking=True))


def log_likenesses(
    states_XH: torch.Tensor, others_YH: torch.Tensor, left_out_XY: torch.Tensor, *, temperature: float
) -> torch.Tensor:
    """Return (X, Y): log of each node's distribution of likeness over the others, about -1e38 where left out.

    Args:
        states_XH: vectors of the nodes; only their directions from the mean of the others count.
        others_YH: vectors of all nodes of the batch.
        left_out_XY: bool, pairs that are not compared; a node with itself must be among them. A row with nothing left
            is like all alike.
        temperature: of the softmax over cosines.
    """
    mean_H = others_YH.float().mean(0)
    centred_XH, centred_YH = (
        functional.normalize(values.float() - mean_H, dim=-1) for values in (states_XH, others_YH)
    )
    # In bf16, likenesses over a small temperature would be rounded to steps larger than what tells nodes apart.
    with torch.autocast(states_XH.device.type, enabled=False):
        cosine_XY = centred_XH / temperature @ centred_YH.T
    # The lowest finite value instead of -inf: a row with nothing left stays finite.
    return cosine_XY.masked_fill_(left_out_XY, torch.finfo(torch.float32).min).log_softmax(1)


def relational_divergence(
    student_XH: torch.Tensor,
    teacher_XD: torch.Tensor,
    group_X: torch.Tensor,
    *,
    student_temperature: float,
    teacher_temperature: float,
    gather: Gather = gather_alone,
) -> torch.Tensor:
    """Return, of each node, how far the student's likenesses to the others are from the teacher's, in nats.

    Args:
        group_X: int64; nodes of one group, such as two occurrences of one word, are not compared: they are alike
            whatever anybody knows.
        student_temperature: tau_S.
        teacher_temperature: tau_T.
        gather: of the processes that share the batch.

    A node that is compared with nothing has divergence 0.
    """

    teacher_XD = teacher_XD.detach()
    group_Y, teacher_YD, student_YH = gather(group_X, teacher_XD, student_XH)
    left_out_XY = group_X[:, None] == group_Y[None, :]
    log_p_XY = log_likenesses(teacher_XD, teacher_YD, left_out_XY, temperature=teacher_temperature)
    log_q_XY = log_likenesses(student_XH, student_YH, left_out_XY, temperature=student_temperature)
    return (log_p_XY.exp() * (log_p_XY - log_q_XY)).sum(1)


def related_vision(
    settings: DistillationSettings,
    target: VisionTarget,
    distilled: StudentOutput,
    batch: StudentBatch,
    one: VisionSignal,
    image_ids_B: torch.Tensor,
    *,
    landmarks: Landmarks | None = None,
    known_BS: torch.Tensor | None = None,
    generator: torch.Generator | None,
    gather: Gather = gather_alone,
) -> torch.Tensor:
    """Return (B,): relational divergence of each picture's regions, and of the whole picture.

    With landmarks, regions that are not known are related to these. Without, each is related to the batch's others.

    The states of a picture's first sequence stand for it; below the fusion all of its sequences have the same. Of
    more than `MAX_RELATED` regions so many are drawn: every one is compared with every other.
    """
    loss_B = torch.zeros(len(image_ids_B), device=image_ids_B.device)
    if target in ("regions", "both") and one.regions_BSD is not None:
        assert one.region_mask_BS is not None
        num_regions = one.regions_BSD.shape[1]
        states_BRH = distilled.visual_states_NRH.index_select(0, batch.first_B)
        regions_BSH, seen_BS = pool_to_regions(states_BRH, one.shares_BSR)
        node_BS = seen_BS & one.region_mask_BS
        nodes = one.seen or Nodes.of(node_BS)
        if landmarks is not None:
            assert known_BS is not None
            node_BS = node_BS & ~known_BS
        else:
            nodes = replace(nodes, place_X=some_of(nodes.place_X, MAX_RELATED, generator))
            node_BS = torch.zeros_like(node_BS).flatten().index_fill(0, nodes.place_X, True).view_as(node_BS)
        group_BS = image_ids_B[:, None] * MOST_REGIONS + torch.arange(num_regions, device=image_ids_B.device)
        each_BS = node_divergence(settings, regions_BSH, one.regions_BSD, nodes, group_BS, landmarks, gather)
        loss_B = loss_B + masked_mean(each_BS, node_BS)
    if target in ("image", "both"):
        image_BH = image_state(distilled, batch).index_select(0, batch.first_B)
        loss_B = loss_B + relational_divergence(
            image_BH, one.global_BD, image_ids_B, gather=gather, **settings.temperatures
        )
    return loss_B


def node_divergence(
    settings: DistillationSettings,
    states_NWH: torch.Tensor,
    features_NWD: torch.Tensor,
    nodes: Nodes,
    group_NW: torch.Tensor,
    landmarks: Landmarks | None,
    gather: Gather,
) -> torch.Tensor:
    """Return (N, W): the divergence of each node to the landmarks, or among all nodes of the batch; 0 elsewhere.

    Args:
        nodes: what is compared: words with a meaning that both sides have, or common regions.
        group_NW: int64, nodes of one group are not compared with one another.
        gather: of the processes that share the batch.
    """
    states_XH, features_XD = nodes.take(states_NWH), nodes.take(features_NWD)
    if landmarks is not None:
        each_X = landmark_divergence(states_XH, features_XD, landmarks, **settings.temperatures)
    else:
        group_X = nodes.take(group_NW)
        each_X = relational_divergence(states_XH, features_XD, group_X, gather=gather, **settings.temperatures)
    return nodes.spread(each_X, states_NWH.shape[:2])


def require_relations(
    nodes: Nodes, words: WordAlignment, name: str, num_forms: int | None = None, gather: Gather = gather_alone
) -> None:
    """Refuse a batch whose words cannot be related.

    Args:
        num_forms: how many of this process' words differ [default: they are counted].

    Raises:
        ConfigError: as said. What is only looked at may be one short text; what is learned from may not.
    """
    (forms_X,) = gather(nodes.take(words.form_NW))
    if not torch.is_grad_enabled() or (num_forms is not None and num_forms > 1):
        return
    found = len(set(forms_X.tolist()))
    if found < 2:
        raise ConfigError(
            "A batch has fewer than two words with a meaning, so there is nothing to relate.",
            where=name,
            why=f"{len(words.form_NW)} texts hold {found} that student and teacher share",
            next_command="--batch-size with more examples to a micro-batch, or --distance mse",
        )


def text_divergence(
    settings: DistillationSettings,
    words_NWH: torch.Tensor,
    one: TextSignal,
    node_NW: torch.Tensor,
    nodes: Nodes,
    words: WordAlignment,
    landmarks: Landmarks | None,
    gather: Gather,
) -> torch.Tensor:
    """Return (N,): the divergence of each text to the landmarks, or among the texts of the batch; 0 without nodes.

    A text stands for the mean of its words, since what several words say together is told apart where each alone is
    not. Without landmarks a word counts the more, the more informative it is, and texts of the same words are not
    compared.

    Args:
        nodes: of `node_NW`.
    """
    assert one.words_NWD is not None
    if landmarks is not None:
        states_TH, features_TD = (mean_of_words(values, node_NW, nodes) for values in (words_NWH, one.words_NWD))
        each_T = landmark_divergence(states_TH, features_TD, landmarks, **settings.temperatures)
    else:
        weight_NW = min_max_scale(words.prior_NW, node_NW)
        weight_NW = torch.where((weight_NW > 0).any(1, keepdim=True), weight_NW, node_NW.to(weight_NW.dtype))
        weight_NW = weight_NW / weight_NW.sum(1, keepdim=True).clamp(min=1e-6)
        states_TH, features_TD = (
            torch.einsum("nw,nwd->nd", weight_NW, values).index_select(0, nodes.row_Y)
            for values in (words_NWH, one.words_NWD)
        )
        same_T = torch.where(node_NW, words.form_NW, 0).sum(1).index_select(0, nodes.row_Y)
        each_T = relational_divergence(states_TH, features_TD, same_T, gather=gather, **settings.temperatures)
    return each_T.new_zeros(len(node_NW)).index_copy(0, nodes.row_Y, each_T)
