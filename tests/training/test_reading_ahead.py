"""Training announces what it will read, anew in each epoch; how many threads prepare it changes nothing."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from interrupting import interrupted_at
from run_logs import losses
from safetensors.torch import load_file
from small_corpus import SmallCorpus

from advl_pipeline.base.errors import Interrupted
from advl_pipeline.cache.reader import FeatureStore, open_cache
from advl_pipeline.datasets.records import Example
from advl_pipeline.datasets.words import fit_word_prior
from advl_pipeline.runs import names
from advl_pipeline.students.pixel_student import PixelBatch, PixelStudent
from advl_pipeline.students.registry import build_student
from advl_pipeline.training.batch_order import ExampleOrder
from advl_pipeline.training.batches import training_batches
from advl_pipeline.training.run import run_finetune
from advl_pipeline.training.signals.controls import Shuffled
from advl_pipeline.training.signals.stored_signals import SignalSource
from advl_pipeline.training.signals.teacher_features import cached_teacher


@pytest.mark.parametrize("shuffled", [False, True])
def test_each_epoch_begins_anew(small_corpus: SmallCorpus, shuffled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = small_corpus.dataset()
    teachers = [cached_teacher(open_cache(path)) for path in small_corpus.caches]
    if shuffled:
        teachers = [Shuffled(seed=0).features(teacher) for teacher in teachers]
    prior = fit_word_prior(candidate.text for example in (dataset[0], dataset[1]) for candidate in example.candidates)
    source = SignalSource(teachers, prior=prior)
    begun: list[int] = []
    original = FeatureStore.begin_epoch

    def count(self: FeatureStore) -> None:
        begun.append(id(self))
        original(self)

    monkeypatch.setattr(FeatureStore, "begin_epoch", count)
    num_examples, num_epochs = len(dataset), 3
    order = ExampleOrder(num_examples, batch_size=1, accumulate=1, seed=0)
    batches = training_batches(
        dataset,
        range(num_examples),
        build_student("scenes-small"),
        source,
        steps=range(num_epochs * num_examples),
        order=order,
        labelled=False,
    )
    assert len(list(batches)) == num_epochs * num_examples
    stores = set(begun)
    assert len(stores) == 2
    assert [begun.count(store) for store in stores] == [num_epochs, num_epochs]


def test_the_number_of_workers_changes_nothing(
    small_corpus: SmallCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_threads: set[str] = set()
    original = PixelStudent.collate

    def watch(self: PixelStudent, examples: list[Example]) -> PixelBatch:
        on_threads.add(threading.current_thread().name.split("_")[0])
        return original(self, examples)

    monkeypatch.setattr(PixelStudent, "collate", watch)
    for num_workers, threads in ((1, "advl-prefetch"), (2, "advl-worker"), (3, "advl-worker")):
        config = small_corpus.config(
            tmp_path / str(num_workers),
            student="scenes-vilt",
            checkpoint_every=1,
            num_workers=num_workers,
            num_steps=2,
        )
        on_threads.clear()
        if num_workers == 3:
            with interrupted_at(3), pytest.raises(Interrupted):
                run_finetune(config)
            run_finetune(replace(config, num_workers=2))
        else:
            run_finetune(config)
        assert on_threads == {"MainThread", threads}
        assert losses(config.output) == losses(tmp_path / "1")
        first, other = (load_file(folder / "model.safetensors") for folder in (tmp_path / "1", config.output))
        assert all(torch.equal(first[key], other[key]) for key in first)


def test_the_log_says_how_long_steps_waited_for_what_was_slow_to_prepare(
    small_corpus: SmallCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = PixelStudent.collate

    def slow(self: PixelStudent, examples: list[Example]) -> PixelBatch:
        time.sleep(0.2)
        return original(self, examples)

    config = small_corpus.config(
        tmp_path, student="scenes-vilt", method="plain", cache=(), num_steps=3, num_workers=1
    )
    monkeypatch.setattr(PixelStudent, "collate", slow)
    summary = run_finetune(config).summary
    steps = [json.loads(line) for line in (tmp_path / names.METRICS).read_text(encoding="utf-8").splitlines()]
    waited = [step["seconds_waited"] for step in steps]
    assert waited[0] > 0.1
    assert sum(waited) == pytest.approx(summary["wait_share"] * summary["phases"]["finetune"]["seconds"])
