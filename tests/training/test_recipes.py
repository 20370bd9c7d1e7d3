"""Recipes: every number has a source, groups follow the originals."""

from __future__ import annotations

import dataclasses

import pytest

from advl_pipeline.errors import ConfigError
from advl_pipeline.students.registry import build_student
from advl_pipeline.training.config import AdversarialConfig
from advl_pipeline.training.optimiser import learning_rate_at
from advl_pipeline.training.recipes import describe, group_parameters, load_recipe, recipe_names


@pytest.mark.parametrize(("student", "task", "size"), recipe_names())
def test_every_recipe_loads_and_names_its_sources(student: str, task: str, size: str) -> None:
    recipe = load_recipe(student, task, size)
    stated = {key for key, _, _ in describe(recipe)}
    assert {"learning_rate", "batch_size", "optimiser", "loss", "schedule"} <= stated
    assert bool(recipe.num_steps) != bool(recipe.num_epochs)
    assert all(" " in source and ": " in source for source in recipe.sources.values())
    end_of_warmup = recipe.warmup if recipe.warmup >= 1 else recipe.warmup * 20_000
    assert learning_rate_at(round(end_of_warmup), recipe, num_steps=20_000) == pytest.approx(recipe.learning_rate)


def test_villas_numbers_make_an_adversarial_configuration() -> None:
    for task, size in (("vqa", "base"), ("vcr", "large"), ("snli-ve", "base")):
        config = AdversarialConfig(**load_recipe("villa", task, size).adversarial)
        assert config.num_steps == 3
        assert (config.visual_learning_rate > 0) == (task == "vcr")
    assert load_recipe("uniter", "vqa", "base").adversarial == {}


def test_a_number_says_which_file_of_its_authors_it_is_from() -> None:
    assert "train-vqa-base" in load_recipe("uniter", "vqa", "base").sources["warmup"]


@pytest.mark.parametrize(
    ("student", "task", "size"),
    [("unitter", "vqa", "base"), ("lxmert", "snli-ve", "base"), ("uniter", "vqa", "huge")],
)
def test_a_recipe_that_nobody_published_is_refused(student: str, task: str, size: str) -> None:
    with pytest.raises(ConfigError, match="No recipe"):
        load_recipe(student, task, size)


def test_steps_schedule_divides_at_shares_of_the_budget() -> None:
    recipe = load_recipe("vl-bert", "vcr", "base")
    rates = [learning_rate_at(step, recipe, num_steps=20_000) for step in (500, 1000, 13_999, 14_000, 18_000)]
    assert rates == pytest.approx([2.24e-3, 4.48e-3, 4.48e-3, 4.48e-4, 4.48e-5])
    constant = dataclasses.replace(recipe, schedule="constant")
    assert learning_rate_at(19_999, constant, num_steps=20_000) == 4.48e-3


def test_meter_has_three_learning_rates_and_decays_clips_norms() -> None:
    student = build_student("meter-tiny")
    recipe = load_recipe("meter", "vqa", "base")
    names = [name for name, _ in student.named_parameters()]
    head = [f"head.{name}" for name, _ in student.build_head("vqa", 11).named_parameters()]
    groups = group_parameters(names, head, recipe)
    assert {(group.lr_scale, group.weight_decay) for group in groups} == {
        (scale, decay) for scale in (1.0, 5.0, 50.0) for decay in (0.0, 0.01)
    }
    of_name = {name: group for group in groups for name in group.names}
    assert of_name["vision.post_layernorm.weight"].weight_decay == 0.01
    assert of_name["text.embeddings.LayerNorm.weight"].weight_decay == 0.0
    assert of_name["cross_modal.token_type_embeddings.weight"].lr_scale == 1.0
    assert of_name["cross_modal.cross_modal_text_pooler.dense.weight"].lr_scale == 5.0
    assert sorted(of_name) == sorted([*names, *head])


def test_vilt_spares_the_transformers_norms_and_decays_the_heads() -> None:
    recipe = load_recipe("vilt", "vqa", "base")
    names = [name for name, _ in build_student("vilt-tiny").named_parameters()]
    groups = group_parameters(names, ["1.weight"], recipe)
    of_name = {name: group for group in groups for name in group.names}
    assert of_name["model.encoder.layer.0.layernorm_before.weight"].weight_decay == 0.0
    assert of_name["model.layernorm.weight"].weight_decay == 0.0
    assert of_name["1.weight"].weight_decay == 0.01
