"""Aligned pairs: both towers of CLIP and SigLIP equal direct calls and share one space."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from PIL import Image
from small_clip import EYES, SMALL, clip_config, clip_processor
from tower_checks import require_same_in_a_batch

from advl_pipeline.datasets.records import ImageUnit, text_unit
from advl_pipeline.teachers.registry import open_teacher

TEXT = "a dog runs over the green field"
OTHER = "two people sit in a cafe and read the news near the left tree"


def siglip_config() -> Any:
    words = {**SMALL, "vocab_size": 300, "max_position_embeddings": 40, "pad_token_id": 0, "projection_size": 32}
    return hf.SiglipConfig(text_config=words, vision_config=EYES)


PAIRS: dict[str, tuple[Any, Callable[[], Any], str, Any]] = {
    "clip": (hf.CLIPModel, clip_config, "clip", clip_processor()),
    "siglip": (hf.SiglipModel, siglip_config, "unigram", hf.SiglipImageProcessor(size={"height": 64, "width": 64})),
}


@pytest.mark.parametrize("family", PAIRS)
def test_both_towers_equal_direct_calls(
    family: str, text_folder: Callable[..., tuple[Path, Any, Any]], picture: ImageUnit
) -> None:
    model_class, config, kind, processor = PAIRS[family]
    folder, model, tokenizer = text_folder(model_class, config(), kind)
    processor.save_pretrained(folder)
    teacher = open_teacher("hf:local/pair", weights=folder, image_tokens="grid")
    assert teacher.aligned
    assert teacher.logit_scale == pytest.approx(float(model.logit_scale.detach().exp()))
    assert teacher.image.global_dim == teacher.text.global_dim == teacher.text.token_dim

    processor = hf.AutoImageProcessor.from_pretrained(folder, backend="pil")
    pixels = processor(images=Image.open(picture.path), return_tensors="pt")["pixel_values"]
    length = {"padding": "max_length", "max_length": 40} if family == "siglip" else {}
    words = tokenizer(
        TEXT, return_tensors="pt", return_special_tokens_mask=True, return_token_type_ids=False, **length
    )
    content = words.pop("special_tokens_mask")[0] == 0
    if family == "siglip":
        words.pop("attention_mask")
    with torch.no_grad():
        seen, read = model.get_image_features(pixel_values=pixels), model.get_text_features(**words)
        project = model.text_projection if family == "clip" else model.text_model.head
        tokens = project(read.last_hidden_state[0][content])
        grid = seen.last_hidden_state
        if family == "clip":
            grid = model.vision_model.post_layernorm(grid[:, 1:])
    image = teacher.image.encode([teacher.image.prepare(picture)])
    text = teacher.text.encode(teacher.text.prepare([text_unit(OTHER), text_unit(TEXT)]))
    torch.testing.assert_close(image.global_ND, seen.pooler_output, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(image.token_values[0], grid[0], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(text.global_ND[1], read.pooler_output[0], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(text.token_values[1], tokens, atol=2e-5, rtol=1e-4)
    for batch in (image, text):
        assert max(float(values.abs().max()) for values in [batch.global_ND, *batch.token_values]) < 65504
    alone = teacher.text.encode(teacher.text.prepare([text_unit(TEXT)]))
    torch.testing.assert_close(alone.global_ND[0], text.global_ND[1], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(alone.token_values[0], text.token_values[1], atol=2e-5, rtol=1e-4)
    require_same_in_a_batch(teacher.image, picture)


def test_each_tower_is_identified_by_its_own_parameters(
    text_folder: Callable[..., tuple[Path, Any, Any]],
) -> None:
    model_class, config, kind, processor = PAIRS["clip"]
    folder, model, _ = text_folder(model_class, config(), kind)
    processor.save_pretrained(folder)
    before = open_teacher("hf:local/pair", weights=folder)
    with torch.no_grad():
        model.text_projection.weight[0, 0] += 1.0
    model.save_pretrained(folder)
    after = open_teacher("hf:local/pair", weights=folder)
    assert before.image.describe() == after.image.describe()
    assert before.text.describe() != after.text.describe()
