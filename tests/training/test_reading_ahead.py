"""Training announces what it will read, anew in each epoch."""

from __future__ import annotations

import pytest
from small_corpus import SmallCorpus

from advl_pipeline.cache.readahead import Readahead
from advl_pipeline.cache.reader import open_cache
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.datasets.word_prior import fit_word_prior
from advl_pipeline.students.registry import build_student
from advl_pipeline.training.batch_order import ExampleOrder
from advl_pipeline.training.batches import training_batches
from advl_pipeline.training.shuffled_teacher import shuffled_teacher
from advl_pipeline.training.signals import SignalSource, cached_teacher


@pytest.mark.parametrize("shuffled", [False, True])
def test_each_epoch_begins_anew(small_corpus: SmallCorpus, shuffled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_dataset("scenes-vcr", split="train", data_root=small_corpus.data_root, tasks=("vcr-q2a",))
    teachers = [cached_teacher(open_cache(path)) for path in small_corpus.caches]
    if shuffled:
        teachers = [shuffled_teacher(teacher, seed=0) for teacher in teachers]
    prior = fit_word_prior(candidate.text for example in (dataset[0], dataset[1]) for candidate in example.candidates)
    source = SignalSource(teachers, prior=prior, confidence={}, target_norm="standardise")
    begun: list[int] = []
    original = Readahead.begin_epoch

    def count(self: Readahead) -> None:
        begun.append(id(self))
        original(self)

    monkeypatch.setattr(Readahead, "begin_epoch", count)
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
