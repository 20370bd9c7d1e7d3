"""Whatever is done to a file, a reader gives the true items or an error that names the file: nothing else escapes."""

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
from dataset_mirrors import vcr_metadata, vcr_record, write_snli_ve, write_vcr, write_vqa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from region_mirrors import SIZE, WRITERS

from advl_pipeline.base.errors import DatasetError
from advl_pipeline.datasets.problems import OnError
from advl_pipeline.datasets.records import Example
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.evaluation.config import ScoreSnliVeConfig, ScoreVcrConfig, ScoreVqaConfig
from advl_pipeline.evaluation.scoring import run_score_snli_ve, run_score_vcr, run_score_vqa
from advl_pipeline.extraction.imports.tower import open_regions

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


@pytest.fixture(scope="module")
def scorers() -> list[Callable[[Path], object]]:
    """Score a file as answers to VQA, as scores of VCR's choices, as labels of SNLI-VE."""
    vqa, vcr = ASSETS / "vqa_eval", ASSETS / "vcr" / "val.jsonl"
    questions = vqa / "v2_OpenEnded_mscoco_synthetic_questions.json"
    annotations = vqa / "v2_mscoco_synthetic_annotations.json"
    return [
        lambda file: run_score_vqa(ScoreVqaConfig(questions=questions, annotations=annotations, results=file)),
        lambda file: run_score_vcr(ScoreVcrConfig(annotations=vcr, answers=file, rationales=file)),
        lambda file: run_score_snli_ve(ScoreSnliVeConfig(annotations=file, results=file)),
    ]


@fuzz
@given(value=anything, suffix=st.sampled_from([".json", ".jsonl", ".csv", ".npy"]))
def test_any_prediction_file(scorers: list[Callable[[Path], object]], value: Any, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"predictions{suffix}"
        file.write_text(json.dumps(value))
        for score in scorers:
            with pytest.raises(DatasetError) as caught:
                score(file)
            assert str(file) in caught.value.where or "nothing to score" in caught.value.what
