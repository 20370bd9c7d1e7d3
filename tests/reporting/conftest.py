"""Make the helpers of this folder and of the tests of studies importable; one page for all tests."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from advl_pipeline.reporting.report import ReportConfig, run_report
from advl_pipeline.studies.result import StudyResult

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "studies")]


@pytest.fixture(scope="session")
def vcr(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyResult, Path]:
    """A study on VCR items, with examples and selected words; returns it and the data root."""
    from dataset_mirrors import vcr_record, write_vcr
    from synthetic_runs import NUM_ITEMS, run_trial

    folder = tmp_path_factory.mktemp("vcr")
    items = [vcr_record(number) for number in range(NUM_ITEMS)]
    # What is right is what the made-up runs answer rightly, and a question may hold anything.
    asked = {"objects": ["person", "dog"], "question": ["Why", "does", [0], "look", "at", [1], "<b>&", "?"]}
    right = {"answer_label": 0, "rationale_label": 0}
    records = [item | asked | right | {"rationale_choices": item["answer_choices"]} for item in items]
    write_vcr(folder / "data", records)
    extra = "[training]\nsplit = 'val'\n"
    result = run_trial(folder, num_seeds=3, extra=extra, dataset='"vcr"', test_sets='["val", "test-shift"]')
    run = next(run for run in result.finished("vcr") if (run.method, run.shots, run.seed) == ("advl", "100", 0))
    words = {f"val-{index}:vcr-q2a": [[[0, 3]], []] for index in range(NUM_ITEMS)}
    (result.outer / run.run / "selected_words.json").write_text(json.dumps(words), encoding="utf-8")
    return result, folder / "data"


@pytest.fixture(scope="session")
def page_text(vcr: tuple[StudyResult, Path]) -> str:
    result, data_root = vcr
    output, _ = run_report(ReportConfig(run=(result.folder,), data_root=data_root))
    return output.read_text(encoding="utf-8")
