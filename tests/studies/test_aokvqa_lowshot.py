"""The study of a chat model on A-OKVQA is planned on a twin of its schema."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest

pytest.importorskip("datasets")

from commands import printed
from hub_twins import colour_samples, write_twin

FITS = """
extends = "aokvqa-lowshot"
name = "fits"
shots = [20]
at-shots = {}

[training]
pool = 32
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_shipped_study_says_what_it_would_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    write_twin(tmp_path, "aokvqa", colour_samples(80))
    study = tmp_path / "large-enough.toml"
    # The twin's train has 40 rows.
    study.write_text(FITS, encoding="utf-8")
    words = ("--dry-run", "--data-root", tmp_path, "--output", tmp_path / "study", "--caches", tmp_path / "caches")
    out, _ = printed(capsys, "study", study, *words)
    assert "fits: 40 cells" in out
    for teacher in ("dinov2-b", "roberta-b", "random:dinov2-b", "random:roberta-b"):
        assert f"'{teacher}'" in out or f" {teacher}" in out
    assert "train-shots32-seed4, " in out
    out, _ = printed(capsys, "study", "aokvqa-lowshot", *words)
    assert "aokvqa-lowshot: 80 cells" in out
