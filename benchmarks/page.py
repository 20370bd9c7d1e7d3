"""The table of `docs/performance.md`, rendered from what sections have found, and put between two marks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.rows import Row

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


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


def write_page(path: Path, table: str) -> None:
    """Put the table between the marks of a page; raises `ValueError` where it has none."""
    before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} has no place for the table ({BEGIN} ... {END})")
    path.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}", encoding="utf-8")


def _table(rows: Sequence[Sequence[str]]) -> str:
    header = ["what", "found", "goal", "", "made of"]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows))
