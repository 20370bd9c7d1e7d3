"""Mirrors of the official downloads go the whole way through the command line, from check to score."""

from __future__ import annotations

import csv
import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import printed
from dataset_mirrors import write_official_sets, write_vqa_cp, write_vqa_vs
from page_reader import read_page

EXAMPLE = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "score_files.py"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("official data")
    write_official_sets(folder)
    write_vqa_cp(folder)
    write_vqa_vs(folder)
    (folder / "vqa-v2" / "counterexamples.json").write_text(json.dumps([2000001, 2003000, 2009002]))
    return folder


def advl(capsys: pytest.CaptureFixture[str], *arguments: Any) -> Any:
    """Run a command that must succeed and return its JSON."""
    return json.loads(printed(capsys, *arguments, "--json")[0])


CASES = [
    ("vcr", ["val", "rule-singular"], {"q2a", "qa2r", "q2ar"}, 11),
    ("vqa-v2", ["val", "ce-counterexamples"], {"vqa"}, 30),
    ("snli-ve", ["val"], {"snli_ve"}, 12),
]

VQA_FILES = {
    "val": (
        "2021",
        "vqa-v2/v2_mscoco_val2014_annotations.json",
    ),
    "vqa-cp-v2/test": (
        "2021",
        "vqa-cp-v2/vqacp_v2_test_annotations.json",
    ),
    "vqa-vs/test": ("vqa-vs", "vqa-vs/IID-Test/IID-Test-Ans.json"),
}
"""A labelled set that a run on VQA v2 is scored on: its evaluator and its annotations."""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "sets", "metrics", "num_test"), CASES, ids=[case[0] for case in CASES])
def test_the_whole_way(
    root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    sets: list[str],
    metrics: set[str],
    num_test: int,
) -> None:
    monkeypatch.setenv("ADVL_DATA", str(root))
    assert advl(capsys, "datasets", "check", name, "--deep")["usable"]
    # SNLI-VE is learned by the default student.
    run, method = tmp_path / "run", ["--method", "plain", "--student", "scenes-small"]
    if name == "snli-ve":  # The others are extracted in tests/training.
        cache = tmp_path / "cache"
        advl(
            capsys, "extract", "--teacher", "minilm-l6", "--dataset", name, "--output", cache, "--confidence", "none"
        )
        method = ["--method", "naive-kd", "--cache", cache]
    elif name == "vqa-v2":
        method += ["--answer-list", "published"]
    few = ("--shots", 4, "--num-steps", 2, "--batch-size", 2)
    advl(capsys, "finetune", "--dataset", name, *method, *few, "--output", run)
    asked = (word for evaluated_set in sets for word in ("--on", evaluated_set))
    evaluated = advl(capsys, "evaluate", run, "--probe", "none", *asked)
    documents = evaluated.get("sets", evaluated)
    for test_set in sets:
        assert set(documents[test_set]["metrics"]) == metrics
    if len(sets) > 1:
        compared = advl(capsys, "score", "shift", run, "--on", sets[1])
        assert compared["original_set"] == sets[0]
        assert {drop["num_items"] for drop in compared["drops"].values()} == {3 if name == "vqa-v2" else 6}
        kept = "same" if name == "vcr" else "part"
        assert {drop["questions"] for drop in compared["drops"].values()} == {kept}
        if kept == "part":
            vqa_drop = compared["drops"]["vqa"]
            assert vqa_drop["original"] == pytest.approx(documents[sets[0]]["metrics"]["vqa"])
            assert vqa_drop["shifted"] == pytest.approx(documents[sets[1]]["metrics"]["vqa"])
    predicted = advl(capsys, "predict", run, "--on", "test")
    assert predicted["num_items"] == num_test
    if name == "vcr":
        with Path(predicted["path"]).open(newline="") as file:
            rows = list(csv.reader(file))
        assert [row[0] for row in rows[1:]] == [f"test-{number}" for number in range(11)]
        scored = score_vcr(capsys, root, run, tmp_path)
        assert scored == pytest.approx({"num_items": 8, **documents["val"]["metrics"]})
    elif name == "snli-ve":
        predicted = advl(capsys, "predict", run, "--on", "val")
        annotations = root / "snli-ve" / "snli_ve_dev.jsonl"
        scored = EXAMPLE["score_snli_ve"](annotations, predicted["path"])
        assert scored["accuracy"] == pytest.approx(documents["val"]["metrics"]["snli_ve"])
        confusion = documents["val"]["confusion"]
        order = [confusion["label_names"].index(label) for label in scored["label_names"]]
        assert scored["confusion"] == [[confusion["counts"][true][called] for called in order] for true in order]
    else:
        for test_set, (mode, annotations) in VQA_FILES.items():
            (document,) = advl(capsys, "evaluate", run, "--on", test_set, "--probe", "none")["sets"].values()
            predicted = advl(capsys, "predict", run, "--on", test_set)
            scored = EXAMPLE["score_vqa"](root / annotations, predicted["path"], mode)
            assert document["vqa_mode"] == scored["mode"] == mode
            assert round(document["metrics"]["vqa"], 2) == scored["overall"]
            assert scored["per_answer_type"] == {
                kind: round(entry["accuracy"], 2) for kind, entry in document["by_answer_type"].items()
            }
        advl(capsys, "evaluate", run, "--on", "val", "--vqa-mode", "2017", "--probe", "none")
        files = [run / "evaluation" / f"val{ending}.json" for ending in ("", "@2017")]
        kept, other = (json.loads(file.read_text()) for file in files)
        assert (kept["metrics"], other["vqa_mode"]) == (documents["val"]["metrics"], "2017")
        page = read_page(Path(advl(capsys, "report", run)["output"]).read_text(encoding="utf-8"))
        assert page.find("section", id="examples")[0].find("article", class_="example")


def score_vcr(capsys: pytest.CaptureFixture[str], root: Path, run: Path, folder: Path) -> Any:
    """Predict val with all 20 sequences, cut the answers and the rightly conditioned rationales out, score them."""
    predicted = advl(capsys, "predict", run, "--on", "val")
    with Path(predicted["path"]).open(newline="") as file:
        rows = list(csv.DictReader(file))
    annotations = root / "vcr" / "val.jsonl"
    label_of = {
        record["annot_id"]: record["answer_label"] for record in map(json.loads, annotations.read_text().splitlines())
    }
    files = [folder / "answers.npy", folder / "rationales.npy"]
    for file, prefix in zip(files, ("answer", "rationale_conditioned_on_a{}"), strict=True):
        stems = [prefix.format(label_of[row["annot_id"]]) for row in rows]
        np.save(
            file,
            [[float(row[f"{stem}_{choice}"]) for choice in range(4)] for row, stem in zip(rows, stems, strict=True)],
        )
    return EXAMPLE["score_vcr"](annotations, *files)
