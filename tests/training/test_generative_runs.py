"""Runs of a student that answers in words: updates saved apart, nothing distilled is plain, answers of all tasks."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from closeness import assert_near
from commands import complaint, printed
from fake_hub.server import served_models
from interrupting import interrupted_at
from peft import PeftModel
from run_logs import forget_digests, items_file, load_json, metrics
from safetensors.torch import load_file, save
from small_corpus import SmallCorpus
from tiny_extraction import tree_bytes
from transformers import AutoModelForImageTextToText

from advl_pipeline.base.compute import ComputeConfig
from advl_pipeline.base.errors import ConfigError, IdentityMismatch, WeightsUnavailable
from advl_pipeline.datasets.lowshot import nested_subset
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.evaluation.config import PredictConfig
from advl_pipeline.evaluation.predict import load_finished
from advl_pipeline.evaluation.predict_files import run_predict
from advl_pipeline.evaluation.prepare import prepare_scoring
from advl_pipeline.runs.evaluations import EvaluationDocument, read_documents, read_evaluation
from advl_pipeline.students.generative import GenerativeStudent
from advl_pipeline.students.registry import build_student
from advl_pipeline.training.build_model import base_dtype


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the hub has it: config.json, weights, processor."""
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    student = build_student("smolvlm-tiny")
    assert isinstance(student, GenerativeStudent)
    student.processor.image_processor.do_image_splitting = False
    student.model.save_pretrained(folder)
    student.processor.save_pretrained(folder)
    return folder


PLAIN = {"method": "plain", "cache": (), "student": "smolvlm-tiny", "batch_size": 2}


@pytest.fixture(scope="module")
def updated(small_corpus: SmallCorpus, published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "updates"
    options = {**PLAIN, "init": published, "learning_rate": 1e-2, "num_steps": 2, "gradient_checkpointing": True}
    small_corpus.run(run, **options)
    return run


# peft asks transformers for an attribute by its older name.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_updates_of_published_weights_are_saved_as_peft_reads_them(
    small_corpus: SmallCorpus, published: Path, updated: Path
) -> None:
    assert not (updated / "model.safetensors").exists()
    assert (updated / "adapter_model.safetensors").stat().st_size < 0.1 * (
        published / "model.safetensors"
    ).stat().st_size
    config = load_json(updated / "adapter_config.json")
    assert (config["r"], config["lora_alpha"]) == (8, 8.0)
    student = load_finished(updated).student
    assert isinstance(student, GenerativeStudent)
    assert {"processor", "chat"} <= vars(student).keys()  # Loaded before threads collate.
    base = AutoModelForImageTextToText.from_pretrained(published)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    theirs = PeftModel.from_pretrained(base, updated).merge_and_unload()
    ours = student.model.state_dict()
    for name, value in theirs.state_dict().items():
        assert_near(ours[name], value, roundings=16)
    changed = {name for name, value in before.items() if not torch.equal(value, ours[name])}
    ends = {name.removesuffix(".weight").rpartition(".")[2] for name in changed}
    assert ends == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_a_run_keeps_to_the_commit_of_the_hub_that_it_began_with(
    small_corpus: SmallCorpus, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The main branch moves while a run of low-rank updates is at hand."""
    with served_models(tmp_path / "hub", monkeypatch) as hub:
        hub.repositories["models/lab/smol"] = tree_bytes(published)
        weights = load_file(published / "model.safetensors")
        began = hub.sha("models/lab/smol")
        options = {**PLAIN, "init": Path("hf:lab/smol"), "num_steps": 1}
        small_corpus.run(tmp_path / "run", **options)
        described = load_json(tmp_path / "run" / "student.json")
        assert described["base"]["weights"] == load_json(tmp_path / "run" / "config.json")["init"]
        assert described["base"]["weights"] == f"hf:lab/smol@{began}"
        other = {name: value + 1 for name, value in weights.items()}
        assert hub.move("models/lab/smol", **{"model.safetensors": save(other)}) == began
        # The same command goes on with what it began with, and another one takes what the hub has now.
        small_corpus.run(tmp_path / "run", **options)
        small_corpus.run(tmp_path / "later", **options)
        now = load_json(tmp_path / "later" / "config.json")["init"]
        assert now == f"hf:lab/smol@{hub.sha('models/lab/smol')}"
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        asked = len(hub.asked)
        state = load_finished(tmp_path / "run").student.model.state_dict()
        name = next(name for name in state if name.endswith("embed_tokens.weight"))
        assert torch.equal(state[name], weights[name])
        assert len(hub.asked) == asked


def test_updates_need_the_weights_that_they_belong_to(updated: Path, published: Path, tmp_path: Path) -> None:
    run, moved = tmp_path / "run", tmp_path / "moved"
    shutil.copytree(updated, run)
    described = load_json(run / "student.json")
    described["base"]["weights"] = str(moved)
    (run / "student.json").write_text(json.dumps(described), encoding="utf-8")
    forget_digests(run)
    with pytest.raises(WeightsUnavailable, match="updates belong to are not there"):
        load_finished(run)
    shutil.copytree(published, moved)
    load_finished(run)
    other = build_student("smolvlm-tiny")
    assert isinstance(other, GenerativeStudent)
    other.model.save_pretrained(moved)
    with pytest.raises(IdentityMismatch, match="not those"):
        load_finished(run)


def test_rank_0_trains_all_weights(small_corpus: SmallCorpus, published: Path, tmp_path: Path) -> None:
    small_corpus.run(tmp_path / "whole", **PLAIN | {"init": published, "num_steps": 1, "lora_rank": 0})
    assert (tmp_path / "whole" / "model.safetensors").exists()


@pytest.mark.slow
def test_frozen_weights_are_held_in_bf16_and_resumed_to_the_bit(
    small_corpus: SmallCorpus, published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {**PLAIN, "init": published, "num_steps": 3, "checkpoint_every": 1, "base_dtype": "bf16"}
    options["lora_rank"] = 2
    small_corpus.run(tmp_path / "whole", **options)
    config = load_json(tmp_path / "whole" / "adapter_config.json")
    assert (config["r"], config["lora_alpha"]) == (2, 2.0)
    parts = load_json(tmp_path / "whole" / "environment.json")["bytes_by_part"]
    trained = sum(value.nbytes for value in load_file(tmp_path / "whole" / "adapter_model.safetensors").values())
    trained += 4 * load_json(tmp_path / "whole" / "result.json")["training_only_parameters"]
    frozen = sum(value.nbytes for value in load_file(published / "model.safetensors").values())
    assert parts == {
        "frozen_weights": frozen // 2, "trained_weights": trained, "gradients": trained, "optimiser": 2 * trained
    }  # fmt: skip
    assert f"frozen weights {frozen / 2e6:,.1f} MB in bf16" in capsys.readouterr().err
    with interrupted_at(2), pytest.raises(KeyboardInterrupt):
        small_corpus.run(tmp_path / "stopped", **options)
    kept = load_file(tmp_path / "stopped" / "checkpoint.safetensors")
    of_student = {name for name in kept if name.startswith("model/student.")}
    assert of_student
    assert all(".lora_" in name for name in of_student)
    assert {value.dtype for value in kept.values() if value.is_floating_point()} == {torch.float32}
    small_corpus.run(tmp_path / "stopped", **options)
    written = [(tmp_path / run / "adapter_model.safetensors").read_bytes() for run in ("whole", "stopped")]
    assert written[0] == written[1]
    for precision, dtype in (("bf16", torch.bfloat16), ("no", torch.float32)):
        compute = ComputeConfig(device="cpu", mixed_precision=precision, num_workers=1)  # type: ignore[arg-type]
        finished = load_finished(tmp_path / "whole", compute)
        assert {value.dtype for value in finished.student.parameters()} == {dtype}
        (scores,) = next(finished.scores(small_corpus.examples(number=1), batch_size=1))
        assert np.isfinite(scores).all()


def test_weights_in_bf16_are_the_default_where_a_gpu_trains_updates_in_it(
    small_corpus: SmallCorpus, published: Path, tmp_path: Path
) -> None:
    student = build_student("smolvlm-tiny")
    usual = {**PLAIN, "init": published, "device": "cuda:0", "mixed_precision": "bf16"}
    cases: list[dict[str, Any]] = [
        {"base_dtype": "fp32"},
        {"device": "cpu"},
        {"mixed_precision": "no"},
        {"lora_rank": 0},
    ]
    for changes, dtype in [({}, "bf16"), *((changes, "fp32") for changes in cases)]:
        assert base_dtype(student, small_corpus.config(tmp_path / "run", **{**usual, **changes})) == dtype
    asked = {**usual, "base_dtype": "bf16", "student": "vilt-tiny", "lora_rank": 2}
    with pytest.raises(ConfigError, match="does not answer in words"):
        base_dtype(build_student("vilt-tiny"), small_corpus.config(tmp_path / "run", **asked))


@pytest.mark.slow
def test_a_run_is_transformers_own_loop(small_corpus: SmallCorpus, tmp_path: Path) -> None:
    """A plain run has the losses of a loop over transformers' model, with labels on the right answers alone."""
    chosen = nested_subset(small_corpus.dataset(), 8, 0)
    examples = [example for example in small_corpus.examples() if example.example_id in chosen]
    recipe = {"optimiser": "adamw", "betas": [0.9, 0.98], "eps": 1e-6, "learning_rate": 1e-3, "weight_decay": 0.0}
    recipe |= {"schedule": "constant", "loss": "answer-lm", "warmup": 0.0, "clip_norm": 0.0}
    options = {**PLAIN, "shots": 8, "num_steps": 4, "batch_size": 8, "recipe": recipe}
    small_corpus.run(tmp_path / "run", **options)
    logged = [entry["raw/task"] for entry in metrics(tmp_path / "run")]
    torch.manual_seed(0)
    student = build_student("smolvlm-tiny")
    assert isinstance(student, GenerativeStudent)
    batch = student.collate(examples)
    first = np.cumsum([0, *batch.num_candidates])[:-1]
    rows = torch.tensor(
        [int(start) + int(example.label or 0) for start, example in zip(first, examples, strict=True)]
    )
    ids = batch.sequence_ids_NS[rows]
    labels = torch.full_like(ids, -100)
    for row, sequence in enumerate(rows):
        end = int(batch.length_N[sequence])
        place = slice(end - int((batch.rows.answer_Q == sequence).sum()), end)
        labels[row, place] = ids[row, place]
    inputs = {
        "input_ids": ids,
        "attention_mask": (torch.arange(ids.shape[1]) < batch.length_N[rows][:, None]).long(),
        "pixel_values": ((batch.pixels / 255 - 0.5) / 0.5)[:, None],
    }
    model = student.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.0)
    expected = []
    for _ in range(4):
        loss = model(**inputs, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(float(loss.detach()))
    assert_near(logged, expected)
    assert expected[-1] < expected[0] - 0.1


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["scenes-snli-ve", "scenes-vqa"])
def test_classes_and_answers_are_trained_scored_and_written(
    dataset: str, small_corpus: SmallCorpus, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    small_corpus.run(run, **{**PLAIN, "num_steps": 2, "dataset": dataset, "task": ()})
    assert all(np.isfinite(entry["raw/task"]) for entry in metrics(run))
    generate = dataset == "scenes-vqa"
    document = small_corpus.evaluate(run, on=("val",), probe=("blanked",))["val"]
    assert document.use_of_vision.keys() == document.metrics.keys() == {"vqa" if generate else "snli_ve"}
    for name in (False, True) if generate else (False,):
        output = tmp_path / (f"{name}.json" if generate else "labels.csv")
        predictions = run_predict(
            prepare_scoring(
                PredictConfig(run=run, on="val", data_root=small_corpus.data_root, output=output, generate=name)
            )
        )
        assert predictions.num_items == len(open_dataset(dataset, split="val", data_root=small_corpus.data_root))
    if generate:
        listed, worded = (load_json(tmp_path / f"{name}.json") for name in (False, True))
        assert [row["question_id"] for row in listed] == [row["question_id"] for row in worded]
        assert {row["answer"] for row in listed} != {row["answer"] for row in worded}
        document = small_corpus.evaluate(run, on=("val",), protocol="letters")["val"]
        assert (document.metrics.keys(), document.vqa_mode) == ({"vqa"}, "2021")
        assert sum(part.num_items for part in document.by_answer_type.values()) == len(worded)


@pytest.fixture(scope="module")
def answering(small_corpus: SmallCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on VQA that can be scored in every way."""
    run = tmp_path_factory.mktemp("runs") / "answering"
    small_corpus.run(run, **{**PLAIN, "num_steps": 1, "dataset": "scenes-vqa", "task": ()})
    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "filed"),
    [
        ("--num-questions 3 --probe removed --probe swapped", "val"),
        ("--vqa-mode 2017 --mixed-precision bf16 --probe none", "val@2017"),
        ("--as letters --num-questions 3", "val@letters"),
    ],
)
def test_the_command_advised_for_a_damaged_evaluation_repeats_its_numbers(
    way: str, filed: str, answering: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed(capsys, "evaluate", answering, "--on", "val", *way.split())
    before = read_evaluation(answering, filed)
    assert before is not None
    items_file(answering, filed).write_bytes(b"torn")
    with pytest.raises(ConfigError, match="cannot be read") as refused:
        read_evaluation(answering, filed)
    printed(capsys, *shlex.split(refused.value.next_command)[1:])
    after = read_evaluation(answering, filed)
    assert after is not None
    assert measured(after.document) == measured(before.document)
    document = answering / "evaluation" / f"{filed}.json"
    document.write_text("{torn")
    with pytest.raises(ConfigError, match="is damaged") as refused:
        read_documents(answering)
    printed(capsys, *shlex.split(refused.value.next_command)[1:])
    whole = read_evaluation(answering, filed)
    assert whole is not None
    assert (whole.document.protocol, whole.document.vqa_mode) == (before.document.protocol, before.document.vqa_mode)
    if before.document.sample is None:
        assert whole.document.metrics == before.document.metrics


def measured(document: EvaluationDocument) -> EvaluationDocument:
    """Return the document without how long the scoring took."""
    return replace(document, seconds=0.0, milliseconds_per_item=0.0)


@pytest.mark.parametrize(
    ("changes", "asked", "said"),
    [
        ({"student": "vilt-tiny"}, "predict --generate", "--generate needs a student that generates text"),
        ({"hide_picture": True}, "evaluate --as letters", "--as letters needs a student that sees pictures"),
    ],
)
def test_a_run_that_cannot_generate_is_refused_with_the_same_command_without_the_option(
    changes: dict[str, Any],
    asked: str,
    said: str,
    small_corpus: SmallCorpus,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = small_corpus.run(
        tmp_path / "run", **PLAIN | {"dataset": "scenes-vqa", "task": (), "num_steps": 1} | changes
    ).output
    command, *option = asked.split()
    code, message = complaint(capsys, command, run, "--on", "val", *option)
    assert (code, said in message) == (2, True), message
    assert shlex.split(message.splitlines()[-1]) == ["advl", command, str(run), "--on", "val"]
    assert [path.name for path in run.iterdir() if path.name in ("evaluation", "predictions")] == []


@pytest.mark.slow
def test_teachers_grids_are_laid_over_tiles(small_corpus: SmallCorpus, tmp_path: Path) -> None:
    """Each token of a tile, and of the whole picture after them, follows the teacher's grid where it lies."""
    tiles = ("image_splitting=true", "longest_edge=128")
    options = {"student": "smolvlm-tiny", "batch_size": 2, "num_steps": 1, "adapt_steps": 1, "adapt_texts": 8}
    grid = small_corpus.extract(tmp_path / "grid", teacher="efficientnet-lite0", image_tokens="grid")
    options |= {"vision_target": "patches", "cache": (grid,), "student_option": (*tiles, "align_layer=1")}
    small_corpus.run(tmp_path / "run", **options)
    settings = load_json(tmp_path / "run" / "settings.json")
    (choice,) = settings["vision_targets"].values()
    assert choice["places"] == "patches"
    # At least three tiles of four tokens a side for each picture, nearly all of which lie on the teacher's grid.
    assert choice["num_places"] >= 3 * 16 * choice["num_pictures"]
    assert choice["num_targets"] >= 0.9 * choice["num_places"]
    assert all(entry["raw/vision"] > 0 for entry in metrics(tmp_path / "run"))
