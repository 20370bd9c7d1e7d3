"""The content of the page and the card of a single run: its facts, scores, losses and errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from advl_pipeline.base.errors import enumeration
from advl_pipeline.datasets.records import TASKS
from advl_pipeline.datasets.roots import dataset_label
from advl_pipeline.datasets.words import WordClass
from advl_pipeline.reporting import wording
from advl_pipeline.reporting.figures import (
    SERIES,
    SOFT,
    WIDTHS,
    Drawing,
    Figure,
    as_figure,
    axes,
    mark_ticks,
    round_ticks,
    shares_of_rows,
)
from advl_pipeline.runs.evaluations import LETTERS, Confusion, EvaluationDocument, read_document
from advl_pipeline.runs.results import STAGE_KEY, read_config, read_log, read_result, read_words
from advl_pipeline.studies.result import StudyResult

_MOST_CLASSES = 12
"""Maximum number of classes in a confusion table on the page; larger ones are in evaluation/SET.json."""

_NUM_BINS = 40
"""Number of bars of the histogram of words."""

_RIGHT = "val/correct"

_FALLS_FAR = 20
"""Ratio of the highest to the lowest value above which a loss is drawn on a logarithmic scale."""

_TERMS = {
    _RIGHT: "right on the validation split, in percent",
    "task": "task",
    "vision": "vision teacher",
    "text": "language teacher",
    "answers": "teachers' answers",
    "contrast": "contrast of pictures and texts",
    "drift": "drift from the start",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreRow:
    """A metric on a test set and, as `wording.without_student` writes them, the accuracies without a student.

    `changes`: how pictures were replaced or hidden -> change of the accuracy.
    """

    test_set: str
    metric: str
    num_items: int
    accuracy: str
    interval: str
    ceiling: str
    prior: str
    majority: str
    chance: str
    changes: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunView:
    """The content of the page of a run, except its tables.

    `conditions` are those of the pictures of the scores. `words` is a figure of the words' classes, if the run
    estimated them. `kinds` are tables by kind of question. `confusions`: test set -> class names and counts, true
    class by row.
    """

    name: str
    title: str
    facts: Mapping[str, str]
    scores: Sequence[ScoreRow]
    measures: Sequence[str]
    conditions: Sequence[str]
    losses: Figure | None
    words: Figure | None
    kinds: Sequence[tuple[str, list[tuple[str, str, str]]]]
    confusions: Mapping[str, Confusion]


def view_run(result: StudyResult) -> RunView:
    """Read the content of the page of a result with one run, except its tables."""
    (only,) = result.runs
    run = result.outer / only.run
    setting = result.study.settings[0]
    config, done = read_config(run), read_result(run)
    documents = {name: document for name in setting.test_sets if (document := read_document(run, name)) is not None}
    scores = scores_of(documents)
    return RunView(
        name=run.absolute().name,
        title=f"{config['student']} on {dataset_label(config['dataset'])}",
        facts={
            "student": config["student"],
            "starts from": _start(config, done.towers),
            "method": wording.method_label(result.study, result.study.methods[0]),
            "teachers": ", ".join(setting.teachers) or "none",
            "learned from": f"{done.num_labelled:,} labelled items of {config['split']}",
            "steps": f"{done.num_steps:,} in {wording.duration(done.seconds)}",
            "seed": str(config["seed"]),
        },
        scores=scores,
        measures=measures_of(documents),
        conditions=list(dict.fromkeys(kind for score in scores for kind in score.changes)),
        losses=loss_figure(read_log(run), run=only.run),
        words=words_figure(read_words(run), run=only.run),
        kinds=kinds_of(documents),
        confusions={
            test_set: document.confusion
            for test_set, document in documents.items()
            if document.confusion is not None and len(document.confusion.label_names) <= _MOST_CLASSES
        },
    )


def _start(config: Mapping[str, Any], towers: Sequence[str]) -> str:
    """Describe the weights that a student started from."""
    if config.get("init"):
        return dataset_label(str(config["init"]))
    return f"{enumeration(towers)}, frozen; other layers at random" if towers else "random weights"


def scores_of(documents: Mapping[str, EvaluationDocument]) -> list[ScoreRow]:
    """Return every metric on every test set, formatted for a page.

    Args:
        documents: evaluations by test set.
    """
    scores = []
    for test_set, document in documents.items():
        for metric, accuracy in document.metrics.items():
            scores.append(
                ScoreRow(
                    test_set=test_set,
                    metric=wording.metric_name(metric) + wording.WRITTEN * (document.protocol == LETTERS),
                    num_items=document.num_items.get(metric, 0),
                    accuracy=wording.percent(accuracy),
                    interval=wording.interval(document.intervals.get(metric), wording.percent),
                    **wording.without_student(document.trivial.get(metric)),
                    changes={
                        condition: wording.signed(-seen.drop)
                        for condition, seen in document.use_of_vision.get(metric, {}).items()
                    },
                )
            )
    return scores


def measures_of(documents: Mapping[str, EvaluationDocument]) -> list[str]:
    """Return the numbers that the card of each test set defines, in words; empty if no card defines any."""
    return [
        f"{test_set}: "
        + "; ".join(f"{name} {'-' if value is None else wording.percent(value)}" for name, value in of.items())
        for test_set, document in documents.items()
        for of in document.measures.values()
    ]


def loss_figure(log: Sequence[Mapping[str, Any]], *, run: str) -> Figure | None:
    """Draw the task loss and each term of the distillation over the steps; None for a run of fewer than two steps.

    The validation loss is in the panel of the task loss; the validation accuracy has its own panel.
    """
    terms = list(dict.fromkeys(key for record in log for key in record if key.startswith("raw/")))
    if not terms or len(log) < 2:
        return None
    if any(_RIGHT in record for record in log):
        terms.append(_RIGHT)
    last = max(int(record["step"]) for record in log)
    began = next((int(record["step"]) for record in log if record.get(STAGE_KEY) == "finetune"), 0)
    drawings: list[Drawing] = []
    for term, share in zip(terms, shares_of_rows(len(terms)), strict=True):
        name = _TERMS.get(term.removeprefix("raw/"), term.removeprefix("raw/"))
        lines = [(name, *_points(log, term))]
        if term == "raw/task" and (points := _points(log, "val/task"))[0]:
            lines.append(("validation", *points))
        drawn = axes(WIDTHS[share], 190, left=46, right=10, bottom=36)
        drawn.set_xlim(0, max(last, 1))
        _scale(drawn, [value for _, _, values in lines for value in values])
        marks = [tick for tick in round_ticks([0.0, float(last)]) if tick <= last]
        mark_ticks(drawn, "x", marks, name="optimiser step")
        if began:
            drawn.axvline(began, color=SOFT, linewidth=1, linestyle=(0, (2, 3)))
        rows = []
        for number, (line, steps, values) in enumerate(lines):
            colour = SERIES[1 + number]
            if line == name and term != _RIGHT:
                drawn.plot(steps, values, color=colour, linewidth=1, alpha=0.35)
                # Running mean over a twentieth of the steps.
                window = pd.Series(values).rolling(2 * max(1, len(values) // 40) + 1, center=True, min_periods=1)
                drawn.plot(steps, window.mean(), color=colour, linewidth=1.8)
            else:
                drawn.plot(steps, values, color=colour, linewidth=1.8, marker="o", markersize=4, clip_on=False)
            if len(lines) > 1:
                drawn.text(steps[-1], values[-1], line, color=colour, fontsize=11, ha="right", va="bottom")
            end = sum(values[-10:]) / len(values[-10:])
            losses = (f"{number:.4g}" for number in (values[0], min(values), end))
            rows.append((line, f"{steps[0]} to {steps[-1]}", *losses))
        drawings.append((name, drawn, rows))
    adapt = f" Left of the dotted line, the {began} steps of the adapt stage." if began else ""
    return as_figure("loss", drawings, identifier="loss", runs=[run], adapt=adapt)


def words_figure(words: pd.DataFrame | None, *, run: str) -> Figure | None:
    """Draw how many words have which score, by class; None for a run that estimated no classes.

    Args:
        words: from `read_words`.
    """
    if words is None or words.empty:
        return None
    classes = [name for name in get_args(WordClass) if (words["class"] == name).any()]
    scores = [words.loc[words["class"] == name, "score"].to_numpy() for name in classes]
    drawn = axes(WIDTHS["whole"], 190, left=46, right=10, bottom=36)
    ticks = round_ticks([float(words["score"].min()), float(words["score"].max())])
    edges = np.linspace(ticks[0], ticks[-1], _NUM_BINS + 1)
    counts, _, _ = drawn.hist(scores, bins=edges.tolist(), stacked=True, color=SERIES[1 : 1 + len(classes)])
    drawn.set_xlim(ticks[0], ticks[-1])
    mark_ticks(drawn, "x", ticks, name="score")
    mark_ticks(drawn, "y", round_ticks([0.0, float(np.max(counts))]))
    for number, name in enumerate(classes):
        drawn.text(
            0.99,
            0.95 - 0.1 * number,
            name,
            color=SERIES[1 + number],
            fontsize=11,
            ha="right",
            va="top",
            transform=drawn.transAxes,
        )
    rows = [
        (name, f"{len(of_class):,}", f"{of_class.min():.3f}", f"{of_class.max():.3f}")
        for name, of_class in zip(classes, scores, strict=True)
    ]
    return as_figure("words", [("", drawn, rows)], identifier="words", runs=[run])


def _points(log: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Return the steps at which a number was logged, and its values."""
    records = [record for record in log if key in record]
    factor = 100.0 if key == _RIGHT else 1.0
    return [int(record["step"]) for record in records], [factor * float(record[key]) for record in records]


def _scale(drawn: Axes, values: Sequence[float]) -> None:
    """Scale the axis of a loss: logarithmic if it falls far, else to all values but the highest fiftieth."""
    low, high = min(values), max(values)
    if low > 0 and high / low > _FALLS_FAR:
        drawn.set_yscale("log")
        ends = math.floor(math.log10(low)), math.ceil(math.log10(high))
        powers = [10.0**power for power in range(ends[0], ends[1] + 1)]
        drawn.set_ylim(low / 1.2, high * 1.2)
        drawn.minorticks_off()
        inside = [tick for tick in powers if low / 1.2 <= tick <= high * 1.2]
        finer = [step * power for power in powers for step in (1, 2, 5) if low / 1.2 <= step * power <= high * 1.2]
        mark_ticks(drawn, "y", inside if len(inside) > 2 else finer)
        return
    ticks = round_ticks([low, float(np.percentile(values, 98))])
    drawn.set_ylim(ticks[0], ticks[-1])
    mark_ticks(drawn, "y", ticks)


def kinds_of(documents: Mapping[str, EvaluationDocument]) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """Return tables of accuracy by question type and by answer type, if there are several, the worst first."""
    tables = []
    for test_set, document in documents.items():
        by_annotators = [
            task.metric for task in TASKS.values() if task.by_annotators and task.metric in document.metrics
        ]
        of_answers = dict.fromkeys(by_annotators, document.by_answer_type)
        ways = {"question type": document.by_question_type, "answer type": of_answers}
        for way, by_metric in ways.items():
            for metric, kinds in by_metric.items():
                if len(kinds) > 1:
                    ordered = sorted(kinds.items(), key=lambda pair: pair[1].accuracy)
                    rows = [(name, str(part.num_items), wording.percent(part.accuracy)) for name, part in ordered]
                    tables.append((f"{wording.metric_name(metric)} on {test_set} by {way}", rows))
    return tables
