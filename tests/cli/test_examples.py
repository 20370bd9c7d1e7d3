"""Every example of every help text, of README and of docs/ runs, in a folder where what it needs is there.

What a person has in full is small here: published weights are stand-ins of the same file formats, datasets are the
small corpus and mirrors of the official downloads, and numbers of steps, shots and pictures are cut down.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from commands import exit_code, printed
from dataset_mirrors import write_official_sets
from fake_hub.models import write_repository
from own_rows import choice_row, write_json_lines
from region_mirrors import write_butd_tsv
from small_corpus import SmallCorpus

from advl_cli.advice import command_of
from advl_cli.main import group
from advl_cli.reference import commands, help_blocks
from advl_pipeline.students.registry import build_student

REPOSITORY = Path(__file__).parents[2]
PAGES = ["README.md", "AGENTS.md"]
PAGES += sorted(path.relative_to(REPOSITORY).as_posix() for path in REPOSITORY.glob("docs/**/*.md"))

FENCED = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPLITS = ("train", "val", "test", "unseen", "compositional", "shift-inputs")

CUT_DOWN: Mapping[str, Sequence[str]] = {
    "finetune": ("--num-steps", "2", "--batch-size", "2"),
    "scenes pretrain": ("--warmup-steps", "1", "--joint-steps", "1", "--batch-size", "4"),
    "extract": ("--confidence-folds", "2"),
    "scenes build": (
        *(word for name in SPLITS for word in (f"--num-{name}", "4")),
        *("--num-caption-scenes", "20", "--workers", "1"),
    ),
}
"""Options that make an example small; the last one of a repeated option counts."""

STAND_INS: Mapping[str, str] = {
    "uniter-base": "uniter-tiny",
    "vilt": "vilt-tiny",
    "hf:dandelin/vilt-b32-mlm": "vilt.pt",
    "hf:ORG/MODEL": "hf:small/clip",
    "FOLDER": "small-clip",
    "/data": "data",
    "demo": "mine.toml",
}
"""Words of examples that stand for what is too large for a test, or for a name that a person puts in."""

SMALL_WEIGHTS: Mapping[str, str] = {
    "hf:small/clip": "small-clip",
    "clip-vit-l": "small-clip",
    "roberta-b": "small-roberta",
}
"""Teachers whose published weights are too large; the folder holds small ones of the same kind."""

NEEDS: Mapping[str, str] = {
    "ORG/NAME": "the hub; tests/sharing/test_push_pull.py runs these against a stand-in",
    "s3://": "an object store; tests/extraction/test_remote.py runs these against a real server",
    "...": "the rest of a command that stands elsewhere",
    "img_db/": "UNITER's published region features; tests/extraction/test_imported_features.py reads their format",
    "caches/import-butd/": "a cache of those features",
    "timm:MODEL": "weights that timm fetches",
    "runs/uniter-vcr": "the run of an example with published weights",
    "aokvqa": "the hub; tests/test_public_sets_end_to_end.py and tests/studies run these on a twin of the set",
    "mmstar/val": "the hub, and a run of a chat model; tests/evaluation/test_lettered.py asks twins of sets so",
    "--data-root photographs": "photographs of others; test_photographs.py builds a corpus of small ones",
    "flickr-captions": "photographs of others; tests/datasets/test_people.py reads their files",
    "captions-lowshot": "the same photographs",
    "daquar-lowshot": "photographs of others; tests/datasets/test_people.py reads their files",
    "runs/daquar": "the same photographs",
    "HuggingFaceTB/": "published weights; tests/students/test_generative.py reads folders of their form",
    "vilt-b32-mlm/": "published weights; tests/students checks every checkpoint format",
}
"""What an example needs that no test can have, and why; it is parsed and its options are checked."""


def blocks() -> list[tuple[str, tuple[str, ...]]]:
    """Return every block of examples: where it stands, and its command lines."""
    helps = ((name, help_blocks(command)) for name, command in commands())
    examples = [(name, text) for name, parts in helps for is_example, text in parts if is_example]
    for page in PAGES:
        if page != "docs/cli.md":
            content = (REPOSITORY / page).read_text(encoding="utf-8")
            examples += [(page, text) for text in FENCED.findall(content)]
    split = ((place, re.sub(r"\\\n\s*", " ", text).splitlines()) for place, text in examples)
    listed = [(place, tuple(" ".join(line.split()) for line in lines if "advl " in line)) for place, lines in split]
    return [(place, lines) for place, lines in listed if lines]


BLOCKS = blocks()


def words_of(line: str) -> list[list[str]]:
    """Return the words of each `advl` command of a line; what starts it, and comments, are left out."""
    parts = re.split(r" & (?=advl|wait)", line) if line.startswith("advl ") else re.findall(r"advl [^']*", line)
    return [shlex.split(part, comments=True) for part in parts if part.startswith("advl ")]


def reason_not_to_run(line: str) -> str:
    return next((why for sign, why in NEEDS.items() if sign in line), "")


def advl(words: Sequence[Any]) -> None:
    """Run a command that must succeed, in this process."""
    code = exit_code(*words)
    assert code == 0, f"advl {shlex.join(map(str, words))} exits with {code}"


def cut_down(words: Sequence[str]) -> list[str]:
    """Return an example's words (without `advl`) with its stand-ins and small numbers."""
    words = [STAND_INS.get(word, word) for word in words]
    if words[:2] == ["teachers", "check"]:
        # It compares what is known of a teacher with its weights, which small ones do not have.
        words = ["minilm-l6" if word == "roberta-b" else word for word in words]
    words = [
        "4" if before in ("--shots", "--pool", "--num-train") else re.sub(r"-shots\d+-", "-shots4-", word)
        for before, word in zip(["", *words[:-1]], words, strict=True)
    ]
    command, _ = command_of(words, group)
    assert command is not None
    for name, more in CUT_DOWN.items():
        if words[: len(name.split())] == name.split():
            words += more
    if words[0] == "finetune" and ("advl" in words or "--method" not in words):
        words += ["--adapt-steps", "2", "--confidence-folds", "2"]
    if words[0] == "finetune" and "--student" not in words and ("--data" in words or "advl" in words):
        # The usual student has two networks of real size: tests/check_wheel.py trains it by README's very words.
        words += ["--student", "scenes-small"]
    if "uniter-tiny" in words:
        words += ["--tokenizer", "minilm-l6"]
    for teacher, folder in SMALL_WEIGHTS.items():
        if teacher in words and "show" not in words and "--weights" not in words:
            words += ["--weights", folder]
    return words


@pytest.fixture(scope="module")
def home(small_corpus: SmallCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which somebody has worked: datasets, caches, runs, a study, files of predictions."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("ADVL_DATA", raising=False)
        shutil.copytree(small_corpus.data_root, "datasets")
        for cache in small_corpus.caches:
            shutil.copytree(cache, Path("caches") / cache.name / "scenes-vcr" / "train")
        _write_mirrors(Path("datasets"))
        for teacher in ("minilm-l6", "efficientnet-lite0"):
            advl(["extract", "--teacher", teacher, "--dataset", "vcr", "--split", "train", "--confidence-folds", 2])
        advl(["scenes", "pretrain", *CUT_DOWN["scenes pretrain"]])
        torch.save(build_student("uniter-tiny", overrides={"tokenizer": "minilm-l6"}).state_dict(), "uniter-base.pt")
        torch.save(build_student("vilt-tiny").state_dict(), "vilt.pt")
        write_repository("openai/clip-vit-base-patch16", Path("small-clip"))
        write_repository("FacebookAI/roberta-base", Path("small-roberta"))
        short = ["--method", "plain", "--num-steps", 2, "--batch-size", 2, "--shots", 4]
        for name, run, student in (
            ("vcr", "vcr-advl", "scenes-small"),
            ("vqa-v2", "vqa-advl", "scenes-small"),
            ("snli-ve", "ve", "scenes-small"),
            ("scenes-vcr", "vilt", "vilt-tiny"),
        ):
            advl(["finetune", "--dataset", name, "--output", f"runs/{run}", "--student", student, *short])
        shutil.copytree("runs/vilt", "runs/advl-100-0")
        advl(["evaluate", "runs/vcr-advl", "--on", "val", "--on", "rule-singular", "--probe", "none"])
        Path("mine.toml").write_text(STUDY)
        write_json_lines(Path("mine.jsonl"), [choice_row(number) for number in range(20)])
        advl(["finetune", "--data", "mine.jsonl", "--student", "scenes-small", "--output", "runs/mine", *short[:6]])
        advl(["extract", "--teacher", "efficientnet-lite2", "--data", "mine.jsonl", "--confidence-folds", 2])
        advl(["evaluate", "runs/mine", "--on", "test", "--probe", "none"])
        advl(["study", "mine.toml", "--output", "runs/studies/demo"])
    return folder


STUDY = """
name = "mine"
dataset = "scenes-vcr"
tasks = ["vcr-q2a"]
student = "scenes-small"
init = "students/scenes-small"
teachers = ["efficientnet-lite0", "minilm-l6"]
test_sets = ["test", "test-shift"]
methods = ["plain", "advl", "advl-shuffled"]
shots = [4]
seeds = [0]

[evaluation]
probe = ["none"]

[training]
num_steps = 2
adapt_steps = 2
batch_size = 2
confidence_folds = 2
"""


def _write_mirrors(root: Path) -> None:
    write_official_sets(root)
    write_butd_tsv(Path("butd"), sorted((root / "vqa-v2" / "train2014").iterdir()))
    shutil.move("butd/features.tsv", "train36.tsv")


@pytest.mark.slow
def test_the_main_job_ends_in_a_page(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A corpus, two caches, a pretrained student, a study with a control: what is done is not done again."""
    monkeypatch.chdir(home)
    assert "nothing to do" in printed(capsys, "scenes", "pretrain", *CUT_DOWN["scenes pretrain"])[0]
    result = json.loads(printed(capsys, "study", "mine.toml", "--output", "runs/studies/demo", "--json")[0])
    assert result
    printed(capsys, "report", "runs/studies/demo", "--output", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "ADVL, shuffled teacher" in page
    assert "test-shift" in page


def test_examples_are_found_everywhere() -> None:
    places = {place for place, _ in BLOCKS}
    assert {name for name, _ in commands()} <= places
    assert {"README.md", "docs/adding-a-teacher.md"} <= places
    lines = [line for _, block in BLOCKS for line in block]
    assert len(lines) > 60
    for sign in NEEDS:
        assert any(sign in line for line in lines), f"no example needs {sign!r} any more"


def test_every_example_parses() -> None:
    for line in (line for _, block in BLOCKS for line in block):
        for words in words_of(line):
            command, number = command_of(words[1:], group)
            assert command is not None, line
            if not isinstance(command, click.Group) and "--list" not in words:
                command.make_context("advl", [word for word in words[1 + number :] if word != "..."])


def to_run() -> dict[str, list[list[str]]]:
    """Return block -> the words of its commands, up to the last one that no longer block has."""
    commands_of_block, seen = {}, set[str]()
    for place, lines in sorted(BLOCKS, key=lambda block: -len(block[1])):
        runnable = [line for line in lines if not reason_not_to_run(line)]
        while runnable and runnable[-1] in seen:
            runnable.pop()
        seen.update(runnable)
        if runnable:
            commands_of_block[f"{place}: {lines[0][:60]}"] = [
                words[1:] for line in runnable for words in words_of(line)
            ]
    return commands_of_block


TO_RUN = to_run()


def link(source: str, target: str) -> None:
    """Put a file into a copy of its folder; what commands append to is a copy, and all else they replace."""
    if source.endswith((".jsonl", ".lock")):
        shutil.copy2(source, target)
    else:
        os.link(source, target)


@pytest.mark.slow
@pytest.mark.parametrize("block", TO_RUN)
def test_every_example_runs(block: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    shutil.copytree(home, here, copy_function=link)
    monkeypatch.chdir(here)
    monkeypatch.delenv("ADVL_DATA", raising=False)
    for words in TO_RUN[block]:
        for made in _made_by(words):
            if made.is_dir():
                shutil.rmtree(made)
        advl(cut_down(words))


def _made_by(words: Sequence[str]) -> list[Path]:
    """Return the folders that a command makes and that must not be there yet."""
    if words[:2] == ["scenes", "build"]:
        # What was made of an earlier corpus does not go with a new one.
        return [Path("datasets/scenes"), Path("caches")]
    if words[:2] == ["scenes", "pretrain"]:
        return [Path("students/scenes-small")]
    if words[0] == "finetune":
        return [Path(words[words.index("--output") + 1])]
    return []
