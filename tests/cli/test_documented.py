"""Every command, option and exit code is documented, and the reference is the commands' own."""

from __future__ import annotations

import re
from pathlib import Path

from advl_cli.reference import render_reference
from advl_pipeline import errors

DOCS = Path(__file__).parents[2] / "docs"


def test_the_command_reference_is_up_to_date() -> None:
    written = (DOCS / "cli.md").read_text(encoding="utf-8")
    assert written == render_reference(), "docs/cli.md is out of date: run `make docs`"


def test_every_exit_code_is_documented() -> None:
    table = (DOCS / "exit-codes.md").read_text(encoding="utf-8")
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", table, flags=re.MULTILINE)}
    used = {
        value.exit_code for value in vars(errors).values() if isinstance(value, type) and hasattr(value, "exit_code")
    }
    assert used <= documented
