"""Tables and comparisons of a study stay the same to the digit, whatever becomes of the code that makes them.

`tests/assets/golden_report.json` holds every number of the study that `make_golden_study` runs, under a name of its
own. They are written again by

    python tests/studies/test_golden_report.py > tests/assets/golden_report.json
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synthetic_runs import run_trial

from advl_pipeline.base.configuration import to_plain
from advl_pipeline.reporting.tables import as_json
from advl_pipeline.studies.claims import judge_claims
from advl_pipeline.studies.result import StudyResult

GOLDEN = Path(__file__).parents[1] / "assets" / "golden_report.json"
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
METHODS = '["plain", "plain-two-step", "plain-no-picture", "naive-kd", "advl", "advl-shuffled", "no-vision"]'
NAMES = {
    "numbers": ("quantity", "setting", "metric", "test_set", "shots", "method", "against"),
    "readouts": ("setting", "method", "shots", "seed", "teacher", "nodes"),
    "costs": ("setting", "method", "shots"),
    "claims": ("setting", "claim", "name"),
}
"""What a row of each kind is called by."""

LEFT_OUT = {"run_id", "run", "p_adjusted", "outcome", "sentence", "size"}
"""What is no number, hangs on ids, or is counted by hand elsewhere."""


def make_golden_study(folder: Path) -> StudyResult:
    """Run a study of two settings, with controls, an ablation, a text-only student and full data, on made-up runs."""
    return run_trial(folder, num_seeds=3, methods=METHODS, shots='[100, "full"]', extra=EXTRA)


def golden_numbers(result: StudyResult) -> dict[str, Any]:
    """Return name -> the numbers that stand under it."""
    tests = (
        {"setting": verdict.setting, "claim": verdict.claim, **to_plain(test)}
        for verdict in judge_claims(result)
        for test in verdict.tests
    )
    told: dict[str, Any] = {}
    for row in json.loads(as_json(result))["table"]:
        ends = [row["value"], row["low"], row["high"]]
        told.setdefault(_name("numbers", row), {})[row["statistic"]] = _rounded(
            [end for end in ends if end is not None]
        )
    for kind, rows in {"readouts": result.readouts, "costs": result.costs, "claims": tests}.items():
        told |= {
            _name(kind, row): _rounded({key: value for key, value in row.items() if key not in NAMES[kind]})
            for row in map(to_plain, rows)
        }
    return told


def _name(kind: str, row: Mapping[str, Any]) -> str:
    return " / ".join(map(str, (kind, *(row[column] for column in NAMES[kind] if row[column] is not None))))


def _rounded(value: Any) -> Any:
    """Return floats to nine digits, which another build of numpy gives alike, and nothing that is not there."""
    plain = to_plain(value)
    if isinstance(plain, float):
        return float(f"{plain:.9g}")
    if isinstance(plain, dict):
        told = {key: _rounded(item) for key, item in plain.items() if key not in LEFT_OUT}
        return {key: item for key, item in told.items() if item is not None and item == item}
    return [_rounded(item) for item in plain] if isinstance(plain, list) else plain


def test_every_number_of_the_report_is_the_one_that_it_was(tmp_path: Path) -> None:
    expected = json.loads(GOLDEN.read_text(encoding="utf-8"))
    numbers = json.loads(json.dumps(golden_numbers(make_golden_study(tmp_path))))
    assert numbers.keys() == expected.keys()
    different = {name: (numbers[name], value) for name, value in expected.items() if numbers[name] != value}
    assert not different


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        found = golden_numbers(make_golden_study(Path(scratch)))
    # One name in each line.
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in sorted(found.items())]
    sys.stdout.write("{\n" + ",\n".join(lines) + "\n}\n")
