"""What of a vision teacher is distilled: what student and cache have in common, said before the run begins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import printed
from dataset_mirrors import write_snli_ve, write_vqa
from first_step import first_terms
from live_teacher import teachers_run
from own_rows import choice_row, write_json_lines
from PIL import Image
from run_logs import load_json
from small_corpus import SmallCorpus, signals_of
from tiny_chat_models import write_tiny

from advl_pipeline.base.errors import ConfigError
from advl_pipeline.cache.reader import open_cache
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.distillation.settings import DistillationSettings
from advl_pipeline.extraction.config import ExtractConfig
from advl_pipeline.extraction.run import run_extract
from advl_pipeline.students import generative
from advl_pipeline.students.chat_pictures import family_facts
from advl_pipeline.students.interface import Student, StudentBatch
from advl_pipeline.students.registry import build_student
from advl_pipeline.training.signals.stored_signals import SignalSource
from advl_pipeline.training.signals.teaching import choose_vision_targets


@pytest.fixture(scope="module")
def grid_cache(small_corpus: SmallCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """EfficientNet's grid on the small corpus, where boxes are the default."""
    output = tmp_path_factory.mktemp("grid") / "cache"
    return small_corpus.extract(output, teacher="efficientnet-lite0", image_tokens="grid")


def chosen(small_corpus: SmallCorpus, cache: Path, student: Student, **settings: Any) -> tuple[Any, SignalSource]:
    dataset = small_corpus.dataset()
    (choice,), read = choose_vision_targets(
        DistillationSettings(**settings), student, dataset, range(len(dataset)), signals_of(cache)
    )
    return choice, read


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
    choice, source = chosen(small_corpus, cache, build_student(name), vision_target=wanted)
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
        ("scenes-small", "boxes", "patches", "There are no patches"),
        ("scenes-small", "grid", "patches", "There are no patches"),
        ("vilt-tiny", "grid", "regions", "There are no regions"),
        ("silent", "grid", "auto", "cannot be laid over what silent sees"),
        ("silent", "grid", "both", "cannot be laid over what silent sees"),
        ("silent", "boxes", "regions", "None of the student's regions has a target"),
        ("silent", "boxes", "both", "None of the student's regions has a target"),
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
        chosen(small_corpus, cache, student, vision_target=wanted)
    assert "--vision-target" in refused.value.next_command
    if "None of" in message:
        assert "--regions CACHE, an import" in refused.value.next_command
    assert refused.value.where


def test_regions_that_the_teacher_did_not_see_leave_the_picture(small_corpus: SmallCorpus) -> None:
    """A detector's regions and a cache of the dataset's boxes: auto takes the picture, and says so."""
    student: Any = Silent(build_student("scenes-small"), says_places=True)
    choice, _ = chosen(small_corpus, small_corpus.caches[1], student)
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
        ExtractConfig(
            teacher="efficientnet-lite0",
            dataset=str(rows),
            output=folder / "cache",
            image_tokens="grid",
            confidence=False,
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
    assert "None of the student's patches has a target" in said
    assert "none of which the teacher knows" in said
    assert not (tmp_path / "run").exists()
    _, said = printed(capsys, *words)
    assert "vision target of efficientnet-lite0: the whole picture; 0 of " in said


def test_where_a_processor_tells_no_grid_the_whole_picture_is_followed_and_said(
    strips: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which of InternVL's tiles shows the whole picture is a fact that a type without a row lacks."""
    usual = replace(family_facts("no type"), lora={"rank": 4, "alpha": 4.0})
    monkeypatch.setattr(generative, "family_facts", lambda _: usual)
    write_tiny("internvl", tmp_path)
    student = build_student("chat", weights=tmp_path)
    dataset = open_dataset(str(strips[0]), split="train")
    source = signals_of(strips[1])
    (choice,), read = choose_vision_targets(DistillationSettings(), student, dataset, range(len(dataset)), source)
    assert read.teachers[0].image_places is None
    assert "the whole picture; 0 of 0 patches" in choice.line()
    with pytest.raises(ConfigError) as refused:
        choose_vision_targets(DistillationSettings(vision_target="patches"), student, dataset, [0], source)
    assert "it sees 0 patches in 1 pictures" in refused.value.why


def test_a_text_pathway_reads_no_places(small_corpus: SmallCorpus, grid_cache: Path) -> None:
    dataset = small_corpus.dataset()
    settings = DistillationSettings(pathway="text")
    student, source = build_student("vilt-tiny"), signals_of(grid_cache)
    choices, read = choose_vision_targets(settings, student, dataset, [0], source)
    assert choices == []
    assert read.teachers[0].image_places is None


@pytest.mark.parametrize("distance", ["relational", "mse"])
def test_patches_learn_from_the_grid_and_controls_do_not(
    small_corpus: SmallCorpus, grid_cache: Path, tmp_path: Path, distance: str
) -> None:
    options = {"cache": (grid_cache,), "student": "vilt-tiny", "pathway": "vision", "distance": distance}
    options |= {"confidence": "none"}
    first = []
    for control in ("none", "shuffle-cells", "shift-grid"):
        terms = first_terms(small_corpus.config(tmp_path / control, teacher_control=control, **options))
        assert min(terms["adapt/raw/vision"], terms["finetune/raw/vision"]) > 0
        first.append(terms["adapt/raw/vision"])
        settings = load_json(tmp_path / control / "settings.json")
        choice = settings["vision_targets"]["efficientnet-lite0"]
        assert (choice["target"], choice["places"]) == ("regions", "patches")
    assert len(set(first)) == 3


def test_controls_of_cells_need_a_grid_that_is_read(
    small_corpus: SmallCorpus, grid_cache: Path, tmp_path: Path
) -> None:
    for changes, message in (
        ({"cache": small_corpus.caches}, "no grid whose cells"),
        ({"cache": (grid_cache,), "vision_target": "image"}, "no loss reads"),
        ({"cache": small_corpus.caches[:1]}, "no teacher has a grid of several cells"),
    ):
        with pytest.raises(ConfigError, match=message):
            small_corpus.run(tmp_path / "run", teacher_control="shift-grid", **changes)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("dataset", "write"), [("vqa-v2", write_vqa), ("snli-ve", write_snli_ve)])
def test_pictures_without_boxes_teach_patches_by_default(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, dataset: str, write: Any
) -> None:
    """An official layout, no option about it: the cache holds the grid, and the student's patches follow it."""
    split = {"split": "train"} if dataset == "vqa-v2" else {"name": "train"}
    write(tmp_path / "data", count=60, **split)
    corpus = SmallCorpus(data_root=tmp_path / "data", caches=(tmp_path / "cache",))
    corpus.extract(tmp_path / "cache", teacher="efficientnet-lite0", dataset=dataset)
    assert open_cache(tmp_path / "cache").identity["teacher"]["image_tokens"] == "grid"
    options = {"dataset": dataset, "task": (), "student": "vilt-tiny", "pathway": "vision", "confidence": "none"}
    cached = first_terms(corpus.config(tmp_path / "cached", adapt_texts=8, **options))
    with teachers_run(open_dataset(dataset, split="train", data_root=tmp_path / "data")):
        live = first_terms(corpus.config(tmp_path / "live", adapt_texts=8, num_workers=1, **options))
    assert "vision target of efficientnet-lite0: patches;" in capsys.readouterr().err
    assert cached["adapt/raw/vision"] > 0
    assert cached == pytest.approx(live, rel=2e-2)
