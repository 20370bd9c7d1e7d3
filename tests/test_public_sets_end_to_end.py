"""Every public set by its name, on a twin of its schema: checked, and one run, from extract to report, on all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("datasets")

from commands import printed
from hub_twins import TWINS, colour_samples, write_twin

from advl_pipeline.cache.reader import open_cache
from advl_pipeline.datasets.cards import load_card, scored_split

EVALUATE_ONLY = sorted(name for name in TWINS if load_card(name).facts.get("evaluate_only"))
TRAINED_ON = "aokvqa-rationales"
"""Has both tasks that the sets which are scored on alone ask for."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ADVL_DATA", "data")
    return tmp_path


@pytest.mark.usefixtures("here")
def test_every_set_is_as_its_card_says(capsys: pytest.CaptureFixture[str]) -> None:
    for name in TWINS:
        write_twin(Path("data"), name, colour_samples(20))
        out, _ = printed(capsys, "datasets", "check", name, "--deep")
        assert "malformed" not in out
        assert " missing " not in out


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("here")
def test_a_set_is_trained_on_and_others_are_scored_on(capsys: pytest.CaptureFixture[str]) -> None:
    sets = []
    for name in (TRAINED_ON, *EVALUATE_ONLY):
        write_twin(Path("data"), name, colour_samples(30))
        sets += [f"{name}/{split}" for split in load_card(name).splits if name != TRAINED_ON]
    printed(capsys, "extract", "--teacher", "minilm-l6", "--data", TRAINED_ON, "--shots", 8, "--folds", 2)
    cache = Path("caches/minilm-l6", TRAINED_ON, "train-shots8-seed0")
    revision = load_card(TRAINED_ON).facts["files"].rpartition("@")[2][:12]
    assert open_cache(cache).identity["dataset"]["name"] == f"{TRAINED_ON}@{revision}"
    short = ("--num-steps", 2, "--adapt-steps", 2, "--batch-size", 4, "--confidence-folds", 2)
    words = ("--data", TRAINED_ON, "--cache", cache, "--shots", 8, "--output", "runs/mine", *short)
    out, _ = printed(capsys, "finetune", *words)
    split = scored_split(TRAINED_ON)
    assert f"--on {split}" in out
    asked = [word for test_set in (split, *sets) for word in ("--on", test_set)]
    out, _ = printed(capsys, "evaluate", "runs/mine", *asked, "--probe", "none")
    assert all(f"\n{test_set}" in out for test_set in sets)
    assert "of 12 groups, all of whose items are right" in out
    folder = Path("runs/mine/evaluation")
    documents = {
        test_set: json.loads((folder / f"{test_set.replace('/', '--')}.json").read_text())
        for test_set in (split, *sets)
    }
    assert set(documents[split]["metrics"]) == set(load_card(TRAINED_ON).facts["metrics"])
    assert {test_set for test_set, document in documents.items() if "by_group" in document} == {"naturalbench/test"}
    groups = documents["naturalbench/test"]["by_group"]["choice"]
    assert groups["accuracy"] <= documents["naturalbench/test"]["metrics"]["choice"]
    assert documents["pope/test"]["trivial"]["choice"]["chance"] == 50.0
    printed(capsys, "report", "runs/mine", "--to", "md")
