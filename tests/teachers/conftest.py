"""Tiny models with real tokenizers and processors, saved as their libraries save them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from fake_hub.tokenizers import save_tokenizer
from made_examples import unit
from PIL import Image

from advl_pipeline.datasets.records import ImageUnit


@pytest.fixture(autouse=True)
def _quiet_and_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture
def text_folder(tmp_path: Path) -> Callable[..., tuple[Path, Any, Any]]:
    """Return a function that saves a random text model with a tokenizer: (folder, model, tokenizer)."""

    def build(model_class: Any, config: Any, tokenizer_kind: str) -> tuple[Path, Any, Any]:
        folder = tmp_path / model_class.__name__
        tokenizer = save_tokenizer(tokenizer_kind, folder)
        torch.manual_seed(0)
        model = model_class(config).eval()
        model.save_pretrained(folder)
        return folder, model, tokenizer

    return build


@pytest.fixture
def picture(tmp_path: Path) -> ImageUnit:
    """A picture of 133 x 90 random pixels, smooth enough to scale well, with three boxes."""
    generator = np.random.default_rng(0)
    coarse = Image.fromarray(generator.integers(0, 256, (9, 13, 3), dtype=np.uint8))
    path = tmp_path / "picture.png"
    coarse.resize((133, 90), Image.Resampling.BICUBIC).save(path)
    boxes_R4 = np.array([[0, 0, 40, 30], [50, 10, 130, 80], [120, 80, 133, 90]], np.float32)
    return unit(path, 133, 90, boxes_R4, name="picture")
