"""A cache made with other weights, another tokenizer or processor setting, or other data is refused, and says why."""

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

from advl_pipeline.errors import IdentityMismatch
from advl_pipeline.extraction.run import ExtractResult, extract
from advl_pipeline.teachers.interface import Teacher
from advl_pipeline.teachers.registry import open_teacher

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
DATA = {"num_images": 4}


class Workshop:
    """A text and an image model on disk, and extraction with them into one cache."""

    def __init__(self, folder: Path, text: Path) -> None:
        self.folder = folder
        self.text = text
        self.image = folder / "vit"
        hf.ViTModel(hf.ViTConfig(**SMALL, image_size=32, patch_size=16)).save_pretrained(self.image)
        hf.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(self.image)

    def run(self, **changes: Any) -> ExtractResult:
        data = DATA | changes.pop("data", {})
        dtype = changes.get("mixed_precision", "fp32")
        kind = changes.get("image_tokens", "boxes")
        teacher = Teacher(
            name="pair",
            text=open_teacher("hf:local/text", weights=self.text, dtype=dtype).text,
            image=open_teacher("hf:local/image", weights=self.image, dtype=dtype, image_tokens=kind).image,
        )
        return extract(
            tiny_config(self.folder / "cache", teacher="pair", **changes),
            teacher,
            TinyDataset(self.folder / "data", **data),
        )

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

OPTIONS: dict[str, dict[str, Any]] = {
    "teacher.compute_dtype": {"mixed_precision": "bf16"},
    "storage.dtype": {"dtype": "float32"},
    "teacher.image_tokens": {"image_tokens": "grid"},
    "teacher.text.kept_tokens": {"select_tokens": 0.5},
    "dataset.content_digest": {"data": {"seed": 1}},
}


@pytest.fixture
def workshop(text_folder: Callable[..., tuple[Path, Any, Any]], tmp_path: Path) -> Workshop:
    folder, _, _ = text_folder(hf.BertModel, hf.BertConfig(vocab_size=300, **SMALL), "wordpiece")
    shop = Workshop(tmp_path, folder)
    assert shop.run().encoded_units > 0
    return shop


def require_refused(workshop: Workshop, setting: str, **changes: Any) -> None:
    before = tree_bytes(workshop.folder / "cache")
    with pytest.raises(IdentityMismatch) as caught:
        workshop.run(**changes)
    assert setting in caught.value.why
    assert tree_bytes(workshop.folder / "cache") == before


@pytest.mark.parametrize("what", FILES)
def test_files_that_change_the_numbers_are_refused(workshop: Workshop, what: str) -> None:
    setting, change = FILES[what]
    change(workshop)
    require_refused(workshop, setting)


def test_options_that_change_the_numbers_are_refused(workshop: Workshop) -> None:
    for setting, changes in OPTIONS.items():
        require_refused(workshop, setting, **changes)


def test_what_changes_no_number_is_accepted(workshop: Workshop) -> None:
    for name in ("text", "image"):
        moved = workshop.folder / f"moved-{name}"
        shutil.move(getattr(workshop, name), moved)
        setattr(workshop, name, moved)
        for path in moved.iterdir():
            path.touch()
    workshop.edit(workshop.text / "config.json", lambda file: file.update(transformers_version="0.0"))
    shutil.move(workshop.folder / "data", workshop.folder / "data-before")
    shutil.copytree(workshop.folder / "data-before", workshop.folder / "data")
    assert workshop.run(batch_size=3, num_workers=1).encoded_units == 0
