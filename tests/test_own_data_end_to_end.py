"""Own data from nothing to a report, through every command; README's own are run by check_wheel.py."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import commands
import pytest
from own_rows import COLOURS, answer_row, choice_row, class_row, write_csv, write_json_lines, write_pictures

from advl_cli.flags import read_and_print
from advl_pipeline.cache.reader import open_cache
from advl_pipeline.datasets.registry import find_dataset, split_to_score
from advl_pipeline.datasets.roots import name_in_records

SHORT = ("--num-steps", "2", "--adapt-steps", "2", "--batch-size", "4", "--confidence-folds", "2")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "a folder").mkdir()
    return tmp_path / "a folder"


@pytest.fixture
def advl(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[str, str]]:
    """Return what runs a command in a folder with a space in its name, in this process, and gives what it printed."""
    monkeypatch.chdir(here)
    return partial(commands.printed, capsys)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_rows_of_each_kind_through_every_command_which_names_the_kind_and_no_benchmark(
    advl: Callable[..., tuple[str, str]],
) -> None:
    for make, metric in ((choice_row, "choice"), (class_row, "classes"), (answer_row, "answers")):
        data, run = f"my-{metric}.jsonl", f"runs/{metric}"
        rows = [make(number) for number in range(20)]
        write_json_lines(Path(data), [*rows, make(20, image="pictures/none.png")])
        listed, _ = advl("datasets", "check", data, "--deep", code=5)
        assert "pictures/none.png is missing" in listed
        _, refused = advl("extract", "--teacher", "efficientnet-lite0", "--data", data, code=5)
        assert "pictures/none.png is missing (used by " in refused
        skipped, message = advl(
            "extract", "--teacher", "minilm-l6", "--data", data, "--on-error", "skip", "--confidence-folds", 2
        )
        assert f"{data}: task {metric}, from the columns image, " in message
        assert "; also split; 16 train, 5 test" in message
        assert "1 malformed items were left out" in skipped
        cache = open_cache(f"caches/minilm-l6/my-{metric}/train")
        assert name_in_records(cache.identity, cache.provenance) == f"my-{metric}"
        assert "own-" in json.dumps(cache.identity)
        assert "my-" not in json.dumps(cache.identity), "where data lie is no part of what they are"
        common = ["--data", data, "--cache", str(cache.path), "--output", run, "--on-error", "skip"]
        # The usual student is trained by README's commands, in tests/check_wheel.py, and by its Python.
        common += ["--student", "uniter-tiny", "--regions", "pixels"]
        trained, prepared = advl("finetune", *common, "--shots", 6, *SHORT)
        assert f"next: advl evaluate {run} --on test" in trained
        assert f"recipe uniter {metric} base" in prepared
        assert f"head {metric}: fresh" in prepared
        scored, notes = advl("evaluate", run, "--on", "test")
        assert not re.findall(r"(?i).*(?:vcr|vqa|snli).*", trained + prepared + scored + notes)
        assert re.search(rf"^test +{metric} +5 ", scored, re.M)
        unlabelled = [{key: row[key] for key in row if key not in ("label", "answers")} for row in rows[15:]]
        write_json_lines(Path("elsewhere/moved.jsonl"), unlabelled)
        # Without answers a row could be of several kinds.
        Path("elsewhere/moved.toml").write_text(f'files = "moved.jsonl"\ntask = "{metric}"\n')
        advl("predict", run, "--on", "elsewhere/moved.toml/test", "--output", "called.csv")
        lines = Path("called.csv").read_text().splitlines()
        assert (lines[0], len(lines)) == ("id,index,prediction", 6)
    advl("report", "runs", "--to", "md")
    report = Path("runs/report.md").read_text(encoding="utf-8")
    assert all(f"{kind} accuracy" in report for kind in ("choice", "class", "answer"))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_row_alone_is_learned_from_however_large_the_batch(advl: Callable[..., tuple[str, str]]) -> None:
    write_json_lines(Path("alike.jsonl"), [choice_row(0, split="train")])
    caches = []
    for teacher in ("minilm-l6", "efficientnet-lite0"):
        advl("extract", "--teacher", teacher, "--data", "alike.jsonl", "--confidence", "none")
        caches += ["--cache", f"caches/{teacher}/alike/train"]
    small = ("--student", "scenes-small", "--batch-size", 4096)
    _, message = advl("finetune", "--data", "alike.jsonl", *caches, "--output", "run", *SHORT, *small)
    assert "--batch-size 4096, cut to the 1 examples there are" in message
    assert json.loads(Path("run/result.json").read_text())["status"] == "done"


def test_a_long_text_is_refused_to_learn_from_and_cut_to_be_scored(advl: Callable[..., tuple[str, str]]) -> None:
    long = "It is " + "very " * 100 + "red."
    rows = [class_row(number, **({"text": long} if number in (16, 17) else {})) for number in range(20)]
    write_json_lines(Path("mine.jsonl"), rows)
    plain = ("finetune", "--data", "mine.jsonl", "--student", "scenes-small", "--method", "plain", *SHORT[:2])
    advl(*plain, "--output", "runs/whole")
    scored, _ = advl("evaluate", "runs/whole", "--on", "test")
    assert "2 of 5 texts of test are cut to the student's length" in scored
    called, _ = advl("predict", "runs/whole", "--on", "test")
    assert "2 texts of test are cut to the student's length" in called
    write_json_lines(Path("mine.jsonl"), [*rows, class_row(20, text=long, split="train")])
    _, refused = advl(*plain, "--output", "runs/cut", code=5)
    (advice,) = re.findall(r"--student-option overlong=cut", refused)
    cut, message = advl(*plain, "--output", "runs/cut", *shlex.split(advice))
    assert "texts were cut to the student's length" in cut
    assert "longer than 64 tokens and are cut" in message


def test_a_file_of_options_names_data_as_the_flag_does(advl: Callable[..., tuple[str, str]]) -> None:
    write_json_lines(Path("mine.jsonl"), [class_row(number) for number in range(20)])
    Path("options.toml").write_text('data = "mine.jsonl"\nteacher = "minilm-l6"\n', encoding="utf-8")
    _, message = advl("extract", "--config", "options.toml", "--dry-run")
    assert "mine.jsonl: task classes" in message
    Path("options.toml").write_text('data = "mine.jsonl"\ndataset = "vcr"\n', encoding="utf-8")
    _, message = advl("extract", "--config", "options.toml", code=2)
    assert "data and dataset are one option" in message


STUDY = """
name = "mine"
dataset = "FILE"
tasks = ["choice"]
student = "scenes-small"
test_sets = ["test"]
methods = ["plain"]
shots = [4]
seeds = [0]

[evaluation]
probe = ["none"]

[training]
num_steps = 2
batch_size = 2
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_study_and_its_low_shot_lists_survive_a_move_of_the_file_and_no_change_of_its_test_set(
    advl: Callable[..., tuple[str, str]],
) -> None:
    rows = [choice_row(number) for number in range(20)]
    write_csv(Path("choose.csv"), rows)
    Path("mine.toml").write_text(STUDY.replace("FILE", "choose.csv"))
    table, _ = advl("study", "mine.toml")
    assert "choose" in table
    advl("report", "runs/studies/mine")
    assert "choice accuracy" in Path("runs/studies/mine/report.html").read_text(encoding="utf-8")
    advl("datasets", "subset", "choose.csv", "--shots", 4, "--output", "four.json")
    cells = sorted(path.name for path in Path("runs/cells").iterdir())
    Path("choose.csv").rename("chosen.csv")
    Path("mine.toml").write_text(STUDY.replace("FILE", "chosen.csv"))
    advl("study", "mine.toml", "--output", "again")
    assert sorted(path.name for path in Path("cells").iterdir()) == cells
    listed = ("--ids", "four.json", "--method", "plain", "--output", "run", "--num-steps", 2)
    advl("finetune", "--data", "chosen.csv", "--student", "scenes-small", *listed)
    (scores,) = Path("cells").glob("*/evaluation/test.json")
    then = json.loads(scores.read_text())["content_digest"]
    write_csv(
        Path("chosen.csv"), [row | ({"label": row["choices"][0]} if row["split"] == "test" else {}) for row in rows]
    )
    # Scores on what was there before are neither shown nor copied.
    _, message = advl("study", "mine.toml", "--output", "again", code=2)
    assert "The test set test has changed since runs were scored on it." in message
    subprocess.run(message.partition("next:")[2].partition("   (")[0], shell=True, check=True)
    advl("study", "mine.toml", "--output", "again")
    assert json.loads(scores.read_text())["content_digest"] != then


def test_a_folder_and_rows_of_pictures_have_one_cache_each_with_the_same_features(
    advl: Callable[..., tuple[str, str]],
) -> None:
    """Of pictures alone nothing is learned; they are extracted and prepared."""
    write_pictures(Path("some photos"))
    rows = [{"image": f"some photos/{colour}.png"} for colour in sorted(COLOURS)]
    write_json_lines(Path("mine.jsonl"), rows)
    caches = []
    for data in ("some photos", "mine.jsonl"):
        out, messages = advl("datasets", "check", data, "--deep")
        assert "5 pictures, 0 problems" in out
        extract = ("extract", "--teacher", "efficientnet-lite0", "--data", data, "--image-tokens", "none")
        assert "image: 5 units" in advl(*extract, "--dry-run")[0]
        out, messages = advl(*extract)
        assert f"{data}: pictures alone, from the columns image" in messages
        assert "image: 5 units" in out
        caches.append(open_cache(out.split("cache: ")[1].splitlines()[0]))
    left, right = (cache.image for cache in caches)
    assert left is not None
    assert right is not None
    units = list(left.ids)
    assert units == list(right.ids)
    assert (left.global_features(units) == right.global_features(units)).all()
    advl("cache", "verify", caches[0].path, "--recompute", 2)
    out, _ = advl("prepare", "--data", "some photos", "--student", "vilt-tiny")
    assert "image: 5 units" in out


def test_pictures_alone_teach_no_task_and_have_no_texts(advl: Callable[..., tuple[str, str]]) -> None:
    write_pictures(Path("some photos"))
    _, message = advl("finetune", "--data", "some photos", "--method", "plain", "--output", "run", code=5)
    assert "so there is nothing to learn" in message
    _, message = advl("extract", "--teacher", "minilm-l6", "--data", "some photos", code=5)
    assert "There is nothing to extract." in message
    assert not Path("caches").exists()
    # A row of pictures among rows of a task is malformed.
    rows = [
        {"image": "some photos/red.png", "text": "red", "label": "yes"},
        {"image": "some photos/red.png"},
    ]
    Path("mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out, _ = advl("datasets", "check", "mixed.jsonl", code=5)
    assert "mixed.jsonl:2" in out


@pytest.mark.parametrize(
    ("labelled", "trained_on", "scored"),
    [
        ("train val test", "train", "test"),
        ("train val", "train", "val"),
        ("train dev", "train", "dev"),
        ("train", "train", "train"),
        ("train holdout", "train", "holdout"),
        ("first holdout", "train", "first"),
        ("train test dev", "train+test", "dev"),
        ("train test dev", "test", "dev"),
        ("train test dev", "train+test+dev", "train"),
    ],
)
def test_the_next_command_scores_a_labelled_split_that_the_run_did_not_see(
    labelled: str, trained_on: str, scored: str, tmp_path: Path
) -> None:
    rows = [class_row(number, split=split) for number, split in enumerate(labelled.split())]
    data = write_json_lines(tmp_path / "mine.jsonl", [*rows, class_row(9, split="sent", label=None)])
    assert split_to_score(find_dataset(str(data)), trained_on=trained_on) == scored


def test_known_datasets_keep_theirs_and_need_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    read_and_print("vcr", None)
    assert capsys.readouterr() == ("", "")
    assert split_to_score(find_dataset("vcr"), trained_on="train") == "val"
    assert split_to_score(find_dataset("scenes-vcr"), trained_on="train") == "test"
