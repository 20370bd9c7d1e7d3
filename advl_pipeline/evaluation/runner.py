"""`run_evaluate`: score a finished run on test sets, per item, with and without its pictures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from advl_pipeline.base.compute import resolved
from advl_pipeline.base.errors import DatasetError
from advl_pipeline.base.interruption import interruptible
from advl_pipeline.datasets.cards import JOIN
from advl_pipeline.datasets.indexed import IndexedDataset
from advl_pipeline.datasets.records import JOINT_METRICS, MULTIPLE_CHOICE_TASKS, TASKS, Task, head_name
from advl_pipeline.datasets.registry import read_dataset
from advl_pipeline.datasets.roots import set_name
from advl_pipeline.datasets.spec import DatasetSpec
from advl_pipeline.evaluation.config import EvaluateConfig
from advl_pipeline.evaluation.items import (
    accuracy_by,
    accuracy_by_answer_type,
    group_accuracy,
    joint_items,
)
from advl_pipeline.evaluation.measures import Items, measured
from advl_pipeline.evaluation.official_metrics import confusion_counts
from advl_pipeline.evaluation.open_sets import open_as_trained, open_with_classes, sample_questions
from advl_pipeline.evaluation.predict import Condition, FinishedRun, load_finished
from advl_pipeline.evaluation.prepare import PreparedScoring
from advl_pipeline.evaluation.prior import QuestionPrior
from advl_pipeline.evaluation.score_parts import ScoredTask, score_parts
from advl_pipeline.evaluation.statistics import accuracy_interval
from advl_pipeline.runs.evaluations import (
    LETTERS,
    TRUE_PICTURE,
    ConditionAccuracy,
    Confusion,
    EvaluationDocument,
    ExampleScores,
    Sample,
    TrivialScores,
    filed_as,
    write_evaluation,
)
from advl_pipeline.runs.results import run_digest
from advl_pipeline.students.abilities import caveats_of

_REPLACED: tuple[Condition, ...] = ("swapped", "blanked", "removed")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateResult:
    """One document per test set, as written to evaluation/<set>.json."""

    run: Path
    sets: dict[str, EvaluationDocument]


def run_evaluate(prepared: PreparedScoring[EvaluateConfig]) -> EvaluateResult:
    """Evaluate on each named set and write `evaluation/<set>.json` and `.npz` into the run folder.

    Scores by another VQA evaluator than the set's default are written to `<set>@<evaluator>`, and scores of generated
    letters to `<set>@letters`.

    Args:
        prepared: as `prepare_scoring` returns it.

    Raises:
        ConfigError: a set of another kind of task. WeightsUnavailable: a file of the run is missing.
        DatasetError: a test set is missing or has no labels. KeyboardInterrupt: stopped by a signal.
    """
    with interruptible("The evaluation", kept="test sets that were scored are kept"):
        config = prepared.config
        trained_on = prepared.trained_on
        finished = load_finished(config.run, resolved(config), trained_on=trained_on)
        if config.protocol == LETTERS:
            finished.require_generates("--as letters")
        # Generated answers need neither a head of the run nor a list of answers, and so have no prior.
        needs_head = config.protocol != LETTERS
        prior, caveats = _question_prior(prepared, finished) if needs_head else (None, [])
        sets: dict[str, EvaluationDocument] = {}
        for name in config.on:
            dataset_name, split = set_name(name, trained_on["dataset"])
            spec = prepared.datasets[dataset_name]
            dataset = open_as_trained(
                config,
                finished,
                spec,
                split,
                needs_head=needs_head,
                tasks=tuple(trained_on["task"]) if needs_head else (),
            )
            is_seen = dataset_name == trained_on["dataset"] and split in str(trained_on["split"]).split(JOIN)
            sets[name] = _evaluate_set(
                config, finished, spec, dataset, name, is_seen=is_seen, prior=prior, caveats=caveats
            )
        return EvaluateResult(run=config.run, sets=sets)


def _question_prior(
    prepared: PreparedScoring[EvaluateConfig], finished: FinishedRun
) -> tuple[QuestionPrior | None, list[str]]:
    """Return the question prior of the split that a run was trained on; None for choices, which have no prior.

    If the training data are not available where a run is scored, a caveat says so.
    """
    if not any(finished.label_names.values()):
        return None, []
    config, trained_on = prepared.config, finished.trained_on
    name = trained_on["dataset"]
    try:
        dataset = prepared.datasets.get(name) or read_dataset(name, config.data_root)
        splits = [
            open_with_classes(
                dataset, split, trained_on, finished.classes, data_root=config.data_root, tasks=trained_on["task"]
            )
            for split in str(trained_on["split"]).split(JOIN)
        ]
    except DatasetError as error:
        return None, [f"the prior of the question is not known: {error.what}"]
    return QuestionPrior(splits), []


def _evaluate_set(
    config: EvaluateConfig,
    finished: FinishedRun,
    spec: DatasetSpec,
    dataset: IndexedDataset,
    name: str,
    *,
    is_seen: bool,
    prior: QuestionPrior | None,
    caveats: Sequence[str],
) -> EvaluationDocument:
    """Score a set part by part with all conditions, reading each example once, and write the results."""
    # The evaluator that the card names, else the official one of 2021.
    usual_mode = spec.card.facts.get("vqa_mode", "2021")
    mode = config.vqa_mode or usual_mode
    # A text-only student has no use of vision to measure.
    is_probed = not finished.hides_picture and name in (config.probe_on or config.on[:1])
    replaced = (condition for condition in _REPLACED if is_probed and condition in config.probes)
    conditions: tuple[Condition, ...] = ("shown", *replaced)
    is_lettered, card = config.protocol == LETTERS, dataset.card
    # Groups and denominators are those of the complete set, so a sample has no measures.
    measures = (
        []
        if config.num_questions
        else [each for each in card.measures if dataset.split in each.splits or not each.splits]
    )
    named = partial(spec.common_name, dataset.split)
    sampled = sample_questions(dataset.example_ids, dataset.tasks, config.num_questions, name_of=named)
    scored = score_parts(config, finished, dataset, sampled, conditions=conditions, mode=mode, measures=measures)
    items_by_condition = _items_by_condition(scored)
    true_items = items_by_condition[TRUE_PICTURE]
    examples = {task: _example_scores(task, kept, is_lettered=is_lettered) for task, kept in scored.items()}
    percents = {
        condition: {metric: 100.0 * float(scores.score_n.mean()) for metric, scores in by_metric.items()}
        for condition, by_metric in items_by_condition.items()
    }
    metrics = percents.pop(TRUE_PICTURE)
    by_annotators = next((TASKS[task].metric for task in scored if TASKS[task].by_annotators), None)
    seconds = sum(kept.seconds for kept in scored.values())
    num_examples = sum(len(kept.example_ids) for kept in scored.values())
    asked = config.num_questions
    trivial = _trivial(scored, metrics, is_lettered=is_lettered)
    if prior is not None:
        of_tasks = [TASKS[task].metric for task in scored]
        trivial |= {metric: prior.beside(trivial[metric], dataset, sampled) for metric in of_tasks}
    document = EvaluationDocument(
        dataset=dataset.name,
        split=dataset.split,
        content_digest=dataset.content_digest(),
        run_digest=run_digest(config.run),
        protocol=config.protocol,
        vqa_mode=None if by_annotators is None else mode,
        regions=tuple(map(str, config.regions)),
        mixed_precision=config.mixed_precision,
        caveats=(*caveats, *_caveats(finished, dataset, scored, is_seen=is_seen)),
        num_items={metric: len(scores.score_n) for metric, scores in true_items.items()},
        metrics=metrics,
        intervals={
            metric: accuracy_interval(scores.score_n, scores.pictures, scores.types)
            for metric, scores in true_items.items()
        },
        trivial=trivial,
        sample=None if asked is None else Sample(asked=asked, of_examples=len(dataset)),
        seconds=seconds,
        num_examples=num_examples,
        # Each condition is one pass over the same batches.
        milliseconds_per_item=1000.0 * seconds / (num_examples * len(conditions)),
        use_of_vision=_use_of_vision(metrics, percents) if percents else {},
        by_question_type={metric: accuracy_by(scores.types, scores.score_n) for metric, scores in true_items.items()},
        by_answer_type=({} if by_annotators is None else accuracy_by_answer_type(true_items[by_annotators], dataset)),
        by_group=(
            {metric: group_accuracy(scores) for metric, scores in true_items.items()}
            if dataset.is_grouped and asked is None
            else {}
        ),
        measures={
            metric: {name: value for each in measures for name, value in measured(each, true_items[metric]).items()}
            for metric in (TASKS[task].metric for task in scored)
        }
        if measures
        else {},
        confusion=_confusion(dataset, examples),
    )
    filed = name if by_annotators is None or mode == usual_mode else f"{name}@{mode}"
    filed = filed_as(config.run, name, None, LETTERS) if is_lettered else filed
    return write_evaluation(config.run, filed, document, items_by_condition, list(examples.values()))


def _use_of_vision(
    metrics: Mapping[str, float], percents: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, ConditionAccuracy]]:
    """Return the accuracy with each other condition of the pictures, and its drop, by metric."""
    return {
        metric: {
            condition: ConditionAccuracy(accuracy=other[metric], drop=accuracy - other[metric])
            for condition, other in percents.items()
        }
        for metric, accuracy in metrics.items()
    }


def _items_by_condition(scored: Mapping[Task, ScoredTask]) -> dict[str, dict[str, Items]]:
    """Return the items by condition of the pictures and metric, including the joint metrics of two tasks."""
    items_by_condition: dict[str, dict[str, Items]] = defaultdict(dict)
    for task, kept in scored.items():
        for condition in kept.worth:
            items_by_condition[condition][TASKS[task].metric] = kept.items(condition)
    for by_metric in items_by_condition.values():
        for joint in JOINT_METRICS:
            first, second = (TASKS[task].metric for task in joint.tasks)
            if {first, second} <= by_metric.keys():
                both = joint_items(by_metric[first], by_metric[second])
                by_metric |= {joint.metric: both} if both.question_ids else {}
    return items_by_condition


def _example_scores(task: Task, kept: ScoredTask, *, is_lettered: bool) -> ExampleScores:
    """Return the scores of a task with its labels, or the texts that the student wrote."""
    if is_lettered:
        return ExampleScores(task=task, example_ids=kept.example_ids, written=kept.written)
    # Parts with fewer candidates are padded with -inf.
    width = max(part.shape[1] for part in kept.shown)
    wide = [np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=-np.inf) for part in kept.shown]
    return ExampleScores(
        task=task,
        example_ids=kept.example_ids,
        scores_NC=np.concatenate(wide),
        label_N=None if head_name(task) == "answers" else np.array(kept.labels, dtype=np.int64),
    )


def _confusion(dataset: IndexedDataset, examples: Mapping[Task, ExampleScores]) -> Confusion | None:
    """Return how often each class is called which; None for other answers than classes."""
    for task, scores in examples.items():
        if head_name(task) == "classes" and scores.scores_NC is not None and scores.label_N is not None:
            classes = dataset.label_names(task)
            counts_CC = confusion_counts(scores.scores_NC.argmax(axis=1), scores.label_N, len(classes))
            return Confusion(label_names=tuple(classes), counts=tuple(map(tuple, counts_CC.tolist())))
    return None


def _trivial(
    scored: Mapping[Task, ScoredTask], metrics: Mapping[str, float], *, is_lettered: bool
) -> dict[str, TrivialScores]:
    """Return the accuracy without a student, by metric."""
    # Generated answers have no chance level.
    tallies = {
        TASKS[task].metric: kept.tally
        for task, kept in scored.items()
        if not is_lettered or task in MULTIPLE_CHOICE_TASKS
    }
    joints = {
        joint.metric: tallies[TASKS[first].metric].joint_summary(tallies[TASKS[second].metric])
        for joint in JOINT_METRICS
        for first, second in [joint.tasks]
        if joint.metric in metrics
    }
    return {metric: tally.summary() for metric, tally in tallies.items()} | joints


def _caveats(
    finished: FinishedRun, dataset: IndexedDataset, scored: Mapping[Task, ScoredTask], *, is_seen: bool
) -> list[str]:
    """Return the caveats of the scores: about the student's inputs and its answers."""
    caveats = [*caveats_of(finished.student), *([f"the run was trained on {dataset.split}"] if is_seen else [])]
    if num_cut := sum(kept.num_cut for kept in scored.values()):
        num_texts = sum(kept.num_texts for kept in scored.values())
        caveats.append(f"{num_cut} of {num_texts} texts of {dataset.split} are cut to the student's length")
    return caveats + [
        f"of {len(kept.example_ids)} answers to {dataset.split}, {kept.num_unread} name no option and "
        f"{kept.num_beyond} a letter beyond the options; they count as wrong"
        for kept in scored.values()
        if kept.num_unread or kept.num_beyond
    ]
