"""Runs on mirrors of VCR and VQA v2 as their users give them: what low-shot runs extract, train and val as one."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from commands import exit_code as call
from dataset_mirrors import vcr_record, write_picture, write_vcr, write_vqa
from small_corpus import SMALL_WORDS

from advl_pipeline.base.errors import DatasetError
from advl_pipeline.cache.reader import open_cache
from advl_pipeline.datasets.lowshot import nested_subset
from advl_pipeline.datasets.registry import find_dataset, open_dataset, open_splits

NUM_QUESTIONS = 32
SHORT = [
    *("--num-steps", 2, "--adapt-steps", 2, "--batch-size", 2, "--adapt-texts", 8),
    *("--student", "scenes-small", "--student-option", *SMALL_WORDS),
]
EXTRACT = ("extract", "--teacher", "minilm-l6", "--dataset", "vcr", "--confidence-folds", 2)


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ADVL_DATA", raising=False)
    write_vcr(Path("datasets"), [vcr_record(number, split="train") for number in range(NUM_QUESTIONS)], split="train")
    write_vcr(Path("datasets"), [vcr_record(number, split="val") for number in range(4)], split="val")
    return tmp_path


def finetune(output: str, *more: object) -> int:
    method = () if "--method" in more else ("--method", "advl", "--confidence-folds", 2)
    dataset = () if "--dataset" in more else ("--dataset", "vcr")
    return call("finetune", *dataset, "--output", output, *SHORT, *method, *more)


def num_texts(cache: str) -> int:
    store = open_cache(cache).text
    assert store is not None
    return len(store)


def run_advice(printed: str) -> None:
    """Give the commands that an error advises."""
    advice = printed.split("next:")[1].strip().splitlines()[0].partition("   (")[0]
    for command in advice.split(" && "):
        assert call(*shlex.split(command)[1:]) == 0


@pytest.mark.slow
def test_subsets_of_several_seeds_share_a_cache_that_serves_their_runs_alone(
    mirror: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*EXTRACT, "--shots", 6, "--seed", 0, "--seed", 1) == 0
    cache = "caches/minilm-l6/vcr/train-shots6-seed0-1"
    train = open_dataset("vcr", split="train")
    chosen = {name for seed in (0, 1) for name in nested_subset(train, 6, seed)}
    texts = {
        candidate.text_unit.unit_id
        for example in map(train.__getitem__, range(len(train)))
        if example.example_id in chosen
        for candidate in example.candidates
    }
    store = open_cache(cache).text
    assert set(store.ids) == texts
    assert len(texts) < len(train.text_units()) / 2

    assert finetune("runs/0", "--shots", 6, "--seed", 0, "--cache", cache) == 0
    result = json.loads(Path("runs/0/result.json").read_text())
    # Both tasks of six questions; without a pool the adapt stage sees no others.
    assert (result["num_labelled"], result["num_adapt_inputs"]) == (12, 12)
    # A smaller subset lies inside, and its adapt stage may see all that was extracted for its seed.
    assert finetune("runs/pool", "--shots", 2, "--pool", 6, "--seed", 1, "--cache", cache) == 0
    result = json.loads(Path("runs/pool/result.json").read_text())
    assert (result["num_labelled"], result["num_adapt_inputs"]) == (4, 12)

    # So does that of the baseline, which reads no features, where the same cache limits what is seen.
    two_step = ("--method", "plain-two-step", "--shots", 6, "--seed", 1)
    assert finetune("runs/part", *two_step, "--cache", cache) == 0
    result = json.loads(Path("runs/part/result.json").read_text())
    assert (result["num_labelled"], result["num_adapt_inputs"]) == (12, 12)

    for output, options in (("seed", ("--shots", 6, "--seed", 2)), ("full", ())):
        capsys.readouterr()
        assert finetune(f"runs/{output}", *options, "--cache", cache) == 3
        printed = capsys.readouterr().err
        assert "holds a part of the split" in printed
        assert not Path(f"runs/{output}").exists()
    run_advice(printed)
    assert num_texts("caches/minilm-l6/vcr/train") == len(train.text_units())
    # What the other seeds train from is left as it was.
    assert num_texts(cache) == len(texts)


@pytest.mark.slow
def test_a_list_of_ids_is_extracted_and_trained_on(mirror: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("datasets", "subset", "vcr", "--shots", 4, "--seed", 5, "--output", "mine.json") == 0
    assert call(*EXTRACT, "--ids", "mine.json") == 0
    cache = "caches/minilm-l6/vcr/train-mine"
    # Four questions with four answers, and four rationales after the right answer.
    assert num_texts(cache) == 32
    assert finetune("runs/listed", "--ids", "mine.json", "--cache", cache) == 0
    one_task = ("--ids", "mine.json", "--task", "vcr-q2a", "--cache", cache)
    assert finetune("runs/task", *one_task) == 0
    assert json.loads(Path("runs/task/result.json").read_text())["num_labelled"] == 4
    assert call("cache", "verify", cache, "--recompute", 2) == 2
    assert f"advl cache verify {cache} --recompute 2 --dataset vcr --ids mine.json" in capsys.readouterr().err
    assert call("cache", "verify", cache, "--recompute", 2, "--ids", "mine.json") == 0

    # A run resumes with the same examples, not with whatever the file names by then.
    assert finetune("runs/task", *one_task) == 0
    assert call("datasets", "subset", "vcr", "--shots", 3, "--seed", 5, "--output", "mine.json") == 0
    assert finetune("runs/task", *one_task) == 3
    capsys.readouterr()
    assert finetune("runs/both", "--ids", "mine.json", "--shots", 3, "--cache", cache) == 2
    assert "--shots or --ids, not both" in capsys.readouterr().err
    listed = json.loads(Path("mine.json").read_text())
    for changed, why in (
        ({"split": "val"}, "belongs to another split"),
        ({"example_ids": ["train-99:vcr-q2a"]}, "train-99"),
    ):
        Path("mine.json").write_text(json.dumps(listed | changed))
        assert call(*EXTRACT, "--ids", "mine.json", "--output", "caches/new") == 5
        assert why in capsys.readouterr().err


@pytest.fixture
def vqa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ADVL_DATA", raising=False)
    for split in ("train", "val", "test"):
        write_vqa(Path("datasets"), split=split, count=60)
    return Path("datasets/vqa-v2")


def extract(*more: object) -> int:
    folds = () if "none" in more else ("--confidence-folds", 2)
    return call("extract", "--teacher", "minilm-l6", "--dataset", "vqa-v2", *folds, *more)


def finetune_vqa(output: str, *more: object) -> int:
    return finetune(output, "--dataset", "vqa-v2", *more)


@pytest.mark.slow
def test_train_and_val_are_trained_on_together_and_test_dev_is_predicted(
    vqa: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = open_splits(find_dataset("vqa-v2"), "train+val")
    assert len(both) == 120
    assert both.label_names("vqa") == open_dataset("vqa-v2", split="val", answer_list="published").label_names("vqa")
    assert len(both.question_table().cells) == 120
    assert extract("--split", "train+val") == 0
    cache = "caches/minilm-l6/vqa-v2/train+val"
    assert finetune_vqa("runs/both", "--split", "train+val", "--cache", cache) == 0
    assert json.loads(Path("runs/both/result.json").read_text())["num_labelled"] == 120
    test = vqa / "v2_OpenEnded_mscoco_test2015_questions.json"
    test.with_name("v2_OpenEnded_mscoco_test-dev2015_questions.json").write_bytes(test.read_bytes())
    assert call("predict", "runs/both", "--on", "test-dev") == 0
    # A cache of train alone is another one.
    assert extract() == 0
    capsys.readouterr()
    assert finetune_vqa("runs/other", "--split", "train+val", "--cache", "caches/minilm-l6/vqa-v2/train") == 3
    assert "--split train+val" in capsys.readouterr().err
    assert call("extract", "--teacher", "minilm-l6", "--dataset", "vqa-v2", "--split", "train+vall") == 2
    assert "val" in capsys.readouterr().err
    with pytest.raises(DatasetError, match="same items cannot be joined"):
        open_splits(find_dataset("vqa-v2"), "train+train")


def test_val_without_train_is_refused_before_anything_is_encoded(
    vqa: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in vqa.glob("*train2014*.json"):
        file.unlink()
    assert extract("--split", "val") == 5
    printed = capsys.readouterr().err
    assert "list of classes, which is missing" in printed
    assert "train2014" in printed
    assert "--confidence none" in printed
    assert not Path("caches").exists()
    assert extract("--split", "val", "--confidence", "none") == 0


def test_a_cache_that_left_out_what_cannot_be_read_names_the_option(
    vqa: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = next((vqa / "train2014").glob("*.jpg"))
    picture.write_bytes(b"no picture")
    assert extract("--on-error", "skip") == 0
    write_picture(picture, shade=3)
    cache = ("--cache", "caches/minilm-l6/vqa-v2/train")
    assert finetune_vqa("runs/a", *cache) == 3
    printed = capsys.readouterr().err
    assert "add --on-error skip" in printed
    picture.write_bytes(b"no picture")
    assert finetune_vqa("runs/a", "--on-error", "skip", *cache) == 0
    assert "next: advl evaluate runs/a --on val" in capsys.readouterr().out
