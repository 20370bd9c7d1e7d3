"""Every student whose weights are on the hub, as a stranger meets it: by name, from an empty cache, then offline."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import completed
from hub_server import served_models
from hub_students import student_files
from hub_tokenizers import Files, vocabulary_size
from references import ASSETS
from small_corpus import SmallCorpus
from tokenizers import Tokenizer

from advl_pipeline.datasets.records import Candidate, text_unit
from advl_pipeline.evaluation.predict import load_finished
from advl_pipeline.runs.results import read_json
from advl_pipeline.students.checkpoints import read_checkpoint
from advl_pipeline.students.generative import GenerativeStudent
from advl_pipeline.students.presets import family_of
from advl_pipeline.students.registry import families
from advl_pipeline.students.text_student import TextStudent
from advl_pipeline.students.weight_files import located

PUBLISHED_NAMES = read_json(ASSETS / "published_names.json")

STUDENTS = {
    "dandelin/vilt-b32-mlm": ("vilt-tiny", "vilt"),
    "unc-nlp/lxmert-base-uncased": ("lxmert-tiny", "lxmert"),
    "uclanlp/visualbert-vcr-coco-pre": ("visualbert-tiny", "visualbert"),
    "BridgeTower/bridgetower-base": ("bridgetower-tiny", "bridgetower"),
    "ModernVBERT/modernvbert": ("modernvbert-tiny", "modernvbert"),
    "HuggingFaceTB/SmolVLM-256M-Instruct": ("smolvlm-256m", "smolvlm-256m"),
    "HuggingFaceTB/SmolVLM2-256M-Video-Instruct": ("smolvlm-256m", "smolvlm-256m"),
    "lab/idefics3-of-today": ("chat", ""),
    "Qwen/Qwen3-VL-2B-Instruct": ("qwen3-vl-2b", "qwen3-vl-2b"),
    "Qwen/Qwen3-VL-4B-Instruct": ("qwen3-vl-4b", "qwen3-vl-2b"),
}
"""Repository -> the student, and whose list of published names its own are held against."""

AGAIN = ("dandelin/vilt-b32-mlm", "HuggingFaceTB/SmolVLM-256M-Instruct")
"""One that scores classes and one that answers in words: both are finetuned once more, without a network."""

TEXT = "How  many   12 dogs\n\n34 are there in picture 3, isn't it? person_1"


def without_numbers(names: Iterable[str]) -> set[str]:
    return {re.sub(r"(?<=\.)\d+(?=\.)", "#", name) for name in names}


def go_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    # The library has read the environment already.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def finetune(corpus: SmallCorpus, repository: str, files: Files, output: Path, *more: object) -> Any:
    """Finetune by the command for two steps; return the student of the run."""
    name, _ = STUDENTS[repository]
    if "tokenizer.json" in files and name.endswith("-tiny"):
        # The last row of ModernVBERT's words is the picture's.
        rows = vocabulary_size(files) + (name == "modernvbert-tiny")
        more += ("--student-option", f"vocab_size={rows}")
    if name in ("lxmert-tiny", "visualbert-tiny"):
        more += ("--regions", "pixels")
    process = completed(
        *("finetune", "--dataset", "scenes-vcr", "--data-root", corpus.data_root, "--task", "vcr-q2a"),
        *("--student", name, "--init", f"hf:{repository}", "--method", "plain", "--num-steps", 2),
        *("--batch-size", 2, "--output", output, *more),
    )
    assert process.returncode == 0, process.stderr
    return load_finished(output).student


def pieces(student: Any, text: str) -> list[int]:
    if isinstance(student, GenerativeStudent):
        token_ids: list[int] = student.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return token_ids
    assert isinstance(student, TextStudent)
    ((part,),) = student.tokenizer.encode([Candidate(text_unit=text_unit(text))])
    return part.token_ids


def test_every_family_with_weights_on_the_hub_is_here() -> None:
    published = {family for family, facts in families().items() if facts["weights"].startswith("transformers")}
    assert {family_of(student) for student, _ in STUDENTS.values()} == published


@pytest.mark.parametrize("repository", list(STUDENTS))
def test_from_an_empty_cache_and_without_a_network(
    repository: str, small_corpus: SmallCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = student_files(repository)
    with served_models(tmp_path / "hub", monkeypatch) as hub:
        hub.repositories[f"models/{repository}"] = files
        commit = hub.sha(f"models/{repository}")
        near = finetune(small_corpus, repository, files, tmp_path / "near")
    assert read_json(tmp_path / "near" / "config.json")["init"] == f"hf:{repository}@{commit}"
    go_offline(monkeypatch)
    if repository in AGAIN:
        far = finetune(small_corpus, repository, files, tmp_path / "far")
        after = far.state_dict()
        assert all(torch.equal(value, after[name]) for name, value in near.state_dict().items())
    assert located(Path(f"hf:{repository}")).name == commit
    if isinstance(near, GenerativeStudent):
        checked = completed("students", "load-check", near.name, f"hf:{repository}")
        assert f"fills {near.name}" in checked.stdout, checked.stderr
    if "tokenizer.json" in files:
        published = Tokenizer.from_buffer(files["tokenizer.json"])
        # Texts of data have single spaces; those of a chat template need not.
        text = TEXT if isinstance(near, GenerativeStudent) else text_unit(TEXT).text
        assert pieces(near, text) == published.encode(text, add_special_tokens=False).ids
    if listed := STUDENTS[repository][1]:
        (folder,) = (tmp_path / "hub").glob("models--*/snapshots/*")
        names = read_checkpoint(folder)
        assert without_numbers(names) == without_numbers(PUBLISHED_NAMES[listed]["names"])
