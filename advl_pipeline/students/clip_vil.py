"""CLIP-ViL_p as a student: single-stream BERT over word pieces and the patches of a CLIP grid.

Follows clip-vil/CLIP-ViL d806157, the "visualbert_style" model. Its pooler has no tanh. The grid comes from a source
of patch features (`regions`). CLIP's backbone in the checkpoint (`visual_model.*`) is ignored, because caches and
feature files contain the features of a frozen CLIP.

Shapes: N sequences, L text tokens, R = side * side patches row by row, S = L + R, H width, F feature width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from transformers.models.bert.modeling_bert import BertEmbeddings, BertEncoder

from advl_pipeline.base.configuration import option
from advl_pipeline.students.bert_parts import bert_config, initialise_bert, widening_head
from advl_pipeline.students.checkpoints import KeyRules, published_keys, rules_below
from advl_pipeline.students.interface import Perturbation
from advl_pipeline.students.picture_source import PixelGrid, RegionSource
from advl_pipeline.students.region_student import RegionBatch, RegionStream, RegionStudentConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipVilConfig(RegionStudentConfig):
    """Architecture of CLIP-ViL_p; the defaults are those of its RN50 model."""

    grid_side: int = option(12, help="Rows and columns of the grid.", minimum=1)
    num_grid_positions: int = option(25, help="Rows of the tables of row and column embeddings.", minimum=1)


class GridPosition(nn.Module):
    """Learned row and column embeddings, added to the raw features; the original calls the row axis x."""

    def __init__(self, num_positions: int, feature_size: int) -> None:
        super().__init__()
        self.x_position_embedding = nn.Embedding(num_positions, feature_size)
        self.y_position_embedding = nn.Embedding(num_positions, feature_size)

    def forward(self, grid_NRF: torch.Tensor, num_columns: int) -> torch.Tensor:
        """Add position embeddings to patches in row-major order, (N, R, F)."""
        patch_R = torch.arange(grid_NRF.shape[1], device=grid_NRF.device)
        row, column = patch_R // num_columns, patch_R % num_columns
        placed: torch.Tensor = grid_NRF + self.x_position_embedding(row) + self.y_position_embedding(column)
        return placed


class GridProjection(nn.Module):
    """Projection of grid features to the width of the words: linear, LayerNorm, dropout."""

    def __init__(self, hidden_size: int, feature_size: int, dropout: float) -> None:
        super().__init__()
        self.visn_fc = nn.Linear(feature_size, hidden_size)
        self.visn_layer_norm = nn.LayerNorm(hidden_size, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(self, grid_NRF: torch.Tensor) -> torch.Tensor:
        """Return the projected features, (N, R, H)."""
        projected: torch.Tensor = self.dropout(self.visn_layer_norm(self.visn_fc(grid_NRF)))
        return projected


class FirstToken(nn.ModuleDict):
    """BERT's pooler without its tanh: a linear map of the first token."""

    def forward(self, text_NLH: torch.Tensor) -> torch.Tensor:
        """Return the pooled state, (N, H)."""
        pooled: torch.Tensor = self["dense"](text_NLH[:, 0])
        return pooled


class ClipVilModel(nn.Module):
    """Embeddings, encoder and pooler of CLIP-ViL_p."""

    def __init__(self, config: ClipVilConfig) -> None:
        super().__init__()
        bert = bert_config(config)
        self.embeddings = BertEmbeddings(bert)
        self.encoder = BertEncoder(bert)
        self.visual_pos = GridPosition(config.num_grid_positions, config.feature_size)
        self.visn_fc = GridProjection(config.hidden_size, config.feature_size, config.dropout)
        self.pooler = FirstToken({"dense": nn.Linear(config.hidden_size, config.hidden_size)})
        initialise_bert(self)

    def embed_grid(self, grid_NRF: torch.Tensor, num_columns: int) -> torch.Tensor:
        """Return the embeddings of the grid, (N, R, H)."""
        embedded: torch.Tensor = self.visn_fc(self.visual_pos(grid_NRF, num_columns))
        return embedded


class ClipVil(RegionStream):
    """CLIP-ViL_p as a student. State names are the original's with the prefix `model.`."""

    config: ClipVilConfig
    places = "patches"
    reads_first = True
    config_class: ClassVar[type[ClipVilConfig]] = ClipVilConfig
    rules: ClassVar[KeyRules] = published_keys("clip-vil")

    def __init__(self, name: str, config: ClipVilConfig) -> None:
        super().__init__(name, config)
        self.model = ClipVilModel(config)

    def pixel_regions(self) -> RegionSource:
        return PixelGrid(self.config.feature_size, self.config.grid_side)

    def embed(self, batch: RegionBatch, delta: Perturbation, *, hidden: bool) -> tuple[torch.Tensor, torch.Tensor]:
        words_NLH = delta.of_words(self.model.embeddings.word_embeddings(batch.token_ids_NL))
        grid_NRF = delta.of_features(batch.per_sequence(batch.features_BRF))
        text_NLH = self.model.embeddings(inputs_embeds=words_NLH, token_type_ids=batch.types_NL)
        return text_NLH, self.model.embed_grid(grid_NRF, self.config.grid_side)

    def build_head(self, kind: str, num_classes: int) -> nn.Module:
        return widening_head(self.hidden_size, num_classes)

    @classmethod
    def head_rules(cls, kind: str) -> KeyRules:
        return rules_below("logit_fc")
