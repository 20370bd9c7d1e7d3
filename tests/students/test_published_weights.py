"""Weights that are missing are named, and names of published parameters are those of the students."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import huggingface_hub
import pytest
import torch
from references import ASSETS

from advl_pipeline.base.errors import WeightsUnavailable
from advl_pipeline.students.checkpoints import KeyRules, map_keys
from advl_pipeline.students.registry import build_student
from advl_pipeline.students.weight_files import located, weights_digest

NAME = "hf:some-one/small-vilt"


def test_what_is_not_here_is_named_and_a_path_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsUnavailable) as missing:
        located(Path(NAME))
    assert (missing.value.where, missing.value.why) == (NAME, "HF_HUB_OFFLINE is set")
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
