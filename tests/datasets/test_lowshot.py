"""Subsets are nested, balanced, and depend on nothing but the seed and the questions' ids."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from dataset_mirrors import vcr_record, write_snli_ve, write_vcr
from hypothesis import given, settings
from hypothesis import strategies as st

from advl_pipeline.base.errors import ConfigError, DatasetError
from advl_pipeline.datasets.lowshot import nested_subset, question_order, read_id_list, write_id_list
from advl_pipeline.datasets.records import QuestionTable
from advl_pipeline.datasets.registry import open_dataset


@st.composite
def tables(draw: st.DrawFn) -> QuestionTable:
    count = draw(st.integers(1, 60))
    cells = draw(st.lists(st.integers(0, 4), min_size=count, max_size=count))
    strata = draw(st.lists(st.sampled_from(["a", "b", "c"]), min_size=count, max_size=count))
    ids = [f"q{number}" for number in range(count)]
    return QuestionTable(
        question_ids=ids,
        example_ids=[(name,) for name in ids],
        cells=np.array(cells, dtype=np.int64),
        strata=strata,
        by_class=draw(st.booleans()),
    )


@given(table=tables(), seed=st.integers(0, 5))
@settings(max_examples=60)
def test_every_prefix_is_balanced(table: QuestionTable, seed: int) -> None:
    order = question_order(table, seed)
    assert sorted(order) == list(range(len(table.question_ids)))
    sizes = Counter(table.cells.tolist())
    taken: Counter[int] = Counter()
    for rank, question in enumerate(order, start=1):
        taken[int(table.cells[question])] += 1
        if table.by_class:
            # A cell that still has questions is never more than one behind any other.
            waiting = [taken[cell] for cell in sizes if taken[cell] < sizes[cell]]
            assert all(count >= max(taken.values()) - 1 for count in waiting)
        else:
            for cell, size in sizes.items():
                assert abs(taken[cell] - rank * size / len(order)) <= len(sizes)


@given(table=tables(), seed=st.integers(0, 5), shuffle=st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_the_order_of_the_file_does_not_matter(table: QuestionTable, seed: int, shuffle: object) -> None:
    rng = np.random.default_rng(seed)
    moved = rng.permutation(len(table.question_ids))
    other = QuestionTable(
        question_ids=[table.question_ids[i] for i in moved],
        example_ids=[table.example_ids[i] for i in moved],
        cells=table.cells[moved],
        strata=[table.strata[i] for i in moved],
        by_class=table.by_class,
    )
    first = [table.question_ids[i] for i in question_order(table, seed)]
    assert [other.question_ids[i] for i in question_order(other, seed)] == first


def test_vcr_subsets_hold_both_tasks_and_balance_both_labels(tmp_path: Path) -> None:
    write_vcr(tmp_path, [vcr_record(number) for number in range(64)])
    dataset = open_dataset("vcr", split="val", data_root=tmp_path)
    small, large = nested_subset(dataset, 8, seed=3), nested_subset(dataset, 32, seed=3)
    assert len(small) == 16
    assert large[:16] == small
    assert {example_id.rsplit(":", 1)[1] for example_id in small} == {"vcr-q2a", "vcr-qa2r"}
    for task in ("vcr-q2a", "vcr-qa2r"):
        labels = Counter(dataset[dataset.position(name)].label for name in small if name.endswith(task))
        assert labels == {0: 2, 1: 2, 2: 2, 3: 2}
    one_task = open_dataset("vcr", split="val", data_root=tmp_path, tasks=["vcr-q2a"])
    assert nested_subset(one_task, 8, seed=3) == tuple(name for name in small if name.endswith("q2a"))
    assert nested_subset(dataset, 8, seed=4) != small


def test_a_subset_larger_than_the_split_is_refused(tmp_path: Path) -> None:
    write_snli_ve(tmp_path, count=6)
    dataset = open_dataset("snli-ve", split="test", data_root=tmp_path)
    for shots in (0, 7):
        with pytest.raises(ConfigError, match="cannot be drawn"):
            nested_subset(dataset, shots, seed=0)


def test_id_lists_come_back_and_broken_ones_are_errors(tmp_path: Path) -> None:
    ids = ("a:vcr-q2a", "b:vcr-q2a")
    write_id_list(tmp_path / "lists" / "two.json", {"dataset": "vcr", "split": "train", "example_ids": ids})
    assert read_id_list(tmp_path / "lists" / "two.json") == ("vcr", "train", ids)
    (tmp_path / "broken.json").write_text('{"dataset": "vcr"}')
    for name in ("broken.json", "absent.json"):
        with pytest.raises(DatasetError):
            read_id_list(tmp_path / name)
