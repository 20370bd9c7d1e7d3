"""What a dry run says: rows of a sample, sizes by a teacher's card, and when a cache pays."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import advl, printed
from dataset_mirrors import write_vqa
from hypothesis import assume, given
from hypothesis import strategies as st
from own_rows import answer_row, class_row, write_json_lines
from scipy.sparse import csr_array
from tiny_extraction import TinyDataset, TinyImageTower, TinyTextTower, tiny_config, tiny_extract

from advl_cli.extract import when_it_pays
from advl_pipeline.confidence import probe
from advl_pipeline.confidence.forecast import EVALUATIONS
from advl_pipeline.confidence.probe import Kind, ProbeData, cross_fitted_confidence
from advl_pipeline.extraction import run
from advl_pipeline.extraction.forecast import Estimate, payback, uses_per_epoch
from advl_pipeline.extraction.sources import image_tokens_of
from advl_pipeline.teachers.registry import CATALOGUE

NUM_QUESTIONS, NUM_PICTURES = 90, 30
COUNTS = st.integers(1, 10**6)


def test_a_dry_run_counts_a_sample_says_when_a_cache_pays_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, cache = tmp_path / "data", tmp_path / "caches" / "cache"
    result = tiny_extract(data, cache, dry_run=True)
    uses = uses_per_epoch(TinyDataset(data))
    live = sum((item.seconds or 0.0) / item.num_units * uses[item.modality] for item in result.estimates)
    assert result.payback.live == pytest.approx(live)
    assert "live teacher" in when_it_pays(result.payback)
    monkeypatch.setattr(run, "FORECAST_TEXTS", 7)
    # Where nothing can be written, there is no speed to tell it from.
    monkeypatch.setattr(run, "disk_speed", lambda root: None)
    sampled = tiny_extract(data, cache, dry_run=True)
    assert sampled.payback is None
    assert not cache.parent.exists()
    written = tiny_extract(data, cache)
    assert written.payback is None
    for exact, some, real in itertools.zip_longest(result.estimates, sampled.estimates, written.estimates):
        assert exact.num_units == some.num_units == real.num_units
        assert exact.num_token_rows == real.num_token_rows
        assert some.num_token_rows == pytest.approx(real.num_token_rows, rel=0.2)
        assert exact.num_bytes > 0
        # Trial batches tell the time of a plan; whoever encodes anyway does not pay for them.
        assert (exact.seconds is None, real.seconds) == (False, None)
    assert result.estimates[1].num_shards > 1
    image, text = sampled.estimates
    assert (image.num_counted, text.num_counted) == (image.num_units, 7)
    assert text.num_units > 7
    size = sum(path.stat().st_size for path in cache.rglob("c/**/*") if path.is_file())
    assert size == pytest.approx(sum(item.num_bytes for item in result.estimates), rel=0.6)


def test_a_dry_run_encodes_one_batch_of_each_modality_after_one_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    for tower in (TinyImageTower, TinyTextTower):

        def encode(self: Any, units: Any, encode: Any = tower.encode) -> Any:
            sizes.append(len(units))
            return encode(self, units)

        monkeypatch.setattr(tower, "encode", encode)
    tiny_extract(tmp_path / "data", tmp_path / "cache", dry_run=True, batch_size=2)
    assert sizes == [1, 2, 1, 2]


def test_a_dry_run_has_a_line_for_confidences_if_there_will_be_any(capsys: pytest.CaptureFixture[str]) -> None:
    write_json_lines(Path("answers.jsonl"), [answer_row(number) for number in range(40)])
    write_json_lines(Path("unlabelled.jsonl"), [class_row(number, label=...) for number in range(40)])
    asked = ("extract", "--teacher", "minilm-l6", "--dry-run", "--data")
    assert "confidences: about " in printed(capsys, *asked, "answers.jsonl")[0]
    for words in (("answers.jsonl", "--confidence", "none"), ("unlabelled.jsonl",)):
        said, _ = printed(capsys, *asked, *words)
        assert "confidences" not in said
        assert "would write" in said


@pytest.mark.parametrize("kind", ["choice", "classes", "soft-labels"])
def test_a_forecast_counts_on_about_as_many_evaluations_as_a_fit_needs(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = np.random.default_rng(0)
    num_classes = 0 if kind == "choice" else 20
    features_NCF = draw.normal(size=(200, 1 if num_classes else 4, 24)).astype(np.float32)
    label_N = features_NCF[:, :, 0].argmax(1) if kind == "choice" else features_NCF[:, 0, :num_classes].argmax(1)
    data = ProbeData(
        kind=kind,
        features_NCF=features_NCF,
        valid_NC=np.ones(features_NCF.shape[:2], np.bool_),
        label_N=label_N,
        score_NK=csr_array(np.eye(num_classes, dtype=np.float32)[label_N]) if kind == "soft-labels" else None,
        num_classes=num_classes,
    )
    counted = []
    fit = probe.fit_logistic

    def counting(features: Any, likelihood: Any, **options: Any) -> Any:
        return fit(features, lambda scores: counted.append(1) or likelihood(scores), **options)

    monkeypatch.setattr(probe, "fit_logistic", counting)
    cross_fitted_confidence(data, np.arange(200) % 5)
    assert EVALUATIONS[kind] / 2 < len(counted) / 5 < 2 * EVALUATIONS[kind]


def test_boxes_of_the_first_picture_spare_opening_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, config = TinyDataset(tmp_path), tiny_config(tmp_path / "cache", confidence="probe")
    assert not len(dataset[0].image.boxes_R4)
    assert image_tokens_of(config, dataset) == "boxes"
    boxed = next(example for example in map(dataset.__getitem__, range(len(dataset))) if len(example.image.boxes_R4))
    monkeypatch.setattr(TinyDataset, "__getitem__", lambda self, index: boxed)
    monkeypatch.delattr(TinyDataset, "image_units")
    assert image_tokens_of(config, dataset) == "boxes"


def of_units(modality: str, units: int, seconds: float, num_bytes: int) -> Estimate:
    counts = {"num_units": units, "num_counted": units, "num_token_rows": units, "num_shards": 1}
    return Estimate(modality=modality, num_bytes=num_bytes, seconds=seconds, **counts)


@given(units=COUNTS, repeats=st.integers(1, 50), ms=st.integers(1, 10**4), size=COUNTS, speed=st.integers(1, 10**4))
def test_it_pays_from_that_epoch_on_and_not_before(units: int, repeats: int, ms: int, size: int, speed: int) -> None:
    estimate = of_units("image", units, units * ms / 1e3, units * size)
    found = payback([estimate], {"image": units * repeats, "text": 40}, (speed * 1e6, speed * 1e6))
    assert found.live == pytest.approx(repeats * units * ms / 1e3)
    assert found.cached == pytest.approx(repeats * units * size / (speed * 1e6))
    if found.epochs is None:
        assert found.live <= found.cached
        assert when_it_pays(found).startswith("break-even: never (cache ")
        return
    assume(found.live - found.cached > 1e-6 * found.live)

    def gain(epochs: int) -> float:
        return epochs * (found.live - found.cached) - found.once

    rounding = 1e-6 * (found.once + found.epochs * found.live)
    assert gain(found.epochs) > -rounding
    assert gain(found.epochs - 1) <= rounding


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mirror")
    write_vqa(folder, count=NUM_QUESTIONS)
    return folder


@pytest.fixture(autouse=True)
def _nothing_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No hub answers and its cache is empty, wherever this test runs."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)


def test_without_the_weights_the_teachers_card_tells_units_and_bytes(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("extract", "--teacher", "clip-vit-l", "--dataset", "vqa-v2", "--data-root", data, "--dry-run")
    code, told, errors = advl(capsys, *asked)
    assert code == 0, errors
    for words in (
        f"image: {NUM_PICTURES} units, {NUM_PICTURES * 12 * 12} token rows",
        "(by the number of words)",
        "not measured, the weights are not on this machine",
        f"hf download {CATALOGUE['clip-vit-l'].source_id}",
    ):
        assert words in told
    found = json.loads(advl(capsys, *asked, "--json")[1])
    image, text = found["estimates"]
    cells = NUM_PICTURES * 12 * 12 * CATALOGUE["clip-vit-l"].grid_dim * 2
    # Beside the cells, in whole chunks: a global feature of each picture, and what is kept of each channel.
    assert cells < image["num_bytes"] < 1.3 * cells
    assert text["seconds"] is None
    # "Is it number 17?" is of four words and a mark.
    assert text["num_token_rows"] == text["num_units"] * 6
    assert found["free_bytes"] > 0
    assert not Path("caches").exists()

    def rows(teacher: str, *options: object) -> list[int]:
        words = (*asked[:2], teacher, *asked[3:], "--json", *options)
        return [item["num_token_rows"] for item in json.loads(advl(capsys, *words)[1])["estimates"]]

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
