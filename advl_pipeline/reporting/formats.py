"""A study as text for the terminal, Markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import pandas as pd

from advl_pipeline.configuration import to_plain
from advl_pipeline.reporting import wording
from advl_pipeline.reporting.answer import answers, nothing_yet
from advl_pipeline.reporting.tables import LONG_COLUMNS, long_rows, readout_tables, wide_tables
from advl_pipeline.studies.claims import judge_claims
from advl_pipeline.studies.result import StudyResult

_LATEX_SPECIAL = str.maketrans(
    {
        "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
        "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}",
        "±": r"$\pm$", wording.MINUS: "$-$", "→": r"$\to$", "–": "--",
        "<": "$<$", ">": "$>$", "|": r"\textbar{}", '"': "''",
    }
)  # fmt: skip

_LEGEND = (
    "mean ± standard deviation over seeds; in brackets the change in points against the baseline and Holm's p over "
    "seeds (paired t) and over items (sign flips), then that against the best control"
)


def as_text(result: StudyResult) -> str:
    """Render the answer, the tables and the verdicts for a terminal."""
    lines = _opening(result)
    for table in wide_tables(result):
        lines += ["", table.title, *_aligned(table.grid())]
    lines += ["", _legend(result)]
    readouts = readout_tables(result)
    if readouts:
        lines += ["", f"{wording.READOUT_QUESTION} {wording.READOUT_EXPLAINED}"]
    for table in readouts:
        lines += ["", table.title, *_aligned(table.grid())]
    verdicts = judge_claims(result)
    lines += [""] if verdicts else []
    for verdict in verdicts:
        prefix = f"{verdict.setting}: " if len(result.study.settings) > 1 else ""
        lines.append(f"{verdict.claim}  {verdict.outcome.upper():<23} {prefix}{verdict.statement} {verdict.reason}")
    return "\n".join([*lines, *_unfinished(result)])


def _opening(result: StudyResult) -> list[str]:
    return [str(answer) for answer in answers(result)] or [nothing_yet(result)]


def _legend(result: StudyResult) -> str:
    return _LEGEND if len(result.study.methods) > 1 else "mean ± standard deviation over seeds"


def _unfinished(result: StudyResult) -> list[str]:
    number = len(result.cells) - result.num_finished
    return [f"{number} of {len(result.cells)} cells are not finished; the same command goes on."] if number else []


def as_markdown(result: StudyResult, *, title: str | None = None) -> str:
    """Render the answer, the tables and the verdicts as Markdown; without verdicts where a title is given."""
    heading = result.study.title or result.study.name if title is None else title
    lines = [f"# {_md(heading)}"]
    for line in _opening(result):
        lines += ["", _md(line)]
    for table in wide_tables(result):
        lines += ["", f"## {_md(table.title)}", "", *_md_table(table.grid())]
    lines += ["", _legend(result)]
    readouts = readout_tables(result)
    if readouts:
        lines += ["", f"## {wording.READOUT_QUESTION}", "", wording.READOUT_EXPLAINED]
    for table in readouts:
        lines += ["", f"### {_md(table.title)}", "", *_md_table(table.grid())]
    verdicts = judge_claims(result) if title is None else ()
    if verdicts:
        lines += ["", "## Claims", "", "| claim | setting | verdict | why |", "|---|---|---|---|"]
    for verdict in verdicts:
        cells = (f"{verdict.claim} {verdict.statement}", verdict.setting, verdict.outcome, verdict.reason)
        lines.append("| " + " | ".join(map(_md, cells)) + " |")
    return "\n".join([*lines, *(f"\n{line}" for line in _unfinished(result)), ""])


def as_latex(result: StudyResult) -> str:
    """Render the tables as LaTeX tabulars for booktabs."""
    blocks = []
    for table in wide_tables(result):
        header, *rows = table.grid()
        lines = [
            f"% {'; '.join([table.title, _legend(result), *_unfinished(result)])}".replace("\n", " "),
            r"\begin{tabular}{ll" + "r" * len(table.columns) + "}",
            r"\toprule",
            " & ".join(_tex(item) for item in header) + r" \\",
        ]
        previous = None
        for row in rows:
            if row[0] != previous:
                lines.append(r"\midrule")
            previous = row[0]
            lines.append(" & ".join(_tex(item) for item in row) + r" \\")
        if table.caveats:
            span = 2 + len(table.columns)
            lines.append(rf"\midrule \multicolumn{{{span}}}{{l}}{{{_tex('; '.join(table.caveats))}}} \\")
        blocks.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}"]))
    return "\n\n".join(blocks) + "\n"


def as_csv(result: StudyResult) -> str:
    """Render the long table as CSV, unrounded; empty where there is no number."""
    frame = pd.DataFrame(long_rows(result), columns=list(LONG_COLUMNS), dtype=object)
    return frame.to_csv(index=False, lineterminator="\n")


def as_items(result: StudyResult) -> str:
    """Render the tidy table of item scores as CSV: a row is a run, a test set, a metric, a view and an item."""
    return result.items.to_csv(index=False, lineterminator="\n")


def as_json(result: StudyResult) -> str:
    """Render everything that was gathered, but the items, as JSON; a frame is a list of records."""
    gathered = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    document = {
        "answers": answers(result),
        "verdicts": judge_claims(result),
        "table": long_rows(result),
        **{
            name: value.to_dict("records") if isinstance(value, pd.DataFrame) else value
            for name, value in gathered.items()
            if name not in ("items", "trivial")
        },
        "trivial": [
            {"setting": setting, "metric": metric, "test_set": test_set, **found}
            for (setting, metric, test_set), found in result.trivial.items()
        ],
    }
    return json.dumps(to_plain(document), indent=2, ensure_ascii=False) + "\n"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(item.ljust(width) for item, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _md_table(grid: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table whose first two columns are words and whose others are numbers."""
    header, *rows = ["| " + " | ".join(map(_md, row)) + " |" for row in grid]
    return [header, "|---|---|" + "--:|" * (len(grid[0]) - 2), *rows]


def _md(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _tex(text: str) -> str:
    return text.translate(_LATEX_SPECIAL)
