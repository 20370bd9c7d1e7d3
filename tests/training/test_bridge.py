"""The bridge against a loop, its invariances, and runs whose weights follow it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from altered_dataset import AlteredDataset
from run_logs import losses, metrics

from advl_pipeline.confidence.probe import TruthConfidence
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.distillation.landmarks import Landmarks
from advl_pipeline.errors import ConfigError, Interrupted
from advl_pipeline.training import bridge, confidences
from advl_pipeline.training.bridge import bridge_answers, bridge_confidence, bridge_scores
from advl_pipeline.training.checkpoint import CheckpointWriter
from advl_pipeline.training.run import run_finetune

TEMPERATURES = {"student": 0.2, "teacher": 0.1}


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some_landmarks() -> Landmarks:
    return Landmarks(states_KH=draw(6, 5, seed=1), features_KD=draw(6, 8, seed=2), mean_D=draw(8, seed=3))


def test_scores_equal_a_loop() -> None:
    landmarks, regions, words = some_landmarks(), draw(4, 5, seed=4), draw(4, 8, seed=5)
    found = bridge_scores(regions, words, landmarks, **TEMPERATURES)
    centre = landmarks.features_KD.mean(0)

    def shares(one: torch.Tensor, others: torch.Tensor, temperature: float) -> list[float]:
        cosines = [float(one @ other / (one.norm() * other.norm())) for other in others]
        powers = [math.exp(cosine / temperature) for cosine in cosines]
        return [power / sum(powers) for power in powers]

    for node in range(4):
        named = shares(regions[node], landmarks.states_KH, 0.2)
        meant = shares(words[node] - landmarks.mean_D, landmarks.features_KD - centre, 0.1)
        expected = sum(one * other for one, other in zip(named, meant, strict=True))
        assert float(found[node]) == pytest.approx(expected, rel=1e-5)


def test_a_teacher_turned_and_scaled_scores_the_same() -> None:
    landmarks, regions, words = some_landmarks(), draw(4, 5, seed=4), draw(4, 8, seed=5)
    turn, _ = torch.linalg.qr(draw(8, 8, seed=6))
    turned = Landmarks(
        states_KH=landmarks.states_KH * 3,
        features_KD=7 * landmarks.features_KD @ turn,
        mean_D=7 * landmarks.mean_D @ turn,
    )
    torch.testing.assert_close(
        bridge_scores(regions * 2, 7 * words @ turn, turned, **TEMPERATURES),
        bridge_scores(regions, words, landmarks, **TEMPERATURES),
    )


def test_words_that_mean_what_the_region_is_named_score_highest() -> None:
    landmarks = some_landmarks()
    words = landmarks.features_KD - landmarks.features_KD.mean(0) + landmarks.mean_D
    score_K = bridge_scores(landmarks.states_KH[2].expand(6, -1), words, landmarks, **TEMPERATURES)
    assert int(score_K.argmax()) == 2
    assert bool(((score_K > 0) & (score_K < 1)).all())


@pytest.mark.parametrize("student", ["scenes-small", "scenes-vilt"])
def test_weights_of_texts_follow_the_bridge_and_those_of_pictures_are_uniform(
    student: str, small_corpus: Any, known: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def keep(start: Any, landmarks: Any, dataset: Any, positions: Any, source: Any) -> Any:
        found = bridge_confidence(start, landmarks, dataset, positions, source)
        asked.append((found, bridge_confidence(start, landmarks, dataset, positions[::-1], source)))
        return found

    monkeypatch.setattr(confidences, "bridge_confidence", keep)
    monkeypatch.setattr(confidences, "load_or_estimate_confidence", None)
    run = tmp_path / "run"
    run_finetune(small_corpus.config(run, student=student, confidence="bridge", known_words=known))
    ((found, backwards),) = asked
    np.testing.assert_allclose(found.probability_N, backwards.probability_N[::-1], rtol=1e-4)
    np.testing.assert_array_equal(found.outranked_N, backwards.outranked_N[::-1])
    assert found.probability_N.min() > 0
    assert found.probability_N.max() < 1
    assert len(set(found.probability_N.tolist())) > 8
    kept = json.loads((run / "settings.json").read_text(encoding="utf-8"))["confidence"]
    assert set(kept) == {"text"}
    assert kept["text"]["auc"] == pytest.approx(float(found.outranked_N.mean()))
    weighed = [one for one in metrics(run) if "weights/text" in one]
    assert weighed
    assert all(one["weights/text"]["max"] > one["weights/text"]["mean"] for one in weighed)
    assert all(one["weights/vision"]["mean"] == one["weights/vision"]["max"] == 1.0 for one in weighed)


def test_a_resumed_run_finds_the_same_bridge(
    small_corpus: Any, known: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"confidence": "bridge", "answer_weight": 1.0, "known_words": known, "checkpoint_every": 1}
    run_finetune(small_corpus.config(tmp_path / "whole", **options))
    save, calls = CheckpointWriter.save, []

    def stop(*given: Any, **named: Any) -> None:
        save(*given, **named)
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(CheckpointWriter, "save", stop)
    with pytest.raises(Interrupted):
        run_finetune(small_corpus.config(tmp_path / "stopped", **options))
    run_finetune(small_corpus.config(tmp_path / "stopped", **options))
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")


@pytest.mark.parametrize(
    "changes",
    [{}, {"landmarks": "all"}, {"distance": "mse"}, {"pathway": "vision"}],
    ids=["no record of words", "no landmarks", "coordinates", "no texts"],
)
@pytest.mark.parametrize("asked", [{"confidence": "bridge"}, {"answer_weight": 1.0}], ids=["confidence", "answers"])
def test_without_landmarks_of_words_there_is_no_bridge(
    asked: dict[str, Any], changes: dict[str, Any], small_corpus: Any, known: Path, tmp_path: Path
) -> None:
    record = {"known_words": known} if changes else {}
    with pytest.raises(ConfigError, match="bridge") as refused:
        run_finetune(small_corpus.config(tmp_path / "run", **asked, **record, **changes))
    assert refused.value.next_command.startswith("leave out --")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"steps": "one"}, "no adapt step"),
        ({"method": "plain-two-step", "cache": ()}, "plain-two-step has no teacher"),
        ({"hide_picture": True, "pathway": "text", "selection": "prior"}, "names what the picture shows"),
    ],
)
def test_answers_that_nobody_could_learn_are_refused(
    changes: dict[str, Any], why: str, small_corpus: Any, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as refused:
        run_finetune(small_corpus.config(tmp_path / "run", answer_weight=1.0, **changes))
    assert why in str(refused.value.why)


def test_the_adapt_step_learns_a_teachers_answers_and_reads_no_label(
    small_corpus: Any, known: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"known_words": known, "answer_weight": 1.0, "adapt_steps": 12, "num_steps": 1, "confidence": "none"}

    def adapt_losses(run: Path) -> list[float]:
        run_finetune(small_corpus.config(run, **options))
        return [one["raw/answers"] for one in losses(run) if one["phase"] == "adapt"]

    found = adapt_losses(tmp_path / "own")
    assert sum(found[-3:]) < sum(found[:3])
    monkeypatch.setattr(
        "advl_pipeline.training.inputs.open_splits",
        lambda name, **given: AlteredDataset(
            open_dataset(name, **given),
            lambda example: replace(example, label=(example.label + 1) % len(example.candidates)),
        ),
    )
    assert adapt_losses(tmp_path / "others") == found


@pytest.mark.parametrize("outranked", [1.0, 0.5])
def test_left_to_itself_a_run_learns_answers_that_tell_right_from_wrong(
    outranked: float,
    small_corpus: Any,
    known: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def found(start: Any, landmarks: Any, dataset: Any, positions: Any, source: Any) -> TruthConfidence:
        share_N = np.full(len(positions), outranked, np.float32)
        return TruthConfidence(probability_N=share_N, outranked_N=share_N)

    monkeypatch.setattr(bridge, "bridge_confidence", found)
    run_finetune(small_corpus.config(tmp_path / "run", known_words=known))
    (kept,) = json.loads((tmp_path / "run/settings.json").read_text(encoding="utf-8"))["answers"]
    assert kept["learned"] == (outranked == 1.0)
    assert kept["auc"] == outranked
    said = "learns how" if outranked == 1.0 else "does not learn how"
    assert f"the adapt step {said} the text teacher would answer: AUC {outranked:.2f}" in capsys.readouterr().err
    logged = [one for one in losses(tmp_path / "run") if "raw/answers" in one]
    assert len(logged) == (2 if outranked == 1.0 else 0)


def test_without_a_bridge_a_run_says_what_its_student_starts_from_and_nothing_of_answers(
    small_corpus: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run_finetune(small_corpus.config(tmp_path / "run"))
    said = capsys.readouterr().err
    assert "text teacher" not in said
    assert "starts from random weights" in said
    assert "starts from random weights" in result.summary["student_start"]


def test_answers_are_of_the_inputs_that_the_adapt_step_visits(
    small_corpus: Any, known: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def keep(start: Any, landmarks: Any, dataset: Any, positions: Any, source: Any) -> Any:
        asked.append(len(positions))
        return bridge_answers(start, landmarks, dataset, positions, source)

    monkeypatch.setattr(bridge, "bridge_answers", keep)
    run_finetune(small_corpus.config(tmp_path / "run", known_words=known, answer_weight=1.0, adapt_steps=1))
    # Of sixteen labelled questions each is looked at, of the inputs the four of one step.
    assert asked == [16, 4]
