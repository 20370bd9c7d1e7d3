"""`make bench`, `make bench-gpu`: measure the tables of `docs/performance.md` and compare each row with its goal.

python -m benchmarks [--quick] [--only SECTIONS] [--json FILE] [--markdown docs/performance.md]

With `--json`, sections may be run one at a time: the file keeps the results of the others, and the page shows all.
"""

from __future__ import annotations

import argparse
import importlib
import json
import tempfile
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.rows import GPU_MARKS, MARKS, Row, Section, describe_machine, render, write_page

SECTIONS = {
    "reading": "benchmarks.reading:measure_reading",
    "extraction": "benchmarks.extraction:measure_extraction",
    "loaders": "benchmarks.loaders:measure_loaders",
    "index": "benchmarks.index:measure_index",
    "feed": "benchmarks.feed:measure_feeding",
    "training": "benchmarks.training:measure_training",
    "gpu": "benchmarks.gpu:measure_on_gpu",
}
"""Section -> its measuring function, imported only when the section runs."""

ON_A_GPU = "gpu"
"""The section that runs only when requested by itself; its table has separate marks."""


def main() -> None:
    """Measure the sections and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="Five minutes: less data, fewer rounds.")
    parser.add_argument(
        "--only",
        default=",".join(name for name in SECTIONS if name != ON_A_GPU),
        help="Sections to run, separated by commas.",
    )
    parser.add_argument("--json", type=Path, help="Keep what was found in this file, section by section.")
    parser.add_argument("--markdown", type=Path, help="Also write the table into this page, between its marks.")
    options = parser.parse_args()
    sections: dict[str, Any] = {}
    if options.json and options.json.exists():
        sections = json.loads(options.json.read_text(encoding="utf-8"))
    rows: list[Row] = []
    for name in options.only.split(","):
        machine, begin = describe_machine(quick=options.quick), time.perf_counter()
        module, _, function = SECTIONS[name].partition(":")
        with tempfile.TemporaryDirectory() as temporary:
            try:
                section: Section = getattr(importlib.import_module(module), function)
                measured = section(Path(temporary), options.quick)
            except Exception as error:
                # A failing section must not discard half an hour of measurements.
                traceback.print_exc()
                why = f"{type(error).__name__}: {error}"
                measured = [Row(name=f"section {name}", value=None, goal=0.0, detail=why)]
        seconds = time.perf_counter() - begin
        sections[name] = {"machine": machine, "seconds": seconds, "rows": list(map(asdict, measured))}
        for row in (Row(**content) for content in sections[name]["rows"]):
            rows.append(row)
            print(f"{row.verdict:<12} {row.name}: {row.measured} ({row.bound or 'a fact'}); {row.detail}", flush=True)
        if options.json:
            options.json.write_text(json.dumps(sections, indent=2) + "\n", encoding="utf-8")
    verdicts = [row.verdict for row in rows if row.goal is not None]
    print(
        f"{len(verdicts)} goals: "
        + ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in sorted(set(verdicts)))
    )
    if options.markdown:
        for marks, names in ((MARKS, SECTIONS.keys() - {ON_A_GPU}), (GPU_MARKS, {ON_A_GPU})):
            if shown := {name: sections[name] for name in SECTIONS if name in names & sections.keys()}:
                write_page(options.markdown, render(shown), marks=marks)


if __name__ == "__main__":
    main()
