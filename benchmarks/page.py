"""The table of `docs/performance.md`, rendered from what sections have found, and put between two marks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.rows import Row

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
GPU_MARKS = "<!-- measured on a GPU: begin -->", "<!-- measured on a GPU: end -->"


def render(sections: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table in Markdown.

    Args:
        sections: for each, the `machine`, its `seconds` and its `rows`, as the JSON file holds them.
    """
    parts = []
    for name, found in sections.items():
        rows = [Row(**row) for row in found["rows"]]
        parts.append(f"**{name}**: {found['machine']}; {found['seconds']:.0f} s.")
        parts.append(_table([[row.name, row.found, row.bound, row.verdict, row.detail] for row in rows]))
    return "\n\n".join(parts)


def write_page(path: Path, table: str, *, marks: tuple[str, str] = (BEGIN, END)) -> None:
    """Put the table between the marks of a page; raises `ValueError` where it has none."""
    first, last = marks
    before, begin, rest = path.read_text(encoding="utf-8").partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise ValueError(f"{path} has no place for the table ({first} ... {last})")
    path.write_text(f"{before}{first}\n\n{table}\n\n{last}{after}", encoding="utf-8")


def _table(rows: Sequence[Sequence[str]]) -> str:
    header = ["what", "found", "goal", "", "made of"]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows))
