"""Every error says what to type next: a command that parses, and that holds what the user gave."""

from __future__ import annotations

import ast
import copy
import functools
import json
import pickle
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from commands import complaint
from own_rows import choice_row, write_json_lines

from advl_cli.advice import command_of
from advl_cli.main import group
from advl_pipeline.base import errors
from advl_pipeline.base.configuration import config_to_dict
from advl_pipeline.base.errors import Advice, AdvlError, ConfigError, advise, again, leave_out
from advl_pipeline.training import prepare as training_prepare

ROOT = Path(__file__).parents[2]
CLASSES = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, AdvlError)]


def advised(message: str) -> list[str]:
    """Return the words of the last command that an error advises."""
    advice = message.partition("\n  next:")[2]
    lines = [line.strip().partition("   (")[0] for line in advice.splitlines()]
    commands = [shlex.split(line) for line in lines if re.match(r"advl [a-z-]", line)]
    assert commands, f"no command is advised:\n{message}"
    words = commands[-1]
    return words[len(words) - words[::-1].index("&&") :] if "&&" in words else words


def require_parses(words: list[str]) -> None:
    assert words[0] == "advl"
    command, number = command_of(words[1:], group)
    assert command is not None, words
    rest = [word for word in words[1 + number :] if word != "--help"]
    if not isinstance(command, click.Group) and not {"--help", "--list"} & set(words):
        command.make_context("advl", rest)


@functools.cache
def trees() -> dict[Path, ast.Module]:
    files = sorted(file for folder in ("advl_pipeline", "data", "cli") for file in (ROOT / folder).rglob("*.py"))
    return {file: ast.parse(file.read_text(encoding="utf-8")) for file in files}


def written_advice() -> Iterator[tuple[str, list[str]]]:
    """Yield the place and the words of every command that an error advises; a value in it stands as `x`."""
    for file, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "advise":
                for command in node.args:
                    if isinstance(command, ast.List):
                        yield f"{file.relative_to(ROOT)}:{command.lineno}", list(_words(command))


def _words(command: ast.List) -> Iterator[str]:
    for word in command.elts:
        match word:
            case ast.Constant(value=str(text)):
                yield text
            case ast.Starred(value=ast.Call(func=ast.Attribute(value=ast.Constant(value=str(text)), attr="split"))):
                yield from text.split()
            case ast.Starred():
                pass
            case _:
                yield "x"


def test_what_an_error_advises_can_be_typed() -> None:
    for place, words in written_advice():
        if words[:1] != ["advl"] or "x" in words[1:3]:
            continue  # The command itself is put in where the error is raised.
        command, _ = command_of(words[1:], group)
        assert command is not None, place
        options = [item for item in command.params if isinstance(item, click.Option) and not item.is_flag]
        require_parses([*words, "x"] if any(words[-1] in item.opts for item in options) else words)


def test_a_command_is_advised_by_its_words_and_never_inside_a_text() -> None:
    for file, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "next_command":
                parts = list(ast.walk(node.value))
                split = [part.value for part in parts if isinstance(part, ast.Attribute) and part.attr == "split"]
                texts = [part.value for part in parts if isinstance(part, ast.Constant) and part not in split]
                assert not [text for text in texts if re.search(r"\badvl [a-z]", str(text))], f"{file}:{node.lineno}"


Fail = Callable[[AdvlError], None]


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Fail:
    """Have `advl finetune` fail with an error before it does anything."""

    def fail_with(error: AdvlError) -> None:
        def stop(*_: object) -> None:
            raise copy.copy(error)

        monkeypatch.setattr(training_prepare, "prepare_finetune", stop)

    return fail_with


@pytest.mark.parametrize(
    "advice",
    ["", advise(["advl", "datasets", "check", "scenes-vcr"], note="lists all"), again("make room, then once more")],
    ids=["no advice", "a command", "the same command"],
)
def test_every_kind_of_error_says_what_where_why_and_what_next(
    advice: str, fail: Fail, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ["finetune", "--dataset", "scenes-vcr", "--output", "runs/a b", "--cache", "caches/x"]
    for cls in CLASSES:
        fail(cls("It cannot be done.", where="runs/a b", why="it was done before", next_command=advice))
        code, message = complaint(capsys, *typed, "--data-root", "/da ta")
        assert code == cls.exit_code
        assert message.startswith(
            "error: It cannot be done.\n  where: runs/a b\n  why:   it was done before\n  next:  "
        )
        words = advised(message)
        require_parses(words)
        command, _ = command_of(words[1:], group)
        assert command is not None
        if "--help" in words:
            assert words[1] == "finetune"
        elif any(item.name == "data_root" for item in command.params):
            assert words[words.index("--data-root") + 1] == "/da ta"
        if isinstance(advice, Advice):
            assert advice.note in message
        if isinstance(advice, Advice) and advice.again is not None:
            assert words == ["advl", *typed, "--data-root", "/da ta"]


def test_an_advice_comes_whole_out_of_another_process() -> None:
    line = advise(["advl", "cache", "verify", "a b"], note="first", again=["--no-resume"])
    for advice in (line, leave_out("--seed", "--shots")):
        error = pickle.loads(pickle.dumps(ConfigError("It cannot be done.", next_command=advice)))
        assert error.next_command == advice
        assert all(getattr(error.next_command, name) == getattr(advice, name) for name in Advice.__slots__)


def test_the_users_command_is_told_with_and_without_the_words_that_are_advised(
    fail: Fail, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = ["finetune", "--dataset", "scenes-vcr"], ["--output", "a b", "--shots", "7"]
    fail(ConfigError("It cannot be done.", next_command=again("replace what is there", "--replace")))
    assert advised(complaint(capsys, *before, *after)[1]) == ["advl", *before, *after, "--replace"]
    fail(ConfigError("It cannot be done.", next_command=leave_out("--seed", "--resume")))
    for options in (["--seed", "7", "--no-resume"], ["--seed=7", "--resume"], ["--no-resume", "--seed", "7"]):
        message = complaint(capsys, *before, *options, *after)[1]
        assert "next:  leave out --seed and --resume" in message
        assert advised(message) == ["advl", *before, *after]
    # A file has them, and a value on the command line replaces one of a file.
    assert complaint(capsys, *before, *after)[1].rstrip().endswith("leave out --seed and --resume")
    another = advise(note="draw again", again=["--seed", "3"], left_out=["--seed"])
    fail(ConfigError("It cannot be done.", next_command=another))
    for options in ([], ["--seed", "7"]):
        assert advised(complaint(capsys, *before, *options, *after)[1]) == ["advl", *before, *after, "--seed", "3"]


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        # A value never goes into an option of another unit.
        ("finetune --dataset scenes-vcr --datset-root d", "advl finetune --help"),
        ("finetune --dataset scenes-vcr --lr-scale 2", "advl finetune --help"),
        ("finetune --dataset scenes-vcr --data-rot d", "--data-root d"),
        ("finetune --dataset scenes-vcr --method avdl --seed 7", "--method advl --seed 7"),
        ("finetun --dataset scenes-vcr --seed 7", "finetune --dataset scenes-vcr --seed 7"),
        ("cache inf caches/a", "cache info caches/a"),
        ("datasets card vccr", "datasets card vcr"),
        ("extract --teacher minilm-l6 --dataset scenes-vrc", "--dataset scenes-vcr"),
        ("students show uniter-tny", "students show uniter-tiny"),
        ("study dmo", "study demo"),
        # What other programs call it.
        ("train --dataset scenes-vcr --seed 7", "finetune --dataset scenes-vcr --seed 7"),
        ("eval runs/a --on test", "evaluate runs/a --on test"),
        ("predict a --split val", "predict a --on val"),
        ("evaluate a --evaluate-on 5", "evaluate a --num-questions 5"),
        ("finetune --dataset scenes-vcr --lr 1e-4", "--learning-rate 1e-4"),
        ("finetune --dataset scenes-vcr --learning_rate 1e-4", "--learning-rate 1e-4"),
        ("finetune --dataset scenes-vcr --num-epochs 3", "--epochs 3"),
        ("finetune --dataset scenes-vcr --epoch 3", "--epochs 3"),
        ("finetune --dataset scenes-vcr --num-train-epochs 3", "--epochs 3"),
        ("finetune --dataset scenes-vcr --step 300", "--num-steps 300"),
        ("finetune --dataset scenes-vcr --max-steps 9", "--num-steps 9"),
        ("finetune --dataset scenes-vcr --num-stpes 9", "--num-steps 9"),
        # A word that is wrong by itself stays right at the end of a path.
        (
            "finetune --dataset scenes-vcr --method plain --student vlit --output a/vlit",
            "--student vilt --output a/vlit",
        ),
        ("finetune --dataset scenes-vcr --task vcr-q2 --method plain --output a", "--task vcr-q2a --method plain"),
    ],
)
def test_a_typo_is_put_right_in_the_command_that_was_typed(
    wrong: str,
    right: str,
    small_corpus: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ADVL_DATA", str(small_corpus.data_root))
    code, message = complaint(capsys, *wrong.split())
    assert code == 2
    words = advised(message)
    require_parses(words)
    assert right in shlex.join(words)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("dataset = ", "not valid TOML"),
        ("datset = 'scenes-vcr'", "datset"),
        ("method = 'avdl'", "avdl"),
        ("num-steps = 7\nnum_steps = 7", "are one option"),
        ("init = 5", "init must be Path"),
    ],
)
def test_an_error_in_a_file_says_to_correct_it(
    content: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.toml"
    file.write_text(content)
    words = ["finetune", "--config", str(file), "--output", "runs/a"]
    code, message = complaint(capsys, *words)
    assert code == 2
    assert said in message
    assert f"correct {file}" in message
    assert advised(message) == ["advl", *words]


def test_a_cache_of_another_text_style_is_made_anew_as_the_run_needs_it(
    small_corpus: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = small_corpus.caches[0]
    words = ["--cache", cache, "--output", tmp_path / "run", "--data-root", small_corpus.data_root]
    code, message = complaint(capsys, "finetune", "--dataset", "scenes-vcr", "--text-style", "r2c", *words)
    assert code == 3, message
    advised_words = advised(message)
    require_parses(advised_words)
    assert advised_words[:2] == ["advl", "extract"]
    for flag, value in {"--text-style": "r2c", "--data-root": small_corpus.data_root}.items():
        assert advised_words[advised_words.index(flag) + 1] == str(value)
    # That cache is as good as ever.
    assert "prune" not in message
    assert advised_words[advised_words.index("--output") + 1] == f"{cache}-r2c"


def test_an_unfinished_run_is_to_be_resumed(
    small_corpus: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    config = small_corpus.config(folder, seed=3, task=())
    (folder / "config.json").write_text(json.dumps(config_to_dict(config)))
    for words in (["evaluate", folder], ["predict", folder]):
        code, message = complaint(capsys, *words)
        assert code == 6
        advice = advised(message)
        require_parses(advice)
        assert advice[:2] == ["advl", "finetune"]
        for flag, value in {"--output": folder, "--seed": 3, "--data-root": small_corpus.data_root}.items():
            assert advice[advice.index(flag) + 1] == str(value)


def test_a_secret_in_a_url_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    code, message = complaint(capsys, "finetune", "--cache", "s3://key:secret@bucket/x", "--method", "avdl")
    assert code == 2
    assert "secret" not in message


@pytest.mark.parametrize("name", ["my däta, (v1)", "it's; && (mine), there"])
def test_a_folder_of_any_name_is_advised_as_it_is_typed(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).mkdir()
    data = str(write_json_lines(tmp_path / name / "train.jsonl", [choice_row(0, split=...)]).parent)
    message = complaint(capsys, "finetune", "--data", data, "--output", tmp_path / "run", "--data-root", data)[1]
    advice = message.partition("next:")[2]
    words = shlex.split(advice.strip().splitlines()[0].partition("   (")[0])
    assert words[:3] == ["advl", "extract", "--teacher"]
    assert words[4:] == ["--dataset", data, "--split", "train", "--data-root", data]
    assert advised(message)[-2:] == ["--cache", f"caches/NAME/{name}/train"]
