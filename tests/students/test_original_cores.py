"""CLIP-ViL_p, METER, VL-BERT, VisualBERT and LXMERT equal the original code, and transformers' own models."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from closeness import assert_near
from references import ASSETS, TINY, Reference, Wrapped, part, reference, require_complete, seeded
from torch import nn
from transformers import LxmertConfig as HfLxmertConfig
from transformers import LxmertModel, VisualBertConfig
from transformers import VisualBertModel as HfVisualBertModel

from advl_pipeline.students.bert_parts import attention_bias, norm_first_head, token_kinds
from advl_pipeline.students.checkpoints import KeyRules, load_into
from advl_pipeline.students.clip_vil import ClipVil, ClipVilConfig, ClipVilModel
from advl_pipeline.students.lxmert import Lxmert, LxmertConfig
from advl_pipeline.students.meter import CrossModalStack, MeterConfig, pooled_pair
from advl_pipeline.students.presets import library_config
from advl_pipeline.students.region_student import RegionStudentConfig
from advl_pipeline.students.visualbert import VisualBert, VisualBertModel
from advl_pipeline.students.vl_bert import (
    ObjectDownsample,
    VlBert,
    VlBertConfig,
    VlBertModel,
    collect_objects,
    coordinate_embedding,
    vl_bert_head,
)
from advl_pipeline.training.targets import sigmoid_choice, soft_target_bce, softmax_choice


def through_layers(
    model: Any, x_NSH: torch.Tensor, text_mask: torch.Tensor, visual_mask: torch.Tensor
) -> torch.Tensor:
    bias = attention_bias(token_kinds(text_mask, visual_mask), dtype=x_NSH.dtype)
    for layer in model.encoder.layer:
        x_NSH = layer(x_NSH, bias)
    return x_NSH


def test_clip_vil_core() -> None:
    arrays = reference("clipvil/clipvil_p_tiny.npz")
    config = ClipVilConfig(**TINY, feature_size=32, vocab_size=90, max_positions=40, num_grid_positions=7)
    wrapped = Wrapped(ClipVilModel(config)).eval()
    report = require_complete(load_into(wrapped, part(arrays, "w/"), ClipVil.rules, source="clip-vil"))
    assert all("box_" in name for name in report.ignored)
    model, inputs, out = wrapped.model, part(arrays, "in/"), part(arrays, "out/")
    grid = inputs["grid"].flatten(2).transpose(1, 2)
    assert_near(model.visual_pos(grid, 5), out["grid_plus_pos"])
    x = torch.cat([model.embeddings(input_ids=inputs["ids"]), model.embed_grid(grid, 5)], dim=1)
    x = through_layers(model, x, inputs["am"], torch.ones(3, 20, dtype=torch.bool))
    assert_near(x[:, :8], out["lang"])
    assert_near(x[:, 8:], out["visn"])
    assert_near(model.pooler(x), out["pooled"])


def test_meter_cross_modal_stack() -> None:
    arrays = reference("meter/meter_crossmodal_tiny.npz")
    weights, inputs, out = (part(arrays, f"{name}/") for name in ("w", "in", "out"))
    config = MeterConfig(hidden_size=24, num_layers=2, num_heads=4, intermediate_size=48, dropout=0.0)
    stack = CrossModalStack(config, text_size=20, image_size=28).eval()
    rules = KeyRules(ignore=(r"_classifier\.",))
    require_complete(load_into(stack, weights, rules, source="meter"))
    entering = stack.text(inputs["text_embeds"]), stack.image(inputs["image_embeds"])
    layers = stack.layers(*entering, inputs["text_mask"])
    for index, (text, image) in enumerate(layers):
        assert_near(text, out[f"text_{index}"])
        assert_near(image, out[f"image_{index}"])
    assert index == 1
    pooled = pooled_pair(stack, text, image)
    assert_near(pooled, out["cls"])
    for task, num_classes in (("vqa", 11), ("snli", 3)):
        head = norm_first_head(48, num_classes, hidden=48)
        task_rules = KeyRules(rename=((rf"^{task}_classifier\.", ""),), ignore=(rf"^(?!{task}_classifier\.)",))
        require_complete(load_into(head, weights, task_rules, source=task))
        assert_near(head(pooled), out[task])


def tiny_core() -> VlBertModel:
    return VlBertModel(VlBertConfig(**TINY, vocab_size=80, max_positions=64))


def with_end(object_mask: torch.Tensor) -> torch.Tensor:
    return nn.functional.pad(object_mask, (0, 1), value=True)


def packed(x_NSH: torch.Tensor, text_mask: torch.Tensor, object_mask: torch.Tensor) -> list[torch.Tensor]:
    """Each sequence without gaps, as the original lays it out."""
    keep = torch.cat([text_mask, object_mask, torch.ones_like(text_mask[:, :1])], dim=1)
    return [row[mask] for row, mask in zip(x_NSH, keep, strict=True)]


def test_coordinate_embedding() -> None:
    arrays = reference("vlbert/vlbert_tiny.npz")
    boxes = arrays["coord/boxes_wh"]
    corners = boxes[:, :4] / boxes[:, [4, 5, 4, 5]]
    # The angles reach 100 radians, where one rounding of the input moves a sine by 1e-5.
    assert_near(coordinate_embedding(corners), arrays["coord/emb_dim256"].flatten(1))


def test_core() -> None:
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
        assert_near(row, expected[mask])
    last = through_layers(model, x, text_mask, with_end(object_mask))
    for row, expected, mask in zip(packed(last, text_mask, object_mask), out["hidden"], out["mask"], strict=True):
        assert_near(row, expected[mask])
    assert_near(model.pooler(last), out["pooled"])
    assert_near(last[:, :10][text_mask], out["hidden_text"][text_mask])
    assert_near(last[:, 10:16][object_mask], out["hidden_obj"][object_mask])


class Vcr(nn.Module):
    """The original's VCR model with object representations supplied."""

    def __init__(self) -> None:
        super().__init__()
        self.vlbert = tiny_core()
        self.object_linguistic_embeddings = nn.Embedding(1, 24)

    def states(self, out: Reference, reps: torch.Tensor, object_mask: torch.Tensor) -> torch.Tensor:
        """Return the last states of texts, given the original's ids, types and tags, and the objects' features."""
        names = ("text_input_ids", "type_ids", "text_tags", "text_mask")
        ids, types, tags, text_mask = (out[name].flatten(0, -2) for name in names)
        x = self.vlbert.embed(
            self.vlbert.word_embeddings(ids),
            types,
            collect_objects(tags, reps),
            reps,
            self.object_linguistic_embeddings.weight[0],
            text_mask.sum(1),
        )
        return through_layers(self.vlbert, x, text_mask, with_end(object_mask))


def test_vcr_model() -> None:
    arrays = reference("vlbert/vlbert_tiny.npz")
    weights, inputs, out = (part(arrays, f"vcr/{name}/") for name in ("w", "in", "out"))
    model, head = Vcr().eval(), vl_bert_head("choice", 24, 1).eval()
    require_complete(load_into(model, weights, VlBert.rules, source="vcr"))
    require_complete(load_into(head, weights, VlBert.head_rules("choice"), source="vcr"))
    reps = inputs["obj_reps"].repeat_interleave(4, dim=0)
    object_mask = (inputs["boxes"][:, :, 3] > -0.5).repeat_interleave(4, dim=0)
    last = model.states(out, reps, object_mask)
    logits = head(model.vlbert.pooler(last)).reshape(2, 4)
    assert_near(logits, out["logits"])
    assert_near(sigmoid_choice(logits, inputs["label"]), out["ans_loss"])


class Vqa(Vcr):
    """The original's VQA model over precomputed features."""

    def __init__(self) -> None:
        super().__init__()
        self.image_feature_extractor = ObjectDownsample(24, 2048, 0.1)
        self.final_mlp = nn.Sequential(nn.Dropout(0.1), nn.Linear(24, 11))


def test_vqa_model() -> None:
    arrays = reference("vlbert/vlbert_tiny.npz")
    shapes = json.loads((ASSETS / "vlbert" / "vlbert_tiny_keys.json").read_text())["vqa_keys"]
    model = Vqa().eval()
    state = {name: seeded(name, shape, 0.05) for name, shape in shapes.items()}
    rules = KeyRules(optional=(r"^vlbert\.pooler\.",))
    require_complete(load_into(model, state, rules, source="seeded"))
    inputs, out = part(arrays, "vqa/in/"), part(arrays, "vqa/out/")
    boxes, size = inputs["boxes"], inputs["im_info"][:, None, [0, 1, 0, 1]]
    object_mask = boxes[:, :, 0] > -1.5
    reps = model.image_feature_extractor(boxes[..., 4:], boxes[..., :4] / size)
    assert_near(reps[object_mask], out["obj_reps"][object_mask])
    last = model.states(out, reps, object_mask)
    logits = model.final_mlp(last[torch.arange(2), out["ans_pos"]])
    assert_near(logits, out["logits"])
    assert_near(soft_target_bce(logits, inputs["label"]), out["loss"])


VISUALBERT = RegionStudentConfig(**TINY, feature_size=16, vocab_size=90, max_positions=40)


def visualbert_states(model: VisualBertModel, inputs: Reference, alignment: torch.Tensor) -> torch.Tensor:
    words = model.embeddings.word_embeddings(inputs["ids"])
    x = model.embed(words, inputs["tt"], inputs["visual"], alignment)
    return through_layers(model, x, inputs["input_mask"], inputs["image_mask"])


@pytest.mark.parametrize("aligned", [False, True])
def test_visualbert_vcr(aligned: bool) -> None:
    arrays = reference("visualbert/visualbert_tiny.npz")
    weights = part(arrays, "vcr/w/")
    model = Wrapped(VisualBertModel(VISUALBERT)).eval()
    require_complete(load_into(model, weights, VisualBert.rules, source="vcr"))
    head = nn.Sequential(nn.Dropout(0.1), nn.Linear(24, 1)).eval()
    require_complete(load_into(head, weights, VisualBert.head_rules("choice"), source="vcr"))
    inputs = {key: value.flatten(0, 1) for key, value in part(arrays, "vcr/in/").items()}
    alignment = inputs["align"] if aligned else torch.full_like(inputs["align"], -1)
    core = model.model
    logits = head(core.pooler(visualbert_states(core, inputs, alignment))).reshape(2, 4)
    out = part(arrays, f"vcr/out/{'align' if aligned else 'noalign'}_")
    assert_near(logits, out["logits"])
    losses = [softmax_choice(logits, torch.tensor([a, b])) for a in range(4) for b in range(4)]
    assert min(abs(loss - out["loss"]) for loss in losses) < 2e-5


@pytest.mark.parametrize("aligned", [False, True])
def test_visualbert_equals_transformers(aligned: bool) -> None:
    arrays = reference("visualbert/visualbert_tiny.npz")
    torch.manual_seed(0)
    theirs = HfVisualBertModel(library_config(VisualBertConfig, VISUALBERT)).eval()
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
    assert_near(states, expected)


LXMERT = LxmertConfig(
    **TINY, num_relation_layers=2, num_cross_layers=2, feature_size=32, vocab_size=90, max_positions=40
)


@pytest.mark.parametrize("masked", [False, True])
def test_lxmert_core(masked: bool) -> None:
    arrays = reference("lxmert/lxmert_tiny.npz")
    model = Wrapped(LxmertModel(library_config(HfLxmertConfig, LXMERT))).eval()
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
    assert_near(output.language_output, arrays[f"out/lang{end}"])
    assert_near(output.vision_output, arrays[f"out/visn{end}"])
    assert_near(output.pooled_output, arrays[f"out/pooled{end}"])
