"""UNITER equals the original code: every layer, logits, losses, gradients, key names, packing, optimiser steps."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from advl_pipeline.students.bert_parts import attention_bias
from advl_pipeline.students.checkpoints import KeyRules, load_into, require_complete
from advl_pipeline.students.task_losses import soft_target_bce, two_way_choice
from advl_pipeline.students.uniter_core import UniterModel, gather_index, pack, unpack
from advl_pipeline.students.uniter_heads import TwoWayChoiceHead, head_rules, uniter_head

TOLERANCE = {"atol": 2e-5, "rtol": 0.0}
Reference = Mapping[str, torch.Tensor]


def part(arrays: Reference, prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}


def tiny_model(weights: Reference) -> UniterModel:
    vocab, width = weights["uniter.embeddings.word_embeddings.weight"].shape
    return UniterModel(
        hidden_size=width,
        num_layers=3,
        num_heads=4,
        intermediate_size=48,
        vocab_size=vocab,
        max_positions=40,
        num_types=weights["uniter.embeddings.token_type_embeddings.weight"].shape[0],
        feature_size=16,
        dropout=0.0,
    )


CORE_RULES = KeyRules(rename=((r"^uniter\.", ""),), ignore=(r"^v\w+_output\.",))


def load_reference(task: str, arrays: Reference) -> tuple[UniterModel, nn.Module]:
    weights = part(arrays, "w/")
    model = tiny_model(weights)
    require_complete(load_into(model, weights, CORE_RULES, source=task))
    num_classes = arrays["out/logits"].shape[1]
    head = uniter_head(task, 24, num_classes)
    require_complete(load_into(head, weights, head_rules(task), source=task))
    return model, head


def run(model: UniterModel, inputs: Reference) -> tuple[torch.Tensor, ...]:
    text = model.embed_text(inputs["input_ids"], types_NL=inputs.get("txt_type_ids"))
    regions = model.embed_regions(inputs["img_feat"], inputs["img_pos_feat"])
    packed = pack(text, regions, inputs["gather_index"])
    bias = attention_bias(inputs["attn_masks"] - 1, dtype=packed.dtype)
    return text, regions, packed, *model.layers(packed, bias)


@pytest.mark.parametrize("task", ["vqa", "ve", "vcr"])
def test_layers_logits_losses_and_gradients(task: str, reference: Callable[[str], Reference]) -> None:
    arrays = reference(f"uniter/uniter_tiny_{task}.npz")
    model, head = load_reference(task, arrays)
    out = part(arrays, "out/")
    states = run(model, part(arrays, "in/"))
    names = ("txt_emb", "img_emb", "embedding_output", "layer_0", "layer_1", "layer_2")
    for name, state in zip(names, states, strict=True):
        torch.testing.assert_close(state, out[name], **TOLERANCE)
    pooled = model.pooler(states[-1])
    torch.testing.assert_close(pooled, out["pooled"], **TOLERANCE)
    torch.testing.assert_close(head(pooled), out["logits"], **TOLERANCE)
    targets = arrays["in/targets"]
    if isinstance(head, TwoWayChoiceHead):
        raw = reference("uniter/uniter_tiny_vcr_raw2way.npz")["raw"]
        torch.testing.assert_close(head.two_way(pooled), raw, **TOLERANCE)
        loss = two_way_choice(head.two_way(pooled), targets[:, 0])
    else:
        loss = soft_target_bce(head(pooled), targets)
    torch.testing.assert_close(loss, out["train_loss"], **TOLERANCE)
    loss.backward()
    gradients = original_gradients(model, head, task)
    expected = part(arrays, "grad/")
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], **TOLERANCE)


def original_gradients(model: UniterModel, head: nn.Module, task: str) -> dict[str, torch.Tensor]:
    prefix = "vcr_output." if task == "vcr" else "vqa_output."
    named = {f"uniter.{name}": value for name, value in model.named_parameters()}
    named |= {f"{prefix}{name.removeprefix('net.')}": value for name, value in head.named_parameters()}
    return {name: value.grad for name, value in named.items() if value.grad is not None}


@pytest.mark.parametrize("task", ["vqa", "vcr"])
def test_text_only_and_image_only(task: str, reference: Callable[[str], Reference]) -> None:
    arrays = reference(f"uniter/uniter_tiny_{task}.npz")
    model, _ = load_reference(task, arrays)
    inputs = part(arrays, "in/")
    text, regions, *_ = run(model, inputs)
    has_text = inputs["input_ids"] != 0
    has_region = inputs["img_feat"].abs().sum(-1) > 0
    for embedded, visible, name in ((text, has_text, "text_only"), (regions, has_region, "image_only")):
        state = model.layers(embedded, attention_bias(visible.long() - 1, dtype=embedded.dtype))[-1]
        torch.testing.assert_close(state, arrays[f"out/{name}"], **TOLERANCE)


def seeded(name: str, shape: torch.Size, scale: float) -> torch.Tensor:
    """Weights by the rule of the reference: a function of the key."""
    low = name.lower()
    is_norm = any(mark in low for mark in ("layernorm", "layer_norm", "_ln_")) or low.endswith("_output.2.weight")
    base = 1.0 if is_norm and low.endswith("weight") else 0.0
    noise = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF).standard_normal(tuple(shape))
    return torch.from_numpy((base + scale * noise).astype(np.float32))


def key_shapes(assets: Path, name: str) -> dict[str, torch.Size]:
    shapes = json.loads((assets / "uniter" / name).read_text())
    return {key: torch.Size(shape) for key, shape in shapes.items()}


def base_model(vocab: int = 28996, num_types: int = 2) -> UniterModel:
    return UniterModel(
        hidden_size=768,
        num_layers=12,
        num_heads=12,
        intermediate_size=3072,
        vocab_size=vocab,
        max_positions=512,
        num_types=num_types,
        feature_size=2048,
        dropout=0.1,
    )


@pytest.mark.slow
def test_base_size_from_seeded_weights(reference: Callable[[str], Reference], assets: Path) -> None:
    arrays = reference("uniter/uniter_base_seeded_vqa.npz")
    shapes = key_shapes(assets, "uniter_base_vqa_keys.json")
    state = {name: seeded(name, shape, 0.02) for name, shape in shapes.items()}
    model, head = base_model().eval(), uniter_head("vqa", 768, 3129)
    require_complete(load_into(model, state, CORE_RULES, source="seeded"))
    require_complete(load_into(head, state, head_rules("vqa"), source="seeded"))
    with torch.no_grad():
        last = run(model, part(arrays, "in/"))[-1]
        logits = head(model.pooler(last))
    valid = arrays["in/attn_masks"].bool()
    torch.testing.assert_close(last[valid], arrays["out/last_hidden"][valid], **TOLERANCE)
    torch.testing.assert_close(logits, arrays["out/logits"], **TOLERANCE)


@pytest.mark.parametrize(
    ("file", "task", "vocab", "num_types"),
    [("uniter_base_vqa_keys.json", "vqa", 28996, 2), ("uniter_base_vcr_keys.json", "vcr", 29077, 4)],
)
def test_key_names_and_shapes(file: str, task: str, vocab: int, num_types: int, assets: Path) -> None:
    with torch.device("meta"):
        model, head = base_model(vocab, num_types), uniter_head(task, 768, 3129)
    own = {f"uniter.{name}": value.shape for name, value in model.state_dict().items()}
    prefix = f"{task}_output."
    own |= {f"{prefix}{name.removeprefix('net.')}": value.shape for name, value in head.state_dict().items()}
    assert own == key_shapes(assets, file)


@pytest.mark.parametrize("task", ["vqa", "qa", "qar"])
def test_packing_equals_the_original_collate(task: str, reference: Callable[[str], Reference]) -> None:
    arrays = reference(f"uniter_data/{'vqa' if task == 'vqa' else 'vcr'}_collate_expected.npz")
    expected = arrays if task == "vqa" else part(arrays, f"{task}/")
    text_lengths = (expected["input_ids"] != 0).sum(1)
    total = expected["attn_masks"].sum(1)
    index = gather_index(
        text_lengths, total - text_lengths, num_text=expected["input_ids"].shape[1], size=int(total.max())
    )
    visible = expected["attn_masks"].bool()
    assert index.shape == expected["gather_index"].shape
    assert torch.equal(index[visible], expected["gather_index"][visible])


def test_packed_and_padded_layouts_agree_and_unpack_inverts(reference: Callable[[str], Reference]) -> None:
    arrays = reference("uniter/uniter_tiny_vqa.npz")
    model, _ = load_reference("vqa", arrays)
    inputs = part(arrays, "in/")
    text, regions, packed, *_, last = run(model, inputs)
    lengths = [7, 12, 5]
    counts = [int(total) - length for total, length in zip(inputs["attn_masks"].sum(1), lengths, strict=True)]
    text_mask = torch.arange(12) < torch.tensor(lengths)[:, None]
    visual_mask = torch.arange(9) < torch.tensor(counts)[:, None]
    text_states, visual_states = unpack(packed, text_mask, visual_mask)
    torch.testing.assert_close(text_states[text_mask], text[text_mask])
    torch.testing.assert_close(visual_states[visual_mask], regions[visual_mask])
    assert not text_states[~text_mask].any()
    kinds = torch.where(torch.cat([text_mask, visual_mask], dim=1), 0, -1)
    padded = model.layers(torch.cat([text, regions], dim=1), attention_bias(kinds, dtype=text.dtype))[-1]
    text_last, visual_last = unpack(last, text_mask, visual_mask)
    torch.testing.assert_close(padded[:, :12][text_mask], text_last[text_mask], **TOLERANCE)
    torch.testing.assert_close(padded[:, 12:][visual_mask], visual_last[visual_mask], **TOLERANCE)
