"""What cannot be right is told in well under a second: before torch is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from commands import completed
from own_rows import choice_row, write_json_lines

if TYPE_CHECKING:
    from small_corpus import SmallCorpus

CODE = """
import io, json, os, shlex, sys, time
from contextlib import redirect_stderr, redirect_stdout
from advl_cli.main import main
is_root = os.getuid() == 0
for words in json.load(sys.stdin):
    if is_root:
        # Whether a place can be written is asked for the real user, and root may write anywhere.
        os.setreuid(65534 if " locked/" in words else 0, -1)
    told, began = io.StringIO(), time.process_time()
    try:
        with redirect_stderr(told), redirect_stdout(io.StringIO()):
            main(shlex.split(words))
    except SystemExit as stop:
        loaded = sorted({'torch', 'transformers', 'zarr', 'scipy'} & set(sys.modules))
        print(json.dumps([stop.code, told.getvalue(), time.process_time() - began, loaded]))
"""
DATA = "--data mine.jsonl"
RUN = f"finetune {DATA} --method plain --output runs/a"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, small_corpus: SmallCorpus) -> Path:
    folder = tmp_path_factory.mktemp("early")
    rows = [choice_row(number, split="train" if number < 8 else "test") for number in range(12)]
    write_json_lines(folder / "mine.jsonl", rows)
    (folder / "taken").mkdir()
    (folder / "taken" / "letter.txt").write_text("mine")
    (folder / "locked").mkdir(mode=0o555)
    done = completed(*f"finetune {DATA} --method plain --output done/mine --num-steps 1".split(), folder=folder)
    assert done.returncode == 0, done.stderr
    (folder / "of-scenes").symlink_to(small_corpus.caches[0])
    (folder / "caches" / "minilm-l6" / "train").mkdir(parents=True)
    (folder / "caches" / "minilm-l6" / "train" / "identity.json").write_text('{"schema_version": 1}')
    return folder


CASES = [
    ("--version", 0, ""),
    ("datasets list", 0, ""),
    ("datasets card aokvqa", 0, ""),
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
    (f"extract {DATA} --teacher minilm-l6 --output taken", 2, "letter.txt"),
    (f"extract {DATA} --teacher minilm-l6 --split nosuch", 2, "nosuch"),
    ("extract --dataset vcr --teacher minilm-l6", 5, "The dataset vcr is not there."),
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
    (f"prepare {DATA} --student nosuch", 2, "nosuch"),
    ("teachers check nosuch", 2, "nosuch"),
    ("teachers list", 0, ""),
    ("teachers show clip-vit-l", 0, ""),
    ("teachers show minilm", 2, "minilm-l6"),
    ("students show nosuch", 2, "nosuch"),
    ("study nosuch", 2, "nosuch"),
    (f"extract {DATA} --teacher minilm-l6 --output mine.jsonl/cache", 7, "mine.jsonl is a file"),
    (f"extract {DATA} --teacher minilm-l6 --output locked/cache", 7, "locked: Permission denied"),
    (f"finetune {DATA} --method plain --output locked/run", 7, "next:  give another --output"),
    (f"{RUN} --device gpu", 2, "The device 'gpu' cannot be used."),
    ("evaluate done/mine --device gpu", 2, "The device 'gpu' cannot be used."),
    (f"{RUN} --shots 9", 2, "the split holds 8 questions"),
    (f"extract {DATA} --teacher minilm-l6 --shots 9", 2, "the split holds 8 questions"),
    (f"finetune {DATA} --method advl --output runs/a --cache of-scenes", 3, "made from another dataset"),
    (f"finetune {DATA} --method plain --output done/mine --num-steps 1 --seed 3", 3, "other settings"),
    (
        f"finetune {DATA} --method plain --output done/mine --num-steps 9",
        3,
        f"start from it, in a new folder\n         advl finetune {DATA} --method plain --num-steps 9 "
        "--init done/mine --output done/mine-2",
    ),
    # The name that is meant is offered.
    (f"{RUN} --cache caches/minilm-l6/trian", 2, f"next:  advl {RUN} --cache caches/minilm-l6/train"),
    (f"{RUN} --cache caches/minlm-l6/train", 2, f"next:  advl {RUN} --cache caches/minilm-l6/train"),
    ("evaluate done/mien --on test", 2, "next:  advl evaluate done/mine --on test"),
    ("report done/mien", 2, "next:  advl report done/mine"),
    # A cache further down is offered.
    (f"{RUN} --cache caches/minilm-l6", 2, f"next:  advl {RUN} --cache caches/minilm-l6/train"),
]


def answers(folder: Path, command_lines: list[str]) -> dict[str, tuple[int, str, float, list[str]]]:
    """Give commands in one process: the exit code of each, its errors, its processor time, and what is imported."""
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=folder,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        input=json.dumps(command_lines),
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(zip(command_lines, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.fixture(scope="module")
def stopped(folder: Path) -> dict[str, tuple[int, str, float, list[str]]]:
    return answers(folder, [words for words, _, _ in CASES])


@pytest.mark.parametrize(("words", "code"), [("datasets check aokvqa", 5), ("report taken", 2)])
def test_what_is_known_is_told_at_once(folder: Path, words: str, code: int) -> None:
    """In a process of its own, which imports all that it needs."""
    exit_status, stderr, seconds, loaded = answers(folder, [words])[words]
    assert (exit_status, loaded) == (code, []), stderr
    assert seconds < 1.0


@pytest.mark.parametrize(("words", "code", "wording"), CASES)
def test_it_is_told_before_torch_is_imported(
    folder: Path, stopped: dict[str, tuple[int, str, float, list[str]]], words: str, code: int, wording: str
) -> None:
    exit_status, stderr, seconds, loaded = stopped[words]
    assert (exit_status, loaded) == (code, []), stderr
    assert wording in stderr
    assert ("next:" in stderr) == bool(wording)
    assert seconds < 1.0
    assert not (folder / "runs").exists()


@pytest.mark.skipif(torch.backends.cuda.is_built(), reason="whether there is a GPU is known when it is opened")
def test_a_torch_without_cuda_refuses_a_gpu_at_once(folder: Path) -> None:
    words = f"{RUN} --device cuda:0"
    exit_status, stderr, seconds, loaded = answers(folder, [words])[words]
    assert (exit_status, loaded) == (2, []), stderr
    assert "is built without CUDA" in stderr
    assert seconds < 1.0


def test_the_advice_to_start_from_a_finished_run_works(folder: Path) -> None:
    words = f"finetune {DATA} --method plain --num-steps 2 --init done/mine --output done/mine-2"
    done = completed(*words.split(), folder=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "done" / "mine-2" / "result.json").is_file()
