"""Every public set by its name, on a twin of its schema: from check to extract, finetune, evaluate and report."""

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
SHORT = ("--num-steps", 2, "--adapt-steps", 2, "--batch-size", 4, "--confidence-folds", 2)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ADVL_DATA", "data")
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", sorted(set(TWINS) - set(EVALUATE_ONLY)))
def test_a_set_that_is_trained_on(here: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    write_twin(Path("data"), name, colour_samples(100))
    out, _ = printed(capsys, "datasets", "check", name, "--deep")
    assert "malformed" not in out
    printed(capsys, "extract", "--teacher", "minilm-l6", "--data", name, "--shots", 8, "--folds", 2)
    cache = Path("caches/minilm-l6", name, "train-shots8-seed0")
    revision = load_card(name).facts["files"]
    pinned = revision if isinstance(revision, str) else next(iter(revision.values()))
    assert pinned.rpartition("@")[2][:12] in open_cache(cache).identity["dataset"]["name"]
    words = ("--data", name, "--cache", cache, "--shots", 8, "--output", "runs/mine", *SHORT)
    out, _ = printed(capsys, "finetune", *words)
    assert f"--on {scored_split(name)}" in out
    split = scored_split(name)
    printed(capsys, "evaluate", "runs/mine", "--on", split)
    metrics = json.loads(Path(f"runs/mine/evaluation/{split}.json").read_text())["metrics"]
    assert set(metrics) == set(load_card(name).facts["metrics"])
    printed(capsys, "report", "runs/mine", "--to", "md")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sets_that_are_scored_on_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run on A-OKVQA is scored on each of them."""
    sets = []
    for name in ("aokvqa", *EVALUATE_ONLY):
        write_twin(Path("data"), name, colour_samples(30))
        if name != "aokvqa":
            printed(capsys, "datasets", "check", name, "--deep")
            splits = load_card(name).splits
            sets += [f"{name}/{split}" for split in splits]
            teacher = ("--teacher", "minilm-l6", "--split", next(iter(splits)), "--shots", 4, "--no-confidence")
            printed(capsys, "extract", "--data", name, *teacher)
    finetune = ("--data", "aokvqa", "--method", "plain", "--shots", 8, *SHORT[:2], "--batch-size", 4)
    printed(capsys, "finetune", *finetune, "--output", "runs/mine")
    asked = [word for one in sets for word in ("--on", one)]
    out, _ = printed(capsys, "evaluate", "runs/mine", "--on", "val", *asked, "--probe", "none")
    assert all(f"\n{one}" in out for one in sets)
    assert "of 12 groups, all of whose items are right" in out
    folder = Path("runs/mine/evaluation")
    found = {one: json.loads((folder / f"{one.replace('/', '--')}.json").read_text()) for one in sets}
    assert {one for one, document in found.items() if "by_group" in document} == {"naturalbench/test"}
    groups = found["naturalbench/test"]["by_group"]["choice"]
    assert groups["accuracy"] <= found["naturalbench/test"]["metrics"]["choice"]
    assert found["pope/test"]["trivial"]["choice"]["chance"] == 50.0
    printed(capsys, "report", "runs/mine", "--to", "md")
