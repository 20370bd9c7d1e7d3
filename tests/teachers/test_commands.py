"""`advl teachers list`, `show` and `check`, as a user runs them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from commands import completed
from tiny_extraction import TinyTextTower

from advl_pipeline.base.errors import ConfigError
from advl_pipeline.teachers import teacher_check
from advl_pipeline.teachers.interface import EncodedBatch, Teacher
from advl_pipeline.teachers.open_options import CheckTeacherConfig
from advl_pipeline.teachers.registry import CATALOGUE, DOORS, list_teachers, show_teacher
from advl_pipeline.teachers.teacher_check import run_check_teacher


def advl(*arguments: str) -> subprocess.CompletedProcess[str]:
    return completed("teachers", *arguments)


def test_list_as_text_and_as_json() -> None:
    text = advl("list").stdout
    assert all(name in text for name in [*CATALOGUE, *DOORS])
    listed = json.loads(advl("list", "--json").stdout)
    assert [entry["name"] for entry in listed["teachers"]] == [summary["name"] for summary in list_teachers()]


def test_show_states_sizes_and_policies() -> None:
    details = show_teacher("clip-vit-l")
    sizes = {size["feature"]: (size["width"], size["num_bytes"], size["per"]) for size in details["features"]}
    assert sizes["image global"] == (768, 1536, "picture")
    assert sizes["image tokens, grid 16 x 16"] == (1024, 16 * 16 * 1024 * 2, "picture")
    assert sizes["text tokens"] == (768, 1536 + 8, "word piece")
    assert "77" in details["long_texts"]
    assert "hf download openai/clip-vit-large-patch14" in details["how_to_get"]
    assert "random weights" in show_teacher("random:clip-vit-l@3")["summary"]["about"]
    assert show_teacher("timm:resnet18")["features"] == []
    with pytest.raises(ConfigError, match="clip-vit-l"):
        show_teacher("clip-vit")


def test_check_passes_a_good_teacher(text_folder: Callable[..., tuple[Path, Any, Any]]) -> None:
    config = hf.BertConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48
    )
    folder, _, _ = text_folder(hf.BertModel, config, "wordpiece")
    result = run_check_teacher(CheckTeacherConfig(name="hf:local/model", weights=folder))
    assert result["is_good"]
    assert [(tower["modality"], tower["global_dim"]) for tower in result["towers"]] == [("text", 32)]
    # Weights of another width than the catalogue states are reported.
    other = run_check_teacher(CheckTeacherConfig(name="bert-l", weights=folder))
    assert not other["is_good"]
    assert "1024" in other["towers"][0]["problems"][0]


def test_check_finds_a_tokenizer_that_knows_no_text(text_folder: Callable[..., tuple[Path, Any, Any]]) -> None:
    config = hf.BertConfig(vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    folder, _, tokenizer = text_folder(hf.BertModel, config, "wordpiece")
    # As many pieces as before, of letters that no text has.
    names = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])[:60]
    vocabulary = [name if name.startswith("[") else chr(0x10A0 + place) for name, place in names]
    for file in folder.glob("tokenizer*.json"):
        file.unlink()
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    result = run_check_teacher(CheckTeacherConfig(name="hf:local/model", weights=folder))
    # One of them has [SEP] in it.
    assert "3 of 4 texts have no piece that the tokenizer knows" in result["towers"][0]["problems"]


class Flawed(TinyTextTower):
    """A text tower whose features depend on the batch, overflow float16, or are not finite."""

    def __init__(self, flaw: str) -> None:
        super().__init__()
        self.flaw = flaw

    def encode(self, units: Any) -> EncodedBatch:
        value = {"batch": float(len(units)), "range": 1e6, "nan": float("nan"), "rows": 1.0}[self.flaw]
        extra = 1 if self.flaw == "rows" else 0
        return EncodedBatch(
            global_ND=torch.full((len(units), 2), value),
            token_values=[torch.full((unit.num_tokens + extra, 2), value) for unit in units],
        )


@pytest.mark.parametrize(
    ("flaw", "complaint"),
    [("batch", "change with its batch"), ("range", "float16"), ("nan", "not finite"), ("rows", "token rows")],
)
def test_check_finds_what_is_wrong(flaw: str, complaint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = Teacher(name="flawed", text=Flawed(flaw))
    monkeypatch.setattr(teacher_check, "open_teacher", lambda name, **settings: teacher)
    result = run_check_teacher(CheckTeacherConfig(name="flawed"))
    assert not result["is_good"]
    assert any(complaint in problem for problem in result["towers"][0]["problems"])
