"""VisualBERT and LXMERT equal the original code, and transformers' own models."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import nn
from transformers import LxmertModel
from transformers import VisualBertConfig as HfVisualBertConfig
from transformers import VisualBertModel as HfVisualBertModel
from whole_checkpoints import require_complete

from advl_pipeline.students.bert_parts import attention_bias, kinds_of
from advl_pipeline.students.checkpoints import KeyRules, load_into
from advl_pipeline.students.lxmert import Lxmert, LxmertConfig, lxmert_config
from advl_pipeline.students.visualbert import VisualBert, VisualBertConfig, VisualBertModel
from advl_pipeline.training.targets import softmax_choice

Reference = Mapping[str, torch.Tensor]
TOLERANCE = {"atol": 2e-5, "rtol": 0.0}


def part(arrays: Reference, prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}


class Wrapped(nn.Module):
    """Puts a model behind `model.`, where the student has it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


VISUALBERT = VisualBertConfig(
    hidden_size=24,
    num_layers=3,
    num_heads=4,
    intermediate_size=48,
    feature_size=16,
    vocab_size=90,
    max_positions=40,
    dropout=0.0,
)


def visualbert_states(model: VisualBertModel, inputs: Reference, alignment: torch.Tensor) -> torch.Tensor:
    words = model.embeddings.word_embeddings(inputs["ids"])
    x = model.embed(words, inputs["tt"], inputs["visual"], alignment)
    bias = attention_bias(kinds_of(inputs["input_mask"], inputs["image_mask"]), dtype=x.dtype)
    for layer in model.encoder.layer:
        x = layer(x, bias)
    return x


@pytest.mark.parametrize("aligned", [False, True])
def test_visualbert_vcr(aligned: bool, reference: Callable[[str], Reference]) -> None:
    arrays = reference("visualbert/visualbert_tiny.npz")
    weights = part(arrays, "vcr/w/")
    model = Wrapped(VisualBertModel(VISUALBERT)).eval()
    require_complete(load_into(model, weights, VisualBert.rules, source="vcr"))
    head = nn.Sequential(nn.Dropout(0.1), nn.Linear(24, 1)).eval()
    require_complete(load_into(head, weights, VisualBert.head_rules("vcr-q2a"), source="vcr"))
    inputs = {key: value.flatten(0, 1) for key, value in part(arrays, "vcr/in/").items()}
    alignment = inputs["align"] if aligned else torch.full_like(inputs["align"], -1)
    core = model.model
    assert isinstance(core, VisualBertModel)
    logits = head(core.pooler(visualbert_states(core, inputs, alignment))).reshape(2, 4)
    out = part(arrays, f"vcr/out/{'align' if aligned else 'noalign'}_")
    torch.testing.assert_close(logits, out["logits"], **TOLERANCE)
    losses = [softmax_choice(logits, torch.tensor([a, b])) for a in range(4) for b in range(4)]
    assert min(abs(loss - out["loss"]) for loss in losses) < 2e-5


@pytest.mark.parametrize("aligned", [False, True])
def test_visualbert_equals_transformers(aligned: bool, reference: Callable[[str], Reference]) -> None:
    arrays = reference("visualbert/visualbert_tiny.npz")
    torch.manual_seed(0)
    theirs = HfVisualBertModel(
        HfVisualBertConfig(
            vocab_size=90,
            hidden_size=24,
            visual_embedding_dim=16,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=48,
            max_position_embeddings=40,
        )
    ).eval()
    ours = VisualBertModel(VISUALBERT).eval()
    require_complete(load_into(ours, theirs.state_dict(), KeyRules(), source="transformers"))
    inputs = {key: value.flatten(0, 1) for key, value in part(arrays, "vcr/in/").items()}
    alignment = inputs["align"].clone() if aligned else None
    expected = theirs(
        input_ids=inputs["ids"],
        token_type_ids=inputs["tt"],
        attention_mask=inputs["input_mask"],
        visual_embeds=inputs["visual"],
        visual_attention_mask=inputs["image_mask"],
        visual_token_type_ids=torch.zeros_like(inputs["image_mask"]),
        image_text_alignment=alignment,
    ).last_hidden_state
    states = visualbert_states(ours, inputs, inputs["align"] if aligned else torch.full_like(inputs["align"], -1))
    torch.testing.assert_close(states, expected, **TOLERANCE)


LXMERT = LxmertConfig(
    hidden_size=24,
    num_layers=3,
    num_relation_layers=2,
    num_cross_layers=2,
    num_heads=4,
    intermediate_size=48,
    feature_size=32,
    vocab_size=90,
    max_positions=40,
    dropout=0.0,
)


@pytest.mark.parametrize("masked", [False, True])
def test_lxmert_core(masked: bool, reference: Callable[[str], Reference]) -> None:
    arrays = reference("lxmert/lxmert_tiny.npz")
    model = Wrapped(LxmertModel(lxmert_config(LXMERT))).eval()
    require_complete(load_into(model, part(arrays, "w/"), Lxmert.rules, source="lxmert"))
    inputs = part(arrays, "in/")
    output = model.model(
        input_ids=inputs["ids"],
        attention_mask=inputs["am"],
        visual_feats=inputs["feats"],
        visual_pos=inputs["pos"],
        visual_attention_mask=inputs["vm"] if masked else None,
    )
    end = "_masked" if masked else ""
    torch.testing.assert_close(output.language_output, arrays[f"out/lang{end}"], **TOLERANCE)
    torch.testing.assert_close(output.vision_output, arrays[f"out/visn{end}"], **TOLERANCE)
    torch.testing.assert_close(output.pooled_output, arrays[f"out/pooled{end}"], **TOLERANCE)
