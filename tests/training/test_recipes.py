"""Recipes: every number has a source and takes effect, an option wins over it; schedules at their ends."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_logs import load_json, metrics
from safetensors.torch import load_file

from advl_pipeline.base.configuration import build_config, config_to_dict
from advl_pipeline.base.errors import ConfigError
from advl_pipeline.base.packages import data_files, read_data_file
from advl_pipeline.distillation.distiller import Distiller
from advl_pipeline.students.registry import build_student
from advl_pipeline.training.batch_order import TokenOrder
from advl_pipeline.training.config import FinetuneConfig, Optimiser, TrainingSettings
from advl_pipeline.training.landmarks.census import StudentAtStart
from advl_pipeline.training.optimiser import (
    BertAdam,
    BertAdamW,
    build_optimizer,
    linear_warmup_decay,
    parameter_groups,
    rate_factor,
)
from advl_pipeline.training.recipes import (
    choose_recipe,
    load_recipe,
    resolve_settings,
)
from advl_pipeline.training.resolved import resolve_method
from advl_pipeline.training.run import run_finetune
from advl_pipeline.training.step import FinetuneModel


def config(student: str = "uniter-base", **changes: Any) -> FinetuneConfig:
    return build_config(FinetuneConfig, {"dataset": "vcr", "output": "run", "student": student}, changes)


def settle(student: str, task: str, *, num_labelled: int = 425_846, **changes: Any) -> TrainingSettings:
    options = config(student, **changes)
    return resolve_settings(
        options, choose_recipe(student, task, options.optimisation.recipe), task=task, num_labelled=num_labelled
    )


def test_uniters_numbers_are_the_runs() -> None:
    made = settle("uniter-base", "vcr")
    assert (made.optimiser, made.learning_rate, made.betas, made.eps) == ("bert-adamw", 6e-5, (0.9, 0.98), 1e-6)
    assert (made.batch_unit, made.batch_size, made.accumulate) == ("tokens", 4000, 20)
    assert (made.num_steps, made.warmup, made.clip_norm, made.max_text_tokens) == (8000, 0.1, 2.0, 220)
    assert (made.task_loss, made.loss_scale, made.adversarial) == ("two-way-choice", 5.0, None)
    assert all(
        "UNITER" in source or "not stated" in source for key, source in made.sources.items() if key != "adversarial"
    )


def test_options_win_and_say_so() -> None:
    made = settle("uniter-base", "vcr", learning_rate=6e-5, batch_size=32)
    assert (made.batch_unit, made.batch_size, made.accumulate, made.loss_scale) == ("examples", 32, 1, 1.0)
    assert made.max_text_tokens == 0
    # Given at the recipe's own value, it is given all the same.
    assert made.sources["learning_rate"] == "--learning-rate"
    for flag in ("--learning-rate 6e-05", "--batch-size 32"):
        assert flag in made.line()
    described = made.to_dict()["settings"]
    assert described["optimiser"] == {"value": "bert-adamw", "source": made.sources["optimiser"]}


def test_a_batch_holds_no_example_twice_and_says_so() -> None:
    made = settle("uniter-base", "vcr", num_labelled=16, batch_size=4096)
    assert (made.batch_size, made.accumulate) == (16, 1)
    assert "--batch-size 4096, cut to the 16 examples there are" in made.line()
    assert "--batch-size 16" in settle("uniter-base", "vcr", num_labelled=16, batch_size=16).line()
    # Every micro-batch of every process still has one.
    many = settle("uniter-base", "vcr", num_labelled=3, batch_size=4096, accumulate=8)
    assert (many.batch_size, many.accumulate) == (8, 8)


def test_low_shot_runs_keep_the_users_budget_and_epochs_become_steps() -> None:
    assert settle("uniter-base", "vcr", shots=100, num_labelled=200).num_steps == 300
    assert settle("uniter-base", "vcr", shots=100, num_labelled=200, num_steps=77).num_steps == 77
    made = settle("vl-bert-base", "vcr", num_labelled=6400)
    assert (made.batch_size, made.num_steps, made.optimiser, made.momentum) == (64, 2000, "sgd", 0.9)
    assert settle("vl-bert-base", "vcr", shots=10, num_labelled=20).batch_size == 20
    # Data of one's own have no published budget, in steps or in epochs.
    for student in ("uniter-base", "vl-bert-base"):
        assert settle(student, "vcr", num_labelled=6400, dataset="mine.jsonl").num_steps == 300


def test_no_recipe_is_advls_own_numbers() -> None:
    plain = settle("modernvbert", "vcr")
    asked = settle("uniter-base", "vcr", recipe="none")
    for key, value in config_to_dict(plain).items():
        if key not in ("note", "sources"):
            assert config_to_dict(asked)[key] == value, key
    assert (plain.optimiser, plain.no_decay, plain.task_loss) == ("adamw", None, "softmax-choice")
    assert settle("modernvbert", "vqa").note == "no recipe is published for modernvbert on vqa"


@pytest.mark.parametrize(
    ("student", "task", "lender", "optimiser", "rate", "head_scale"),
    [
        ("vilt", "vcr", "vilt vqa base", "bert-adamw", 1e-4, 10.0),
        ("meter", "vcr", "meter vqa base", "bert-adamw", 5e-6, 50.0),
        ("bridgetower", "vcr", "bridgetower vqa base", "bert-adamw", 1e-5, 50.0),
        ("lxmert", "vcr", "lxmert vqa base", "bert-adam", 5e-5, 1.0),
        ("clip-vil", "snli-ve", "clip-vil vqa base", "bert-adamw", 5e-5, 1.0),
        ("vl-bert-large", "snli-ve", "vl-bert vqa large", "bert-adamw", 1.6e-4, 1.0),
    ],
)
def test_a_family_lends_its_rates_with_their_optimiser_and_nothing_else(
    student: str, task: str, lender: str, optimiser: str, rate: float, head_scale: float
) -> None:
    made, plain = settle(student, task), settle("modernvbert", task)
    assert (made.optimiser, made.learning_rate, made.head_lr_scale) == (optimiser, pytest.approx(rate), head_scale)
    assert f"those of {lender}" in made.note
    assert made.note in made.line()
    assert "ADVL's default" not in made.sources["learning_rate"]
    for key in ("num_steps", "batch_size", "schedule", "warmup", "clip_norm", "task_loss", "adversarial"):
        assert getattr(made, key) == getattr(plain, key), key
    assert settle(student, task, learning_rate=3e-5).learning_rate == 3e-5


def test_a_pretrained_student_without_a_familys_rate_learns_slowly() -> None:
    for recipe in ("auto", "none"):
        made = settle("modernvbert", "vcr", init=Path("weights"), recipe=recipe)
        assert (made.learning_rate, made.sources["learning_rate"]) == (
            5e-5,
            "ADVL's default for a student that starts from --init",
        )
    assert settle("modernvbert", "vcr").learning_rate == 5e-4
    assert settle("vilt", "vcr", init=Path("weights")).learning_rate == 1e-4


def test_a_users_file_wins_over_the_published_recipe(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('learning_rate = 1e-3\nloss = "softmax-choice"\n', encoding="utf-8")
    made = settle("uniter-base", "vcr", recipe=str(file))
    assert (made.learning_rate, made.task_loss, made.optimiser) == (1e-3, "softmax-choice", "bert-adamw")
    assert made.sources["learning_rate"] == str(file)
    with pytest.raises(ConfigError, match="lacks optimiser"):
        settle("modernvbert", "vcr", recipe=str(file))
    file.write_text("learning_rat = 1e-3\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="Unknown key") as wrong:
        settle("uniter-base", "vcr", recipe=str(file))
    assert "learning_rate" in wrong.value.why
    file.write_text("no_decay = 5\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="no_decay must be str, not int"):
        settle("uniter-base", "vcr", recipe=str(file))


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("no_decay", '"bias|("', "'bias|('"),
        ("no_decay", '"a{99999999999}"', "'a{99999999999}'"),
        ("no_decay", f'"{"(" * 3000}"', "'((("),
        ("lr_scales", '[["bias"]]', "['bias']"),
        ("lr_scales", '[["(", 2.0]]', "'('"),
        ("lr_scales", '[["a{99999999999}", 2.0]]', "'a{99999999999}'"),
        ("lr_scales", f'[["{"(" * 3000}", 2.0]]', "'((("),
        ("lr_scales", "2.0", "2.0"),
        ("lr_scales", '["ab"]', "'ab'"),
        ("lr_scales", '[["a", "x"]]', "['a', 'x']"),
        ("lr_scales", '[["a", -1]]', "['a', -1]"),
        ("lr_scales", '[["a", true]]', "['a', True]"),
        ("lr_scales", '[["a", nan]]', "['a', nan]"),
        ("lr_scales", '[["a", inf]]', "['a', inf]"),
    ],
)
def test_a_wrong_pattern_or_scale_is_refused_by_name(key: str, value: str, named: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(f"{key} = {value}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="names of parameters") as wrong:
        settle("uniter-base", "vcr", recipe=str(file))
    assert wrong.value.where == str(file)
    assert wrong.value.why.startswith(f"{key} {named}")


def test_wrong_numbers_of_a_recipe_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('schedule = "steps"\n', encoding="utf-8")
    with pytest.raises(ConfigError, match="milestones"):
        settle("uniter-base", "vcr", recipe=str(file))
    file.write_text("clip_norm = -1.0\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="clip_norm must be at least 0"):
        settle("uniter-base", "vcr", recipe=str(file))


def test_villas_numbers_are_its_recipes() -> None:
    published, of_vcr = (settle("villa-base", task).adversarial for task in ("vqa", "vcr"))
    assert (published.text_learning_rate, published.visual_learning_rate, published.num_steps) == (1e-3, 0.0, 3)
    assert of_vcr.visual_learning_rate > 0
    assert load_recipe("uniter", "vqa", "base").adversarial == {}


@pytest.mark.parametrize(
    ("name", "kind"),
    [("adamw", torch.optim.AdamW), ("bert-adamw", BertAdamW), ("bert-adam", BertAdam), ("sgd", torch.optim.SGD)],
)
def test_the_optimiser_is_the_named_one_with_the_recipes_groups(
    name: Optimiser, kind: type[torch.optim.Optimizer]
) -> None:
    student = build_student("uniter-tiny")
    method = resolve_method(config(method="plain"))
    distiller = Distiller(method.settings, {}, hidden_size=student.hidden_size, pooled_size=student.pooled_size)
    heads = {"vqa": student.build_head("vqa", 5)}
    start = StudentAtStart(student=student, heads=heads, settings=method.settings)
    model = FinetuneModel(start, distiller, task_loss="soft-target-bce")
    settings = dataclasses.replace(settle("uniter-base", "vqa"), optimiser=name)
    optimiser = build_optimizer(settings, model)
    assert type(optimiser) is kind
    rate_of = {id(p): (g["lr"], g["weight_decay"]) for g in optimiser.param_groups for p in g["params"]}
    named = dict(model.named_parameters())
    assert len(rate_of) == len(named)
    assert rate_of[id(named["heads.vqa.2.weight"])] == (pytest.approx(8e-4), 0.01)
    assert rate_of[id(named["student.model.img_embeddings.img_layer_norm.weight"])] == (8e-5, 0.01)
    assert rate_of[id(named["student.model.embeddings.LayerNorm.weight"])] == (8e-5, 0.0)
    slow = build_optimizer(dataclasses.replace(settings, head_lr_scale=1.0), model, student_scale=0.1)
    assert sum(len(group["params"]) for group in slow.param_groups) == len(named)
    slow_rate_of = {id(p): group["lr"] for group in slow.param_groups for p in group["params"]}
    assert slow_rate_of[id(named["heads.vqa.2.weight"])] == 8e-5
    assert slow_rate_of[id(named["student.model.embeddings.LayerNorm.weight"])] == pytest.approx(8e-6)


def test_rates_warm_up_and_fall_as_the_recipe_says() -> None:
    uniter = settle("uniter-base", "vcr")
    assert [rate_factor(uniter, step, num_steps=1000) for step in (0, 49, 99)] == pytest.approx([0.01, 0.5, 1.0])
    assert rate_factor(uniter, 549, num_steps=1000) == pytest.approx(0.5)
    steps = settle("vl-bert-base", "vcr", num_labelled=64_000)
    factors = [rate_factor(steps, step, num_steps=20_000) for step in (499, 5000, 13_999, 18_000)]
    assert factors == pytest.approx([0.5, 1.0, 0.1, 0.01])
    # A budget shorter than VL-BERT's 1000 steps of warming up spends a tenth of it.
    assert rate_factor(steps, 9, num_steps=100) == pytest.approx(1.0)


def test_token_batches_are_no_more_than_there_are_examples_and_hold_the_longest() -> None:
    sizes = [int(value) for value in np.random.default_rng(0).integers(5, 60, 100)]
    assert TokenOrder(sizes, max_tokens=300, accumulate=10_000, seed=1).accumulate < 100
    with pytest.raises(ConfigError, match="longer than a batch"):
        TokenOrder(sizes, max_tokens=30, accumulate=1, seed=1)


def test_visualberts_gradients_are_clipped_parameter_by_parameter(small_corpus: Any, tmp_path: Path) -> None:
    """A bound far below its optimiser's eps leaves no step; the bound of 1 that the recipe states does."""
    moved = {}
    for name, recipe in (("recipe", {}), ("held", {"clip_each": 1e-12})):
        small_corpus.run(
            tmp_path / name,
            student="visualbert-tiny",
            method="plain",
            cache=(),
            num_steps=2,
            batch_size=2,
            learning_rate=1e-3,
            recipe={"weight_decay": 0.0, **recipe},
        )
        torch.manual_seed(0)
        start = build_student("visualbert-tiny").state_dict()
        trained = load_file(tmp_path / name / "model.safetensors")
        moved[name] = max(float((trained[key] - value).abs().max()) for key, value in start.items())
    assert moved["held"] < 1e-7 < 1e-4 < moved["recipe"]
    settings = settle("visualbert", "vqa")
    assert (settings.clip_each, settings.clip_norm, settings.eps) == (1.0, 0.0, 1e-6)


def test_the_run_folder_says_where_numbers_come_from(
    small_corpus: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = small_corpus.config(
        tmp_path / "run", student="villa-tiny", method="plain", cache=(), num_steps=2, batch_size=None, task=()
    )
    result = run_finetune(options)
    written = load_json(tmp_path / "run" / "settings.json")
    assert written["settings"]["num_steps"] == {"value": 2, "source": "--num-steps"}
    assert "train-vcr-base-4gpu-adv.json" in written["settings"]["learning_rate"]["source"]
    assert written["settings"]["adversarial"]["value"]["num_steps"] == 3
    assert written["heads"] == {"vcr": {"origin": "fresh", "why": "no checkpoint is given"}}
    assert "recipe villa vcr base" in capfd.readouterr().err
    assert "adversarial (3 passes)" in result.summary["recipe"]
    logged = metrics(tmp_path / "run")
    assert all(record["raw/divergence"] >= 0 for record in logged)


RECIPES = [
    (student, task, size)
    for student, file in sorted(data_files("recipes").items())
    for task, sizes in sorted(read_data_file(file).items())
    if isinstance(sizes, dict) and task != "common"
    for size in sizes
]


@pytest.mark.parametrize(("student", "task", "size"), RECIPES)
def test_every_recipe_loads_and_names_its_sources(student: str, task: str, size: str) -> None:
    recipe = load_recipe(student, task, size)
    assert {"learning_rate", "batch_size", "optimiser", "loss", "schedule"} <= recipe.sources.keys()
    assert bool(recipe.num_steps) != bool(recipe.num_epochs)
    assert all(" " in source and ": " in source for source in recipe.sources.values())
    end_of_warmup = recipe.warmup if recipe.warmup >= 1 else recipe.warmup * 20_000
    both = {"schedule", "warmup", "milestones", "lr_floor", "learning_rate"}
    settings = dataclasses.replace(settle("modernvbert", task), **{key: getattr(recipe, key) for key in both})
    assert rate_factor(settings, round(end_of_warmup) - 1, num_steps=20_000) == pytest.approx(1.0)


def groups_by_name(student: str, settings: TrainingSettings) -> dict[str, tuple[float, float]]:
    """Return, by parameter of a tiny student and its head, the scale of its rate and its weight decay."""
    built = build_student(student)
    head = {f"head.{name}": value for name, value in built.build_head("vqa", 11).named_parameters()}
    encoder = dict(built.named_parameters())
    name_of = {id(value): name for name, value in (encoder | head).items()}
    groups = parameter_groups(encoder, head, settings)
    scale_and_decay = {
        name_of[id(value)]: (round(group["lr"] / settings.learning_rate, 6), group["weight_decay"])
        for group in groups
        for value in group["params"]
    }
    assert sorted(scale_and_decay) == sorted(encoder | head)
    return scale_and_decay


def test_meter_has_three_learning_rates_and_decays_clips_norms() -> None:
    groups = groups_by_name("meter-tiny", settle("meter", "vqa"))
    assert set(groups.values()) == {(scale, decay) for scale in (1.0, 5.0, 50.0) for decay in (0.0, 0.01)}
    assert groups["vision.post_layernorm.weight"][1] == 0.01
    assert groups["text.embeddings.LayerNorm.weight"][1] == 0.0
    assert groups["cross_modal.token_type_embeddings.weight"][0] == 1.0
    assert groups["cross_modal.cross_modal_text_pooler.dense.weight"][0] == 5.0


def test_vilt_spares_the_transformers_norms_and_decays_the_heads() -> None:
    groups = groups_by_name("vilt-tiny", settle("vilt", "vqa"))
    assert groups["model.encoder.layer.0.layernorm_before.weight"][1] == 0.0
    assert groups["model.layernorm.weight"][1] == 0.0
    assert groups["head.1.weight"][1] == 0.01


@pytest.mark.parametrize(("num_steps", "warmup_fraction"), [(1, 0.1), (10, 0.0), (20, 0.25), (300, 0.1)])
def test_the_learning_rate_rises_to_its_peak_and_falls_but_never_rests(
    num_steps: int, warmup_fraction: float
) -> None:
    factors = [
        linear_warmup_decay(step, num_steps=num_steps, warmup_fraction=warmup_fraction) for step in range(num_steps)
    ]
    peak = max(1, round(num_steps * warmup_fraction)) - 1
    assert factors[peak] == 1.0 == max(factors)
    assert min(factors) > 0
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
