"""What 0.2 read is read the same: ids, labels, texts, boxes, low-shot cells and subsets, so that caches keep serving.

The numbers were written by the readers of 0.2, which had a class for each dataset. Pictures are left
out, since the bytes of a picture are those of a version of libjpeg.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from dataset_mirrors import vcr_record, write_snli_ve, write_vcr, write_vqa, write_vqa_cp
from own_rows import answer_row, choice_row, class_row, write_json_lines

from advl_pipeline.datasets.indexed import IndexedDataset
from advl_pipeline.datasets.lowshot import nested_subset
from advl_pipeline.datasets.registry import open_dataset

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
