"""An exported student computes elsewhere, by the code of its card, what the run computes here."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import io
import json
import re
import shutil
import subprocess
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import exit_code
from made_examples import unit
from PIL import Image
from run_logs import forget_digests, items_file
from safetensors.torch import save_file

from advl_pipeline.base.configuration import build_config
from advl_pipeline.base.errors import ConfigError
from advl_pipeline.datasets.records import Candidate, Example, text_unit
from advl_pipeline.evaluation.predict import load_finished, open_run
from advl_pipeline.runs import names
from advl_pipeline.sharing.config import ExportRunConfig
from advl_pipeline.sharing.student_export import run_export
from advl_pipeline.students.generative import GenerativeStudent
from advl_pipeline.students.region_student import RegionBatch
from advl_pipeline.students.text_student import TextStudent

Elsewhere = Callable[[str, Path], str]

QUESTION, ANSWERS = "Which colour is it?", ("red", "blue")
"""What the code of a card asks."""
LONG = "Which colour is it" + " or that one" * 200 + "?"

RUNS = {
    "vilt-tiny": "scenes-vcr",
    "bridgetower-tiny": "scenes-vcr",
    "modernvbert-tiny": "scenes-vqa",
    "visualbert-tiny": "scenes-vqa",
    "lxmert-tiny": "scenes-snli-ve",
    "smolvlm-tiny": "scenes-vcr",
    "qwen3-vl-tiny": "scenes-vcr",
}


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Elsewhere:
    """Return what runs code in a folder, in a virtual environment of third-party packages alone."""
    home = tmp_path_factory.mktemp("elsewhere")
    venv.create(home, with_pip=False)
    (packages,) = home.glob("lib/python*/site-packages")
    # A folder named in a .pth file is searched; .pth files in it, by which a project is installed, are not read.
    (packages / "third.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")

    def run(code: str, folder: Path) -> str:
        refused = "import importlib.util\nassert importlib.util.find_spec('advl_pipeline') is None\n"
        done = subprocess.run(
            [home / "bin" / "python", "-c", refused + code], cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def finetuned(corpus: Any, folder: Path, student: str, dataset: str = "scenes-vcr", **changes: Any) -> Path:
    task = {"task": ("vcr-q2a",)} if dataset == "scenes-vcr" else {"task": ()}
    plain = {"method": "plain", "cache": (), "num_steps": 1, "recipe": "none", "student": student}
    corpus.run(folder, dataset=dataset, **{**plain, **task, **changes})
    return folder


def ask(path: Path, question: str = QUESTION, *, is_choice: bool) -> Example:
    texts = [f"{question} {answer}" for answer in ANSWERS] if is_choice else [question]
    return Example(
        example_id="asked",
        task="vcr-q2a" if is_choice else "vqa",
        image=unit(path, 60, 40, name="asked"),
        candidates=tuple(
            Candidate(text_unit=text_unit(text), context_length=len(question) if is_choice else 0) for text in texts
        ),
        label=None,
    )


def card_code(folder: Path) -> str:
    (code,) = re.findall(r"^```python\n(.*?)^```$", (folder / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    return code


@pytest.mark.slow
def test_students_load_without_this_project_by_the_code_of_their_card(
    small_corpus: Any, tmp_path: Path, elsewhere: Elsewhere
) -> None:
    expected, code = {}, ""
    for name, dataset in RUNS.items():
        run = finetuned(small_corpus, tmp_path / "runs" / name, name, dataset)
        folder = tmp_path / name
        model, _ = run_export(ExportRunConfig(run=run, output=folder))
        card = (folder / "README.md").read_text(encoding="utf-8")
        assert model in card
        picture = folder / "picture.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(picture)
        finished = load_finished(run)
        tasks = "ai2d,cv_bench,gqa,mmmu_val,mmstar,mmvp,naturalbench,pope,realworldqa,scienceqa_img"
        scored = f"--model_args pretrained=FOLDER --tasks {tasks}" in card
        assert scored == isinstance(finished.student, GenerativeStudent), "lmms-eval scores what answers in words"
        ((head_name, head),) = finished.heads.items()
        with torch.inference_mode():
            batch = finished.student.collate([ask(picture, is_choice=head_name == "choice")])
            if isinstance(batch, RegionBatch):
                tensors = {"features": batch.features_BRF, "places": batch.positions_BR7[..., :4].contiguous()}
                save_file(tensors, folder / "regions.safetensors")
            expected[name] = finished.student.encode(batch).class_logits(head).flatten().tolist()
        code += f"import os\nos.chdir({str(folder)!r})\n{card_code(folder)}"
        if isinstance(finished.student, TextStudent):
            # What the student cuts is cut by the code of the card.
            finished.student.config = dataclasses.replace(finished.student.config, overlong="cut")
            with torch.inference_mode():
                batch = finished.student.collate([ask(picture, LONG, is_choice=head_name == "choice")])
                assert batch.num_cut
                expected[f"{name}, cut"] = finished.student.encode(batch).class_logits(head).flatten().tolist()
            code += card_code(folder).replace(QUESTION, LONG)
    printed = [np.ravel(ast.literal_eval(line)) for line in elsewhere(code, tmp_path).splitlines() if line[0] == "["]
    for (name, logits), computed in zip(expected.items(), printed, strict=True):
        np.testing.assert_allclose(computed, logits, atol=2e-5, rtol=0, err_msg=name)


@pytest.mark.parametrize(
    ("name", "dataset"),
    [("scenes-small", "scenes-vcr"), ("scenes-smolvlm", "scenes-vcr"), ("vilt-tiny", "scenes-snli-ve")],
)
def test_what_transformers_does_not_know_is_loaded_by_this_package(
    name: str, dataset: str, small_corpus: Any, tmp_path: Path
) -> None:
    """By the code of its card, elsewhere, after the run and its corpus are gone."""
    chooses = dataset == "scenes-vcr"
    run = finetuned(small_corpus, tmp_path / "run", name, dataset)
    picture = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 4), dtype=np.uint8)).save(picture)
    expected = open_run(run).answer(picture, QUESTION, ANSWERS if chooses else ())
    given = {"to": "safetensors"} if name == "vilt-tiny" else {}
    run_export(build_config(ExportRunConfig, {"run": run, "output": tmp_path / "out", **given}))
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert "model.safetensors" in files
    assert not {"metrics.jsonl", "caches.json", "environment.json"} & files
    moved = (tmp_path / "out").rename(tmp_path / "elsewhere")
    shutil.rmtree(run)
    shutil.copy(picture, moved)
    for file in moved.rglob("*.json"):
        assert str(tmp_path) not in file.read_text(encoding="utf-8"), file.name
    out = io.StringIO()
    with contextlib.chdir(moved), contextlib.redirect_stdout(out):
        exec(card_code(moved), {})
    text, _, logits = out.getvalue().partition(" [")
    assert text == expected.text
    np.testing.assert_allclose(ast.literal_eval(f"[{logits}"), [*expected.logits.values()], atol=2e-5, rtol=0)


def test_the_card_says_what_the_student_is_of(small_corpus: Any, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "one"
    small_corpus.run(run, num_steps=1, adapt_steps=1, student="vilt-tiny", recipe="none")
    shutil.copytree(run, tmp_path / "bare")
    small_corpus.evaluate(run, on=("test",), probe=("blanked",))
    run_export(ExportRunConfig(run=run, to="safetensors", output=tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    identities = [entry["identity"] for entry in json.loads((run / names.CACHES).read_text(encoding="utf-8"))]
    assert len(identities) == 2
    facts = (
        "minilm-l6: Apache-2.0",
        "efficientnet-lite0: Apache-2.0",
        "advl finetune ",
        "--dataset scenes-vcr",
        "seed 0",
    )
    for words in (*facts, "picture blanked", "Q→A", json.loads((run / "run.json").read_text())["dataset"]["name"]):
        assert words in card, words
    for name in ("README.md", "config.json"):
        assert str(small_corpus.data_root) not in (tmp_path / "out" / name).read_text(encoding="utf-8"), name
        assert str(tmp_path) not in (tmp_path / "out" / name).read_text(encoding="utf-8"), name
    run_export(ExportRunConfig(run=tmp_path / "bare", output=tmp_path / "bare-out"))
    assert "was not evaluated" in (tmp_path / "bare-out" / "README.md").read_text(encoding="utf-8")
    items_file(run).write_bytes(b"damaged")
    with pytest.raises(ConfigError, match="cannot be read"):
        run_export(ExportRunConfig(run=run, output=tmp_path / "damaged-out"))


def test_what_cannot_be_exported_is_refused_and_nothing_is_written(small_corpus: Any, tmp_path: Path) -> None:
    run = finetuned(small_corpus, tmp_path / "run", "uniter-tiny")
    tagged = finetuned(small_corpus, tmp_path / "tagged", "visualbert-tiny")
    before = sorted(tmp_path.rglob("*"))
    for folder, match, advice in (
        (run, "no class for uniter-tiny", "--to safetensors"),
        (tagged, "would not compute", "--to safetensors"),
        (tmp_path, "no finetuning run", ""),
    ):
        with pytest.raises(ConfigError, match=match) as refused:
            run_export(ExportRunConfig(run=folder, to="transformers", output=tmp_path / "out"))
        assert advice in refused.value.next_command
    with pytest.raises(ConfigError, match="exists already"):
        run_export(ExportRunConfig(run=run, output=run))
    assert exit_code("export", run, "--to", "transformers", "--output", tmp_path / "out") == 2
    config = json.loads((run / names.CONFIG).read_text(encoding="utf-8"))
    (run / names.CONFIG).write_text(json.dumps(config | {"hide_picture": True}))
    forget_digests(run)
    with pytest.raises(ConfigError, match="never shown a picture"):
        run_export(ExportRunConfig(run=run, output=tmp_path / "out"))
    assert sorted(tmp_path.rglob("*")) == before
