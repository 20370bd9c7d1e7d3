"""Students of pixels equal transformers' models, and METER's vision OpenAI's; where pictures and crops are from."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from closeness import assert_near
from made_examples import unit
from PIL import Image
from references import require_complete
from torch import nn

from advl_data.scenes.students.scenes_vilt import PatchStem
from advl_pipeline.base.errors import ConfigError
from advl_pipeline.sharing.student_export import transformers_form, transformers_model
from advl_pipeline.students.abilities import HasPublishedHeads
from advl_pipeline.students.checkpoints import load_into
from advl_pipeline.students.meter import Meter
from advl_pipeline.students.picture_source import CropRegions, RecentlyUsed
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


@pytest.mark.parametrize(
    ("name", "task", "num_classes"),
    [("vilt-tiny", "answers", 11), ("bridgetower-tiny", "answers", 11), ("modernvbert-tiny", "classes", 3)],
)
def test_a_student_and_its_head_equal_the_model_of_transformers(name: str, task: str, num_classes: int) -> None:
    student: Any = build_student(name).eval()
    head = student.build_head(task, num_classes)
    theirs: Any = transformers_model(transformers_form(student), student, head, task)
    require_complete(load_into(student, theirs.state_dict(), student.rules, source="transformers"))
    if isinstance(student, HasPublishedHeads):
        rules = student.head_rules(task)
        require_complete(load_into(student.build_head(task, num_classes), theirs.state_dict(), rules, source="head"))
    batch = batch_for(student)
    inputs = inputs_of(student, batch)
    if name == "modernvbert-tiny":
        # The picture's tokens follow the first of the text's.
        image = torch.full((3, student.num_visual), student.config.vocab_size - 1)
        for key, between in (("input_ids", image), ("attention_mask", torch.ones_like(image))):
            inputs[key] = torch.cat([inputs[key][:, :1], between, inputs[key][:, 1:]], dim=1)
        inputs["pixel_values"] = inputs["pixel_values"][:, None]
    with torch.no_grad():
        ours, output = student.encode(batch), theirs(**inputs, output_hidden_states=True)
        # Of BridgeTower transformers has no head of classes.
        expected = head(output.pooler_output) if name == "bridgetower-tiny" else output.logits
        assert_near(head(ours.pooled_NP), expected)
        if name == "vilt-tiny":
            text, last = batch.token_mask_NL, theirs.vilt.layernorm(output.hidden_states[-1])
            assert_near(ours.text_states_NLH[text], last[:, :9][text])


def test_vilt_takes_a_checkpoint_of_another_image_size() -> None:
    small, large = build_student("vilt-tiny"), build_student("vilt-tiny", overrides={"image_size": 96})
    state = {key.replace("model.", "vilt.", 1): value for key, value in small.state_dict().items()}
    report = require_complete(load_into(large, state, Vilt.rules, source="small"))
    assert report.resized == ("model.embeddings.position_embeddings ((1, 17, 32) -> (1, 37, 32))",)


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


@pytest.mark.parametrize("box", [[64.2, 4, 64.9, 20], [-0.9, -0.8, -0.1, -0.2], [4, 48.1, 20, 48.9]])
def test_a_box_in_the_tolerated_rim_is_the_nearest_pixel(tmp_path: Path, box: list[float]) -> None:
    Image.new("RGB", (64, 48), "red").save(tmp_path / "a.png")
    crops = CropRegions(8).crops(unit(tmp_path / "a.png", 64, 48, [box]))
    assert crops.shape == (2, 8, 8, 3)
    assert (crops[1] == [255, 0, 0]).all()


def test_what_is_kept_is_bounded_by_its_bytes() -> None:
    kept: RecentlyUsed[npt.NDArray[np.uint8]] = RecentlyUsed(250)
    made: list[str] = []

    def read(name: str) -> npt.NDArray[np.uint8]:
        made.append(name)
        return np.zeros(100, dtype=np.uint8)

    for name in "abacab":
        kept.get(name, partial(read, name))
    # The third one took the place of the second, which had not been asked for again.
    assert made == ["a", "b", "c", "b"]
