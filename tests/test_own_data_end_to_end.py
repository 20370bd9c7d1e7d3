"""Data of one's own from nothing to a report, in the four commands that README shows, and through the others."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from own_rows import answer_row, choice_row, class_row, write_csv, write_json_lines

from advl_pipeline.cache.reader import open_cache

ROOT = Path(__file__).parents[1]
SHORT = ("--num-steps", "2", "--adapt-steps", "2", "--batch-size", "4", "--confidence-folds", "2")


def advl(folder: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, as typed."""
    done = subprocess.run(
        [sys.executable, "-m", "advl_cli", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr
    assert done.returncode == code, done.stderr
    return done


def readme_commands() -> list[str]:
    """Return the commands of README's example of one's own data."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    (block,) = [text for text in blocks if "--data mine.jsonl" in text]
    return re.sub(r"\\\n\s*", " ", block).splitlines()


@pytest.mark.slow
def test_the_four_commands_of_the_readme(tmp_path: Path) -> None:
    write_json_lines(tmp_path / "mine.jsonl", [choice_row(number) for number in range(20)])
    commands = readme_commands()
    assert len(commands) == 4
    done = [advl(tmp_path, *shlex.split(command)[1:]) for command in commands]
    said = "mine.jsonl: task choice, from the columns image, question, choices, label; also split; 15 train, 5 test"
    assert said in done[0].stderr
    assert re.search(r"^test +choice +5 ", done[2].stdout, re.M)
    page = (tmp_path / "runs" / "mine" / "report.html").read_text(encoding="utf-8")
    accuracy = json.loads((tmp_path / "runs/mine/evaluation/test.json").read_text())["metrics"]["choice"]
    assert "choice accuracy" in page
    assert f"{accuracy:.1f}" in page
    told = json.dumps(open_cache(tmp_path / "caches/minilm-l6/mine/train").identity)
    assert "own-" in told
    assert "mine" not in told, "where data lie is no part of what they are"


@pytest.mark.slow
def test_the_other_kinds_through_every_command(tmp_path: Path) -> None:
    for make, name, metric in ((class_row, "true", "classes"), (answer_row, "open", "answers")):
        rows = [make(number) for number in range(20)]
        data = f"{name}.jsonl"
        write_json_lines(
            tmp_path / data,
            [*rows, {"image": "pictures/none.png"} | {k: v for k, v in rows[0].items() if k != "image"}],
        )
        listed = advl(tmp_path, "datasets", "check", data, "--deep", code=5).stdout
        assert "pictures/none.png is missing" in listed
        refused = advl(tmp_path, "extract", "--teacher", "minilm-l6", "--data", data, "--modality", "image", code=2)
        assert "minilm-l6" in refused.stderr
        cache = f"caches/minilm-l6/{name}/train"
        skipped = advl(
            tmp_path, "extract", "--teacher", "minilm-l6", "--data", data, "--on-error", "skip", "--folds", "2"
        )
        assert "1 malformed items were left out" in skipped.stdout
        run = f"runs/{name}"
        advl(
            tmp_path,
            *("finetune", "--data", data, "--cache", cache, "--output", run, "--shots", "6", "--on-error", "skip"),
            *SHORT,
        )
        scored = advl(tmp_path, "evaluate", "--run", run, "--on", "test").stdout
        assert re.search(rf"^test +{metric} +5 ", scored, re.M)
        moved = tmp_path / "elsewhere" / "moved.jsonl"
        moved.parent.mkdir(exist_ok=True)
        write_json_lines(
            moved, [{k: v for k, v in row.items() if k not in ("label", "answers")} for row in rows[15:]]
        )
        advl(tmp_path, "predict", run, "--split", "elsewhere/moved.jsonl/test", "--output", "called.csv")
        lines = (tmp_path / "called.csv").read_text().splitlines()
        assert lines[0] == "id,index,prediction"
        assert len(lines) == 6
    advl(tmp_path, "report", "runs", "--to", "md")
    report = (tmp_path / "runs" / "report.md").read_text(encoding="utf-8")
    assert "class accuracy" in report
    assert "answer accuracy" in report


STUDY = """
name = "mine"
dataset = "choose.csv"
tasks = ["choice"]
student = "scenes-small"
teachers = ["minilm-l6"]
test_sets = ["test"]
methods = ["plain", "advl"]
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


@pytest.mark.slow
def test_a_study_of_ones_own_data_survives_a_move_of_the_file(tmp_path: Path) -> None:
    write_csv(tmp_path / "choose.csv", [choice_row(number) for number in range(20)])
    (tmp_path / "mine.toml").write_text(STUDY)
    table = advl(tmp_path, "study", "mine.toml").stdout
    assert "choose" in table
    advl(tmp_path, "report", "runs/studies/mine")
    cells = sorted(path.name for path in (tmp_path / "runs/studies/mine/cells").iterdir())
    (tmp_path / "choose.csv").rename(tmp_path / "chosen.csv")
    (tmp_path / "mine.toml").write_text(STUDY.replace("choose.csv", "chosen.csv"))
    advl(tmp_path, "study", "mine.toml", "--output", "again")
    assert sorted(path.name for path in (tmp_path / "again/cells").iterdir()) == cells
