"""The grid: runs, their ids, and which option wins."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from synthetic_runs import write_study_file

import advl_pipeline.studies.plan as plan_module
from advl_pipeline.base.configuration import build_config, config_to_dict, option, option_values
from advl_pipeline.base.errors import ConfigError
from advl_pipeline.studies.config import SHIPPED, StudyConfig, read_study
from advl_pipeline.studies.plan import Plan, build_plan
from advl_pipeline.training import identity
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.identity import run_identity


def plan_of(tmp_path: Path, extra: str = "", **lines: str) -> Plan:
    return build_plan(read_study(write_study_file(tmp_path, extra=extra, **lines)), runs=tmp_path / "cells")


def ids(plan: Plan) -> set[str]:
    return {planned.run_id for planned in plan.runs}


def test_the_grid_is_the_product_and_seeds_vary_slowest(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    assert len(plan.runs) == 4 * 2 * 5
    assert [planned.seed for planned in plan.runs[:9]] == [0] * 8 + [1]
    assert plan == plan_of(tmp_path)


def test_ids_do_not_depend_on_paths_or_on_the_rest_of_the_grid(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    elsewhere = build_plan(
        plan.study, runs=tmp_path / "other", caches=Path("other-caches"), data_root=Path("other-data")
    )
    assert ids(elsewhere) == ids(plan)
    assert ids(plan_of(tmp_path, shots="[100]", test_sets='["test"]')) < ids(plan)
    assert ids(plan_of(tmp_path, title='"Another title"')) == ids(plan)


@pytest.mark.parametrize(
    "change",
    [
        {"extra": "[training]\nnum_steps = 301\n"},
        {"dataset": '"scenes-snli-ve"'},
        {"teachers": '["efficientnet-lite1", "minilm-l6"]'},
        {"extra": "[extraction]\nimage_tokens = 'grid'\n"},
    ],
)
def test_ids_depend_on_what_changes_the_numbers(tmp_path: Path, change: dict[str, str]) -> None:
    before = {planned.run_id for planned in plan_of(tmp_path).runs if planned.teachers}
    after = {planned.run_id for planned in plan_of(tmp_path, **change).runs if planned.teachers}
    assert not before & after


def test_plain_runs_outlive_another_teacher(tmp_path: Path) -> None:
    before = {planned.run_id for planned in plan_of(tmp_path).runs if not planned.teachers}
    after = {planned.run_id for planned in plan_of(tmp_path, teachers='["minilm-l6"]').runs if not planned.teachers}
    assert before == after


@pytest.mark.parametrize("kind", ["init_digests", "dataset_digests"])
def test_a_pretrained_student_or_data_of_other_content_make_other_runs(kind: str, tmp_path: Path) -> None:
    study = read_study(write_study_file(tmp_path, extra='init = "students/a"\n'))
    place = {"init_digests": "students/a", "dataset_digests": "scenes-vcr/train"}[kind]
    found = [{place: "1"}, {place: "2"}, {place: "1", "scenes-vqa/train": "3"}]
    one, two, beside = (ids(build_plan(study, runs=tmp_path, **{kind: digests})) for digests in found)
    assert not one & two
    assert one == beside


def test_another_recipe_makes_other_runs(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    found = []
    for rate in (1e-4, 2e-4):
        recipe.write_text(f"learning_rate = {rate}\n", encoding="utf-8")
        found.append(ids(plan_of(tmp_path, extra=f"[training]\nrecipe = {str(recipe)!r}\n")))
    assert not found[0] & found[1]


def test_an_id_holds_what_differs_from_the_defaults_and_the_number_that_they_go_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = ids(plan_of(tmp_path))
    described: list[dict[str, object]] = []

    def noted(config: dict[str, object]) -> dict[str, object]:
        described.append(run_identity(config))
        return described[-1]

    monkeypatch.setattr(plan_module, "run_identity", noted)
    assert ids(plan_of(tmp_path)) == before
    defaults = config_to_dict(FinetuneConfig(dataset="any", output=Path("any")))
    assert all(value != defaults[name] for one in described for name, value in one.items() if name != "student")
    monkeypatch.setattr(plan_module, "SCHEMA", plan_module.SCHEMA + 1)
    assert not before & ids(plan_of(tmp_path))


def test_a_new_option_at_its_default_changes_no_id(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Later(FinetuneConfig):
        brightness: float = option(1.0, help="An option of a later version.")

    now = build_config(FinetuneConfig, {"dataset": "any", "output": "any", "num_steps": 7})
    before = run_identity(config_to_dict(now))
    monkeypatch.setattr(identity, "FinetuneConfig", Later)
    later = build_config(Later, {"dataset": "any", "output": "any", "num_steps": 7})
    assert run_identity(config_to_dict(later)) == before
    dimmed = dataclasses.replace(later, brightness=0.5)
    assert run_identity(config_to_dict(dimmed)) == before | {"brightness": 0.5}


def test_variants_win_over_general_overrides(tmp_path: Path) -> None:
    extra = (
        "[training]\nnum_steps = 50\nselection = 'prior'\n[at-shots.400]\nnum_steps = 90\n"
        "[variants.mine]\nmethod = 'advl'\nselection = 'all'\nteachers = ['minilm-l6']\n"
    )
    plan = plan_of(tmp_path, extra=extra, methods='["plain", "mine"]')
    by_place = {(planned.method, planned.shots): planned.finetune for planned in plan.runs}
    assert (by_place["mine", 100].optimisation.num_steps, by_place["mine", 400].optimisation.num_steps) == (50, 90)
    assert (by_place["mine", 100].distill.selection, by_place["plain", 100].distill.selection) == ("all", "prior")
    assert by_place["mine", 100].cache == (Path("caches/minilm-l6/scenes-vcr/train"),)
    assert by_place["plain", 100].cache == ()


def test_controls_differ_from_their_method_in_one_thing_only(tmp_path: Path) -> None:
    names = [name for name, variant in SHIPPED.items() if variant.method == "advl"]
    plan = plan_of(tmp_path, methods=str(["plain", *names]).replace("'", '"'), seeds="[0]", shots="[100]")
    runs = {planned.method: planned for planned in plan.runs}
    free = {"output", "cache"}
    for name in names:
        values, usual = option_values(runs[name].finetune), option_values(runs["advl"].finetune)
        differing = {option for option in values if values[option] != usual[option]}
        expected = set(SHIPPED[name].training)
        assert differing - free == expected, name
    assert runs["advl-random"].teachers == ("random:efficientnet-lite0", "random:minilm-l6")
    assert not {str(path) for path in runs["advl-random"].finetune.cache} & {
        str(path) for path in runs["advl"].finetune.cache
    }


def test_a_method_that_needs_a_teacher_says_so(tmp_path: Path) -> None:
    study: StudyConfig = read_study(write_study_file(tmp_path, teachers="[]"))
    with pytest.raises(ConfigError, match="needs a teacher"):
        build_plan(study, runs=tmp_path)
