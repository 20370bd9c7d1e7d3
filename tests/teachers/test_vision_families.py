"""Every family of vision encoders: our pixels and features are those of the libraries' own pipelines."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers as hf
from closeness import assert_near
from made_examples import unit
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from advl_pipeline.base.batch_norms import fold_batch_norms
from advl_pipeline.base.errors import ConfigError, DatasetError, WeightsUnavailable
from advl_pipeline.datasets.records import ImageUnit
from advl_pipeline.teachers.interface import ImageTower
from advl_pipeline.teachers.registry import open_teacher
from advl_pipeline.teachers.timm_family import timm_pixel_settings
from advl_pipeline.teachers.vision_backbone import fit_picture, normalise

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
PROCESSORS: dict[str, Any] = {
    "cut": hf.BitImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 56, "width": 56}),
    "squash": hf.ViTImageProcessor(size={"height": 64, "width": 64}),
    "share": hf.ConvNextImageProcessor(size={"shortest_edge": 64}, crop_pct=0.875),
}
VIT = {**SMALL, "intermediate_size": 64, "image_size": 64, "patch_size": 16}
DINO = {**SMALL, "image_size": 56, "patch_size": 14}
CONVNEXT = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}
FAMILIES: dict[str, tuple[Any, Any, str, int]] = {
    "dinov2": (hf.Dinov2Model, hf.Dinov2Config(**DINO), "cut", 1),
    "dinov2-registers": (
        hf.Dinov2WithRegistersModel,
        hf.Dinov2WithRegistersConfig(**DINO, num_register_tokens=4),
        "cut",
        5,
    ),
    "dinov3": (hf.DINOv3ViTModel, hf.DINOv3ViTConfig(**VIT, num_register_tokens=2), "squash", 3),
    "dinov3-convnext": (
        hf.DINOv3ConvNextModel,
        hf.DINOv3ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], image_size=64),
        "squash",
        1,
    ),
    "vit": (hf.ViTModel, hf.ViTConfig(**VIT), "squash", 1),
    "swin": (
        hf.SwinModel,
        hf.SwinConfig(embed_dim=8, depths=[1, 1], num_heads=[1, 2], image_size=64, window_size=4),
        "squash",
        0,
    ),
    "convnext": (hf.ConvNextModel, hf.ConvNextConfig(**CONVNEXT), "share", 0),
    "convnextv2": (hf.ConvNextV2Model, hf.ConvNextV2Config(**CONVNEXT), "share", 0),
}


def opened(name: str, **settings: Any) -> ImageTower:
    tower = open_teacher(name, **settings).image
    assert tower is not None
    return tower


def require_same_in_a_batch(tower: ImageTower, picture: ImageUnit) -> None:
    """Encode a picture alone and behind another one: the same features, within the range of float16."""
    other = picture.path.with_name("other.png")
    Image.open(picture.path).transpose(Image.Transpose.ROTATE_180).save(other)
    unlike = tower.prepare(unit(other, picture.width, picture.height, picture.boxes_R4, name="other"))
    prepared = tower.prepare(picture)
    alone, together = tower.encode([prepared]), tower.encode([unlike, prepared])
    largest = max(float(values.abs().max()) for values in [together.global_ND, *together.token_values])
    assert largest < 65504
    assert not torch.allclose(together.global_ND[0], together.global_ND[1])
    tolerance = {"atol": 1e-5 * max(largest, 1.0), "rtol": 1e-4}
    torch.testing.assert_close(alone.global_ND[0], together.global_ND[1], **tolerance)
    torch.testing.assert_close(alone.token_values[0], together.token_values[1], **tolerance)


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_features_equal_a_direct_call(family: str, tmp_path: Path, picture: ImageUnit) -> None:
    model_class, config, processor, num_prefix = FAMILIES[family]
    torch.manual_seed(0)
    model = model_class(config).eval()
    model.save_pretrained(tmp_path)
    PROCESSORS[processor].save_pretrained(tmp_path)
    tower = opened("hf:local/model", weights=tmp_path, image_tokens="grid")
    prepared = tower.prepare(picture)
    encoded = tower.encode([prepared])

    processor = hf.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    pixels = processor(images=Image.open(picture.path), return_tensors="pt")["pixel_values"]
    ours = normalise(prepared.inputs["pixels"], tower.backbone.settings)  # type: ignore[attr-defined]
    assert_near(ours, pixels, roundings=32)
    with torch.no_grad():
        output = model(pixel_values=pixels)
    states = output.last_hidden_state
    if states.ndim == 4:
        expected_global, expected_grid = output.pooler_output, states.flatten(2).transpose(1, 2)
    elif num_prefix:
        expected_global, expected_grid = states[:, 0], states[:, num_prefix:]
    else:
        expected_global, expected_grid = states.mean(dim=1), states
    torch.testing.assert_close(encoded.global_ND, expected_global, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(encoded.token_values[0], expected_grid[0], atol=2e-5, rtol=1e-4)
    assert tower.num_tokens(picture) == len(encoded.token_values[0]) == prepared.num_tokens
    assert tower.token_dim == encoded.token_values[0].shape[1]
    require_same_in_a_batch(tower, picture)


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet"])
def test_timm_features_equal_a_direct_call(name: str, tmp_path: Path, picture: ImageUnit) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    tower = opened(f"timm:{name}", weights=tmp_path, image_tokens="grid")
    encoded = tower.encode([tower.prepare(picture)])
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    pixels = transform(Image.open(picture.path))[None]
    with torch.no_grad():
        states = model.forward_features(pixels)
        global_ND = model.forward_head(states, pre_logits=True)
        p_K = model(pixels)[0].softmax(dim=0)
    scale = float(global_ND.abs().max())
    torch.testing.assert_close(encoded.global_ND, global_ND, atol=1e-5 * max(scale, 1), rtol=1e-3)
    assert set(encoded.stats) == {"norm", "entropy", "margin"}
    torch.testing.assert_close(encoded.stats["entropy"][0], -(p_K * p_K.log()).sum(), atol=1e-3, rtol=1e-3)
    top = p_K.topk(2).values
    torch.testing.assert_close(encoded.stats["margin"][0], top[0] - top[1], atol=1e-4, rtol=1e-2)
    assert encoded.token_values[0].shape == (tower.num_tokens(picture), tower.token_dim)
    grid_MD = states[0].flatten(1).T
    torch.testing.assert_close(encoded.token_values[0], grid_MD, atol=1e-4 * scale, rtol=1e-3)
    require_same_in_a_batch(tower, picture)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_efficientnet_lite2"])
def test_pixels_equal_timms_own_transform(name: str) -> None:
    model = timm.create_model(name, pretrained=False)
    settings = timm_pixel_settings(model)
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    for size in ((300, 200), (201, 333), (224, 224), (57, 500)):
        picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8))
        ours = normalise(fit_picture(picture, settings)[None], settings)[0]
        assert_near(ours, transform(picture), roundings=8)
    for changes in ({"crop_mode": "squash", "crop_pct": 0.9}, {"crop_mode": "border"}):
        model.pretrained_cfg = {**model.pretrained_cfg, **changes}
        with pytest.raises(ConfigError, match="preprocessing of this network is not supported"):
            timm_pixel_settings(model)


@pytest.mark.parametrize("kind", ["boxes", "grid", "none"])
def test_results_do_not_depend_on_the_batch(kind: str, picture: ImageUnit) -> None:
    tower = opened("random:timm:test_efficientnet", image_tokens=kind)
    bare = dataclasses.replace(picture, boxes_R4=picture.boxes_R4[:0])
    prepared = [tower.prepare(unit) for unit in (bare, picture, picture)]
    together = tower.encode(prepared)
    expected_rows = {"boxes": [0, 3, 3], "grid": [25] * 3, "none": [0] * 3}[kind]
    assert [len(values) for values in together.token_values] == expected_rows
    alone = tower.encode(prepared[1:2])
    torch.testing.assert_close(alone.global_ND[0], together.global_ND[1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(alone.token_values[0], together.token_values[2], atol=1e-4, rtol=1e-4)


def test_a_box_is_encoded_as_its_own_picture(tmp_path: Path, picture: ImageUnit) -> None:
    """A square box clear of the border, cut out by hand with the documented margin, gives the same feature."""
    box_4 = np.array([40, 20, 72, 52], np.float32)
    unit = dataclasses.replace(picture, boxes_R4=box_4[None])
    tower = opened("random:timm:test_efficientnet")
    encoded = tower.encode([tower.prepare(unit)])
    cut = Image.open(picture.path).crop((38, 18, 74, 54)).resize((160, 160), Image.Resampling.BICUBIC)
    mean_311, std_311 = (
        torch.tensor(values)[:, None, None] for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    )
    pixels = (torch.from_numpy(np.array(cut)).permute(2, 0, 1)[None] / 255 - mean_311) / std_311
    expected = tower.backbone(pixels).global_ND[0]  # type: ignore[attr-defined]
    torch.testing.assert_close(encoded.token_values[0][0], expected, atol=1e-3, rtol=1e-3)


def test_pictures_that_cannot_be_used_are_named(tmp_path: Path, picture: ImageUnit) -> None:
    tower = opened("random:timm:test_efficientnet")
    broken = tmp_path / "broken.png"
    broken.write_bytes(picture.path.read_bytes()[:200])
    text = tmp_path / "text.jpg"
    text.write_text("no picture")
    for path in (broken, text, tmp_path / "missing.png"):
        with pytest.raises(DatasetError, match="cannot be read") as caught:
            tower.prepare(unit(path, picture.width, picture.height))
        assert path.name in str(caught.value)
    with pytest.raises(DatasetError, match="133 x 90"):
        tower.prepare(dataclasses.replace(picture, width=134))


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(3)}, other)
    pickled = tmp_path / "pickled.pth"
    torch.save({"weight": Path("anything")}, pickled)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(b"\x10\0\0\0\0\0\0\0{")
    for path in (other, pickled, cut, tmp_path / "missing.pth", tmp_path):
        with pytest.raises(WeightsUnavailable):
            open_teacher("timm:test_resnet", weights=path)


def test_preprocessing_without_a_fixed_size_is_refused(tmp_path: Path) -> None:
    hf.ViTModel(hf.ViTConfig(**VIT)).save_pretrained(tmp_path)
    hf.BitImageProcessor(size={"shortest_edge": 64}, do_center_crop=False).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="preprocessing"):
        open_teacher("hf:local/model", weights=tmp_path)


def trained_looking(network: nn.Module) -> nn.Module:
    """Give the batch norms statistics and scales that folding must respect."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, spread in ((module.weight, 0.3), (module.bias, 0.2), (module.running_mean, 0.2)):
                values.data += spread * torch.randn(values.shape, generator=generator)
            module.running_var.data *= 0.5 + torch.rand(module.running_var.shape, generator=generator)
    return network.eval()


def test_folding_keeps_the_function() -> None:
    network = trained_looking(timm.create_model("test_efficientnet", pretrained=False))
    pixels = torch.rand(2, 3, 64, 64)
    folded = fold_batch_norms(network, pixels)
    assert folded is not network
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    other = torch.rand(2, 3, 96, 64)
    with torch.no_grad():
        torch.testing.assert_close(folded(other), network(other), atol=1e-4, rtol=1e-3)


class OutOfOrder(nn.Module):
    """Registers a batch norm after a convolution, but runs it before."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, pixels_NCHW: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.conv(self.norm(pixels_NCHW))
        return result


def test_a_network_that_folding_would_change_or_that_has_nothing_to_fold_is_left_alone() -> None:
    for network in (trained_looking(OutOfOrder()), nn.Conv2d(3, 3, 3).eval()):
        assert fold_batch_norms(network, torch.rand(1, 3, 8, 8)) is network
