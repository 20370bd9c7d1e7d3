"""Every public set by its name, on a twin of its schema: checked, and one run, from extract to report, on all."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("datasets")

from commands import printed
from fake_hub.server import serve_hub
from fake_hub.sets import TWINS, colour_samples, write_twin
from published_sets import published

from advl_pipeline.cache.reader import open_cache
from advl_pipeline.datasets.cards import load_card
from advl_pipeline.datasets.registry import read_dataset, split_to_score

EVALUATE_ONLY = sorted(
    name for name in TWINS if (facts := load_card(name).facts).get("evaluate_only") and facts["tasks"] == ["choice"]
)
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
    printed(capsys, "extract", "--teacher", "minilm-l6", "--data", TRAINED_ON, "--shots", 8, "--confidence-folds", 2)
    cache = Path("caches/minilm-l6", TRAINED_ON, "train-shots8-seed0")
    revision = load_card(TRAINED_ON).facts["files"].rpartition("@")[2][:12]
    assert open_cache(cache).identity["dataset"]["name"] == f"{TRAINED_ON}@{revision}"
    small = ("--student", "scenes-small", "--batch-size", 4)
    short = (*small, "--num-steps", 2, "--adapt-steps", 2, "--confidence-folds", 2)
    words = ("--data", TRAINED_ON, "--cache", cache, "--shots", 8, "--output", "runs/mine", *short)
    out, _ = printed(capsys, "finetune", *words)
    split = split_to_score(read_dataset(TRAINED_ON), trained_on="train")
    assert f"--on {split}" in out
    asked = [word for test_set in (split, *sets) for word in ("--on", test_set)]
    out, _ = printed(capsys, "evaluate", "runs/mine", *asked, "--probe", "none")
    assert all(f"\n{test_set}" in out for test_set in sets)
    assert "of 15 groups, all of whose items are right" in out
    folder = Path("runs/mine/evaluation")
    documents = {
        test_set: json.loads((folder / f"{test_set.replace('/', '--')}.json").read_text())
        for test_set in (split, *sets)
    }
    assert set(documents[split]["metrics"]) == set(load_card(TRAINED_ON).facts["metrics"])
    assert {test_set for test_set, document in documents.items() if "by_group" in document} == {"naturalbench/test"}
    groups = documents["naturalbench/test"]["by_group"]["choice"]
    assert groups["accuracy"] <= documents["naturalbench/test"]["metrics"]["choice"]
    numbers = {test_set: document.get("measures", {}).get("choice") for test_set, document in documents.items()}
    assert {"pairs", "sets of four"} <= numbers["whatsup/controlled-a"].keys()
    assert not {"pairs", "sets of four"} & numbers["whatsup/coco-one"].keys()
    bench = numbers["cv-bench/test"]
    assert bench["CV-Bench"] == pytest.approx((bench["2D"] + bench["accuracy, Omni3D"]) / 2)
    right = documents["mmstar/val"]["metrics"]["choice"] / 100 * 30
    assert numbers["mmstar/val"]["MMStar"] == pytest.approx(100 * right / 1500)
    assert numbers["naturalbench/test"]["G-Acc"] == groups["accuracy"]
    assert numbers["naturalbench/test"]["Acc"] == pytest.approx(documents["naturalbench/test"]["metrics"]["choice"])
    assert {"pairs"} == numbers["mmvp/test"].keys()
    assert {"aAcc", "qAcc", "fAcc"} == numbers["hallusion-bench/test"].keys()
    assert "choice: CV-Bench " in out
    assert "each answer is the likeliest candidate, its options not shown" in out
    assert documents["pope/test"]["trivial"]["choice"]["chance"] == 50.0
    printed(capsys, "report", "runs/mine", "--to", "md")


_COMMANDS = """
extract --teacher minilm-l6 --data aokvqa --shots 6 --confidence none
finetune --data aokvqa --cache caches/minilm-l6/aokvqa/train-shots6-seed0 --shots 6 --output {output} --num-steps 2
 --student scenes-small --adapt-steps 2 --batch-size 4 --confidence-folds 2
evaluate {output} --on val --on cv-bench/test --on pope/test --probe none
"""


def commands(output: str) -> list[list[str]]:
    """Return the words of the commands that a stranger gives."""
    return [line.split() for line in _COMMANDS.replace("\n ", " ").format(output=output).strip().split("\n")]


_SCRIPT = """
import json, os, sys
import scipy.stats, torch, torch._dynamo
from advl_cli.main import main
for environment, commands in json.load(sys.stdin):
    print("-- next process", flush=True)
    if os.fork() == 0:
        os.environ.update(environment)
        for words in commands:
            try:
                main(words)
            except SystemExit as stopped:
                if stopped.code:
                    raise
        sys.stdout.flush()
        os._exit(0)
    if os.wait()[1]:
        sys.exit(1)
"""
"""Forks read the environment anew: the libraries of the hub are imported in them."""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_sets_of_the_readme_come_from_a_hub_and_serve_again_without_a_network(tmp_path: Path) -> None:
    """In the files that are published, from an empty cache of the hub; then on a node without a network."""
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "ADVL_DATA": str(tmp_path / "data")}
    environment.pop("ADVL_INDEX", None)
    sets = published(tmp_path / "published")
    with serve_hub() as hub:
        hub.repositories |= sets
        for name in ("aokvqa", "cv-bench", "pope"):
            files = str(load_card(name).facts["files"])
            for repository, revision in re.findall(r"hf:([\w./-]+)[\w:.-]*@(\w+)", files):
                hub.commits[revision] = sets[f"datasets/{repository}"]
        near = {"HF_ENDPOINT": hub.endpoint}, commands("runs/near")
        far = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}, commands("runs/far")
        done = subprocess.run(
            [sys.executable, "-c", _SCRIPT],
            cwd=tmp_path,
            env=environment,
            input=json.dumps([near, far]),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        asked = {match[1] for path in hub.sent if (match := re.match(r"/datasets/[^/]+/[^/]+/resolve/(\w+)/", path))}
        pinned = {re.search(r"@(\w+)", str(load_card(name).facts["files"]))[1] for name in ("aokvqa", "cv-bench")}
        assert pinned <= asked, "files are those of the revisions that the cards pin"
        assert not any("evaluate.py" in path or "/img/" in path for path in hub.sent), "nothing else is fetched"
    out, offline = done.stdout.split("-- next process\n")[1:]
    numbers = [
        [line for line in text.splitlines() if re.match(r"(val|cv-bench|pope)\S* ", line)] for text in (out, offline)
    ]
    assert len(numbers[0]) == 3, out
    assert numbers[0] == numbers[1], "the same numbers with a network and without"
