"""The numbers of a study as plain tables: one long (a row per method and place), one wide (what people read)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from advl_pipeline.reporting import wording
from advl_pipeline.studies.config import StudyConfig, shots_label
from advl_pipeline.studies.result import Contrast, Place, Readout, StudyResult

_RANDOM = "random:"


@dataclass(frozen=True, kw_only=True, slots=True)
class WideCell:
    """A method on one test set; `contrast` is None for the baseline and where seeds are missing.

    `over_best` is what the focus method gains over the best control, with that one's name; "" for other methods.
    """

    accuracy: str
    gain: str
    p_seed: str
    p_item: str
    contrast: Contrast | None
    over_best: str = ""
    best: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class WideRow:
    """A method at one shot size; one cell per test set, None where nothing was measured."""

    shots: int | None
    method: str
    label: str
    role: str
    note: str
    cells: tuple[WideCell | None, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class WideTable:
    """All methods and shots of one setting and metric."""

    setting: str
    metric: str
    test_sets: tuple[str, ...]
    rows: tuple[WideRow, ...]
    caveats: tuple[str, ...]
    trivial: Mapping[str, tuple[str, ...]]
    """Chance and majority answer: name -> percent on each test set; empty where no evaluation told."""

    @property
    def title(self) -> str:
        return wording.titled(f"{self.setting}, {wording.metric_name(self.metric)} in percent", self.caveats)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadoutRow:
    """A method at one shot size; `cells` hold before and after by column, None where nothing was read."""

    shots: int | None
    method: str
    label: str
    role: str
    num_runs: int
    cells: tuple[tuple[str, str] | None, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadoutTable:
    """All methods and shots of one setting that have a readout; `columns` name nodes and teacher."""

    setting: str
    columns: tuple[str, ...]
    chance: tuple[str, ...]
    rows: tuple[ReadoutRow, ...]
    caveats: tuple[str, ...]

    @property
    def title(self) -> str:
        return wording.titled(f"{self.setting}, choices that agree with the teacher's, in percent", self.caveats)


def readout_tables(result: StudyResult) -> tuple[ReadoutTable, ...]:
    """Arrange the readouts: one table per setting, rows by shots and method, columns by nodes and teacher.

    A random teacher has no column of its own. Its runs were read beside it, as the only teacher that they know: that
    the student comes to agree with it shows that the adapt step works, not that anything true was learned. Its row
    says so.
    """
    tables = []
    for setting in result.study.settings:
        found = [item for item in result.readouts if item.setting == setting.name]
        columns = {_readout_column(item): item.chance for item in found}
        places = {(item.shots, item.method) for item in found}
        sizes = sorted({shots for shots, _ in places}, key=lambda shots: (shots is None, shots or 0))
        rows = tuple(
            _readout_row(result, [item for item in found if (item.shots, item.method) == (shots, method)], columns)
            for shots in sizes
            for method in result.study.methods
            if (shots, method) in places
        )
        if rows:
            chance = tuple(map(wording.percent, columns.values()))
            tables.append(
                ReadoutTable(
                    setting=setting.name,
                    columns=tuple(columns),
                    chance=chance,
                    rows=rows,
                    caveats=result.caveats.get(setting.name, ()),
                )
            )
    return tuple(tables)


def _readout_column(readout: Readout) -> str:
    """Name the column of a readout: that of the teacher of which a random one has the architecture."""
    teacher = readout.teacher
    if teacher.startswith(_RANDOM):
        teacher = teacher.removeprefix(_RANDOM).partition("@")[0]
    return f"{readout.nodes}, {teacher}"


def _readout_row(result: StudyResult, found: list[Readout], columns: Mapping[str, float]) -> ReadoutRow:
    by_column = {_readout_column(item): item for item in found}
    variant = result.study.variant(found[0].method)
    label = wording.method_label(result.study, found[0].method)
    if any(item.teacher.startswith(_RANDOM) for item in found):
        label += " (beside that random teacher)"
    return ReadoutRow(
        shots=found[0].shots,
        method=found[0].method,
        label=label,
        role=variant.role,
        num_runs=max(len(item.seeds) for item in found),
        cells=tuple(
            (wording.percent(item.before.mean), wording.spread(item.after))
            if (item := by_column.get(column)) is not None
            else None
            for column in columns
        ),
    )


def wide_tables(result: StudyResult) -> tuple[WideTable, ...]:
    """Arrange the standings: one table per setting and metric, rows by shots and method, columns by test set."""
    tables = []
    for setting in result.study.settings:
        for metric in setting.metrics:
            places = [p for p in result.places() if (p.setting, p.metric) == (setting.name, metric)]
            sizes = dict.fromkeys(place.shots for place in sorted(places, key=lambda place: place.rank))
            rows = tuple(
                row
                for shots in sizes
                for method in result.study.methods
                if (row := _row(result, places, setting.test_sets, shots, method)) is not None
            )
            if rows:
                tables.append(
                    WideTable(
                        setting=setting.name,
                        metric=metric,
                        test_sets=setting.test_sets,
                        rows=rows,
                        caveats=result.caveats.get(setting.name, ()),
                        trivial=_trivial(result, setting.name, metric, setting.test_sets),
                    )
                )
    return tuple(tables)


def _trivial(result: StudyResult, setting: str, metric: str, test_sets: Sequence[str]) -> dict[str, tuple[str, ...]]:
    found = [result.trivial.get((setting, metric, name), {}) for name in test_sets]
    if not any(found):
        return {}
    majority = (f"{wording.percent(one['majority'])} ({one['answer']})" if one else "" for one in found)
    chance = (wording.percent(one["chance"]) if one else "" for one in found)
    return {"majority answer": tuple(majority), "chance": tuple(chance)}


def _row(
    result: StudyResult, places: list[Place], test_sets: tuple[str, ...], shots: int | None, method: str
) -> WideRow | None:
    by_set = {place.test_set: place for place in places if place.shots == shots}
    cells = tuple(_cell(result, by_set[name], method) if name in by_set else None for name in test_sets)
    if all(cell is None for cell in cells):
        return None
    variant = result.study.variant(method)
    return WideRow(
        shots=shots,
        method=method,
        label=_label(result.study, method),
        role=variant.role,
        note=variant.note,
        cells=cells,
    )


def _label(study: StudyConfig, method: str) -> str:
    """Return a method's name, with what its change is against where that is not the study's baseline."""
    label, baseline = wording.method_label(study, method), study.baseline_of(method)
    return label if baseline == study.baseline else f"{label} (against {wording.method_label(study, baseline)})"


def _cell(result: StudyResult, place: Place, method: str) -> WideCell | None:
    standing = result.standing(place, method)
    if standing is None:
        return None
    contrast = result.contrast(place, method, result.study.baseline_of(method))
    missing = len(result.study.seeds) - len(standing.seeds)
    best = result.best_control(place) if method == result.study.focus else None
    over = result.contrast(place, method, best.method) if best else None
    return WideCell(
        accuracy=wording.spread(standing.accuracy) + (f", {wording.seeds(len(standing.seeds))}" if missing else ""),
        gain=wording.signed(contrast.comparison.effect.points) if contrast else "",
        p_seed=wording.p_value(contrast.seed_p_adjusted) if contrast else "",
        p_item=wording.p_value(contrast.item_p_adjusted) if contrast else "",
        contrast=contrast,
        over_best=wording.signed(over.comparison.effect.points) if over else "",
        best=wording.method_label(result.study, best.method) if best and over else "",
    )


LONG_COLUMNS = (
    "setting", "metric", "test_set", "shots", "method", "role", "num_seeds", "num_items", "accuracy_percent",
    "deviation_points", "baseline", "gain_points", "gain_low_points", "gain_high_points", "gain_relative_percent",
    "p_seed", "p_seed_holm", "p_item", "p_item_holm", "best_control", "gain_over_best_points",
    "gain_over_best_low_points", "gain_over_best_high_points",
    "majority_percent", "majority_answer", "chance_percent", "runs", "caveats",
)  # fmt: skip


def long_rows(result: StudyResult) -> list[dict[str, Any]]:
    """One record per method and place, unrounded; keys are `LONG_COLUMNS`, units are in their names."""
    rows = []
    for standing in result.standings:
        baseline = result.study.baseline_of(standing.method)
        contrast = result.contrast(standing.place, standing.method, baseline)
        comparison = contrast.comparison if contrast else None
        best = result.best_control(standing.place) if standing.method == result.study.focus else None
        over = result.contrast(standing.place, standing.method, best.method) if best else None
        trivial = result.trivial_of(standing.place)
        values = (
            standing.place.setting,
            standing.place.metric,
            standing.place.test_set,
            shots_label(standing.place.shots),
            standing.method,
            result.study.variant(standing.method).role,
            len(standing.seeds),
            standing.num_items,
            standing.accuracy.mean,
            standing.accuracy.deviation,
            baseline if comparison else None,
            comparison.effect.points if comparison else None,
            comparison.joint_interval.low if comparison else None,
            comparison.joint_interval.high if comparison else None,
            comparison.effect.relative_percent if comparison else None,
            comparison.seed_t.p_value if comparison and comparison.seed_t else None,
            contrast.seed_p_adjusted if contrast else None,
            comparison.item_test.p_value if comparison else None,
            contrast.item_p_adjusted if contrast else None,
            over.baseline if over else None,
            over.comparison.effect.points if over else None,
            over.comparison.joint_interval.low if over else None,
            over.comparison.joint_interval.high if over else None,
            trivial.get("majority"),
            trivial.get("answer"),
            trivial.get("chance"),
            " ".join(standing.runs),
            "; ".join(result.caveats.get(standing.place.setting, ())),
        )
        rows.append(dict(zip(LONG_COLUMNS, values, strict=True)))
    return rows
