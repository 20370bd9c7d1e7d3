"""Every command, option and exit code is documented, and the reference is the commands' own."""

from __future__ import annotations

import re
from pathlib import Path

from advl_cli.reference import render_reference, with_student_table
from advl_pipeline.base import errors
from advl_pipeline.students.registry import families, student_names

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
    # Two pages tell of options that there were.
    wrong = {
        f"{page.name}: {name}"
        for page in pages
        if page.name not in ("CHANGELOG.md", "experiments-history.md")
        for name in set(OPTION.findall(page.read_text(encoding="utf-8"))) - known
    }
    assert not wrong


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
        assert facts["proof"] in page, family
    for name in student_names():
        assert f"`{name}`" in page or name.endswith("-tiny"), name
