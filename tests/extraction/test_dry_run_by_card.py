"""`advl extract --dry-run` where the teacher's weights are not at hand: its card tells what the cache will take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import advl
from dataset_mirrors import write_vqa

from advl_pipeline.teachers.registry import CATALOGUE

NUM_QUESTIONS, NUM_PICTURES = 90, 30


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mirror")
    write_vqa(folder, count=NUM_QUESTIONS)
    return folder


@pytest.fixture(autouse=True)
def nothing_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No hub answers and its cache is empty, wherever this test runs."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)


def test_units_bytes_and_disk_come_from_the_card(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("extract", "--teacher", "clip-vit-l", "--dataset", "vqa-v2", "--data-root", data, "--dry-run")
    code, told, errors = advl(capsys, *asked)
    assert code == 0, errors
    assert f"image: {NUM_PICTURES} units, {NUM_PICTURES * 12 * 12} token rows" in told
    assert "(by the number of words)" in told
    assert "time of encoding: not measured, the weights are not here" in told
    assert f"hf download {CATALOGUE['clip-vit-l'].source_id}" in told
    assert "GB are free there" in told
    assert "times are of" not in told
    assert not Path("caches").exists()
    assert "image: counting tokens: 100%" in errors
    assert "text: counting tokens: 100%" in errors

    code, printed, errors = advl(capsys, *asked, "--json")
    assert code == 0, errors
    found = json.loads(printed)
    image, text, confidence = found["estimates"]
    cells = NUM_PICTURES * 12 * 12 * CATALOGUE["clip-vit-l"].grid_dim * 2
    # Beside the cells, in whole chunks: a global feature of each picture, and what is kept of each channel.
    assert cells < image["num_bytes"] < 1.3 * cells
    assert (text["num_counted"], text["margin"], text["seconds"]) == (0, None, None)
    # "Is it number 17?" is of four words and a mark.
    assert text["num_token_rows"] == text["num_units"] * 6
    assert confidence["num_units"] == NUM_QUESTIONS
    assert found["free_bytes"] > 0
    assert "not on this machine" in found["untimed"]


def test_options_change_what_the_card_tells(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def rows(teacher: str, *options: object) -> list[int]:
        asked = ("extract", "--teacher", teacher, "--dataset", "vqa-v2", "--data-root", data, "--dry-run", "--json")
        code, printed, errors = advl(capsys, *asked, "--no-confidence", *options)
        assert code == 0, errors
        return [item["num_token_rows"] for item in json.loads(printed)["estimates"]]

    both = rows("clip-vit-l")
    assert rows("random:clip-vit-l@3") == both
    assert rows("clip-vit-l", "--modality", "image", "--grid-side", 4) == [NUM_PICTURES * 16]
    assert rows("clip-vit-l", "--modality", "image", "--image-tokens", "none") == [0]
    assert rows("clip-vit-l", "--modality", "text", "--select-texts", 0.5)[0] < both[1]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--teacher", "clip-vit-l"), 6, "are not on this machine"),
        (("--teacher", "hf:nobody/has-a-card", "--dry-run"), 6, "are not on this machine"),
        (("--teacher", "clip-vit-l", "--weights", "nowhere", "--dry-run"), 6, "not where --weights says"),
        (("--teacher", "dinov2-b", "--modality", "text", "--dry-run"), 2, "has no text tower"),
    ],
    ids=["no dry run", "no card", "weights named", "no tower"],
)
def test_what_no_card_can_tell_is_refused(
    options: tuple[str, ...], code: int, message: str, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended, _, errors = advl(capsys, "extract", "--dataset", "vqa-v2", "--data-root", data, *options)
    assert (ended, message in errors) == (code, True), errors
    assert not Path("caches").exists()
