"""The text tower: any word-piece encoder.

Texts longer than the model's maximum are encoded in overlapping windows; nothing is ever truncated. A token's feature
comes from the window that gives it the most context on its shorter side. A unit's global feature is the mean of the
windows' global features, weighted by the number of tokens that each window owns.

Shapes: N texts, B windows in a forward pass, L tokens with special ones, M content tokens of one text, D width.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from advl_pipeline.base.errors import DatasetError
from advl_pipeline.base.tensors import parameter_digest
from advl_pipeline.datasets.records import TextUnit
from advl_pipeline.teachers.interface import EncodedBatch, PreparedUnit
from advl_pipeline.teachers.word_pieces import WordPieces

Window = tuple[int, int, int, int]
"""(start, stop, first, after): the window reads tokens [start, stop) and owns [first, after)."""


def plan_windows(num_tokens: int, *, capacity: int, overlap: int) -> tuple[Window, ...]:
    """Cover `num_tokens` tokens with windows of at most `capacity` tokens.

    Neighbours share at least `overlap` tokens and are split in the middle of the overlap. The last window reaches
    back so that it is full too. There is one window if all tokens fit, or if there are no tokens.

    Args:
        num_tokens: content tokens of one text, special tokens not counted.
        capacity: maximum content tokens in a window, larger than `overlap`.
        overlap: minimum tokens shared by neighbouring windows.
    """
    if not 0 <= overlap < capacity:
        raise ValueError(f"overlap {overlap} must be smaller than capacity {capacity}")
    if num_tokens <= capacity:
        return ((0, num_tokens, 0, num_tokens),)
    stride = capacity - overlap
    starts = [*range(0, num_tokens - capacity, stride), num_tokens - capacity]
    cuts = [0]
    cuts += [(later + earlier + capacity) // 2 for earlier, later in itertools.pairwise(starts)]
    cuts.append(num_tokens)
    return tuple((start, start + capacity, *cut) for start, cut in zip(starts, itertools.pairwise(cuts), strict=True))


FORWARD_CHUNK = 256
"""Maximum windows in one forward pass: a few very long texts must not exhaust the memory."""


TextFeatures = tuple[torch.Tensor, torch.Tensor]
"""Output of one forward pass: global (B, D) and token states, special tokens included, (B, L, D')."""


class TextBackbone(ABC):
    """A frozen text network on its device; its input is padded token ids."""

    def __init__(
        self,
        network: nn.Module,
        *,
        description: Mapping[str, Any],
        dim: int,
        global_dim: int | None = None,
        max_length: int,
        device: torch.device,
        dtype: torch.dtype,
        pad_to_max: bool = False,
    ) -> None:
        """Freeze a network and move it to its device.

        Args:
            network: in float32 as loaded; the digest covers its parameters and buffers.
            description: library, architecture and selected features.
            dim: width of the token features.
            global_dim: width of the global feature; None for the same width.
            max_length: maximum tokens in one forward pass, special tokens included.
            device, dtype: of the computation.
            pad_to_max: pad every input to `max_length`, as in the network's training.
        """
        self._description = {
            **description,
            "parameters": parameter_digest(network.state_dict()),
            "compute_dtype": str(dtype).removeprefix("torch."),
        }
        frozen: Any = network.eval().requires_grad_(False)
        self.network: Any = frozen.to(device=device, dtype=dtype)
        self.global_dim, self.token_dim = global_dim or dim, dim
        self.max_length, self.device, self.pad_to_max = max_length, device, pad_to_max

    def describe(self) -> dict[str, Any]:
        """Return the digest of the parameters, architecture, pooling, token features and compute dtype."""
        return dict(self._description)

    @torch.inference_mode()
    def __call__(self, ids_BL: torch.Tensor, mask_BL: torch.Tensor) -> TextFeatures:
        """Encode padded ids."""
        return self.features(ids_BL, mask_BL)

    @abstractmethod
    def features(self, ids_BL: torch.Tensor, mask_BL: torch.Tensor) -> TextFeatures:
        """Run the network; mask padding, unless the network was trained with visible padding."""


class WordPieceTextTower:
    """A `TextTower` that encodes texts with any `TextBackbone`.

    Token features are the states of the word pieces without special tokens. A text with more pieces than the model's
    maximum is encoded in overlapping windows (`plan_windows`). Padding is masked, so features do not depend on the
    batch. With `unit_length` the global feature is divided by its Euclidean norm.
    """

    def __init__(self, backbone: TextBackbone, pieces: WordPieces, *, unit_length: bool) -> None:
        self.backbone = backbone
        self.pieces = pieces
        self.unit_length = unit_length
        self._prefix, self._suffix = (torch.tensor(ids, dtype=torch.int64) for ids in (pieces.prefix, pieces.suffix))
        self._capacity = backbone.max_length - len(pieces.prefix) - len(pieces.suffix) - pieces.prompt_length
        self._overlap = self._capacity // 4

    @property
    def global_dim(self) -> int:
        return self.backbone.global_dim

    @property
    def token_dim(self) -> int:
        return self.backbone.token_dim

    def describe(self) -> dict[str, Any]:
        """Return everything that changes the numbers (see `Tower.describe`)."""
        return {
            **self.backbone.describe(),
            "unit_length": self.unit_length,
            "tokenizer": self.pieces.describe(),
            "long_texts": {
                "policy": "overlapping windows",
                "max_length": self.backbone.max_length,
                "overlap": self._overlap,
            },
            "padding": "to max_length, seen by the network" if self.backbone.pad_to_max else "masked",
            "tokens": {"kind": "word pieces without special tokens"},
        }

    def prepare(self, units: Sequence[TextUnit]) -> list[PreparedUnit]:
        """Tokenise. `inputs["ids"]`: content tokens (M,) int64 of the text; `inputs["prompt"]`: tokens of the prompt.

        Raises:
            DatasetError: a text has no tokens and the model adds no special ones.
        """
        prepared: list[PreparedUnit] = []
        for unit, (ids_M, spans_M2, prompt_P) in zip(units, self.pieces([unit.text for unit in units]), strict=True):
            if not len(ids_M) and not self.pieces.prefix and not self.pieces.suffix:
                raise DatasetError("A text has no tokens to encode.", where=f"text unit {unit.unit_id}")
            prepared.append(
                PreparedUnit(
                    inputs={"ids": torch.from_numpy(ids_M), "prompt": torch.from_numpy(prompt_P)},
                    num_tokens=len(ids_M),
                    char_spans_M2=spans_M2,
                    is_known=bool((ids_M != self.pieces.unknown_id).any()),
                )
            )
        return prepared

    def encode(self, units: Sequence[PreparedUnit]) -> EncodedBatch:
        """Encode N texts. Statistic: norm of the global feature before it is scaled to unit length."""
        plans = [plan_windows(unit.num_tokens, capacity=self._capacity, overlap=self._overlap) for unit in units]
        rows = [
            torch.cat([self._prefix, unit.inputs["prompt"], unit.inputs["ids"][start:stop], self._suffix])
            for unit, plan in zip(units, plans, strict=True)
            for start, stop, _, _ in plan
        ]
        global_rows: list[torch.Tensor] = []
        token_rows: list[torch.Tensor] = []
        device = self.backbone.device
        with torch.inference_mode():
            for start in range(0, len(rows), FORWARD_CHUNK):
                ids_BL, mask_BL = self._pad(rows[start : start + FORWARD_CHUNK])
                global_BD, tokens_BLD = self.backbone(ids_BL.to(device), mask_BL.to(device))
                global_rows.extend(global_BD.float())
                token_rows.extend(tokens_BLD.float())
        num_before = 0
        global_values: list[torch.Tensor] = []
        token_values: list[torch.Tensor] = []
        for unit, plan in zip(units, plans, strict=True):
            skip = len(self.pieces.prefix) + len(unit.inputs["prompt"])
            windows = slice(num_before, num_before := num_before + len(plan))
            global_D = global_rows[windows][0]
            if len(plan) > 1:
                owned_W = torch.tensor([float(after - first) for _, _, first, after in plan], device=device)
                global_D = (torch.stack(global_rows[windows]) * (owned_W / owned_W.sum())[:, None]).sum(dim=0)
            global_values.append(global_D)
            kept = [
                states_LD[skip + first - start : skip + after - start]
                for states_LD, (start, _, first, after) in zip(token_rows[windows], plan, strict=True)
            ]
            token_values.append(torch.cat(kept))
        global_ND = torch.stack(global_values)
        norm_N = global_ND.norm(dim=1)
        if self.unit_length:
            global_ND = torch.nn.functional.normalize(global_ND, dim=1)
        return EncodedBatch(global_ND=global_ND, token_values=token_values, stats={"norm": norm_N})

    def _pad(self, rows: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        length = self.backbone.max_length if self.backbone.pad_to_max else max(len(ids) for ids in rows)
        ids_BL = torch.full((len(rows), length), self.pieces.pad_id, dtype=torch.int64)
        mask_BL = torch.zeros((len(rows), length), dtype=torch.int64)
        for row, ids in enumerate(rows):
            ids_BL[row, : len(ids)] = ids
            mask_BL[row, : len(ids)] = 1
        return ids_BL, mask_BL
