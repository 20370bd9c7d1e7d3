"""Controls in which the student teaches itself: by its own likenesses, or by its own visual tokens."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from run_logs import losses

from advl_pipeline.datasets.words import fit_word_prior, word_spans
from advl_pipeline.distillation.pooling import with_own_tokens
from advl_pipeline.distillation.signal import TeacherSignal, VisionSignal
from advl_pipeline.errors import ConfigError
from advl_pipeline.students.registry import build_student
from advl_pipeline.training import bridge
from advl_pipeline.training.given import without_effect
from advl_pipeline.training.resolved import resolve_method
from advl_pipeline.training.run import run_finetune

OWN = {"method": "plain-two-step", "cache": (), "adapt_objective": "distil-only", "answers_of": "student"}


@pytest.mark.parametrize("student", ["scenes-small", "smolvlm-tiny"])
@pytest.mark.parametrize("changes", [OWN, {}], ids=["its own", "the teacher's"])
def test_the_adapt_step_learns_answers(
    changes: dict[str, Any], student: str, small_corpus: Any, known: Path, tmp_path: Path
) -> None:
    options = {"known_words": known, "answer_weight": 10.0, "adapt_steps": 10, "num_steps": 1, "adapt_texts": 64}
    options |= {"anchor_weight": 0.0, "learning_rate": 1e-3}
    run_finetune(small_corpus.config(tmp_path / "run", student=student, **{**options, **changes}))
    logged = [one for one in losses(tmp_path / "run") if one["phase"] == "adapt"]
    answers = [one["raw/answers"] for one in logged]
    assert len(answers) == 10
    assert sum(answers[-3:]) < sum(answers[:3])
    assert ("raw/text" in logged[0]) == (not changes)
    assert "raw/contrast" not in logged[0]


def test_own_answers_are_the_bridge_over_the_students_own_states(
    small_corpus: Any, known: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Any] = []
    answer = bridge.bridge_answers

    def keep(start: Any, landmarks: Any, dataset: Any, positions: Any, source: Any) -> Any:
        kept.append((start, landmarks, dataset, answer(start, landmarks, dataset, positions, source)))
        return kept[-1][-1]

    monkeypatch.setattr(bridge, "bridge_answers", keep)
    run_finetune(small_corpus.config(tmp_path / "run", known_words=known, answer_weight=1.0, num_steps=1, **OWN))
    _, landmarks, dataset, shares = kept[-1]
    assert list(landmarks) == [bridge.THE_STUDENT]
    (own,) = landmarks.values()
    torch.manual_seed(0)
    student = build_student("scenes-small").eval()
    texts = [choice.text for index in range(len(dataset)) for choice in dataset[index].candidates]
    prior = fit_word_prior(texts)
    checked = 0
    for index in range(len(dataset)):
        example = dataset[index]
        if example.example_id not in shares:
            continue
        batch = student.collate([example])
        with torch.no_grad():
            output = student.encode_unimodal(batch)
        scores = []
        for row, candidate in enumerate(example.candidates):
            spans = batch.char_spans_NL2[row].tolist()
            words = []
            of_words = zip(word_spans(candidate.text), prior.of_text(candidate.text), strict=True)
            for (start, end), information in of_words:
                pieces = [place for place, (a, b) in enumerate(spans) if a < end and start < b]
                is_own = start >= candidate.context_length and pieces
                if is_own and information > 0 and information >= prior.frequent_below:
                    words.append(output.text_states_NLH[row, pieces].mean(0))
            boxes = sorted({tag.box for tag in candidate.tags})
            places = [place for place, box in enumerate(batch.box_index_NR[row].tolist()) if box in boxes]
            if not words or not places:
                break
            region = output.visual_states_NRH[row, places].mean(0)
            said = torch.stack(words).mean(0) - own.mean_D
            named = torch.cosine_similarity(region[None], own.states_KH)
            meant = torch.cosine_similarity(said[None], own.features_KD - own.features_KD.mean(0))
            scores.append(float(((named / 0.1).softmax(0) * (meant / 0.1).softmax(0)).sum()))
        if len(scores) < len(example.candidates):
            continue
        expected = torch.tensor(scores) / sum(scores)
        torch.testing.assert_close(shares[example.example_id], expected, rtol=2e-3, atol=1e-4)
        checked += 1
    assert checked
    assert torch.equal(own.states_KH, own.features_KD)


def test_own_answers_need_a_record_of_words(small_corpus: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no bridge") as refused:
        run_finetune(small_corpus.config(tmp_path / "run", **OWN))
    assert refused.value.where == "--answers-of student"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("changes", [{"steps": "one"}, {"answer_weight": 0.0}])
def test_own_answers_that_nobody_learns_change_nothing(
    changes: dict[str, Any], small_corpus: Any, tmp_path: Path
) -> None:
    config = small_corpus.config(tmp_path / "run", answers_of="student", **changes)
    assert "answers_of" in without_effect(config, resolve_method(config, num_steps=1))


@dataclass(frozen=True)
class TwoPictures:
    first_B = torch.tensor([0, 2])
    visual_mask_NR = torch.tensor([[True, True, True], [True, True, True], [True, True, False]])


def test_own_tokens_are_pooled_as_the_teachers_places_are_and_take_no_gradient() -> None:
    states_NRH = torch.randn(3, 3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    one = VisionSignal(
        global_BD=torch.zeros(2, 9),
        regions_BSD=torch.zeros(2, 2, 9),
        region_mask_BS=torch.ones(2, 2) > 0,
        shares_BSR=torch.tensor([[[0.0, 0.5, 0.5], [0.0, 1.0, 0.0]], [[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]]),
    )
    batch: Any = TwoPictures()
    found = with_own_tokens(TeacherSignal(vision={"t": one}), states_NRH, batch).vision["t"]
    assert found.regions_BSD is not None
    assert not found.regions_BSD.requires_grad
    of_first = (states_NRH[0, 1] + states_NRH[0, 2]) / 2
    expected = [[of_first, states_NRH[0, 1]], [states_NRH[2, 1], torch.zeros(4)]]
    torch.testing.assert_close(found.regions_BSD, torch.stack([torch.stack(row) for row in expected]).detach())
    torch.testing.assert_close(
        found.global_BD, torch.stack([states_NRH[0].mean(0), states_NRH[2, :2].mean(0)]).detach()
    )
    assert found.region_mask_BS is one.region_mask_BS


@pytest.mark.parametrize("distance", ["relational", "cosine"])
def test_a_run_follows_its_own_tokens_and_not_the_vision_teacher(
    distance: str, small_corpus: Any, known: Path, tmp_path: Path
) -> None:
    options = {"known_words": known, "distance": distance, "adapt_steps": 2, "num_steps": 2}
    logged = {}
    for control in ("none", "own-tokens"):
        run_finetune(small_corpus.config(tmp_path / control, teacher_control=control, **options))
        logged[control] = losses(tmp_path / control)
        settings = json.loads((tmp_path / control / "settings.json").read_text(encoding="utf-8"))
        assert ("vision" in settings["confidence"]) == (control == "none")
    for own, other in zip(logged["own-tokens"], logged["none"], strict=True):
        assert own["raw/vision"] != other["raw/vision"]
    if distance == "relational":  # Projections of another width draw others after them.
        assert logged["own-tokens"][0]["raw/text"] == pytest.approx(logged["none"][0]["raw/text"], rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "why"), [({"pathway": "text"}, "--pathway text"), ({"cache": 1}, "no cache is of a vision teacher")]
)
def test_own_tokens_stand_in_for_a_vision_teacher(
    changes: dict[str, Any], why: str, small_corpus: Any, tmp_path: Path
) -> None:
    given = {**changes, **({"cache": small_corpus.caches[:1]} if "cache" in changes else {})}
    with pytest.raises(ConfigError, match="none is distilled") as refused:
        run_finetune(small_corpus.config(tmp_path / "run", teacher_control="own-tokens", **given))
    assert refused.value.why == why
