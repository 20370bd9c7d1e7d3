"""ViLT, BridgeTower and ModernVBERT equal transformers' own models; METER's vision equals OpenAI's formulation."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from closeness import assert_near
from references import require_complete
from torch import nn
from transformers import (
    BridgeTowerForImageAndTextRetrieval,
    ModernVBertForSequenceClassification,
    ViltForQuestionAnswering,
)

from advl_data.scenes.students.scenes_vilt import PatchStem
from advl_pipeline.base.errors import ConfigError
from advl_pipeline.students.bridgetower import BridgeTower
from advl_pipeline.students.checkpoints import load_into
from advl_pipeline.students.meter import Meter
from advl_pipeline.students.modernvbert import ModernVBert
from advl_pipeline.students.pixel_student import PixelBatch, PixelStudent
from advl_pipeline.students.registry import build_student
from advl_pipeline.students.vilt import Vilt


def batch_for(student: PixelStudent) -> PixelBatch:
    """Two examples with one and two candidates of different lengths, and random pictures."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1000, 9000, (3, 9), generator=generator)
    mask = torch.arange(9) < torch.tensor([[9], [5], [7]])
    ids = torch.where(mask, ids, student.tokenizer.pad_id)
    size = student.config.image_size
    return PixelBatch(
        num_candidates=(1, 2),
        token_ids_NL=ids,
        token_mask_NL=mask,
        char_spans_NL2=torch.zeros(3, 9, 2, dtype=torch.long),
        visual_mask_NR=torch.ones(3, student.num_visual, dtype=torch.bool),
        box_index_NR=torch.full((3, student.num_visual), -1),
        types_NL=torch.zeros_like(ids),
        pool_index_N=torch.zeros(3, dtype=torch.long),
        pixels_B3SS=torch.randint(0, 256, (2, 3, size, size), generator=generator, dtype=torch.uint8),
        num_cut=0,
    )


def inputs_of(student: PixelStudent, batch: PixelBatch) -> dict[str, torch.Tensor]:
    """Return a batch as transformers' models take it."""
    return {
        "input_ids": batch.token_ids_NL,
        "attention_mask": batch.token_mask_NL.long(),
        "pixel_values": batch.per_sequence(student.normalised(batch)),
    }


def test_vilt_and_its_head_equal_transformers() -> None:
    student = build_student("vilt-tiny").eval()
    config = student.library_config()
    config.num_labels = 11
    theirs = ViltForQuestionAnswering(config).eval()
    state = theirs.state_dict()
    require_complete(load_into(student, state, Vilt.rules, source="transformers"))
    head = student.build_head("vqa", 11)
    require_complete(load_into(head, state, Vilt.head_rules("vqa"), source="transformers"))
    batch = batch_for(student)
    inputs = inputs_of(student, batch)
    with torch.no_grad():
        ours, expected = student.encode(batch), theirs(**inputs).logits
        states = theirs.vilt(**inputs).last_hidden_state
    assert_near(head(ours.pooled_NP), expected)
    text = batch.token_mask_NL
    assert_near(ours.text_states_NLH[text], states[:, :9][text])


def test_vilt_takes_a_checkpoint_of_another_image_size() -> None:
    small, large = build_student("vilt-tiny"), build_student("vilt-tiny", overrides={"image_size": 96})
    state = {key.replace("model.", "vilt.", 1): value for key, value in small.state_dict().items()}
    report = require_complete(load_into(large, state, Vilt.rules, source="small"))
    assert report.resized == ("model.embeddings.position_embeddings ((1, 17, 32) -> (1, 37, 32))",)


def test_bridgetower_equals_transformers() -> None:
    student = build_student("bridgetower-tiny").eval()
    theirs = BridgeTowerForImageAndTextRetrieval(student.library_config()).eval()
    require_complete(load_into(student, theirs.state_dict(), BridgeTower.rules, source="transformers"))
    batch = batch_for(student)
    with torch.no_grad():
        ours, expected = student.encode(batch), theirs(**inputs_of(student, batch)).logits
    assert_near(theirs.itm_score(ours.pooled_NP), expected)


def test_modernvbert_and_its_head_equal_transformers() -> None:
    student = build_student("modernvbert-tiny").eval()
    config = student.library_config()
    config.num_labels = 3
    theirs = ModernVBertForSequenceClassification(config).eval()
    require_complete(load_into(student, theirs.state_dict(), ModernVBert.rules, source="transformers"))
    head = student.build_head("snli-ve", 3)
    sources = (theirs.head.dense.weight, theirs.head.norm.weight, theirs.classifier.weight, theirs.classifier.bias)
    with torch.no_grad():
        for parameter, source in zip(head.parameters(), sources, strict=True):
            parameter.copy_(source)
    batch = batch_for(student)
    num_visual = student.num_visual
    image = torch.full((3, num_visual), student.config.vocab_size - 1)
    ids = torch.cat([batch.token_ids_NL[:, :1], image, batch.token_ids_NL[:, 1:]], dim=1)
    mask = torch.cat([batch.token_mask_NL[:, :1], batch.visual_mask_NR, batch.token_mask_NL[:, 1:]], dim=1)
    with torch.no_grad():
        ours = student.encode(batch)
        expected = theirs(
            input_ids=ids,
            attention_mask=mask.long(),
            pixel_values=batch.per_sequence(student.normalised(batch))[:, None],
        ).logits
    assert_near(head(ours.pooled_NP), expected)


class OpenAiBlock(nn.Module):
    """A residual attention block as OpenAI's CLIP has it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False)[0]
        hidden = self.mlp["c_fc"](self.ln_2(x))
        out: torch.Tensor = x + self.mlp["c_proj"](hidden * torch.sigmoid(1.702 * hidden))
        return out


class OpenAiVision(nn.Module):
    """OpenAI's vision transformer, without projection; METER norms every token at the end."""

    def __init__(self, width: int, layers: int, heads: int, patch: int, num_positions: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn(num_positions, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        blocks = nn.ModuleList(OpenAiBlock(width, heads) for _ in range(layers))
        self.transformer = nn.ModuleDict({"resblocks": blocks})

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(pixels), 1, -1)
        x = self.ln_pre(torch.cat([first, patches], dim=1) + self.positional_embedding)
        for block in self.transformer["resblocks"]:
            x = block(x)
        out: torch.Tensor = self.ln_post(x)
        return out


def original_names(student: Meter, vision: OpenAiVision) -> Mapping[str, torch.Tensor]:
    """A METER checkpoint under the original's names."""
    state = {f"vit_model.visual.{name}": value for name, value in vision.state_dict().items()}
    for name, value in student.state_dict().items():
        if name.startswith("text."):
            state[f"text_transformer.{name.removeprefix('text.')}"] = value
        elif name.startswith("cross_modal."):
            state[name.removeprefix("cross_modal.")] = value
    state |= {
        "vit_model.visual.proj": torch.zeros(1),
        "vit_model.visual.transformer.resblocks.11.ln_1.weight": torch.zeros(1),
        "vit_model.logit_scale": torch.zeros(1),
        "text_transformer.pooler.dense.bias": torch.zeros(1),
        "vqa_classifier.0.bias": torch.zeros(1),
        "mlm_score.bias": torch.zeros(1),
    }
    return state


def test_meter_takes_the_original_names_and_its_vision_equals_openai() -> None:
    torch.manual_seed(0)
    student = build_student("meter-tiny").eval()
    vision = OpenAiVision(width=32, layers=1, heads=4, patch=16, num_positions=17).eval()
    report = require_complete(load_into(student, original_names(student, vision), Meter.rules, source="meter"))
    assert len(report.ignored) == 6
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        ours = student.vision.post_layernorm(student.vision(pixel_values=pixels).last_hidden_state)
        assert_near(ours, vision(pixels))


def test_a_token_of_the_small_vilt_sees_its_own_patch() -> None:
    linear = nn.Sequential(*(layer for layer in PatchStem(8) if isinstance(layer, nn.Conv2d | nn.ZeroPad2d)))
    for parameter in linear.parameters():
        nn.init.constant_(parameter, 1.0)
    pixels_13SS = torch.zeros(1, 3, 112, 112, requires_grad=True)
    tokens_1H77 = linear(pixels_13SS)
    assert tokens_1H77.shape == (1, 8, 7, 7)
    for place in (1, 3, 5):
        (seen_13SS,) = torch.autograd.grad(tokens_1H77[0, :, place, place].sum(), pixels_13SS, retain_graph=True)
        for axis in (2, 3):
            weight_S = seen_13SS.sum([dimension for dimension in range(4) if dimension != axis])
            centre = float(weight_S @ torch.arange(112.0) / weight_S.sum())
            assert abs(centre - (16 * place + 7.5)) <= 0.6


@pytest.mark.parametrize("sizes", [{"image_size": 120}, {"patch_size": 8}])
def test_the_small_vilt_reads_whole_patches(sizes: Mapping[str, int]) -> None:
    with pytest.raises(ConfigError, match="whole patches of 16 pixels"):
        build_student("scenes-vilt", overrides=sizes)
