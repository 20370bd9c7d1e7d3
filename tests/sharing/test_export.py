"""An exported student computes elsewhere, by the code of its card, what the run computes here."""

from __future__ import annotations

import ast
import dataclasses
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
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch._subclasses.fake_tensor import FakeTensorMode

from advl_pipeline.datasets.records import Candidate, Example, ImageUnit, text_unit
from advl_pipeline.errors import ConfigError
from advl_pipeline.evaluation.predict import load_run
from advl_pipeline.runs import names
from advl_pipeline.sharing.config import ExportRunConfig
from advl_pipeline.sharing.programs import Scores, fields_read, legend_of, made_up_examples, trace_student
from advl_pipeline.sharing.student_export import run_export
from advl_pipeline.students.generative import GenerativeStudent
from advl_pipeline.students.region_student import RegionBatch
from advl_pipeline.students.registry import build_student, student_names
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
        image=ImageUnit(unit_id="asked", path=path, width=60, height=40, boxes_R4=np.zeros((0, 4), dtype=np.float32)),
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
        result = run_export(ExportRunConfig(run=run, output=folder))
        assert not (folder / "load.py").exists()
        card = (folder / "README.md").read_text(encoding="utf-8")
        assert result.model in card
        picture = folder / "picture.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(picture)
        finished = load_run(run)
        scored = "--model_args pretrained=FOLDER --tasks cv_bench,mmstar,naturalbench,pope,realworldqa" in card
        assert scored == isinstance(finished.student, GenerativeStudent), "lmms-eval scores what answers in words"
        ((head_name, head),) = finished.heads.items()
        with torch.inference_mode():
            batch = finished.student.collate([ask(picture, is_choice=head_name == "vcr")])
            if isinstance(batch, RegionBatch):
                tensors = {"features": batch.features_BRF, "places": batch.positions_BR7[..., :4].contiguous()}
                save_file(tensors, folder / "regions.safetensors")
            expected[name] = finished.student.encode(batch).class_logits(head).flatten().tolist()
        code += f"import os\nos.chdir({str(folder)!r})\n{card_code(folder)}"
        if isinstance(finished.student, TextStudent):
            # What the student cuts is cut by the code of the card.
            finished.student.config = dataclasses.replace(finished.student.config, overlong="cut")
            with torch.inference_mode():
                batch = finished.student.collate([ask(picture, LONG, is_choice=head_name == "vcr")])
                assert batch.num_cut
                expected[f"{name}, cut"] = finished.student.encode(batch).class_logits(head).flatten().tolist()
            code += card_code(folder).replace(QUESTION, LONG)
    printed = [np.ravel(ast.literal_eval(line)) for line in elsewhere(code, tmp_path).splitlines() if line[0] == "["]
    for (name, logits), computed in zip(expected.items(), printed, strict=True):
        np.testing.assert_allclose(computed, logits, atol=2e-5, rtol=0, err_msg=name)


PROGRAMS = [
    name
    for name in student_names()
    if (name.endswith("-tiny") or name.startswith("scenes-"))
    and not name.endswith(("smolvlm", "smolvlm-tiny", "qwen3-vl-tiny"))
]
"""Students that a program can hold: those that do not answer in words."""


@pytest.mark.parametrize("name", PROGRAMS)
def test_any_student_can_be_traced(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It computes without looking at a value, and its batch says in words what it reads."""
    student = build_student(name)
    scores = Scores(student, student.build_head("vcr", 1)).eval()
    batch = student.collate(made_up_examples(tmp_path, "vcr-q2a"))
    inputs = fields_read(scores, batch)
    legend = "\n".join(legend_of(batch, inputs))
    assert [key for key in inputs if f"`{key}`" not in legend] == []
    assert "picture_N" not in inputs
    assert "picture_N" not in legend
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        without_values = {key: mode.from_tensor(getattr(batch, key)) for key in inputs}
        assert scores(dataclasses.replace(batch, **without_values)).shape == (3, 1)


@pytest.mark.parametrize("name", ["uniter-tiny", "vilt-tiny"])
def test_a_program_takes_any_batch(name: str, tmp_path: Path) -> None:
    student = build_student(name).eval()
    head = student.build_head("vcr", 1).eval()
    traced = trace_student(student, head, "vcr-q2a")
    program = traced.program.module()
    examples = made_up_examples(tmp_path, "vcr-q2a")
    picture = examples[0].image
    picture = dataclasses.replace(
        picture, unit_id="fewer", boxes_R4=picture.boxes_R4[:2], box_labels=picture.box_labels[:2]
    )
    fewer = dataclasses.replace(examples[0], image=picture)
    for part in (examples[:1], examples[:2], [fewer, fewer], [*examples, examples[0]]):
        batch = student.collate(part)
        with torch.inference_mode():
            logits = program(dict(traced.weights), {key: getattr(batch, key) for key in traced.inputs})
            torch.testing.assert_close(logits, head(student.encode(batch).pooled_NP), atol=2e-5, rtol=0)


def test_programs_run_on_torch_alone(small_corpus: Any, tmp_path: Path, elsewhere: Elsewhere) -> None:
    """One that is given tensors, and those over pixels by the code of their cards."""
    code, expected = "import os, sys\n", []
    for name, dataset in (
        ("uniter-tiny", "scenes-vcr"),
        ("vilt-tiny", "scenes-vcr"),
        ("vilt-tiny", "scenes-snli-ve"),
    ):
        folder = tmp_path / f"{name}-{dataset}"
        run = finetuned(small_corpus, tmp_path / "runs" / folder.name, name, dataset)
        run_export(ExportRunConfig(run=run, to="torch", output=folder))
        finished = load_run(run)
        ((head_name, head),) = finished.heads.items()
        code += f"os.chdir({str(folder)!r})\nsys.path[:1] = [{str(folder)!r}]\nsys.modules.pop('load', None)\n"
        if name == "uniter-tiny":
            batch = _check_tensors(folder, finished.student)
            code += "from load import load, load_file\nprint(load()(load_file('batch.safetensors')).tolist())\n"
        else:
            picture = folder / "picture.png"
            Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 4), dtype=np.uint8)).save(picture)
            batch = finished.student.collate([ask(picture, is_choice=head_name == "vcr")])
            code += card_code(folder)
        with torch.inference_mode():
            expected.append(finished.student.encode(batch).class_logits(head).flatten().tolist())
    code += "assert 'transformers' not in sys.modules\n"
    for line, logits in zip(elsewhere(code, tmp_path).splitlines(), expected, strict=True):
        np.testing.assert_allclose(np.ravel(ast.literal_eval(line)), logits, atol=2e-5, rtol=0)


def _check_tensors(folder: Path, student: Any) -> Any:
    """Check what lies beside a program that is given tensors; write and return a batch of them."""
    sizes = [(folder / name).stat().st_size for name in ("program.pt2", "model.safetensors")]
    assert sizes[0] < sizes[1] / 4, "weights are stored once"
    examples = made_up_examples(folder, "vcr-q2a")
    batch = student.collate(examples)
    described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert all(f"`{key}`" in card for key in described["inputs"])
    save_file({key: getattr(batch, key) for key in described["inputs"]}, folder / "batch.safetensors")
    untagged = dataclasses.replace(examples[0].candidates[0], tags=())
    text, length = untagged.text, untagged.context_length
    row = Tokenizer.from_file(str(folder / names.TOKENIZER)).encode(text[:length], text[length + 1 :])
    read = student.collate([dataclasses.replace(examples[0], candidates=(untagged,))])
    assert [row.ids] == read.token_ids_NL.tolist()
    assert [row.type_ids] == read.types_NL.tolist()
    return batch


def test_the_card_says_what_the_student_is_of(small_corpus: Any, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "one"
    small_corpus.run(run, num_steps=1, adapt_steps=1, student="vilt-tiny", recipe="none")
    shutil.copytree(run, tmp_path / "bare")
    small_corpus.evaluate(run, on=("test",), probe=("blanked",))
    run_export(ExportRunConfig(run=run, to="torch", output=tmp_path / "out"))
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
    names.evaluation_file(run, "test", ".npz").write_bytes(b"damaged")
    with pytest.raises(ConfigError, match="cannot be read"):
        run_export(ExportRunConfig(run=run, output=tmp_path / "damaged-out"))


def test_what_cannot_be_exported_is_refused_and_nothing_is_written(small_corpus: Any, tmp_path: Path) -> None:
    run = finetuned(small_corpus, tmp_path / "run", "uniter-tiny")
    tagged = finetuned(small_corpus, tmp_path / "tagged", "visualbert-tiny")
    words = finetuned(small_corpus, tmp_path / "words", "scenes-smolvlm", task_loss="softmax-choice")
    before = sorted(tmp_path.rglob("*"))
    for folder, to, match, advice in (
        (run, "transformers", "no class for uniter-tiny", "--to torch"),
        (tagged, "transformers", "would not compute", "--to torch"),
        (words, "transformers", "scenes-smolvlm", f"advl predict {words}"),
        (words, "torch", "scenes-smolvlm", f"advl predict {words}"),
        (tmp_path, "torch", "no finetuning run", ""),
    ):
        with pytest.raises(ConfigError, match=match) as refused:
            run_export(ExportRunConfig(run=folder, to=to, output=tmp_path / "out"))  # type: ignore[arg-type]
        assert refused.value.next_command.startswith(advice)
    with pytest.raises(ConfigError, match="exists already"):
        run_export(ExportRunConfig(run=run, to="torch", output=run))
    assert exit_code("export", run, "--output", tmp_path / "out") == 2
    config = json.loads((run / names.CONFIG).read_text(encoding="utf-8"))
    (run / names.CONFIG).write_text(json.dumps(config | {"hide_picture": True}))
    with pytest.raises(ConfigError, match="never shown a picture"):
        run_export(ExportRunConfig(run=run, to="torch", output=tmp_path / "out"))
    assert sorted(tmp_path.rglob("*")) == before
