"""Recomputed layers give the same gradients; low-rank updates train little and merge into a plain student."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from made_examples import picture, question

from advl_pipeline.base.errors import ConfigError
from advl_pipeline.datasets.records import Example
from advl_pipeline.students.interface import LoraSettings, Student
from advl_pipeline.students.memory import LORA_TARGETS, add_lora, enable_gradient_checkpointing, merge_lora
from advl_pipeline.students.registry import build_student

RECOMPUTED = ("uniter-tiny", "meter-tiny", "bridgetower-tiny", "vilt-tiny", "modernvbert-tiny", "qwen3-vl-tiny")
"""One of each kind of layers; those of UNITER are BERT's, as those of three other families are."""


@pytest.fixture
def examples(tmp_path: Path) -> list[Example]:
    shown = picture(tmp_path / "p.png", 40, 30, boxes=[[1, 2, 20, 22]])
    return [question(shown, "What colour is it?", "vqa")]


def without_dropout(name: str) -> Student:
    torch.manual_seed(0)
    return build_student(name, overrides={"dropout": 0.0}).train()


def gradients(student: Student, examples: list[Example]) -> dict[str, torch.Tensor]:
    student.encode(student.collate(examples)).pooled_NP.square().sum().backward()
    return {name: value.grad for name, value in student.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("name", RECOMPUTED)
def test_recomputed_layers_give_the_same_gradients(name: str, examples: list[Example]) -> None:
    plain, recomputing = without_dropout(name), without_dropout(name)
    assert enable_gradient_checkpointing(recomputing) >= 1
    expected = gradients(plain, examples)
    actual = gradients(recomputing, examples)
    assert actual.keys() == expected.keys()
    for key, value in actual.items():
        torch.testing.assert_close(value, expected[key], atol=1e-6, rtol=1e-4)


def test_layers_that_cannot_be_recomputed_are_refused() -> None:
    with pytest.raises(ConfigError, match="cannot recompute"):
        enable_gradient_checkpointing(build_student("lxmert-tiny"))


@pytest.mark.parametrize("name", ["uniter-tiny", "modernvbert-tiny", "smolvlm-tiny"])
def test_low_rank_updates_train_and_merge(name: str, examples: list[Example]) -> None:
    student = without_dropout(name).eval()
    names = set(student.state_dict())
    batch = student.collate(examples)
    before = student.encode(batch).pooled_NP.detach()
    num_trained = add_lora(student, LoraSettings(rank=2, alpha=4.0, targets=LORA_TARGETS))
    assert 0 < num_trained < 0.1 * sum(parameter.numel() for parameter in student.parameters())
    torch.testing.assert_close(student.encode(batch).pooled_NP.detach(), before)
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(0.1 * torch.randn_like(parameter))
    changed = student.encode(batch).pooled_NP.detach()
    assert (changed - before).abs().max() > 1e-5
    merge_lora(student)
    assert set(student.state_dict()) == names
    torch.testing.assert_close(student.encode(batch).pooled_NP.detach(), changed, atol=1e-5, rtol=1e-4)
    assert all(parameter.requires_grad for parameter in student.parameters())
