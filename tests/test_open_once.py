"""Each command finds and opens what it reads once, and hands it on."""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import exit_code
from own_rows import class_row, write_json_lines
from small_corpus import SMALL_WORDS

from advl_pipeline.cache.reader import open_cache
from advl_pipeline.datasets.cards import known_card
from advl_pipeline.datasets.index import open_index
from advl_pipeline.datasets.lowshot import question_order
from advl_pipeline.datasets.own.sources import find_source
from advl_pipeline.runs.results import read_config
from advl_pipeline.students.known_words import recorded_words
from advl_pipeline.students.registry import build_student
from advl_pipeline.training.inputs import open_run_inputs
from advl_pipeline.training.resolved import resolve_method, resolve_run

OF_DATA = (known_card, find_source, open_index)
OPENERS: tuple[Callable[..., Any], ...] = (
    *(*OF_DATA, open_cache, open_run_inputs, question_order, resolve_method, resolve_run, read_config, build_student),
    recorded_words,
)


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """The number of calls of each opener, by whatever module it was imported."""
    counts: Counter[str] = Counter()

    def counted(opener: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(opener)
        def note(*arguments: Any, **options: Any) -> Any:
            counts[opener.__name__] += 1
            return opener(*arguments, **options)

        return note

    for opener in OPENERS:
        noting = counted(opener)
        for module in [module for name, module in sys.modules.items() if name.startswith("advl_")]:
            for name in [name for name, value in vars(module).items() if value is opener]:
                monkeypatch.setattr(module, name, noting)
    return counts


def test_each_command_opens_each_thing_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counts: Counter[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    splits = ("train", "train", "val", "test")
    write_json_lines(Path("mine.jsonl"), [class_row(number, split=splits[number % 4]) for number in range(100)])
    cache, run = Path("caches/minilm-l6/mine/train"), Path("runs/mine")
    short = ("--shots", 16, "--num-steps", 1, "--adapt-steps", 1, "--batch-size", 4, "--confidence-folds", 2)
    student = ("--student", "scenes-small", "--student-option", *SMALL_WORDS)
    data = {opener.__name__ for opener in OF_DATA}
    method = {"open_run_inputs", "question_order", "resolve_method", "resolve_run"}
    commands = {
        ("extract", "--teacher", "minilm-l6", "--data", "mine.jsonl", "--confidence-folds", 2): (
            data | {"open_cache", "build_student", "recorded_words"}
        ),
        ("finetune", "--data", "mine.jsonl", "--cache", cache, "--output", run, *student, *short): (
            data | method | {"open_cache", "build_student", "recorded_words"}
        ),
        ("evaluate", run, "--on", "test", "--on", "val"): data | {"read_config", "build_student"},
        ("predict", run, "--on", "test", "--output", "predicted.csv"): data | {"read_config", "build_student"},
        ("readout", run, "--cache", cache, "--data", "mine.jsonl"): data
        | {"open_cache", "build_student", "read_config", "recorded_words"},
    }
    for words, opened in commands.items():
        counts.clear()
        assert exit_code(*words) == 0
        assert counts == dict.fromkeys(opened, 1), words[0]
