"""The start of a run: projections fitted on the frozen student, and targets that it cannot tell left out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from run_logs import metrics
from safetensors.torch import load_file
from tiny_extraction import TinyDataset, tiny_extract

from advl_pipeline.cache.reader import TeacherCache, open_cache
from advl_pipeline.datasets.words import fit_word_prior
from advl_pipeline.distillation.distiller import Distiller
from advl_pipeline.distillation.settings import DistillationSettings
from advl_pipeline.students.registry import build_student
from advl_pipeline.training import part_costs, run
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.finetune_model import FinetuneModel
from advl_pipeline.training.projection_fit import TargetFit, fit_projections
from advl_pipeline.training.run import run_finetune
from advl_pipeline.training.shuffled_teacher import shuffled_teacher
from advl_pipeline.training.signals import SignalSource, cached_teacher

NUM_PICTURES = 60
WORD, SUMMARY, IMAGE, REGION = "text/tiny/word", "text/tiny/summary", "vision/tiny/image", "vision/tiny/region"


@pytest.fixture(name="tiny", scope="module")
def _tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[TinyDataset, TeacherCache, Path]:
    folder = tmp_path_factory.mktemp("fit")
    options = {"num_images": NUM_PICTURES}
    tiny_extract(folder / "pictures", folder / "cache", dataset=options)
    return TinyDataset(folder / "pictures", **options), open_cache(folder / "cache"), folder / "cache"


def start(
    dataset: TinyDataset, cache: TeacherCache, *, shuffled: bool = False, **settings: Any
) -> tuple[FinetuneModel, SignalSource, list[TargetFit]]:
    """Return the model of a run before its first step, and what the fit found."""
    teacher = cached_teacher(cache)
    source = SignalSource(
        [shuffled_teacher(teacher, seed=0) if shuffled else teacher],
        prior=fit_word_prior(dataset[index].candidates[0].text for index in range(len(dataset))),
    )
    torch.manual_seed(0)
    student = build_student("scenes-small")
    distiller = Distiller(
        DistillationSettings(
            **{
                "selection": "all",
                "distance": "mse",
                "distill_layer": "fused",
                **settings,
            }
        ),
        source.widths(),
        hidden_size=student.hidden_size,
        pooled_size=student.pooled_size,
        vision_targets={"tiny": "both"},
    )
    model = FinetuneModel(
        student, {"snli-ve": student.build_head("snli-ve", 3)}, distiller, task_loss="softmax-choice"
    )
    positions = range(len(dataset))
    return model, source, fit_projections(model, dataset, positions, source, seed=0, device=torch.device("cpu"))


def test_words_start_fitted_and_a_shuffled_teacher_is_left_out_whole(tiny: Any) -> None:
    dataset, cache, _ = tiny
    model, _, fits = start(dataset, cache)
    found = {str(fit.target): fit for fit in fits}
    word = found[WORD].fitted
    assert word.r2 is not None
    assert word.r2 > 0.15
    assert word.distance_before > 1.5
    assert word.distance_after < 0.6 * word.distance_before
    projections = model.distiller.text["tiny"]
    torch.testing.assert_close(projections.word.weight, word.map.weight_HD.T.float())  # type: ignore[union-attr]
    assert model.training

    model, _, fits = start(dataset, cache, shuffled=True)
    assert {str(fit.target) for fit in fits} == {WORD, SUMMARY, IMAGE, REGION}
    assert all(fit.is_left_out for fit in fits), [fit.line() for fit in fits]
    assert not model.distiller.vision
    assert not model.distiller.text


def test_the_fit_is_the_same_again_and_reads_no_label(tiny: Any) -> None:
    dataset, cache, _ = tiny
    _, _, fits = start(dataset, cache)
    with patch.object(TinyDataset, "__getitem__", _without_label(TinyDataset.__getitem__)):
        _, _, again = start(dataset, cache)
    assert [fit.to_dict() for fit in fits] == [fit.to_dict() for fit in again]


def _without_label(read: Any) -> Any:
    return lambda dataset, index: replace(read(dataset, index), label=None)


def test_what_is_kept_and_how_it_starts_are_options(tiny: Any) -> None:
    dataset, cache, _ = tiny
    kept, _, fits = start(dataset, cache, shuffled=True, target_check="none")
    assert not any(fit.is_left_out for fit in fits)
    assert len(kept.distiller.text) == len(kept.distiller.vision) == 1
    at_random, _, _ = start(dataset, cache, projection_start="random", target_check="none")
    checked, _, fits = start(dataset, cache, projection_start="random")
    assert fits
    weights = [model.distiller.text["tiny"].word.weight for model in (at_random, checked, kept)]  # type: ignore[union-attr]
    assert weights[0].equal(weights[1])
    assert not weights[0].equal(weights[2])


@pytest.fixture(name="config")
def _config(tiny: Any, tmp_path: Path) -> Iterator[FinetuneConfig]:
    dataset, _, path = tiny
    with patch("advl_pipeline.training.inputs.open_splits", lambda *_, **__: dataset):
        yield FinetuneConfig(
            dataset="tiny", output=tmp_path / "run", cache=(path,), num_steps=2, adapt_steps=2, adapt_texts=8,
            batch_size=4, confidence="none", distance="mse", vision_target="both", anchor_weight=0.0,
            adapt_objective="distil-only",
        )  # fmt: skip


def settings_of(config: FinetuneConfig) -> Any:
    return json.loads((config.output / "settings.json").read_text(encoding="utf-8"))


def test_a_run_says_what_is_left_out(config: FinetuneConfig, capsys: pytest.CaptureFixture[str]) -> None:
    run_finetune(config)
    said = settings_of(config)["targets"]
    assert said[WORD]["left_out"] is False
    assert said[WORD]["distance_after"] < said[WORD]["distance_before"]
    printed = capsys.readouterr().err
    assert f"target {WORD}: held-out R2 {said[WORD]['held_out_r2']:.2f}" in printed
    # The first step starts from what was fitted, dropout included, where it would have been near 2 for every target.
    assert metrics(config.output)[0]["raw/text"] < 1.2

    shuffled = replace(config, output=config.output / "shuffled", teacher_control="shuffle")
    run_finetune(shuffled)
    assert all(target["left_out"] for target in settings_of(shuffled)["targets"].values())
    assert capsys.readouterr().err.count("LEFT OUT") == 4
    # With nothing left to distil, the adapt step changes nothing and the finetune step is a plain one.
    assert not any("raw/text" in step or "raw/vision" in step for step in metrics(shuffled.output))


def test_a_resumed_run_fits_the_same(config: FinetuneConfig) -> None:
    whole, stopped = (replace(config, output=config.output / name, checkpoint_every=1) for name in ("a", "b"))
    run_finetune(whole)
    with (
        patch("advl_pipeline.training.run_end.save_student", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        run_finetune(stopped)
    before = settings_of(stopped)
    run_finetune(stopped)
    assert settings_of(stopped)["targets"] == before["targets"] == settings_of(whole)["targets"]
    one, two = (load_file(run.output / "model.safetensors") for run in (whole, stopped))
    assert all(one[key].equal(two[key]) for key in one)


@pytest.mark.parametrize("vision_target", ["regions", "image", "both"])
def test_a_run_that_leaves_a_whole_pathway_out_ends_as_others_do(
    config: FinetuneConfig, monkeypatch: pytest.MonkeyPatch, vision_target: Any
) -> None:
    """As a long run does, it ends by timing its parts, and one of them has nothing to learn."""

    def fit_and_leave_pictures_out(model: FinetuneModel, *arguments: Any, **options: Any) -> list[TargetFit]:
        fits = fit_projections(model, *arguments, **options)
        for fit in fits:
            if fit.target.pathway == "vision" and not fit.is_left_out:
                model.distiller.leave_out(fit.target)
        return fits

    monkeypatch.setattr(run, "fit_projections", fit_and_leave_pictures_out)
    monkeypatch.setattr(part_costs, "STEPS_PER_REPEAT", 1)
    run_finetune(replace(config, vision_target=vision_target))
    assert not any("raw/vision" in step for step in metrics(config.output))
    result = json.loads((config.output / "result.json").read_text(encoding="utf-8"))
    assert set(result["parts"]["milliseconds"]) == {"reading", "student", "text"}
