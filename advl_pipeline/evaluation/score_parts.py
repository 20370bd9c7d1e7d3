"""Score a test set part by part: each example is read once and scored in every condition of its picture."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from advl_pipeline.base.errors import DatasetError, advise
from advl_pipeline.datasets.indexed import IndexedDataset
from advl_pipeline.datasets.measures import Measure
from advl_pipeline.datasets.records import MULTIPLE_CHOICE_TASKS, TASKS, Example, ImageUnit, Task, head_name
from advl_pipeline.evaluation.answer_reading import BEYOND, read_option
from advl_pipeline.evaluation.config import EvaluateConfig
from advl_pipeline.evaluation.items import (
    AnswerTally,
    first_maximum,
    question_id,
    score_labels,
    score_soft_labels,
    score_texts,
    score_ties,
)
from advl_pipeline.evaluation.lettered import LETTERED_TASKS, answer_worth, as_asked, question_words
from advl_pipeline.evaluation.measures import Items
from advl_pipeline.evaluation.official_metrics import VqaMode
from advl_pipeline.evaluation.open_sets import example_parts
from advl_pipeline.evaluation.predict import NO_OTHERS, Condition, FinishedRun, swapped_pictures
from advl_pipeline.runs.evaluations import LETTERS, TRUE_PICTURE


@dataclass(kw_only=True)
class ScoredTask:
    """Results of a task, collected part by part. Only scores with the true picture are kept: VQA has many answers.

    `worth` maps a condition of the pictures to the score of each example.
    """

    tally: AnswerTally
    shown: list[npt.NDArray[np.float32]] = field(default_factory=list)
    worth: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    example_ids: list[str] = field(default_factory=list)
    question_ids: list[str] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    types: list[str] = field(default_factory=list)
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

    def add(self, examples: Sequence[Example]) -> None:
        """Add the examples of a part, without their scores."""
        self.example_ids += [example.example_id for example in examples]
        self.question_ids += [question_id(example) for example in examples]
        self.pictures += [example.cluster for example in examples]
        self.types += [example.stratum for example in examples]

    def items(self, condition: str) -> Items:
        """Return the items as scored in a condition of the pictures."""
        return Items(
            score_n=np.array(self.worth[condition], dtype=np.float32),
            question_ids=self.question_ids,
            pictures=self.pictures,
            types=self.types,
            right=self.right,
            given=self.given,
            facets={name: [facets[name] for facets in self.facets] for name in (self.facets or [{}])[0]},
        )


def score_parts(
    config: EvaluateConfig,
    finished: FinishedRun,
    dataset: IndexedDataset,
    sampled: Sequence[int],
    *,
    conditions: Sequence[Condition],
    mode: VqaMode,
    measures: Sequence[Measure],
) -> dict[Task, ScoredTask]:
    """Score the sampled examples of each task part by part, reading each example once for all conditions."""
    is_lettered = config.protocol == LETTERS
    others = swapped_pictures(dataset.image_units()) if "swapped" in conditions else NO_OTHERS
    scored = {
        task: ScoredTask(tally=AnswerTally(label_names=finished.label_names.get(head_name(task), ())))
        for task in dataset.tasks
        if not is_lettered or task in LETTERED_TASKS
    }
    parts = ((part, task, kept) for part in example_parts(dataset, sampled) for task, kept in scored.items())
    for part, task, kept in parts:
        examples = [example for example in part if example.task == task]
        if not examples:
            continue
        kept.add(examples)
        if measures:
            kept.facets += [_facets(example, dataset, measures) for example in examples]
        began = time.perf_counter()
        if is_lettered:
            values = _score_written(finished, examples, dataset, config.batch_size, kept, mode)
            kept.seconds += time.perf_counter() - began
            kept.worth[TRUE_PICTURE] += values
            continue
        matrices = score_matrices(finished, examples, config.batch_size, conditions, others)
        kept.seconds += time.perf_counter() - began
        kept.num_texts += sum(len(example.candidates) for example in examples)
        kept.num_cut += finished.count_cut(examples)
        kept.shown.append(matrices[0])
        kept.labels += [example.label for example in examples]
        for condition, matrix in zip((TRUE_PICTURE, *conditions[1:]), matrices, strict=True):
            chosen = first_maximum(matrix, [example.example_id for example in examples]).tolist()
            texts = texts_of(examples, chosen, kept.tally.label_names)
            if TASKS[task].by_annotators:
                values = score_texts(examples, texts, dataset=dataset, mode=mode)
            elif TASKS[task].kind == "answers":
                values = score_soft_labels(examples, chosen)
            elif task in MULTIPLE_CHOICE_TASKS:
                values = score_ties(examples, chosen, matrix, dataset.card.ties)
            else:
                values = score_labels(examples, chosen)
            kept.worth[condition] += values
            if condition == TRUE_PICTURE:
                kept.tally.add(examples, chosen)
            if condition == TRUE_PICTURE and measures:
                _keep_answers(kept, dataset, examples, texts)
    return scored


def _score_written(
    finished: FinishedRun,
    examples: Sequence[Example],
    dataset: IndexedDataset,
    batch_size: int,
    kept: ScoredTask,
    mode: VqaMode,
) -> list[float]:
    """Ask examples in the format of the harnesses, and return the scores of the generated answers."""
    card = dataset.card
    asked = [as_asked(example, card.asks) for example in examples]
    written = list(finished.generated(asked, batch_size=batch_size))
    kept.written += written
    if TASKS[examples[0].task].by_annotators:
        return score_texts(examples, written, dataset=dataset, mode=mode)
    if examples[0].task not in MULTIPLE_CHOICE_TASKS:
        _keep_answers(kept, dataset, examples, written)
        return [
            answer_worth(text, dataset.answers_of(example.example_id), card.reads)
            for example, text in zip(examples, written, strict=True)
        ]
    read = [
        read_option(text, [candidate.answer for candidate in example.candidates], card.reads)
        for example, text in zip(examples, written, strict=True)
    ]
    kept.num_unread += read.count(None)
    kept.num_beyond += read.count(BEYOND)
    chosen = [BEYOND if place is None else place for place in read]
    kept.tally.add(examples, chosen)
    _keep_answers(kept, dataset, examples, texts_of(examples, chosen))
    return score_labels(examples, chosen)


def texts_of(examples: Sequence[Example], chosen: Sequence[int], classes: Sequence[str] = ()) -> list[str]:
    """Return the chosen answers as texts, from the classes or else from the choices of each example; "" for none."""

    def text(example: Example, place: int) -> str:
        if place < 0:
            return ""
        return classes[place] if classes else example.candidates[place].answer

    return [text(example, place) for example, place in zip(examples, chosen, strict=True)]


def _keep_answers(
    kept: ScoredTask, dataset: IndexedDataset, examples: Sequence[Example], given: Sequence[str]
) -> None:
    """Keep the right and the given answers of choices and of open questions, the input of measures."""
    if examples[0].task in MULTIPLE_CHOICE_TASKS:
        kept.right += texts_of(examples, [example.label or 0 for example in examples])
    elif TASKS[examples[0].task].kind == "answers":
        worth = (dataset.answers_of(example.example_id) for example in examples)
        kept.right += [max(of_each, key=of_each.__getitem__, default="") for of_each in worth]
    else:
        return
    kept.given += given


def _facets(example: Example, dataset: IndexedDataset, measures: Sequence[Measure]) -> dict[str, str]:
    """Return the facets of an example that the measures need.

    Raises:
        DatasetError: the example lacks one of them.
    """
    facets = {
        **dict(zip(dataset.card.facets, dataset.facets_of(example.example_id), strict=True)),
        "group": example.group,
        "picture": example.image.unit_id,
        "question": question_words(example),
        "type": example.stratum,
    }
    for measure in measures:
        # A distribution ignores examples without a group.
        needed = measure.facets if measure.of != "distribution" else ()
        if lacking := [name for name in needed if not facets[name]]:
            raise DatasetError(
                f"The measure {measure.name!r} needs the facet {lacking[0]!r}, and an item has none.",
                where=f"{dataset.name}/{dataset.split}, {example.example_id}",
                next_command=advise(["advl", "datasets", "card", dataset.name], note="says where facets are from"),
            )
    return facets


def score_matrices(
    finished: FinishedRun,
    examples: Sequence[Example],
    batch_size: int,
    conditions: Sequence[Condition] = ("shown",),
    others: Mapping[str, ImageUnit] = NO_OTHERS,
) -> list[npt.NDArray[np.float32]]:
    """Return (num_examples, C or K) scores for each condition of the pictures; all examples must be of one task.

    Args:
        others: pictures for the condition "swapped".

    Raises:
        DatasetError: there are no examples.
    """
    if not examples:
        raise DatasetError("The test set has no items.")
    # Items of similar length share a batch to reduce padding; the order is restored afterwards.
    order = sorted(range(len(examples)), key=lambda index: max(len(c.text) for c in examples[index].candidates))
    sorted_examples = (examples[index] for index in order)
    rows = list(finished.scores(sorted_examples, batch_size=batch_size, conditions=conditions, others=others))
    width = max(len(row[0]) for row in rows)
    stacked = [np.full((len(rows), width), -np.inf, dtype=np.float32) for _ in conditions]
    for index, by_condition in zip(order, rows, strict=True):
        for matrix, row in zip(stacked, by_condition, strict=True):
            matrix[index, : len(row)] = row
    return stacked
