"""`run_evaluate`: score a finished run on test sets, per item, with and without its pictures."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from advl_pipeline.base.atomic import make_folder, replacing, write_text
from advl_pipeline.base.compute import resolved
from advl_pipeline.base.configuration import json_text
from advl_pipeline.base.errors import ConfigError, DatasetError, advise, leave_out
from advl_pipeline.base.interruption import interruptible
from advl_pipeline.datasets.cards import JOIN
from advl_pipeline.datasets.indexed import IndexedDataset
from advl_pipeline.datasets.measures import Measure
from advl_pipeline.datasets.records import MULTIPLE_CHOICE_TASKS, Dataset, Example, ImageUnit, Task, head_name
from advl_pipeline.datasets.registry import open_dataset, vqa_mode_of
from advl_pipeline.datasets.roots import DatasetMissing, is_own_data, set_name
from advl_pipeline.evaluation.answer_reading import BEYOND, read_option
from advl_pipeline.evaluation.checks import check_scoring
from advl_pipeline.evaluation.config import AnswerOptions, EvaluateConfig
from advl_pipeline.evaluation.items import (
    GENERATED,
    JOINT_METRICS,
    METRIC_OF_TASK,
    AnswerTally,
    ItemScores,
    accuracy_by,
    accuracy_by_answer_type,
    concatenated,
    first_maximum,
    group_accuracy,
    item_scores,
    joint_items,
    question_rank,
    questions_of,
    score_labels,
    score_soft_labels,
    score_texts,
    score_ties,
)
from advl_pipeline.evaluation.lettered import LETTERED_TASKS, answer_worth, as_asked, options_of, question_words
from advl_pipeline.evaluation.measures import Judged, measured
from advl_pipeline.evaluation.official_metrics import VqaMode, snli_ve_accuracy
from advl_pipeline.evaluation.predict import (
    NO_OTHERS,
    FinishedRun,
    View,
    load_finished,
    swapped_pictures,
)
from advl_pipeline.evaluation.prior import QuestionPrior
from advl_pipeline.evaluation.shift import question_namer
from advl_pipeline.evaluation.statistics import accuracy_interval
from advl_pipeline.runs.names import evaluation_file
from advl_pipeline.runs.results import LETTERS, filed_as, moved_to, read_config
from advl_pipeline.students.interface import Student
from advl_pipeline.students.registry import label_order_of
from advl_pipeline.training.checks import open_region_caches
from advl_pipeline.training.student_inputs import regions_of_run, use_region_caches, use_stored_pictures

_TRUE_PICTURE = ""
_VIEWS: tuple[View, ...] = ("swapped", "blanked", "removed")

EXAMPLES_AT_ONCE = 8192
"""Examples that are held at once, with one row of scores per view each: 100 MB per view for 3,129 answers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateResult:
    """One document per test set, as written to evaluation/<set>.json."""

    run: Path
    sets: dict[str, dict[str, Any]]


def run_evaluate(config: EvaluateConfig) -> EvaluateResult:
    """Evaluate on each named set and write `evaluation/<set>.json` and `.npz` into the run folder.

    Scores by another evaluator of VQA than the set's usual one lie next to those, in `<set>@<evaluator>`; those of
    letters that the student wrote in `<set>@letters`.

    Raises:
        ConfigError: no such run, or a set of another kind of task. WeightsUnavailable: the run is not finished.
        DatasetError: a test set that is missing or has no labels. Interrupted: stopped by a signal.
    """
    check_scoring(config.run, config.on, config.data_root)
    with interruptible("The evaluation", kept="test sets that were scored are kept"):
        config = resolved(config)
        trained_on = read_config(config.run)
        config = replace(config, data_root=moved_to(config.data_root, trained_on))
        finished = load_finished(config.run, config)
        if config.protocol == LETTERS and type(finished.student).generate is Student.generate:
            raise ConfigError(
                f"{finished.student.name} generates no text, so no letter can be read.",
                where=str(config.run),
                why="it scores the answers that it was trained on",
                next_command=leave_out("--as letters"),
            )
        finished.student.cut_texts()
        # What a student writes needs no head of its run, and no list of answers that has a prior.
        needs_head = config.protocol != LETTERS
        prior, caveats = _question_prior(config, finished, trained_on) if needs_head else (None, [])
        sets: dict[str, dict[str, Any]] = {}
        for name in config.on:
            dataset_name, split = set_name(name, trained_on["dataset"])
            dataset = open_as_trained(
                config,
                finished,
                trained_on,
                dataset=dataset_name,
                split=split,
                needs_head=needs_head,
                tasks=tuple(trained_on["task"]) if needs_head else (),
            )
            is_seen = dataset_name == trained_on["dataset"] and split in str(trained_on["split"]).split("+")
            sets[name] = _evaluate_set(config, finished, dataset, name, is_seen=is_seen, prior=prior, caveats=caveats)
        return EvaluateResult(run=config.run, sets=sets)


@dataclass(kw_only=True)
class _Scored:
    """What is kept of a task, part by part: with VQA's thousands of answers only the true pictures' scores are.

    `items` maps a view of the pictures and a metric to the items of each part.
    """

    tally: AnswerTally
    shown: list[npt.NDArray[np.float32]] = field(default_factory=list)
    items: dict[tuple[str, str], list[ItemScores]] = field(default_factory=lambda: defaultdict(list))
    example_ids: list[str] = field(default_factory=list)
    labels: list[int | None] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    right: list[str] = field(default_factory=list)
    given: list[str] = field(default_factory=list)
    facets: list[Mapping[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    num_texts: int = 0
    num_cut: int = 0
    num_unread: int = 0
    num_beyond: int = 0


def _question_prior(
    config: EvaluateConfig, finished: FinishedRun, trained_on: Mapping[str, Any]
) -> tuple[QuestionPrior | None, list[str]]:
    """Return the prior of the questions of the split that a run was trained on; None for choices, which have none.

    A run may be scored where its training data are not, which is a caveat.
    """
    if not any(finished.label_names.values()):
        return None, []
    try:
        splits = [
            open_with_classes(
                config, finished, trained_on, dataset=trained_on["dataset"], split=split, tasks=trained_on["task"]
            )
            for split in str(trained_on["split"]).split(JOIN)
        ]
    except DatasetError as error:
        return None, [f"the prior of the question is not known: {error.what}"]
    return QuestionPrior(splits), []


def _evaluate_set(
    config: EvaluateConfig,
    finished: FinishedRun,
    dataset: IndexedDataset,
    name: str,
    *,
    is_seen: bool,
    prior: QuestionPrior | None,
    caveats: Sequence[str],
) -> dict[str, Any]:
    """Score a set part by part, each part with all of its views, an example read once; write what was found."""
    usual_mode = vqa_mode_of(dataset.name)
    mode = config.vqa_mode or usual_mode
    # A text-only student has no use of vision to measure.
    is_probed = not finished.hides_picture and name in (config.probe_on or config.on[:1])
    views: tuple[View, ...] = ("shown", *(view for view in _VIEWS if is_probed and view in config.probes))
    is_lettered, card = config.protocol == LETTERS, dataset.card
    # Groups and denominators are those of the whole set.
    measures = (
        []
        if config.num_questions
        else [each for each in card.measures if dataset.split in each.splits or not each.splits]
    )
    named = question_namer(dataset.name, dataset.split)
    sampled = sample_questions(dataset.example_ids, dataset.tasks, config.num_questions, name_of=named)
    scored = _score_parts(config, finished, dataset, sampled, views=views, mode=mode, measures=measures)
    items_by_view = _items_by_view(scored)
    true_items = items_by_view[_TRUE_PICTURE]
    arrays = _score_arrays(scored, items_by_view, is_lettered=is_lettered)
    percents = {
        view: {metric: 100.0 * float(items.score_n.mean()) for metric, items in by_metric.items()}
        for view, by_metric in items_by_view.items()
    }
    metrics = percents.pop(_TRUE_PICTURE)
    seconds = sum(kept.seconds for kept in scored.values())
    num_examples = sum(len(kept.example_ids) for kept in scored.values())
    asked = config.num_questions
    document: dict[str, Any] = {
        "dataset": dataset.name,
        "split": dataset.split,
        "content_digest": dataset.content_digest(),
        "protocol": config.protocol,
        "caveats": [*caveats, *_caveats(finished, dataset, scored, is_seen=is_seen)],
        "num_items": {metric: len(items.score_n) for metric, items in true_items.items()},
        "metrics": metrics,
        "intervals": _intervals(true_items),
        "trivial": _trivial(scored, metrics, is_lettered=is_lettered),
        "sample": None if asked is None else {"asked": asked, "of_examples": len(dataset)},
        "seconds": seconds,
        "num_examples": num_examples,
        # Every view costs one pass over the same batches.
        "milliseconds_per_item": 1000.0 * seconds / (num_examples * len(views)),
        "by_question_type": {metric: accuracy_by(items.types, items.score_n) for metric, items in true_items.items()},
    }
    if prior is not None:
        for task in scored:
            document["trivial"][METRIC_OF_TASK[task]] |= prior.summary(dataset, sampled)
    document |= _breakdowns(dataset, scored, true_items, arrays, measures=measures, is_whole=asked is None)
    if "vqa" in metrics:
        document["vqa_mode"] = mode
    if percents:
        document["use_of_vision"] = _use_of_vision(metrics, percents)
    filed = f"{name}@{mode}" if "vqa" in metrics and mode != usual_mode else name
    filed = filed_as(config.run, name, None, LETTERS) if is_lettered else filed
    _write_scores(evaluation_file(config.run, filed, ".npz"), document, arrays)
    return document


def _write_scores(target: Path, document: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write item scores, and then the document, whose file says that both are whole."""
    make_folder(target.parent)
    with replacing(target) as partial, partial.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    write_text(target.with_suffix(".json"), json_text(document, sort_keys=True) + "\n")


def _use_of_vision(
    metrics: Mapping[str, float], percents: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, dict[str, float]]]:
    """Return the accuracy with each other view of the pictures, and what is lost, by metric."""
    return {
        metric: {
            view: {"accuracy": other[metric], "drop": accuracy - other[metric]} for view, other in percents.items()
        }
        for metric, accuracy in metrics.items()
        if metric != GENERATED
    }


def _score_parts(
    config: EvaluateConfig,
    finished: FinishedRun,
    dataset: IndexedDataset,
    sampled: Sequence[int],
    *,
    views: Sequence[View],
    mode: VqaMode,
    measures: Sequence[Measure],
) -> dict[Task, _Scored]:
    """Score the sampled examples of each task part by part, an example read once for all of its views."""
    is_lettered = config.protocol == LETTERS
    others = swapped_pictures(dataset.image_units(), seed=0) if "swapped" in views else NO_OTHERS
    scored = {
        task: _Scored(tally=AnswerTally(label_names=finished.label_names.get(head_name(task), ())))
        for task in dataset.tasks
        if not is_lettered or task in LETTERED_TASKS
    }
    parts = ((part, task, kept) for part in example_parts(dataset, sampled) for task, kept in scored.items())
    for part, task, kept in parts:
        examples = [example for example in part if example.task == task]
        if not examples:
            continue
        kept.example_ids += [example.example_id for example in examples]
        began = time.perf_counter()
        if is_lettered:
            values = _score_written(finished, examples, dataset, config.batch_size, kept)
            kept.seconds += time.perf_counter() - began
            kept.items[_TRUE_PICTURE, METRIC_OF_TASK[task]].append(item_scores(examples, values))
            kept.facets += [_facets(example, dataset, measures) for example in examples]
            continue
        matrices = score_matrices(finished, examples, config.batch_size, views, others)
        kept.seconds += time.perf_counter() - began
        kept.num_texts += sum(len(example.candidates) for example in examples)
        kept.num_cut += finished.student.count_cut(examples)
        kept.shown.append(matrices[0])
        kept.tally.add(examples, matrices[0])
        kept.labels += [example.label for example in examples]
        for view, matrix in zip((_TRUE_PICTURE, *views[1:]), matrices, strict=True):
            chosen = first_maximum(matrix, [example.example_id for example in examples]).tolist()
            # VQA is scored officially, other answers by their soft labels, the rest by the label.
            if task == "vqa":
                texts = [finished.label_names["vqa"][choice] for choice in chosen]
                values = score_texts(examples, texts, dataset=_answered(dataset), mode=mode)
            elif task in MULTIPLE_CHOICE_TASKS:
                values = score_ties(examples, chosen, matrix, dataset.card.ties)
            else:
                values = (score_soft_labels if head_name(task) == "vqa" else score_labels)(examples, chosen)
            kept.items[view, METRIC_OF_TASK[task]].append(item_scores(examples, values))
            if view == _TRUE_PICTURE and measures:
                kept.facets += [_facets(example, dataset, measures) for example in examples]
                _keep_answers(kept, examples, chosen)
        if config.generate and task == "vqa":
            texts = list(finished.generated(examples, batch_size=config.batch_size))
            values = score_texts(examples, texts, dataset=_answered(dataset), mode=mode)
            kept.items[_TRUE_PICTURE, GENERATED].append(item_scores(examples, values))
    return scored


def _items_by_view(scored: Mapping[Task, _Scored]) -> dict[str, dict[str, ItemScores]]:
    """Return the items of each view of the pictures and metric, those of two tasks together included."""
    items_by_view: dict[str, dict[str, ItemScores]] = defaultdict(dict)
    for kept in scored.values():
        for (view, metric), of_parts in kept.items.items():
            items_by_view[view][metric] = concatenated(of_parts)
    for by_metric in items_by_view.values():
        for (first, second), joint in JOINT_METRICS.items():
            if {first, second} <= by_metric.keys():
                both = joint_items(by_metric[first], by_metric[second])
                by_metric |= {joint: both} if both.question_ids else {}
    return items_by_view


def _score_arrays(
    scored: Mapping[Task, _Scored], items_by_view: Mapping[str, Mapping[str, ItemScores]], *, is_lettered: bool
) -> dict[str, npt.NDArray[Any]]:
    """Return what the file of item scores holds: scores by task, and items by view and metric."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    for task, kept in scored.items():
        arrays[f"example_ids/{task}"] = np.array(kept.example_ids)
        if is_lettered:
            arrays[f"written/{task}"] = np.array(kept.written)
            continue
        # -inf fills the places of candidates that a part does not have.
        width = max(part.shape[1] for part in kept.shown)
        wide = [np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=-np.inf) for part in kept.shown]
        arrays[f"scores/{task}"] = np.concatenate(wide)
        if head_name(task) != "vqa":
            arrays[f"labels/{task}"] = np.array(kept.labels, dtype=np.int64)
    for view, by_metric in items_by_view.items():
        prefix = f"item_{view}" if view else "item"
        for metric, items in by_metric.items():
            arrays[f"{prefix}/{metric}"] = items.score_n
            arrays[f"{prefix}_ids/{metric}"] = np.array(items.question_ids)
    for metric, items in items_by_view[_TRUE_PICTURE].items():
        arrays[f"pictures/{metric}"], arrays[f"strata/{metric}"] = np.array(items.pictures), np.array(items.types)
    return arrays


def _breakdowns(
    dataset: IndexedDataset,
    scored: Mapping[Task, _Scored],
    true_items: Mapping[str, ItemScores],
    arrays: Mapping[str, npt.NDArray[Any]],
    *,
    measures: Sequence[Measure],
    is_whole: bool,
) -> dict[str, Any]:
    """Return the numbers that a card defines, and accuracies by group, by answer type and by class."""
    parts: dict[str, Any] = {}
    if measures:
        parts["measures"] = {
            METRIC_OF_TASK[task]: _measured(measures, kept, true_items[METRIC_OF_TASK[task]])
            for task, kept in scored.items()
        }
    if dataset.is_grouped and is_whole:
        parts["by_group"] = {metric: group_accuracy(items) for metric, items in true_items.items()}
    if "vqa" in true_items:
        parts["by_answer_type"] = accuracy_by_answer_type(true_items["vqa"], _answered(dataset))
    for task in scored:
        if head_name(task) == "snli-ve" and f"labels/{task}" in arrays:
            scores, labels = arrays[f"scores/{task}"], arrays[f"labels/{task}"]
            whole = snli_ve_accuracy(scores.argmax(axis=1), labels, dataset.label_names(task))
            parts["confusion"] = {"label_names": list(whole.label_names), "counts": whole.counts}
    return parts


def _intervals(true_items: Mapping[str, ItemScores]) -> dict[str, dict[str, float]]:
    intervals = {
        metric: accuracy_interval(items.score_n, items.pictures, items.types) for metric, items in true_items.items()
    }
    return {metric: {"low": interval.low, "high": interval.high} for metric, interval in intervals.items()}


def _trivial(
    scored: Mapping[Task, _Scored], metrics: Mapping[str, float], *, is_lettered: bool
) -> dict[str, dict[str, Any]]:
    """Return what is right without a student, by metric."""
    # Of answers in a student's own words none is drawn at random.
    tallies = {
        METRIC_OF_TASK[task]: kept.tally
        for task, kept in scored.items()
        if not is_lettered or task in MULTIPLE_CHOICE_TASKS
    }
    joints = {
        joint: tallies[first].joint_summary(tallies[second])
        for (first, second), joint in JOINT_METRICS.items()
        if joint in metrics
    }
    return {metric: tally.summary() for metric, tally in tallies.items()} | joints


def _caveats(
    finished: FinishedRun, dataset: IndexedDataset, scored: Mapping[Task, _Scored], *, is_seen: bool
) -> list[str]:
    """Return what a reader of the scores must know of what the student saw and said."""
    caveats = [*finished.student.caveats(), *([f"the run was trained on {dataset.split}"] if is_seen else [])]
    if num_cut := sum(kept.num_cut for kept in scored.values()):
        num_texts = sum(kept.num_texts for kept in scored.values())
        caveats.append(f"{num_cut} of {num_texts} texts of {dataset.split} are cut to the student's length")
    return caveats + [
        f"of {len(kept.example_ids)} answers to {dataset.split}, {kept.num_unread} name no option and "
        f"{kept.num_beyond} a letter beyond the options; they count as wrong"
        for kept in scored.values()
        if kept.num_unread or kept.num_beyond
    ]


def _score_written(
    finished: FinishedRun, examples: Sequence[Example], dataset: IndexedDataset, batch_size: int, kept: _Scored
) -> list[float]:
    """Ask examples as harnesses do, and return what the answers are worth that the student writes."""
    card = dataset.card
    asked = [as_asked(example, card.asks) for example in examples]
    written = list(finished.generated(asked, batch_size=batch_size))
    kept.written += written
    if examples[0].task not in MULTIPLE_CHOICE_TASKS:
        return [
            answer_worth(text, dataset.answers_of(example.example_id), card.reads)
            for example, text in zip(examples, written, strict=True)
        ]
    read = [
        read_option(text, options_of(example), card.reads) for example, text in zip(examples, written, strict=True)
    ]
    kept.num_unread += read.count(None)
    kept.num_beyond += read.count(BEYOND)
    chosen = [BEYOND if place is None else place for place in read]
    kept.tally.add(examples, _finite_places(examples), chosen)
    _keep_answers(kept, examples, chosen)
    return score_labels(examples, chosen)


def _finite_places(examples: Sequence[Example]) -> npt.NDArray[np.float32]:
    """Return (n, C): 0 for the candidates that an item has, -inf for others."""
    count_n = np.array([len(example.candidates) for example in examples])
    return np.where(np.arange(count_n.max()) < count_n[:, None], 0.0, -np.inf).astype(np.float32)


def _keep_answers(kept: _Scored, examples: Sequence[Example], chosen: Sequence[int]) -> None:
    """Keep the right and the given answers of choices as texts."""
    if examples[0].task not in MULTIPLE_CHOICE_TASKS:
        return
    for example, place in zip(examples, chosen, strict=True):
        options = options_of(example)
        kept.right.append(options[example.label or 0])
        kept.given.append("" if place < 0 else options[place])


def _facets(example: Example, dataset: IndexedDataset, measures: Sequence[Measure]) -> dict[str, str]:
    """Return the facets of an example that measures are taken over.

    Raises:
        DatasetError: its row lacks one of them.
    """
    facets = {
        **dict(zip(dataset.card.facets, dataset.facets_of(example.example_id), strict=True)),
        "group": example.group,
        "picture": example.image.unit_id,
        "question": question_words(example),
        "type": example.stratum,
    }
    for measure in measures:
        for name in measure.facets:
            if not facets[name]:
                raise DatasetError(
                    f"The measure {measure.name!r} needs the facet {name!r}, and an item has none.",
                    where=f"{dataset.name}/{dataset.split}, {example.example_id}",
                    next_command=advise(
                        ["advl", "datasets", "card", dataset.name], note="says where facets are from"
                    ),
                )
    return facets


def _measured(measures: Sequence[Measure], kept: _Scored, items: ItemScores) -> dict[str, float | None]:
    judged = Judged(
        score_n=items.score_n,
        facets={name: [facets[name] for facets in kept.facets] for name in kept.facets[0]},
        right=kept.right,
        given=kept.given,
    )
    return {name: value for measure in measures for name, value in measured(measure, judged).items()}


def sample_questions(
    example_ids: Sequence[str], tasks: Sequence[Task], count: int | None, *, name_of: Callable[[str], str] = str
) -> Sequence[int]:
    """Return the positions of all examples of `count` questions of a set, or of all where it holds no more.

    The same questions are drawn whatever the run, so that runs can be compared item by item; so they are of sets that
    ask the same questions otherwise, by what `name_of` calls a question in all of them.
    """
    if count is None:
        return range(len(example_ids))
    questions = questions_of(example_ids, tasks)
    chosen = set(sorted(set(questions), key=lambda question: question_rank(name_of(question)))[:count])
    return [position for position, question in enumerate(questions) if question in chosen]


def example_parts(
    dataset: Dataset, positions: Sequence[int] | None = None, *, multiple_of: int = 1
) -> Iterator[list[Example]]:
    """Yield the examples of a split in order, some thousand at a time: a whole test set need not fit in memory.

    Args:
        positions: of the examples that are wanted; None for all.
        multiple_of: examples that must not be parted; all parts but the last are multiples of it.
    """
    size = EXAMPLES_AT_ONCE // multiple_of * multiple_of
    positions = range(len(dataset)) if positions is None else positions
    for start in range(0, len(positions), size):
        yield [dataset[index] for index in positions[start : start + size]]


def score_matrices(
    finished: FinishedRun,
    examples: Sequence[Example],
    batch_size: int,
    views: Sequence[View] = ("shown",),
    others: Mapping[str, ImageUnit] = NO_OTHERS,
) -> list[npt.NDArray[np.float32]]:
    """Return (num_examples, C or K) scores for each view of the pictures; all examples must be of one task.

    Args:
        others: the pictures of the view "swapped".

    Raises:
        DatasetError: there are no examples.
    """
    if not examples:
        raise DatasetError("The test set has no items.")
    # Items of like length share a batch, which keeps padding low; the order is restored afterwards.
    order = sorted(range(len(examples)), key=lambda index: max(len(c.text) for c in examples[index].candidates))
    sorted_examples = (examples[index] for index in order)
    rows = list(finished.scores(sorted_examples, batch_size=batch_size, views=views, others=others))
    width = max(len(row[0]) for row in rows)
    stacked = [np.full((len(rows), width), -np.inf, dtype=np.float32) for _ in views]
    for index, by_view in zip(order, rows, strict=True):
        for matrix, row in zip(stacked, by_view, strict=True):
            matrix[index, : len(row)] = row
    return stacked


def _answered(dataset: Dataset) -> IndexedDataset:
    if not isinstance(dataset, IndexedDataset):
        raise DatasetError(f"{dataset.name} holds no annotators' answers.")
    return dataset


def open_with_classes(
    config: AnswerOptions,
    finished: FinishedRun,
    trained_on: Mapping[str, Any],
    *,
    dataset: str,
    split: str,
    **options: Any,
) -> IndexedDataset:
    """Open a split with the wording and the classes of a run, as `open_dataset` does."""
    return open_dataset(
        dataset,
        split=split,
        data_root=config.data_root,
        text_style=trained_on.get("text_style"),
        label_order=trained_on.get("label_order") or label_order_of(trained_on.get("student", "")),
        answers=finished.classes,
        **options,
    )


def open_as_trained(
    config: AnswerOptions,
    finished: FinishedRun,
    trained_on: Mapping[str, Any],
    *,
    dataset: str,
    split: str,
    needs_head: bool = True,
    **options: Any,
) -> IndexedDataset:
    """Open a split as the run read its own, with its stored pictures.

    Args:
        trained_on: configuration of the run.
        needs_head: the run is to score the answers of its own head.
        options: others of `open_dataset`.

    Raises:
        ConfigError: the run has no head for its tasks and classes. DatasetError: it is missing or malformed.
    """
    try:
        opened = open_with_classes(config, finished, trained_on, dataset=dataset, split=split, **options)
    except DatasetMissing as error:
        if dataset == trained_on["dataset"] and is_own_data(dataset) and not Path(dataset).exists():
            # A run stays valid when its data move.
            error.next_command = f"say where the run's data are now: PATH/{split} in place of {split}"
        raise
    for task in opened.tasks if needs_head else ():
        head = head_name(task)
        fits = head in finished.label_names
        # An answer is an answer whatever the vocabulary of the set: a run keeps its own.
        if fits and head != "vqa":
            fits = finished.label_names[head] == tuple(opened.label_names(task))
        if not fits:
            raise ConfigError(
                f"The run has no head for {task} with this set's classes.",
                where=f"{opened.name}/{opened.split}",
                why=f"heads of the run: {', '.join(finished.label_names)}",
            )
    read = [(dataset, split)]
    regions = open_region_caches(config.regions or regions_of_run(trained_on), read, data_root=config.data_root)
    stored = use_stored_pictures(finished.student, config.pictures, read)
    for line in (*stored, *use_region_caches(finished.student, regions)):
        tqdm.write(line, file=sys.stderr)
    return opened
