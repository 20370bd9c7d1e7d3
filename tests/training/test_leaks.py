"""What a run may know: the labelled subset and inputs without labels, nothing of other splits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from altered_dataset import AlteredDataset
from dataset_mirrors import write_vqa, write_vqa_cp
from run_logs import losses
from safetensors.torch import load_file

from advl_data.scenes.students.lookup import LookupHead
from advl_pipeline.confidence.estimators import load_or_estimate_confidence
from advl_pipeline.configuration import build_config
from advl_pipeline.datasets.lowshot import nested_subset
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.datasets.words import fit_word_prior
from advl_pipeline.extraction.config import ExtractConfig
from advl_pipeline.extraction.run import run_extract
from advl_pipeline.students.registry import build_student
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.run import run_finetune


def test_low_shot_runs_use_the_same_nested_questions_for_every_method(small_corpus: Any, tmp_path: Path) -> None:
    summary = run_finetune(small_corpus.config(tmp_path / "run", shots=4, adapt_on=("subset",))).summary
    assert (summary["num_labelled"], summary["num_adapt_inputs"]) == (4, 4)
    wide = run_finetune(small_corpus.config(tmp_path / "wide", shots=4)).summary
    assert (wide["num_labelled"], wide["num_adapt_inputs"]) == (4, 16)


def relabelled(dataset: Any, kept: set[str]) -> AlteredDataset:
    """Return a dataset whose examples outside a set of ids carry wrong labels."""

    def relabel(example: Any) -> Any:
        if example.example_id in kept:
            return example
        return replace(example, label=(example.label + 1) % len(example.candidates))

    return AlteredDataset(dataset, relabel)


@pytest.mark.parametrize("adapt_on", ["subset", "inputs"])
def test_labels_outside_the_subset_and_other_splits_influence_nothing(
    adapt_on: str, small_corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"shots": 4, "adapt_on": (adapt_on,)}
    run_finetune(small_corpus.config(tmp_path / "true", **changes))
    opened: list[str] = []

    def open_relabelled(name: str, **options: Any) -> Any:
        opened.append(options["split"])
        dataset: Any = open_dataset(name, **options)
        return relabelled(dataset, set(nested_subset(dataset, 4, 0)))

    monkeypatch.setattr("advl_pipeline.training.inputs.open_splits", open_relabelled)
    run_finetune(small_corpus.config(tmp_path / "wrong", **changes))
    assert losses(tmp_path / "wrong") == losses(tmp_path / "true")
    assert opened == ["train"]


@pytest.mark.parametrize("adapt_on", ["subset", "inputs"])
def test_low_shot_statistics_come_from_where_the_readme_says(
    adapt_on: str, small_corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[str] = []
    probed: list[str] = []

    def fit(texts: Any) -> Any:
        counted.extend(texts)
        return fit_word_prior(counted)

    def estimate(**options: Any) -> Any:
        probed.extend(options["example_ids"])
        return load_or_estimate_confidence(**options)

    monkeypatch.setattr("advl_pipeline.training.teaching.fit_word_prior", fit)
    monkeypatch.setattr("advl_pipeline.training.confidences.load_or_estimate_confidence", estimate)
    run_finetune(small_corpus.config(tmp_path / "run", shots=4, adapt_on=(adapt_on,), num_steps=2))
    dataset = open_dataset("scenes-vcr", split="train", data_root=small_corpus.data_root, tasks=("vcr-q2a",))
    subset = set(nested_subset(dataset, 4, 0))
    examples = [dataset[index] for index in range(len(dataset))]
    inputs = [example for example in examples if adapt_on == "inputs" or example.example_id in subset]
    assert sorted(counted) == sorted(choice.text for example in inputs for choice in example.candidates)
    assert set(probed) == subset
    assert len(inputs) == (4 if adapt_on == "subset" else 16)


def test_heads_that_look_things_up_count_words_where_inputs_may_be_seen(small_corpus: Any, tmp_path: Path) -> None:
    options = {"method": "plain", "dataset": "scenes-vqa", "task": (), "shots": 4, "num_steps": 1}
    dataset = open_dataset("scenes-vqa", split="train", data_root=small_corpus.data_root)
    student = build_student("scenes-small")
    for pool in (10, None):
        run_finetune(small_corpus.config(tmp_path / f"{pool}", pool=pool, **options))
        shares_V = load_file(tmp_path / f"{pool}" / "heads.safetensors")["vqa.token_share_V"]
        seen = set(dataset.example_ids if pool is None else nested_subset(dataset, pool, 0))
        texts = [dataset[index] for index in range(len(dataset)) if dataset.example_ids[index] in seen]
        expected = LookupHead(student.hidden_size, len(shares_V), 1)
        expected.read_texts([student.text_tokens(texts)])
        assert torch.equal(shares_V, expected.token_share_V)
        assert shares_V.max() == 1.0, "every text begins alike"
        assert int((shares_V > 0).sum()) > 10


def test_inputs_without_labels_change_the_adapt_step(small_corpus: Any, tmp_path: Path) -> None:
    for adapt_on in ("subset", "inputs"):
        run_finetune(small_corpus.config(tmp_path / adapt_on, shots=4, adapt_on=(adapt_on,)))
    assert losses(tmp_path / "subset") != losses(tmp_path / "inputs")


def answer_otherwise(file: Path, wanted: Callable[[int], bool]) -> None:
    """Make "purple" everybody's answer to the questions that are wanted by their id."""
    document = json.loads(file.read_text(encoding="utf-8"))
    annotations = document["annotations"] if isinstance(document, dict) else document
    for item in annotations:
        if wanted(item["question_id"]):
            item["multiple_choice_answer"] = "purple"
            item["answers"] = [{**one, "answer": "purple"} for one in item["answers"]]
    file.write_text(json.dumps(document), encoding="utf-8")


@pytest.fixture(scope="module")
def two_worlds(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Data roots that differ in the answers of val alone: of VQA v2, and of the part of VQA-CP's train held out."""
    here, there = (tmp_path_factory.mktemp("worlds") / name for name in ("here", "there"))
    write_vqa(here, split="train", count=60)
    write_vqa(here, split="val", count=30)
    write_vqa_cp(here, count=600)
    held = set(open_dataset("vqa-cp-v2", split="val", data_root=here).example_ids)
    assert len(held) >= 9
    shutil.copytree(here, there)
    answer_otherwise(there / "vqa-v2" / "v2_mscoco_val2014_annotations.json", lambda number: True)
    answer_otherwise(there / "vqa-cp-v2" / "vqacp_v2_train_annotations.json", lambda number: str(number) in held)
    return here, there


@pytest.mark.parametrize("name", ["vqa-v2", "vqa-cp-v2"])
def test_the_answer_list_comes_from_train_unless_the_published_one_is_asked_for(
    name: str, two_worlds: tuple[Path, Path]
) -> None:
    def answers(root: Path, **options: Any) -> tuple[str, ...]:
        return open_dataset(name, split="train", data_root=root, **options).label_names("vqa")

    here, there = two_worlds
    assert answers(here) == answers(there)
    assert "purple" not in answers(there)
    assert "purple" in answers(there, answer_list="published")
    assert "purple" not in answers(here, answer_list="published")


def test_the_answers_of_val_influence_nothing_in_training_unless_asked_for(
    two_worlds: tuple[Path, Path], tmp_path: Path
) -> None:
    here, there = two_worlds
    cache = tmp_path / "cache"
    run_extract(ExtractConfig(teacher="minilm-l6", dataset="vqa-v2", data_root=here, output=cache, folds=2))

    def train(name: str, root: Path, **changes: Any) -> tuple[list[dict[str, float]], dict[str, torch.Tensor], Any]:
        run = tmp_path / name
        settings: dict[str, Any] = {
            "cache": (cache,),
            "num_steps": 3,
            "adapt_steps": 2,
            "batch_size": 8,
            "confidence_folds": 2,
        }
        run_finetune(
            build_config(FinetuneConfig, {"dataset": "vqa-v2", "data_root": root, "output": run}, settings, changes)
        )
        heads = json.loads((run / "heads.json").read_text(encoding="utf-8"))
        return losses(run), load_file(run / "model.safetensors"), heads["vqa"]["label_names"]

    first, second = train("here", here), train("there", there)
    assert first[0] == second[0]
    assert first[1].keys() == second[1].keys()
    assert all(torch.equal(first[1][key], second[1][key]) for key in first[1])
    assert first[2] == second[2]
    published = [train(f"published-{root.name}", root, answer_list="published") for root in (here, there)]
    assert published[0][2] != published[1][2]
    assert published[0][0] != published[1][0]
    # The head of a run with the published list goes on under that list, and under no other.
    origins = {}
    for name, changes in (("same", {"answer_list": "published"}), ("other", {})):
        train(name, there, init=tmp_path / "published-there", method="plain", cache=(), **changes)
        settings = json.loads((tmp_path / name / "settings.json").read_text(encoding="utf-8"))
        origins[name] = settings["heads"]["vqa"]
    assert origins["same"]["origin"] == "checkpoint"
    assert origins["other"]["origin"] == "fresh"
    assert "--answer-list" in origins["other"]["why"]
