"""Every number of a study's tables and comparisons under a name of its own, however the code arranges them.

`tests/assets/golden_report.json` holds them for the study that `make_golden_study` runs. They are written again by

    python tests/studies/golden_numbers.py > tests/assets/golden_report.json
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from synthetic_runs import run_trial

from advl_pipeline.evaluation.statistics import Interval, summarise
from advl_pipeline.reporting.tables import as_json
from advl_pipeline.studies.claims import judge_claims
from advl_pipeline.studies.config import FULL
from advl_pipeline.studies.table import StudyResult, place_of, rows_of

EXTRA = """
min_seeds = 3

[variants.no-vision]
method = "advl"
label = "ADVL without vision"
role = "ablation"
part = "vision pathway"
baseline = "advl"
teachers = ["minilm-l6"]

[[settings]]
name = "vcr"
tasks = ["vcr-q2a", "vcr-qa2r"]

[[settings]]
name = "one teacher"
teachers = ["minilm-l6"]
test_sets = ["test", "test-unseen"]
"""
COLUMNS = (
    "setting", "metric", "test_set", "shots", "method", "role", "num_seeds", "num_items", "accuracy_percent",
    "deviation_points", "baseline", "gain_points", "gain_low_points", "gain_high_points", "gain_relative_percent",
    "p_seed", "p_seed_holm", "p_item", "p_item_holm",
)  # fmt: skip
METHODS = '["plain", "plain-two-step", "plain-no-picture", "naive-kd", "advl", "advl-shuffled", "no-vision"]'


def make_golden_study(folder: Path) -> StudyResult:
    """Run a study of two settings, with controls, an ablation, a text-only student and full data, on made-up runs."""
    return run_trial(folder, num_seeds=3, methods=METHODS, shots='[100, "full"]', extra=EXTRA)


def golden_numbers(result: StudyResult) -> dict[str, Any]:
    """Return name -> number, or a list of numbers, or the text of a table."""
    found: dict[str, Any] = {}
    for row in json.loads(as_json(result))["table"]:
        name = _name("table", row["setting"], row["metric"], row["test_set"], row["shots"], row["method"])
        found[name] = {key: row[key] for key in COLUMNS}
    for row in result.find("gain"):
        found[_name("contrast", row.family, *_place(row), row.method, row.against)] = {
            "seeds": list(row.seeds),
            "points": row.mean,
            "relative": row.relative_percent,
            "per_seed": list(row.per_seed),
            "spread": _spread(row),
            "p_seed": row.p_seed,
            "p_sign": row.p_sign_flip,
            "p_item": row.p_item,
            "item_interval": _ends(row.item_interval),
            "joint_interval": _ends(row.joint_interval),
            "p_seed_holm": row.p_seed_holm,
            "p_item_holm": row.p_item_holm,
            "family_size": row.family_size,
        }
    for row in result.find("gain along shots"):
        where = {"setting": row.setting, "metric": row.metric, "test_set": row.test_set, "method": row.method}
        along, slope = result.find("gain along shots", **where), result.one("slope", **where)
        found[_name("trend", *where.values(), row.against)] = {
            "sizes": [one.size for one in along],
            "gains": [_spread(one) for one in along],
            "slopes": list(slope.per_seed) if slope else [],
            "slope": _spread(slope),
            "p": slope.p_seed if slope else None,
            "joint_interval": _ends(slope.joint_interval) if slope else None,
        }
    for row in (*result.find("drop"), *result.find("use")):
        before, after, change = (
            result.one(f"{row.quantity} {side}", place_of(row), method=row.method, against=row.against)
            for side in ("before", "after", "change")
        )
        found[_name(row.quantity, row.against, *_place(row), row.method)] = {
            "questions": row.questions,
            "before": _spread(before),
            "after": _spread(after),
            "lost": _spread(row),
            "per_seed": list(row.per_seed),
            "baseline": result.study.baseline_of(row.method) if change else None,
            "change": _spread(change),
        }
    for quantity in ("accuracy", "drop", "use"):
        for row in result.find(f"mean {quantity}"):
            found[_name("mean", quantity, row.setting, row.metric, row.test_set, row.method, row.against)] = {
                "questions": row.questions,
                "shots": [_shots(shots) for shots in row.over],
                "per_seed": list(row.per_seed),
                "joint_interval": _ends(row.joint_interval),
            }
    for row in result.find("text share"):
        given, rest, change = (
            result.one(quantity, place_of(row), method=row.method, against=row.against)
            for quantity in ("on given", "on rest", "on rest change")
        )
        found[_name("text share", row.against, *_place(row), row.method)] = {
            "share": _spread(row),
            "on_given": _spread(given),
            "on_rest": _spread(rest),
            "change": _spread(change),
        }
    readouts = result.readouts.groupby(["setting", "method", "shots", "teacher", "nodes"], sort=False)
    for (setting, method, shots, *side), runs in readouts:
        found[_name("readout", setting, method, _shots(shots), *side)] = {
            "before": _spread(summarise(list(runs["before"])), len(runs)),
            "after": _spread(summarise(list(runs["after"])), len(runs)),
            "chance": float(runs["chance"].mean()),
        }
    for cost in rows_of(result.costs):
        found[_name("cost", cost.setting, cost.method, _shots(cost.shots))] = [
            cost.num_steps, cost.seconds_per_step, cost.seconds, cost.wait_share, cost.peak_memory_bytes,
            cost.student_parameters, cost.training_only_parameters, cost.milliseconds_per_item,
        ]  # fmt: skip
    for bins in rows_of(result.weights):
        name = _name("weights", bins.quantity, bins.setting, bins.method, _shots(bins.shots), bins.modality)
        found[name] = [bins.mean, bins.count, bins.edges[-1], max(bins.shares)]
    for sure in rows_of(result.calibrations):
        found[_name("calibration", *_place(sure), sure.method)] = sure.reliability.expected_error
    for verdict in judge_claims(result):
        for test in verdict.tests:
            found[_name("claim", verdict.setting, verdict.claim, test.name)] = [
                test.mean, _ends(test.interval), _ends(test.joint_interval), test.p_value
            ]  # fmt: skip
    return {name: _rounded(value) for name, value in sorted(found.items())}


def golden_text(result: StudyResult) -> str:
    """Return the numbers as JSON, one name in each line."""
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in golden_numbers(result).items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _rounded(value: Any) -> Any:
    """Return floats to nine digits, which another build of numpy gives alike."""
    if isinstance(value, float):
        return float(f"{value:.9g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def _name(*parts: Any) -> str:
    return " / ".join(map(str, parts))


def _place(row: Any) -> tuple[Any, ...]:
    return row.setting, row.metric, row.test_set, _shots(row.shots), row.size


def _shots(label: str) -> int | None:
    return None if label == FULL else int(label)


def _spread(row: Any, count: int | None = None) -> list[Any] | None:
    if row is None:
        return None
    return [row.mean, row.deviation, _ends(row.interval), len(row.per_seed) if count is None else count]


def _ends(value: Interval | None) -> list[float] | None:
    return None if value is None else [value.low, value.high]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        sys.stdout.write(golden_text(make_golden_study(Path(scratch))))
