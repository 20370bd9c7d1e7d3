"""What a finished run answers by is held against the digests that it was finished with, by every command."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import advised, advl, exit_code, printed
from own_rows import class_row, write_json_lines, write_pictures
from run_logs import forget_digests
from safetensors.torch import load_file, save_file

from advl_pipeline.runs.results import say_on_trust


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recorded")
    write_pictures(folder / "pictures")
    write_json_lines(folder / "data.jsonl", [class_row(number) for number in range(20)])
    assert exit_code("finetune", *TRAINING, "--data", folder / "data.jsonl", "--output", folder / "run") == 0
    return folder / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


TRAINING = "--method plain --student vilt-tiny --recipe none --num-steps 1 --batch-size 4".split()


def negate_heads(run: Path) -> None:
    path = run / "heads.safetensors"
    save_file({name: -value for name, value in load_file(path).items()}, path)


def edit(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edited(run: Path) -> None:
        document = json.loads((run / name).read_bytes())
        change(document)
        (run / name).write_text(json.dumps(document), encoding="utf-8")

    return edited


CHANGES: dict[str, Callable[[Path], object]] = {
    "heads.safetensors": negate_heads,
    "heads.json": edit("heads.json", lambda heads: heads["classes"]["label_names"].reverse()),
    "config.json": edit("config.json", lambda config: config.update(hide_picture=True)),
    "run.json": edit("run.json", lambda identity: identity.update(schema=0)),
    "student.json": edit("student.json", lambda student: student["origin"].update(seed=7)),
    "tokenizer.json": lambda run: (run / "tokenizer.json").write_text("{}", encoding="utf-8"),
}
COMMANDS = {
    "evaluate": ("--on", "test"),
    "predict": ("--on", "test"),
    "export": ("--output", "shared"),
}


def words(command: str, run: Path) -> list[object]:
    options = [run.parent / part if part == "shared" else part for part in COMMANDS[command]]
    return [command, run, *options]


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_file_is_named_by_every_command_that_reads_the_run(
    name: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    CHANGES[name](run)
    for command in COMMANDS:
        code, _, message = advl(capsys, *words(command, run))
        assert code == 3, message
        assert "changed since it was finished" in message
        assert name in message
    assert not (run / "evaluation").exists()
    assert not (run / "predictions").exists()


def test_a_run_with_damaged_weights_is_trained_again_by_the_command_that_is_advised(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(whole[:-100])
    code, _, message = advl(capsys, *words("evaluate", run))
    assert code == 6, message
    command = re.search(r"next:  advl (.*) --no-resume   \(or copy", message)
    assert command is not None, message
    printed(capsys, *shlex.split(command[1]), "--no-resume")
    assert (run / "model.safetensors").read_bytes() == whole
    printed(capsys, *words("evaluate", run))


def without_student(run: Path) -> dict[str, bytes]:
    """Remove the student of a run as a study does that keeps none; return its weights by file."""
    whole = {name: (run / name).read_bytes() for name in ("model.safetensors", "heads.safetensors")}
    for name in whole:
        (run / name).unlink()
    return whole


def test_a_damaged_evaluation_of_a_run_without_a_student_is_made_again_by_what_is_advised(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed(capsys, "evaluate", run, "--on", "train", "--on", "test", "--num-questions", "4")
    whole = without_student(run)
    kept = (run / "evaluation" / "train.json").read_bytes()
    (run / "evaluation" / "test.json").write_bytes(b"torn")
    _, message = printed(capsys, "report", run, code=2)
    trains, scores = advised(message)
    assert "the run kept no student" in message
    assert (trains[:2], scores[:2]) == (["advl", "finetune"], ["advl", "evaluate"])
    printed(capsys, *trains[1:])
    assert {name: (run / name).read_bytes() for name in whole} == whole
    assert (run / "evaluation" / "train.json").read_bytes() == kept
    printed(capsys, *scores[1:], "--num-questions", "4")
    printed(capsys, "report", run)


@pytest.mark.parametrize("command", [*COMMANDS, "report", "score shift"])
def test_a_run_without_a_student_is_trained_before_anything_else(
    command: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without_student(run)
    given = words(command, run) if command in COMMANDS else [*command.split(), run]
    if command == "score shift":
        edit("config.json", lambda config: config.update(dataset="scenes-vcr"))(run)
        given += ["--on", "test-shift"]
    code, _, message = advl(capsys, *given)
    assert code in (2, 6), message
    trains, *others = advised(message)
    assert trains[:2] == ["advl", "finetune"]
    assert trains[trains.index("--output") + 1] == str(run)
    assert [step[:2] for step in others] == ([] if command in COMMANDS else [["advl", "evaluate"]])


def test_a_result_without_its_numbers_is_refused_by_every_command_that_reads_the_run(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "result.json").write_text("{}", encoding="utf-8")
    for command in COMMANDS:
        code, _, message = advl(capsys, *words(command, run))
        assert code == 2, message
        assert "caveats, dataset, method, num_adapt_inputs, num_labelled" in message
        assert "and wait_share are missing." in message


def test_a_student_that_begins_with_a_run_is_held_to_it_too(
    finished: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    negate_heads(run)
    given = ("--data", finished.parent / "data.jsonl", "--init", run, "--output", run.parent / "next")
    code, _, message = advl(capsys, "finetune", *TRAINING, *given)
    assert code == 3, message
    assert "heads.safetensors" in message
    assert not (run.parent / "next").exists()


def test_a_run_of_an_earlier_version_is_taken_on_trust_which_is_said_once(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forget_digests(run)
    say_on_trust.cache_clear()
    said = ""
    for command in ("evaluate", "predict"):
        code, _, message = advl(capsys, *words(command, run))
        assert code == 0, message
        said += message
    assert said.count("no digests of their files: they are taken on trust") == 1
