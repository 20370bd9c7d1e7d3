"""Every dataset keeps the promises of the contract, and the check tells when one does not."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from dataset_mirrors import vcr_record, write_snli_ve, write_vcr
from own_rows import COLOURS, answer_row, choice_row, class_row, write_json_lines, write_pictures

from advl_pipeline.datasets import cards
from advl_pipeline.datasets.cards import ReadOptions, load_card
from advl_pipeline.datasets.check import broken_promises, list_datasets, run_check
from advl_pipeline.datasets.config import CheckConfig
from advl_pipeline.datasets.indexed import IndexedDataset
from advl_pipeline.datasets.records import Example, ObjectTag
from advl_pipeline.datasets.registry import dataset_names, open_dataset, splits_of, tasks_of
from advl_pipeline.datasets.rows import Row, RowSource
from advl_pipeline.errors import ConfigError, DatasetError


def colours(root: Path) -> RowSource:
    """Reader of a package: rows that it makes itself, pictures below the folder of the datasets."""
    rows = [Row(choice_row(n, split=...), name=str(n), split="train" if n < 12 else "val") for n in range(20)]
    return RowSource(rows=lambda: iter(rows), pictures=root, version="colours 1")


def no_reader(root: Path) -> int:
    return 5


def install(monkeypatch: pytest.MonkeyPatch, name: str, function: str) -> None:
    """Have the readers of this file found as those of an installed package are."""
    point = EntryPoint(name=name, value=f"{__name__}:{function}", group=cards.ENTRY_POINT_GROUP)
    monkeypatch.setattr(EntryPoint, "load", lambda self: globals()[self.value.partition(":")[2]])
    monkeypatch.setattr(cards, "entry_points", lambda group: [point] if group == cards.ENTRY_POINT_GROUP else [])


@pytest.fixture(scope="module")
def mirrors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mirrors")
    write_vcr(root, [vcr_record(number) for number in range(8)])
    write_snli_ve(root, name="dev", count=8)
    return root


@pytest.mark.parametrize(("name", "split"), [("vcr", "val"), ("snli-ve", "val")])
def test_benchmarks(mirrors: Path, name: str, split: str) -> None:
    assert broken_promises(open_dataset(name, split=split, data_root=mirrors)) == []


@pytest.mark.parametrize("make", [choice_row, class_row, answer_row])
def test_own_data(tmp_path: Path, make: Callable[..., dict[str, Any]]) -> None:
    rows = [make(number, boxes=[[0, 0, 9, 9]]) for number in range(20)]
    data = str(write_json_lines(tmp_path / "data.jsonl", rows))
    assert [broken_promises(open_dataset(data, split=split)) for split in ("train", "test")] == [[], []]
    assert run_check(CheckConfig(name=data, deep=True)).usable


def test_a_reader_of_another_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "colours", "colours")
    with pytest.raises(DatasetError, match="malformed"):
        open_dataset("colours", split="train", data_root=tmp_path).image_units()
    write_pictures(tmp_path / "pictures")
    assert "colours" in dataset_names()
    assert (splits_of("colours", tmp_path), tasks_of("colours", tmp_path)) == (("train", "val"), ("choice",))
    dataset = open_dataset("colours", split="val", data_root=tmp_path)
    assert (len(dataset), dataset.example_ids[0]) == (8, "val-12")
    assert broken_promises(dataset) == []
    assert run_check(CheckConfig(name="colours", deep=True, data_root=tmp_path)).usable


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
    for split, count in (("train", 18), ("val", 2)):
        dataset = open_dataset("birds", split=split, data_root=tmp_path)
        assert (len(dataset), dataset.label_names("classes")) == (count, ("tit", "wren"))
        assert broken_promises(dataset) == []
    (tmp_path / "birds" / "list.txt").write_text("\n".join([*lines, "../x.png tit"]))
    with pytest.raises(DatasetError) as caught:
        open_dataset("birds", split="train", data_root=tmp_path)
    assert caught.value.where == f"{tmp_path / 'birds' / 'list.txt'}:21"


def test_an_entry_point_that_is_no_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "broken", "no_reader")
    with pytest.raises(ConfigError, match="'broken' is not one") as caught:
        open_dataset("broken", split="train", data_root=tmp_path)
    assert "returned int" in caught.value.why


def reworded(**changes: Any) -> dict[str, Any]:
    return {"candidates": lambda candidates: tuple(replace(one, **changes) for one in candidates)}


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"label": 7}, "the label of example 'train-1' is 7, there are 4"),
    ({"soft_label": ((0, 1.5),)}, "has a score outside (0, 1]"),
    ({"soft_label": ((0, 1.0), (0, 1.0))}, "names a class twice"),
    ({"example_id": "other"}, "example 0 is 'other', its id is listed as 'train-1'"),
    ({"candidates": lambda candidates: candidates[:1]}, "has 1 candidates"),
    ({"task": "classes"}, "is of task classes, the split has choice"),
    (reworded(tags=(ObjectTag(start=0, end=1, box=3),)), "a tag of example 'train-1' lies outside its text"),
    (reworded(context_length=9000), "context or question of example 'train-1' is longer than its text"),
    ({"image": lambda image: replace(image, unit_id="0")}, "the picture of example 'train-1' is no unit"),
]


def spoil(example: Example, changes: dict[str, Any]) -> Example:
    found = {name: value(getattr(example, name)) if callable(value) else value for name, value in changes.items()}
    return replace(example, **found)


@pytest.mark.parametrize(("changes", "told"), BROKEN)
def test_a_broken_promise_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], told: str
) -> None:
    data = write_json_lines(tmp_path / "data.jsonl", [choice_row(number) for number in range(4)])
    dataset = open_dataset(str(data), split="train")
    sound = IndexedDataset.__getitem__
    monkeypatch.setattr(IndexedDataset, "__getitem__", lambda self, index: spoil(sound(self, index), changes))
    assert any(told in broken for broken in broken_promises(dataset)), broken_promises(dataset)


def mine(split: str, root: Path, options: ReadOptions) -> IndexedDataset:
    """Open a benchmark of a package in the files of VCR, which lie elsewhere."""
    return open_dataset("vcr", split="val", data_root=root, tasks=options.tasks)


MINE = cards.Benchmark(
    name="mine", card=load_card("vcr"), tasks=("vcr-q2a",), splits=("only",), open=mine, common_name=lambda _, q: q
)


def test_a_benchmark_of_another_package(mirrors: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "mine", "MINE")
    assert "mine" in dataset_names()
    assert (splits_of("mine"), tasks_of("mine")) == (("only",), ("vcr-q2a",))
    assert broken_promises(open_dataset("mine", split="only", data_root=mirrors)) == []
    listed = {row.name: row for row in list_datasets(mirrors)}
    assert (listed["mine"].present, listed["mine"].splits) == (True, ("only",))
    with pytest.raises(ConfigError, match="no split 'val'"):
        open_dataset("mine", split="val", data_root=mirrors)
    monkeypatch.setattr(EntryPoint, "load", raise_import_error)
    with pytest.raises(ConfigError, match="'mine' cannot be imported") as caught:
        open_dataset("mine", split="only", data_root=mirrors)
    assert "no such module" in caught.value.why


def raise_import_error(point: EntryPoint) -> None:
    raise ImportError("no such module")
