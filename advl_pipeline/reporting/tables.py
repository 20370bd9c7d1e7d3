"""The numbers of a study as plain tables: one long (a row per method and place), and what people read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from advl_pipeline.evaluation.statistics import summarise
from advl_pipeline.reporting import wording
from advl_pipeline.studies.config import FULL
from advl_pipeline.studies.result import StudyResult, place_of
from advl_pipeline.studies.table import Place

_RANDOM = "random:"

LONG_COLUMNS = (
    "setting", "metric", "test_set", "shots", "method", "role", "num_seeds", "num_items", "accuracy_percent",
    "deviation_points", "baseline", "gain_points", "gain_low_points", "gain_high_points", "gain_relative_percent",
    "p_seed", "p_seed_holm", "p_item", "p_item_holm", "best_control", "gain_over_best_points",
    "gain_over_best_low_points", "gain_over_best_high_points",
    "majority_percent", "majority_answer", "chance_percent", "runs", "caveats",
)  # fmt: skip
"""Of the long table; units are in their names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownTable:
    """A table as people read it.

    `head` holds the rows of no method, by their name: chance, the majority answer. A row of `rows` has `shots`,
    `method`, `label`, `role`, `note` and `cells`; a cell has its `text`, and what the page sets apart of it. It is
    None where nothing was measured.
    """

    title: str
    columns: tuple[str, ...]
    head: Mapping[str, tuple[str, ...]]
    rows: tuple[Mapping[str, Any], ...]
    caveats: tuple[str, ...]

    def grid(self) -> list[list[str]]:
        """Return the texts of all cells, the names of the columns first."""
        found = [["shots", "method", *self.columns]]
        found += [["", name, *values] for name, values in self.head.items()]
        for row in self.rows:
            cells = (cell["text"] if cell else "" for cell in row["cells"])
            found.append([row["shots"], row["label"], *cells])
        return found


def wide_tables(result: StudyResult) -> tuple[ShownTable, ...]:
    """Arrange the accuracies: one table per setting and metric, rows by shots and method, columns by test set."""
    tables = []
    for setting in result.study.settings:
        for metric in setting.metrics:
            found = [place for place in result.places() if place[:2] == (setting.name, metric)]
            by_shots: dict[str, dict[str, Place]] = {}
            for place in sorted(found, key=lambda place: place.rank):
                by_shots.setdefault(place.shots, {})[place.test_set] = place
            rows = []
            for shots, by_set in by_shots.items():
                for method in result.study.methods:
                    places = (by_set.get(name) for name in setting.test_sets)
                    cells = tuple(_accuracy(result, place, method) if place else None for place in places)
                    if any(cells):
                        rows.append(_row(result, shots, method, _label(result, method), cells))
            trivial = [result.trivial.get((setting.name, metric, name), {}) for name in setting.test_sets]
            majority = (f"{wording.percent(one['majority'])} ({one['answer']})" if one else "" for one in trivial)
            chance = (wording.percent(one["chance"]) if one else "" for one in trivial)
            if rows:
                title = f"{setting.name}, {wording.metric_name(metric)} in percent"
                head = {"majority answer": tuple(majority), "chance": tuple(chance)} if any(trivial) else {}
                tables.append(_table(result, setting.name, title, setting.test_sets, head, rows))
    return tuple(tables)


def _table(
    result: StudyResult,
    setting: str,
    title: str,
    columns: Sequence[str],
    head: Mapping[str, tuple[str, ...]],
    rows: Sequence[Mapping[str, Any]],
) -> ShownTable:
    """Return a table whose title says what its reader must know of its numbers."""
    caveats = result.caveats.get(setting, ())
    titled = f"{title} ({'; '.join(caveats)})" if caveats else title
    return ShownTable(title=titled, columns=tuple(columns), head=head, rows=tuple(rows), caveats=caveats)


def _row(result: StudyResult, shots: str, method: str, label: str, cells: Sequence[Any]) -> dict[str, Any]:
    variant = result.study.variant(method)
    told = {"shots": shots, "method": method, "label": label, "role": variant.role, "note": variant.note}
    return told | {"cells": cells}


def _label(result: StudyResult, method: str) -> str:
    """Return a method's name, with what its change is against where that is not the study's baseline."""
    study = result.study
    label, baseline = wording.method_label(study, method), study.baseline_of(method)
    return label if baseline == study.baseline else f"{label} (against {wording.method_label(study, baseline)})"


def _accuracy(result: StudyResult, place: Place, method: str) -> dict[str, Any] | None:
    """Return a method's accuracy and gain over its baseline; of the focus method, also that over the best control."""
    row = result.one("accuracy", place, method=method)
    if row is None:
        return None
    short = len(row.seeds) < len(result.study.seeds)
    accuracy = wording.spread(row) + (f", {wording.seeds(len(row.seeds))}" if short else "")
    gain = result.one("gain", place, method=method, against=result.study.baseline_of(method))
    cell: dict[str, Any] = {"text": accuracy, "accuracy": accuracy, "gain": gain, "over_best": None}
    if gain:
        over = _over_best(result, place, method)
        tests = f"{wording.p_value(gain.p_seed_holm)}, {wording.p_value(gain.p_item_holm)}"
        best = f"; best control {wording.signed(over.mean)}" if over else ""
        cell |= {"text": f"{accuracy} ({wording.signed(gain.mean)}; {tests}{best})", "over_best": over}
        cell["best"] = wording.method_label(result.study, over.against) if over else ""
    return cell


def _over_best(result: StudyResult, place: Place, method: str) -> Any:
    """Return the gain of the focus method over the best control; None for other methods, and without one."""
    best = result.best_control(place) if method == result.study.focus else None
    return result.one("gain", place, method=method, against=best.method) if best else None


def readout_tables(result: StudyResult) -> tuple[ShownTable, ...]:
    """Arrange the readouts: one table per setting, rows by shots and method, columns by nodes and teacher.

    A random teacher has no column of its own. Its runs were read beside it, as the only teacher that they know: that
    the student comes to agree with it shows that the adapt step works, not that anything true was learned. Its row
    says so.
    """
    tables = []
    for setting in result.study.settings:
        found = result.readouts[result.readouts["setting"] == setting.name]
        taught = found["teacher"].str.replace(r"^random:([^@]*).*", r"\1", regex=True)
        found = found.assign(column=found["nodes"] + ", " + taught)
        columns = list(found["column"].unique())
        rows = []
        for shots in sorted(found["shots"].unique(), key=lambda shots: (shots == FULL, len(shots), shots)):
            for method in result.study.methods:
                alike = found[(found["shots"] == shots) & (found["method"] == method)]
                if len(alike):
                    label = wording.method_label(result.study, method)
                    if alike["teacher"].str.startswith(_RANDOM).any():
                        label += " (beside that random teacher)"
                    cells = [_readout(alike[alike["column"] == column]) for column in columns]
                    number = {"text": str(alike.groupby("column").size().max())}
                    rows.append(_row(result, shots, method, label, (*cells, number)))
        if rows:
            title = f"{setting.name}, choices that agree with the teacher's, in percent"
            chance = [wording.percent(found[found["column"] == column]["chance"].mean()) for column in columns]
            head = {"chance": (*chance, "")}
            tables.append(_table(result, setting.name, title, (*columns, "runs"), head, rows))
    return tuple(tables)


def _readout(runs: pd.DataFrame) -> dict[str, str] | None:
    if runs.empty:
        return None
    before, after = wording.percent(runs["before"].mean()), wording.spread(summarise(list(runs["after"])))
    return {"text": f"{before} → {after}", "before": before, "after": after}


def long_rows(result: StudyResult) -> list[dict[str, Any]]:
    """Return a record per method and place, unrounded; keys are `LONG_COLUMNS`."""
    return [_long_row(result, row) for row in result.find("accuracy")]


def _long_row(result: StudyResult, row: Any) -> dict[str, Any]:
    place, trivial = place_of(row), result.trivial_of(place_of(row))
    gain = result.one("gain", place, method=row.method, against=result.study.baseline_of(row.method))
    over = _over_best(result, place, row.method)
    told = ("against", "mean", "relative_percent", "p_seed", "p_seed_holm", "p_item", "p_item_holm")
    against, points, relative, *tests = (getattr(gain, name) if gain else None for name in told)
    values = (
        row.setting, row.metric, row.test_set, row.shots, row.method, result.study.variant(row.method).role,
        len(row.seeds), row.num_items, row.mean, row.deviation,
        against, points, *_ends(gain), relative, *tests,
        over and over.against, over and over.mean, *_ends(over),
        trivial.get("majority"), trivial.get("answer"), trivial.get("chance"),
        " ".join(row.runs), "; ".join(result.caveats.get(row.setting, ())),
    )  # fmt: skip
    return dict(zip(LONG_COLUMNS, values, strict=True))


def _ends(gain: Any) -> tuple[float | None, float | None]:
    return (gain.joint_interval.low, gain.joint_interval.high) if gain else (None, None)
