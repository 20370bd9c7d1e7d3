"""The study of a chat model on A-OKVQA, on a twin of its schema with the pictures and questions of the corpus."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import huggingface_hub
import pytest
import torch

pytest.importorskip("datasets")

from commands import advl
from hub_twins import Sample, write_twin
from small_corpus import SmallCorpus

from advl_pipeline.students.generative import GenerativeStudent
from advl_pipeline.students.registry import build_student

NUM_ROWS = 80

MINE = """
extends = "aokvqa-lowshot"
name = "mine"
student = "smolvlm-tiny"
init = "{init}"
teachers = ["efficientnet-lite0", "minilm-l6"]
methods = ["plain", "advl", "advl-self"]
shots = [8]
seeds = [0]
at-shots = {{}}

[training]
pool = 16
num_steps = 2
adapt_steps = 2
batch_size = 2
confidence_folds = 2

[evaluation]
num_questions = 6
probe = ["swapped"]

[extraction]
folds = 2
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, small_corpus: SmallCorpus) -> Path:
    """The sets of the study with pictures, questions and choices of the corpus, and a student as it is published."""
    folder = tmp_path_factory.mktemp("public sets")
    examples = small_corpus.examples()
    samples = [
        Sample(
            picture=example.image.path.read_bytes(),
            question=example.candidates[0].text[: example.candidates[0].context_length].strip(),
            choices=tuple(one.text[one.context_length :].strip() for one in example.candidates),
            right=example.label or 0,
        )
        for example in itertools.islice(itertools.cycle(examples), NUM_ROWS)
    ]
    for name in ("aokvqa", "cv-bench", "pope", "whatsup"):
        write_twin(folder, name, samples)
    torch.manual_seed(0)
    student = build_student("smolvlm-tiny")
    assert isinstance(student, GenerativeStudent)
    student.processor.image_processor.do_image_splitting = False
    student.model.save_pretrained(folder / "student")
    student.processor.save_pretrained(folder / "student")
    (folder / "mine.toml").write_text(MINE.format(init=folder / "student"), encoding="utf-8")
    return folder


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_shipped_study_says_what_it_would_take(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    study = root / "large-enough.toml"
    # The twin's train has 40 rows.
    study.write_text(
        'extends = "aokvqa-lowshot"\nname = "fits"\nshots = [20]\nat-shots = {}\n[training]\npool = 32\n', "utf-8"
    )
    words = ("--dry-run", "--data-root", root, "--output", tmp_path, "--caches", tmp_path)
    code, out, err = advl(capsys, "study", study, *words)
    assert code == 0, err
    assert "fits: 40 cells" in out
    for teacher in ("dinov2-b", "roberta-b", "random:dinov2-b", "random:roberta-b"):
        assert f"'{teacher}'" in out or f" {teacher}" in out
    assert "train-shots32-seed4, " in out
    code, out, err = advl(capsys, "study", "aokvqa-lowshot", *words)
    assert code == 0, err
    assert "aokvqa-lowshot: 80 cells" in out


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_study_runs_on_the_twin(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--data-root", root, "--output", tmp_path / "study", "--caches", tmp_path / "caches")
    code, _, err = advl(capsys, "study", root / "mine.toml", *words)
    assert code == 0, err
    runs = [path.parent for path in (tmp_path / "cells").glob("*/run.json")]
    assert len(runs) == 3
    for run in runs:
        scored = {path.name for path in (run / "evaluation").glob("*.json")}
        assert scored >= {"val.json", "cv-bench--test.json", "pope--test.json", "whatsup--controlled-a.json"}
        document = json.loads((run / "evaluation" / "pope--test.json").read_text())
        assert document["num_items"] == {"choice": 6}
    code, _, err = advl(capsys, "report", tmp_path / "study", "--to", "md")
    assert code == 0, err
