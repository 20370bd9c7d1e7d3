"""`--hide-picture`: whatever the pictures are, training is the same; what cannot keep that promise is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from altered_dataset import alter_examples
from run_logs import losses
from safetensors.torch import load_file

from advl_pipeline.configuration import build_config
from advl_pipeline.evaluation.predict import swapped_pictures, with_picture
from advl_pipeline.studies.config import SHIPPED
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.resolved import resolve_method

TEXT_ALONE = {"pathway": "text", "selection": "prior", "adapt_objective": "distil-only"}


def learned(folder: Path) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """What a run computed for training, and what it learned; of the confidences those that weigh its pathway."""
    unused = "confidence/vision"
    logged = [{key: value for key, value in record.items() if key != unused} for record in losses(folder)]
    return logged, load_file(folder / "model.safetensors")


def same(one: Any, two: Any) -> bool:
    (logged, tensors), (other_logged, other_tensors) = one, two
    numbers, others = (
        [value for record in records for value in record.values() if isinstance(value, float)]
        for records in (logged, other_logged)
    )
    return numbers == pytest.approx(others, rel=1e-4, abs=1e-6) and all(
        torch.allclose(tensors[key], other_tensors[key], atol=1e-5) for key in tensors
    )


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
    small_corpus.run(tmp_path / "own", num_steps=3, **changes)
    others = swapped_pictures(small_corpus.dataset().image_units(), seed=0)
    alter_examples(monkeypatch, lambda example: with_picture(example, others[example.image.unit_id]))
    small_corpus.run(tmp_path / "swapped", num_steps=3, **changes)
    assert same(learned(tmp_path / "own"), learned(tmp_path / "swapped")) == is_same


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
        resolve_method(hidden(**allowed), num_steps=10)
