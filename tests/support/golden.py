"""Golden losses: every loss term of a short run of each method on the small corpus, and whether two sets agree.

    python tests/support/golden.py write                     # the losses of this checkout, for the tests
    python tests/support/golden.py compare ../another        # this checkout against another, each by its own .venv

A refactoring must not change these losses. A change of the method does: it is listed in CHANGELOG.md and updates
them with `write`.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from small_corpus import SmallCorpus, build_small_corpus

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "assets" / "golden_losses.json"

RELATIVE, ABSOLUTE = 2e-3, 1e-4
"""Processors and library versions differ in the last bits of a teacher's features, and six steps propagate this.
Two checkouts on one machine agree exactly."""

RUNS: Mapping[str, Mapping[str, Any]] = {
    "plain": {"method": "plain", "cache": ()},
    "plain-two-step": {"method": "plain-two-step", "cache": ()},
    "naive-kd": {"method": "naive-kd"},
    "advl": {"method": "advl"},
    "advl with coordinates": {"method": "advl", "distance": "mse"},
    "advl, shuffled teacher": {"method": "advl", "teacher_control": "shuffle"},
}
"""Name -> changes to the small corpus' run: `scenes-small`, seed 0, two adapt steps, four finetune steps."""

Losses = dict[str, dict[str, list[float]]]
"""Run -> term -> its value at each step with this term."""


def measure_losses(corpus: SmallCorpus, folder: Path) -> Losses:
    """Train each of `RUNS` and return its losses; run folders are created below `folder`."""
    losses: Losses = {}
    for number, (name, changes) in enumerate(RUNS.items()):
        output = folder / f"golden-{number}"
        corpus.run(output, **{"student_option": (), **changes})
        terms: dict[str, list[float]] = {}
        for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            for key, value in json.loads(line).items():
                if key.startswith(("raw/", "weighted/")):
                    terms.setdefault(key, []).append(float(f"{value:.7g}"))
        losses[name] = terms
    return losses


def differences(
    measured: Losses, expected: Losses, *, relative: float = RELATIVE, absolute: float = ABSOLUTE
) -> list[str]:
    """Return one line for each run or term that only one side has, and for each value beyond the tolerances."""
    lines = []
    for run in sorted({*measured, *expected}):
        if run not in measured or run not in expected:
            lines.append(f"{run}: on one side only")
            continue
        for term in sorted({*measured[run], *expected[run]}):
            ours, theirs = measured[run].get(term, []), expected[run].get(term, [])
            if len(ours) != len(theirs):
                lines.append(f"{run}, {term}: {len(ours)} values against {len(theirs)}")
            lines += [
                f"{run}, {term}, value {step}: {actual:.7g} against {other:.7g}"
                for step, (actual, other) in enumerate(zip(ours, theirs, strict=False))
                if not math.isclose(actual, other, rel_tol=relative, abs_tol=absolute)
            ]
    return lines


def losses_of(checkout: Path) -> Losses:
    """Measure the losses of a checkout in a process with the checkout's own environment."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "losses.json"
        python = checkout.absolute() / ".venv" / "bin" / "python"
        subprocess.run([str(python), __file__, "measure", str(target)], cwd=checkout, check=True)
        losses: Losses = json.loads(target.read_text(encoding="utf-8"))
        return losses


def _measure(target: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        losses = measure_losses(build_small_corpus(Path(folder)), Path(folder))
    target.write_text(json.dumps(losses, indent=1) + "\n", encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Run the subcommand of the first word; return the exit code."""
    if arguments == ["write"]:
        _measure(GOLDEN)
    elif len(arguments) == 2 and arguments[0] == "measure":
        _measure(Path(arguments[1]))
    elif len(arguments) == 2 and arguments[0] == "compare":
        lines = differences(losses_of(ROOT), losses_of(Path(arguments[1])), relative=0.0, absolute=0.0)
        print("\n".join(lines) or "all losses are equal")
        return 1 if lines else 0
    else:
        print(__doc__)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
