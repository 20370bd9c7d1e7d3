"""What students over region features share: configuration, collation, hiding the picture.

Shapes: B examples, N sequences, L text tokens, R regions, H width, F feature width.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from advl_pipeline.configuration import config_to_dict, option
from advl_pipeline.datasets.records import Candidate, Example, ImageUnit
from advl_pipeline.students.interface import Perturbation, Student, StudentBatch
from advl_pipeline.students.region_source import PixelRegions, Regions, RegionSource
from advl_pipeline.students.text_rows import Part, ReplacedSpan, TextRow, fit_parts, load_text_tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class RegionStudentConfig:
    """Settings of every region student; the architecture's own come on top."""

    hidden_size: int = option(768, help="Width H.")
    num_layers: int = option(12, help="Encoder layers.")
    num_heads: int = option(12, help="Attention heads.")
    intermediate_size: int = option(3072, help="Width of the feed-forward layers.")
    dropout: float = option(0.1, help="Dropout of states and attention.")
    feature_size: int = option(2048, help="Width F of the region features.")
    tokenizer: str = option("bert-base-uncased", help="Folder or hub name of the tokenizer, or minilm-l6.")
    vocab_size: int = option(30522, help="Rows of the word table that the tokenizer fills.")
    max_positions: int = option(512, help="Rows of the position table.")
    max_text_length: int = option(128, help="Tokens of one row.")
    overlong: Literal["error", "cut"] = option(
        "error", help="What happens to longer texts; cut pops the longer part."
    )


@dataclass(kw_only=True)
class RegionBatch(StudentBatch):
    """Adds types, the token that tasks read, and each example's regions (shared by its candidates).

    `features_BRF` and `positions_BR7` are float32; `pool_index_N` int64. `num_cut` counts tokens cut by policy.
    `packed_size` is the largest sum of tokens and regions: the width of a batch packed without gaps.
    """

    types_NL: torch.Tensor
    pool_index_N: torch.Tensor
    features_BRF: torch.Tensor
    positions_BR7: torch.Tensor
    whole_first: bool
    packed_size: int
    num_cut: int

    def per_sequence(self, value_B: torch.Tensor) -> torch.Tensor:
        """Repeat each example's rows for its candidates: (B, ...) -> (N, ...)."""
        repeats = torch.tensor(self.num_candidates, device=value_B.device)
        return value_B.repeat_interleave(repeats, dim=0, output_size=self.num_sequences)


class RegionStudent(Student):
    """Collates texts and regions; subclasses lay out the text and encode.

    `regions` may be replaced after building, by a reader of detector features of the same width.
    """

    config: RegionStudentConfig

    def __init__(self, name: str, config: RegionStudentConfig) -> None:
        super().__init__()
        self.name = name
        self.config = config
        self.hidden_size = self.pooled_size = config.hidden_size
        self.tokenizer = load_text_tokenizer(config.tokenizer)
        self.regions: RegionSource = PixelRegions(config.feature_size)

    @abstractmethod
    def lay_out(self, parts: list[Part], task: str) -> TextRow:
        """Put the parts of one candidate between the student's special tokens."""

    @property
    def num_special(self) -> int:
        """Special tokens that `lay_out` adds to three parts, the most there are."""
        return 4

    def replaced_spans(self, example: Example, candidate: Candidate) -> list[ReplacedSpan]:
        """Return the characters that become single tokens; none by default."""
        return []

    def regions_of(self, unit: ImageUnit) -> Regions:
        """Return the regions that the student sees of a picture."""
        return self.regions.regions(unit)

    def config_dict(self) -> dict[str, Any]:
        return config_to_dict(self.config)

    def collate(self, examples: Sequence[Example]) -> RegionBatch:
        rows, num_cut = self._text_rows(examples)
        num_candidates = tuple(len(example.candidates) for example in examples)
        regions = [self.regions_of(example.image) for example in examples]
        num_regions = max(len(item.features_RF) for item in regions)
        features = torch.zeros(len(examples), num_regions, self.config.feature_size)
        positions = torch.zeros(len(examples), num_regions, 7)
        mask_BR = torch.zeros(len(examples), num_regions, dtype=torch.bool)
        box_index_BR = torch.full((len(examples), num_regions), -1, dtype=torch.long)
        for index, item in enumerate(regions):
            count = len(item.features_RF)
            features[index, :count] = torch.from_numpy(item.features_RF)
            positions[index, :count] = torch.from_numpy(item.positions_R7)
            mask_BR[index, :count] = True
            box_index_BR[index, :count] = torch.from_numpy(item.box_index_R)
        repeats = torch.tensor(num_candidates)
        visual_mask_NR = mask_BR.repeat_interleave(repeats, dim=0)
        text = pad_rows(rows, self.tokenizer.pad_id)
        return RegionBatch(
            num_candidates=num_candidates,
            **text,
            visual_mask_NR=visual_mask_NR,
            box_index_NR=box_index_BR.repeat_interleave(repeats, dim=0),
            features_BRF=features,
            positions_BR7=positions,
            whole_first=all(item.whole_first for item in regions),
            packed_size=int((text["token_mask_NL"].sum(1) + visual_mask_NR.sum(1)).max()),
            num_cut=num_cut,
        )

    def zero_perturbation(self, batch: RegionBatch, *, text: bool = True, visual: bool = True) -> Perturbation:
        """Return the starting point of adversarial training, of the shapes that `encode` takes."""
        like = batch.features_BRF
        return Perturbation(
            text_NLE=like.new_zeros(*batch.token_ids_NL.shape, self.hidden_size) if text else None,
            visual_NRF=like.new_zeros(batch.num_sequences, *like.shape[1:]) if visual else None,
        )

    def _text_rows(self, examples: Sequence[Example]) -> tuple[list[TextRow], int]:
        pairs = [(example, candidate) for example in examples for candidate in example.candidates]
        parts_of = self.tokenizer.encode(
            [candidate for _, candidate in pairs],
            [self.replaced_spans(example, candidate) for example, candidate in pairs],
        )
        rows, num_cut = [], 0
        for (example, candidate), parts in zip(pairs, parts_of, strict=True):
            num_cut += fit_parts(
                parts, self.num_special, self.config.max_text_length, self.config.overlong, candidate
            )
            rows.append(self.lay_out(parts, example.task))
        return rows, num_cut


def pad_rows(rows: Sequence[TextRow], pad_id: int) -> dict[str, torch.Tensor]:
    """Return ids, mask, types, spans and pool index of rows, padded to the longest."""
    size = max(len(row.token_ids) for row in rows)
    ids = np.full((len(rows), size), pad_id, dtype=np.int64)
    mask = np.zeros((len(rows), size), dtype=np.bool_)
    types = np.zeros((len(rows), size), dtype=np.int64)
    spans = np.zeros((len(rows), size, 2), dtype=np.int64)
    for index, row in enumerate(rows):
        length = len(row.token_ids)
        ids[index, :length] = row.token_ids
        mask[index, :length] = True
        types[index, :length] = row.types
        spans[index, :length] = row.spans
    return {
        "token_ids_NL": torch.from_numpy(ids),
        "token_mask_NL": torch.from_numpy(mask),
        "types_NL": torch.from_numpy(types),
        "char_spans_NL2": torch.from_numpy(spans),
        "pool_index_N": torch.tensor([row.pool_index for row in rows]),
    }


def without_picture(batch: RegionBatch) -> RegionBatch:
    """Return the batch with one empty region per sequence: what a two-stream student's text sees of no picture."""
    mask = torch.zeros_like(batch.visual_mask_NR)
    mask[:, 0] = True
    return dataclasses.replace(
        batch,
        visual_mask_NR=mask,
        features_BRF=torch.zeros_like(batch.features_BRF),
        positions_BR7=torch.zeros_like(batch.positions_BR7),
    )


def without_text(batch: RegionBatch) -> RegionBatch:
    """Return the batch with the first token alone visible: what a two-stream student's picture sees of no text."""
    mask = torch.zeros_like(batch.token_mask_NL)
    mask[:, 0] = True
    return dataclasses.replace(batch, token_mask_NL=mask)
