"""`--hide-picture`: whatever the pictures are, training is the same; what cannot keep that promise is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from altered_dataset import alter_examples
from first_step import first_terms

from advl_pipeline.base.configuration import build_config
from advl_pipeline.evaluation.predict import swapped_pictures, with_picture
from advl_pipeline.studies.config import SHIPPED
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.resolved import resolve_method

TEXT_ALONE = {"pathway": "text", "selection": "prior", "adapt_objective": "distil-only"}


@pytest.mark.parametrize(
    ("changes", "is_same"),
    [
        ({"method": "plain", "hide_picture": True}, True),
        ({"hide_picture": True, **TEXT_ALONE}, True),
        ({"hide_picture": True, **TEXT_ALONE, "steps": "one", "distill_layer": "fused"}, True),
        (TEXT_ALONE, False),
    ],
    ids=["plain", "two steps", "one step", "shown"],
)
def test_other_pictures_change_nothing_in_training(
    changes: dict[str, Any], is_same: bool, small_corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Folds go by the pictures' ids, and confidences that the first run stored would serve the second one.
    monkeypatch.setattr("advl_pipeline.confidence.estimators.read_confidence", lambda *unused: None)
    monkeypatch.setattr("advl_pipeline.confidence.estimators.write_confidence", lambda *unused: None)
    monkeypatch.setattr(
        "advl_pipeline.confidence.estimators.assign_folds",
        lambda groups, *, folds, seed: np.arange(len(groups)) % folds,
    )
    unswapped = first_terms(small_corpus.config(tmp_path / "own", **changes))
    others = swapped_pictures(small_corpus.dataset().image_units(), seed=0)
    alter_examples(monkeypatch, lambda example: with_picture(example, others[example.image.unit_id]))
    swapped = first_terms(small_corpus.config(tmp_path / "swapped", **changes))
    assert (swapped == pytest.approx(unswapped, rel=1e-4, abs=1e-6)) == is_same


def hidden(**changes: Any) -> FinetuneConfig:
    common: dict[str, Any] = {"dataset": "scenes-vcr", "output": Path("run"), "cache": (Path("cache"),)}
    return build_config(FinetuneConfig, common, {"hide_picture": True}, changes)


def test_the_remedies_of_what_is_refused_are_enough() -> None:
    for allowed in (
        TEXT_ALONE,
        {**TEXT_ALONE, "distance": "mse", "selection": "random"},
        {**TEXT_ALONE, "weighting": "uniform", "confidence": "zero-shot"},
        {"method": "naive-kd", "pathway": "text"},
        {"method": SHIPPED["plain-no-picture"].method, **SHIPPED["plain-no-picture"].training},
    ):
        assert resolve_method(hidden(**allowed)).uses_teachers == (allowed.get("method") != "plain")
