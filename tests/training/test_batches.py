"""What a step takes is a function of the step alone and is read ahead; the number of threads changes nothing."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interrupting import interrupted_at
from run_logs import losses
from safetensors.torch import load_file
from small_corpus import SmallCorpus, train

from advl_pipeline.base.errors import ConfigError
from advl_pipeline.cache.reader import FeatureStore, open_cache
from advl_pipeline.datasets.records import Example
from advl_pipeline.datasets.words import fit_word_prior
from advl_pipeline.runs import names
from advl_pipeline.students.pixel_student import PixelBatch, PixelStudent
from advl_pipeline.students.registry import build_student
from advl_pipeline.training.batch_order import BatchOrder, ExampleOrder, TokenOrder, epoch_order
from advl_pipeline.training.batches import training_batches
from advl_pipeline.training.signals.controls import Shuffled
from advl_pipeline.training.signals.stored_signals import SignalSource
from advl_pipeline.training.signals.teacher_features import cached_teacher

seeds, world_sizes = st.integers(0, 1000), st.integers(1, 5)
Make = Callable[[int, int], BatchOrder]


def taken(make: Make, step: int, world_size: int) -> list[list[int]]:
    """The examples of one step by rank, each rank asked anew, as after a resume."""
    by_rank = [make(rank, world_size).micro_batches(step) for rank in range(world_size)]
    return [[int(item) for micro in ranks for item in micro] for ranks in by_rank]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(1, 50), st.integers(1, 3), seeds, world_sizes)
def test_batches_of_examples(size: int, batch_size: int, accumulate: int, seed: int, world_size: int) -> None:
    def make(rank: int, world: int, cut: int = accumulate) -> ExampleOrder:
        return ExampleOrder(size, batch_size=batch_size, accumulate=cut, seed=seed, rank=rank, world_size=world)

    num_steps = -(-2 * size // batch_size)
    steps = [taken(make, step, world_size) for step in range(num_steps)]
    assert all(sum(map(len, ranks)) == batch_size for ranks in steps)
    alone = [item for step in range(num_steps) for item in taken(make, step, 1)[0]]
    for epoch in range(2):
        assert sorted(alone[epoch * size : (epoch + 1) * size]) == list(range(size))
    assert [sorted(item for share in ranks for item in share) for ranks in steps] == [
        sorted(taken(make, step, 1)[0]) for step in range(num_steps)
    ]
    order = make(0, 1)
    assert [int(item) for micro in order.micro_batches(num_steps - 1) for item in micro] == alone[-batch_size:]
    if batch_size >= world_size:
        # A micro-batch holds the same examples, whoever shares it, and all have a part of it.
        shared = [make(rank, world_size).micro_batches(3) for rank in range(world_size)]
        joined = [np.concatenate(parts).tolist() for parts in zip(*shared, strict=True)]
        assert joined == [part.tolist() for part in make(0, 1, len(joined)).micro_batches(3)]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=40, max_size=80), st.integers(1, 4), seeds, st.integers(1, 3))
def test_batches_of_tokens(sizes: list[int], accumulate: int, seed: int, world_size: int) -> None:
    max_tokens = 24

    def make(rank: int, world: int) -> TokenOrder:
        return TokenOrder(sizes, max_tokens=max_tokens, accumulate=accumulate, seed=seed, rank=rank, world_size=world)

    ranks = [make(rank, world_size) for rank in range(world_size)]
    stream: list[list[int]] = []
    step = 0
    while sum(map(len, stream)) < 2 * len(sizes):
        micros = [order.micro_batches(step) for order in ranks]
        assert [[m.tolist() for m in share] for share in micros] == [
            [m.tolist() for m in make(rank, world_size).micro_batches(step)] for rank in range(world_size)
        ]
        # The ranks take turns.
        for turn in range(max(map(len, micros))):
            stream += [share[turn].tolist() for share in micros if turn < len(share)]
        step += 1
    assert all(len(batch) * max(sizes[item] for item in batch) <= max_tokens for batch in stream)
    for _ in range(2):
        epoch: list[int] = []
        while len(epoch) < len(sizes):
            epoch += stream.pop(0)
        assert sorted(epoch) == list(range(len(sizes)))


@given(seeds, st.integers(0, 50), st.integers(2, 5))
def test_epochs_and_seeds_have_orders_of_their_own(seed: int, epoch: int, distance: int) -> None:
    order = epoch_order(200, seed=seed, epoch=epoch)
    assert sorted(order.tolist()) == list(range(200))
    for other in (epoch_order(200, seed=seed, epoch=epoch + distance), epoch_order(200, seed=seed + 1, epoch=epoch)):
        assert (order == other).mean() < 0.1


def test_token_batches_are_no_more_than_there_are_examples_and_hold_the_longest() -> None:
    sizes = [int(value) for value in np.random.default_rng(0).integers(5, 60, 100)]
    assert TokenOrder(sizes, max_tokens=300, accumulate=10_000, seed=1).accumulate < 100
    with pytest.raises(ConfigError, match="limit of tokens"):
        TokenOrder(sizes, max_tokens=30, accumulate=1, seed=1)


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


@pytest.mark.slow
def test_the_number_of_workers_changes_nothing(
    small_corpus: SmallCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_threads: set[str] = set()
    original = PixelStudent.collate

    def watch(self: PixelStudent, examples: list[Example]) -> PixelBatch:
        on_threads.add(threading.current_thread().name.split("_")[0])
        return original(self, examples)

    monkeypatch.setattr(PixelStudent, "collate", watch)
    for num_workers, threads in ((1, "advl-prefetch"), (3, "advl-worker")):
        config = small_corpus.config(
            tmp_path / str(num_workers),
            student="scenes-vilt",
            checkpoint_every=1,
            num_workers=num_workers,
            num_steps=2,
        )
        on_threads.clear()
        if num_workers == 3:
            with interrupted_at(3), pytest.raises(KeyboardInterrupt):
                train(config)
            train(replace(config, num_workers=2))
        else:
            train(config)
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
    summary = train(config).summary
    steps = [json.loads(line) for line in (tmp_path / names.METRICS).read_text(encoding="utf-8").splitlines()]
    waited = [step["seconds_waited"] for step in steps]
    assert waited[0] > 0.1
    assert sum(waited) == pytest.approx(summary.wait_share * summary.phases["finetune"]["seconds"])
