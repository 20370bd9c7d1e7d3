"""Every way in which a line, a picture or its boxes can be wrong is named with its place, or skipped and listed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dataset_mirrors import vcr_metadata, vcr_record, write_captions, write_snli_ve, write_vcr

from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.errors import DatasetError

LINE = 5
"""The one that is spoiled, from 0: it shares its picture with the line before it."""

MIRRORS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "vcr": ("val", lambda root: write_vcr(root, [vcr_record(number) for number in range(12)])),
    "snli-ve": ("test", write_snli_ve),
    "scenes-captions": ("train", write_captions),
}

BAD_FIELDS: list[tuple[str, dict[str, Any], str]] = [
    ("vcr", {"answer_label": 4}, "answer_label is 4"),
    ("vcr", {"rationale_label": -1}, "rationale_label is -1"),
    ("vcr", {"answer_label": True}, "answer_label is True"),
    ("vcr", {"answer_label": None}, "'answer_label' is missing"),
    ("vcr", {"img_fn": "../../etc/passwd.jpg"}, "leaves the dataset's folder"),
    ("vcr", {"img_fn": "/etc/passwd.jpg"}, "leaves the dataset's folder"),
    ("vcr", {"metadata_fn": "a/../../b.json"}, "leaves the dataset's folder"),
    ("vcr", {"annot_id": "val-0"}, "field 'id' is 'val-0', which {file}:1 has already"),
    ("vcr", {"question": [[9], "?"]}, "has tag 9, the picture has 4 objects"),
    ("vcr", {"question": [[-1], "?"]}, "has tag -1"),
    ("vcr", {"question": [[10004], "?"]}, "has tag 10004"),
    ("vcr", {"question": [{"a": 1}]}, "neither a word nor a list of tags"),
    ("vcr", {"question": []}, "has no words"),
    ("vcr", {"answer_choices": [["a"]] * 3}, "not a list of 4 choices"),
    ("vcr", {"rationale_choices": ["a"] * 4}, "not a list of tokens"),
    ("vcr", {"img_fn": "a.jpg", "objects": ["person", 3]}, "'objects' is not a list of texts"),
    ("vcr", {"img_fn": ["a.jpg"]}, "'img_fn' is not a text"),
    ("vcr", {"objects": ["person", "person", "wineglass", "cat"]}, "objects differ from those of another question"),
    ("snli-ve", {"gold_label": "-"}, "gold_label is '-'"),
    ("snli-ve", {"sentence2": ""}, "'sentence2'"),
    ("snli-ve", {"pairID": None, "Flickr30K_ID": "7"}, "'pairID'"),
    ("snli-ve", {"pairID": "1000000001.jpg#0r0n"}, "which {file}:1 has already"),
    ("snli-ve", {"Flickr30K_ID": "../1000000001"}, "leaves the dataset's folder"),
    ("snli-ve", {"Flickr30K_ID": "a\\b"}, "leaves the dataset's folder"),
    ("snli-ve", {"Flickr30K_ID": None, "Flikr30kID": None, "pairID": "no picture"}, "names no picture"),
    ("scenes-captions", {"caption_id": "c0"}, "train.jsonl:1 has already"),
    ("scenes-captions", {"image": "../x.jpg"}, "leaves the dataset's folder"),
    ("scenes-captions", {"boxes": [[1, 2, 50, 12], [20, 3, 30, 13]]}, "outside the picture"),
    ("scenes-captions", {"boxes": [[1, 2, 12, 12], [20, 3, 30, 13]]}, "boxes differ"),
    ("scenes-captions", {"caption": "a cat  and a red dog"}, "not in normal form"),
    ("scenes-captions", {"phrases": [{"start": 2, "end": 50, "box": 0}]}, "outside the caption"),
    ("scenes-captions", {"phrases": [{"start": 2, "end": 5, "box": 2}]}, "names no box"),
    ("scenes-captions", {"phrases": [{"start": "2"}]}, "not {{start, end, box}}"),
    ("scenes-captions", {"phrases": 5}, "not a list"),
]

BAD_LINES = [
    ('{"movie": "x", "obj', "the line is cut off"),
    ('{"movie": \udcff\udcfe}', "not UTF-8"),
    ("[1, 2]", "not an object"),
    ("{'movie': 1}", "not JSON"),
]


def refused_or_skipped(root: Path, name: str, spoil: Callable[[str], str], why: str) -> None:
    split, write = MIRRORS[name]
    file = write(root)
    whole = open_dataset(name, split=split, data_root=root)
    lines = file.read_text().splitlines()
    lines[LINE] = spoil(lines[LINE])
    file.write_text("\n".join(lines), encoding="utf-8", errors="surrogateescape")
    with pytest.raises(DatasetError) as caught:
        open_dataset(name, split=split, data_root=root)
    assert (caught.value.exit_code, caught.value.where) == (5, f"{file}:{LINE + 1}")
    assert why.format(file=file) in caught.value.why
    rest = open_dataset(name, split=split, data_root=root, on_error="skip")
    assert [problem.line for problem in rest.skipped] == [LINE + 1]
    step = len(whole.tasks)
    assert list(rest.example_ids) == [*whole.example_ids[: LINE * step], *whole.example_ids[(LINE + 1) * step :]]


@pytest.mark.parametrize(("name", "fields", "why"), BAD_FIELDS)
def test_a_bad_field_is_named_or_skipped(tmp_path: Path, name: str, fields: dict[str, Any], why: str) -> None:
    refused_or_skipped(tmp_path, name, lambda line: json.dumps(json.loads(line) | fields), why)


@pytest.mark.parametrize(("line", "why"), BAD_LINES)
def test_a_broken_line_is_named_or_skipped(tmp_path: Path, line: str, why: str) -> None:
    refused_or_skipped(tmp_path, "vcr", lambda _: line, why)


BAD_METADATA: list[tuple[dict[str, Any], str]] = [
    ({"boxes": [[0, 0, 90, 10, 1]] + [[0, 0, 1, 1, 1]] * 3}, "outside the picture of 64x48"),
    ({"boxes": [[9, 0, 3, 10, 1]] + [[0, 0, 1, 1, 1]] * 3}, "negative or no size"),
    ({"boxes": [[0, 0, float("nan"), 10, 1]] + [[0, 0, 1, 1, 1]] * 3}, "not four finite numbers"),
    ({"boxes": [[0, 0, 1, 1, 1]]}, "4 names and 1 boxes"),
    ({"names": ["person", "dog", "wineglass", "dog"]}, "not the objects of the annotations"),
    ({"width": 128, "height": 96}, "its boxes are for a picture of 128x96, the picture is 64x48"),
    ({"width": 0}, "width of the picture is 0"),
]
BAD_FILES: list[tuple[str, bytes | None, str]] = [
    *(
        ("metadata_fn", json.dumps(vcr_metadata(vcr_record(LINE)) | change).encode(), why)
        for change, why in BAD_METADATA
    ),
    ("metadata_fn", None, "is missing"),
    ("metadata_fn", b"[", "Expecting value"),
    ("img_fn", b"", "is empty"),
    ("img_fn", b"not a picture", "not a readable picture"),
    ("img_fn", None, "is missing"),
]


@pytest.mark.parametrize(("kind", "content", "why"), BAD_FILES, ids=[why for *_, why in BAD_FILES])
def test_a_bad_picture_or_its_bad_boxes_are_named_or_skipped(
    tmp_path: Path, kind: str, content: bytes | None, why: str
) -> None:
    annotations = write_vcr(tmp_path, [vcr_record(number) for number in range(12)])
    file = tmp_path / "vcr" / "vcr1images" / vcr_record(LINE)[kind]
    file.unlink() if content is None else file.write_bytes(content)
    dataset = open_dataset("vcr", split="val", data_root=tmp_path)
    with pytest.raises(DatasetError, match="malformed") as caught:
        dataset.image_units()
    assert why in caught.value.why
    # The row that shows the picture first.
    assert f"(used by {annotations}:{LINE})" in caught.value.why
    rest = open_dataset("vcr", split="val", data_root=tmp_path, on_error="skip")
    assert (len(rest), len(rest.skipped), len(rest.image_units())) == (20, 1, 5)
