"""Relations instead of coordinates: the student's likenesses among words, or regions, follow the teacher's.

docs/method.md, second reading: p_ij = softmax_j(cos(t_i, t_j) / tau_T), q_ij = softmax_j(cos(h_i, h_j) / tau_S),
vectors centred, i = j left out, L_rel = mean_i KL(p_i || q_i). With landmarks, j runs over the words that pretraining
taught and i over the others: they are placed by what is known, not by words that are lost themselves. A linear map
that is learned from the few words that a student knows does not carry to the others; likenesses to the known words
do. The family is known: Park et al. 2019, Tung and Mori 2019, affinity mimicking in TinyCLIP and CLIP-KD.
Shapes: X nodes (words or regions of a batch), H student width, D teacher width, ... any leading axes.
"""

from __future__ import annotations

import torch
from torch.nn import functional


def log_likenesses(states_XH: torch.Tensor, left_out_XX: torch.Tensor, *, temperature: float) -> torch.Tensor:
    """Return (X, X): log of each node's distribution of likeness over the others, -inf where left out.

    Args:
        states_XH: vectors of the nodes; they are centred over the batch, and only their directions count.
        left_out_XX: bool, pairs that are not compared; the diagonal must be among them. A row with nothing left
            compares to nothing and is -inf throughout.
        temperature: of the softmax over cosines.
    """
    centred_XH = functional.normalize(states_XH.float() - states_XH.float().mean(0), dim=-1)
    cosine_XX = (centred_XH @ centred_XH.T / temperature).masked_fill(left_out_XX, -torch.inf)
    total_X1 = torch.logsumexp(cosine_XX, dim=1, keepdim=True)
    return torch.where(left_out_XX, -torch.inf, cosine_XX - torch.where(total_X1.isfinite(), total_X1, 0.0))


def relational_divergence(
    student_XH: torch.Tensor,
    teacher_XD: torch.Tensor,
    group_X: torch.Tensor,
    landmark_X: torch.Tensor,
    *,
    student_temperature: float,
    teacher_temperature: float,
) -> torch.Tensor:
    """Return (X,): how far the student's likenesses of each node to the others are from the teacher's, in nats.

    Args:
        student_XH: the student's states.
        teacher_XD: the teacher's features, without gradient.
        group_X: int64; nodes of one group, such as two occurrences of one word, are not compared: they are alike
            whatever anybody knows.
        landmark_X: bool, the nodes that every node is compared with: all of them, or those that are known already.
        student_temperature: tau_S.
        teacher_temperature: tau_T.

    A node that is compared with nothing has divergence 0.
    """
    left_out_XX = (group_X[:, None] == group_X[None, :]) | ~landmark_X[None, :]
    q_XX = log_likenesses(student_XH, left_out_XX, temperature=student_temperature)
    p_XX = log_likenesses(teacher_XD.detach(), left_out_XX, temperature=teacher_temperature)
    each_XX = p_XX.exp() * (p_XX.masked_fill(left_out_XX, 0.0) - q_XX.masked_fill(left_out_XX, 0.0))
    return each_XX.sum(1)


def drift(states_XH: torch.Tensor, reference_XH: torch.Tensor, weight_X: torch.Tensor) -> torch.Tensor:
    """Return a scalar: how far states have moved from where pretraining left them, in units of their variance.

    Args:
        states_XH: the student's states.
        reference_XH: those of the student as it was pretrained, on the same inputs.
        weight_X: at least 0, how well pretraining knew each node; the others may move. All zero gives 0.
    """
    if not len(states_XH):
        return states_XH.sum()
    reference = reference_XH.detach().float()
    variance = reference.var(0, unbiased=False).mean().clamp(min=torch.finfo(torch.float32).tiny)
    moved_X = (states_XH.float() - reference).square().mean(-1) / variance
    return (moved_X * weight_X).sum() / weight_X.sum().clamp(min=1.0)
