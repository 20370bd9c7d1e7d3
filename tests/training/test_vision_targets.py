"""What of a vision teacher is distilled: what student and cache have in common, at the right places of a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import printed
from dataset_mirrors import write_vqa
from first_step import first_terms
from held_features import HeldFeatures
from live_teacher import teachers_run
from made_examples import unit
from own_rows import choice_row, write_json_lines
from PIL import Image
from run_logs import load_json
from small_corpus import SmallCorpus, signals_of
from tiny_chat_models import write_tiny
from torch import nn

from advl_pipeline.base.errors import ConfigError
from advl_pipeline.base.geometry import grid_rectangles
from advl_pipeline.cache.reader import open_cache
from advl_pipeline.datasets.records import Candidate, Example, text_unit
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.datasets.words import fit_word_prior
from advl_pipeline.distillation.settings import DistillationSettings
from advl_pipeline.distillation.signal import VisionSignal
from advl_pipeline.extraction.config import ExtractConfig
from advl_pipeline.extraction.prepare import prepare_extract
from advl_pipeline.extraction.run import run_extract
from advl_pipeline.students import generative
from advl_pipeline.students.chat_config import family_facts
from advl_pipeline.students.interface import Student, StudentBatch
from advl_pipeline.students.registry import build_student
from advl_pipeline.teachers.image_tower import PixelImageTower
from advl_pipeline.teachers.vision_backbone import ImageFeatures, PixelSettings, VisionBackbone
from advl_pipeline.training.landmarks.census import StudentAtStart
from advl_pipeline.training.signals.averages import TeacherGrid
from advl_pipeline.training.signals.stored_signals import SignalSource
from advl_pipeline.training.signals.teacher_features import TeacherFeatures, UnitFeatures
from advl_pipeline.training.signals.vision_targets import VisionChoice, choose_vision_targets


@pytest.fixture(scope="module")
def grid_cache(small_corpus: SmallCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """EfficientNet's grid on the small corpus, where boxes are the default."""
    output = tmp_path_factory.mktemp("grid") / "cache"
    return small_corpus.extract(output, teacher="efficientnet-lite0", image_tokens="grid")


def chosen(dataset: Any, cache: Path, student: Student, **settings: Any) -> tuple[list[Any], SignalSource]:
    decided = DistillationSettings(**settings)
    start = StudentAtStart(student=student, heads={}, settings=decided, source=signals_of(cache))
    return choose_vision_targets(start, dataset, range(len(dataset)))


@pytest.mark.parametrize(
    ("name", "kind", "wanted", "target", "places"),
    [
        ("scenes-small", "boxes", "auto", "regions", "regions"),
        ("scenes-small", "boxes", "both", "both", "regions"),
        ("scenes-small", "boxes", "image", "image", None),
        ("scenes-small", "grid", "auto", "regions", "regions"),
        ("scenes-small", "grid", "regions", "regions", "regions"),
        ("vilt-tiny", "boxes", "auto", "regions", "regions"),
        ("vilt-tiny", "grid", "auto", "regions", "patches"),
        ("vilt-tiny", "grid", "patches", "regions", "patches"),
        ("vilt-tiny", "grid", "both", "both", "patches"),
        ("clip-vil-tiny", "grid", "auto", "regions", "patches"),
    ],
)
def test_targets_are_what_student_and_cache_have(
    small_corpus: SmallCorpus, grid_cache: Path, name: str, kind: str, wanted: str, target: str, places: str | None
) -> None:
    cache = grid_cache if kind == "grid" else small_corpus.caches[1]
    (choice,), source = chosen(small_corpus.dataset(), cache, build_student(name), vision_target=wanted)
    assert (choice.target, choice.places) == (target, places)
    reads_places = target != "image"
    assert (source.teachers[0].image_places is not None) == reads_places
    assert ("region" in source.widths()[choice.teacher]) == reads_places
    if reads_places:
        assert 0 < choice.num_targets <= choice.num_places
        assert f"{choice.num_targets} of {choice.num_places} {places} have one" in choice.line()
        # Scenes are square pictures, of which a central crop at 7/8 still shows a part of every patch.
        assert choice.num_targets >= 0.5 * choice.num_places


class Silent(torch.nn.Module):
    """A student that says neither where its tokens lie nor which boxes they stand for."""

    def __init__(self, inner: Student, *, says_places: bool) -> None:
        super().__init__()
        self.inner = inner
        self.name = "silent"
        self.places = inner.places if says_places else None

    def collate(self, examples: Any) -> StudentBatch:
        batch = self.inner.collate(examples)
        places = batch.places_BR4 if self.places else None
        return replace(batch, places_BR4=places, box_index_NR=torch.full_like(batch.box_index_NR, -1))


@pytest.mark.parametrize(
    ("name", "kind", "wanted", "message"),
    [
        ("scenes-small", "boxes", "patches", "no features of patches"),
        ("scenes-small", "grid", "patches", "no features of patches"),
        ("vilt-tiny", "grid", "regions", "no features of regions"),
        ("silent", "grid", "auto", "cannot be aligned with silent"),
        ("silent", "grid", "both", "cannot be aligned with silent"),
        ("silent", "boxes", "regions", "A target needs regions that student and teacher share"),
        ("silent", "boxes", "both", "A target needs regions that student and teacher share"),
    ],
)
def test_what_they_do_not_have_is_refused(
    small_corpus: SmallCorpus, grid_cache: Path, name: str, kind: str, wanted: str, message: str
) -> None:
    cache = grid_cache if kind == "grid" else small_corpus.caches[1]
    student: Any = (
        Silent(build_student("scenes-small"), says_places=False) if name == "silent" else build_student(name)
    )
    with pytest.raises(ConfigError, match=message) as refused:
        chosen(small_corpus.dataset(), cache, student, vision_target=wanted)
    assert "--vision-target" in refused.value.next_command
    if "A target needs" in message:
        assert "--regions CACHE, an import" in refused.value.next_command
    assert refused.value.where


def test_regions_that_the_teacher_did_not_see_leave_the_picture(small_corpus: SmallCorpus) -> None:
    """A detector's regions and a cache of the dataset's boxes: auto takes the picture, and says so."""
    student: Any = Silent(build_student("scenes-small"), says_places=True)
    (choice,), _ = chosen(small_corpus.dataset(), small_corpus.caches[1], student)
    assert choice.target == "image"
    assert choice.num_targets == 0 < choice.num_places
    assert "the whole picture; 0 of" in choice.line()


@pytest.fixture(scope="module")
def strips(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Questions on long strips of a picture, and the grid of a teacher that is shown the middle of them alone."""
    folder = tmp_path_factory.mktemp("strips")
    rows = write_json_lines(folder / "mine.jsonl", map(choice_row, range(20)))
    for picture in (folder / "pictures").iterdir():
        Image.open(picture).resize((640, 32)).save(picture)
    run_extract(
        prepare_extract(
            ExtractConfig(
                teacher="efficientnet-lite0",
                dataset=str(rows),
                output=folder / "cache",
                image_tokens="grid",
                confidence="none",
            )
        )
    )
    return rows, folder / "cache"


def test_a_grid_that_covers_no_place_of_the_student_is_refused_or_the_picture_is_taken(
    strips: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, cache = strips
    words = ("finetune", "--data", rows, "--student", "vilt-tiny", "--cache", cache, "--method", "naive-kd")
    words = (*words, "--num-steps", 1, "--output", tmp_path / "run")
    _, said = printed(capsys, *words, "--vision-target", "patches", code=2)
    assert "A target needs patches that student and teacher share" in said
    assert "the teacher knows none" in said
    assert not (tmp_path / "run").exists()
    _, said = printed(capsys, *words)
    assert "vision target of efficientnet-lite0: the whole picture; 0 of " in said


def test_where_a_processor_tells_no_grid_the_whole_picture_is_followed_and_said(
    strips: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which of InternVL's tiles shows the whole picture is a fact that a type without a row lacks."""
    usual = replace(family_facts("no type", ""), lora={"rank": 4, "alpha": 4.0})
    monkeypatch.setattr(generative, "family_facts", lambda *_: usual)
    write_tiny("internvl", tmp_path)
    student = build_student("chat", weights=tmp_path)
    dataset = open_dataset(str(strips[0]), split="train")
    (choice,), read = chosen(dataset, strips[1], student)
    assert read.teachers[0].image_places is None
    assert "the whole picture alone, because nothing tells where the student's patches lie" in choice.line()
    with pytest.raises(ConfigError) as refused:
        chosen(dataset, strips[1], student, vision_target="patches")
    assert "nothing tells where they lie in " in refused.value.why


def test_a_text_pathway_reads_no_places(small_corpus: SmallCorpus, grid_cache: Path) -> None:
    choices, read = chosen(small_corpus.dataset(), grid_cache, build_student("vilt-tiny"), pathway="text")
    assert choices == []
    assert read.teachers[0].image_places is None


@pytest.mark.parametrize("distance", ["relational", "mse"])
def test_patches_learn_from_the_grid_and_controls_do_not(
    small_corpus: SmallCorpus, grid_cache: Path, tmp_path: Path, distance: str
) -> None:
    options = {"cache": (grid_cache,), "student": "vilt-tiny", "pathway": "vision", "distance": distance}
    options |= {"confidence": "none"}
    first = []
    for control in ("none", "shuffle-cells"):
        terms = first_terms(small_corpus.config(tmp_path / control, teacher_control=control, **options))
        assert min(terms["adapt/raw/vision"], terms["finetune/raw/vision"]) > 0
        first.append(terms["adapt/raw/vision"])
        settings = load_json(tmp_path / control / "settings.json")
        choice = settings["vision_targets"]["efficientnet-lite0"]
        assert (choice["target"], choice["places"]) == ("regions", "patches")
    assert len(set(first)) == 2


@pytest.mark.slow
def test_pictures_without_boxes_teach_patches_by_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An official layout, no option about it: the cache holds the grid, and the student's patches follow it."""
    write_vqa(tmp_path / "data", count=60, split="train")
    corpus = SmallCorpus(data_root=tmp_path / "data", caches=(tmp_path / "cache",))
    corpus.extract(tmp_path / "cache", teacher="efficientnet-lite0", dataset="vqa-v2")
    assert open_cache(tmp_path / "cache").identity["teacher"]["image_tokens"] == "grid"
    options = {"dataset": "vqa-v2", "task": (), "student": "vilt-tiny", "pathway": "vision", "confidence": "none"}
    cached = first_terms(corpus.config(tmp_path / "cached", adapt_texts=8, **options))
    with teachers_run(open_dataset("vqa-v2", split="train", data_root=tmp_path / "data")):
        live = first_terms(corpus.config(tmp_path / "live", adapt_texts=8, num_workers=1, **options))
    assert "vision target of efficientnet-lite0: patches;" in capsys.readouterr().err
    assert cached["adapt/raw/vision"] > 0
    assert cached == pytest.approx(live, rel=2e-2)


PATCH = 8
FRAMINGS = {
    "squash": {},
    "crop": {"short_edge": 64},
    "tight crop": {"short_edge": 80, "crop_rounding": "down"},
}
NO_BOXES = np.zeros((0, 4), np.float32)


class MeanColours(VisionBackbone):
    """A frozen network whose patches are the mean colours of the pixels under them."""

    def __init__(self, settings: PixelSettings) -> None:
        super().__init__(
            nn.AvgPool2d(PATCH), settings=settings, description={}, device=torch.device("cpu"), dtype=torch.float32
        )

    def features(self, pixels_NCHW: torch.Tensor) -> ImageFeatures:
        grid_NhwD = self.network(pixels_NCHW).permute(0, 2, 3, 1)
        return ImageFeatures(global_ND=grid_NhwD.mean(dim=(1, 2)), grid_NhwD=grid_NhwD)


def coordinates(folder: Path, size: tuple[int, int], boxes_R4: Any = NO_BOXES) -> Example:
    """A question on a picture whose red is the place from the left, and whose green is the place from the top."""
    width, height = size
    x = np.broadcast_to((np.arange(width) + 0.5) / width, (height, width))
    y = np.broadcast_to(((np.arange(height) + 0.5) / height)[:, None], (height, width))
    path = folder / f"{width}x{height}.png"
    colours = np.stack([255 * x, 255 * y, np.zeros_like(x)], axis=2)
    Image.fromarray(colours.round().astype(np.uint8)).save(path)
    return Example(
        example_id=path.name,
        task="vqa",
        image=unit(path, width, height, boxes_R4, name=path.name),
        candidates=(Candidate(text_unit=text_unit("What is it?")),),
        label=0,
    )


def seen(
    student_name: str, examples: Sequence[Example], *, kind: str = "grid", side: int | None = None, **framing: Any
) -> tuple[VisionSignal, StudentBatch, PixelSettings]:
    """What the loss sees of the colours, and the student's batch."""
    settings = PixelSettings(
        height=64, width=64, interpolation="bilinear", mean=(0.0,) * 3, std=(1.0,) * 3, **framing
    )
    tower = PixelImageTower(MeanColours(settings), kind, side)  # type: ignore[arg-type]
    units = [example.image for example in examples]
    encoded = tower.encode([tower.prepare(unit) for unit in units])
    names = [unit.unit_id for unit in units]
    rows, tokens = (dict(zip(names, values, strict=True)) for values in (encoded.global_ND, encoded.token_values))
    teacher = TeacherFeatures(
        name="colours",
        image=UnitFeatures(HeldFeatures(rows, tokens, moments=(0.0, 1.0))),  # type: ignore[arg-type]
        text=None,
        image_places=TeacherGrid.of_description(tower.describe()) if kind == "grid" else "boxes",
        aligned=False,
    )
    student = build_student(student_name)
    batch = student.collate(examples)
    source = SignalSource([teacher], prior=fit_word_prior(["What is it?"]))
    signal = source.signal(examples, batch, with_confidence=False, places=student.places)
    return signal.vision["colours"], batch, settings


@pytest.mark.parametrize("framing", FRAMINGS.values(), ids=FRAMINGS)
@pytest.mark.parametrize("name", ["vilt-tiny", "clip-vil-tiny", "modernvbert-tiny", "meter-tiny"])
def test_patches_get_the_colour_of_their_own_place(name: str, framing: dict[str, Any], tmp_path: Path) -> None:
    """To half a patch of the teacher; exactly, to rounding, where a target is made of whole patches."""
    examples = [coordinates(tmp_path, size) for size in ((160, 160), (200, 100), (120, 180))]
    signal, batch, settings = seen(name, examples, **framing)
    assert signal.regions_BSD is not None
    assert signal.shares_BSR is None
    assert not signal.region_mask_BS[batch.places_BR4.isnan().any(2)].any()
    assert signal.region_mask_BS.any()
    for example, places_R4, found_RD, mask_R in zip(
        examples, batch.places_BR4, signal.regions_BSD, signal.region_mask_BS, strict=True
    ):
        window = torch.tensor(settings.window(example.image.width, example.image.height))
        shown_R4 = torch.cat(
            [torch.maximum(places_R4[:, :2], window[:2]), torch.minimum(places_R4[:, 2:], window[2:])], 1
        )
        centre_R2 = shown_R4.view(-1, 2, 2).mean(1)
        half_patch = (window[2:] - window[:2]) * PATCH / 64 / 2
        error_R2 = (found_RD[:, :2] - centre_R2).abs()[mask_R]
        assert (error_R2 <= half_patch + 0.02).all()
        if "short_edge" not in framing or (
            example.image.width == example.image.height and framing["short_edge"] == 64
        ):
            # Four by four or two by two targets over eight by eight patches.
            assert mask_R[~places_R4.isnan().any(1)].all()
            assert error_R2.max() < 0.01


@pytest.mark.parametrize(("side", "kept"), [(4, 4), (3, 3), (8, 8), (12, 8)])
def test_a_grid_that_is_stored_smaller_lies_where_it_lay(side: int, kept: int, tmp_path: Path) -> None:
    """Eight by eight patches, averaged to fewer by area before they are stored."""
    example = coordinates(tmp_path, (150, 90))
    signal, batch, settings = seen("vilt-tiny", [example], side=side, **FRAMINGS["squash"])
    tower = PixelImageTower(MeanColours(settings), "grid", side)
    assert tower.num_tokens(example.image) == kept * kept
    assert tower.describe()["tokens"]["grid"] == [kept, kept]
    (patches_TD,) = tower.encode([tower.prepare(example.image)]).token_values
    centres = torch.from_numpy(grid_rectangles(kept, kept)).view(-1, 2, 2).mean(1)
    torch.testing.assert_close(patches_TD[:, :2], centres, atol=0.01, rtol=0)
    error = (signal.regions_BSD[0, 1:, :2] - batch.places_BR4[0, 1:].view(-1, 2, 2).mean(1)).abs()
    assert error.max() < 0.5 / kept


def test_a_detectors_boxes_are_averaged_from_the_grid(tmp_path: Path) -> None:
    boxes = np.array([[20, 10, 100, 90], [0, 0, 200, 100], [2, 2, 30, 98], [90, 40, 110, 60]], np.float32)
    examples = [coordinates(tmp_path, (200, 100), boxes), coordinates(tmp_path, (90, 90), boxes[:1] * 0.9)]
    signal, _, _ = seen("uniter-tiny", examples, **FRAMINGS["crop"])
    # The whole picture first; the teacher sees the middle half of the wide one: the third box lies outside.
    assert signal.region_mask_BS.tolist() == [[False, True, True, False, True], [False, True, False, False, False]]
    expected = torch.tensor([[0.375, 0.5], [0.5, 0.5], [0.5, 0.5]])
    torch.testing.assert_close(signal.regions_BSD[0, [1, 2, 4], :2], expected, atol=0.02, rtol=0)
    torch.testing.assert_close(signal.regions_BSD[1, 1, :2], torch.tensor([0.6, 0.5]), atol=0.02, rtol=0)


def test_patches_under_a_box_stand_for_it(tmp_path: Path) -> None:
    boxes = np.array([[0, 0, 80, 50], [70, 0, 110, 100]], np.float32)
    examples = [coordinates(tmp_path, (160, 100), boxes), coordinates(tmp_path, (64, 64))]
    signal, _, _ = seen("vilt-tiny", examples, kind="boxes", **FRAMINGS["crop"])
    assert signal.region_mask_BS.tolist() == [[True, True], [False, False]]
    assert signal.shares_BSR.sum(2).tolist() == [[pytest.approx(1.0), pytest.approx(1.0)], [0.0, 0.0]]
    grid_SRC = signal.shares_BSR[0, :, 1:].view(2, 4, 4)
    quarter = torch.zeros(4, 4)
    quarter[:2, :2] = 0.25
    torch.testing.assert_close(grid_SRC[0], quarter)
    # The second box lies over a quarter of the second column and three quarters of the third.
    torch.testing.assert_close(grid_SRC[1].sum(0), torch.tensor([0.0, 0.25, 0.75, 0.0]))


def test_a_cache_that_does_not_say_where_its_rows_lie_has_no_grid() -> None:
    assert TeacherGrid.of_description({"kind": "imported features"}) is None
    assert (
        TeacherGrid.of_description({"tokens": {"kind": "boxes"}, "pixels": {"size": [8, 8], "fit": "squash"}}) is None
    )


def test_a_run_says_which_teacher_covers_places_outside_a_central_crop() -> None:
    part, whole = (
        VisionChoice(
            teacher="t", target="regions", places="patches", num_targets=targets, num_places=10, num_pictures=2
        ).line()
        for targets in (6, 10)
    )
    assert "6 of 10 patches have one" in part
    assert "siglip2-b, covers the others" in part
    assert "squeezes" not in whole
