"""Every command, option and exit code is documented as it is; the table of docs/method.md says what the code does."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from advl_cli.reference import render_reference, with_student_table
from advl_pipeline.base import errors
from advl_pipeline.base.configuration import declared, kinds_of, option_values
from advl_pipeline.students.registry import families, student_names
from advl_pipeline.studies.config import SHIPPED
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.resolved import resolve_method

DOCS = Path(__file__).parents[2] / "docs"
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9_-]+")
OF_OTHER_TOOLS = set(
    "--nproc-per-node --nnodes --rdzv-backend --rdzv-endpoint --multi_gpu --num_processes --cpu --head --array "
    "--wrap --gpus --no-python".split()
)
"""Of torchrun, accelerate, Ray and Slurm."""
OF_BENCHMARKS = {"--quick", "--only", "--markdown", "--json"}


def test_the_command_reference_is_up_to_date() -> None:
    written = (DOCS / "cli.md").read_text(encoding="utf-8")
    assert written == render_reference(), "docs/cli.md is out of date: run `make docs`"
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", written), "a control character"


def test_every_option_that_a_page_names_is_there() -> None:
    known = set(OPTION.findall((DOCS / "cli.md").read_text(encoding="utf-8"))) | OF_OTHER_TOOLS | OF_BENCHMARKS
    pages = [*DOCS.parent.glob("*.md"), *DOCS.rglob("*.md")]
    # These pages tell of options that there were.
    wrong = {
        f"{page.name}: {name}"
        for page in pages
        if page.name not in ("CHANGELOG.md", "experiments-history.md", "upgrading.md")
        for name in set(OPTION.findall(page.read_text(encoding="utf-8"))) - known
    }
    assert not wrong


def test_the_page_of_upgrading_names_replacements_that_are_there() -> None:
    known = set(OPTION.findall((DOCS / "cli.md").read_text(encoding="utf-8")))
    page = (DOCS / "upgrading.md").read_text(encoding="utf-8")
    replacements = re.findall(r"^\|.*\|([^|]*)\|$", page, re.MULTILINE)
    assert {name for replacement in replacements for name in OPTION.findall(replacement)} <= known


def test_every_exit_code_is_documented() -> None:
    table = (DOCS / "exit-codes.md").read_text(encoding="utf-8")
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", table, flags=re.MULTILINE)}
    used = {
        value.exit_code for value in vars(errors).values() if isinstance(value, type) and hasattr(value, "exit_code")
    }
    assert used <= documented


def test_the_table_of_students_is_what_is_known_of_them() -> None:
    page = (DOCS / "students.md").read_text(encoding="utf-8")
    assert page == with_student_table(page), "docs/students.md is out of date: run `make docs`"
    for family, facts in families().items():
        assert facts.proof in page, family
    for name in student_names():
        assert f"`{name}`" in page or name.endswith("-tiny"), name


SECTION = (DOCS / "method.md").read_text(encoding="utf-8")
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
    if option.title in ("Teachers", "Distillation", "Adapt stage")
}


def default_of(name: str) -> object:
    """Return the default that `advl` runs with."""
    config = FinetuneConfig(dataset="any", output=Path("any"), cache=(Path("any"),))
    value = option_values(config)[name]
    if value is not None:
        return value
    method = resolve_method(config)
    if name == "adapt_steps":
        return method.num_adapt_steps
    return "two" if name == "stages" and method.num_adapt_steps else getattr(method.settings, name)


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
