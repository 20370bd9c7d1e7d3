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


class Workshop:
    """Holds a text and an image model on disk, and extracts with them into one cache."""

    def __init__(self, folder: Path, text: Path) -> None:
        self.folder = folder
        self.text = text
        self.image = folder / "vit"
        hf.ViTModel(hf.ViTConfig(**SMALL, image_size=32, patch_size=16)).save_pretrained(self.image)
        hf.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(self.image)

    def run(self, **changes: Any) -> ExtractResult:
        teacher = Teacher(
            name="pair",
            text=open_teacher("hf:local/text", weights=self.text).text,
            image=open_teacher("hf:local/image", weights=self.image).image,
        )
        config = tiny_config(self.folder / "cache", teacher="pair", **changes)
        return extract(config, teacher, TinyDataset(self.folder / "data", num_images=4))

    def edit(self, path: Path, change: Callable[[dict[str, Any]], None]) -> None:
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))


def nudge(folder: Path, model_class: Any, name: str) -> None:
    """Change one weight, and nothing else in the folder."""
    model = model_class.from_pretrained(folder)
    with torch.no_grad():
        dict(model.named_parameters())[name].view(-1)[0] += 1e-3
    model.save_pretrained(folder)


FILES: dict[str, tuple[str, Callable[[Workshop], None]]] = {
    "a weight of the text tower": (
        "teacher.text.parameters",
        lambda shop: nudge(shop.text, hf.BertModel, "encoder.layer.1.output.dense.bias"),
    ),
    "a weight of the image tower": (
        "teacher.image.parameters",
        lambda shop: nudge(shop.image, hf.ViTModel, "embeddings.cls_token"),
    ),
    "case folding of the tokenizer": (
        "teacher.text.tokenizer.digest",
        lambda shop: shop.edit(shop.text / "tokenizer.json", lambda file: file["normalizer"].update(lowercase=False)),
    ),
    "mean of the processor": (
        "teacher.image.pixels.mean",
        lambda shop: shop.edit(
            shop.image / "preprocessor_config.json", lambda file: file.update(image_mean=[0.5, 0.5, 0.4])
        ),
    ),
    "interpolation of the processor": (
        "teacher.image.pixels.interpolation",
        lambda shop: shop.edit(shop.image / "preprocessor_config.json", lambda file: file.update(resample=3)),
    ),
}


def test_caches_of_other_files_are_refused_and_of_the_same_ones_accepted(
    text_folder: Callable[..., tuple[Path, Any, Any]], tmp_path: Path
) -> None:
    folder, _, _ = text_folder(hf.BertModel, hf.BertConfig(vocab_size=300, **SMALL), "wordpiece")
    shop = Workshop(tmp_path, folder)
    assert shop.run().encoded_units > 0
    before = tree_bytes(tmp_path / "cache")
    for what, (setting, change) in FILES.items():
        files = {path: path.read_bytes() for place in (shop.text, shop.image) for path in place.iterdir()}
        change(shop)
        with pytest.raises(IdentityMismatch) as caught:
            shop.run()
        assert setting in caught.value.why, what
        for path, content in files.items():
            path.write_bytes(content)
    # Neither places nor dates, nor what changes no number.
    for name in ("text", "image"):
        moved = tmp_path / f"moved-{name}"
        shutil.move(getattr(shop, name), moved)
        setattr(shop, name, moved)
    shop.edit(shop.text / "config.json", lambda file: file.update(transformers_version="0.0"))
    shutil.move(tmp_path / "data", tmp_path / "data-before")
    shutil.copytree(tmp_path / "data-before", tmp_path / "data")
    assert shop.run(batch_size=3, num_workers=1).encoded_units == 0
    assert tree_bytes(tmp_path / "cache") == before
