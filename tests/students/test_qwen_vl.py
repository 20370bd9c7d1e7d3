"""What is Qwen3-VL's own: positions on three axes, a grid at the picture's resolution, published sizes, refusals."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from closeness import assert_near
from made_examples import inverted, picture, question
from transformers import AutoModelForImageTextToText, Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

from advl_pipeline.base.errors import ConfigError, DatasetError
from advl_pipeline.datasets.records import Example
from advl_pipeline.students.chat import ChatBatch
from advl_pipeline.students.chat_pictures import normalised
from advl_pipeline.students.generative import GenerativeStudent, model_config
from advl_pipeline.students.registry import build_student


def tiny(**overrides: Any) -> GenerativeStudent:
    torch.manual_seed(0)
    return build_student("qwen3-vl-tiny", overrides=overrides).eval()


@pytest.fixture
def asked(tmp_path: Path) -> list[Example]:
    wide, tall = picture(tmp_path / "a.png"), picture(tmp_path / "b.png", 90, 200, seed=2)
    return [
        question(wide, "Why is person1 pointing?", "vcr-q2a", ["It rains.", "A dog runs away."]),
        question(tall, "What is it?", "vcr-q2a", ["A", "B", "It is lost."]),
    ]


def test_positions_are_transformers_of_pictures_of_any_proportions(asked: list[Example]) -> None:
    student = tiny()
    batch = student.collate(asked)
    ids_NS = batch.sequence_ids_NS
    real_NS = torch.arange(ids_NS.shape[1]) < batch.length_N[:, None]
    expected, _ = student.model.model.get_rope_index(
        ids_NS,
        mm_token_type_ids=(ids_NS == student.chat.image_token_id).int(),
        image_grid_thw=torch.tensor([[1, 6, 8]] * 2 + [[1, 10, 4]] * 3),
        attention_mask=real_NS.long(),
    )
    assert torch.equal(batch.positions_NS[:, real_NS], expected[:, real_NS])


@pytest.mark.parametrize(("name", "number"), [("2b", 2127532032), ("4b", 4437815808), ("8b", 8767123696)])
def test_sizes_have_the_published_number_of_parameters(name: str, number: int) -> None:
    preset = GenerativeStudent.presets[f"qwen3-vl-{name}"]
    config = dataclasses.replace(tiny().config, architecture=preset["architecture"])
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(model_config(config))
    assert sum(parameter.numel() for parameter in model.parameters()) == number


def patches_of(student: GenerativeStudent, batch: ChatBatch) -> torch.Tensor:
    """Return (12, 4, H): the embedded patches of each token."""
    pixels = normalised(batch.pixels, student.processor.image_processor, student.facts, torch.float32)
    embedded: torch.Tensor = student.model.model.visual.patch_embed(pixels)
    return embedded.unflatten(0, (12, 4))


def test_every_token_lies_where_its_patches_show(tmp_path: Path) -> None:
    """A place that is painted over changes the features of the token there most."""
    student = tiny()
    unit = picture(tmp_path / "a.png", 128, 96)
    batch = student.collate([question(unit, "Is it so?", "vqa")])
    places = batch.places_BR4[0]
    assert places.shape == (12, 4)
    before = patches_of(student, batch)
    for token in (0, 5, 11):
        other = inverted(unit, places[token].numpy(), tmp_path / f"{token}.png")
        again = student.collate([question(other, "Is it so?", "vqa")])
        after = patches_of(student, again)
        assert int((after - before).norm(dim=(1, 2)).argmax()) == token


def test_inner_features_reach_the_picture_and_no_hidden_text(asked: list[Example]) -> None:
    # States of a layer are recorded before features are added to them.
    student = tiny(align_layer=2)
    batch = student.collate(asked)
    shown = student.shown(batch)
    assert shown.shape[1] == 2
    with torch.no_grad():
        output, hidden = student.encode(batch), student.encode_unimodal(batch)
        student.model.model.visual.deepstack_merger_list[0].linear_fc2.bias.add_(1.0)
        changed, still = student.encode(batch), student.encode_unimodal(batch)
    assert not torch.allclose(output.visual_states_NRH, changed.visual_states_NRH)
    assert torch.equal(hidden.text_states_NLH, still.text_states_NLH)
    assert_near(hidden.visual_states_NRH, output.visual_states_NRH)


def test_pixels_are_bounded_as_asked(tmp_path: Path) -> None:
    unit = picture(tmp_path / "a.png", 320, 240)
    sizes = {most: sum(tiny(max_pixels=most).read_picture(unit).runs) for most in (2048, 4096, 16384)}
    assert sizes == {2048: 6, 4096: 12, 16384: 54}
    with pytest.raises(ConfigError, match="cannot be scaled"):
        tiny(max_pixels=512).require_inputs()


def test_a_processor_of_other_patches_is_refused(tmp_path: Path) -> None:
    mine = tiny().processor
    Qwen3VLProcessor(
        Qwen2VLImageProcessor(patch_size=14),
        mine.tokenizer,
        Qwen3VLVideoProcessor(),
        chat_template=mine.chat_template,
    ).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="does not belong to these weights") as refused:
        tiny(tokenizer=str(tmp_path)).require_inputs()
    assert refused.value.where == str(tmp_path)


def test_a_picture_that_no_grid_covers_is_an_error_of_the_data(tmp_path: Path) -> None:
    strip = picture(tmp_path / "strip.png", 2010, 10)
    with pytest.raises(DatasetError) as refused:
        tiny().collate([question(strip, "What is it?", "vqa")])
    assert refused.value.where == str(strip.path)
