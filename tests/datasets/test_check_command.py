"""`advl datasets`: what is there, what is missing, what is damaged; subsets others can reuse."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import advl, printed
from dataset_mirrors import vcr_record, write_vcr, write_vqa, write_vqa_cp

from advl_pipeline.datasets import spec
from advl_pipeline.datasets.cards import Card, load_card
from advl_pipeline.datasets.check import dataset_card, run_check
from advl_pipeline.datasets.config import CheckConfig
from advl_pipeline.datasets.lowshot import nested_subset, read_id_list
from advl_pipeline.datasets.registry import dataset_names, open_dataset


def test_what_is_there_and_what_is_missing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out, _ = printed(capsys, "datasets", "check", "vcr", "--data-root", tmp_path, code=5)
    assert out.count(" missing ") == len(load_card("vcr").splits)
    assert "next: advl datasets card vcr" in out
    write_vcr(tmp_path, [vcr_record(number) for number in range(6)])
    out, _ = printed(capsys, "datasets", "check", "vcr", "--data-root", tmp_path, "--json")
    splits = {split["split"]: split for split in json.loads(out)["splits"]}
    assert splits["train"]["status"] == "missing"
    val = splits["val"]
    assert (val["status"], val["num_items"], val["num_pictures"], val["problems"]) == ("differs", 6, 3, [])
    assert val["notes"] == [
        "items: 6 found, the card says 26,534",
        "pictures: 3 found, the card says 9,929",
    ]
    out, _ = printed(capsys, "datasets", "check", "vcr", "--data-root", tmp_path)
    assert "6 items, 3 pictures, 0 problems" in out
    assert str(tmp_path / "vcr" / "train.jsonl") in out


def test_damage_is_listed_and_counted_and_seen_in_pictures_by_deep(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    records = [vcr_record(number) for number in range(60)]
    file = write_vcr(tmp_path, records)
    pictures = tmp_path / "vcr" / "vcr1images"
    cut, metadata = pictures / records[32]["img_fn"], pictures / records[34]["metadata_fn"]
    cut.write_bytes(cut.read_bytes()[:-200])
    metadata.write_text(metadata.read_text().replace('"width": 64', '"width": 65'))
    words = ("datasets", "check", "vcr", "--split", "val", "--data-root", tmp_path)
    assert "60 items, 30 pictures, 0 problems" in printed(capsys, *words)[0]
    spoiled = [record | {"answer_label": 9} if number < 30 else record for number, record in enumerate(records)]
    file.write_text("".join(json.dumps(record) + "\n" for record in spoiled))
    (pictures / records[40]["img_fn"]).unlink()
    (pictures / records[42]["metadata_fn"]).write_bytes(b"")
    for deep, num_problems in ((), 32), (("--deep",), 34):
        out, _ = printed(capsys, *words, *deep, "--json", code=5)
        (val,) = json.loads(out)["splits"]
        assert (val["status"], len(val["problems"]), val["problems"][0]["line"]) == ("malformed", num_problems, 1)
    reasons = "\n".join(problem["why"] for problem in val["problems"])
    assert "truncated" in reasons.lower()
    assert "boxes are for a picture of 65x48" in reasons
    _, out, _ = advl(capsys, *words)
    assert "... 12 more (--json lists all)" in out


def test_a_broken_document_is_malformed_not_missing(tmp_path: Path) -> None:
    write_vqa(tmp_path, split="val")
    file = tmp_path / "vqa-v2" / "v2_mscoco_val2014_annotations.json"
    file.write_text(file.read_text()[:-5])
    (split,) = run_check(CheckConfig(name="vqa-v2", split=("val",), data_root=tmp_path))["splits"]
    assert split["status"] == "malformed"
    assert "cut off" in split["problems"][0].why


def test_every_dataset_has_a_card_and_is_listed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_vqa_cp(tmp_path)
    out, _ = printed(capsys, "datasets", "list", "--data-root", tmp_path, "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert set(rows) == set(dataset_names())
    assert rows["vqa-cp-v2"]["present"]
    assert not rows["vcr"]["present"]
    for name in dataset_names():
        assert dataset_card(name).title == rows[name]["title"]
        assert dataset_card(name).facts["licence"]
    code, out, _ = advl(capsys, "datasets", "card", "vcr")
    assert (code, rows["vcr"]["title"] in out) == (0, True)
    code, out, _ = advl(capsys, "datasets", "card", "scenes-vqa", "--json")
    assert json.loads(out)["licence"].strip().startswith("Artwork")


def test_the_card_of_a_plug_in_may_be_no_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = {"title": "Mine", "format": "mine", "folder": "mine", "splits": {"train": {"items": 3}}}
    card = Card(name="mine", facts=facts)
    mine = spec.DatasetSpec(name="mine", card=card, tasks=("classes",), splits=("train",), open=open_dataset)
    point = SimpleNamespace(name="mine", load=lambda: mine)
    monkeypatch.setattr(spec, "entry_points", lambda group: [point])
    code, out, _ = advl(capsys, "datasets", "card", "mine")
    assert (code, json.loads(out)) == (0, facts)


def test_unknown_names_list_the_near_ones(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (("card", "vcrr"), ("check", "vcrr"), ("check", "vcr", "--split", "vall")):
        assert "did you mean" in printed(capsys, "datasets", *words, code=2)[1]


def test_a_subset_is_written_for_reuse(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_vcr(tmp_path, [vcr_record(number) for number in range(32)])
    file = tmp_path / "subset.json"
    arguments = ["subset", "vcr", "--split", "val", "--shots", 8, "--seed", 1, "--output", file]
    out, _ = printed(capsys, "datasets", *arguments, "--data-root", tmp_path)
    assert "8 questions, 16 examples" in out
    dataset = open_dataset("vcr", split="val", data_root=tmp_path)
    assert read_id_list(file)[2] == nested_subset(dataset, 8, seed=1)
