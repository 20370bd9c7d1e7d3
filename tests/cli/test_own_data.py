"""What commands say about data of one's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from own_rows import class_row, write_json_lines

from advl_cli.flags import print_own_data
from advl_pipeline.datasets.registry import split_to_score


@pytest.mark.parametrize(
    ("labelled", "trained_on", "scored"),
    [
        ("train val test", "train", "test"),
        ("train val", "train", "val"),
        ("train dev", "train", "dev"),
        ("train", "train", "train"),
        ("train holdout", "train", "holdout"),
        ("first holdout", "train", "first"),
        ("train test dev", "train+test", "dev"),
        ("train test dev", "test", "dev"),
        ("train test dev", "train+test+dev", "train"),
    ],
)
def test_the_next_command_scores_a_labelled_split_that_the_run_did_not_see(
    labelled: str, trained_on: str, scored: str, tmp_path: Path
) -> None:
    rows = [class_row(number, split=split) for number, split in enumerate(labelled.split())]
    data = write_json_lines(tmp_path / "mine.jsonl", [*rows, class_row(9, split="sent", label=None)])
    assert split_to_score(str(data), None, trained_on=trained_on) == scored


def test_known_datasets_keep_theirs_and_need_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_own_data(["vcr", "nothing-known"], None)
    assert capsys.readouterr() == ("", "")
    assert split_to_score("vcr", None, trained_on="train") == "val"
    assert split_to_score("scenes-vcr", None, trained_on="train") == "test"
