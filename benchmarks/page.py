"""The tables of `docs/performance.md`, rendered from the figures of a run and put between two marks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def render(figures: Mapping[str, Any], goals: Sequence[Mapping[str, Any]]) -> str:
    """Return the tables in Markdown."""
    parts = [f"{figures['machine']}; sizes: {figures['sizes']}."]
    for name, rates in figures.get("reading", {}).items():
        rows = [[rate["name"], _thousands(rate["warm"]), _thousands(rate["cold"])] for rate in rates]
        parts.append(_table([f"{name}, thousand units/s", "warm", "cold"], rows))
    if skipped := figures.get("skipped"):
        parts.append("Not measured: " + "; ".join(skipped) + ".")
    if variants := figures.get("variants"):
        rows = [
            [
                item["name"],
                f"{item['num_bytes'] / 1e6:.0f}",
                _thousands(item["units_per_second"]),
                f"{item['cosine_error']:.1e}",
            ]
            for item in variants
        ]
        parts.append(_table(["stored as", "MB of tokens", "thousand texts/s, warm", "largest 1 - cosine"], rows))
    if writing := figures.get("writing"):
        rows = [[name.replace("_", " "), f"{rate:.{0 if rate >= 10 else 2}f}"] for name, rate in writing.items()]
        parts.append(_table(["extraction with minilm-l6", "texts/s, or ratio"], rows))
    if feed := figures.get("feed"):
        names = {"photos": "photos of 1280 x 720 at 384", "stored": "stored pictures at 384", "regions": "36 regions"}
        rows = [
            [said, *(f"{feed[name][key]:.0f}" for key in ("per_core", "one_worker", "two_workers"))]
            for name, said in names.items()
        ]
        header = ["examples/s without a model", "per core", "one worker, clock", "two workers, clock"]
        parts.append(_table(header, [["decoding alone", f"{feed['decoding']:.0f}", "", ""], *rows]))
    if training := figures.get("training"):
        rows = [[name.replace("_", " "), f"{value:.4f}"] for name, value in training.items()]
        parts.append(_table(["training step", "seconds, or share"], rows))
    if students := figures.get("students"):
        rows = [[name.replace("_", " "), f"{value:.2f}"] for name, value in students.items()]
        parts.append(_table(["training uniter-base", "questions/s, ratio or share"], rows))
    rows = [
        [
            goal["name"],
            f"{goal['value']:.3g} ({'at least' if goal['at_least'] else 'at most'} {goal['target']:g})",
            "PASS" if goal["is_met"] else "FAIL",
        ]
        for goal in goals
    ]
    parts.append(_table(["goal", "found", ""], rows))
    return "\n\n".join(parts)


def write_page(path: Path, tables: str) -> None:
    """Put the tables between the marks of a page; raises `ValueError` where it has none."""
    before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} has no place for the tables ({BEGIN} ... {END})")
    path.write_text(f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}", encoding="utf-8")


def _thousands(rate: float) -> str:
    return f"{rate / 1e3:.1f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines)
