"""An option that was given is obeyed or refused; one that was not is no part of the identity of its run."""

from __future__ import annotations

import dataclasses
import itertools
import json
import types
import typing
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_origin

import pytest
from run_logs import load_json

from advl_pipeline.base.configuration import build_config, config_to_dict, declared, unused_options
from advl_pipeline.base.errors import ConfigError
from advl_pipeline.datasets.config import facts_of_data
from advl_pipeline.datasets.records import head_name
from advl_pipeline.training import resolved
from advl_pipeline.training.build_model import student_options
from advl_pipeline.training.config import DEFAULT_EPOCHS, SCHEMA, FinetuneConfig
from advl_pipeline.training.facts import facts_of_run
from advl_pipeline.training.identity import run_identity
from advl_pipeline.training.recipes import default_numbers
from advl_pipeline.training.resolved import resolve_method, resolve_run

OWN = "mine.jsonl"
KINDS = {"vcr": ("vcr-q2a",), "vqa-v2": ("vqa",), "snli-ve": ("snli-ve",), OWN: ("choice",)}
METHODS = ("plain", "plain-two-step", "naive-kd", "advl")

HINTS = {name: option.hint for name, option in declared(FinetuneConfig).items()}
FIELDS = {name: option.field for name, option in declared(FinetuneConfig).items()}

BY_DESIGN = {
    **dict.fromkeys(("data_root", "output"), "where things lie"),
    **dict.fromkeys(("num_workers", "pictures"), "how fast things are read"),
    **dict.fromkeys(("checkpoint_every", "resume", "log_with"), "what is kept on the way"),
    "deterministic": "in which order a GPU adds up",
    "dataset": "the data themselves",
}
"""Options that change no number of a run."""

ACT_LATER = frozenset(
    "device mixed_precision method cache split task shots ids pool init gradient_checkpointing base_dtype "
    "hide_picture lora_rank head_answers known_words confidence confidence_folds confidence_check seed "
    "teacher_control adapt_on adapt_texts distill_weight adapt_lr_scale val_every hold_out".split()
)
"""Options that act on data, caches and models once these are opened; tests of their own show what each does."""

VALUES: dict[str, Any] = {
    "adapt_on": ("subset",),
    "cache": (Path("caches/b"),),
    "answer_weight": 0.5,
    "student": "uniter-base",
    "dataset": "other.jsonl",
    "student_option": ("num_layers=3",),
    "recipe": "none",
    "split": "val",
    "regions": (Path("caches/import-butd/vcr/train"),),
}


BESIDE: dict[str, dict[str, Any]] = {
    "projector": {"distance": "cosine"},
}
"""Option -> others without which it is refused."""


def another(field: dataclasses.Field[Any], hint: Any) -> Any:
    """Return a value of an option that is not its default."""
    if field.name in VALUES:
        return VALUES[field.name]
    if get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(argument for argument in get_args(hint) if argument is not type(None))
    if get_origin(hint) is Literal:
        return next(value for value in reversed(get_args(hint)) if value != field.default)
    if get_origin(hint) is tuple:
        return (another(field, get_args(hint)[0]),)
    if hint is bool:
        return not field.default
    if hint in (int, float):
        return hint(2) if field.default is None or field.default == 1 else hint(field.default / 2) or hint(1)
    return hint("given")


def fingerprint(config: FinetuneConfig, kind: str) -> list[Any]:
    """Return what is decided of a run before its data are opened."""
    run = resolve_run(
        config, resolve_method(config), kind=head_name(KINDS[kind][0]), num_labelled=1000, is_published=kind != OWN
    )
    options = student_options(config_to_dict(config))
    return [run.method, run.settings.to_dict(), options, config.reading, config.student]


@pytest.mark.parametrize("name", FIELDS)
def test_an_option_changes_the_run_or_is_refused(name: str) -> None:
    value = another(FIELDS[name], HINTS[name])
    outcomes = set()
    for kind, method, init in itertools.product(KINDS, METHODS, (None, Path("weights"))):
        base = build_config(
            FinetuneConfig,
            {"dataset": kind, "output": "runs/a", "method": method, "cache": (Path("caches/a"),), "init": init},
            BESIDE.get(name, {}),
        )
        try:
            config = build_config(FinetuneConfig, config_to_dict(base), {name: value})
            facts = facts_of_run(config, resolve_method(config), val_decides=kind == OWN)
            if name in unused_options(config, facts_of_data(KINDS[kind]) | facts):
                outcomes.add("refused")
                continue
            usual = resolve_method(base)
            # The method's own choice, said aloud.
            changed = value in (getattr(usual.settings, name, None), getattr(usual, name, None))
            changed |= name in BY_DESIGN or name in ACT_LATER or fingerprint(config, kind) != fingerprint(base, kind)
        except ConfigError:
            outcomes.add("refused")
            continue
        assert changed, f"--{name} {value} does nothing on {kind} with {method} and --init {init}"
        outcomes.add("obeyed")
    assert "obeyed" in outcomes, f"--{name} is never obeyed"


PROJECTED = {"projector": "mlp", "pathway": "vision", "distance": "cosine"}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *(
            ("projector", {**PROJECTED, "method": "naive-kd", **changes})
            for changes in (
                {"distance": "relational"},
                {"pathway": "text"},
                {"method": "plain", "cache": ()},
                {"distill_weight": 0.0},
            )
        ),
        ("answers_of", {"answers_of": "student", "stages": "one"}),
        ("answers_of", {"answers_of": "student", "answer_weight": 0.0}),
    ],
)
def test_an_option_that_nothing_reads_is_told(name: str, options: dict[str, Any]) -> None:
    config = build_config(FinetuneConfig, {"dataset": "d", "output": "o", "cache": (Path("caches/a"),)}, options)
    assert name in unused_options(config, facts_of_run(config, resolve_method(config), val_decides=True))


def test_what_is_left_out_is_an_option_for_one_reason() -> None:
    assert BY_DESIGN.keys() | ACT_LATER <= FIELDS.keys()
    assert not BY_DESIGN.keys() & ACT_LATER


STORED = Path(__file__).parents[1] / "assets" / "run_defaults.json"


def defaults() -> dict[str, Any]:
    """Return the schema's number and everything that stands for options that are not given."""
    options = config_to_dict(FinetuneConfig(dataset="", output=Path()))
    del options["student"]  # It stands in every identity.
    document = {
        "schema": SCHEMA,
        "options": options,
        "without a recipe": default_numbers("choice") | {"epochs": DEFAULT_EPOCHS},
        "by method": resolved._DEFAULTS,
    }
    return cast(dict[str, Any], json.loads(json.dumps(document)))


def test_another_default_takes_another_schema() -> None:
    stored = load_json(STORED)
    assert defaults() == stored, (
        "a default is another: raise SCHEMA of training/config.py, and write the file anew by "
        f"python {Path(__file__).relative_to(Path.cwd())}; a new option is written into it without raising"
    )


def test_an_option_is_read_and_recorded_by_the_name_that_it_had_in_an_earlier_version() -> None:
    required = {"dataset": "vcr", "output": "run"}
    given = build_config(FinetuneConfig, required, {"steps": "one"})
    assert given.adapt.stages == "one"
    recorded = run_identity(config_to_dict(given))
    assert recorded["steps"] == "one"
    assert "stages" not in recorded
    with pytest.raises(ConfigError, match="set twice"):
        build_config(FinetuneConfig, {**required, "steps": "one", "stages": "two"})


def test_what_is_left_at_its_default_is_not_in_the_identity() -> None:
    config = build_config(
        FinetuneConfig, {"dataset": "d", "output": "o", "student": "vilt", "seed": 0, "num_steps": 5}
    )
    assert run_identity(config_to_dict(config)) == {"dataset": "d", "num_steps": 5, "student": "vilt"}


if __name__ == "__main__":
    STORED.write_text(json.dumps(defaults(), indent=1, sort_keys=True) + "\n", encoding="utf-8")
