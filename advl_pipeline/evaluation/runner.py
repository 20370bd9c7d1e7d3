"""`run_evaluate`: score a finished run on test sets, per item, with and without its pictures."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from advl_pipeline.atomic import make_folder, partial_beside, write_text, writing
from advl_pipeline.compute import resolved
from advl_pipeline.datasets.indexed import IndexedDataset
from advl_pipeline.datasets.records import Dataset, Example, ImageUnit, Task, head_name
from advl_pipeline.datasets.registry import open_dataset, vqa_mode_of
from advl_pipeline.datasets.roots import DatasetMissing, is_own_data, set_name
from advl_pipeline.errors import ConfigError, DatasetError
from advl_pipeline.evaluation.config import AnswerOptions, EvaluateConfig, Probe
from advl_pipeline.evaluation.given import require_given
from advl_pipeline.evaluation.item_words import item_words, read_selection
from advl_pipeline.evaluation.items import (
    GENERATED,
    JOINT_METRICS,
    METRIC_OF_TASK,
    AnswerTally,
    ItemScores,
    accuracy_by,
    accuracy_by_answer_type,
    concatenate_items,
    group_accuracy,
    joint_items,
    question_rank,
    questions_of,
    score_answers,
    score_items,
    score_soft_labels,
    score_texts,
)
from advl_pipeline.evaluation.official_metrics import VqaMode, snli_ve_accuracy
from advl_pipeline.evaluation.predict import (
    NO_OTHERS,
    FinishedRun,
    View,
    load_run,
    swapped_pictures,
)
from advl_pipeline.evaluation.question_match import question_namer
from advl_pipeline.evaluation.statistics import accuracy_interval
from advl_pipeline.interruption import interruptible
from advl_pipeline.runs.names import ITEM_WORDS_SUFFIX, evaluation_file
from advl_pipeline.runs.results import moved_to, read_config
from advl_pipeline.training.given import open_region_caches
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

    Of the first set, also which words the run would distil, where it selects words (`.words.json`).

    Raises:
        ConfigError: no such run, or a set of another kind of task. WeightsUnavailable: the run is not finished.
        DatasetError: a test set that is missing or has no labels. Interrupted: stopped by a signal.
    """
    require_given(config.run, config.on, config.data_root)
    with interruptible("The evaluation", kept="test sets that were scored are kept"):
        return _evaluate(config)


def _evaluate(config: EvaluateConfig) -> EvaluateResult:
    config = resolved(config)
    trained_on = read_config(config.run)
    config = replace(config, data_root=moved_to(config.data_root, trained_on))
    finished = load_run(config.run, config)
    finished.student.cut_texts()
    sets: dict[str, dict[str, Any]] = {}
    for name in config.on:
        dataset_name, split = set_name(name, trained_on["dataset"])
        dataset = open_as_trained(
            config, finished, trained_on, dataset=dataset_name, split=split, tasks=tuple(trained_on["task"])
        )
        is_seen = dataset_name == trained_on["dataset"] and split in str(trained_on["split"]).split("+")
        sets[name] = _evaluate_set(config, finished, dataset, name, is_seen=is_seen)
        if name == config.on[0] and (described := read_selection(config.run)) is not None:
            words = item_words(finished, described, dataset, batch_size=config.batch_size)
            write_text(evaluation_file(config.run, name, ITEM_WORDS_SUFFIX), json.dumps(words) + "\n")
    return EvaluateResult(run=config.run, sets=sets)


def _evaluate_set(
    config: EvaluateConfig, finished: FinishedRun, dataset: Dataset, name: str, *, is_seen: bool
) -> dict[str, Any]:
    arrays: dict[str, npt.NDArray[Any]] = {}
    items: dict[str, dict[str, ItemScores]] = {_TRUE_PICTURE: {}}
    mode = config.vqa_mode or vqa_mode_of(dataset.name)
    # A text-only student has no use of vision to measure.
    is_probed = not finished.hides_picture and name in (config.probe_on or config.on[:1])
    probes = tuple(dict.fromkeys(probe for probe in config.probe if probe != "none")) if is_probed else ()
    named = question_namer(dataset.name, dataset.split)
    sampled = sample_questions(dataset.example_ids, dataset.tasks, config.num_questions, name_of=named)
    scored = _score_set(config, finished, dataset, probes, mode, sampled)
    for task, one in scored.items():
        for kind, parts in one.items.items():
            items.setdefault(kind, {})[METRIC_OF_TASK[task]] = concatenate_items(parts)
        if one.generated:
            items[_TRUE_PICTURE][GENERATED] = concatenate_items(one.generated)
        # -inf fills the places of candidates that a part does not have.
        width = max(part.shape[1] for part in one.shown)
        wide = [np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=-np.inf) for part in one.shown]
        arrays[f"scores/{task}"] = np.concatenate(wide)
        arrays[f"example_ids/{task}"] = np.array(one.example_ids)
        if head_name(task) != "vqa":
            arrays[f"labels/{task}"] = np.array(one.labels, dtype=np.int64)
    percents: dict[str, dict[str, float]] = {}
    for kind, found in items.items():
        for (first, second), joint in JOINT_METRICS.items():
            if {first, second} <= set(found):
                found[joint] = joint_items(found[first], found[second])
        prefix = f"item_{kind}" if kind else "item"
        for metric, one_metric in found.items():
            arrays[f"{prefix}/{metric}"] = one_metric.score
            arrays[f"{prefix}_ids/{metric}"] = np.array(one_metric.question_ids)
            percents.setdefault(kind, {})[metric] = 100.0 * float(one_metric.score.mean())
    for metric, one_metric in items[_TRUE_PICTURE].items():
        arrays[f"pictures/{metric}"] = np.array(one_metric.pictures)
        arrays[f"strata/{metric}"] = np.array(one_metric.strata)
    metrics = percents.pop(_TRUE_PICTURE)
    tallies = {METRIC_OF_TASK[task]: one.tally for task, one in scored.items()}
    caveats = [*finished.student.caveats(), *([f"the run was trained on {dataset.split}"] if is_seen else [])]
    if num_cut := sum(one.num_cut for one in scored.values()):
        num_texts = sum(one.num_texts for one in scored.values())
        caveats.append(f"{num_cut} of {num_texts} texts of {dataset.split} are cut to the student's length")
    document: dict[str, Any] = {
        "dataset": dataset.name,
        "split": dataset.split,
        "content_digest": dataset.content_digest(),
        "caveats": caveats,
        "num_items": {metric: len(one.score) for metric, one in items[_TRUE_PICTURE].items()},
        "metrics": metrics,
        "intervals": {
            metric: {"low": interval.low, "high": interval.high}
            for metric, one in items[_TRUE_PICTURE].items()
            for interval in (accuracy_interval(one.score, one.pictures, one.strata),)
        },
        "trivial": {metric: tally.summary() for metric, tally in tallies.items()}
        | {
            joint: tallies[first].joint_summary(tallies[second])
            for (first, second), joint in JOINT_METRICS.items()
            if joint in metrics
        },
        "sample": None
        if config.num_questions is None
        else {"asked": config.num_questions, "of_examples": len(dataset)},
        "seconds": sum(one.seconds for one in scored.values()),
        "num_examples": sum(len(one.example_ids) for one in scored.values()),
        # Every view costs one pass over the same batches.
        "milliseconds_per_item": 1000.0
        * sum(one.seconds for one in scored.values())
        / (sum(len(one.example_ids) for one in scored.values()) * len(_views(probes))),
        "by_question_type": {
            metric: accuracy_by(one.strata, one.score) for metric, one in items[_TRUE_PICTURE].items()
        },
    }
    if isinstance(dataset, IndexedDataset) and dataset.is_grouped and config.num_questions is None:
        document["by_group"] = {metric: group_accuracy(one) for metric, one in items[_TRUE_PICTURE].items()}
    if "vqa" in metrics:
        document["vqa_mode"] = mode
        document["by_answer_type"] = accuracy_by_answer_type(items[_TRUE_PICTURE]["vqa"], _answered(dataset))
    for task in scored:
        if head_name(task) == "snli-ve":
            scores, labels = arrays[f"scores/{task}"], arrays[f"labels/{task}"]
            matrix = snli_ve_accuracy(scores.argmax(axis=1), labels, dataset.label_names(task))
            document["confusion"] = {"label_names": list(matrix.label_names), "counts": matrix.counts}
    if percents:
        document["use_of_vision"] = {
            metric: {
                kind: {"accuracy": spoilt_percents[metric], "drop": metrics[metric] - spoilt_percents[metric]}
                for kind, spoilt_percents in percents.items()
            }
            for metric in metrics
            if metric != GENERATED
        }
    make_folder(evaluation_file(config.run, name, "").parent)
    target = evaluation_file(config.run, name, ".npz")
    # Nobody else's, for a run may be scored on one set by two processes.
    partial = partial_beside(target)
    try:
        with writing(target):
            with partial.open("wb") as file:
                np.savez_compressed(file, allow_pickle=False, **arrays)
            partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    write_text(evaluation_file(config.run, name, ".json"), json.dumps(document, indent=2, sort_keys=True) + "\n")
    return document


@dataclass(kw_only=True)
class _Scored:
    """What is kept of a task, part by part: with VQA's thousands of answers only the true pictures' scores are."""

    tally: AnswerTally
    shown: list[npt.NDArray[np.float32]] = field(default_factory=list)
    items: dict[str, list[ItemScores]] = field(default_factory=dict)
    generated: list[ItemScores] = field(default_factory=list)
    example_ids: list[str] = field(default_factory=list)
    labels: list[int | None] = field(default_factory=list)
    seconds: float = 0.0
    num_texts: int = 0
    num_cut: int = 0


def _score_set(
    config: EvaluateConfig,
    finished: FinishedRun,
    dataset: Dataset,
    probes: Sequence[Probe],
    mode: VqaMode,
    sampled: Sequence[int],
) -> dict[Task, _Scored]:
    """Score a set part by part, each part with all of its views; an example is read once."""
    others = swapped_pictures(dataset.image_units(), seed=0) if "swapped" in probes else NO_OTHERS
    views = _views(probes)
    scored: dict[Task, _Scored] = {
        task: _Scored(tally=AnswerTally(label_names=finished.label_names[head_name(task)])) for task in dataset.tasks
    }
    for part in example_parts(dataset, sampled):
        for task, kept in scored.items():
            examples = [example for example in part if example.task == task]
            if not examples:
                continue
            score = _scorer(task, dataset, finished, mode)
            began = time.perf_counter()
            matrices = score_matrices(finished, examples, config.batch_size, views, others)
            kept.seconds += time.perf_counter() - began
            kept.num_texts += sum(len(example.candidates) for example in examples)
            kept.num_cut += finished.student.count_cut(examples)
            kept.shown.append(matrices[0])
            kept.tally.add(examples, matrices[0])
            kept.example_ids += [example.example_id for example in examples]
            kept.labels += [example.label for example in examples]
            if config.generate and task == "vqa":
                texts = list(finished.generated(examples, batch_size=config.batch_size))
                kept.generated.append(score_texts(examples, texts, dataset=_answered(dataset), mode=mode))
            for kind, scores in zip((_TRUE_PICTURE, *views[1:]), matrices, strict=True):
                kept.items.setdefault(kind, []).append(score(examples, scores))
    return scored


def _views(probes: Sequence[Probe]) -> tuple[View, ...]:
    return ("shown", *(view for view in _VIEWS if view in probes))


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


def score_matrix(finished: FinishedRun, examples: Sequence[Example], batch_size: int) -> npt.NDArray[np.float32]:
    """Return (num_examples, C or K) scores; all examples must be of one task.

    Raises:
        DatasetError: there are no examples.
    """
    (scores,) = score_matrices(finished, examples, batch_size, ("shown",))
    return scores


def score_matrices(
    finished: FinishedRun,
    examples: Sequence[Example],
    batch_size: int,
    views: Sequence[View],
    others: Mapping[str, ImageUnit] = NO_OTHERS,
) -> list[npt.NDArray[np.float32]]:
    """As `score_matrix`, once for each view of the pictures; `others` are those of the view "swapped".

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


def _scorer(
    task: Task, dataset: Dataset, finished: FinishedRun, mode: VqaMode
) -> Callable[[Sequence[Example], npt.NDArray[np.float32]], ItemScores]:
    """Return what scores a task: VQA officially, other answers by their soft labels, the rest by the label."""
    if head_name(task) != "vqa":
        return score_items
    if task != "vqa":
        return score_soft_labels
    return partial(score_answers, answers=finished.label_names["vqa"], dataset=_answered(dataset), mode=mode)


def _answered(dataset: Dataset) -> IndexedDataset:
    if not isinstance(dataset, IndexedDataset):
        raise DatasetError(f"{dataset.name} holds no annotators' answers.")
    return dataset


def open_as_trained(
    config: AnswerOptions,
    finished: FinishedRun,
    trained_on: Mapping[str, Any],
    *,
    dataset: str,
    split: str,
    **options: Any,
) -> IndexedDataset:
    """Open a split as the run read its own, with its stored pictures.

    Args:
        trained_on: configuration of the run.
        options: others of `open_dataset`.

    Raises:
        ConfigError: the run has no head for its tasks and classes. DatasetError: it is missing or malformed.
    """
    try:
        opened = open_dataset(
            dataset,
            split=split,
            data_root=config.data_root,
            text_style=trained_on.get("text_style"),
            label_order=trained_on.get("label_order", "uniter"),
            answers=finished.classes,
            **options,
        )
    except DatasetMissing as error:
        if dataset == trained_on["dataset"] and is_own_data(dataset) and not Path(dataset).exists():
            # A run stays valid when its data move.
            error.next_command = f"say where the run's data are now: PATH/{split} in place of {split}"
        raise
    _require_same_labels(opened, finished)
    read = [(dataset, split)]
    regions = open_region_caches(config.regions or regions_of_run(trained_on), read, data_root=config.data_root)
    stored = use_stored_pictures(finished.student, config.pictures, read)
    for line in (*stored, *use_region_caches(finished.student, regions)):
        tqdm.write(line, file=sys.stderr)
    return opened


def _require_same_labels(dataset: Dataset, finished: FinishedRun) -> None:
    """Refuse a set whose tasks the run has no head for, or whose classes are others.

    Raises:
        ConfigError: as said.
    """
    for task in dataset.tasks:
        head = head_name(task)
        fits = head in finished.label_names
        # An answer is an answer whatever the vocabulary of the set: a run keeps its own.
        if fits and head != "vqa":
            fits = finished.label_names[head] == tuple(dataset.label_names(task))
        if not fits:
            raise ConfigError(
                f"The run has no head for {task} with this set's classes.",
                where=f"{dataset.name}/{dataset.split}",
                why=f"heads of the run: {', '.join(finished.label_names)}",
            )
