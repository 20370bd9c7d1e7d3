"""The report of a study whose runs were really trained and evaluated, on a task with classes."""

from __future__ import annotations

import pytest
from page_reader import Element, read_page
from small_corpus import SmallCorpus

from advl_pipeline.reporting.report import ReportConfig, run_report
from advl_pipeline.studies.config import StudyRunConfig
from advl_pipeline.studies.result import StudyResult
from advl_pipeline.studies.run import run_study

STUDY = """
name = "real"
dataset = "scenes-snli-ve"
tasks = ["snli-ve"]
student = "scenes-small"
test_sets = ["test", "test-shift"]
methods = ["plain", "fast"]
focus = "fast"
shots = [6]
seeds = [0]

[training]
# The recipe's rates are for a pretrained student.
recipe = "none"
num_steps = 8
batch_size = 4
learning_rate = 1e-7

[variants.fast]
method = "plain"
label = "fast"
# So fast that it forgets what it began with, so that the two answer differently.
learning_rate = 1e-2
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, small_corpus: SmallCorpus) -> StudyResult:
    folder = tmp_path_factory.mktemp("real")
    (folder / "real.toml").write_text(STUDY, encoding="utf-8")
    return run_study(
        StudyRunConfig(
            study=str(folder / "real.toml"),
            output=folder / "study",
            caches=folder / "caches",
            data_root=small_corpus.data_root,
        )
    )


@pytest.fixture(scope="module")
def page(study: StudyResult) -> Element:
    # Its cells know where their data lie.
    output, _ = run_report(ReportConfig(run=(study.folder,)))
    return read_page(output.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_examples_are_read_as_the_run_read_them(page: Element) -> None:
    """The run has its classes in another order than the dataset's usual one; answers keep their names."""
    section = page.find("section", id="examples")[0]
    assert not section.find("p", class_="warning")
    examples = section.find("article", class_="example")
    assert examples
    for example in examples:
        winner = "fast" if "won" in example.attributes["class"].split() else "plain"
        right = next(item for item in example.find("li") if "right" in item.attributes["class"].split())
        assert winner in [tag.text for tag in right.find("span", class_="tag")]
        assert right.text.split()[0] in ("entailment", "neutral", "contradiction")


@pytest.mark.slow
def test_use_of_vision_is_measured_three_ways_and_so_are_costs(study: StudyResult, page: Element) -> None:
    uses = {(use.method, use.against, use.test_set) for use in study.find("use")}
    methods, kinds = ("plain", "fast"), ("swapped", "blanked", "removed")
    assert uses == {(method, kind, "test") for method in methods for kind in kinds}
    assert len(page.find("section", id="vision")[0].find("table")) == len(kinds)
    assert all(cost["milliseconds_per_item"] > 0 for cost in study.costs)
