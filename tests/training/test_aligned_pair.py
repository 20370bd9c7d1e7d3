"""An aligned pair from its weights to a trained student: what its towers say, computed a second way."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_logs import load_json, metrics
from small_clip import save_small_clip

from advl_pipeline.cache.confidence import read_confidence
from advl_pipeline.cache.reader import TeacherCache, open_cache
from advl_pipeline.confidence.estimators import confidence_identity
from advl_pipeline.datasets.records import Dataset, Example
from advl_pipeline.distillation import distiller
from advl_pipeline.distillation.weighting import KEPT_SHARE


@dataclass(frozen=True)
class Pair:
    """A small CLIP, its cache over the training questions, and these."""

    model: Any
    folder: Path
    path: Path
    cache: TeacherCache
    dataset: Dataset


@pytest.fixture(scope="module")
def pair(small_corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("pair")
    model, _ = save_small_clip(folder / "clip")
    path = small_corpus.extract(folder / "cache", teacher="hf:local/pair", weights=folder / "clip", confidence=False)
    return Pair(
        model=model, folder=folder / "clip", path=path, cache=open_cache(path), dataset=small_corpus.dataset()
    )


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
    small_corpus: Any, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr(distiller, "select_words", partial(distiller.select_words, alpha=0.0))
    small_corpus.run(
        run,
        cache=(pair.path,),
        confidence="zero-shot",
        num_steps=3,
        distance="mse",
    )
    ids = list(pair.dataset.example_ids)
    stored = read_confidence(
        pair.path,
        confidence_identity(
            caches=[pair.cache],
            dataset=pair.dataset,
            example_ids=ids,
            estimator="zero-shot",
            view="joint",
            folds=2,
            seed=0,
        ),
    )
    confidence = dict(zip(stored[0], stored[1].tolist(), strict=True))
    selected = load_json(run / "selected_words.json")
    scale = float(pair.model.logit_scale.detach().exp())
    assert set(confidence) == set(selected) == set(ids)
    for example in (pair.dataset[index] for index in range(len(ids))):
        units = [candidate.text_unit for candidate in example.candidates]
        scores = [
            scale * cosine(row, picture_of(pair.cache, example))
            for row in pair.cache.text.global_features([unit.unit_id for unit in units])
        ]
        share = np.exp(np.array(scores) - max(scores))
        assert confidence[example.example_id] == pytest.approx(share[example.label] / share.sum(), abs=1e-5)
        assert selected[example.example_id] == [
            words_by_the_towers(pair.cache, example, unit.text, unit.unit_id) for unit in units
        ]
    # Neither is the same for all, or it would tell nothing.
    assert np.std(list(confidence.values())) > 0.01
    logged = metrics(run)
    means = [record["confidence/joint"]["mean"] for record in logged if "confidence/joint" in record]
    assert means
    assert all(min(confidence.values()) <= mean <= max(confidence.values()) for mean in means)
