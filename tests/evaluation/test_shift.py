"""Shifted sets: read as published, made where the project makes them, compared on the same questions."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commands import advl
from dataset_mirrors import snli_ve_record, write_lines, write_snli_ve, write_vqa_vs

from advl_data.scenes.generator.paths import SPLIT_CODES
from advl_pipeline.base.errors import DatasetError
from advl_pipeline.datasets.cards import card_names, load_card
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.evaluation.open_sets import sample_questions
from advl_pipeline.evaluation.shift import match_questions, original_of, question_namer, shift_drop


def test_vqa_vs_looks_for_its_pictures_in_both_folders(tmp_path: Path) -> None:
    write_vqa_vs(tmp_path, count=12)
    dataset = open_dataset("vqa-vs", split="ood-qt-kw", data_root=tmp_path)
    assert [unit.path.parent.name for unit in dataset.image_units()] == ["train2014", "val2014"]
    (tmp_path / "vqa-v2" / "val2014" / "COCO_val2014_000000007201.jpg").unlink()
    with pytest.raises(DatasetError) as caught:
        open_dataset("vqa-vs", split="ood-qt-kw", data_root=tmp_path).image_units()
    assert "000000007201.jpg is missing" in caught.value.why


def test_e_snli_ve_reads_its_csv(tmp_path: Path) -> None:
    write_snli_ve(tmp_path)
    file = tmp_path / "snli-ve" / "esnlive_test.csv"
    rows = [
        {
            "": str(number),
            "pairID": record["pairID"],
            "Flickr30kID": record["pairID"].partition("#")[0],
            "hypothesis": f'{record["sentence2"]} He says, "wait".',
            "gold_label": record["gold_label"],
            "explanation": "two\nlines",
        }
        for number, record in enumerate(map(snli_ve_record, range(6)))
    ]

    def write() -> None:
        with file.open("w", newline="", encoding="utf-8") as opened:
            writer = csv.DictWriter(opened, [*rows[0]])
            writer.writeheader()
            writer.writerows(rows)

    write()
    dataset = open_dataset("snli-ve", split="e-test", data_root=tmp_path)
    assert dataset.example_ids == tuple(row["pairID"] for row in rows)
    assert dataset[1].candidates[0].text == 'Two friends wait for bus 1. He says, "wait".'
    assert [dataset[index].label for index in range(3)] == [1, 2, 0]
    original = open_dataset("snli-ve", split="test", data_root=tmp_path)
    assert dataset[3].image.unit_id == original[3].image.unit_id
    rows[2]["gold_label"] = "unsure"
    write()
    with pytest.raises(DatasetError) as caught:
        open_dataset("snli-ve", split="e-test", data_root=tmp_path)
    assert caught.value.where == f"{file}:6"  # where the record begins: each spans two lines
    file.write_bytes(file.read_bytes().replace(b"bus 1", b"bus \xff"))
    dataset = open_dataset("snli-ve", split="e-test", data_root=tmp_path, on_error="skip")
    assert len(dataset) == 4
    assert "the line is not UTF-8" in [problem.why for problem in dataset.skipped]


def test_hard_pairs_are_those_of_a_published_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_snli_ve(tmp_path)
    code, _, err = advl(capsys, "datasets", "check", "snli-ve", "--split", "test-hard", "--data-root", tmp_path)
    assert (code, "snli_1.0_test_hard.jsonl" in err) == (5, False)
    ids = [snli_ve_record(number)["pairID"] for number in (4, 1)]
    listed = tmp_path / "snli-ve" / "snli_1.0_test_hard.jsonl"
    write_lines(listed, [{"pairID": name, "sentence1": "of SNLI"} for name in (*ids, "left out of SNLI-VE")])
    hard = open_dataset("snli-ve", split="test-hard", data_root=tmp_path)
    assert hard.example_ids == tuple(reversed(ids))
    code, out, _ = advl(capsys, "datasets", "check", "snli-ve", "--split", "test-hard", "--data-root", tmp_path)
    assert (code, "2 of 3 listed pairs are in this split" in out) == (0, True)
    write_lines(listed, [{"pairID": ids[0]}, {"pair": ids[1]}])
    with pytest.raises(DatasetError) as caught:
        open_dataset("snli-ve", split="test-hard", data_root=tmp_path)
    assert caught.value.where == f"{listed}:2"


def test_a_drop_is_over_the_same_questions() -> None:
    match = match_questions("vcr", "val", ("a", "b", "c", "d"), "rule-plural", ("d", "b", "a", "new"))
    drop = shift_drop(np.array([1.0, 1.0, 0.0, 0.0]), np.array([1.0, 0.0, 0.0, 1.0]), match)
    assert (drop.questions, drop.num_items) == ("same", 3)
    assert (drop.original, drop.shifted) == pytest.approx((200 / 3, 100 / 3))
    assert (drop.change.points, drop.change.relative_percent) == pytest.approx((-100 / 3, -50.0))
    assert drop.interval.contains(drop.change.points)
    assert 0.0 < drop.p_value <= 1.0
    with pytest.raises(DatasetError, match="in common"):
        shift_drop(np.zeros(1), np.ones(1), match_questions("vcr", "val", ("a",), "rule-plural", ("x",)))


def test_a_part_is_compared_with_the_whole() -> None:
    ids = [str(number) for number in range(200)]
    match = match_questions("vqa-v2", "val", ids, "ce-hard", ids[:50])
    whole_N = np.concatenate([np.tile([1.0, 0.0, 0.0, 0.0, 0.0], 10), np.tile([1.0, 1.0, 0.0], 50)])
    drop = shift_drop(whole_N, whole_N[:50], match)
    assert (drop.questions, drop.num_items, drop.p_value) == ("part", 50, None)
    assert (drop.original, drop.shifted, drop.change.points) == pytest.approx((55.0, 20.0, -35.0))
    # (1 - n / N) (part - rest), of two binomial means.
    spread = 0.75 * 100 * np.sqrt(0.2 * 0.8 / 50 + (2 / 9) / 150)
    ends = (-35.0 - 1.96 * spread, -35.0 + 1.96 * spread)
    assert (drop.interval.low, drop.interval.high) == pytest.approx(ends, abs=1.5)
    everything = shift_drop(whole_N, whole_N, match_questions("vqa-v2", "val", ids, "ce-hard", ids))
    assert everything.change.points == everything.interval.low == everything.interval.high == 0.0


@pytest.mark.parametrize(
    ("dataset", "original", "shifted", "questions"),
    [
        ("vcr", ("val", ["val-0", "val-1"]), ("rule-singular", ["val-1"]), "same"),
        ("snli-ve", ("test", ["7.jpg#0r1e", "8.jpg#0r1e"]), ("e-test", ["8.jpg#0r1e"]), "same"),
        ("snli-ve", ("test", ["7.jpg#0r1e", "8.jpg#0r1e"]), ("test-hard", ["8.jpg#0r1e"]), "part"),
        ("vqa-v2", ("val", ["70", "71"]), ("ce-hard", ["71"]), "part"),
        ("vqa-vs", ("test", ["70", "71"]), ("ood-qt", ["71"]), "part"),
        ("vqa-cp-v2", ("val", ["70", "71"]), ("test", ["72"]), "other"),
        ("scenes-vcr", ("test", ["test-0", "test-1"]), ("test-shift", ["test-shift-1"]), "same"),
        ("scenes-vcr", ("test", ["test-0", "test-1"]), ("test-unseen", ["test-unseen-1"]), "other"),
        ("scenes-vqa", ("test", ["3000000000", "3000000001"]), ("test-shift", ["4000000001"]), "same"),
        ("scenes-snli-ve", ("test", ["31.jpg#0r0e", "32.jpg#0r1n"]), ("test-shift", ["42.jpg#0r1n"]), "same"),
        ("vcr", ("val", ["val-0", "val-1"]), ("scenes-vcr/test", ["test-1"]), "other"),
    ],
)  # fmt: skip
def test_sets_are_matched_as_their_cards_say(
    dataset: str, original: tuple[str, list[str]], shifted: tuple[str, list[str]], questions: str
) -> None:
    found, original_n, shifted_n = match_questions(dataset, *original, *shifted)
    expected = ([], []) if questions == "other" else ([1], [0])
    assert (found, original_n.tolist(), shifted_n.tolist()) == (questions, *expected)


def test_cards_say_what_a_shifted_set_shifts_and_compares_with() -> None:
    assert original_of("vqa-v2", "snli-ve/test-hard") == "snli-ve/test"
    assert original_of("scenes-vqa", "test-shift") == "test"
    assert original_of("scenes-vqa", "test-shift@letters") == "test@letters", "scores of one way are compared"
    assert original_of("vcr", "val") is None
    shifted = 0
    for name in card_names():
        card = load_card(name)
        for split, facts in card.splits.items():
            if "compare_with" in facts:
                assert facts["compare_with"] in card.splits, f"{name} {split}"
                assert facts["shift"]
                shifted += 1
    assert shifted >= 20


def test_samples_of_sets_that_ask_the_same_questions_are_of_the_same_questions() -> None:
    ids: dict[str, Callable[[str, int], str]] = {
        "scenes-vcr": lambda split, number: f"{split}-{number}:vcr-q2a",
        "scenes-vqa": lambda split, number: f"{SPLIT_CODES[split]}{number:09}",
        "scenes-snli-ve": lambda split, number: f"{SPLIT_CODES[split]}{number:05}.jpg#0r1e",
    }
    for dataset, name in ids.items():
        first, second = (
            list(
                sample_questions(
                    [name(split, number) for number in range(500)],
                    ("vcr-q2a",),
                    50,
                    name_of=question_namer(dataset, split),
                )
            )
            for split in ("test", "test-rephrased")
        )
        assert len(first) == 50
        assert first == second
