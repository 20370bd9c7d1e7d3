"""What commands say about data of one's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from own_rows import choice_row, class_row, write_json_lines

from advl_cli.finetune import split_to_score
from advl_cli.flags import say_what_it_is


@pytest.mark.parametrize(
    ("splits", "scored"),
    [
        (["train", "val", "test"], "test"),
        (["train", "val"], "val"),
        (["train", "dev"], "dev"),
        (["train"], "train"),
        (["train", "holdout"], "holdout"),
    ],
)
def test_the_next_command_scores_a_split_that_is_there(tmp_path: Path, splits: list[str], scored: str) -> None:
    rows = [choice_row(number, split=split) for number, split in enumerate(splits)]
    assert split_to_score(str(write_json_lines(tmp_path / "data.jsonl", rows)), None, trained_on="train") == scored


@pytest.mark.parametrize(
    ("trained_on", "scored"), [("train", "test"), ("train+test", "dev"), ("test", "dev"), ("train+test+dev", "train")]
)
def test_a_run_is_next_scored_on_a_split_that_it_did_not_see(trained_on: str, scored: str, tmp_path: Path) -> None:
    rows = [class_row(number, split=split) for number, split in enumerate(("train", "test", "dev"))]
    data = str(write_json_lines(tmp_path / "mine.jsonl", rows))
    assert split_to_score(data, None, trained_on=trained_on) == scored


def test_a_split_without_labels_is_not_scored(tmp_path: Path) -> None:
    rows = [class_row(0, split="train"), class_row(1, split="held"), class_row(2, split="test", label=None)]
    assert split_to_score(str(write_json_lines(tmp_path / "data.jsonl", rows)), None, trained_on="train") == "held"
    rows[0]["split"] = "first"
    assert split_to_score(str(write_json_lines(tmp_path / "more.jsonl", rows)), None, trained_on="train") == "first"


def test_known_datasets_keep_theirs_and_need_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    say_what_it_is(["vcr", "nothing-known"], None)
    assert capsys.readouterr() == ("", "")
    assert split_to_score("vcr", None, trained_on="train") == "val"
    assert split_to_score("scenes-vcr", None, trained_on="train") == "test"
