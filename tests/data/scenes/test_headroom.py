"""`advl scenes headroom`, and the student that is given its teachers' features as inputs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import printed
from small_corpus import SmallCorpus

from advl_data.scenes.config import HeadroomConfig
from advl_data.scenes.headroom import (
    GivenFeatures,
    Headroom,
    run_headroom,
)
from advl_pipeline.cache.reader import open_cache
from advl_pipeline.datasets.records import Candidate, Example, text_unit
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.distillation.signal import standardise
from advl_pipeline.errors import ConfigError, DatasetError
from advl_pipeline.extraction.config import ExtractConfig
from advl_pipeline.extraction.run import run_extract
from advl_pipeline.students.registry import build_student
from advl_pipeline.students.saved import save_student


def extract(corpus: SmallCorpus, output: Path, teacher: str, dataset: str, split: str) -> None:
    settings = {"teacher": teacher, "dataset": dataset, "split": split, "output": output, "confidence": False}
    run_extract(ExtractConfig(data_root=corpus.data_root, **settings))


@pytest.fixture(scope="module")
def corpus(small_corpus: SmallCorpus, tmp_path_factory: pytest.TempPathFactory) -> SmallCorpus:
    """The small corpus with caches of val too, and a student."""
    folder = tmp_path_factory.mktemp("headroom")
    more = [folder / teacher for teacher in ("minilm-l6", "efficientnet-lite0")]
    for output in more:
        extract(small_corpus, output, output.name, "scenes-vcr", "val")
    torch.manual_seed(0)
    save_student(folder / "student", build_student("scenes-small"), origin={})
    return replace(small_corpus, caches=(*small_corpus.caches, *more))


def config(corpus: SmallCorpus, output: Path, **changes: Any) -> HeadroomConfig:
    settings: dict[str, Any] = {
        "dataset": "scenes-vcr",
        "init": corpus.caches[-1].parent / "student",
        "cache": corpus.caches,
        "output": output,
        "data_root": corpus.data_root,
        "shots": 6,
        "seeds": 1,
        "num_steps": 2,
    }
    return HeadroomConfig(**{**settings, **changes})


@pytest.fixture(scope="module")
def measured(corpus: SmallCorpus, tmp_path_factory: pytest.TempPathFactory) -> tuple[Headroom, Path]:
    output = tmp_path_factory.mktemp("runs")
    return run_headroom(config(corpus, output)), output


def given(corpus: SmallCorpus) -> tuple[GivenFeatures, list[Example]]:
    dataset = open_dataset("scenes-vcr", split="val", data_root=corpus.data_root, tasks=("vcr-q2a",))
    student = build_student("given:scenes-small", overrides={"caches": [str(path) for path in corpus.caches]})
    assert isinstance(student, GivenFeatures)
    return student.eval(), [dataset[0], dataset[1]]


def test_a_student_that_is_given_features_cuts_and_counts_texts_as_it_does_alone(small_corpus: SmallCorpus) -> None:
    student, (example, _) = given(small_corpus)
    long = replace(example, candidates=(Candidate(text_unit=text_unit("why " * 100), context_length=0, tags=()),))
    with pytest.raises(DatasetError, match="this student takes 64"):
        student.text_tokens([long])
    student.cut_texts()
    assert student.max_text_length == 64
    assert student.count_cut([long, example]) == 1
    assert student.text_tokens([long])[0].shape == (1, 64)


def test_the_table_goes_from_chance_to_the_teachers_features_as_inputs(measured: tuple[Headroom, Path]) -> None:
    found, output = measured
    names = [row.name for row in found.rows]
    assert names == [
        "chance",
        "most frequent answer",
        "text only",
        "plain",
        "given the teachers' features",
    ]
    by_name = {row.name: row for row in found.rows}
    assert by_name["chance"].mean == 25.0
    assert (found.task, found.split) == ("vcr-q2a", "val")
    assert found.headroom == by_name["given the teachers' features"].mean - by_name["plain"].mean
    assert found.is_fit == (found.headroom >= 15.0)
    for name in ("text only", "plain", "given the teachers' features"):
        (run,) = by_name[name].runs
        stored = json.loads((run / "evaluation" / "val.json").read_text(encoding="utf-8"))
        assert by_name[name].per_seed == (stored["metrics"]["q2a"],)
        assert found.num_items == stored["num_items"]["q2a"]
        assert json.loads((run / "result.json").read_text(encoding="utf-8"))["num_labelled"] == 6
    (run,) = by_name["given the teachers' features"].runs
    assert json.loads((run / "student.json").read_text(encoding="utf-8"))["student"] == "given:scenes-small"
    assert run.parent == output


def test_finished_runs_are_read_and_the_command_tells_the_verdict(
    corpus: SmallCorpus, measured: tuple[Headroom, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    found, output = measured
    stamps = {path: path.stat().st_mtime_ns for path in output.rglob("model.safetensors")}
    asked = config(corpus, output)
    flags = ["--init", asked.init, "--output", output, "--data-root", corpus.data_root, "--shots", 6, "--seeds", 1]
    caches = [part for path in corpus.caches for part in ("--cache", path)]
    words = ("datasets", "headroom", "scenes-vcr", *flags, "--num-steps", 2, *caches)
    told, _ = printed(capsys, *words)
    assert f"{found.headroom:+.1f} points over plain" in told
    assert ("not fit for use" in told) == (not found.is_fit)
    assert stamps == {path: path.stat().st_mtime_ns for path in output.rglob("model.safetensors")}


def test_it_starts_as_the_student_itself_and_then_hears_of_words_and_regions(corpus: SmallCorpus) -> None:
    student, examples = given(corpus)
    batch, own = student.collate(examples), student.inner.collate(examples)
    with torch.no_grad():
        start = student.encode(batch)
        torch.testing.assert_close(start.pooled_NP, student.inner.encode(own).pooled_NP)
        for maps, changes_picture in ((student.word_maps, False), (student.region_maps, True)):
            (linear,) = maps
            torch.nn.init.normal_(linear.weight)
            told = student.encode(batch, mask_visual=True)
            before = student.inner.encode(own, mask_visual=True)
            texts, pictures = (
                [states[mask] for states in pair]
                for pair, mask in (
                    ((told.text_states_NLH, before.text_states_NLH), own.token_mask_NL),
                    ((told.visual_states_NRH, before.visual_states_NRH), own.visual_mask_NR),
                )
            )
            same_text, same_picture = (torch.allclose(*pair, atol=1e-5) for pair in (texts, pictures))
            assert (same_text, same_picture) == (changes_picture, not changes_picture)
            torch.nn.init.zeros_(linear.weight)


def test_each_token_hears_of_its_own_word_and_each_region_of_its_own_box(corpus: SmallCorpus) -> None:
    student, examples = given(corpus)
    batch = student.collate(examples)
    with torch.no_grad():
        for linear in (*student.word_maps, *student.region_maps):
            torch.nn.init.normal_(linear.weight)
        words_NLE, regions_NRF = student._of_words(batch), student._of_regions(batch)
    assert words_NLE is not None
    assert regions_NRF is not None
    assert bool((words_NLE[batch.char_spans_NL2[..., 1] == 0] == 0).all())
    assert bool((regions_NRF[batch.box_index_NR < 0] == 0).all())
    cache = open_cache(corpus.caches[3])
    assert cache.image is not None
    rows, _ = cache.image.token_features([examples[1].image.unit_id])
    row = batch.num_candidates[0]
    first_box = int((batch.box_index_NR[row] == 0).nonzero()[0, 0])
    # Moments are those of the cache that is named first, whatever split a unit is of.
    first = open_cache(corpus.caches[1]).image
    assert first is not None
    moments = (torch.from_numpy(np.array(value)) for value in (first.token_mean, first.token_variance))
    scaled_D = standardise(torch.from_numpy(np.array(rows[0])), *moments)
    expected_F = student.region_maps[0](scaled_D / len(scaled_D) ** 0.5).detach()
    torch.testing.assert_close(regions_NRF[row, first_box], expected_F, rtol=1e-4, atol=1e-4)


def test_a_blanked_picture_has_no_features(corpus: SmallCorpus) -> None:
    student, examples = given(corpus)
    torch.nn.init.normal_(student.region_maps[0].weight)
    batch = student.collate(examples).blanked()
    with torch.no_grad():
        blank = student.inner.encode(student.inner.collate(examples).blanked()).pooled_NP
        torch.testing.assert_close(student.encode(batch).pooled_NP, blank)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cache": ()}, "A cache is missing"),
        ({"on": "train"}, "nothing is fitted on"),
        ({"shots": 500}, "cannot be drawn"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_written(
    corpus: SmallCorpus, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_headroom(config(corpus, tmp_path / "runs", **changes))
    assert not (tmp_path / "runs").exists()


def test_a_cache_of_one_split_alone_is_not_enough(corpus: SmallCorpus, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="missing: of efficientnet-lite0, of val") as caught:
        run_headroom(config(corpus, tmp_path / "runs", cache=corpus.caches[:3]))
    assert "--split val" in str(caught.value.next_command)


def test_a_student_whose_inputs_take_no_features_is_refused(corpus: SmallCorpus) -> None:
    with pytest.raises(ConfigError, match="cannot be added to the inputs of scenes-vilt"):
        build_student("given:scenes-vilt", overrides={"caches": [str(path) for path in corpus.caches]})
    with pytest.raises(ConfigError, match="needs the caches"):
        build_student("given:scenes-small")


def test_a_task_with_classes_is_measured_with_a_text_teacher_alone(corpus: SmallCorpus, tmp_path: Path) -> None:
    caches = tuple(tmp_path / split for split in ("train", "val"))
    for cache in caches:
        extract(corpus, cache, "minilm-l6", "scenes-vqa", cache.name)
    found = run_headroom(config(corpus, tmp_path / "runs", dataset="scenes-vqa", cache=caches))
    assert found.task == "vqa"
    floor = {row.name: row.mean for row in found.rows if not row.runs}
    assert 0 < floor["chance"] < floor["most frequent answer"]
