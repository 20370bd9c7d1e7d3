"""README is short, and its picture says what its table says. Its commands run in tests/check_wheel.py."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def figure() -> Any:
    """The module that draws the picture."""
    pytest.importorskip("matplotlib", reason="the extra `site` is not installed")
    spec = importlib.util.spec_from_file_location("figure", ROOT / "docs" / "figure.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_readme_is_read_in_a_few_minutes() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_the_picture_is_drawn_from_the_table(figure: Any, tmp_path: Path) -> None:
    sets, rows = figure.read_table((ROOT / "README.md").read_text(encoding="utf-8"))
    values = [f"{mean:.1f}" for _, cells in rows for mean, _ in cells]
    assert len(values) == len(sets) * len(rows) == 9
    figure.main(tmp_path)
    for theme in figure.INKS:
        kept, drawn = (
            re.findall(r">([^<>]+)</text>", (folder / f"demo-{theme}.svg").read_text(encoding="utf-8"))
            for folder in (ROOT / "docs", tmp_path)
        )
        assert kept == drawn
        assert sorted(text for text in kept if re.fullmatch(r"\d+\.\d", text)) == sorted(values)
