"""What cannot be right is told in well under a second: before torch is imported."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from own_rows import choice_row, write_json_lines

CODE = """
import sys, time
from advl_cli.main import main
try:
    main(sys.argv[1:])
finally:
    loaded = {'torch', 'transformers', 'zarr'} & set(sys.modules)
    print('seconds', time.process_time(), sorted(loaded))
"""
DATA = "--data mine.jsonl"
RUN = f"finetune {DATA} --method plain --output runs/a"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("early")
    rows = [choice_row(number, split="train" if number < 8 else "test") for number in range(12)]
    write_json_lines(folder / "mine.jsonl", rows)
    (folder / "taken").mkdir()
    (folder / "taken" / "letter.txt").write_text("mine")
    (folder / "caches" / "minilm-l6" / "train").mkdir(parents=True)
    (folder / "caches" / "minilm-l6" / "train" / "identity.json").write_text('{"schema_version": 1}')
    return folder


def stopped(folder: Path, words: str) -> tuple[int, str, float]:
    """Run a command in a process of its own; return its exit code, what it said, and its processor time."""
    command = [sys.executable, "-c", CODE, *shlex.split(words)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    last = done.stdout.splitlines()[-1]
    assert last.endswith("[]"), f"{words}: {last}"
    return done.returncode, done.stderr, float(last.split()[1])


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
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
        ("students show nosuch", 2, "nosuch"),
        ("study nosuch", 2, "nosuch"),
    ],
)
def test_it_is_told_before_torch_is_imported(folder: Path, words: str, code: int, told: str) -> None:
    found, stderr, seconds = stopped(folder, words)
    assert found == code, stderr
    assert told in stderr
    assert "next:" in stderr
    assert seconds < 1.0
    assert not (folder / "runs").exists()


def test_a_cache_further_down_is_offered(folder: Path) -> None:
    code, stderr, _ = stopped(folder, f"{RUN} --cache caches/minilm-l6")
    assert code == 2
    assert f"next:  advl {RUN} --cache caches/minilm-l6/train" in stderr
