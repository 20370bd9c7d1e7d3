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

import synthetic_runs
from synthetic_runs import write_study_file

from advl_pipeline.evaluation.statistics import Interval, Spread
from advl_pipeline.reporting.formats import as_json
from advl_pipeline.studies.claims import judge_claims
from advl_pipeline.studies.config import StudyRunConfig
from advl_pipeline.studies.result import StudyResult
from advl_pipeline.studies.run import run_study

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
    file = write_study_file(folder, num_seeds=3, methods=METHODS, shots='[100, "full"]', extra=EXTRA)
    return run_study(
        StudyRunConfig(study=str(file), output=folder / "study", caches=folder / "caches"),
        execute=synthetic_runs.execute,
        prepare=synthetic_runs.prepare,
        digest=synthetic_runs.digest,
    )


def golden_numbers(result: StudyResult) -> dict[str, Any]:
    """Return name -> number, or a list of numbers, or the text of a table."""
    found: dict[str, Any] = {}
    for row in json.loads(as_json(result))["table"]:
        name = _name("table", row["setting"], row["metric"], row["test_set"], row["shots"], row["method"])
        found[name] = {key: row[key] for key in COLUMNS}
    for item in result.contrasts:
        place, compared = item.place, item.comparison
        name = _name("contrast", item.family, *_place(place), item.treated, item.baseline)
        found[name] = {
            "seeds": list(item.seeds),
            "points": compared.effect.points,
            "relative": compared.effect.relative_percent,
            "per_seed": list(compared.per_seed),
            "spread": _spread(compared.seed_spread),
            "p_seed": compared.seed_t.p_value if compared.seed_t else None,
            "p_sign": compared.seed_sign_flip.p_value,
            "p_item": compared.item_test.p_value,
            "item_interval": _ends(compared.item_interval),
            "joint_interval": _ends(compared.joint_interval),
            "p_seed_holm": item.seed_p_adjusted,
            "p_item_holm": item.item_p_adjusted,
            "family_size": item.family_size,
        }
    for trend in result.trends:
        found[_name("trend", trend.setting, trend.metric, trend.test_set, trend.treated, trend.baseline)] = {
            "sizes": list(trend.sizes),
            "gains": [_spread(gain) for gain in trend.gains],
            "slopes": list(trend.slope_per_seed),
            "slope": _spread(trend.slope),
            "p": trend.slope_test.p_value if trend.slope_test else None,
            "joint_interval": _ends(trend.slope_joint),
        }
    for loss in result.losses:
        found[_name(loss.quantity, loss.against, *_place(loss.place), loss.method)] = {
            "questions": loss.questions,
            "before": _spread(loss.before),
            "after": _spread(loss.after),
            "lost": _spread(loss.lost),
            "per_seed": list(loss.per_seed),
            "baseline": loss.baseline,
            "change": _spread(loss.change),
        }
    for mean in result.mean_contrasts:
        name = _name("mean", mean.quantity, mean.setting, mean.metric, mean.test_set, mean.treated, mean.baseline)
        found[name] = {
            "questions": mean.questions,
            "shots": list(mean.shots),
            "per_seed": list(mean.per_seed),
            "joint_interval": _ends(mean.joint_interval),
        }
    for share in result.text_shares:
        found[_name("text share", share.text_only, *_place(share.place), share.method)] = {
            "share": _spread(share.share),
            "on_given": _spread(share.on_given),
            "on_rest": _spread(share.on_rest),
            "change": _spread(share.change),
        }
    for item in result.readouts:
        found[_name("readout", item.setting, item.method, item.shots, item.teacher, item.nodes)] = {
            "before": _spread(item.before),
            "after": _spread(item.after),
            "chance": item.chance,
        }
    for cost in result.costs:
        found[_name("cost", cost.setting, cost.method, cost.shots)] = [
            cost.num_steps, cost.seconds_per_step, cost.seconds, cost.wait_share, cost.peak_memory_bytes,
            cost.student_parameters, cost.training_only_parameters, cost.milliseconds_per_item,
        ]  # fmt: skip
    for bins in result.weights:
        name = _name("weights", bins.quantity, bins.setting, bins.method, bins.shots, bins.modality)
        found[name] = [bins.mean, bins.count, bins.edges[-1], max(bins.shares)]
    for sure in result.calibrations:
        found[_name("calibration", *_place(sure.place), sure.method)] = sure.reliability.expected_error
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


def _place(place: Any) -> tuple[Any, ...]:
    return place.setting, place.metric, place.test_set, place.shots, place.size


def _spread(value: Spread | None) -> list[Any] | None:
    return None if value is None else [value.mean, value.deviation, _ends(value.interval), value.count]


def _ends(value: Interval | None) -> list[float] | None:
    return None if value is None else [value.low, value.high]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        sys.stdout.write(golden_text(make_golden_study(Path(scratch))))
