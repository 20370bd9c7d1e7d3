"""What a run may know: the labelled subset, unlabelled inputs of the splits it is given, and no hidden picture."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from altered_dataset import alter_examples, with_wrong_label
from dataset_mirrors import write_vqa, write_vqa_cp
from first_step import first_terms
from run_logs import load_json, losses
from safetensors.torch import load_file
from small_corpus import SmallCorpus

from advl_data.scenes.students.lookup import LookupHead
from advl_pipeline.base.configuration import build_config
from advl_pipeline.cache.reader import open_cache
from advl_pipeline.confidence.estimators import load_or_estimate_confidence
from advl_pipeline.datasets import lowshot
from advl_pipeline.datasets.lowshot import nested_subset
from advl_pipeline.datasets.registry import find_dataset, open_dataset
from advl_pipeline.datasets.subsets import Concatenated
from advl_pipeline.datasets.words import fit_word_prior
from advl_pipeline.evaluation.predict import swapped_pictures, with_picture
from advl_pipeline.students.registry import build_student
from advl_pipeline.studies.config import SHIPPED
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.inputs import open_run_inputs
from advl_pipeline.training.resolved import resolve_method
from advl_pipeline.training.signals.teacher_features import cached_teacher


@pytest.mark.slow
def test_only_labels_of_the_subset_and_inputs_that_may_be_seen_influence_a_low_shot_run(
    small_corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[str] = []
    probed: list[str] = []

    def fit(texts: Any) -> Any:
        counted[:] = texts
        return fit_word_prior(counted)

    def estimate(**options: Any) -> Any:
        probed[:] = options["example_ids"]
        return load_or_estimate_confidence(**options)

    subset = set(nested_subset(small_corpus.dataset(), 4, 0))
    for adapt_on in ("subset", "inputs"):
        changes = {"shots": 4, "adapt_on": (adapt_on,), "num_steps": 2}
        with monkeypatch.context() as watch:
            watch.setattr("advl_pipeline.training.signals.teaching.fit_word_prior", fit)
            watch.setattr("advl_pipeline.training.signals.confidences.load_or_estimate_confidence", estimate)
            summary = small_corpus.run(tmp_path / adapt_on, **changes).summary
        inputs = [
            example for example in small_corpus.examples() if adapt_on == "inputs" or example.example_id in subset
        ]
        assert (summary.num_labelled, summary.num_adapt_inputs) == (4, len(inputs))
        assert sorted(counted) == sorted(choice.text for example in inputs for choice in example.candidates)
        assert set(probed) == subset
        with monkeypatch.context() as altered:
            opened = alter_examples(
                altered, lambda example: example if example.example_id in subset else with_wrong_label(example)
            )
            small_corpus.run(tmp_path / f"wrong-{adapt_on}", **changes)
        assert losses(tmp_path / f"wrong-{adapt_on}") == losses(tmp_path / adapt_on)
        assert opened == ["train"]
    assert losses(tmp_path / "subset") != losses(tmp_path / "inputs")


def test_labels_and_pool_are_prefixes_of_one_order_that_is_drawn_once(
    small_corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, drawn = small_corpus.dataset(), []
    labelled, seen = (set(nested_subset(dataset, shots, 0)) for shots in (4, 10))
    order = lowshot.question_order
    monkeypatch.setattr(lowshot, "question_order", lambda *given: drawn.append(given) or order(*given))
    config = small_corpus.config(tmp_path, method="plain", shots=4, pool=10)
    inputs = open_run_inputs(config, find_dataset(config.dataset), [])
    assert len(drawn) == 1
    assert {dataset.example_ids[place] for place in inputs.labelled} == labelled < seen
    assert {dataset.example_ids[place] for place in inputs.seen} == seen


def test_heads_that_look_things_up_count_words_where_inputs_may_be_seen(small_corpus: Any, tmp_path: Path) -> None:
    options = {"method": "plain", "dataset": "scenes-vqa", "task": (), "shots": 4, "num_steps": 1}
    dataset = open_dataset("scenes-vqa", split="train", data_root=small_corpus.data_root)
    student = build_student("scenes-small")
    for pool in (10, None):
        small_corpus.run(tmp_path / f"{pool}", pool=pool, **options)
        shares_V = load_file(tmp_path / f"{pool}" / "heads.safetensors")["answers.token_share_V"]
        seen = set(dataset.example_ids if pool is None else nested_subset(dataset, pool, 0))
        texts = [dataset[index] for index in range(len(dataset)) if dataset.example_ids[index] in seen]
        expected = LookupHead(student.hidden_size, len(shares_V), 1)
        expected.read_texts([student.text_tokens(texts)])
        assert torch.equal(shares_V, expected.token_share_V)
        assert shares_V.max() == 1.0, "every text begins alike"
        assert int((shares_V > 0).sum()) > 10


def answer_otherwise(file: Path, wanted: Callable[[int], bool]) -> None:
    """Make "purple" everybody's answer to the questions that are wanted by their id."""
    document = load_json(file)
    annotations = document["annotations"] if isinstance(document, dict) else document
    for item in annotations:
        if wanted(item["question_id"]):
            item["multiple_choice_answer"] = "purple"
            item["answers"] = [{**annotation, "answer": "purple"} for annotation in item["answers"]]
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


@pytest.mark.slow
def test_the_answers_of_val_influence_nothing_in_training_unless_asked_for(
    two_worlds: tuple[Path, Path], tmp_path: Path
) -> None:
    here, there = two_worlds
    cache = SmallCorpus(data_root=here, caches=()).extract(tmp_path / "cache", dataset="vqa-v2")

    def train(name: str, root: Path, **changes: Any) -> tuple[list[dict[str, float]], dict[str, torch.Tensor], Any]:
        short = {"num_steps": 2, "adapt_steps": 1, "batch_size": 8}
        trained = {"dataset": "vqa-v2", "task": (), "student": "scenes-small"}
        run, corpus = tmp_path / name, SmallCorpus(data_root=root, caches=(cache,))
        corpus.run(run, **{**trained, **short, **changes})
        heads = load_json(run / "heads.json")
        return losses(run), load_file(run / "model.safetensors"), heads["answers"]["label_names"]

    first, second = train("here", here), train("there", there)
    assert first[0] == second[0]
    assert first[1].keys() == second[1].keys()
    assert all(torch.equal(first[1][key], second[1][key]) for key in first[1])
    assert first[2] == second[2]
    plain = {"method": "plain", "cache": (), "num_steps": 1}
    published = [train(f"published-{root.name}", root, answer_list="published", **plain) for root in (here, there)]
    assert published[0][2] != published[1][2]
    assert published[0][0] != published[1][0]
    # The head of a run with the published list goes on under that list, and under no other.
    origins = {}
    for name, changes in (("same", {"answer_list": "published"}), ("other", {})):
        train(name, there, init=tmp_path / "published-there", **plain, **changes)
        settings = load_json(tmp_path / name / "settings.json")
        origins[name] = settings["heads"]["answers"]
    assert origins["same"]["origin"] == "checkpoint"
    assert origins["other"]["origin"] == "fresh"
    assert "--answer-list" in origins["other"]["why"]


OTHER = "scenes-vcr/train-shift"


@pytest.fixture(scope="module")
def other_caches(small_corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    folder = tmp_path_factory.mktemp("other")
    return tuple(
        small_corpus.extract(folder / teacher, teacher=teacher, split="train-shift", confidence="none")
        for teacher in ("minilm-l6", "efficientnet-lite0")
    )


@pytest.mark.slow
@pytest.mark.parametrize("more", [{"answer_weight": 1.0}, {"distance": "mse", "shots": 4}])
def test_inputs_of_another_split_join_the_adapt_step_and_need_no_labels(
    small_corpus: Any,
    other_caches: tuple[Path, ...],
    known: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    more: dict[str, Any],
) -> None:
    options = {"cache": (*small_corpus.caches, *other_caches), "adapt_on": ("inputs", OTHER), "known_words": known}
    assert small_corpus.run(tmp_path / "labelled", **options, **more).summary.num_adapt_inputs == 16 + 8
    alter_examples(monkeypatch, lambda example: replace(example, label=None), opened_by="open_split")
    small_corpus.run(tmp_path / "bare", **options, **more)
    assert losses(tmp_path / "bare") == losses(tmp_path / "labelled")


def test_the_joined_split_keeps_own_ids_and_names_the_others(small_corpus: Any) -> None:
    first, other = (small_corpus.dataset(split) for split in ("train", "train-shift"))
    joined = Concatenated([first, other], prefixes=["", f"{OTHER}:"])
    assert len(joined) == len(first) + len(other)
    assert list(joined.example_ids[: len(first)]) == list(first.example_ids)
    assert joined.example_ids[len(first) :] == [f"{OTHER}:{name}" for name in other.example_ids]
    for index in (0, len(first) - 1, len(first), len(joined) - 1):
        assert joined[index].example_id == joined.example_ids[index]
    assert joined[len(first)].image == other[0].image
    assert len({unit.unit_id for unit in joined.text_units()}) == len(joined.text_units())
    assert joined.content_digest() != first.content_digest()


def test_a_joined_teacher_gives_each_unit_what_its_own_cache_gives(
    small_corpus: Any, other_caches: tuple[Path, ...]
) -> None:
    for own_path, other_path in zip(small_corpus.caches, other_caches, strict=True):
        first, other = open_cache(own_path), open_cache(other_path)
        joined = cached_teacher(first, other)
        for tower in ("text", "image"):
            if (store := getattr(first, tower)) is None:
                assert getattr(joined, tower) is None
                continue
            both, second = getattr(joined, tower), getattr(other, tower)
            only = [unit for unit in second.ids if not store.contains([unit])[0]]
            mixed = [only[0], store.ids[0], only[1], store.ids[1]]
            sources = [second, store, second, store]
            expected = [source.global_features([unit])[0] for source, unit in zip(sources, mixed, strict=True)]
            np.testing.assert_array_equal(both.global_features(mixed), np.stack(expected))
            if store.has_tokens:
                rows, lengths = both.token_features(mixed)
                each = [source.token_features([unit])[0] for source, unit in zip(sources, mixed, strict=True)]
                np.testing.assert_array_equal(rows, np.concatenate(each))
                assert lengths.tolist() == [len(values) for values in each]
            if tower == "text":
                spans = [source.char_spans([unit]) for source, unit in zip(sources, mixed, strict=True)]
                np.testing.assert_array_equal(both.char_spans(mixed), np.concatenate(spans))


TEXT_ALONE = {"pathway": "text", "selection": "prior", "adapt_objective": "distil-only"}


@pytest.mark.parametrize(
    ("changes", "is_same"),
    [
        ({"method": "plain", "hide_picture": True}, True),
        ({"hide_picture": True, **TEXT_ALONE}, True),
        ({"hide_picture": True, **TEXT_ALONE, "stages": "one", "distill_layer": "fused"}, True),
        (TEXT_ALONE, False),
    ],
    ids=["plain", "two steps", "one step", "shown"],
)
def test_other_pictures_change_nothing_in_training(
    changes: dict[str, Any], is_same: bool, small_corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Folds go by the pictures' ids, and confidences that the first run stored would serve the second one.
    monkeypatch.setattr("advl_pipeline.confidence.estimators.read_confidence", lambda *unused: None)
    monkeypatch.setattr("advl_pipeline.confidence.estimators.write_confidence", lambda *unused: None)
    monkeypatch.setattr(
        "advl_pipeline.confidence.estimators.assign_folds",
        lambda groups, *, folds, seed: np.arange(len(groups)) % folds,
    )
    unswapped = first_terms(small_corpus.config(tmp_path / "own", **changes))
    others = swapped_pictures(small_corpus.dataset().image_units())
    alter_examples(monkeypatch, lambda example: with_picture(example, others[example.image.unit_id]))
    swapped = first_terms(small_corpus.config(tmp_path / "swapped", **changes))
    assert (swapped == pytest.approx(unswapped, rel=1e-4, abs=1e-6)) == is_same


def test_the_remedies_of_what_is_refused_are_enough() -> None:
    hidden = {"dataset": "scenes-vcr", "output": "run", "cache": (Path("cache"),), "hide_picture": True}
    for allowed in (
        TEXT_ALONE,
        {**TEXT_ALONE, "distance": "mse", "selection": "random"},
        {**TEXT_ALONE, "weighting": "uniform", "confidence": "zero-shot"},
        {"method": "naive-kd", "pathway": "text"},
        {"method": SHIPPED["plain-no-picture"].method, **SHIPPED["plain-no-picture"].training},
    ):
        method = resolve_method(build_config(FinetuneConfig, hidden, allowed))
        assert method.uses_teachers == (allowed.get("method") != "plain")
