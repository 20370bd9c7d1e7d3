"""Landmarks: the readout of what a student relates and names, the bridge to answers, and weights that follow it."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from altered_dataset import alter_examples, with_wrong_label
from first_step import first_terms, open_run
from hypothesis import given, settings
from hypothesis import strategies as st
from real_processes import start
from run_logs import load_json, losses, metrics
from small_corpus import SmallCorpus, signals_of, train

from advl_pipeline.confidence.probe import TruthConfidence
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.distillation import distiller, relational
from advl_pipeline.distillation.relational import TEMPERATURE, Landmarks
from advl_pipeline.students.registry import build_student
from advl_pipeline.training.landmarks import bridge, readout
from advl_pipeline.training.landmarks.bridge import bridge_answers, bridge_confidence, bridge_scores
from advl_pipeline.training.landmarks.readout import ReadoutNodes, effective_rank, mean_by_group, take_readout
from advl_pipeline.training.signals import confidences


def nodes(count: int = 300, width: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(count, width, generator=generator)
    rotation, _ = torch.linalg.qr(torch.randn(20, 20, generator=generator))
    student = torch.nn.functional.pad(teacher, (0, 20 - width)) @ rotation
    return student, teacher


def share(student: torch.Tensor, teacher: torch.Tensor, **changes: torch.Tensor) -> float:
    count = len(student)
    settings = {
        "asked_X": torch.ones(count, dtype=torch.bool),
        "offered_X": torch.ones(count, dtype=torch.bool),
        "group_X": torch.arange(count),
        **changes,
    }
    agreed = ReadoutNodes(states_XH=student, features_XD=teacher, **settings).share()
    return agreed["share"]


def test_a_student_with_the_teacher_s_relations_agrees_and_a_stranger_does_by_chance() -> None:
    student, teacher = nodes()
    assert share(student, teacher) == 1.0
    assert share(5 * student + 3, teacher) == 1.0
    assert share(student[torch.randperm(300)], teacher) == pytest.approx(0.25, abs=0.08)


def test_only_offered_nodes_of_another_kin_are_chosen() -> None:
    student, teacher = nodes(8)
    offered = torch.arange(8) < 5
    of_kin = ReadoutNodes(
        states_XH=student, features_XD=teacher, asked_X=~offered, offered_X=offered, group_X=torch.arange(8)
    )
    agreed = of_kin.share()
    assert agreed == {"share": 1.0, "num_asked": 3, "chance": 0.25}
    # Two groups, so that all that may be chosen besides the best are of its own group.
    every = torch.ones(8, dtype=torch.bool)
    few = replace(of_kin, asked_X=every, offered_X=every, group_X=torch.arange(8) % 4 // 2)
    assert few.share() is None


def test_occurrences_of_a_word_are_averaged() -> None:
    states = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    means, groups = mean_by_group(states, torch.tensor([7, 2, 7]))
    assert groups.tolist() == [2, 7]
    assert means.tolist() == [[0.0, 1.0], [2.0, 0.0]]


@pytest.mark.parametrize("tasks", [("vcr-q2a",), ("vcr-q2a", "vcr-qa2r")])
def test_no_more_regions_are_drawn_of_several_tasks_than_of_one(
    tasks: tuple[Any, ...], small_corpus: SmallCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounds, draw = list[int](), readout.some_of

    def watched(place_X: torch.Tensor, most: int, generator: Any) -> torch.Tensor:
        bounds.append(most)
        return draw(place_X, most, generator)

    monkeypatch.setattr(readout, "some_of", watched)
    monkeypatch.setattr(readout, "MAX_REGIONS", 32)
    dataset = open_dataset("scenes-vcr", split="train", data_root=small_corpus.data_root, tasks=tasks)
    take_readout(build_student("scenes-small"), dataset, range(len(dataset)), signals_of(small_corpus.caches[1]))
    assert 24 <= sum(bounds) <= 32


def test_a_student_that_sees_no_region_has_no_names_to_keep() -> None:
    student, teacher = nodes(4)
    words = readout.ReadoutNodes(
        states_XH=student,
        features_XD=teacher,
        asked_X=torch.zeros(4, dtype=torch.bool),
        offered_X=torch.ones(4, dtype=torch.bool),
        group_X=torch.arange(4),
    )
    no_regions = readout.ReadoutNodes(**{name: value[:0] for name, value in vars(words).items()})
    placed = readout.Readout(words={"t": words}, texts={}, regions={"t": no_regions}, teachers=("t",))
    assert placed.names() is None


@given(rank=st.integers(1, 6), more=st.integers(0, 5), scale=st.floats(1e-3, 1e3), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_effective_rank_counts_equal_directions_and_no_others(rank: int, more: int, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.linalg.qr(torch.randn(12, 12, generator=generator).double())[0] for _ in range(2))
    equal = scale * left[:, :rank] @ right[:rank]
    assert effective_rank(equal) == pytest.approx(rank, rel=1e-6)
    fading = (
        scale * left[:, : rank + more] @ torch.diag(0.5 ** torch.arange(rank + more).double()) @ right[: rank + more]
    )
    assert 1 - 1e-9 <= effective_rank(fading) <= rank + more + 1e-9
    assert effective_rank(fading) == pytest.approx(effective_rank(fading @ right.T), rel=1e-6)
    assert effective_rank(torch.cat([fading, fading])) == pytest.approx(effective_rank(fading), rel=1e-6)
    assert effective_rank(0 * equal) == 1


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_scores_equal_a_loop() -> None:
    landmarks = Landmarks(states_KH=draw(6, 5, seed=1), features_KD=draw(6, 8, seed=2), mean_D=draw(8, seed=3))
    regions, words = draw(4, 5, seed=4), draw(4, 8, seed=5)
    scores = bridge_scores(regions, words, landmarks)
    centre = landmarks.features_KD.mean(0)

    def shares(state: torch.Tensor, others: torch.Tensor) -> list[float]:
        cosines = [float(state @ other / (state.norm() * other.norm())) for other in others]
        powers = [math.exp(cosine / TEMPERATURE) for cosine in cosines]
        return [power / sum(powers) for power in powers]

    for node in range(4):
        named = shares(regions[node], landmarks.states_KH)
        meant = shares(words[node] - landmarks.mean_D, landmarks.features_KD - centre)
        expected = sum(share * other for share, other in zip(named, meant, strict=True))
        assert float(scores[node]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("student", [{}, {"student": "scenes-vilt"}])
def test_weights_of_texts_follow_the_bridge_and_those_of_pictures_are_uniform(
    student: dict[str, str], small_corpus: Any, known: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def keep(start: Any, landmarks: Any, dataset: Any, positions: Any) -> Any:
        forwards = bridge_confidence(start, landmarks, dataset, positions)
        asked.append((forwards, bridge_confidence(start, landmarks, dataset, positions[::-1])))
        return forwards

    monkeypatch.setattr(confidences, "bridge_confidence", keep)
    monkeypatch.setattr(confidences, "load_or_estimate_confidence", None)
    run = small_corpus.run(tmp_path / "run", **student, confidence="bridge", known_words=known, num_steps=2).output
    ((forwards, backwards),) = asked
    np.testing.assert_allclose(forwards.probability_N, backwards.probability_N[::-1], rtol=1e-4)
    np.testing.assert_array_equal(forwards.outranked_N, backwards.outranked_N[::-1])
    assert forwards.probability_N.min() > 0
    assert forwards.probability_N.max() < 1
    assert len(set(forwards.probability_N.tolist())) > 8
    kept = load_json(run / "settings.json")["confidence"]
    assert set(kept) == {"text"}
    assert kept["text"]["auc"] == pytest.approx(float(forwards.outranked_N.mean()))
    weighed = [record for record in metrics(run) if "weights/text" in record]
    assert weighed
    assert all(record["weights/text"]["max"] > record["weights/text"]["mean"] for record in weighed)
    assert all(record["weights/vision"]["mean"] == record["weights/vision"]["max"] == 1.0 for record in weighed)


def test_what_the_adapt_step_learns_of_answers_reads_no_label(
    small_corpus: Any, known: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"known_words": known, "answer_weight": 1.0, "confidence": "none"}
    terms = first_terms(small_corpus.config(tmp_path / "own", **options))
    alter_examples(monkeypatch, with_wrong_label)
    others = first_terms(small_corpus.config(tmp_path / "others", **options))
    assert others["adapt/raw/answers"] == terms["adapt/raw/answers"] > 0
    assert others["finetune/raw/task"] != terms["finetune/raw/task"]


@pytest.mark.parametrize("outranked", [1.0, 0.5])
def test_left_to_itself_a_run_learns_answers_that_tell_right_from_wrong(
    outranked: float,
    small_corpus: Any,
    known: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def constant_confidence(start: Any, landmarks: Any, dataset: Any, positions: Any) -> TruthConfidence:
        share_N = np.full(len(positions), outranked, np.float32)
        return TruthConfidence(probability_N=share_N, outranked_N=share_N)

    monkeypatch.setattr(bridge, "bridge_confidence", constant_confidence)
    terms = first_terms(small_corpus.config(tmp_path / "run", known_words=known))
    (kept,) = load_json(tmp_path / "run/settings.json")["answers"]
    assert kept["learned"] == (outranked == 1.0)
    assert kept["auc"] == outranked
    verb = "learns how" if outranked == 1.0 else "does not learn how"
    assert f"the adapt stage {verb} the text teacher would answer: AUC {outranked:.2f}" in capsys.readouterr().err
    assert ("adapt/raw/answers" in terms) == (outranked == 1.0)


def test_answers_are_of_the_inputs_that_the_adapt_step_visits(
    small_corpus: Any, known: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def keep(start: Any, landmarks: Any, dataset: Any, positions: Any) -> Any:
        asked.append(len(positions))
        return bridge_answers(start, landmarks, dataset, positions)

    monkeypatch.setattr(bridge, "bridge_answers", keep)
    open_run(small_corpus.config(tmp_path / "run", known_words=known, answer_weight=1.0, adapt_steps=1))
    # Of sixteen labelled questions each is looked at, of the inputs the four of one step.
    assert asked == [16, 4]


def test_known_words_are_landmarks_and_are_not_distilled(
    small_corpus: Any, known: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distiller, "select_words", partial(distiller.select_words, rho=1.0))
    counts, logs = load_json(known), {}
    for name, record in {"known": {"known_words": known}, "no record": {}}.items():
        run = tmp_path / name
        small_corpus.run(run, selection="prior", cache=small_corpus.caches[:1], num_steps=1, **record)
        logs[name] = losses(run)
        selected = load_json(run / "selected_words.json")
        chosen = {
            candidate.text[start:end].lower()
            for example in small_corpus.examples()
            for candidate, spans in zip(example.candidates, selected.get(example.example_id, ()), strict=False)
            for start, end in spans
        }
        assert chosen
        assert bool(chosen & set(counts)) == (name == "no record")
    texts = load_json(tmp_path / "known" / "readout.json")["after"]["minilm-l6"]["texts"]
    assert texts["num_asked"] > 10
    assert logs["known"][0]["raw/text"] != logs["no record"][0]["raw/text"]


@pytest.mark.parametrize(("layer", "has_landmarks"), [("unimodal", True), ("fused", False)])
def test_regions_that_the_student_names_are_landmarks_below_the_fusion(
    small_corpus: Any, known: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layer: str, has_landmarks: bool
) -> None:
    # A student that was never pretrained gives nearly all regions one name.
    monkeypatch.setattr(relational, "MIN_LANDMARKS", 1)
    options = {"distill_layer": layer, "pathway": "vision"}
    placed, related = (
        first_terms(small_corpus.config(tmp_path / name, **options, **record))["adapt/raw/vision"]
        for name, record in (("known", {"known_words": known}), ("no record", {}))
    )
    assert (placed != related) == has_landmarks
    assert placed > 0


@pytest.mark.slow
def test_similarities_are_compared_in_full_precision_where_the_student_computes_in_half(
    small_corpus: Any, known: Path, tmp_path: Path
) -> None:
    # Of so few regions none is a landmark: words are placed by landmarks here, and regions related to one another.
    options = {"known_words": known, "num_steps": 1, "adapt_steps": 1}
    small_corpus.run(tmp_path / "full", **options)
    # A process computes in one precision.
    half = start(train, small_corpus.config(tmp_path / "half", mixed_precision="bf16", **options))
    assert half.wait() == 0, half.messages()
    for name in ("raw/text", "raw/vision"):
        full, in_half = (losses(tmp_path / run)[0][name] for run in ("full", "half"))
        assert full > 0
        assert in_half == pytest.approx(full, rel=0.02)
