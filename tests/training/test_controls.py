"""Controls: features of other units, and students that teach themselves by their own similarities or tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from first_step import first_terms, open_run
from run_logs import load_json, losses
from small_corpus import SMALL_WORDS, SmallCorpus
from tiny_extraction import tiny_extract

from advl_pipeline.cache.reader import open_cache
from advl_pipeline.datasets.words import fit_word_prior, word_spans
from advl_pipeline.distillation.signal import Features, TeacherSignal, VisionSignal
from advl_pipeline.students.registry import build_student
from advl_pipeline.training.landmarks import bridge
from advl_pipeline.training.signals.controls import OwnTokens, shuffled_features
from advl_pipeline.training.signals.teacher_features import UnitFeatures, cached_teacher

OWN = {"method": "plain-two-step", "cache": (), "adapt_objective": "distil-only", "answers_of": "student"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("student", "changes"), [("scenes-small", OWN | {"student_option": SMALL_WORDS}), ("smolvlm-tiny", {})]
)
def test_the_adapt_step_learns_answers(
    changes: dict[str, Any], student: str, small_corpus: Any, known: Path, tmp_path: Path
) -> None:
    # Every step has all of its inputs.
    options = {"shots": 4, "pool": 4, "adapt_texts": 16, "adapt_steps": 10, "num_steps": 1}
    options |= {"known_words": known, "answer_weight": 10.0, "anchor_weight": 0.0, "learning_rate": 1e-3}
    small_corpus.run(tmp_path / "run", student=student, **{**options, **changes})
    logged = [record for record in losses(tmp_path / "run") if record["phase"] == "adapt"]
    answers = [record["raw/answers"] for record in logged]
    assert len(answers) == 10
    assert sum(answers[-3:]) < sum(answers[:3])
    assert ("raw/text" in logged[0]) == (not changes)
    assert "raw/contrast" not in logged[0]


def test_own_answers_are_the_bridge_over_the_students_own_states(
    small_corpus: Any, known: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Any] = []
    answer = bridge.bridge_answers

    def keep(start: Any, landmarks: Any, dataset: Any, positions: Any) -> Any:
        kept.append((start, landmarks, dataset, answer(start, landmarks, dataset, positions)))
        return kept[-1][-1]

    monkeypatch.setattr(bridge, "bridge_answers", keep)
    open_run(small_corpus.config(tmp_path / "run", known_words=known, answer_weight=1.0, **OWN))
    _, landmarks, dataset, shares = kept[-1]
    assert list(landmarks) == [bridge.THE_STUDENT]
    (student_landmarks,) = landmarks.values()
    torch.manual_seed(0)
    student = build_student("scenes-small", overrides={"word_size": 16}).eval()
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
            text_state = torch.stack(words).mean(0) - student_landmarks.mean_D
            named = torch.cosine_similarity(region[None], student_landmarks.states_KH)
            meant = torch.cosine_similarity(
                text_state[None], student_landmarks.features_KD - student_landmarks.features_KD.mean(0)
            )
            scores.append(float(((named / 0.1).softmax(0) * (meant / 0.1).softmax(0)).sum()))
        if len(scores) < len(example.candidates):
            continue
        expected = torch.tensor(scores) / sum(scores)
        torch.testing.assert_close(shares[example.example_id], expected, rtol=2e-3, atol=1e-4)
        checked += 1
    assert checked
    assert torch.equal(student_landmarks.states_KH, student_landmarks.features_KD)


@dataclass(frozen=True)
class TwoPictures:
    first_B = torch.tensor([0, 2])
    visual_mask_NR = torch.tensor([[True, True, True], [True, True, True], [True, True, False]])


def test_own_tokens_are_pooled_as_the_teachers_places_are_and_take_no_gradient() -> None:
    states_NRH = torch.randn(3, 3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    teacher_signal = VisionSignal(
        picture=Features(values_MD=torch.zeros(2, 9)),
        regions=Features(values_MD=torch.zeros(2, 2, 9)),
        region_mask_BS=torch.ones(2, 2) > 0,
        shares_BSR=torch.tensor([[[0.0, 0.5, 0.5], [0.0, 1.0, 0.0]], [[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]]),
    )
    batch: Any = TwoPictures()
    student: Any = SimpleNamespace(visual_tokens=lambda _: states_NRH)
    pooled = OwnTokens().signal(TeacherSignal(vision={"t": teacher_signal}), student, batch).vision["t"]
    assert not pooled.regions_BSD.requires_grad
    of_first = (states_NRH[0, 1] + states_NRH[0, 2]) / 2
    expected = [[of_first, states_NRH[0, 1]], [states_NRH[2, 1], torch.zeros(4)]]
    torch.testing.assert_close(pooled.regions_BSD, torch.stack([torch.stack(row) for row in expected]).detach())
    torch.testing.assert_close(
        pooled.global_BD, torch.stack([states_NRH[0].mean(0), states_NRH[2, :2].mean(0)]).detach()
    )
    assert pooled.region_mask_BS is teacher_signal.region_mask_BS


@pytest.mark.parametrize("distance", ["relational", "cosine"])
def test_a_run_follows_its_own_tokens_and_not_the_vision_teacher(
    distance: str, small_corpus: Any, known: Path, tmp_path: Path
) -> None:
    options = {"known_words": known, "distance": distance}
    terms = {}
    for control in ("none", "own-tokens"):
        terms[control] = first_terms(small_corpus.config(tmp_path / control, teacher_control=control, **options))
        settings = load_json(tmp_path / control / "settings.json")
        assert ("vision" in settings["confidence"]) == (control == "none")
    own_terms, other = terms["own-tokens"], terms["none"]
    for stage in ("adapt", "finetune"):
        assert own_terms[f"{stage}/raw/vision"] != other[f"{stage}/raw/vision"]
    if distance == "relational":  # Projections of another width draw others after them.
        assert own_terms["adapt/raw/text"] == pytest.approx(other["adapt/raw/text"], rel=1e-5)


@pytest.fixture(name="towers")
def _towers(small_corpus: SmallCorpus) -> list[UnitFeatures]:
    """The pictures of one teacher and the texts of another."""
    text, image = (cached_teacher(open_cache(path)) for path in small_corpus.caches)
    return [image.image, text.text]


def _sources(features: UnitFeatures, *, seed: int, tower: int) -> list[int]:
    """Position of the unit whose features each unit gets; rows of the store are told apart by their content."""
    ids = list(features.stores[0].ids)
    own_UD = np.asarray(features.global_features(ids), dtype=np.float32)
    shuffled = shuffled_features(features, seed=seed, tower=tower)
    distance_UU = np.abs(np.asarray(shuffled.global_features(ids), np.float32)[:, None] - own_UD[None]).max(axis=2)
    assert (np.sort(distance_UU, axis=1)[:, :2].sum(axis=1) > 0).all(), "two units of the store have equal features"
    return [int(index) for index in distance_UU.argmin(axis=1)]


@pytest.mark.parametrize("seed", range(2))
def test_no_unit_keeps_its_own_features_and_each_is_given_once(towers: list[UnitFeatures], seed: int) -> None:
    for tower, features in enumerate(towers):
        sources = _sources(features, seed=seed, tower=tower)
        assert sorted(sources) == list(range(len(sources)))
        assert all(source != position for position, source in enumerate(sources))


def test_two_towers_over_as_many_units_are_not_permuted_alike(towers: list[UnitFeatures]) -> None:
    _, texts = towers
    assert _sources(texts, seed=0, tower=0) != _sources(texts, seed=0, tower=1)
    assert _sources(texts, seed=0, tower=1) != _sources(texts, seed=1, tower=1)


def test_a_picture_without_boxes_lends_no_rows(tmp_path: Path) -> None:
    """Every fourth picture has none: rows come from another unit all the same, and from that unit alone."""
    tiny_extract(tmp_path / "pictures", tmp_path / "cache")
    store = open_cache(tmp_path / "cache").image
    ids = list(store.ids)
    rows_of = {unit: np.asarray(store.token_features([unit])[0]) for unit in ids}
    shuffled = shuffled_features(UnitFeatures(store), seed=0, tower=0)
    features, lengths = shuffled.token_features(ids)
    assert lengths.tolist() == [len(rows_of[unit]) for unit in ids]
    assert 0 in lengths
    for unit, rows in zip(ids, np.split(features, np.cumsum(lengths)[:-1]), strict=True):
        donors = [
            other for other in ids if other != unit and all((rows_of[other] == row).all(1).any() for row in rows)
        ]
        assert donors, f"the rows of {unit} are its own, or of several units"
