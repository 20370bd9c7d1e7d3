"""CLIP-ViL_p as a student: single-stream BERT over word pieces and the cells of a CLIP grid.

Follows clip-vil/CLIP-ViL d806157, the "visualbert_style" model. Its pooler has no tanh. The grid comes from a source
of cell features (`regions`): CLIP's own backbone inside the checkpoint (`visual_model.*`) is set aside, because the
features of a frozen CLIP are what a cache or a feature file holds.

Shapes: N sequences, L text tokens, R = side * side cells row by row, S = L + R, H width, F feature width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from transformers.models.bert.modeling_bert import BertEmbeddings, BertEncoder

from advl_pipeline.configuration import option
from advl_pipeline.students.bert_parts import (
    attention_bias,
    attention_mass,
    bert_config,
    compute_dtype,
    initialise_bert,
    kinds_of,
    widening_head,
)
from advl_pipeline.students.building import builder
from advl_pipeline.students.checkpoints import KeyRules
from advl_pipeline.students.interface import Perturbation, StudentBatch, StudentOutput
from advl_pipeline.students.region_source import PixelGrid, RegionSource
from advl_pipeline.students.region_student import TINY_REGIONS, RegionBatch, RegionStudent, RegionStudentConfig
from advl_pipeline.students.text_rows import longer_texts, text_length


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipVilConfig(RegionStudentConfig):
    """Architecture of CLIP-ViL_p; the defaults are those of its RN50 model."""

    max_text_length: int = text_length(20)
    overlong: Literal["error", "cut"] = longer_texts("cut")
    grid_side: int = option(12, help="Rows and columns of the grid.", minimum=1)
    num_grid_positions: int = option(25, help="Rows of the tables of row and column embeddings.", minimum=1)


class GridPosition(nn.Module):
    """Learned row and column embeddings, added to the raw features. The original calls the row axis x."""

    def __init__(self, num_positions: int, feature_size: int) -> None:
        super().__init__()
        self.x_position_embedding = nn.Embedding(num_positions, feature_size)
        self.y_position_embedding = nn.Embedding(num_positions, feature_size)

    def forward(self, grid_NRF: torch.Tensor, num_columns: int) -> torch.Tensor:
        """Return (N, R, F); cells come row by row."""
        cell_R = torch.arange(grid_NRF.shape[1], device=grid_NRF.device)
        row, column = cell_R // num_columns, cell_R % num_columns
        placed: torch.Tensor = grid_NRF + self.x_position_embedding(row) + self.y_position_embedding(column)
        return placed


class GridProjection(nn.Module):
    """Linear, LayerNorm, dropout."""

    def __init__(self, hidden_size: int, feature_size: int, dropout: float) -> None:
        super().__init__()
        self.visn_fc = nn.Linear(feature_size, hidden_size)
        self.visn_layer_norm = nn.LayerNorm(hidden_size, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(self, grid_NRF: torch.Tensor) -> torch.Tensor:
        """Return (N, R, H)."""
        projected: torch.Tensor = self.dropout(self.visn_layer_norm(self.visn_fc(grid_NRF)))
        return projected


class ClipVilModel(nn.Module):
    """Embeddings, encoder and pooler."""

    def __init__(self, config: ClipVilConfig) -> None:
        super().__init__()
        bert = bert_config(**config.bert_sizes, num_types=2)
        self.embeddings = BertEmbeddings(bert)
        self.encoder = BertEncoder(bert)
        self.visual_pos = GridPosition(config.num_grid_positions, config.feature_size)
        self.visn_fc = GridProjection(config.hidden_size, config.feature_size, config.dropout)
        self.pooler = nn.ModuleDict({"dense": nn.Linear(config.hidden_size, config.hidden_size)})
        initialise_bert(self)

    def embed_grid(self, grid_NRF: torch.Tensor, num_columns: int) -> torch.Tensor:
        """Return (N, R, H)."""
        embedded: torch.Tensor = self.visn_fc(self.visual_pos(grid_NRF, num_columns))
        return embedded

    def pool(self, text_NLH: torch.Tensor) -> torch.Tensor:
        """Return (N, H): a linear map of the first token, without tanh."""
        pooled: torch.Tensor = self.pooler["dense"](text_NLH[:, 0])
        return pooled


class ClipVil(RegionStudent):
    """The student. State names are the original's behind `model.`."""

    config: ClipVilConfig
    places = "patches"
    compile_refusal = ""
    config_class: ClassVar[type[ClipVilConfig]] = ClipVilConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "clip-vil": {},
        "clip-vil-tiny": {**TINY_REGIONS, "grid_side": 4, "max_text_length": 128},
    }
    rules: ClassVar[KeyRules] = KeyRules(
        rename=((r"^bert\.encoder\.(visn_fc|visual_pos)\.", r"model.\1."), (r"^bert\.", "model.")),
        # This style has no boxes, though its files hold their layers.
        ignore=(r"visual_model\.", r"visn_fc\.box_", r"^(cls|logit_fc|obj_predict_head|answer_head)\."),
    )

    def __init__(self, name: str, config: ClipVilConfig) -> None:
        super().__init__(name, config)
        self.model = ClipVilModel(config)

    def pixel_regions(self) -> RegionSource:
        return PixelGrid(self.config.feature_size, self.config.grid_side)

    def encode(
        self,
        batch: StudentBatch,
        *,
        perturbation: Perturbation | None = None,
        mask_visual: bool = False,
        need_relevance: bool = False,
    ) -> StudentOutput:
        assert isinstance(batch, RegionBatch)
        delta = perturbation or Perturbation()
        words_NLH = delta.of_words(self.model.embeddings.word_embeddings(batch.token_ids_NL))
        grid_NRF = delta.of_features(batch.per_sequence(batch.features_BRF))
        text_NLH = self.model.embeddings(inputs_embeds=words_NLH, token_type_ids=batch.types_NL)
        x_NSH = torch.cat([text_NLH, self.model.embed_grid(grid_NRF, self.config.grid_side)], dim=1)
        kinds = kinds_of(batch.token_mask_NL, batch.visual_mask_NR)
        bias = attention_bias(kinds, separate=mask_visual, dtype=compute_dtype(x_NSH))
        num_text = text_NLH.shape[1]
        *first, last = self.model.encoder.layer
        for layer in first:
            x_NSH = layer(x_NSH, bias)
        relevance = attention_mass(last.attention.self, x_NSH, bias, num_text) if need_relevance else None
        x_NSH = last(x_NSH, bias)
        return StudentOutput(
            text_states_NLH=x_NSH[:, :num_text],
            visual_states_NRH=x_NSH[:, num_text:],
            pooled_NP=self.model.pool(x_NSH),
            relevance_NL=relevance,
        )

    def build_head(self, task: str, num_classes: int) -> nn.Module:
        width = self.hidden_size
        return widening_head(width, num_classes, hidden=2 * width, activation=nn.GELU(), eps=1e-12)

    @staticmethod
    def head_rules(task: str) -> KeyRules:
        """Return the rules that take a task's head out of an original checkpoint."""
        return KeyRules(rename=((r"^logit_fc\.", ""),), ignore=(r"^(?!logit_fc\.)",))


build = builder(ClipVil)
