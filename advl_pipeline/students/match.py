"""Heads that read how well text and picture match before their fusion, beside the fused state.

Fusion layers with random weights learn a few hundred labels by heart. A bilinear form of pooled states, as of two-
tower models, learns from as few labels which texts fit which pictures. For choices it is fitted before the finetune
stage and then held, and the cosine of two linear maps, which training moves, is added. Classes and open answers are
read off the pooled states and the product of the maps. What the fused state says starts at zero and is added: to
choices with a small weight, so that it learns later than the maps; to answers as it is, because it alone knows what
lies where.

Shapes: N sequences, L text tokens, R visual tokens, H width, P width of the fused pooled state, T and V widths of the
pooled states of text and picture, M width of the common space, K classes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from advl_pipeline.datasets.records import Example, candidate_mask
from advl_pipeline.students.bert_parts import norm_first_head
from advl_pipeline.students.contrastive_form import fit_contrastive_form
from advl_pipeline.students.interface import LabelledChoices, OutputHead, Perturbation, StudentOutput
from advl_pipeline.students.text_student import SingleStream, TextBatchT

COMMON_SIZE: Final = 256
"""Width M."""

FUSED_SHARE: Final = 0.003
"""Weight of the fused state in the score of a choice, as a share of the first factor of the cosine."""

CHOICE_DROPOUT: Final = 0.5
"""Dropout of the pooled states that the maps of choices read."""

DROPOUT: Final = 0.5
"""Dropout of the layers that read answers off the pooled states."""


@dataclass(kw_only=True)
class MatchOutput(StudentOutput):
    """Output with the pooled states of text and picture before their fusion; `shown_NV` is 0 for a hidden picture."""

    said_NT: torch.Tensor
    shown_NV: torch.Tensor


class MatchStream(SingleStream[TextBatchT]):
    """A single stream whose heads also read pooled states of text and picture before their fusion."""

    @abstractmethod
    def embed(
        self, batch: TextBatchT, delta: Perturbation, *, hidden: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the embeddings of `SingleStream.embed`, and the pooled states of text (N, T) and picture (N, V)."""

    def fuse(
        self,
        batch: TextBatchT,
        text_NLH: torch.Tensor,
        visual_NRH: torch.Tensor,
        *pooled: torch.Tensor,
        hidden: bool,
        **how: bool,
    ) -> StudentOutput:
        output = super().fuse(batch, text_NLH, visual_NRH, hidden=hidden, **how)
        said_NT, shown_NV = pooled
        return MatchOutput(
            **vars(output), said_NT=said_NT, shown_NV=torch.zeros_like(shown_NV) if hidden else shown_NV
        )


class MatchHead(OutputHead[MatchOutput]):
    """Head over the match of pooled states of text and picture, and over the fused state."""

    def __init__(self, *, text_size: int, picture_size: int, pooled_size: int, num_classes: int) -> None:
        super().__init__()
        self.text_map = nn.Linear(text_size, COMMON_SIZE)
        self.picture_map = nn.Linear(picture_size, COMMON_SIZE)
        *fused, last = norm_first_head(pooled_size, num_classes, hidden=2 * pooled_size)
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        self.fused = nn.Sequential(*fused, last)

    def match(self, said_NT: torch.Tensor, shown_NV: torch.Tensor) -> torch.Tensor:
        """Return the products of the coordinates of both maps of norm 1, (N, M); their sum is the cosine."""
        text_NM = functional.normalize(self.text_map(said_NT), dim=-1)
        return text_NM * functional.normalize(self.picture_map(shown_NV), dim=-1)


class ChoiceMatchHead(MatchHead):
    """Scores a choice by a bilinear form that the labels fit before training, and by what training adds to it.

    The form is the best one under a penalty (`contrastive_form.py`): few labels determine it better than any number
    of steps. It is fitted to the pooled states at the start of the finetune stage and then held. Until then it is 0.
    """

    text_mean_T: torch.Tensor
    picture_mean_V: torch.Tensor
    form_TV: torch.Tensor
    fused_weight: torch.Tensor

    def __init__(
        self, *, text_size: int, picture_size: int, pooled_size: int, first_scale: float, contrastive: bool
    ) -> None:
        """Args:
        text_size, picture_size: widths of the pooled states T and V.
        pooled_size: width of the fused state.
        first_scale: first factor of the cosine, which is trained.
        contrastive: right texts of questions about other pictures are negatives in the fit of the form.
        """
        super().__init__(text_size=text_size, picture_size=picture_size, pooled_size=pooled_size, num_classes=1)
        self.contrastive = contrastive
        self.log_scale = nn.Parameter(torch.tensor(first_scale).log())
        # Stored, so that a run answers by the weight that it was trained with.
        self.register_buffer("fused_weight", torch.tensor(FUSED_SHARE * first_scale))
        self.register_buffer("text_mean_T", torch.zeros(text_size))
        self.register_buffer("picture_mean_V", torch.zeros(picture_size))
        self.register_buffer("form_TV", torch.zeros(text_size, picture_size))

    def read_choices(self, questions: Iterable[LabelledChoices[MatchOutput]]) -> None:
        said: list[torch.Tensor] = []
        shown: list[torch.Tensor] = []
        labels: list[torch.Tensor] = []
        asked: list[Example] = []
        for batch in questions:
            counts = [len(example.candidates) for example in batch.examples]
            said += torch.split(_unit(batch.output.said_NT.cpu().double()), counts)
            shown += [of[0] for of in torch.split(_unit(batch.output.shown_NV.cpu().double()), counts)]
            labels.append(batch.label_B.cpu())
            asked += batch.examples
        label_N = torch.cat(labels).numpy()
        mean_T, mean_V = torch.cat(said).mean(0), torch.stack(shown).mean(0)
        rights = [example.candidates[label] for example, label in zip(asked, label_N, strict=True)]
        right_N = np.array([right.text_unit.unit_id for right in rights])
        picture_N = np.array([example.image.unit_id for example in asked])
        form_TV = fit_contrastive_form(
            pad_sequence([_unit(of - mean_T) for of in said], batch_first=True).numpy(),
            _unit(torch.stack(shown) - mean_V).numpy(),
            label_N,
            valid_NC=candidate_mask(asked),
            negative_NN=self.contrastive & (picture_N[:, None] != picture_N) & (right_N[:, None] != right_N),
        )
        self.text_mean_T.copy_(mean_T)
        self.picture_mean_V.copy_(mean_V)
        self.form_TV.copy_(torch.from_numpy(form_TV))

    def forward(self, output: MatchOutput) -> torch.Tensor:
        """Return (N, 1)."""
        said_NT = _unit(_unit(output.said_NT) - self.text_mean_T)
        shown_NV = _unit(_unit(output.shown_NV) - self.picture_mean_V)
        fitted_N = ((said_NT @ self.form_TV) * shown_NV).sum(1)
        match_NM = self.match(
            functional.dropout(said_NT * said_NT.shape[1] ** 0.5, CHOICE_DROPOUT, self.training),
            functional.dropout(shown_NV * shown_NV.shape[1] ** 0.5, CHOICE_DROPOUT, self.training),
        )
        fused_N1: torch.Tensor = self.fused(output.pooled_NP)
        trained_N = self.log_scale.exp() * match_NM.sum(1)
        return (fitted_N + trained_N)[:, None] + self.fused_weight * fused_N1


class AnswerMatchHead(MatchHead):
    """Reads classes and answers off the pooled states, their match and the fused state."""

    def __init__(self, *, text_size: int, picture_size: int, pooled_size: int, num_classes: int) -> None:
        super().__init__(
            text_size=text_size, picture_size=picture_size, pooled_size=pooled_size, num_classes=num_classes
        )
        self.text_norm = nn.LayerNorm(text_size)
        self.picture_norm = nn.LayerNorm(picture_size)
        num_read = text_size + picture_size + COMMON_SIZE
        *layers, last = norm_first_head(num_read, num_classes, hidden=4 * COMMON_SIZE)
        self.matched = nn.Sequential(nn.Dropout(DROPOUT), *layers, nn.Dropout(DROPOUT), last)

    def forward(self, output: MatchOutput) -> torch.Tensor:
        """Return (N, K)."""
        said_NT = self.text_norm(output.said_NT)
        shown_NV = self.picture_norm(output.shown_NV)
        # Scaled to the magnitude of a layer-normalised state.
        read = [said_NT, shown_NV, COMMON_SIZE * self.match(said_NT, shown_NV)]
        matched_NK: torch.Tensor = self.matched(torch.cat(read, dim=-1))
        fused_NK: torch.Tensor = self.fused(output.pooled_NP)
        return matched_NK + fused_NK


def _unit(states_NX: torch.Tensor) -> torch.Tensor:
    """Return states without their mean over coordinates, each of norm 1; zeros stay zeros."""
    return functional.normalize(states_NX - states_NX.mean(-1, keepdim=True), dim=-1)
