"""Weights follow a confidence that knows something, and nothing else; the run says which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_logs import load_json, losses, metrics

from advl_pipeline.confidence.estimators import load_or_estimate_confidence
from advl_pipeline.confidence.probe import TruthConfidence


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
        assert "AUC 1.00 for right against wrong" in lines["confidence vision"]
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
