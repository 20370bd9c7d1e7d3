"""Checkpoints are read without running their code, unwrapped, renamed by rules, and accounted for by name."""

from __future__ import annotations

import json
import pickle
import re
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from references import ASSETS, require_complete
from safetensors.torch import save_file
from torch import nn

from advl_pipeline.base.errors import AdvlError, ConfigError, WeightsUnavailable
from advl_pipeline.students import checkpoints
from advl_pipeline.students.checkpoints import KeyRules, map_keys
from advl_pipeline.students.registry import build_student
from advl_pipeline.students.weight_files import located, weights_digest


def tiny_module() -> nn.Module:
    return nn.ModuleDict({"dense": nn.Linear(3, 2), "norm": nn.LayerNorm(2)})


RULES = KeyRules(rename=((r"^uniter\.", ""),), ignore=(r"^cls\.",))


def original_names(module: nn.Module) -> dict[str, torch.Tensor]:
    """The module's values under the names of an old distributed UNITER checkpoint, in half precision."""
    renamed = {}
    for name, value in module.state_dict().items():
        old = name.replace("norm.weight", "norm.gamma").replace("norm.bias", "norm.beta")
        renamed[f"module.uniter.{old}"] = value.half()
    return renamed


@pytest.mark.parametrize("wrapper", [None, "model_state", "module"])
def test_every_wrapping_gives_the_same_tensors(tmp_path: Path, wrapper: str | None) -> None:
    torch.manual_seed(0)
    original = tiny_module()
    state: dict[str, Any] = original_names(original) | {"module.cls.bias": torch.zeros(4)}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "model.pt")
    student = tiny_module()
    report = checkpoints.load_file(student, tmp_path / "model.pt", RULES)
    assert report.complete
    assert report.num_loaded == 4
    assert report.ignored == ("cls.bias",)
    for name, value in student.state_dict().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, original.state_dict()[name].half().float())


def test_safetensors_and_folders_are_read(tmp_path: Path) -> None:
    original = tiny_module()
    save_file(original.state_dict(), tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        student = tiny_module()
        assert require_complete(checkpoints.load_file(student, path, RULES)).num_loaded == 4
        torch.testing.assert_close(student.state_dict(), original.state_dict())


def test_missing_unexpected_and_misshapen_keys_are_named(tmp_path: Path) -> None:
    state = {"dense.weight": torch.zeros(2, 3), "dense.bias": torch.zeros(5), "head.weight": torch.zeros(1)}
    torch.save(state, tmp_path / "part.pt")
    report = checkpoints.load_file(tiny_module(), tmp_path / "part.pt", RULES)
    assert report.missing == ("norm.bias", "norm.weight")
    assert report.unexpected == ("head.weight",)
    assert report.reinitialised == ("dense.bias (file (5,), student (2,))",)
    assert not report.complete


class Exploit:
    """Runs code when unpickled by an unsafe reader."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, (f"open({str(self.target)!r}, 'w').close()",))


@pytest.mark.parametrize("protocol", ["zip", "pickle"])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path, protocol: str) -> None:
    file = tmp_path / "evil.pt"
    content = {"dense.weight": torch.zeros(2, 3), "x": Exploit(tmp_path / "ran")}
    if protocol == "zip":
        torch.save(content, file)
    else:
        file.write_bytes(pickle.dumps({"x": Exploit(tmp_path / "ran")}, protocol=2))
    with pytest.raises((ConfigError, WeightsUnavailable)):
        checkpoints.read_checkpoint(file)
    assert not (tmp_path / "ran").exists()


def test_hyper_parameters_of_lightning_are_inert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("pytorch_lightning.utilities.parsing")
    attribute_dict = type("AttributeDict", (dict,), {"__module__": module.__name__})
    module.AttributeDict = attribute_dict  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        for name in ("pytorch_lightning", "pytorch_lightning.utilities"):
            patch.setitem(sys.modules, name, types.ModuleType(name))
        patch.setitem(sys.modules, module.__name__, module)
        torch.save(
            {"state_dict": {"dense.bias": torch.ones(2)}, "hyper_parameters": attribute_dict(config={"lr": 1.0})},
            tmp_path / "last.ckpt",
        )
    state = checkpoints.read_checkpoint(tmp_path / "last.ckpt")
    torch.testing.assert_close(state, {"dense.bias": torch.ones(2)})


REFUSED: dict[str, tuple[bytes | dict[str, torch.Tensor] | None, type[AdvlError], str]] = {
    "nothing": (None, WeightsUnavailable, "not there"),
    "an empty file": (b"", WeightsUnavailable, "cannot be read"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\n", WeightsUnavailable, "cannot be read"),
    "a part": (b"PK\x03\x04 cut", WeightsUnavailable, "cannot be read"),
    "another model": ({"conv.weight": torch.zeros(3)}, ConfigError, "No key"),
    "two of one name": ({"uniter.a": torch.zeros(1), "a": torch.zeros(1)}, ConfigError, "map to one"),
}


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_checkpoint_of_the_model_is_refused(tmp_path: Path, case: str, name: str) -> None:
    content, kind, match = REFUSED[case]
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content is not None:
        (save_file if name.endswith("tensors") else torch.save)(content, tmp_path / name)
    with pytest.raises(kind, match=match):
        checkpoints.load_file(tiny_module(), tmp_path / name, RULES)


@pytest.mark.parametrize(
    ("index", "file"),
    [
        ({"weight_map": {"dense.weight": "model-1.safetensors", "norm.weight": "model-2.safetensors"}}, "model-2"),
        ({"weight_map": {"dense.weight": "../../model-1.safetensors"}}, ""),
        ({"weight_map": ["model-1.safetensors"]}, "index.json"),
        ([], "index.json"),
    ],
)
def test_shards_are_those_of_their_index_inside_the_folder(tmp_path: Path, index: Any, file: str) -> None:
    save_file({"dense.weight": torch.zeros(2, 3)}, tmp_path / "model-1.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    if not file:
        assert checkpoints.read_checkpoint(tmp_path).keys() == {"dense.weight"}
        return
    with pytest.raises(WeightsUnavailable, match="cannot be read") as refused:
        checkpoints.read_checkpoint(tmp_path)
    assert file in refused.value.where


def test_tables_grow_and_grids_interpolate() -> None:
    table, fresh = torch.arange(6.0).reshape(3, 2), torch.full((5, 2), -1.0)
    grown = checkpoints.grow_rows(table, fresh)
    assert torch.equal(grown[:3], table)
    assert torch.equal(grown[3:], fresh[3:])
    types = checkpoints.grow_rows_from_first(table[:2], torch.empty(4, 2))
    assert torch.equal(types[2:], table[:1].expand(2, 2))
    constant = torch.cat([torch.zeros(1, 4), torch.full((9, 4), 7.0)])
    fitted = checkpoints.interpolate_grid(constant, torch.empty(26, 4))
    torch.testing.assert_close(fitted[1:], torch.full((25, 4), 7.0))
    assert torch.equal(fitted[:1], constant[:1])
    with pytest.raises(ConfigError, match="square"):
        checkpoints.interpolate_grid(torch.zeros(8, 4), torch.empty(26, 4))


def test_what_is_not_here_is_named_and_a_path_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsUnavailable) as missing:
        located(Path("hf:some-one/small-vilt"))
    assert (missing.value.where, missing.value.why) == ("hf:some-one/small-vilt", "HF_HUB_OFFLINE is set")
    assert located(tmp_path) == tmp_path


@pytest.mark.parametrize(("name", "advised"), [("uniter-base.pt", False), ("scenes-small", True)])
def test_only_a_student_of_ours_is_advised_to_be_pretrained(tmp_path: Path, name: str, advised: bool) -> None:
    with pytest.raises(WeightsUnavailable) as caught:
        weights_digest(tmp_path / name)
    assert ("advl scenes pretrain" in caught.value.next_command) == advised


PUBLISHED = json.loads((ASSETS / "published_names.json").read_text(encoding="utf-8"))
"""Name of a student -> where names of parameters were taken from, and the names; # stands for numbers of a range."""


def expanded(names: Mapping[str, list[int] | None]) -> Iterator[str]:
    for name, numbers in names.items():
        yield from (
            [name.replace("#", str(number)) for number in range(numbers[0], numbers[1] + 1)] if numbers else [name]
        )


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_published_names_fill_a_student_of_the_published_size(name: str) -> None:
    """Names alone: every parameter has one, and every name is a parameter or set aside by rule."""
    with torch.device("meta"):
        student = build_student(name, overrides={} if name in CHAT else {"tokenizer": "minilm-l6"})
    wanted = set(student.state_dict())
    rules = KeyRules(rename=((r"^", "model."),)) if name in CHAT else student.rules
    mapped, _ = map_keys(dict.fromkeys(expanded(PUBLISHED[name]["names"]), torch.zeros(())), rules)
    tied = {"model.lm_head.weight"} if name in CHAT and student.model.config.tie_word_embeddings else set()
    absent = {key for key in wanted - mapped.keys() if not any(re.search(rule, key) for rule in rules.optional)}
    assert absent == tied
    assert mapped.keys() <= wanted


CHAT = ("smolvlm-256m", "qwen3-vl-2b")
