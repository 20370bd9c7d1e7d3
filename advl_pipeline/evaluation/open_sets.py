"""Test sets opened with the wording, classes and pictures of a run, sampled, and read part by part."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from advl_pipeline.base.errors import ConfigError
from advl_pipeline.datasets.indexed import IndexedDataset
from advl_pipeline.datasets.records import Dataset, Example, Task, head_name
from advl_pipeline.datasets.registry import open_split
from advl_pipeline.datasets.spec import DatasetSpec
from advl_pipeline.evaluation.config import AnswerOptions
from advl_pipeline.evaluation.items import question_rank, questions_of
from advl_pipeline.evaluation.predict import FinishedRun
from advl_pipeline.stored_inputs.pictures import use_stored_pictures
from advl_pipeline.stored_inputs.region_caches import open_region_caches, regions_of_run
from advl_pipeline.stored_inputs.regions import use_region_caches
from advl_pipeline.students.registry import label_order_of

EXAMPLES_AT_ONCE = 8192
"""Examples in memory at once, with one row of scores per condition each: 100 MB per condition for 3,129 answers."""


def open_with_classes(
    dataset: DatasetSpec, split: str, trained_on: Mapping[str, Any], classes: tuple[str, ...] | None, **options: Any
) -> IndexedDataset:
    """Open a split with the wording and the classes of a run, as `open_split` does.

    Args:
        trained_on: configuration that the run was created with.
        classes: names of the classes or answers of the run; None for a run that only chooses.
        options: other options of `open_split`.
    """
    return open_split(
        dataset,
        split,
        text_style=trained_on.get("text_style"),
        label_order=trained_on.get("label_order") or label_order_of(trained_on.get("student", "")),
        answers=classes,
        **options,
    )


def open_as_trained(
    config: AnswerOptions,
    finished: FinishedRun,
    dataset: DatasetSpec,
    split: str,
    *,
    needs_head: bool = True,
    **options: Any,
) -> IndexedDataset:
    """Open a split as the run opened its training split, with its stored pictures.

    Args:
        needs_head: whether the run scores the answers of its own head.
        options: other options of `open_split`.

    Raises:
        ConfigError: the run has no head for its tasks and classes. DatasetError: the split is missing or malformed.
    """
    opened = open_with_classes(
        dataset, split, finished.trained_on, finished.classes, data_root=config.data_root, **options
    )
    for task in opened.tasks if needs_head else ():
        head = head_name(task)
        fits = head in finished.label_names
        # Open answers need no common vocabulary: a run keeps its own.
        if fits and head != "answers":
            fits = finished.label_names[head] == tuple(opened.label_names(task))
        if not fits:
            raise ConfigError(
                f"The run has no head for {task} with this set's classes.",
                where=f"{opened.name}/{opened.split}",
                why=f"heads of the run: {', '.join(finished.label_names)}",
            )
    read = [(dataset.name, split)]
    locations = config.regions or regions_of_run(finished.trained_on)
    regions = open_region_caches(locations, read, data_root=config.data_root)
    stored = use_stored_pictures(finished.student, config.pictures, read)
    for line in (*stored, *use_region_caches(finished.student, regions)):
        tqdm.write(line, file=sys.stderr)
    return opened


def sample_questions(
    example_ids: Sequence[str], tasks: Sequence[Task], count: int | None, *, name_of: Callable[[str], str] = str
) -> Sequence[int]:
    """Return the positions of all examples of `count` questions of a set, or of all questions if it has no more.

    The same questions are drawn for every run, so that runs can be compared item by item. Sets that ask the same
    questions in another way get the same sample, since `name_of` gives a question one name in all of them.
    """
    if count is None:
        return range(len(example_ids))
    questions = questions_of(example_ids, tasks)
    chosen = set(sorted(set(questions), key=lambda question: question_rank(name_of(question)))[:count])
    return [position for position, question in enumerate(questions) if question in chosen]


def example_parts(
    dataset: Dataset, positions: Sequence[int] | None = None, *, multiple_of: int = 1
) -> Iterator[list[Example]]:
    """Yield the examples of a split in order, some thousands at a time: a test set need not fit in memory.

    Args:
        positions: positions of the requested examples; None for all.
        multiple_of: number of examples that stay together; all parts but the last are multiples of it.
    """
    size = EXAMPLES_AT_ONCE // multiple_of * multiple_of
    positions = range(len(dataset)) if positions is None else positions
    for start in range(0, len(positions), size):
        yield [dataset[index] for index in positions[start : start + size]]
