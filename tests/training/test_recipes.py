"""Every number of a run has a source: an option, a recipe or a default. Its length follows from the labels."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from commands import complaint
from own_rows import COLOURS, choice_row, write_json_lines
from run_logs import load_json, metrics
from small_corpus import train

from advl_pipeline.base.configuration import build_config, config_to_dict
from advl_pipeline.base.errors import ConfigError
from advl_pipeline.base.packages import data_files, read_data_file
from advl_pipeline.datasets.registry import find_dataset
from advl_pipeline.datasets.roots import is_location
from advl_pipeline.training import resolved
from advl_pipeline.training.config import FinetuneConfig, TrainingSettings
from advl_pipeline.training.identity import run_record
from advl_pipeline.training.inputs import open_run_inputs
from advl_pipeline.training.optimiser import rate_factor
from advl_pipeline.training.prepare import prepare_finetune
from advl_pipeline.training.recipes import choose_recipe, load_recipe, resolve_settings
from advl_pipeline.training.resolved import finetune_steps, resolve_method, resolve_run


def settle(student: str, task: str, *, num_labelled: int = 425_846, **changes: Any) -> TrainingSettings:
    options = build_config(FinetuneConfig, {"dataset": "vcr", "output": "run", "student": student}, changes)
    chosen = choose_recipe(student, task, options.optimisation.recipe)
    is_published = not is_location(options.dataset)
    return resolve_settings(options, chosen, kind=task, num_labelled=num_labelled, is_published=is_published)


UNITER, VL_BERT = ("uniter-base", "choice"), ("vl-bert-base", "choice")
WEIGHTS = Path("weights")

DECIDED: list[tuple[tuple[str, str], dict[str, Any], dict[str, Any]]] = [
    (
        UNITER,
        {},
        {
            "optimiser": "bert-adamw",
            "learning_rate": 6e-5,
            "betas": (0.9, 0.98),
            "eps": 1e-6,
            "batch_unit": "tokens",
            "batch_size": 4000,
            "accumulate": 20,
            "num_steps": 8000,
            "warmup": 0.1,
            "clip_norm": 2.0,
            "max_text_tokens": 220,
            "task_loss": "two-way-choice",
            "loss_scale": 5.0,
            "adversarial": None,
        },
    ),
    (
        UNITER,
        {"batch_size": 32},
        {"batch_unit": "examples", "batch_size": 32, "accumulate": 1, "loss_scale": 1.0, "max_text_tokens": 0},
    ),
    # A batch holds no example twice, and every micro-batch of every process still has one.
    (UNITER, {"num_labelled": 16, "batch_size": 4096}, {"batch_size": 16, "accumulate": 1}),
    (UNITER, {"num_labelled": 3, "batch_size": 4096, "accumulate": 8}, {"batch_size": 8, "accumulate": 8}),
    # Few labels and own data have no published budget, in steps or in epochs.
    (UNITER, {"num_labelled": 200, "shots": 100}, {"num_steps": 300}),
    (UNITER, {"num_labelled": 200, "shots": 100, "num_steps": 77}, {"num_steps": 77}),
    (UNITER, {"num_labelled": 6400, "dataset": "mine.jsonl"}, {"num_steps": 300}),
    (VL_BERT, {"num_labelled": 6400, "dataset": "mine.jsonl"}, {"num_steps": 300}),
    (VL_BERT, {"num_labelled": 20, "shots": 10}, {"batch_size": 20}),
    (VL_BERT, {"num_labelled": 6400}, {"batch_size": 64, "num_steps": 2000, "optimiser": "sgd", "momentum": 0.9}),
    (("visualbert", "answers"), {}, {"clip_each": 1.0, "clip_norm": 0.0, "eps": 1e-6}),
    # Without a recipe numbers are ADVL's own; a pretrained student without a family's rate learns slowly.
    (
        ("modernvbert", "choice"),
        {},
        {"optimiser": "adamw", "no_decay": None, "task_loss": "softmax-choice", "learning_rate": 5e-4},
    ),
    (("modernvbert", "choice"), {"init": WEIGHTS}, {"learning_rate": 5e-5}),
    (("modernvbert", "choice"), {"init": WEIGHTS, "recipe": "none"}, {"learning_rate": 5e-5}),
    (("vilt", "choice"), {"init": WEIGHTS}, {"learning_rate": 1e-4}),
]


@pytest.mark.parametrize(
    ("dataset", "student"),
    [(name, "efficientnet-minilm") for name in ("mine.jsonl", "daquar", "vcr")] + [("scenes-vcr", "scenes-small")],
)
def test_only_drawings_have_a_default_student_of_their_own(dataset: str, student: str) -> None:
    assert build_config(FinetuneConfig, {"dataset": dataset, "output": "run"}, {}).student == student


@pytest.mark.parametrize(("run", "options", "decided"), DECIDED)
def test_a_number_is_the_options_the_recipes_or_the_default(
    run: tuple[str, str], options: dict[str, Any], decided: dict[str, Any]
) -> None:
    made = settle(*run, **options)
    assert {key: getattr(made, key) for key in decided} == decided


def test_every_number_says_where_it_comes_from() -> None:
    made = settle("uniter-base", "choice")
    followed = {source for key, source in made.sources.items() if key != "adversarial"}
    assert all("UNITER" in source or "not stated" in source for source in followed)
    # Given at the recipe's own value, it is given all the same.
    made = settle("uniter-base", "choice", learning_rate=6e-5, batch_size=32)
    assert made.sources["learning_rate"] == "--learning-rate"
    for flag in ("--learning-rate 6e-05", "--batch-size 32"):
        assert flag in made.line()
    described = made.to_dict()["settings"]
    assert described["optimiser"] == {"value": "bert-adamw", "source": made.sources["optimiser"]}
    cut = settle("uniter-base", "choice", num_labelled=16, batch_size=4096)
    assert "--batch-size 4096, cut to the 16 examples there are" in cut.line()
    slow = settle("modernvbert", "choice", init=WEIGHTS)
    assert slow.sources["learning_rate"] == "ADVL's default for a student that starts from --init"


def test_no_recipe_is_advls_own_numbers() -> None:
    plain, asked = (
        config_to_dict(settle(student, "choice", recipe=recipe)) | {"note": "", "sources": {}}
        for student, recipe in (("modernvbert", "auto"), ("uniter-base", "none"))
    )
    assert asked == plain
    assert settle("modernvbert", "answers").note == "no recipe is published for modernvbert on answers"


@pytest.mark.parametrize(
    ("student", "task", "lender", "optimiser", "rate", "head_scale"),
    [
        ("vilt", "choice", "vilt answers base", "bert-adamw", 1e-4, 10.0),
        ("meter", "choice", "meter answers base", "bert-adamw", 5e-6, 50.0),
        ("bridgetower", "choice", "bridgetower answers base", "bert-adamw", 1e-5, 50.0),
        ("lxmert", "choice", "lxmert answers base", "bert-adam", 5e-5, 1.0),
        ("clip-vil", "classes", "clip-vil answers base", "bert-adamw", 5e-5, 1.0),
        ("vl-bert-large", "classes", "vl-bert answers large", "bert-adamw", 1.6e-4, 1.0),
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


def test_a_users_file_wins_over_the_published_recipe(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('learning_rate = 1e-3\nloss = "softmax-choice"\n', encoding="utf-8")
    made = settle("uniter-base", "choice", recipe=str(file))
    assert (made.learning_rate, made.task_loss, made.optimiser) == (1e-3, "softmax-choice", "bert-adamw")
    assert made.sources["learning_rate"] == str(file)
    with pytest.raises(ConfigError, match="lacks optimiser"):
        settle("modernvbert", "choice", recipe=str(file))
    file.write_text("learning_rat = 1e-3\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="Unknown key") as wrong:
        settle("uniter-base", "choice", recipe=str(file))
    assert "learning_rate" in wrong.value.why


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
    with pytest.raises(ConfigError, match="parameter patterns") as wrong:
        settle("uniter-base", "choice", recipe=str(file))
    assert wrong.value.where == str(file)
    assert wrong.value.why.startswith(f"{key} {named}")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no_decay = 5", "no_decay must be str, not int"),
        ("clip_norm = -1.0", "clip_norm must be at least 0"),
        ("learning-rate = nan", "learning_rate must be above 0"),
    ],
)
def test_a_wrong_value_of_a_recipe_is_refused(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(line, encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as caught:
        settle("uniter-base", "choice", recipe=str(tmp_path / "mine.toml"))
    assert caught.value.where == str(tmp_path / "mine.toml")


def test_a_schedule_by_steps_needs_milestones(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('schedule = "steps"', encoding="utf-8")
    with pytest.raises(ConfigError, match="needs milestones") as caught:
        settle("uniter-base", "choice", recipe=str(tmp_path / "mine.toml"))
    assert caught.value.where == str(tmp_path / "mine.toml")


def test_villas_numbers_are_its_recipes() -> None:
    published, of_vcr = (settle("villa-base", task).adversarial for task in ("answers", "choice"))
    assert (published.text_learning_rate, published.visual_learning_rate, published.num_steps) == (1e-3, 0.0, 3)
    assert of_vcr.visual_learning_rate > 0
    assert load_recipe("uniter", "vqa", "base").adversarial == {}


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
    settings = dataclasses.replace(settle("modernvbert", "choice"), **{key: getattr(recipe, key) for key in both})
    assert rate_factor(settings, round(end_of_warmup) - 1, num_steps=20_000) == pytest.approx(1.0)


def test_the_run_folder_says_where_numbers_come_from(
    small_corpus: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = small_corpus.config(
        tmp_path / "run", student="villa-tiny", method="plain", cache=(), num_steps=2, batch_size=None, task=()
    )
    result = train(options)
    written = load_json(tmp_path / "run" / "settings.json")
    assert written["settings"]["num_steps"] == {"value": 2, "source": "--num-steps"}
    assert "train-vcr-base-4gpu-adv.json" in written["settings"]["learning_rate"]["source"]
    assert written["settings"]["adversarial"]["value"]["num_steps"] == 3
    assert written["heads"] == {"choice": {"origin": "fresh", "why": "no checkpoint is given"}}
    assert "recipe villa choice base" in capfd.readouterr().err
    assert "adversarial (3 passes)" in result.summary.recipe
    logged = metrics(tmp_path / "run")
    assert all(record["raw/divergence"] >= 0 for record in logged)


def configured(**options: Any) -> FinetuneConfig:
    fixed = {"dataset": "mine.jsonl", "method": "plain", "student": "scenes-small", "output": Path("run")}
    return build_config(FinetuneConfig, fixed | options)


def settings(num_labelled: int, **options: Any) -> TrainingSettings:
    config = configured(**options)
    is_published = not is_location(config.dataset)
    method = resolve_method(config)
    return resolve_run(config, method, kind="answers", num_labelled=num_labelled, is_published=is_published).settings


@pytest.mark.parametrize(
    ("num_labelled", "options", "num_steps"),
    [
        (100, {}, 300),
        (1600, {}, 300),
        (1601, {}, 301),
        (38_575, {}, 7233),
        (38_575, {"batch_size": 64}, 1809),
        (100, {"epochs": 2}, 13),
        (100, {"epochs": 0.01}, 1),
        (38_575, {"epochs": 0.5, "batch_size": 64}, 302),
        (38_575, {"num_steps": 300}, 300),
    ],
)
def test_steps_grow_with_the_labels_unless_they_are_given(
    num_labelled: int, options: dict[str, Any], num_steps: int
) -> None:
    decided = settings(num_labelled, **options)
    assert decided.num_steps == num_steps
    assert decided.epochs == pytest.approx(num_steps * decided.batch_size / num_labelled)
    expected = f"--epochs {options['epochs']}" if "epochs" in options else "--num-steps"
    expected = expected if {"epochs", "num_steps"} & options.keys() else "ADVL's default"
    assert decided.sources["num_steps"] == decided.sources["epochs"] == expected
    # It is forecast before the data are opened.
    shots = {"shots": num_labelled, **options}
    assert finetune_steps(configured(**shots)) == settings(num_labelled, **shots).num_steps


def test_a_published_budget_stays_and_an_option_wins_over_it() -> None:
    published = settings(4000, dataset="vqa-v2", student="vilt")
    assert published.epochs == pytest.approx(10, rel=0.01)
    asked = settings(4000, dataset="vqa-v2", student="vilt", epochs=1)
    assert asked.num_steps == math.ceil(4000 / asked.batch_size)


def test_epochs_are_refused_beside_steps_and_where_batches_count_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("finetune", "--dataset", "scenes-vcr", "--method", "plain", "--output", "run")
    code, message = complaint(capsys, *words, "--epochs", 3, "--num-steps", 9)
    assert (code, "Give --epochs or --num-steps, not both." in message) == (2, True)
    code, message = complaint(capsys, *words, "--num-epochs", 3)
    assert code == 2
    assert "--epochs 3" in message
    with pytest.raises(ConfigError, match="no fixed number of steps where batches count tokens"):
        settings(4000, dataset="vcr", student="uniter-base", epochs=1)
    assert settings(4000, dataset="vcr", student="uniter-base").epochs is None


def test_a_run_of_the_default_length_is_known_by_it_where_there_are_many_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_json_lines(tmp_path / "mine.jsonl", [choice_row(number, split="train") for number in range(16)])

    def length(**options: Any) -> Any:
        config = configured(dataset=str(data), batch_size=16, **options)
        inputs = open_run_inputs(config, find_dataset(config.dataset), [])
        run = resolve_run(config, resolve_method(config), kind="choice", num_labelled=len(inputs.labelled))
        return run_record(run, inputs, [], []).get("num_steps")

    assert length() is None
    monkeypatch.setattr(resolved, "DEFAULT_EPOCHS", 1000)  # As if there were many.
    assert (length(), length(num_steps=1000), length(epochs=1000)) == (1000, None, None)


def test_the_adapt_stage_on_few_inputs_of_your_own_ends_after_fifty_passes(tmp_path: Path) -> None:
    def steps(num_rows: int, *, scores_val: bool = True, **options: Any) -> tuple[int, int | None]:
        rows = [choice_row(number, split="train", label=COLOURS[number % 5]) for number in range(num_rows)]
        data = write_json_lines(tmp_path / f"{num_rows}.jsonl", rows)
        output = str(tmp_path / "run")
        config = configured(
            dataset=str(data), output=output, student="scenes-small", method="plain-two-step", **options
        )
        prepared = prepare_finetune(config, scores_val=scores_val)
        recorded = prepared.identity()
        return prepared.run.method.num_adapt_steps, recorded.get("adapt_steps")

    # 64 texts a step are 16 questions of four choices.
    assert steps(20) == (63, 63)
    assert steps(20, adapt_steps=30) == (30, None)
    assert steps(20, adapt_steps=400) == (400, None)
    assert steps(128) == (400, None)
    # Neither limit is there where val does not end the run, nor in studies.
    for options in ({"val_every": 0}, {"num_steps": 10}, {"scores_val": False}):
        assert steps(20, **options) == (400, None)
