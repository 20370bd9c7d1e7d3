"""The table of docs/method.md says what the code does: every option, its default first, and all its choices."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from advl_pipeline.base.configuration import declared, kinds_of, option_values
from advl_pipeline.studies.config import SHIPPED
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.resolved import resolve_method

SECTION = (Path(__file__).parents[2] / "docs/method.md").read_text(encoding="utf-8")
HEADER = "| part | options (default first) | fixed by |\n| --- | --- | --- |\n"
ROWS = list(itertools.takewhile(lambda line: line.startswith("| "), SECTION.partition(HEADER)[2].splitlines()))
TOLD = {
    name.replace("-", "_"): [value.strip() for value in values.split(",") if value.strip()]
    for row in ROWS
    for name, values in re.findall(r"`--([a-z-]+)([^`]*)`", row)
    if not (name == "selection" and values.strip() == "random")
}
METHOD_OPTIONS = {"method", "hide_picture"} | {
    name
    for name, option in declared(FinetuneConfig).items()
    if option.title in ("Teachers", "Distillation", "Adapt step")
}


def default_of(name: str) -> object:
    """Return the default that `advl` runs with."""
    config = FinetuneConfig(dataset="any", output=Path("any"), cache=(Path("any"),))
    value = option_values(config)[name]
    if value is not None:
        return value
    method = resolve_method(config)
    return "two" if name == "steps" and method.num_adapt_steps else getattr(method.settings, name)


def choices_of(name: str) -> set[str]:
    _, words = kinds_of(declared(FinetuneConfig)[name].hint)
    return set(words)


def test_every_option_of_the_method_has_a_row() -> None:
    assert set(TOLD) == METHOD_OPTIONS


def test_default_and_choices_are_those_of_the_code() -> None:
    for name, values in TOLD.items():
        if not values or name == "cache":
            continue
        default, choices = default_of(name), choices_of(name)
        if choices:
            assert values[0] == default, name
            assert set(values) == choices, name
        else:
            assert [float(value) for value in values] == [default], name


def test_every_row_says_who_fixed_it() -> None:
    for row in ROWS:
        source = row.strip("| ").split("|")[-1].strip()
        assert source.startswith(("paper", "our reading", "ours", "others' work")), row


def test_controls_are_named() -> None:
    for name in SHIPPED:
        assert name == "advl" or f"`{name}`" in SECTION, name
