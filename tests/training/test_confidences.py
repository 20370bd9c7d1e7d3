"""What a teacher is sure of is what its cached towers say, and weights follow it where it tells right from wrong."""

from __future__ import annotations

import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_hub.models import write_repository
from run_logs import load_json, losses, metrics
from transformers import CLIPModel

from advl_pipeline.cache.confidence import read_confidence
from advl_pipeline.cache.reader import TeacherCache, open_cache
from advl_pipeline.confidence.estimators import confidence_identity, examples_of, load_or_estimate_confidence
from advl_pipeline.confidence.probe import TruthConfidence
from advl_pipeline.datasets.records import Example
from advl_pipeline.distillation import distiller
from advl_pipeline.distillation.weighting import KEPT_SHARE


def cosine(vector: np.ndarray, other: np.ndarray) -> float:
    a, b = vector.astype(np.float64), other.astype(np.float64)
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def picture_of(cache: TeacherCache, example: Example) -> np.ndarray:
    return cache.image.global_features([example.image.unit_id])[0]


def words_by_the_towers(cache: TeacherCache, example: Example, text: str, unit_id: str) -> list[list[int]]:
    """The third of a text's words whose mean token features are nearest to the picture's, rounded up."""
    rows = cache.text.token_features([unit_id])[0].astype(np.float64)
    spans = cache.text.char_spans([unit_id])
    words = [match.span() for match in re.finditer(r"\w+(?:'\w+)*|[^\w\s]", text.replace("_", "-"))]
    near = []
    for start, end in words:
        inside = [row for row, (low, high) in zip(rows, spans, strict=True) if low < end and high > start]
        near.append(cosine(np.mean(inside, axis=0), picture_of(cache, example)))
    nearest = sorted(range(len(words)), key=lambda word: -near[word])[: math.ceil(KEPT_SHARE * len(words) - 1e-9)]
    return [list(words[word]) for word in sorted(nearest)]


def test_zero_shot_confidence_and_visual_selection_are_what_the_cached_towers_say(
    small_corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_repository("openai/clip-vit-base-patch16", tmp_path / "clip")
    scale = float(CLIPModel.from_pretrained(tmp_path / "clip").logit_scale.detach().exp())
    path = small_corpus.extract(
        tmp_path / "cache", teacher="hf:local/pair", weights=tmp_path / "clip", confidence="none"
    )
    cache, dataset, run = open_cache(path), small_corpus.dataset(), tmp_path / "run"
    monkeypatch.setattr(distiller, "select_words", partial(distiller.select_words, alpha=0.0))
    small_corpus.run(
        run,
        cache=(path,),
        confidence="zero-shot",
        num_steps=3,
        distance="mse",
    )
    ids = list(dataset.example_ids)
    stored = read_confidence(
        path,
        confidence_identity(
            caches=[cache],
            dataset=dataset,
            examples=examples_of(dataset, sorted(ids)),
            estimator="zero-shot",
            modality="joint",
            folds=2,
            seed=0,
        ),
    )
    confidence = dict(zip(stored[0], stored[1].tolist(), strict=True))
    selected = load_json(run / "selected_words.json")
    assert set(confidence) == set(selected) == set(ids)
    for example in (dataset[index] for index in range(len(ids))):
        units = [candidate.text_unit for candidate in example.candidates]
        scores = [
            scale * cosine(row, picture_of(cache, example))
            for row in cache.text.global_features([unit.unit_id for unit in units])
        ]
        share = np.exp(np.array(scores) - max(scores))
        assert confidence[example.example_id] == pytest.approx(share[example.label] / share.sum(), abs=1e-5)
        assert selected[example.example_id] == [
            words_by_the_towers(cache, example, unit.text, unit.unit_id) for unit in units
        ]
    # Neither is the same for all, or it would tell nothing.
    assert np.std(list(confidence.values())) > 0.01
    logged = metrics(run)
    means = [record["confidence/joint"]["mean"] for record in logged if "confidence/joint" in record]
    assert means
    assert all(min(confidence.values()) <= mean <= max(confidence.values()) for mean in means)


def test_only_a_pathway_whose_confidence_knows_is_weighted_by_it(
    small_corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def estimate(**options: Any) -> dict[str, TruthConfidence]:
        """Let vision outrank everything, and text half of it."""
        return {
            view: TruthConfidence(
                probability_N=confidence.probability_N,
                outranked_N=np.full_like(confidence.outranked_N, {"vision": 1.0, "text": 0.5}[view]),
            )
            for view, confidence in load_or_estimate_confidence(**options).items()
        }

    monkeypatch.setattr("advl_pipeline.training.signals.confidences.load_or_estimate_confidence", estimate)
    for check in ("auc", "none"):
        small_corpus.run(tmp_path / check, confidence_check=check, num_steps=2, adapt_steps=1)
        lines = {line.split(":")[0]: line for line in capsys.readouterr().err.splitlines() if "AUC" in line}
        assert set(lines) == {"confidence vision", "confidence text"}
        assert "AUC 1.00 for correct against wrong" in lines["confidence vision"]
        assert "NOT ABOVE CHANCE" not in lines["confidence vision"]
        assert ("NOT ABOVE CHANCE" in lines["confidence text"]) == (check == "auc")
        kept = load_json(tmp_path / check / "settings.json")["confidence"]
        assert kept["vision"]["weights"] == "by confidence"
        assert kept["vision"]["auc"] == 1.0
        assert kept["text"]["auc"] == 0.5
        assert kept["text"]["low"] < 0.5 < kept["text"]["high"]
        assert kept["text"]["weights"] == ("uniform" if check == "auc" else "by confidence")
    checked, trusted = (
        [record for record in metrics(tmp_path / name) if "weights/text" in record] for name in ("auc", "none")
    )
    assert all(record["weights/text"]["mean"] == record["weights/text"]["max"] == 1.0 for record in checked)
    assert all(record["weights/text"]["max"] > record["weights/text"]["mean"] for record in trusted)
    assert checked[0]["weights/vision"] == trusted[0]["weights/vision"]
    assert losses(tmp_path / "auc") != losses(tmp_path / "none")


def test_the_students_confidence_in_an_item_is_that_of_the_start_of_the_finetune_step(
    small_corpus: Any, tmp_path: Path
) -> None:
    # All sixteen items are in every batch.
    small_corpus.run(tmp_path, num_steps=2, batch_size=16, adapt_steps=1)
    seen = [record["confidence/student"]["mean"] for record in metrics(tmp_path) if record["phase"] == "finetune"]
    assert max(seen) - min(seen) < 1e-6
