"""VL-BERT equals the original code: coordinates, core, the VCR model, and the VQA model from seeded weights."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn
from whole_checkpoints import require_complete

from advl_pipeline.students.bert_parts import attention_bias, kinds_of
from advl_pipeline.students.checkpoints import KeyRules, load_into
from advl_pipeline.students.vl_bert import (
    ObjectDownsample,
    VlBert,
    VlBertModel,
    collect_objects,
    coordinate_embedding,
    vl_bert_head,
)
from advl_pipeline.training.targets import sigmoid_choice, soft_target_bce

Reference = Mapping[str, torch.Tensor]
TOLERANCE = {"atol": 2e-5, "rtol": 0.0}


def part(arrays: Reference, prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}


def tiny_core() -> VlBertModel:
    return VlBertModel(
        hidden_size=24,
        num_layers=3,
        num_heads=4,
        intermediate_size=48,
        vocab_size=80,
        max_positions=64,
        dropout=0.0,
        visual_scale_init=0.0,
    )


def packed(x_NSH: torch.Tensor, text_mask: torch.Tensor, object_mask: torch.Tensor) -> list[torch.Tensor]:
    """Each sequence without gaps, as the original lays it out."""
    keep = torch.cat([text_mask, object_mask, torch.ones_like(text_mask[:, :1])], dim=1)
    return [row[mask] for row, mask in zip(x_NSH, keep, strict=True)]


def layers(
    model: VlBertModel, x_NSH: torch.Tensor, text_mask: torch.Tensor, object_mask: torch.Tensor
) -> torch.Tensor:
    visible = nn.functional.pad(object_mask, (0, 1), value=True)
    bias = attention_bias(kinds_of(text_mask, visible), dtype=x_NSH.dtype)
    for layer in model.encoder.layer:
        x_NSH = layer(x_NSH, bias)
    return x_NSH


def test_coordinate_embedding(reference: Callable[[str], Reference]) -> None:
    arrays = reference("vlbert/vlbert_tiny.npz")
    boxes = arrays["coord/boxes_wh"]
    corners = boxes[:, :4] / boxes[:, [4, 5, 4, 5]]
    # The angles reach 100 radians, where one rounding of the input moves a sine by 1e-5.
    torch.testing.assert_close(coordinate_embedding(corners), arrays["coord/emb_dim256"].flatten(1), **TOLERANCE)


def test_core(reference: Callable[[str], Reference]) -> None:
    arrays = reference("vlbert/vlbert_tiny.npz")
    model = tiny_core().eval()
    require_complete(load_into(model, part(arrays, "core/w/"), KeyRules(), source="core"))
    inputs, out = part(arrays, "core/in/"), part(arrays, "core/out/")
    text_mask, object_mask = inputs["tm"], inputs["om"]
    words = model.word_embeddings(inputs["ids"])
    # The core's objects bring a linguistic embedding each; the models give all the same one.
    visual, linguistic = inputs["ov"][..., :24], inputs["ov"][..., 24:]
    x = model.embed(words, inputs["tt"], inputs["tv"], visual, linguistic, text_mask.sum(1))
    for row, expected, mask in zip(packed(x, text_mask, object_mask), out["embedding"], out["mask"], strict=True):
        torch.testing.assert_close(row, expected[mask], **TOLERANCE)
    last = layers(model, x, text_mask, object_mask)
    for row, expected, mask in zip(packed(last, text_mask, object_mask), out["hidden"], out["mask"], strict=True):
        torch.testing.assert_close(row, expected[mask], **TOLERANCE)
    torch.testing.assert_close(model.pooler(last), out["pooled"], **TOLERANCE)
    torch.testing.assert_close(last[:, :10][text_mask], out["hidden_text"][text_mask], **TOLERANCE)
    torch.testing.assert_close(last[:, 10:16][object_mask], out["hidden_obj"][object_mask], **TOLERANCE)


class Vcr(nn.Module):
    """The original's VCR model with object representations supplied."""

    def __init__(self) -> None:
        super().__init__()
        self.vlbert = tiny_core()
        self.object_linguistic_embeddings = nn.Embedding(1, 24)


def test_vcr_model(reference: Callable[[str], Reference]) -> None:
    arrays = reference("vlbert/vlbert_tiny.npz")
    weights, inputs, out = (part(arrays, f"vcr/{name}/") for name in ("w", "in", "out"))
    model, head = Vcr().eval(), vl_bert_head("vcr", 24, 1).eval()
    require_complete(load_into(model, weights, VlBert.rules, source="vcr"))
    require_complete(load_into(head, weights, VlBert.head_rules("vcr"), source="vcr"))
    ids, types, tags, text_mask = (
        out[name].flatten(0, 1) for name in ("text_input_ids", "type_ids", "text_tags", "text_mask")
    )
    reps = inputs["obj_reps"].repeat_interleave(4, dim=0)
    object_mask = (inputs["boxes"][:, :, 3] > -0.5).repeat_interleave(4, dim=0)
    x = model.vlbert.embed(
        model.vlbert.word_embeddings(ids),
        types,
        collect_objects(tags, reps),
        reps,
        model.object_linguistic_embeddings.weight[0],
        text_mask.sum(1),
    )
    last = layers(model.vlbert, x, text_mask, object_mask)
    logits = head(model.vlbert.pooler(last)).reshape(2, 4)
    torch.testing.assert_close(logits, out["logits"], **TOLERANCE)
    torch.testing.assert_close(sigmoid_choice(logits, inputs["label"]), out["ans_loss"], **TOLERANCE)


def seeded(name: str, shape: list[int]) -> torch.Tensor:
    low = name.lower()
    is_norm = any(mark in low for mark in ("layernorm", "layer_norm", "_ln_")) and low.endswith("weight")
    noise = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF).standard_normal(tuple(shape))
    return torch.from_numpy((float(is_norm) + 0.05 * noise).astype(np.float32))


class Vqa(Vcr):
    """The original's VQA model over precomputed features."""

    def __init__(self) -> None:
        super().__init__()
        self.image_feature_extractor = ObjectDownsample(24, 2048, 0.1)
        self.final_mlp = nn.Sequential(nn.Dropout(0.1), nn.Linear(24, 11))


def test_vqa_model(reference: Callable[[str], Reference], assets: Path) -> None:
    arrays = reference("vlbert/vlbert_tiny.npz")
    shapes = json.loads((assets / "vlbert" / "vlbert_tiny_keys.json").read_text())["vqa_keys"]
    model = Vqa().eval()
    state = {name: seeded(name, shape) for name, shape in shapes.items()}
    rules = KeyRules(optional=(r"^vlbert\.pooler\.",))
    require_complete(load_into(model, state, rules, source="seeded"))
    inputs, out = part(arrays, "vqa/in/"), part(arrays, "vqa/out/")
    boxes, size = inputs["boxes"], inputs["im_info"][:, None, [0, 1, 0, 1]]
    object_mask = boxes[:, :, 0] > -1.5
    reps = model.image_feature_extractor(boxes[..., 4:], boxes[..., :4] / size)
    torch.testing.assert_close(reps[object_mask], out["obj_reps"][object_mask], **TOLERANCE)
    x = model.vlbert.embed(
        model.vlbert.word_embeddings(out["text_input_ids"]),
        out["type_ids"],
        collect_objects(out["text_tags"], reps),
        reps,
        model.object_linguistic_embeddings.weight[0],
        out["text_mask"].sum(1),
    )
    last = layers(model.vlbert, x, out["text_mask"], object_mask)
    logits = model.final_mlp(last[torch.arange(2), out["ans_pos"]])
    torch.testing.assert_close(logits, out["logits"], **TOLERANCE)
    torch.testing.assert_close(soft_target_bce(logits, inputs["label"]), out["loss"], **TOLERANCE)
