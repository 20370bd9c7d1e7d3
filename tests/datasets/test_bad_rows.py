"""Whatever is wrong with a line, a picture, its boxes or a file is named with its place, or skipped and listed."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_mirrors import vcr_metadata, vcr_record, write_captions, write_snli_ve, write_vcr, write_vqa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from own_rows import answer_row, changed, choice_row, class_row, write_json_lines
from region_mirrors import SIZE, WRITERS

from advl_pipeline.base.errors import DatasetError
from advl_pipeline.datasets.problems import OnError
from advl_pipeline.datasets.records import Example
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.extraction.imports.tower import open_regions

Changes = list[tuple[dict[str, Any], str]]

BENCHMARKS: dict[str, tuple[str, Callable[[Path], Path], Changes]] = {
    "vcr": (
        "val",
        lambda root: write_vcr(root, [vcr_record(number) for number in range(60)]),
        [
            ({"answer_label": 4}, "answer_label is 4"),
            ({"rationale_label": -1}, "rationale_label is -1"),
            ({"answer_label": True}, "answer_label is True"),
            ({"answer_label": None}, "'answer_label' is missing"),
            ({"img_fn": "../../etc/passwd.jpg"}, "leaves the dataset's folder"),
            ({"img_fn": "/etc/passwd.jpg"}, "leaves the dataset's folder"),
            ({"metadata_fn": "a/../../b.json"}, "leaves the dataset's folder"),
            ({"annot_id": "val-0"}, "field 'id' is 'val-0', which {file}:1 has already"),
            ({"question": [[9], "?"]}, "has tag 9, the picture has 4 objects"),
            ({"question": [[-1], "?"]}, "has tag -1"),
            ({"question": [[10004], "?"]}, "has tag 10004"),
            ({"question": [{"a": 1}]}, "neither a word nor a list of tags"),
            ({"question": []}, "has no words"),
            ({"answer_choices": [["a"]] * 3}, "not a list of 4 choices"),
            ({"rationale_choices": ["a"] * 4}, "not a list of tokens"),
            ({"img_fn": "a.jpg", "objects": ["person", 3]}, "'objects' is not a list of texts"),
            ({"img_fn": ["a.jpg"]}, "'img_fn' is not a text"),
            ({"objects": ["person", "person", "wineglass", "cat"]}, "objects differ from those of another question"),
        ],
    ),
    "snli-ve": (
        "test",
        lambda root: write_snli_ve(root, count=60),
        [
            ({"gold_label": "-"}, "gold_label is '-'"),
            ({"sentence2": ""}, "'sentence2'"),
            ({"pairID": None, "Flickr30K_ID": "7"}, "'pairID'"),
            ({"pairID": "1000000001.jpg#0r0n"}, "which {file}:1 has already"),
            ({"Flickr30K_ID": "../1000000001"}, "leaves the dataset's folder"),
            ({"Flickr30K_ID": "a\\b"}, "leaves the dataset's folder"),
            ({"Flickr30K_ID": None, "Flikr30kID": None, "pairID": "no picture"}, "names no picture"),
        ],
    ),
    "scenes-captions": (
        "train",
        lambda root: write_captions(root, count=60),
        [
            ({"caption_id": "c0"}, "train.jsonl:1 has already"),
            ({"image": "../x.jpg"}, "leaves the dataset's folder"),
            ({"boxes": [[1, 2, 12, 12], [20, 3, 30, 13]]}, "boxes differ"),
            ({"caption": "a cat  and a red dog"}, "not in normal form"),
            ({"phrases": [{"start": 2, "end": 50, "box": 0}]}, "outside the caption"),
            ({"phrases": [{"start": 2, "end": 5, "box": 2}]}, "names no box"),
            ({"phrases": [{"start": "2"}]}, "not {{start, end, box}}"),
            ({"phrases": 5}, "not a list"),
        ],
    ),
}

DIGITS = "1" * 5_000
"""More digits than Python converts to a number."""

BAD_LINES = [
    ('{"movie": "x", "obj', "the line is cut off"),
    ('{"movie": \udcff\udcfe}', "not UTF-8"),
    ("[1, 2]", "not an object"),
    ("{'movie': 1}", "not JSON"),
]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_bad_lines_are_named_or_skipped(tmp_path: Path, name: str) -> None:
    split, write, changes = BENCHMARKS[name]
    file = write(tmp_path)
    whole = open_dataset(name, split=split, data_root=tmp_path)
    lines, expected = file.read_text().splitlines(), {}
    # A spoiled line shares its picture with the sound one before it.
    for place, (fields, why) in enumerate(changes):
        lines[2 * place + 1] = json.dumps(json.loads(lines[2 * place + 1]) | fields)
        expected[2 * place + 2] = why.format(file=file)
    for place, (line, why) in enumerate(BAD_LINES, start=len(changes)):
        lines[2 * place + 1] = line
        expected[2 * place + 2] = why
    file.write_text("\n".join(lines), encoding="utf-8", errors="surrogateescape")
    with pytest.raises(DatasetError) as caught:
        open_dataset(name, split=split, data_root=tmp_path)
    assert (caught.value.exit_code, caught.value.where) == (5, f"{file}:2")
    assert expected[2] in caught.value.why
    rest = open_dataset(name, split=split, data_root=tmp_path, on_error="skip")
    assert [problem.line for problem in rest.skipped] == list(expected)
    for problem in rest.skipped:
        assert expected[problem.line] in problem.why
    step = len(whole.tasks)
    kept = [place for place in range(len(whole)) if place // step + 1 not in expected]
    assert list(rest.example_ids) == [whole.example_ids[place] for place in kept]


RED, ASKED = "pictures/red.png", {"role": "user", "content": "<image>What?"}
REPLY = {"role": "assistant", "content": "red"}


def conversation(number: int, **changes: Any) -> dict[str, Any]:
    return changed({"images": [RED], "messages": [ASKED, REPLY]}, changes)


OWN_ROWS: dict[str, tuple[Callable[..., dict[str, Any]], Changes]] = {
    "choice": (
        choice_row,
        [
            ({"label": 9}, "field 'label' is 9, expected a position from 0 to 3, one of the texts, or a letter"),
            ({"label": True}, "field 'label' is True"),
            ({"label": "pink"}, "field 'label' is 'pink'"),
            ({"choices": ["1", "2"], "label": "1"}, "ambiguous: '1' is a position and also the text"),
            ({"choices": ["a", "a"], "label": "a"}, "two choices read 'a'"),
            ({"choices": ["a", "b"], "label": "C"}, "or a letter from A on"),
            ({"image": ["a.png", "b.png"]}, "field 'image' holds 2 pictures, and an item is about one"),
            ({"choices": ["a"]}, "field 'choices' is ['a']"),
            ({"choices": ["a", 5]}, "field 'choices[1]' is 5"),
            ({"choices": ...}, "field 'choices' is missing"),
            ({"question": ""}, "field 'question' is ''"),
            ({"image": None}, "field 'image' is missing"),
            ({"image": "../outside.png"}, "leaves the pictures' folder"),
            ({"image": "/etc/x.png"}, "a name below it (your own data may hold a link to a folder elsewhere)"),
            ({"image": "/9j/4AAQ" * 9_000}, "it has 72,000 characters, as base64 has"),
            *(({name: "x/" * 9_000}, "x/x/") for name in ("split", "label")),
            ({"image": "pictures/pink.png"}, "pictures/pink.png is missing"),
            ({"id": ["x"]}, "field 'id' is ['x']"),
            ({"split": 1.5}, "field 'split' is 1.5"),
            *(({"split": name}, f"field 'split' is {name!r}") for name in ("a/b", "../esc", ".hidden", "a+b", "x\n")),
            ({"boxes": [[1, 2, 3]]}, "field 'boxes[0]' is [1, 2, 3]"),
            *(({"boxes": value}, f"field 'boxes' is {value!r}, expected a list") for value in ("", 0, False, {})),
            ({"boxes": "x" * 999}, "xxx..., expected a list"),
            ({"boxes": [["x" * 999]]}, "xxx..., expected [x1, y1, x2, y2]"),
            ({"choices": ["x" * 999, "y"], "label": "z"}, "a letter from A on: ['xxx"),
            ({"boxes": [[9, 2, 3, 4]]}, "expected x1 < x2 and y1 < y2"),
            ({"boxes": [[1, 2, 90, 4]]}, "is [1.0, 2.0, 90.0, 4.0], the picture is 64x48"),
            ({"boxes": [[1, 2, 9, 4]], "box_labels": []}, "one text for each of the 1 boxes"),
            ({"boxes": [[1, 2, 9, 4]], "question": "Why [he|1]?"}, "names box 1, the row has 1"),
            ({"boxes": [[1, 2, 9, 4]], "question": f"Why [he|{DIGITS}]?"}, "the row has 1"),
            ({"label": DIGITS}, "expected a position from 0 to 3"),
            ({"label": "\N{ARABIC-INDIC DIGIT ONE}"}, "expected a position from 0 to 3"),
            ({"boxes": [[1, 2, 9, 4]] * 1_001}, "1,001 boxes, and at most 1,000 are read; a card"),
            ({"choices": ["a"] * 1_001}, "a card can raise this: max_choices = 1001"),
            ({"question": "why [" * 25_000}, "125,000 characters, and at most 100,000 are read"),
            ({"rationales": ["a", "b"]}, "field 'rationale_label' is missing"),
            ({"choices": ..., "text": "x"}, "the row is of the kind classes (image, text, label)"),
        ],
    ),
    "classes": (
        class_row,
        [
            ({"label": [1]}, "field 'label' is [1]"),
            ({"label": None}, "field 'label' is missing, other rows of split 'train' have it"),
            ({"text": 7}, "field 'text' is 7"),
            (answer_row(3, text=...) | {"text": ..., "label": ...}, "the row is of the kind answers"),
        ],
    ),
    "conversations": (
        conversation,
        [
            ({"images": [RED, RED]}, "about 2 pictures, and an item is about one"),
            ({"images": ["../red.png"]}, "leaves the pictures' folder"),
            ({"images": ...}, "'image' is missing"),
            *(({"messages": turns}, "expected a list of {role, content}") for turns in ([], "hello")),
            ({"messages": "[oops"}, "begins like JSON but is not"),
            ({"messages": [REPLY]}, "answers nothing"),
            ({"messages": [ASKED, {"role": "tool", "content": "x"}]}, "is of the role 'tool'"),
            ({"messages": ["What?"]}, "expected {role, content}"),
            *(({"messages": [{"role": "user", "content": c}]}, "expected a text") for c in (3, [{"type": "video"}])),
        ],
    ),
    "answers": (
        answer_row,
        [
            ({"answers": {"red": 0}}, "texts with counts above 0"),
            ({"answers": []}, "texts with counts above 0"),
            ({"answer": "red"}, "'answers' and 'answer' are both there"),
        ],
    ),
}


@pytest.mark.parametrize("kind", OWN_ROWS)
def test_bad_rows_of_ones_own_are_named_by_file_line_and_field_or_left_out(tmp_path: Path, kind: str) -> None:
    make, changes = OWN_ROWS[kind]
    rows = [make(number, split="train") for number in range(3)]
    rows += [make(number, **{"split": "train"} | change) for number, (change, _) in enumerate(changes)]
    data = write_json_lines(tmp_path / "data.jsonl", rows)
    rest = open_dataset(str(data), split="train", on_error="skip")
    assert len(rest) == 3
    rest.image_units()
    whole = sorted(f"{problem.where} {problem.why}" for problem in rest.skipped)
    for line, (_, why) in enumerate(changes, start=4):
        assert any(why in problem and f"{data}:{line}" in problem.replace(")", " ") for problem in whole), (
            why,
            whole,
        )
    assert len(whole) == len(changes)
    assert max(map(len, whole)) < 500
    with pytest.raises(DatasetError) as caught:
        open_dataset(str(data), split="train")
    assert caught.value.exit_code == 5


BAD_METADATA: Changes = [
    (
        {"boxes": [[0, 0, 90, 10, 1]] + [[0, 0, 1, 1, 1]] * 3},
        "'boxes[0]' is [0.0, 0.0, 90.0, 10.0], the picture is 64x48",
    ),
    ({"boxes": [[9, 0, 3, 10, 1]] + [[0, 0, 1, 1, 1]] * 3}, "expected x1 < x2"),
    ({"boxes": [[0, 0, float("nan"), 10, 1]] + [[0, 0, 1, 1, 1]] * 3}, "'boxes[0]' is [0, 0, nan, 10], expected"),
    ({"boxes": [[0, 0, 1, 1, 1]]}, "4 names and 1 boxes"),
    ({"names": ["person", "dog", "wineglass", "dog"]}, "not the objects of the annotations"),
    ({"width": 128, "height": 96}, "its boxes are for a picture of 128x96, the picture is 64x48"),
    ({"width": 0}, "width of the picture is 0"),
]


def test_bad_pictures_and_their_bad_boxes_are_named_or_skipped(tmp_path: Path) -> None:
    records = [vcr_record(number) for number in range(40)]
    annotations = write_vcr(tmp_path, records)
    expected, spoilt = [], iter(records[2::2])
    bad: list[tuple[str, bytes | None, str]] = [
        *(
            ("metadata_fn", json.dumps(vcr_metadata(records[0]) | change).encode(), why)
            for change, why in BAD_METADATA
        ),
        ("metadata_fn", None, "is missing"),
        ("metadata_fn", b"[", "Expecting value"),
        ("img_fn", b"", "is empty"),
        ("img_fn", b"not a picture", "not a readable picture"),
        ("img_fn", None, "is missing"),
    ]
    for (kind, content, why), record in zip(bad, spoilt, strict=False):
        file = tmp_path / "vcr" / "vcr1images" / record[kind]
        file.unlink() if content is None else file.write_bytes(content)
        # The row that shows the picture first.
        expected.append((why, f"(used by {annotations}:{record['match_index'] + 1})"))
    with pytest.raises(DatasetError, match="malformed") as caught:
        open_dataset("vcr", split="val", data_root=tmp_path).image_units()
    assert all(part in caught.value.why for part in expected[0])
    rest = open_dataset("vcr", split="val", data_root=tmp_path, on_error="skip")
    assert (len(rest), len(rest.image_units())) == (2 * (40 - 2 * len(bad)), 20 - len(bad))
    for (why, where), problem in zip(expected, rest.skipped, strict=True):
        assert why in problem.why
        assert where in problem.why


# Whatever is done to a file, a reader gives the true items or an error that names it: nothing else escapes.

ASSETS = Path(__file__).parents[1] / "assets"

fuzz = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])

scalars = st.none() | st.booleans() | st.integers(-3, 20_000) | st.floats() | st.text(max_size=4)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=6,
)


@st.composite
def damages(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """Cut a file off, overwrite some of its bytes, or repeat a part of it."""
    kind = draw(st.sampled_from(["cut", "overwrite", "repeat"]))
    place, length = draw(st.floats(0, 1)), draw(st.integers(1, 12))
    noise = draw(st.binary(min_size=length, max_size=length))

    def damage(data: bytes) -> bytes:
        at = int(place * len(data))
        if kind == "cut":
            return data[:at]
        if kind == "overwrite":
            return data[:at] + noise + data[at + length :]
        return data[: at + length] + data[at:]

    return damage


@dataclass
class Mirror:
    """One split on disk, its annotation files, the field of their ids, and what it truly holds."""

    root: Path
    name: str
    split: str
    files: tuple[Path, ...]
    id_field: str

    def __post_init__(self) -> None:
        truth = self.read()
        assert truth is not None
        self.truth = truth

    @contextmanager
    def changed(self, file: Path, content: bytes) -> Iterator[None]:
        """Change one file for the length of a block."""
        original = file.read_bytes()
        file.write_bytes(content)
        try:
            yield
        finally:
            file.write_bytes(original)

    def read(self, on_error: OnError = "fail") -> dict[str, Example] | None:
        """Read everything; None when that is refused, as it should be, with an error that says where and why."""
        # Few questions make no vocabulary of their own.
        answers = self.root / "answers.json" if self.name == "vqa-v2" else None
        try:
            dataset = open_dataset(
                self.name, split=self.split, data_root=self.root, on_error=on_error, answers=answers
            )
            examples = [dataset[index] for index in range(len(dataset))]
            assert list(dataset.example_ids) == [example.example_id for example in examples]
            assert all(unit.text for unit in dataset.text_units())
            dataset.image_units()
            dataset.content_digest()
            dataset.question_table()
            return {example.example_id: example for example in examples}
        except DatasetError as error:
            refused = error
        assert refused.where
        assert refused.why or refused.next_command
        return None

    def is_true(self, example: Example) -> bool:
        true = self.truth[example.example_id]
        return (example.label, example.soft_label, example.candidates, example.image.unit_id) == (
            true.label,
            true.soft_label,
            true.candidates,
            true.image.unit_id,
        )


@pytest.fixture(scope="module")
def mirrors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Mirror]:
    root = tmp_path_factory.mktemp("mirrors")
    vcr = write_vcr(root, [vcr_record(number) for number in range(4)])
    for split in ("train", "val"):
        write_vqa(root, split=split, count=6)
    (root / "answers.json").write_text('["yes", "no", "red", "2"]', encoding="utf-8")
    stems = ("v2_OpenEnded_mscoco_val2014_questions", "v2_mscoco_val2014_annotations")
    vqa = tuple(root / "vqa-v2" / f"{stem}.json" for stem in stems)
    return {
        "vcr": Mirror(root, "vcr", "val", (vcr,), "annot_id"),
        "vqa": Mirror(root, "vqa-v2", "val", vqa, "question_id"),
        "snli_ve": Mirror(root, "snli-ve", "test", (write_snli_ve(root, count=4),), "pairID"),
    }


@fuzz
@given(damage=damages())
def test_damaged_annotation_files(mirrors: dict[str, Mirror], damage: Callable[[bytes], bytes]) -> None:
    for mirror in mirrors.values():
        with mirror.changed(mirror.files[-1], damage(mirror.files[-1].read_bytes())):
            mirror.read()
            mirror.read("skip")


ROW = 2
"""The record that is spoiled."""


@fuzz
@given(name=st.sampled_from(["vcr", "vqa", "snli_ve"]), data=st.data(), value=anything)
def test_any_value_in_any_field(mirrors: dict[str, Mirror], name: str, data: st.DataObject, value: Any) -> None:
    mirror = mirrors[name]
    file = data.draw(st.sampled_from(mirror.files))
    key = "questions" if "questions" in file.name else "annotations" if name == "vqa" else ""
    document = json.loads(file.read_text()) if key else None
    records = document[key] if document else [json.loads(line) for line in file.read_text().splitlines()]
    field = data.draw(st.sampled_from([*records[0], "unknown"]))
    touched = str(records[ROW][mirror.id_field])
    records[ROW][field] = value
    content = json.dumps(document) if document else "".join(json.dumps(record) + "\n" for record in records)
    with mirror.changed(file, content.encode()):
        mirror.read()
        left = mirror.read("skip") or {}
    # What is left of the others is still true, unless the record took one of their ids.
    for example_id, example in left.items():
        if example_id in mirror.truth and example_id.partition(":")[0] != touched and field != mirror.id_field:
            assert mirror.is_true(example)


@fuzz
@given(field=st.sampled_from(["names", "boxes", "segms", "width", "height"]), value=anything)
def test_any_value_in_any_field_of_vcr_metadata(mirrors: dict[str, Mirror], field: str, value: Any) -> None:
    record, vcr = vcr_record(0), mirrors["vcr"]
    file = vcr.root / "vcr" / "vcr1images" / record["metadata_fn"]
    with vcr.changed(file, json.dumps(vcr_metadata(record) | {field: value}).encode()):
        vcr.read()
        left = vcr.read("skip")
    assert left is not None
    assert all(vcr.is_true(left[name]) for name in ("val-2:vcr-q2a", "val-3:vcr-q2a"))
    for example in left.values():
        boxes = example.image.boxes_R4
        assert np.isfinite(boxes).all()
        assert (boxes[:, :2] < boxes[:, 2:]).all()


@fuzz
@given(damage=damages())
def test_damaged_pictures(mirrors: dict[str, Mirror], damage: Callable[[bytes], bytes]) -> None:
    vcr = mirrors["vcr"]
    picture = vcr.root / "vcr" / "vcr1images" / vcr_record(0)["img_fn"]
    with vcr.changed(picture, damage(picture.read_bytes())):
        vcr.read()
        vcr.read("skip")
        dataset = open_dataset("vcr", split="val", data_root=vcr.root, on_error="list")
        count, _, problems = dataset.picture_problems(deep=True)
    assert count == 2
    assert len(problems) <= 1


PICTURE = Path("COCO_val2014_000000000009.jpg")


@pytest.mark.parametrize(("form", "name"), [("butd-tsv", "9"), ("npz", PICTURE.stem), ("vl-bert-json", PICTURE.stem)])
@fuzz
@given(damage=damages())
def test_damaged_region_features(form: str, name: str, damage: Callable[[bytes], bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        opened = WRITERS[form](Path(folder) / "regions", [PICTURE])
        file = opened if opened.is_file() else next(opened.iterdir())
        file.write_bytes(damage(file.read_bytes()))
        try:
            regions = open_regions(opened, stack).read(name, width=SIZE[0], height=SIZE[1])
        except DatasetError:
            return
        assert np.isfinite(regions.values).all()
        assert regions.regions["boxes"].shape == (len(regions.values), 6)
