"""The numbers of a study as tables, and the tables as text for the terminal, Markdown, CSV and JSON.

The frame has a row for each number; the tables are laid out for people, by templates in `assets/`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import jinja2
import pandas as pd

from advl_pipeline.base.configuration import json_text
from advl_pipeline.base.inert import inert_cell, inert_markdown, inert_text
from advl_pipeline.evaluation.statistics import summarise
from advl_pipeline.reporting import wording
from advl_pipeline.reporting.answer import answers, nothing_yet
from advl_pipeline.runs.evaluations import without_the_unmeasured
from advl_pipeline.studies.claims import judge_claims
from advl_pipeline.studies.config import shots_rank
from advl_pipeline.studies.forecast import StudyForecast
from advl_pipeline.studies.numbers import Lost, Number
from advl_pipeline.studies.result import StudyReadout, StudyResult
from advl_pipeline.studies.table import Place

_RANDOM = "random:"
_WITHOUT_STUDENT = {"prior": "prior of the question", "majority": "majority answer", "chance": "chance"}

FRAME_COLUMNS = (*Place._fields, "method", "against", "quantity", "statistic", "value", "low", "high", "caveats")
"""Columns of the frame of numbers. Accuracies are in percent and differences in points; low and high are 95 %."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownTable:
    """A table laid out for people.

    `head` contains the rows that belong to no method, by name: chance, the majority answer. Each of `rows` has
    `shots`, `method`, `label`, `role`, `note` and `cells`. A cell has its `text` and the parts that the page formats
    separately; it is None if nothing was measured.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Mapping[str, Any]]
    head: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    caveats: tuple[str, ...] = ()

    @property
    def titled(self) -> str:
        """The title with the caveats."""
        return f"{self.title} ({'; '.join(self.caveats)})" if self.caveats else self.title

    def grid(self) -> list[list[str]]:
        """Return the texts of all cells, with the column names in the first row."""
        lines = [["shots", "method", *self.columns]]
        lines += [["", name, *values] for name, values in self.head.items()]
        for row in self.rows:
            cells = (cell["text"] if cell else "" for cell in row["cells"])
            lines.append([row["shots"], row["label"], *cells])
        return lines


def wide_tables(result: StudyResult) -> tuple[ShownTable, ...]:
    """Arrange the accuracies: one table per setting and metric, rows by shots and method, columns by test set."""
    tables, study = [], result.study
    for setting in study.settings:
        for metric in setting.metrics:
            places = [place for place in result.numbers.places() if place[:2] == (setting.name, metric)]
            by_shots: dict[str, dict[str, Place]] = {}
            for place in sorted(places, key=lambda place: place.rank):
                by_shots.setdefault(place.shots, {})[place.test_set] = place
            rows = []
            for shots, by_set in by_shots.items():
                for method in study.methods:
                    of_sets = (by_set.get(name) for name in setting.test_sets)
                    cells = tuple(_accuracy(result, place, method) if place else None for place in of_sets)
                    if any(cells):
                        # Name the baseline of the method if it is not the study's.
                        label, baseline = wording.method_label(study, method), study.baseline_of(method)
                        if baseline != study.baseline:
                            label += f" (against {wording.method_label(study, baseline)})"
                        rows.append(_row(result, shots, method, label, cells))
            trivial = (result.trivial.get((setting.name, metric, name)) for name in setting.test_sets)
            known = list(map(wording.without_student, trivial))
            head = {label: tuple(each[name] for each in known) for name, label in _WITHOUT_STUDENT.items()}
            if rows:
                title = f"{setting.name}, {wording.metric_name(metric)} in percent"
                head = {label: texts for label, texts in head.items() if any(texts)}
                caveats = result.caveats.get(setting.name, ())
                tables.append(
                    ShownTable(title=title, columns=setting.test_sets, rows=rows, head=head, caveats=caveats)
                )
    return tuple(tables)


def _row(result: StudyResult, shots: str, method: str, label: str, cells: Sequence[Any]) -> dict[str, Any]:
    variant = result.study.variant(method)
    leading = {"shots": shots, "method": method, "label": label, "role": variant.role, "note": variant.note}
    return leading | {"cells": cells}


def _accuracy(result: StudyResult, place: Place, method: str) -> dict[str, Any] | None:
    """Return a method's accuracy and gain over its baseline; for the focus method, also over the best control."""
    study, numbers = result.study, result.numbers
    if (row := numbers.accuracy(place, method)) is None:
        return None
    estimate, num_seeds = row.estimate, len(row.estimate.by_seed)
    accuracy = wording.spread(estimate.mean, estimate.deviation)
    if num_seeds < len(study.seeds):
        accuracy += f", {wording.seeds(num_seeds)}"
    gain = numbers.gain(place, method, study.baseline_of(method))
    control = result.best_control(place) if method == study.focus else None
    over = numbers.gain(place, method, control.method) if control else None
    text, best = accuracy, wording.over(study, over.against) if over else ""
    if gain:
        tests = f"{wording.p_value(gain.p_seed_holm)}, {wording.p_value(gain.p_item_holm)}"
        above = f"; best control {wording.signed(over.estimate.mean)}" if over else ""
        text += f" ({wording.signed(gain.estimate.mean)}; {tests}{above})"
    return {"text": text, "accuracy": accuracy, "gain": gain, "over_best": over, "best": best}


def loss_tables(result: StudyResult, quantity: Lost) -> tuple[ShownTable, ...]:
    """Arrange the losses on each shifted test set ("drop"), or with each kind of replaced picture ("use")."""
    by_title: dict[str, list[Mapping[str, Any]]] = {}
    losses = [loss for loss in result.numbers.losses if loss.quantity == quantity]
    for loss in sorted(losses, key=lambda loss: loss.place.rank):
        place, change = loss.place, loss.change
        sides = f"{place.test_set}, picture {loss.against}"
        if loss.questions:
            sides = f"{loss.against} → {place.test_set}, {wording.QUESTIONS[loss.questions]}"
        texts = [wording.percent(loss.before.mean), wording.percent(loss.after.mean)]
        texts.append(wording.spread(-loss.lost.mean, loss.lost.deviation, wording.signed))
        interval = change and wording.interval(change.interval and change.interval.scaled(-1.0))
        texts.append(f"{wording.signed(-change.mean)} {interval}".rstrip() if change else "")
        label = wording.method_label(result.study, loss.method)
        cells = [{"text": text} for text in texts]
        title = f"{place.setting}, {wording.metric_name(place.metric)} in percent: {sides}"
        by_title.setdefault(title, []).append(_row(result, place.shots, loss.method, label, cells))
    columns = ("before", "after", "change", "change minus the baseline's")
    return tuple(ShownTable(title=title, columns=columns, rows=rows) for title, rows in by_title.items())


def readout_tables(result: StudyResult) -> tuple[ShownTable, ...]:
    """Arrange the readouts: one table per setting, rows by shots and method, columns by nodes and teacher.

    A random teacher has no column of its own. Its runs are compared with it, since they have no other teacher. A
    student that comes to agree with it shows that the adapt stage works, not that it learned anything true. The row
    says so.
    """
    tables = []
    for setting in result.study.settings:
        readouts = [row for row in result.readouts if row.setting == setting.name]
        columns = list(dict.fromkeys(map(_nodes_and_teacher, readouts)))
        rows = []
        sizes = sorted({row.shots for row in readouts}, key=shots_rank)
        for shots, method in itertools.product(sizes, result.study.methods):
            alike = [row for row in readouts if (row.shots, row.method) == (shots, method)]
            if not alike:
                continue
            label = wording.method_label(result.study, method)
            if any(row.teacher.startswith(_RANDOM) for row in alike):
                label += " (compared with that random teacher)"
            by_column = {column: [row for row in alike if _nodes_and_teacher(row) == column] for column in columns}
            cells: list[dict[str, str] | None] = []
            for runs in by_column.values():
                if not runs:
                    cells.append(None)
                    continue
                before = wording.percent(fmean(row.before for row in runs))
                after = wording.spread(*summarise([row.after for row in runs])[:2])
                cells.append({"text": f"{before} → {after}", "before": before, "after": after})
            number = {"text": str(max(map(len, by_column.values())))}
            rows.append(_row(result, shots, method, label, (*cells, number)))
        if rows:
            title = f"{setting.name}, choices that agree with the teacher's, in percent"
            chance = [
                wording.percent(fmean(row.chance for row in readouts if _nodes_and_teacher(row) == column))
                for column in columns
            ]
            head, caveats = {"chance": (*chance, "")}, result.caveats.get(setting.name, ())
            tables.append(ShownTable(title=title, columns=(*columns, "runs"), rows=rows, head=head, caveats=caveats))
    return tuple(tables)


def _nodes_and_teacher(row: StudyReadout) -> str:
    """Return the column of a readout."""
    return f"{row.nodes}, " + re.sub(rf"^{_RANDOM}([^@]*).*", r"\1", row.teacher)


def frame_rows(result: StudyResult) -> list[dict[str, Any]]:
    """Return every number as a record, unrounded; keys are `FRAME_COLUMNS`.

    The accuracies without a student are among them, under the name of how it answers in place of a method.
    """
    rows = []
    for number in (*result.numbers.frame(), *_without_student(result)):
        low, high = (number.interval.low, number.interval.high) if number.interval else (None, None)
        about = {"method": number.method, "against": number.against, "quantity": number.quantity}
        value = {"statistic": number.statistic, "value": number.value, "low": low, "high": high}
        caveats = "; ".join(result.caveats.get(number.place.setting, ()))
        rows.append({**number.place._asdict(), **about, **value, "caveats": caveats})
    return rows


def _without_student(result: StudyResult) -> Iterator[Number]:
    for place in result.numbers.places():
        if (trivial := result.trivial_of(place)) is not None:
            percents = {"prior": trivial.prior, "majority": trivial.majority, "chance": trivial.chance}
            for name, percent in percents.items():
                if percent is not None:
                    method = _WITHOUT_STUDENT[name]
                    yield Number(place=place, method=method, quantity="accuracy", statistic="mean", value=percent)


def render_report(template: str, result: StudyResult, **more: Any) -> str:
    """Render a template with the content of every report: the answer, the tables and the verdicts."""
    return inert_text(
        templates()
        .get_template(template)
        .render(
            result=result,
            study=result.study,
            answers=answers(result),
            nothing_yet=nothing_yet(result),
            tables=wide_tables(result),
            readouts=readout_tables(result),
            verdicts=judge_claims(result),
            **more,
        )
    )


def as_text(result: StudyResult) -> str:
    """Render the answer, the tables and the verdicts for a terminal."""
    return render_report("text.jinja", result).removesuffix("\n")


def as_markdown(result: StudyResult, *, title: str | None = None) -> str:
    """Render the answer, the tables and the verdicts as Markdown; without verdicts if a title is given."""
    return render_report("markdown.jinja", result, title=title)


def as_csv(result: StudyResult) -> str:
    """Render the frame of numbers as CSV, unrounded; only its columns if there are no numbers."""
    return _csv(pd.DataFrame(frame_rows(result), columns=list(FRAME_COLUMNS), dtype=object))


def as_items(result: StudyResult) -> str:
    """Render the tidy table of item scores as CSV: one row per run, test set, metric, condition and item."""
    return _csv(result.items)


def _csv(frame: pd.DataFrame) -> str:
    """Render a frame as CSV, with texts escaped so that no spreadsheet reads them as a formula."""

    def inert(cell: Any) -> Any:
        return inert_cell(cell) if isinstance(cell, str) else cell

    columns = {
        name: column if pd.api.types.is_numeric_dtype(column) else column.map(inert) for name, column in frame.items()
    }
    text: str = pd.DataFrame(columns).to_csv(index=False, lineterminator="\n")
    return text


def as_json(result: StudyResult) -> str:
    """Render everything gathered, except the items, as JSON; `table` is the frame of numbers."""
    gathered = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    document = {
        "answers": answers(result),
        "verdicts": judge_claims(result),
        "table": frame_rows(result),
        **{name: value for name, value in gathered.items() if name not in ("items", "numbers", "trivial")},
        "trivial": [
            {"setting": setting, "metric": metric, "test_set": test_set, **without_the_unmeasured(scores)}
            for (setting, metric, test_set), scores in result.trivial.items()
        ],
    }
    return json_text(document) + "\n"


WRITERS = {"csv": as_csv, "items": as_items, "json": as_json, "md": as_markdown}
"""Writers of all report formats except HTML."""


def forecast_as_text(forecast: StudyForecast) -> str:
    """Render the result of `forecast_study`: a line per setting, method and shots, then the work left."""
    runs = forecast.runs
    width = max(len(run.method) for run in runs)
    grid: dict[str, list[str]] = {}
    for run in runs:
        name = f"{run.setting}  {run.method:<{width}}  {run.shots:>6} shots"
        grid.setdefault(name, []).append(f"{run.seed}{'*' if run.finished else ''}")
    steps = Counter(run.steps for run in runs if not run.finished)
    template = templates().get_template("forecast.jinja")
    return template.render(forecast=forecast, grid=grid, num_of_steps=sorted(steps.items()))


@functools.cache
def templates() -> jinja2.Environment:
    """Return the templates of all reports; HTML templates escape everything."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("advl_pipeline.reporting", "assets"),
        autoescape=jinja2.select_autoescape(["html"], default_for_string=False),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["wording"] = wording
    environment.filters |= {"aligned": _aligned, "json": json_text, "md": inert_markdown, "md_table": _md_table}
    return environment


def _aligned(table: ShownTable) -> str:
    grid = table.grid()
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    rows = ("  ".join(item.ljust(width) for item, width in zip(row, widths, strict=True)) for row in grid)
    return "\n".join(row.rstrip() for row in rows)


def _md_table(table: ShownTable) -> str:
    """Return a table as Markdown, with words in its first two columns and numbers in the others."""
    header, *rows = ["| " + " | ".join(map(inert_markdown, row)) + " |" for row in table.grid()]
    return "\n".join([header, "|---|---|" + "--:|" * len(table.columns), *rows])
