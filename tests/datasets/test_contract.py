"""Every dataset keeps what the rest of the project relies on, is read as 0.2 read it, and gives the same subsets."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import EntryPoint
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_mirrors import vcr_record, write_captions, write_snli_ve, write_vcr, write_vqa, write_vqa_cp
from hypothesis import given, settings
from hypothesis import strategies as st
from own_rows import COLOURS, answer_row, choice_row, class_row, refusal, write_json_lines, write_pictures

from advl_pipeline.base.errors import ConfigError, DatasetError
from advl_pipeline.datasets import spec
from advl_pipeline.datasets.cards import load_card
from advl_pipeline.datasets.check import list_datasets, run_check
from advl_pipeline.datasets.config import CheckConfig
from advl_pipeline.datasets.indexed import IndexedDataset
from advl_pipeline.datasets.lowshot import Subset, nested_subset, question_order, read_id_list, write_id_list
from advl_pipeline.datasets.problems import Malformed
from advl_pipeline.datasets.records import Example, QuestionTable, normalise_text
from advl_pipeline.datasets.registry import dataset_names, find_dataset, open_dataset
from advl_pipeline.datasets.rows import Item, Row, RowSource


def no_reader(root: Path) -> int:
    return 5


def install(monkeypatch: pytest.MonkeyPatch, name: str, function: str) -> None:
    """Have the readers of this file found as those of an installed package are."""
    point = EntryPoint(name=name, value=f"{__name__}:{function}", group=spec.ENTRY_POINT_GROUP)
    monkeypatch.setattr(EntryPoint, "load", lambda self: globals()[self.value.partition(":")[2]])
    monkeypatch.setattr(spec, "entry_points", lambda group: [point] if group == spec.ENTRY_POINT_GROUP else [])


@pytest.fixture(scope="module")
def mirrors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mirrors")
    write_vcr(root, [vcr_record(number) for number in range(8)])
    write_snli_ve(root, name="dev", count=8)
    write_captions(root)
    return root


def broken_promises(dataset: IndexedDataset) -> list[str]:
    """Return what a dataset does not keep of what the rest of the project relies on."""
    ids, examples = list(dataset.example_ids), [dataset[place] for place in range(len(dataset))]
    units = [unit.unit_id for unit in (*dataset.image_units(), *dataset.text_units())]
    texts = [candidate for example in examples for candidate in example.candidates]
    table = dataset.question_table()
    small, large = (nested_subset(dataset, size, seed=0) for size in (1, 2))

    def num_classes(example: Example) -> int:
        return len(dataset.label_names(example.task)) or len(example.candidates)

    kept = {
        "ids are unique, and found": [dataset.position(name) for name in ids] == [*range(len(examples))],
        "an example has the id that it is listed by": [example.example_id for example in examples] == ids,
        "units are unique": len(set(units)) == len(units),
        "pictures are units": {example.image.unit_id for example in examples} <= {*units},
        "texts are units": {text.text_unit.unit_id for text in texts} <= {*units},
        "labels are classes": all(0 <= (example.label or 0) < num_classes(example) for example in examples),
        "scores are in (0, 1]": all(0 < score <= 1 for example in examples for _, score in example.soft_label),
        "texts are normal": all(text.text and normalise_text(text.text) == text.text for text in texts),
        "context is a beginning": all(0 <= t.question_length <= t.context_length <= len(t.text) for t in texts),
        "tags name words and boxes": all(
            0 <= tag.start < tag.end <= len(text.text) and 0 <= tag.box < len(example.image.boxes_R4)
            for example in examples
            for text in example.candidates
            for tag in text.tags
        ),
        "the table holds all examples once": sorted(chain.from_iterable(table.example_ids)) == sorted(ids),
        "subsets are nested": large[: len(small)] == small,
        "it can be sent to another process": repr(list(pickle.loads(pickle.dumps(dataset)))) == repr(examples),
    }
    return [promise for promise, is_kept in kept.items() if not is_kept]


@pytest.mark.parametrize(("name", "split"), [("vcr", "val"), ("snli-ve", "val"), ("scenes-captions", "train")])
def test_benchmarks(mirrors: Path, name: str, split: str) -> None:
    assert broken_promises(open_dataset(name, split=split, data_root=mirrors)) == []


def test_the_data_root_is_the_one_given_else_of_the_environment_else_datasets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_snli_ve(tmp_path / "datasets")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ADVL_DATA", raising=False)
    assert len(open_dataset("snli-ve", split="test"))
    monkeypatch.setenv("ADVL_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(DatasetError, match="elsewhere"):
        open_dataset("snli-ve", split="test")
    assert len(open_dataset("snli-ve", split="test", data_root=Path("datasets")))


@pytest.mark.parametrize("make", [choice_row, class_row, answer_row])
def test_own_data(tmp_path: Path, make: Callable[..., dict[str, Any]]) -> None:
    rows = [make(number, boxes=[[0, 0, 9, 9]]) for number in range(20)]
    data = str(write_json_lines(tmp_path / "data.jsonl", rows))
    assert [broken_promises(open_dataset(data, split=split)) for split in ("train", "test")] == [[], []]


def test_the_reader_of_the_documentation_works_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "adding-a-dataset.md").read_text(encoding="utf-8")
    code = next(
        block for block in re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S) if "def open_birds" in block
    )
    made: dict[str, Any] = {}
    exec(compile(code, "adding-a-dataset.md", "exec"), made)
    monkeypatch.setitem(globals(), "open_birds", made["open_birds"])
    install(monkeypatch, "birds", "open_birds")
    write_pictures(tmp_path / "birds")
    lines = [f"{COLOURS[number % 5]}.png {('tit', 'wren')[number % 2]}" for number in range(20)]
    (tmp_path / "birds" / "list.txt").write_text("\n".join(lines))
    assert "birds" in dataset_names()
    found = find_dataset("birds", tmp_path)
    assert (found.splits, found.tasks) == (("train", "val"), ("classes",))
    for split, count in (("train", 18), ("val", 2)):
        dataset = open_dataset("birds", split=split, data_root=tmp_path)
        assert (len(dataset), dataset.label_names("classes")) == (count, ("tit", "wren"))
        assert broken_promises(dataset) == []
    assert run_check(CheckConfig(name="birds", deep=True, data_root=tmp_path)).usable
    (tmp_path / "birds" / "list.txt").write_text("\n".join([*lines, "../x.png tit"]))
    assert refusal("birds", data_root=tmp_path).where == f"{tmp_path / 'birds' / 'list.txt'}:21"


def checks_itself(root: Path, *, question: str = "Which?") -> RowSource:
    """Reader that hands over items, one of which it did not check."""
    items = [
        Item(item_id=str(n), image="red.png", texts=(question, "a", "b"), num_choices=2, label=np.int64(n))
        for n in (0, 1)
    ]
    rows = [Row(item, name=str(number), line=number) for number, item in enumerate(items)]
    with pytest.raises(Malformed, match="the label is 2, and there are 2 texts to choose from"):
        replace(items[0], label=2)
    return RowSource(rows=lambda: rows, pictures=root / "pictures", kind="choice", version=question)


def asks_otherwise(root: Path) -> RowSource:
    return checks_itself(root, question="Which is it?")


def test_a_reader_that_checks_its_rows_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(tmp_path / "pictures")
    identities = []
    for reader in ("checks_itself", "asks_otherwise"):
        install(monkeypatch, "itself", reader)
        opened = open_dataset("itself", split="train", data_root=tmp_path)
        assert broken_promises(opened) == []
        identities.append((opened.content_digest(), opened.identity_name))
    assert not {*identities[0]} & {*identities[1]}, "other texts are other data, whatever their pictures"


class WatchedItem(Item):
    """Item that a weak reference can follow."""


def has_many_rows(root: Path) -> RowSource:
    """Reader whose first rows are dropped before its last row is read."""

    def rows() -> Iterator[Row]:
        living: list[weakref.ref[Item]] = []
        for number in range(200):
            item = WatchedItem(
                item_id=str(number), image="red.png", texts=("Which?", "a", "b"), num_choices=2, label=0
            )
            living = [watched for watched in living if watched() is not None] + [weakref.ref(item)]
            assert len(living) < 10, "the rows of VCR would take half a gigabyte"
            yield Row(item, name=str(number), line=number)

    return RowSource(rows=rows, pictures=root / "pictures", kind="choice", version="1")


def test_rows_are_indexed_as_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(tmp_path / "pictures")
    install(monkeypatch, "many", "has_many_rows")
    assert len(open_dataset("many", split="train", data_root=tmp_path)) == 200


def test_an_entry_point_that_is_no_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "broken", "no_reader")
    error = refusal("broken", data_root=tmp_path)
    assert ("'broken' is no dataset reader" in error.what, "returned int" in error.why) == (True, True)


class Mine(spec.DatasetSpec):
    """A benchmark of a package in the files of VCR, which lie elsewhere."""

    def open(self, split: str, data_root: Path | None, options: spec.ReadOptions) -> IndexedDataset:
        return open_dataset("vcr", split="val", data_root=data_root, tasks=options.tasks)


MINE = Mine(name="mine", card=load_card("vcr"), tasks=("vcr-q2a",), splits=("only",))


def test_a_benchmark_of_another_package(mirrors: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "mine", "MINE")
    assert "mine" in dataset_names()
    assert find_dataset("mine") is MINE
    assert broken_promises(open_dataset("mine", split="only", data_root=mirrors)) == []
    listed = {row.name: row for row in list_datasets(mirrors)}
    assert (listed["mine"].present, listed["mine"].splits) == (True, ("only",))
    assert "no split 'val'" in refusal("mine", "val", data_root=mirrors).what


# What 0.2 read is read the same.

GOLDEN: dict[str, str] = json.loads((Path(__file__).parents[1] / "assets" / "golden_readers.json").read_text())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("golden")
    write_vcr(root, [vcr_record(number) for number in range(12)])
    write_vcr(root, [vcr_record(number, split="test", labelled=False) for number in range(5)], split="test")
    for split, count in (("train", 60), ("val", 30), ("test", 9)):
        write_vqa(root, split=split, count=count)
    write_snli_ve(root, name="dev", count=12)
    write_vqa_cp(root, count=300)
    for kind, make in (("choice", choice_row), ("class", class_row), ("answer", answer_row)):
        splits = ["train"] * 14 + ["val"] * 6
        boxes = [[0, 0, 9, 9], [1, 2, 5, 6]]
        rows = [make(number, split=split, boxes=boxes) for number, split in enumerate(splits)]
        write_json_lines(root / f"{kind}.jsonl", rows)
    return root


def digest_of(dataset: IndexedDataset) -> str:
    """Return a digest of all that a split says."""
    table, labels = dataset.question_table(), [dataset.label_names(task) for task in dataset.tasks]
    content: list[Any] = [list(dataset.example_ids), labels, nested_subset(dataset, 3, 0)]
    content += [table.cells.tolist(), list(table.strata), list(table.question_ids), table.by_class]
    content += [unit.unit_id for unit in dataset.text_units()]
    for place in range(len(dataset)):
        example = dataset[place]
        content += [example.label, example.soft_label, example.stratum, example.image.path.name]
        content += [example.image.boxes_R4.tolist(), example.image.box_labels]
        for candidate in example.candidates:
            tags = [(tag.start, tag.end, tag.box) for tag in candidate.tags]
            content.append((candidate.text, candidate.context_length, candidate.question_length, tags))
    if dataset.tasks == ("vqa",) and dataset.split != "test":
        truths = [dataset.ground_truth(name) for name in dataset.example_ids]
        content += [(truth.question_type, truth.answer_type, truth.answers, truth.entries) for truth in truths]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@pytest.mark.parametrize("asked", sorted(GOLDEN))
def test_what_was_read_is_read(root: Path, asked: str) -> None:
    name, split, *options = asked.split(" ")
    keywords: dict[str, Any] = dict(option.split("=") for option in options)
    here = {"data_root": root} if "." not in name else {}
    dataset = open_dataset(str(root / name) if "." in name else name, split=split, **here, **keywords)
    assert digest_of(dataset) == GOLDEN[asked]


# Low-shot subsets are nested, balanced, and depend on nothing but the seed and the questions' ids.


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
        with pytest.raises(ConfigError, match="A subset must have between 1 and"):
            nested_subset(dataset, shots, seed=0)


def test_id_lists_come_back_and_broken_ones_are_errors(tmp_path: Path) -> None:
    drawn = Subset(dataset="vcr", split="train", shots=2, seed=0, example_ids=("a:vcr-q2a", "b:vcr-q2a"))
    write_id_list(tmp_path / "lists" / "two.json", drawn)
    assert read_id_list(tmp_path / "lists" / "two.json") == drawn
    by_hand = {"dataset": "vcr", "split": "train", "example_ids": ["a"]}
    (tmp_path / "by-hand.json").write_text(json.dumps(by_hand), encoding="utf-8")
    assert read_id_list(tmp_path / "by-hand.json") == Subset(dataset="vcr", split="train", example_ids=("a",))
    (tmp_path / "broken.json").write_text('{"dataset": "vcr"}')
    for name in ("broken.json", "absent.json"):
        with pytest.raises(DatasetError):
            read_id_list(tmp_path / name)
