"""What the page and the card of a single run show: its facts, its scores, its losses, and where it errs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advl_pipeline.datasets.roots import dataset_label
from advl_pipeline.reporting import wording
from advl_pipeline.reporting.figures import Figure, kinds_figure, loss_figure
from advl_pipeline.runs import names
from advl_pipeline.runs.results import read_config, read_json, read_log
from advl_pipeline.studies.result import StudyResult

_MOST_CLASSES = 12
"""Classes of a confusion table that is shown; larger ones are in evaluation/SET.json."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """One metric on one test set, as the page writes it; `changes` says what becomes of it without its picture."""

    test_set: str
    metric: str
    num_items: int
    accuracy: str
    interval: str
    majority: str
    chance: str
    changes: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunView:
    """A run as its page shows it. `confusions`: test set -> class names and counts, the true class by row."""

    name: str
    title: str
    facts: Mapping[str, str]
    scores: tuple[Score, ...]
    losses: Figure | None
    kinds: tuple[Figure, ...]
    confusions: Mapping[str, Mapping[str, Any]]

    @property
    def views(self) -> tuple[str, ...]:
        """How pictures were spoilt in any of the evaluations."""
        return tuple(dict.fromkeys(kind for score in self.scores for kind in score.changes))


def view_run(result: StudyResult) -> RunView:
    """Read what the page of the only run of a result shows beside its tables."""
    (cell,) = result.cells
    run = result.runs / cell.run
    name = run.absolute().name
    config, done = read_config(run), read_json(run / names.RESULT)
    documents = evaluations_of(run, result.study.settings[0].test_sets)
    kinds = [
        kinds_figure(
            f"{wording.metric_name(metric)} on {test_set} {how}",
            found,
            identifier=f"kinds-{number}-{metric}-{place}",
            run=cell.run,
        )
        for number, (test_set, document) in enumerate(documents.items())
        for place, (how, key) in enumerate(
            (("by question type", "by_question_type"), ("by answer type", "by_answer_type"))
        )
        for metric, found in _by_metric(document, key).items()
    ]
    method = result.study.variant(cell.method).label or cell.method
    return RunView(
        name=name,
        title=f"{config['student']} on {dataset_label(config['dataset'])}",
        facts={
            "student": config["student"],
            "starts from": dataset_label(str(config["init"])) if config.get("init") else "random weights",
            "method": method,
            "teachers": ", ".join(result.study.settings[0].teachers) or "none",
            "learned from": f"{done['num_labelled']:,} labelled items of {config['split']}",
            "steps": f"{done['num_steps']:,} in {wording.duration(done['seconds'])}",
            "seed": str(cell.seed),
        },
        scores=scores_of(documents),
        losses=loss_figure(read_log(run), run=cell.run),
        kinds=tuple(figure for figure in kinds if figure is not None),
        confusions={
            test_set: document["confusion"]
            for test_set, document in documents.items()
            if 0 < len(document.get("confusion", {}).get("label_names", ())) <= _MOST_CLASSES
        },
    )


def evaluations_of(run: Path, test_sets: Iterable[str]) -> dict[str, Mapping[str, Any]]:
    """Return the documents of a run's evaluations by test set."""
    return {name: read_json(names.evaluation_file(run, name, ".json")) for name in test_sets}


def scores_of(documents: Mapping[str, Mapping[str, Any]]) -> tuple[Score, ...]:
    """Return every metric on every test set beside chance and the majority answer."""
    return tuple(
        _score(test_set, document, metric)
        for test_set, document in documents.items()
        for metric in document["metrics"]
    )


def _score(test_set: str, document: Mapping[str, Any], metric: str) -> Score:
    trivial = document.get("trivial", {}).get(metric, {})
    interval = document.get("intervals", {}).get(metric)
    spoilt = document.get("use_of_vision", {}).get(metric, {})
    return Score(
        test_set=test_set,
        metric=wording.metric_name(metric),
        num_items=document.get("num_items", {}).get(metric, 0),
        accuracy=wording.percent(document["metrics"][metric]),
        interval=f"[{wording.percent(interval['low'])}, {wording.percent(interval['high'])}]" if interval else "",
        majority=f"{wording.percent(trivial['majority'])} ({trivial['answer']})" if trivial else "",
        chance=wording.percent(trivial["chance"]) if trivial else "",
        changes={kind: wording.signed(-found["drop"]) for kind, found in spoilt.items() if "drop" in found},
    )


def _by_metric(document: Mapping[str, Any], key: str) -> Mapping[str, Mapping[str, Mapping[str, float]]]:
    """Return metric -> kind -> accuracy and number; answer types are of VQA alone."""
    found = document.get(key, {})
    return {"vqa": found} if key == "by_answer_type" and found else found
