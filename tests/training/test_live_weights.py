"""Live teachers from local weights: the same losses as from the caches made with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from live_teacher import live_teacher, teachers_run
from run_logs import losses
from tiny_tokenizers import build_tokenizer

from advl_pipeline.cache.reader import open_cache
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.errors import IdentityMismatch
from advl_pipeline.extraction.config import ExtractConfig
from advl_pipeline.extraction.run import run_extract
from advl_pipeline.training.run import run_finetune

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
READER, EYE = "hf:local/reader", "hf:local/eye"


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hf.utils.logging.disable_progress_bar()


def save_reader(folder: Path, *, seed: int) -> Path:
    torch.manual_seed(seed)
    build_tokenizer("wordpiece", folder)
    hf.BertModel(hf.BertConfig(vocab_size=300, **SMALL)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two small models in folders that only `--weights` finds, one with an equals sign in its name."""
    folder = tmp_path_factory.mktemp("local weights")
    reader, eye = save_reader(folder / "step=3", seed=0), folder / "eye"
    hf.ViTModel(hf.ViTConfig(**SMALL, image_size=32, patch_size=16)).save_pretrained(eye)
    hf.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(eye)
    return {READER: reader, EYE: eye}


@pytest.fixture(scope="module")
def caches(small_corpus: Any, weights: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    made = []
    for name, folder in weights.items():
        made.append(tmp_path_factory.mktemp("local caches") / "cache")
        run_extract(
            ExtractConfig(
                teacher=name,
                weights=folder,
                dataset="scenes-vcr",
                data_root=small_corpus.data_root,
                output=made[-1],
                # Units of models with random weights differ by less than what half precision keeps.
                dtype="float32",
                folds=2,
            )
        )
    return tuple(made)


def test_local_weights_give_the_losses_of_their_caches(
    small_corpus: Any, caches: tuple[Path, ...], weights: dict[str, Path], tmp_path: Path
) -> None:
    config = small_corpus.config(tmp_path / "cached", cache=caches, num_steps=3, num_workers=1)
    run_finetune(config)
    dataset = open_dataset("scenes-vcr", split="train", data_root=small_corpus.data_root)
    with teachers_run(dataset, weights.get):
        run_finetune(replace(config, output=tmp_path / "live"))
    for cached, live in zip(losses(tmp_path / "cached"), losses(tmp_path / "live"), strict=True):
        assert {"raw/vision", "raw/text"} <= set(cached)
        for key in (key for key in cached if key.startswith(("raw/", "weighted/"))):
            assert cached[key] == pytest.approx(live[key], rel=1e-3), key


def test_a_cache_of_other_weights_is_told_from_the_teacher(
    small_corpus: Any, caches: tuple[Path, ...], tmp_path: Path
) -> None:
    dataset = open_dataset("scenes-vcr", split="train", data_root=small_corpus.data_root)
    with pytest.raises(IdentityMismatch, match="not the one of the cache"):
        live_teacher(open_cache(caches[0]), dataset, weights=save_reader(tmp_path / "other", seed=1))
