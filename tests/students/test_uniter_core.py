"""UNITER equals the original code: every layer, logits, losses, gradients, key names, packing, optimiser steps."""

from __future__ import annotations

import json

import pytest
import torch
from closeness import assert_near, largest
from references import (
    ASSETS,
    Reference,
    UniterPass,
    part,
    reference,
    require_complete,
    seeded,
    tiny_uniter,
)
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from advl_pipeline.students.bert_parts import TokenGrid, attention_bias, one_row_attention, run_layers, token_kinds
from advl_pipeline.students.checkpoints import KeyRules, load_into
from advl_pipeline.students.interface import Perturbation
from advl_pipeline.students.uniter import TwoWayChoiceHead, Uniter, UniterConfig, UniterModel, uniter_head
from advl_pipeline.training.targets import soft_target_bce, two_way_choice


def tiny_model(weights: Reference) -> UniterModel:
    num_types = len(weights["uniter.embeddings.token_type_embeddings.weight"])
    return UniterModel(tiny_uniter(num_types), num_words=len(weights["uniter.embeddings.word_embeddings.weight"]))


CORE_RULES = KeyRules(rename=((r"^uniter\.", ""),), ignore=(r"^v\w+_output\.",))


KINDS = {"vcr": "choice", "vqa": "answers", "ve": "classes"}


def load_reference(task: str, arrays: Reference) -> tuple[UniterModel, nn.Module]:
    weights = part(arrays, "w/")
    model = tiny_model(weights)
    require_complete(load_into(model, weights, CORE_RULES, source=task))
    num_classes = arrays["out/logits"].shape[1]
    head = uniter_head(KINDS[task], 24, num_classes)
    require_complete(load_into(head, weights, Uniter.head_rules(KINDS[task]), source=task))
    return model, head


@pytest.mark.parametrize("task", ["vqa", "ve", "vcr"])
def test_layers_logits_losses_and_gradients(task: str) -> None:
    arrays = reference(f"uniter/uniter_tiny_{task}.npz")
    model, head = load_reference(task, arrays)
    out = part(arrays, "out/")
    made = UniterPass(model, part(arrays, "in/"))
    assert_near(made.text, out["txt_emb"])
    assert_near(made.regions, out["img_emb"])
    for number in range(3):
        states = made.states(number + 1)
        assert not states[made.kinds < 0].any()
        assert_near(states[made.kinds >= 0], out[f"layer_{number}"][made.visible])
    pooled = model.pooler(states)
    assert_near(pooled, out["pooled"])
    assert_near(head(pooled), out["logits"])
    targets = arrays["in/targets"]
    if isinstance(head, TwoWayChoiceHead):
        raw = reference("uniter/uniter_tiny_vcr_raw2way.npz")["raw"]
        assert_near(head.two_way(pooled), raw)
        loss = two_way_choice(head.two_way(pooled), targets[:, 0])
    else:
        loss = soft_target_bce(head(pooled), targets)
    assert_near(loss, out["train_loss"])
    loss.backward()
    gradients = original_gradients(model, head, task)
    expected = part(arrays, "grad/")
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert_near(gradient, expected[name], scale=largest(expected.values()), name=name)


def original_gradients(model: UniterModel, head: nn.Module, task: str) -> dict[str, torch.Tensor]:
    prefix = "vcr_output." if task == "vcr" else "vqa_output."
    named = {f"uniter.{name}": value for name, value in model.named_parameters()}
    named |= {f"{prefix}{name.removeprefix('net.')}": value for name, value in head.named_parameters()}
    return {name: value.grad for name, value in named.items() if value.grad is not None}


@pytest.mark.parametrize("task", ["vqa", "vcr"])
def test_text_only_and_image_only(task: str) -> None:
    arrays = reference(f"uniter/uniter_tiny_{task}.npz")
    model, _ = load_reference(task, arrays)
    made = UniterPass(model, part(arrays, "in/"))
    none = torch.zeros_like(made.text_mask[:, :0])
    for embedded, mask, name in (
        (made.text, made.text_mask, "text_only"),
        (made.regions, made.region_mask, "image_only"),
    ):
        states, _ = run_layers(list(model.encoder.layer), embedded, token_kinds(mask, none), num_text=mask.shape[1])
        assert_near(states[mask], arrays[f"out/{name}"][mask])


def key_shapes(name: str) -> dict[str, torch.Size]:
    shapes = json.loads((ASSETS / "uniter" / name).read_text())
    return {key: torch.Size(shape) for key, shape in shapes.items()}


def base_model(num_words: int = 28996, num_types: int = 2) -> UniterModel:
    return UniterModel(UniterConfig(num_types=num_types), num_words=num_words)


@pytest.mark.slow
def test_base_size_from_seeded_weights() -> None:
    arrays = reference("uniter/uniter_base_seeded_vqa.npz")
    shapes = key_shapes("uniter_base_vqa_keys.json")
    state = {name: seeded(name, shape, 0.02) for name, shape in shapes.items()}
    model, head = base_model().eval(), uniter_head("answers", 768, 3129)
    require_complete(load_into(model, state, CORE_RULES, source="seeded"))
    require_complete(load_into(head, state, Uniter.head_rules("answers"), source="seeded"))
    with torch.no_grad():
        made = UniterPass(model, part(arrays, "in/"))
        last = made.states()
        logits = head(model.pooler(last))
    assert_near(last[made.kinds >= 0], arrays["out/last_hidden"][made.visible])
    assert_near(logits, arrays["out/logits"])


@pytest.mark.parametrize(
    ("file", "task", "vocab", "num_types"),
    [("uniter_base_vqa_keys.json", "vqa", 28996, 2), ("uniter_base_vcr_keys.json", "vcr", 29077, 4)],
)
def test_key_names_and_shapes(file: str, task: str, vocab: int, num_types: int) -> None:
    with torch.device("meta"):
        model, head = base_model(vocab, num_types), uniter_head(KINDS[task], 768, 3129)
    shapes = {f"uniter.{name}": value.shape for name, value in model.state_dict().items()}
    prefix = f"{task}_output."
    shapes |= {f"{prefix}{name.removeprefix('net.')}": value.shape for name, value in head.state_dict().items()}
    assert shapes == key_shapes(file)


@pytest.mark.parametrize("task", ["vqa", "qa", "qar"])
def test_the_order_of_tokens_equals_the_original_collate(task: str) -> None:
    arrays = reference(f"uniter_data/{'vqa' if task == 'vqa' else 'vcr'}_collate_expected.npz")
    expected = arrays if task == "vqa" else part(arrays, f"{task}/")
    visible = expected["attn_masks"].bool()
    has_text = expected["input_ids"] != 0
    counts = visible.sum(1) - has_text.sum(1)
    has_region = torch.arange(int(counts.max())) < counts[:, None]
    grid = TokenGrid.of_kinds(token_kinds(has_text, has_region))
    assert grid.size == expected["gather_index"].shape[1]
    num_columns = has_text.shape[1] + has_region.shape[1]
    assert torch.equal(grid.column_T % num_columns, expected["gather_index"][visible])
    assert torch.equal(grid.slot_T, visible.flatten().nonzero()[:, 0])


def test_the_first_token_alone_is_that_of_all_with_its_gradients() -> None:
    model, _ = load_reference("vcr", reference("uniter/uniter_tiny_vcr.npz"))
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(7) < torch.tensor([7, 3, 5, 1, 6, 2])[:, None]
    kinds = token_kinds(mask, mask[:, :4].flip(0))
    inputs = torch.randn(*kinds.shape, 24, generator=generator)
    outcomes = []
    for first_only in (False, True):
        for separate in (False, True):
            x = inputs.clone().requires_grad_()
            layers = list(model.encoder.layer)
            states, _ = run_layers(layers, x, kinds, num_text=7, separate=separate, first_only=first_only)
            states[:, 0].square().sum().backward()
            weights = [value.grad.clone() for value in layers[-1].parameters() if value.grad is not None]
            model.zero_grad()
            outcomes.append((states[:, 0], x.grad, *weights))
    for ours, all_of_it in zip(outcomes[2:], outcomes[:2], strict=True):
        for value, expected in zip(ours, all_of_it, strict=True):
            assert_near(value, expected, scale=largest(all_of_it[1:]))


def test_attention_with_dropout_on_a_cpu_is_torch_s() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, 9, 8, generator=generator) for _ in range(3))
    bias = attention_bias(torch.tensor([[0] * 9, [0] * 4 + [-1] * 5]), dtype=query.dtype)
    options = {"dropout": 0.4, "scaling": 0.3}
    torch.manual_seed(1)
    ours, _ = one_row_attention(torch.nn.Identity(), query, key, value, bias, **options)
    torch.manual_seed(1)
    torch_s, _ = sdpa_attention_forward(torch.nn.Identity(), query, key, value, bias, **options)
    assert_near(ours, torch_s)


def test_candidates_share_their_pictures_embedding_and_draw_their_own_dropout() -> None:
    model = tiny_model(
        {
            "uniter.embeddings.word_embeddings.weight": torch.zeros(9, 24),
            "uniter.embeddings.token_type_embeddings.weight": torch.zeros(4, 24),
        }
    )
    features, positions = torch.rand(2, 3, 16), torch.rand(2, 3, 7)

    def repeat(value: torch.Tensor) -> torch.Tensor:
        return value.repeat_interleave(2, dim=0)

    shared = model.embed_regions(features, positions, repeat=repeat)
    torch.testing.assert_close(shared, model.embed_regions(repeat(features), repeat(positions)))
    delta = torch.rand(4, 3, 16)
    perturbed = model.embed_regions(features, positions, repeat=repeat, delta=Perturbation(visual_NRF=delta))
    torch.testing.assert_close(perturbed, model.embed_regions(repeat(features) + delta, repeat(positions)))
    model.img_embeddings.dropout.p = 0.5
    first, second, *_ = model.embed_regions(features, positions, repeat=repeat)
    assert not torch.equal(first, second)
