"""What cannot be right is refused in words, in well under a second: before torch is imported, nothing written."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from commands import completed
from own_rows import choice_row, write_json_lines

from advl_cli.reference import commands
from advl_pipeline.base.configuration import declared, flag_of
from advl_pipeline.base.errors import AdvlError, DatasetError
from advl_pipeline.datasets.own.kept_rows import keep_rows
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.datasets.row_files import read_table
from advl_pipeline.evaluation.config import EvaluateConfig, PredictConfig
from advl_pipeline.extraction.config import ExtractConfig
from advl_pipeline.training.config import FinetuneConfig

CODE = """
import io, json, os, shlex, sys, time
from contextlib import redirect_stderr, redirect_stdout
from advl_cli.main import main
is_root, home = os.getuid() == 0, os.getcwd()
for words in json.load(sys.stdin):
    if is_root:
        # Whether a place can be written is asked for the real user, and root may write anywhere.
        os.setreuid(65534 if " locked/" in words else 0, -1)
    if "--in-a-folder-that-is-gone" in sys.argv:
        os.chdir(home)
        os.mkdir("gone")
        os.chdir("gone")
        os.rmdir("../gone")
    told = io.StringIO()
    known = set(sys.modules)
    began = time.process_time()
    try:
        with redirect_stderr(told), redirect_stdout(io.StringIO()):
            main(shlex.split(words))
    except SystemExit as stop:
        loaded = sorted({'torch', 'transformers', 'zarr', 'scipy'} & (set(sys.modules) - known))
        print(json.dumps([stop.code, told.getvalue(), time.process_time() - began, loaded]), flush=True)
"""
DATA = "--data mine.jsonl"
RUN = f"finetune {DATA} --method plain --output runs/a"
SMALL = f"finetune {DATA} --method plain --student scenes-small"
EXTRACT = f"extract {DATA} --teacher minilm-l6"
LONG = "x" * 5_000

MISTAKEN = [
    ("--version", 0, ""),
    ("datasets list", 0, ""),
    ("datasets card aokvqa", 0, ""),
    ("datasets card nosuch", 2, "nosuch"),
    ("datasets check vcr", 5, ""),
    (f"{RUN} --student nosuch", 2, "nosuch"),
    (f"{RUN} --cache caches/none", 2, "caches/none"),
    (f"{RUN} --init students/none", 6, "students/none"),
    (f"{RUN} --split nosuch", 2, "nosuch"),
    (f"{RUN} --task nosuch", 2, "nosuch"),
    (f"{RUN} --log-with nosuch", 2, "nosuch"),
    (f"{RUN} --recipe nosuch.toml", 2, "nosuch.toml"),
    (f"finetune {DATA} --method plain --output taken", 2, "letter.txt"),
    (f"finetune {DATA} --method advl --output runs/a", 2, "cache"),
    ("finetune --data gone.jsonl --method plain --output runs/a", 5, "gone.jsonl"),
    (f"extract {DATA} --teacher nosuch", 2, "nosuch"),
    (f"{EXTRACT} --output taken", 2, "letter.txt"),
    (f"{EXTRACT} --split nosuch", 2, "nosuch"),
    ("extract --dataset vcr --teacher minilm-l6", 5, "The dataset vcr is not there."),
    ("extract --dataset scenes-vcr --teacher minilm-l6", 5, "advl scenes build"),
    ("extract --dataset aokvqa --shots 8 --teacher minilm-l6", 5, "hf:HuggingFaceM4/A-OKVQA"),
    ("finetune --dataset vcr --method plain --output runs/a", 5, "The dataset vcr is not there."),
    ("prepare --dataset vcr --student vilt", 5, "The dataset vcr is not there."),
    ("cache import nowhere --name butd --dataset vcr", 5, "The dataset vcr is not there."),
    (f"cache import nowhere --name butd {DATA}", 2, "nowhere"),
    ("evaluate", 2, "'RUN"),
    ("score shift --on x", 2, "'RUN"),
    ("report", 2, "'RUN"),
    ("extract", 2, "such as --teacher minilm-l6 --dataset mine.jsonl"),
    ("finetune --dataset x", 2, "such as --output runs/mine"),
    ("evaluate runs/none", 2, "runs/none"),
    ("report runs/none", 2, "runs/none"),
    ("report taken", 2, "neither a study"),
    ("predict runs/none", 2, "runs/none"),
    ("export runs/none --output shared", 2, "runs/none"),
    ("readout students/none --cache caches/none", 2, "caches/none"),
    ("cache info caches/none", 2, "caches/none"),
    ("cache verify caches/none", 2, "caches/none"),
    ("cache repair caches/none", 2, "caches/none"),
    ("cache prune caches/none --all", 2, "caches/none"),
    ("cache push caches/none ORG/NAME", 2, "caches/none"),
    ("cache pull ORG/NAME --output taken", 2, "taken"),
    (f"prepare {DATA} --student nosuch", 2, "nosuch"),
    ("teachers check nosuch", 2, "nosuch"),
    ("teachers install nosuch", 2, "nosuch"),
    ("teachers list", 0, ""),
    ("teachers show clip-vit-l", 0, ""),
    ("teachers show minilm", 2, "minilm-l6"),
    ("students list", 0, ""),
    ("students show nosuch", 2, "nosuch"),
    ("students load-check nosuch students/none", 2, "nosuch"),
    ("students words vilt --cache caches/none", 2, "caches/none"),
    ("scenes build --num-train 0", 2, "--num-train"),
    ("study nosuch", 2, "nosuch"),
    (f"{RUN} --device gpu", 2, "The device 'gpu' cannot be used."),
    ("evaluate done/mine --device gpu", 2, "The device 'gpu' cannot be used."),
    (f"{RUN} --shots 9", 2, "between 1 and 8 questions of this split, not 9"),
    (f"{EXTRACT} --shots 9", 2, "between 1 and 8 questions of this split, not 9"),
    (f"finetune {DATA} --method advl --output runs/a --cache of-others", 3, "made from another dataset"),
    (f"{SMALL} --num-steps 1 --output done/mine --seed 3", 3, "other settings"),
    (
        f"{SMALL} --num-steps 9 --output done/mine",
        3,
        f"start from it, in a new folder\n         advl {SMALL} --num-steps 9 --init done/mine --output done/mine-2",
    ),
    # The name that is meant is offered.
    (f"{RUN} --cache caches/minilm-l6/trian", 2, f"next:  advl {RUN} --cache caches/minilm-l6/train"),
    (f"{RUN} --cache caches/minlm-l6/train", 2, f"next:  advl {RUN} --cache caches/minilm-l6/train"),
    ("evaluate done/mien --on test", 2, "next:  advl evaluate done/mine --on test"),
    ("report done/mien", 2, "next:  advl report done/mine"),
    # A cache further down is offered.
    (f"{RUN} --cache caches/minilm-l6", 2, f"next:  advl {RUN} --cache caches/minilm-l6/train"),
    # No number outside its range, and none that no library holds.
    (f"{RUN} --learning-rate -1", 2, "--learning-rate must be above 0.\n"),
    (f"{RUN} --learning-rate nan", 2, "--learning-rate must be above 0.\n"),
    (f"{RUN} --seed -1", 2, "--seed must be at least 0.\n"),
    (f"{RUN} --seed {'9' * 4_000}", 2, "--seed is too large a number"),
    (f"{RUN} --confidence-folds 1", 2, "--confidence-folds must be at least 2.\n"),
    # A folder is no file, and a file no folder.
    ("finetune --config .", 2, "cannot be read"),
    ("finetune --config mine.jsonl/x.toml", 2, "cannot be read"),
    ("study .", 2, "cannot be read"),
    ("datasets subset mine.jsonl --shots 4 --output taken", 2, "cannot replace a folder"),
    # No place that cannot be written.
    (f"{EXTRACT} --output mine.jsonl/cache", 7, "mine.jsonl is a file"),
    (f"{EXTRACT} --output locked/cache", 7, "locked: Permission denied"),
    (f"finetune {DATA} --method plain --output locked/run", 7, "next:  give another --output"),
    ("datasets subset mine.jsonl --shots 4 --output locked/list.json", 7, "locked: Permission denied"),
    ("report done/mine --output locked/page.html", 7, "locked: Permission denied"),
    ("cache export of-others --output locked/features", 7, "locked: Permission denied"),
    ("predict done/mine --output locked/predictions.csv", 7, "locked: Permission denied"),
]

UNUSED = [
    (f"{RUN} --lora-rank 8", "--lora-rank"),
    (f"{RUN} --text-style r2c", "--text-style"),
    (f"{RUN} --answers answers.json", "--answers"),
    (f"{RUN} --adapt-steps 7", "--adapt-steps"),
    (f"{RUN} --weight-shuffle", "--weight-shuffle"),
    ("predict done/mine --generate", "--generate"),
    ("evaluate done/mine --vqa-mode 2017", "--vqa-mode"),
    ("evaluate done/mine --probe-on train", "--probe-on"),
    ("evaluate done/mine --probe none --probe-on test", "--probe-on"),
    (f"{EXTRACT} --text-style r2c", "--text-style"),
    (f"{EXTRACT} --ray-tasks 2", "--ray-tasks"),
    (f"{EXTRACT} --revision main", "--revision"),
    (f"{EXTRACT} --no-confidence --folds 3", "--confidence-folds"),
    (f"{EXTRACT} --confidence none --confidence-folds=3", "--confidence-folds"),
    (f"{EXTRACT} --modality text --image-tokens grid", "--image-tokens"),
    (f"{EXTRACT} --image-tokens boxes --grid-side 3", "--grid-side"),
    (f"{EXTRACT} --modality image --select-texts 0.5", "--select-texts"),
]
"""Options that would do nothing on these data, with this student or beside other options."""

PIPES = [
    ("datasets check pipe.jsonl", 5, "pipe.jsonl"),
    ("datasets check pipe.csv", 5, "pipe.csv"),
    ("datasets check pipe.parquet", 5, "pipe.parquet"),
    ("datasets check pipe.toml", 2, "pipe.toml"),
    ("datasets check card.toml", 5, "pipe.jsonl"),
    ("datasets check zero.jsonl", 5, "zero.jsonl"),
    (f"{EXTRACT} --config pipe.toml", 2, "pipe.toml"),
    (f"{EXTRACT} --weights pipe", 2, "pipe"),
    (f"{RUN} --ids pipe.json", 2, "pipe.json"),
    (f"{RUN} --cache pipe", 2, "pipe"),
    (f"{RUN} --recipe pipe.toml", 2, "pipe.toml"),
    ("study pipe.toml --output study", 2, "pipe.toml"),
]
"""Pipes and devices, which may never end."""

HOSTILE = {
    "nested": "seed = " + "[" * 100_000,
    "digits": "seed = " + "9" * 100_000,
    "hexadecimal": "dataset = 0x" + "f" * 100_000,
    "large": "dataset = 'x'\noutput = 'y'\nseed = " + "9" * 4_000,
    "large-real": "dataset = 'x'\noutput = 'y'\nlearning-rate = " + "9" * 4_000,
    "dotted": ".".join("a" * 100_000) + " = 1",
    "quoted": " . ".join(['"a"'] * 100_000) + " = 1",
}
"""Files of options that are made to harm."""

EARLY = [
    *MISTAKEN,
    *((words, 2, f"error: {flag} has no effect") for words, flag in UNUSED),
    *PIPES,
    *(
        (command.format(f"hostile/{name}.toml"), 2, f"hostile/{name}.toml")
        for name in HOSTILE
        for command in ("finetune --config {}", "study {}", "datasets check {}")
    ),
    (f"{EXTRACT.replace('mine.jsonl', 'deep.csv')}", 5, "begins like JSON but is not"),
    # Names that no file has.
    (f"datasets check {LONG}", 2, LONG[:40]),
    (f"datasets check hf:{LONG}", 2, LONG[:40]),
    (f"extract --teacher minilm-l6 --data {LONG}/mine.jsonl", 2, "too long"),
    (f"extract --teacher {LONG} {DATA}", 2, LONG[:40]),
    (f"{EXTRACT} --output {LONG}", 2, LONG[:40]),
    (f"{EXTRACT} --config {LONG}", 2, LONG[:40]),
    (f"{RUN} --cache {LONG}", 2, LONG[:40]),
    (f"{RUN} --init {LONG}", 2, LONG[:40]),
    (f"evaluate {LONG} --on test", 2, LONG[:40]),
    (f"report {LONG}", 2, LONG[:40]),
    (f"study {LONG} --output study", 2, LONG[:40]),
    (f"cache info {LONG}", 2, LONG[:40]),
    (LONG, 2, LONG[:40]),
]

LATE = [
    (f"{RUN} --student uniter-tiny --student-option dropout={'[' * 10_000}", 2, "dropout"),
    (
        f"cache import features {DATA} --name mine --ground-truth-regions mine.jsonl",
        2,
        "error: --ground-truth-regions has no effect",
    ),
    ("scenes pretrain", 5, "advl scenes build"),
]
"""What is told once torch is there."""

WITHOUT_A_FOLDER = {
    "--version": 0,
    "datasets list": 2,
    "datasets check mine.jsonl": 2,
    EXTRACT: 2,
    RUN: 7,
    "cache info cache": 2,
}
"""What commands exit with where the working directory is gone."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, pristine: Path) -> Path:
    """A folder with rows and a run of them, a cache of other data, pipes, hostile files, and a locked folder."""
    folder = tmp_path_factory.mktemp("early")
    rows = [choice_row(number, split="train" if number < 8 else "test") for number in range(12)]
    write_json_lines(folder / "mine.jsonl", rows)
    (folder / "taken").mkdir()
    (folder / "taken" / "letter.txt").write_text("mine")
    (folder / "locked").mkdir(mode=0o555)
    done = completed(*f"{SMALL} --num-steps 1 --output done/mine".split(), folder=folder)
    assert done.returncode == 0, done.stderr
    (folder / "of-others").symlink_to(pristine / "cache")
    (folder / "caches" / "minilm-l6" / "train").mkdir(parents=True)
    (folder / "caches" / "minilm-l6" / "train" / "identity.json").write_text('{"schema_version": 1}')
    (folder / "features").mkdir()
    np.save(folder / "features" / "any.npy", np.ones(3))
    for ending in ("", ".json", ".jsonl", ".csv", ".parquet", ".toml", ".png"):
        os.mkfifo(folder / f"pipe{ending}")
    (folder / "card.toml").write_text('files = "pipe.jsonl"\n')
    (folder / "zero.jsonl").symlink_to("/dev/zero")
    (folder / "hostile").mkdir()
    for name, content in HOSTILE.items():
        (folder / "hostile" / f"{name}.toml").write_text(content + "\n")
    deep = [f"pictures/red.png,what?,{'[' * 100_000},0"] * 4
    (folder / "deep.csv").write_text("\n".join(["image,question,choices,label", *deep]))
    return folder


Answer = tuple[int, str, float, list[str]]
"""Exit code, errors, seconds of processor time, heavy packages that no earlier command of the process imported."""


def answers(folder: Path, command_lines: list[str], *more: str) -> dict[str, Answer]:
    """Give commands in one process."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, *more],
        cwd=folder,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        input=json.dumps(command_lines),
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    return dict(zip(command_lines, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.fixture(scope="module")
def stopped(folder: Path) -> dict[str, Answer]:
    return answers(folder, [words for words, _, _ in EARLY])


@pytest.mark.parametrize(("words", "code"), [("datasets check aokvqa", 5), ("report taken", 2)])
def test_what_is_known_is_told_at_once(folder: Path, words: str, code: int) -> None:
    """In a process of its own, which imports all that it needs."""
    exit_status, stderr, seconds, loaded = answers(folder, [words])[words]
    assert (exit_status, loaded) == (code, []), stderr
    assert seconds < 1.0


@pytest.mark.parametrize(("words", "code", "wording"), EARLY, ids=lambda value: str(value)[:80])
def test_it_is_told_before_torch_is_imported(
    folder: Path, stopped: dict[str, Answer], words: str, code: int, wording: str
) -> None:
    exit_status, stderr, seconds, loaded = stopped[words]
    assert exit_status == code, stderr[:2_000]
    assert not loaded
    assert seconds < 1.0
    assert wording in stderr
    assert ("next:" in stderr) == bool(wording)
    if (words, code, wording) in PIPES:
        assert "no regular file" in stderr or "a pipe or a device" in stderr
    require_nothing_written(folder)


def require_nothing_written(folder: Path) -> None:
    assert not {"runs", "study"} & {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(("words", "code", "wording"), LATE, ids=lambda value: str(value)[:80])
def test_what_is_told_later_is_told_before_anything_is_written(
    folder: Path, words: str, code: int, wording: str
) -> None:
    done = completed(*shlex.split(words), folder=folder)
    assert done.returncode == code
    assert wording in done.stderr
    assert "next:" in done.stderr
    require_nothing_written(folder)


def test_every_command_but_one_has_a_row_of_those_that_import_no_torch() -> None:
    names = {name.removeprefix("advl ") for name, command in commands() if not isinstance(command, click.Group)}
    without = {name for name in names if not any(f"{words} ".startswith(f"{name} ") for words, _, _ in EARLY)}
    assert without == {"scenes pretrain"}


def test_every_option_that_needs_something_is_refused_without_it() -> None:
    for command, cls in (("extract", ExtractConfig), ("evaluate", EvaluateConfig), ("predict", PredictConfig)):
        needing = {flag_of(name) for name, declaration in declared(cls).items() if declaration.option.needs}
        # tests/evaluation/test_lettered.py has what goes with letters.
        assert needing - {"--protocol", "--probe"} == {flag for words, flag in UNUSED if words.startswith(command)}


@pytest.mark.skipif(torch.backends.cuda.is_built(), reason="whether there is a GPU is known when it is opened")
def test_a_torch_without_cuda_refuses_a_gpu_at_once(folder: Path) -> None:
    words = f"{RUN} --device cuda:0"
    exit_status, stderr, seconds, loaded = answers(folder, [words])[words]
    assert (exit_status, loaded) == (2, []), stderr
    assert "is built without CUDA" in stderr
    assert seconds < 1.0


def test_the_advice_to_start_from_a_finished_run_works(folder: Path) -> None:
    done = completed(
        *SMALL.split(), "--num-steps", 2, "--init", "done/mine", "--output", "done/mine-2", folder=folder
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "done" / "mine-2" / "result.json").is_file()


def test_a_working_directory_that_is_gone(folder: Path) -> None:
    told = answers(folder, list(WITHOUT_A_FOLDER), "--in-a-folder-that-is-gone")
    assert {words: code for words, (code, *_) in told.items()} == WITHOUT_A_FOLDER


@pytest.mark.timeout(60)
def test_a_pipe_or_a_device_from_python(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADVL_DATA", str(folder))
    with pytest.raises(DatasetError, match="no regular file"):
        keep_rows([choice_row(0, image=folder / "pipe.png")], pictures=folder)
    kept = keep_rows([choice_row(0, image="pipe.png", split=...)], pictures=folder)
    with pytest.raises(DatasetError, match="no regular file"):
        open_dataset(str(kept), split="train").image_units()
    for name in ("pipe.jsonl", "pipe.csv", "pipe.parquet"):
        with pytest.raises(DatasetError, match="no regular file"):
            list(read_table(folder / name))
    with pytest.raises(AdvlError, match="neither a file nor a folder"):
        FinetuneConfig(dataset="mine.jsonl", student="vilt", output=folder / "run", cache=(folder / "pipe",))
    with pytest.raises(AdvlError, match="neither a file nor a folder"):
        ExtractConfig(teacher="minilm-l6", dataset="mine.jsonl", weights=Path("/dev/zero"))


@pytest.mark.parametrize("value", [np.nan, 1e300])
def test_features_that_are_no_numbers_are_named(value: float, folder: Path, tmp_path: Path) -> None:
    for name in {Path(choice_row(number)["image"]).stem for number in range(12)}:
        np.save(tmp_path / f"{name}.npy", np.full((2, 8), value))
    words = ("cache", "import", tmp_path, "--name", "mine", *DATA.split(), "--output", tmp_path / "cache")
    done = completed(*words, folder=folder)
    assert done.returncode == 5, done.stderr
    assert "Features must be finite numbers" in done.stderr
    assert "--mixed-precision" not in done.stderr
    assert not (tmp_path / "cache").exists()
