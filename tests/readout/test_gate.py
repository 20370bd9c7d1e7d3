"""The gate: what a teacher adds to a student's own vectors, and where commands say it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from commands import completed, exit_code, printed
from own_rows import COLOURS, write_json_lines
from PIL import Image

from advl_pipeline.cache.reader import FeatureStore
from advl_pipeline.confidence.match_probe import MatchProbe
from advl_pipeline.readout.config import ReadoutConfig
from advl_pipeline.readout.gate import GateNames, PooledVectors, Questions, TeacherGate, measure_gate, take_gates
from advl_pipeline.readout.opened_student import open_student
from advl_pipeline.readout.prepare import prepare_look

NUM_QUESTIONS = 160


def made(kind: str, seed: int) -> tuple[Questions, PooledVectors, PooledVectors]:
    """Questions that the student's vectors answer in part, and a teacher whose texts hold the answer."""
    draw = np.random.default_rng(seed)
    num_candidates = 4 if kind == "choice" else 1
    meant_NK = draw.normal(size=(NUM_QUESTIONS, 8))
    label_N = draw.integers(4, size=NUM_QUESTIONS)
    shown_NV = meant_NK @ draw.normal(size=(8, 12))
    said_NCT = draw.normal(size=(NUM_QUESTIONS, num_candidates, 16))
    taught_NCT = draw.normal(size=(NUM_QUESTIONS, num_candidates, 10))
    rows = np.arange(NUM_QUESTIONS)
    if kind == "choice":
        to_text = draw.normal(size=(8, 16))
        said_NCT[rows, label_N] += 0.1 * meant_NK @ to_text
        taught_NCT[rows, label_N] += 3 * meant_NK @ to_text[:, :10]
    else:
        said_NCT[rows, 0, label_N] += 0.5
        taught_NCT[rows, 0, label_N] += 6
    questions = Questions(
        label_N=label_N,
        cluster_N=[f"picture {row // 2}" for row in range(NUM_QUESTIONS)],
        num_classes=0 if kind == "choice" else 4,
    )
    student = PooledVectors(said_NCT=said_NCT, shown_NV=shown_NV)
    return questions, student, PooledVectors(said_NCT=taught_NCT, shown_NV=shown_NV)


def gate_of(questions: Questions, student: PooledVectors, teacher: PooledVectors) -> TeacherGate:
    return measure_gate(
        questions, student, teacher, names=GateNames(teacher="teacher", student="student", task="choice")
    )


@pytest.mark.parametrize("kind", ["choice", "classes"])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_teacher_that_holds_the_answer_adds_and_a_shuffled_one_does_not(kind: str, seed: int) -> None:
    questions, student, teacher = made(kind, seed)
    gate = gate_of(questions, student, teacher)
    assert gate.adds.interval.low > 10
    assert gate.by_both > 80
    assert gate.verdict == "it holds what the student lacks"
    order = np.random.default_rng(seed).permutation(NUM_QUESTIONS)
    shuffled = PooledVectors(said_NCT=teacher.said_NCT[order], shown_NV=teacher.shown_NV)
    assert gate_of(questions, student, shuffled).adds.interval.contains(0)
    twin = gate_of(questions, student, student)
    assert twin.adds.points == 0
    assert twin.verdict == "no gain is to be expected"


def test_missing_choices_are_never_chosen() -> None:
    questions, student, teacher = made("choice", 0)
    valid_NC = np.ones((NUM_QUESTIONS, 4), np.bool_)
    valid_NC[np.arange(NUM_QUESTIONS), (questions.label_N + 1) % 4] = False
    fewer = Questions(label_N=questions.label_N, cluster_N=questions.cluster_N, num_classes=0, valid_NC=valid_NC)
    assert gate_of(fewer, student, teacher).by_student > gate_of(questions, student, teacher).by_student


def test_a_probe_of_many_pairs_stays_bounded_and_answers_new_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    questions, _, teacher = made("choice", 0)
    monkeypatch.setattr("advl_pipeline.confidence.match_probe.MAX_PAIRS", 100)
    half = NUM_QUESTIONS // 2
    probe = MatchProbe.fit(teacher.said_NCT[:half], teacher.shown_NV[:half], questions.label_N[:half])
    scores_NK = probe.scores(teacher.said_NCT[half:], teacher.shown_NV[half:])
    assert scores_NK.shape == (half, 4)
    assert (scores_NK.argmax(1) == questions.label_N[half:]).mean() > 0.6


def rows_of(folder: Path, number: int) -> Path:
    """Write yes-no rows on single-colour pictures; the label follows the picture."""
    (folder / "pictures").mkdir(parents=True)
    drawn, rows = random.Random(0), []
    for place in range(number):
        Image.new("RGB", (48, 48), (5 * place % 250, 40, 90)).save(folder / f"pictures/{place}.png")
        words = drawn.sample(["dark", "bright", "red", "blue"], 2)
        row = {"image": f"pictures/{place}.png", "question": "Which colour?", "choices": words}
        rows.append(row | {"label": drawn.randrange(2)})
    return write_json_lines(folder / "mine.jsonl", rows)


def test_extract_ends_with_the_gate_of_the_default_student_if_there_are_enough_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows_of(tmp_path, 50)
    words = ("extract", "--teacher", "minilm-l6", "--data", "mine.jsonl", "--confidence-folds", 2)
    said, _ = printed(capsys, *words)
    (line,) = (line for line in said.splitlines() if line.startswith("minilm-l6 adds "))
    assert "to what efficientnet-minilm holds (" in line
    assert "for a student without language it adds " in line
    # Nothing was encoded, so nothing is asked again.
    again, _ = printed(capsys, *words)
    assert " adds " not in again.replace("what the teacher adds to", "")
    assert "advl readout efficientnet-minilm --data mine.jsonl --cache caches/minilm-l6/mine/train" in again
    looked = completed("readout", "scenes-small", *("--cache", "caches/minilm-l6/mine/train", "--data", "mine.jsonl"))
    assert looked.returncode == 0, looked.stderr
    assert "to what scenes-small holds (" in looked.stdout


def unlabelled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "label"} for row in rows]


def of_one_picture(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row | {"image": rows[0]["image"], "question": f"Which colour has part {row['image']}?"} for row in rows]


def with_many_choices(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row | {"choices": [f"colour {place}" for place in range(40)]} for row in rows]


FEW = (
    ("few labels", lambda rows: rows[:49], "49 labelled questions of 49 pictures, and at least 50 questions of 5"),
    ("no labels", unlabelled, "there are no labels, and at least 50 questions of 5 pictures are needed"),
    ("few pictures", of_one_picture, "50 labelled questions of 1 picture, and at least 50 questions of 5"),
    ("many choices", with_many_choices, "37 labelled questions of 37 pictures with at most 1,500 texts in all"),
)


@pytest.mark.parametrize(("changed", "why"), [row[1:] for row in FEW], ids=[row[0] for row in FEW])
def test_both_commands_say_why_nothing_is_measured(
    changed: Callable[[list[dict[str, Any]]], list[dict[str, Any]]],
    why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [json.loads(line) for line in rows_of(tmp_path, 50).read_text().splitlines()]
    write_json_lines(Path("mine.jsonl"), changed(rows))
    words = ("extract", "--teacher", "minilm-l6", "--data", "mine.jsonl", "--confidence-folds", 2)
    said, _ = printed(capsys, *words)
    start = "what efficientnet-minilm gains by minilm-l6 is not measured: "
    (line,) = (line for line in said.splitlines() if line.startswith(start))
    assert why in line
    cache = "caches/minilm-l6/mine/train"
    looked, _ = printed(capsys, "readout", "scenes-small", "--cache", cache, "--data", "mine.jsonl", "--json")
    (gate,) = json.loads(looked)["gates"]
    assert why in gate["why"]


KINDS = {
    "bird": "sparrow pigeon robin swallow parrot crow gull stork owl finch falcon hawk goose".split(),
    "fruit": "apple pear plum banana cherry peach mango lemon orange grape melon fig lime".split(),
    "vehicle": "lorry bus tram bicycle car train van tractor truck motorcycle taxi scooter ambulance".split(),
    "clothing": "shirt coat scarf glove jacket skirt sweater sock trousers dress cap shoe belt".split(),
}


@dataclass(frozen=True)
class ShuffledTexts:
    """The vectors of a cache's texts, each under the name of another text."""

    store: FeatureStore

    def global_features(self, ids: Sequence[str]) -> npt.NDArray[np.floating]:
        distinct = sorted({*ids})
        other = dict(zip(distinct, np.random.default_rng(0).permutation(distinct).tolist(), strict=True))
        return self.store.global_features([other[name] for name in ids])


def test_a_real_teacher_adds_to_open_answers_and_a_shuffled_one_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    things = [(thing, kind) for kind, named in KINDS.items() for thing in named]
    rows = [
        {"image": f"pictures/{COLOURS[place % 5]}.png", "question": f"What is a {thing}?", "answer": kind}
        for place, (thing, kind) in enumerate(things)
    ]
    data = write_json_lines(Path("mine.jsonl"), [row | {"split": "train"} for row in rows])
    words = ("extract", "--teacher", "minilm-l6", "--data", data, "--confidence", "none")
    assert exit_code(*words) == 0
    config = ReadoutConfig(student=Path("scenes-small"), cache=(Path("caches/minilm-l6/mine/train"),))
    opened = open_student(prepare_look(replace(config, dataset=str(data))))
    (cache,) = opened.caches
    assert cache.text is not None
    shuffled = replace(cache, text=ShuffledTexts(cache.text))  # type: ignore[arg-type]
    helped, misled = take_gates(replace(opened, caches=[cache, shuffled]))
    assert isinstance(helped, TeacherGate)
    assert isinstance(misled, TeacherGate)
    assert helped.adds.interval.low > 5
    assert misled.adds.interval.contains(0)
