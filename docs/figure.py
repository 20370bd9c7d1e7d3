"""Draw README's table of results as docs/results-light.svg and docs/results-dark.svg: python docs/figure.py.

The table is the only source, so that the picture never says anything else.
"""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot

DOCS = Path(__file__).parent
CHANCE = 25
INKS = {"light": ("#1f2328", "#0969da", "#8c959f"), "dark": ("#e6edf3", "#58a6ff", "#6e7681")}
"""Theme -> colours of text, of the method that is asked about, and of the others."""

CELL = re.compile(r"([\d.]+) ± ([\d.]+)")


def read_table(readme: str) -> tuple[list[str], list[tuple[str, list[tuple[float, float]]]]]:
    """Return the test sets, and (method, its mean and standard deviation on each) from the first table of results."""
    lines = readme.partition("## What it brings")[2].partition("\n##")[0].splitlines()
    rows = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    series = []
    for name, *cells in rows[2:]:
        values = [CELL.search(cell) for cell in cells]
        series.append((name, [(float(value[1]), float(value[2])) for value in values if value]))
    return rows[0][1:], series


def draw(theme: str, path: Path) -> None:
    """Draw a dot with its spread for each method and test set, the value beside it."""
    sets, rows = read_table((DOCS.parent / "README.md").read_text(encoding="utf-8"))
    ink, strong, weak = INKS[theme]
    figure, axes = pyplot.subplots(1, len(sets), figsize=(8, 2.3), sharey=True, sharex=True, layout="constrained")
    for place, (axis, name) in enumerate(zip(axes, sets, strict=True)):
        for row, (method, values) in enumerate(rows):
            mean, spread = values[place]
            colour = strong if method == "ADVL" else weak
            axis.errorbar(mean, row, xerr=spread, fmt="o", color=colour, markersize=8, linewidth=2)
            axis.annotate(f"{mean:.1f}", (mean, row - 0.28), ha="center", color=ink, fontsize=9)
        axis.axvline(CHANCE, color=weak, linestyle=":", linewidth=1)
        axis.set_title(name, color=ink, fontsize=10, loc="left")
        axis.set_yticks(range(len(rows)), [method.replace("control: ", "") for method, _ in rows])
        axis.tick_params(colors=ink, labelsize=9, length=0)
        axis.spines[:].set_visible(False)
    axes[0].set_ylim(len(rows) - 0.5, -0.6)
    axes[0].set_xlim(CHANCE - 2, max(mean for _, values in rows for mean, _ in values) + 5)
    figure.supxlabel("percent right of four choices; dotted: chance", color=ink, fontsize=9)
    figure.savefig(path, transparent=True, bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)


def main(folder: Path = DOCS) -> None:
    """Draw both."""
    # Letters as letters, and the same names in every drawing: the files are equal when the table is.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "advl", "font.family": "sans-serif"})
    for theme in INKS:
        draw(theme, folder / f"results-{theme}.svg")


if __name__ == "__main__":
    main()
