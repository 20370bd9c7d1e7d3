"""Helpers of tests against original code: reference arrays by prefix, a wrapped model, a tiny UNITER."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from advl_pipeline.students.bert_parts import run_layers, token_kinds
from advl_pipeline.students.checkpoints import KeyRules, LoadReport, load_into
from advl_pipeline.students.interface import Perturbation
from advl_pipeline.students.uniter import UniterConfig, UniterModel, uniter_head

ASSETS = Path(__file__).parents[1] / "assets" / "students"

Reference = Mapping[str, torch.Tensor]
TINY = {"hidden_size": 24, "num_layers": 3, "num_heads": 4, "intermediate_size": 48, "dropout": 0.0}
"""Sizes of nearly all reference models."""


def reference(name: str) -> Reference:
    """Read the arrays of one reference file as tensors."""
    with np.load(ASSETS / name, allow_pickle=False) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files if arrays[key].dtype.kind != "U"}


def part(arrays: Reference, prefix: str) -> dict[str, torch.Tensor]:
    """Return the arrays under a prefix, with the prefix removed."""
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}


def require_complete(report: LoadReport) -> LoadReport:
    """Return a load report after asserting that it is complete."""
    assert report.complete, (report.source, report.missing, report.unexpected, report.reinitialised)
    return report


def seeded(name: str, shape: Sequence[int], scale: float) -> torch.Tensor:
    """Return weights by the rule of the references, a function of the key."""
    low = name.lower()
    is_norm = any(mark in low for mark in ("layernorm", "layer_norm", "_ln_")) or low.endswith("_output.2.weight")
    base = 1.0 if is_norm and low.endswith("weight") else 0.0
    noise = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF).standard_normal(tuple(shape))
    return torch.from_numpy((base + scale * noise).astype(np.float32))


class Wrapped(nn.Module):
    """A wrapper that stores a model as `model`, as the student does."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


def tiny_uniter(num_types: int) -> UniterConfig:
    """Return the architecture of the reference UNITER."""
    return UniterConfig(**TINY, max_positions=40, num_types=num_types, feature_size=16)


class UniterForVqa(nn.Module):
    """UNITER for VQA with the original's parameter names and order."""

    def __init__(self) -> None:
        super().__init__()
        self.uniter = UniterModel(tiny_uniter(2), num_words=60)
        self.vqa_output = uniter_head("answers", 24, 11)

    @classmethod
    def of_reference(cls, arrays: Reference) -> UniterForVqa:
        """Return the model with the weights of a reference."""
        model = cls()
        require_complete(load_into(model, part(arrays, "w/"), KeyRules(), source="reference"))
        return model

    def forward(self, inputs: Reference, perturbation: Perturbation | None = None) -> torch.Tensor:
        run = UniterPass(self.uniter, part(inputs, "in/"), perturbation or Perturbation())
        logits: torch.Tensor = self.vqa_output(self.uniter.pooler(run.states()))
        return logits


class UniterPass:
    """A forward pass over reference arrays, packed like the original's text and regions: without gaps."""

    def __init__(self, model: UniterModel, inputs: Reference, delta: Perturbation | None = None) -> None:
        delta = delta or Perturbation()
        self.model = model
        self.visible = inputs["attn_masks"].bool()
        num_text = inputs["input_ids"].shape[1]
        is_text = self.visible & (inputs["gather_index"] < num_text)
        lengths, counts = is_text.sum(1), (self.visible & ~is_text).sum(1)
        self.text_mask = torch.arange(num_text) < lengths[:, None]
        self.region_mask = torch.arange(inputs["img_feat"].shape[1]) < counts[:, None]
        self.text = model.embed_text(inputs["input_ids"], types_NL=inputs.get("txt_type_ids"), delta=delta)
        self.regions = model.embed_regions(inputs["img_feat"], inputs["img_pos_feat"], delta=delta)

    @property
    def kinds(self) -> torch.Tensor:
        return token_kinds(self.text_mask, self.region_mask)

    def states(self, num_layers: int | None = None) -> torch.Tensor:
        """Return the states (N, S, H) of a run after the first layers: text before regions, zero at padding."""
        layers = list(self.model.encoder.layer)[:num_layers]
        x_NSH = torch.cat([self.text, self.regions], dim=1)
        return run_layers(layers, x_NSH, self.kinds, num_text=self.text.shape[1])[0]
