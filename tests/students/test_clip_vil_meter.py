"""CLIP-ViL_p's core and METER's cross-modal stack equal the original code."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn
from whole_checkpoints import require_complete

from advl_pipeline.students.bert_parts import attention_bias, kinds_of, norm_first_head
from advl_pipeline.students.checkpoints import KeyRules, load_into
from advl_pipeline.students.clip_vil import ClipVil, ClipVilConfig, ClipVilModel
from advl_pipeline.students.meter import CrossModalStack, MeterConfig

Reference = Mapping[str, torch.Tensor]
TOLERANCE = {"atol": 2e-5, "rtol": 0.0}


def part(arrays: Reference, prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}


class Wrapped(nn.Module):
    """Puts the model behind `model.`, where the student has it."""

    def __init__(self, model: ClipVilModel) -> None:
        super().__init__()
        self.model = model


def test_clip_vil_core(reference: Callable[[str], Reference]) -> None:
    arrays = reference("clipvil/clipvil_p_tiny.npz")
    config = ClipVilConfig(
        hidden_size=24,
        num_layers=3,
        num_heads=4,
        intermediate_size=48,
        feature_size=32,
        vocab_size=90,
        max_positions=40,
        num_grid_positions=7,
        dropout=0.0,
    )
    wrapped = Wrapped(ClipVilModel(config)).eval()
    report = require_complete(load_into(wrapped, part(arrays, "w/"), ClipVil.rules, source="clip-vil"))
    assert all("box_" in name for name in report.ignored)
    model, inputs, out = wrapped.model, part(arrays, "in/"), part(arrays, "out/")
    grid = inputs["grid"].flatten(2).transpose(1, 2)
    torch.testing.assert_close(model.visual_pos(grid, 5), out["grid_plus_pos"], **TOLERANCE)
    x = torch.cat([model.embeddings(input_ids=inputs["ids"]), model.embed_grid(grid, 5)], dim=1)
    visual_mask = torch.ones(3, 20, dtype=torch.bool)
    bias = attention_bias(kinds_of(inputs["am"], visual_mask), dtype=x.dtype)
    for layer in model.encoder.layer:
        x = layer(x, bias)
    torch.testing.assert_close(x[:, :8], out["lang"], **TOLERANCE)
    torch.testing.assert_close(x[:, 8:], out["visn"], **TOLERANCE)
    torch.testing.assert_close(model.pooler(x), out["pooled"], **TOLERANCE)


def test_meter_cross_modal_stack(reference: Callable[[str], Reference]) -> None:
    arrays = reference("meter/meter_crossmodal_tiny.npz")
    weights, inputs, out = (part(arrays, f"{name}/") for name in ("w", "in", "out"))
    config = MeterConfig(hidden_size=24, num_layers=2, num_heads=4, intermediate_size=48, dropout=0.0)
    stack = CrossModalStack(config, text_size=20, image_size=28).eval()
    rules = KeyRules(ignore=(r"_classifier\.",))
    require_complete(load_into(stack, weights, rules, source="meter"))
    entering = stack.text(inputs["text_embeds"]), stack.image(inputs["image_embeds"])
    layers = stack.layers(*entering, inputs["text_mask"])
    for index, (text, image) in enumerate(layers):
        torch.testing.assert_close(text, out[f"text_{index}"], **TOLERANCE)
        torch.testing.assert_close(image, out[f"image_{index}"], **TOLERANCE)
    assert index == 1
    pooled = stack.pool(text, image)
    torch.testing.assert_close(pooled, out["cls"], **TOLERANCE)
    for task, num_classes in (("vqa", 11), ("snli", 3)):
        head = norm_first_head(48, num_classes, hidden=48)
        own = KeyRules(rename=((rf"^{task}_classifier\.", ""),), ignore=(rf"^(?!{task}_classifier\.)",))
        require_complete(load_into(head, weights, own, source=task))
        torch.testing.assert_close(head(pooled), out[task], **TOLERANCE)
