"""A cache made with other weights, another tokenizer or processor setting is refused, and says why."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from tiny_extraction import TinyDataset, tiny_config, tree_bytes

from advl_pipeline.base.errors import IdentityMismatch
from advl_pipeline.extraction.run import ExtractResult, extract
from advl_pipeline.teachers.interface import Teacher
from advl_pipeline.teachers.registry import open_teacher

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


def run(folder: Path, text: Path, image: Path, **changes: Any) -> ExtractResult:
    """Extract with a text and an image model on disk into one cache."""
    teacher = Teacher(
        name="pair",
        text=open_teacher("hf:local/text", weights=text).text,
        image=open_teacher("hf:local/image", weights=image).image,
    )
    config = tiny_config(folder / "cache", teacher="pair", **changes)
    return extract(config, teacher, TinyDataset(folder / "data", num_images=4))


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def nudge(folder: Path, model_class: Any, name: str) -> None:
    """Change one weight, and nothing else in the folder."""
    model = model_class.from_pretrained(folder)
    with torch.no_grad():
        dict(model.named_parameters())[name].view(-1)[0] += 1e-3
    model.save_pretrained(folder)


PIXELS = "preprocessor_config.json"
CHANGES: dict[str, Callable[[Path, Path], None]] = {
    "text.parameters": lambda text, _: nudge(text, hf.BertModel, "encoder.layer.1.output.dense.bias"),
    "image.parameters": lambda _, image: nudge(image, hf.ViTModel, "embeddings.cls_token"),
    "text.tokenizer.digest": lambda text, _: edit(
        text / "tokenizer.json", lambda file: file["normalizer"].update(lowercase=False)
    ),
    "image.pixels.mean": lambda _, image: edit(image / PIXELS, lambda file: file.update(image_mean=[0.5, 0.5, 0.4])),
    "image.pixels.interpolation": lambda _, image: edit(image / PIXELS, lambda file: file.update(resample=3)),
}
"""Setting of the teacher that differs then -> a change of the files of the text or of the image model."""


def test_caches_of_other_files_are_refused_and_of_the_same_ones_accepted(
    text_folder: Callable[..., tuple[Path, Any, Any]], tmp_path: Path
) -> None:
    text, _, _ = text_folder(hf.BertModel, hf.BertConfig(vocab_size=300, **SMALL), "wordpiece")
    image = tmp_path / "vit"
    hf.ViTModel(hf.ViTConfig(**SMALL, image_size=32, patch_size=16)).save_pretrained(image)
    hf.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(image)
    assert run(tmp_path, text, image).encoded_units > 0
    before = tree_bytes(tmp_path / "cache")
    for setting, change in CHANGES.items():
        files = {path: path.read_bytes() for place in (text, image) for path in place.iterdir()}
        change(text, image)
        with pytest.raises(IdentityMismatch) as caught:
            run(tmp_path, text, image)
        assert f"teacher.{setting}" in caught.value.why
        for path, content in files.items():
            path.write_bytes(content)
    # Neither places nor dates, nor what changes no number.
    text, image = (shutil.move(place, tmp_path / f"moved-{place.name}") for place in (text, image))
    edit(text / "config.json", lambda file: file.update(transformers_version="0.0"))
    shutil.move(tmp_path / "data", tmp_path / "data-before")
    shutil.copytree(tmp_path / "data-before", tmp_path / "data")
    assert run(tmp_path, text, image, batch_size=3, num_workers=1).encoded_units == 0
    assert tree_bytes(tmp_path / "cache") == before
