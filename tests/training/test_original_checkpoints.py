"""From a person's own files to a run and its evaluation: an original checkpoint, region features, a tokenizer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from closeness import assert_near
from run_logs import items_file, load_json
from safetensors.torch import load_file

from advl_pipeline.base.errors import ConfigError, DatasetError
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.evaluation.config import PredictConfig
from advl_pipeline.evaluation.predict_files import run_predict
from advl_pipeline.evaluation.prepare import prepare_scoring
from advl_pipeline.extraction.config import ImportConfig
from advl_pipeline.extraction.run import run_import
from advl_pipeline.students.lxmert import Lxmert
from advl_pipeline.students.options import PIXELS
from advl_pipeline.students.registry import build_student
from advl_pipeline.students.saved import save_student

FEATURE_SIZE = 24


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as UNITER writes it, with heads for VCR, three classes under VQA's name, and pretraining parts."""
    torch.manual_seed(5)
    student = build_student("uniter-tiny")
    state = {
        name.replace("model.", "uniter.", 1).replace("LayerNorm.weight", "LayerNorm.gamma"): value
        for name, value in student.state_dict().items()
    }
    for prefix, task, classes in (("vcr_output.", "choice", 1), ("vqa_output.", "classes", 3)):
        head = student.build_head(task, classes).state_dict()
        state |= {prefix + name.removeprefix("net."): value for name, value in head.items()}
    path = tmp_path_factory.mktemp("checkpoint") / "uniter-tiny.pt"
    torch.save({"model_state": state}, path)
    return path


@pytest.fixture(scope="module")
def features(small_corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache per split, imported from a folder of .npz files as an extractor writes them."""
    root = tmp_path_factory.mktemp("features")
    for split in ("train", "test"):
        source = root / "files" / split
        source.mkdir(parents=True)
        dataset = small_corpus.dataset(split)
        for unit in dataset.image_units():
            count = len(unit.boxes_R4)
            noise = np.random.default_rng(count).standard_normal((count, FEATURE_SIZE)).astype(np.float32)
            np.savez(source / f"{unit.path.stem}.npz", features=noise, boxes=unit.boxes_R4)
        options = {"dataset": "scenes-vcr", "split": split, "data_root": small_corpus.data_root}
        run_import(ImportConfig(source=source, name="detector", output=root / split, **options))
    return root


def train(small_corpus: Any, output: Path, **changes: Any) -> None:
    base = {"student": "uniter-tiny", "method": "plain", "cache": (), "num_steps": 2, "batch_size": 2}
    small_corpus.run(output, **{**base, **changes})


def heads_of(folder: Path) -> dict[str, dict[str, str]]:
    origins: dict[str, dict[str, str]] = load_json(folder / "settings.json")["heads"]
    return origins


def test_one_command_from_files_to_evaluation(
    small_corpus: Any, checkpoint: Path, features: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    regions = [features / "{split}"]
    train(small_corpus, run, init=checkpoint, regions=regions, tokenizer="minilm-l6", task=())
    saved = load_json(run / "student.json")["config"]
    assert saved["regions"] == "detector"
    assert heads_of(run)["choice"] == {"origin": "checkpoint", "why": "of as many classes"}
    document = small_corpus.evaluate(run, probe=())["test"]
    assert document.num_items["q2a"] == 8
    scores = np.load(items_file(run))["scores/vcr-q2a"]
    # The training pictures' features hold none of the test set's: they are looked up by the split that is read.
    with pytest.raises(DatasetError):
        small_corpus.evaluate(run, regions=(features / "train",), probe=())
    small_corpus.evaluate(run, regions=(features / "test",), probe=())
    np.testing.assert_array_equal(np.load(items_file(run))["scores/vcr-q2a"], scores)
    predict = PredictConfig(run=run, on="test", data_root=small_corpus.data_root)
    result = run_predict(prepare_scoring(predict))
    assert result.num_items == len(result.path.read_text(encoding="utf-8").splitlines()) - 1 == 8
    with pytest.raises(DatasetError):
        run_predict(prepare_scoring(replace(predict, regions=(features / "train",))))


def test_low_rank_updates_train_and_are_merged_into_a_plain_student(small_corpus: Any, tmp_path: Path) -> None:
    start = tmp_path / "start"
    save_student(start, build_student("uniter-tiny"), origin={})
    options = {"init": start, "learning_rate": 1e-2, "num_steps": 3}
    train(small_corpus, tmp_path / "lora", lora_rank=2, gradient_checkpointing=True, **options)
    before, after = (load_file(folder / "model.safetensors") for folder in (start, tmp_path / "lora"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.endswith(("query.weight", "value.weight")) for name in changed)


def untrained_head(small_corpus: Any, output: Path, **changes: Any) -> dict[str, torch.Tensor]:
    """Return the heads of a run that learns next to nothing."""
    train(small_corpus, output, learning_rate=1e-12, **changes)
    return load_file(output / "heads.safetensors")


def test_heads_are_kept_and_started_anew_when_classes_differ(
    small_corpus: Any, checkpoint: Path, tmp_path: Path
) -> None:
    state = torch.load(checkpoint, weights_only=True)["model_state"]
    kept = untrained_head(small_corpus, tmp_path / "kept", init=checkpoint, regions=[PIXELS])
    assert_near(kept["choice.net.0.weight"], state["vcr_output.0.weight"], roundings=16)
    untrained_head(small_corpus, tmp_path / "vqa", init=checkpoint, regions=[PIXELS], dataset="scenes-vqa", task=())
    (vqa,) = heads_of(tmp_path / "vqa").values()
    assert vqa["origin"] == "fresh"
    assert "3.weight (file (3, " in vqa["why"]


def test_snli_ves_classes_have_the_checkpoints_order(small_corpus: Any, checkpoint: Path, tmp_path: Path) -> None:
    options = {"init": checkpoint, "regions": [PIXELS], "dataset": "scenes-snli-ve", "task": ()}
    train(small_corpus, tmp_path / "own", **options)
    assert heads_of(tmp_path / "own")["classes"]["origin"] == "checkpoint"
    orders = [
        small_corpus.config(tmp_path, student=name).reading["label_order"] for name in ("uniter-tiny", "meter-tiny")
    ]
    assert orders == ["uniter", "meter"]


def test_a_vqa_head_is_taken_over_answer_by_answer(small_corpus: Any, tmp_path: Path) -> None:
    """As LXMERT takes its pretraining's head over to VQA: known answers keep their rows, the others start at zero."""
    dataset = open_dataset("scenes-vqa", split="train", data_root=small_corpus.data_root)
    answers = dataset.label_names("vqa")
    listed = ["unheard of", *reversed(answers[1:])]
    student = build_student("lxmert-tiny")
    state = {name.replace("model.", "bert.", 1): value for name, value in student.state_dict().items()}
    head = student.build_head("answers", len(listed)).state_dict()
    state |= {f"answer_head.logit_fc.{name}": value for name, value in head.items()}
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "Epoch20_LXRT.pth")
    names = tmp_path / "all_ans.json"
    names.write_text(json.dumps([{"ans": answer, "dsets": ["vqa"]} for answer in listed]))
    options = {"student": "lxmert-tiny", "init": tmp_path / "Epoch20_LXRT.pth", "dataset": "scenes-vqa", "task": ()}
    options["regions"] = [PIXELS]
    kept = untrained_head(small_corpus, tmp_path / "kept", head_answers=names, **options)
    assert heads_of(tmp_path / "kept")["answers"] == {
        "origin": "checkpoint",
        "why": f"{len(answers) - 1} of {len(answers)} answers are in all_ans.json",
    }
    assert_near(kept["answers.3.weight"][1:], head["3.weight"][1:].flip(0), roundings=16)
    assert_near(kept["answers.0.weight"], head["0.weight"], roundings=16)
    assert kept["answers.3.weight"][0].abs().max() < 1e-6
    names.write_text(json.dumps(listed[:-1]))
    with pytest.raises(ConfigError, match="no head of the listed answers"):
        train(small_corpus, tmp_path / "other", head_answers=names, **options)


@pytest.mark.parametrize(
    ("answer", "written"),
    [("The Grey.", "gray"), ("a man", "man"), ("two", "2"), ("t-shirt", "t-shirt"), ("an", "an")],
)
def test_answers_are_looked_up_as_lxmerts_pretraining_writes_them(answer: str, written: str) -> None:
    assert Lxmert.pretraining_answer(answer) == written


def test_a_run_folder_gives_its_heads_to_the_next_run_of_the_same_classes(small_corpus: Any, tmp_path: Path) -> None:
    train(small_corpus, tmp_path / "first")
    first = load_file(tmp_path / "first" / "heads.safetensors")
    second = untrained_head(small_corpus, tmp_path / "second", init=tmp_path / "first", seed=3)
    assert_near(second["choice.net.3.weight"], first["choice.net.3.weight"], roundings=16)
    assert heads_of(tmp_path / "second")["choice"]["origin"] == "checkpoint"
    untrained_head(small_corpus, tmp_path / "third", init=tmp_path / "first", dataset="scenes-snli-ve", task=())
    assert heads_of(tmp_path / "third")["classes"]["origin"] == "fresh"


@pytest.mark.parametrize(("stored", "now"), [("img_db/{split}", "detector"), ("pixels", "pixels"), (None, None)])
def test_a_student_of_0_2_says_what_its_regions_are(tmp_path: Path, stored: str | None, now: str | None) -> None:
    """It stored where their files lay."""
    save_student(tmp_path, build_student("uniter-tiny"), origin={})
    description = load_json(tmp_path / "student.json")
    description["config"] |= {"regions": stored, "ground_truth_regions": None, "region_split": "train"}
    description["config"] |= {"region_naming": "uniter", "train_towers": False}
    (tmp_path / "student.json").write_text(json.dumps(description), encoding="utf-8")
    assert build_student("uniter-tiny", weights=tmp_path).config.regions == now


@pytest.mark.parametrize(("setting", "default", "other"), [("train_towers", False, True), ("max_new_tokens", 10, 3)])
def test_a_setting_that_went_is_read_at_its_default_alone(
    tmp_path: Path, setting: str, default: object, other: object
) -> None:
    save_student(tmp_path, build_student("uniter-tiny"), origin={})
    description = load_json(tmp_path / "student.json")
    for value in (default, other):
        description["config"][setting] = value
        (tmp_path / "student.json").write_text(json.dumps(description), encoding="utf-8")
        if value == default:
            build_student("uniter-tiny", weights=tmp_path)
        else:
            with pytest.raises(ConfigError, match=setting):
                build_student("uniter-tiny", weights=tmp_path)


def test_a_student_of_a_detectors_regions_is_never_shown_crops(
    small_corpus: Any, features: Path, tmp_path: Path
) -> None:
    train(small_corpus, tmp_path / "first", regions=[features / "train"])
    with pytest.raises(ConfigError, match="none are given"):
        train(small_corpus, tmp_path / "second", init=tmp_path / "first")
    assert not (tmp_path / "second").exists()
    train(small_corpus, tmp_path / "third", init=tmp_path / "first", regions=[features / "train"])
