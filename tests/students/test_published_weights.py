"""`--init hf:ORG/MODEL` takes a repository's files from the hub's local copy, and says what is missing of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from commands import completed
from references import ASSETS
from transformers import BertTokenizerFast

from advl_pipeline.base.errors import WeightsUnavailable
from advl_pipeline.students.checkpoints import KeyRules, map_keys
from advl_pipeline.students.registry import build_student
from advl_pipeline.students.tokenizer import load_text_tokenizer
from advl_pipeline.students.weight_files import located, weights_digest

NAME = "hf:some-one/small-vilt"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's local copy in its own layout, without a network; returns the folder of the repository's files."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub" / "models--some-one--small-vilt"
    files = repository / "snapshots" / "0123456789012345678901234567890123456789"
    files.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(files.name, encoding="utf-8")
    (files / "config.json").write_text(json.dumps({"model_type": "vilt"}), encoding="utf-8")
    return files


def test_the_files_that_are_here_are_taken_with_their_tokenizer(hub: Path, small_corpus: Any, tmp_path: Path) -> None:
    student = build_student("vilt-tiny")
    state = {name.replace("model.", "vilt.", 1): value for name, value in student.state_dict().items()}
    torch.save(state, hub / "pytorch_model.bin")
    vocabulary = sorted(
        (vocab := load_text_tokenizer("minilm-l6")._tokenizer.get_vocab()), key=lambda token: int(vocab[token])
    )
    (hub / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    BertTokenizerFast(vocab=str(hub / "vocab.txt")).save_pretrained(hub)
    assert located(Path(NAME)) == hub
    words = ("--student", "vilt-tiny", "--init", NAME, "--method", "plain", "--task", "vcr-q2a", "--num-steps", 1)
    process = completed(
        *("finetune", "--dataset", "scenes-vcr", "--data-root", small_corpus.data_root, "--batch-size", 2),
        *(*words, "--output", tmp_path / "run"),
    )
    assert process.returncode == 0, process.stderr
    assert f"tokenizer: {hub}" in process.stderr
    recorded = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))
    assert recorded["init"] == f"{NAME}@{hub.name}"


def test_what_is_not_here_is_named_and_a_path_is_left_alone(hub: Path, tmp_path: Path) -> None:
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
