"""Confidence from caches: what a probe can see, identities, storing, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args
from unittest import mock

import numpy as np
import numpy.typing as npt
import pytest
from held_features import HeldFeatures
from made_examples import unit
from tiny_extraction import TinyDataset, tiny_extract

from advl_pipeline.base.errors import ConfigError, DatasetError
from advl_pipeline.cache.confidence import list_confidence, read_confidence
from advl_pipeline.cache.reader import open_cache
from advl_pipeline.confidence.estimators import (
    Modality,
    confidence_identity,
    examples_of,
    load_or_estimate_confidence,
    probe_features,
)
from advl_pipeline.confidence.probe import TruthConfidence
from advl_pipeline.confidence.separation import separation
from advl_pipeline.datasets.records import Candidate, Example, ObjectTag, Task, text_unit

KINDS = ["dog", "umbrella", "apple", "boat"]


class FakeDataset(list[Example]):
    """Pictures of two objects; the question tags one and asks what it is, or with `other` what the other one is; both
    kinds are among the choices."""

    name = identity_name = "fake"
    split = "train"
    text_style = "plain"

    def __init__(
        self, num: int, *, task: Task = "vcr-q2a", seed: int = 0, labelled: bool = True, other: bool = False
    ) -> None:
        super().__init__()
        generator = np.random.default_rng(seed)
        self.tasks = (task,)
        self.truth: list[list[int]] = []
        for number in range(num):
            kinds = generator.permutation(4)[:2].tolist()
            tagged = int(generator.integers(2))
            image = unit(boxes=[[0, 0, 5, 5], [5, 5, 9, 9]], name=f"image-{number}")
            order, asked = generator.permutation(4).tolist(), f"what is {tagged} ?"
            tags = (ObjectTag(start=8, end=9, box=tagged),)
            texts = [text_unit(f"{asked} it is a {KINDS[kind]}") for kind in order]
            label = order.index(kinds[1 - tagged if other else tagged]) if labelled else None
            soft: tuple[tuple[int, float], ...] = ()
            if task == "snli-ve":
                texts, label = texts[:1], int(order[0] in kinds)
            elif task == "vqa":
                texts, label, soft = [text_unit(asked)], kinds[tagged], ((kinds[tagged], 1.0),)
            length = 0 if task == "vqa" else len(asked)
            candidates = tuple(Candidate(text_unit=text, context_length=length, tags=tags) for text in texts)
            self.truth.append(kinds)
            labels: dict[str, Any] = {"label": label, "soft_label": soft}
            self.append(Example(example_id=f"e{number}", task=task, image=image, candidates=candidates, **labels))

    @property
    def example_ids(self) -> list[str]:
        return [example.example_id for example in self]

    def label_names(self, task: Task) -> tuple[str, ...]:
        return {"vqa": tuple(KINDS), "snli-ve": ("no", "yes")}.get(task, ())


def caches_of(
    dataset: FakeDataset, *, boxes: bool = True, scale: float | None = None, text: bool = True, noise: float = 0.3
) -> list[Any]:
    """A vision teacher that knows kinds (of each box, or of the picture) and a text teacher that knows words."""
    generator = np.random.default_rng(0)
    look_KD = generator.standard_normal((4, 40)).astype(np.float32)
    pictures, regions, texts = {}, {}, {}
    for example, kinds in zip(dataset, dataset.truth, strict=True):
        seen_RD = look_KD[kinds] + noise * generator.standard_normal((2, 40)).astype(np.float32)
        pictures[example.image.unit_id] = seen_RD.mean(axis=0)
        regions[example.image.unit_id] = seen_RD
        for candidate in example.candidates:
            said = [kind for kind, word in enumerate(KINDS) if word in candidate.text]
            texts[candidate.text_unit.unit_id] = look_KD[said].sum(axis=0) if said else np.zeros(40, np.float32)
    cache = SimpleNamespace(
        path=Path("nowhere"),
        identity={"teacher": {"logit_scale": scale}},
        identity_digest="0" * 64,
        image=HeldFeatures(pictures, regions if boxes else {}),
        text=HeldFeatures(texts, {}) if text else None,
    )
    return [cache]


def confidences(dataset: FakeDataset, caches: Any, **settings: Any) -> dict[str, npt.NDArray[np.float32]]:
    return {modality: found.probability_N for modality, found in estimates(dataset, caches, **settings).items()}


def estimates(dataset: FakeDataset, caches: Any, **settings: Any) -> dict[str, TruthConfidence]:
    usual: dict[str, Any] = {"example_ids": dataset.example_ids, "estimator": "probe", "folds": 5, "seed": 0}
    return unstored(caches=caches, dataset=dataset, **{**usual, **settings})


def unstored(**settings: Any) -> dict[str, TruthConfidence]:
    """Estimate anew, and store nothing."""
    nothing = mock.Mock(return_value=None)
    with mock.patch.multiple(
        "advl_pipeline.confidence.estimators", read_confidence=nothing, write_confidence=nothing
    ):
        return load_or_estimate_confidence(**settings)


def test_the_vision_probe_knows_kinds_by_the_boxes_that_are_asked_about() -> None:
    dataset = FakeDataset(300)
    with_boxes = confidences(dataset, caches_of(dataset))
    without = confidences(dataset, caches_of(dataset, boxes=False))
    assert set(with_boxes) == {"vision", "text"}
    # The picture alone leaves its two kinds equally likely; the tagged box decides.
    assert with_boxes["vision"].mean() > 0.75
    assert 0.35 < without["vision"].mean() < 0.6
    # Texts alone cannot tell which kind is in the picture.
    assert with_boxes["text"].mean() == pytest.approx(0.25, abs=0.03)
    # A question may name one object and ask about the other one.
    others = FakeDataset(300, other=True)
    assert confidences(others, caches_of(others))["vision"].mean() > 0.75


@pytest.mark.parametrize("task", ["vcr-q2a", "snli-ve", "vqa"])
def test_auc_tells_a_teacher_that_knows_from_one_that_cannot(task: Task) -> None:
    """Pictures show the kind that is asked about; texts do not, but tell which answers are frequent."""
    dataset = FakeDataset(300, task=task)
    pictures = [example.image.unit_id for example in dataset]
    auc = {
        modality: separation(estimate.outranked_N, pictures)
        for modality, estimate in estimates(dataset, caches_of(dataset)).items()
    }
    assert auc["vision"].auc > 0.75
    assert auc["vision"].is_above_chance
    assert not auc["text"].is_above_chance
    assert auc["text"].low < 0.5 < auc["text"].high


def test_the_order_of_the_examples_does_not_matter_but_the_set_does() -> None:
    dataset = FakeDataset(80)
    caches = caches_of(dataset)
    names = dataset.example_ids[:60]
    forward = confidences(dataset, caches, example_ids=names)["vision"]
    backward = confidences(dataset, caches, example_ids=names[::-1])["vision"]
    np.testing.assert_array_equal(forward, backward[::-1])
    more = confidences(dataset, caches)["vision"][:60]
    assert not np.array_equal(forward, more)


def test_both_tasks_of_a_picture_are_predicted_without_each_other() -> None:
    """One picture's items share a fold, so labels of its second item never reach the head of its first."""
    dataset = FakeDataset(60)
    twins = [replace(example, example_id=f"{example.example_id}-again") for example in dataset]
    dataset.extend(twins)
    dataset.truth += dataset.truth
    caches = caches_of(dataset)
    before = confidences(dataset, caches)["vision"]
    assert twins[0].label is not None
    dataset[60] = replace(twins[0], label=(twins[0].label + 1) % 4)
    after = confidences(dataset, caches)["vision"]
    assert before[0] == after[0]
    assert before[60] != after[60]


def test_features_hold_no_labels() -> None:
    labelled, blank = FakeDataset(40), FakeDataset(40, labelled=False)
    caches, modalities = caches_of(labelled), get_args(Modality)[:2]
    for modality in modalities:
        with_labels, without = (probe_features(caches, dataset, modality) for dataset in (labelled, blank))
        np.testing.assert_array_equal(with_labels, without)


def test_what_cannot_be_estimated_is_refused() -> None:
    dataset = FakeDataset(10)
    caches = caches_of(dataset, text=False)
    assert set(confidences(dataset, caches)) == {"vision"}
    for apart in (caches, caches_of(dataset)):
        with pytest.raises(ConfigError, match="aligned pair"):
            confidences(dataset, apart, estimator="zero-shot")
    vqa = FakeDataset(10, task="vqa")
    with pytest.raises(ConfigError, match="multiple choice"):
        confidences(vqa, caches_of(vqa, scale=20.0), estimator="zero-shot")
    with pytest.raises(DatasetError, match="not in this split"):
        confidences(dataset, caches, example_ids=["e1", "e99"])
    with pytest.raises(DatasetError, match="no label"):
        confidences(FakeDataset(10, labelled=False), caches)


def test_identity_names_what_changes_the_numbers() -> None:
    dataset = FakeDataset(20)
    caches = caches_of(dataset)
    examples = examples_of(dataset, sorted(dataset.example_ids))
    usual: dict[str, Any] = {"caches": caches, "dataset": dataset, "examples": examples}
    usual |= {"estimator": "probe", "modality": "vision", "folds": 5, "seed": 0}
    base = confidence_identity(**usual)
    renamed = FakeDataset(20)
    renamed.label_names = lambda task: ("other", "names")  # type: ignore[method-assign]
    changes: list[dict[str, Any]] = [
        {"dataset": renamed},
        {"examples": examples[1:]},
        {"folds": 4},
        {"seed": 1},
        {"modality": "text"},
        {"estimator": "zero-shot"},
        {"examples": examples_of(FakeDataset(20, seed=1), sorted(dataset.example_ids))},
        {"caches": [SimpleNamespace(identity_digest="1" * 64)]},
    ]
    for change in changes:
        assert confidence_identity(**{**usual, **change}) != base


def test_estimates_are_stored_in_the_cache_and_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_extract(tmp_path / "data", tmp_path / "cache", confidence="none")
    dataset, cache = TinyDataset(tmp_path / "data"), open_cache(tmp_path / "cache")
    settings: dict[str, Any] = {"caches": [cache], "dataset": dataset, "example_ids": dataset.example_ids[:50]}
    settings |= {"estimator": "probe", "folds": 5, "seed": 0}
    fresh = load_or_estimate_confidence(**settings)
    assert set(fresh) == {"vision", "text"}
    assert [item.num_examples for item in list_confidence(cache.path)] == [50, 50]
    examples = examples_of(dataset, sorted(settings["example_ids"]))
    identity = confidence_identity([cache], dataset, examples, "probe", "vision", folds=5, seed=0)
    stored = read_confidence(cache.path, identity)
    # The order is that of the identity, whoever asks.
    assert stored.example_ids == sorted(settings["example_ids"])
    place = [stored.example_ids.index(name) for name in settings["example_ids"]]
    np.testing.assert_array_equal(stored.probability_N[place], fresh["vision"].probability_N)
    np.testing.assert_array_equal(stored.outranked_N[place], fresh["vision"].outranked_N)
    np.testing.assert_array_equal(fresh["vision"].probability_N, unstored(**settings)["vision"].probability_N)
    refuse = mock.Mock(side_effect=AssertionError("estimated again although it was stored"))
    monkeypatch.setattr("advl_pipeline.confidence.estimators.cross_fitted_confidence", refuse)
    again = load_or_estimate_confidence(**{**settings, "example_ids": dataset.example_ids[:50][::-1]})
    np.testing.assert_array_equal(again["vision"].probability_N, fresh["vision"].probability_N[::-1])
    np.testing.assert_array_equal(again["vision"].outranked_N, fresh["vision"].outranked_N[::-1])
    with pytest.raises(AssertionError, match="estimated again"):
        load_or_estimate_confidence(**{**settings, "seed": 1})
