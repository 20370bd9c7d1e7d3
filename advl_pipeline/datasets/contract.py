"""What every dataset promises to the rest of the pipeline, checked on one: for readers, ours and those of others.

`advl datasets check NAME --deep` asks; a test of a reader calls `broken_promises` on what `open_dataset` gives.
"""

from __future__ import annotations

from collections.abc import Iterator

from advl_pipeline.datasets.indexed import IndexedDataset
from advl_pipeline.datasets.lowshot import nested_subset
from advl_pipeline.datasets.records import MULTIPLE_CHOICE_TASKS, Candidate, Example, normalise_text

MAX_EXAMPLES = 500
"""Examples that are looked at, spread over the split."""


def broken_promises(dataset: IndexedDataset) -> list[str]:
    """Return what a dataset does not keep of the following; nothing where it keeps all.

    - Ids are unique, and `position` finds each.
    - An example is the same whenever it is read.
    - Its picture and its texts are among the units, which are unique.
    - A label is a position among its candidates, or a class; a soft label holds classes, each once, with scores in
      (0, 1].
    - A tag lies in its text and names a box of its picture; context and question are beginnings of the text.
    - The table of questions holds every example once, and subsets of one seed are nested.

    Raises:
        DatasetError: a row or a picture is malformed.
    """
    return list(dict.fromkeys(_broken(dataset)))


def _broken(dataset: IndexedDataset) -> Iterator[str]:
    ids = list(dataset.example_ids)
    if len(ids) != len(dataset) or len(set(ids)) != len(ids):
        yield f"{len(dataset)} examples have {len(set(ids))} different ids"
        return
    images = [unit.unit_id for unit in dataset.image_units()]
    texts = [unit.unit_id for unit in dataset.text_units()]
    if len(set(images)) != len(images) or len(set(texts)) != len(texts):
        yield "a unit is listed twice"
    known_images, known_texts = set(images), set(texts)
    step = max(1, len(ids) // MAX_EXAMPLES)
    for index in range(0, len(ids), step):
        example = dataset[index]
        name = ids[index]
        if example.example_id != name or dataset.position(name) != index:
            yield f"example {index} is {example.example_id!r}, its id is listed as {name!r}"
        if _told(example) != _told(dataset[index]):
            yield f"example {name!r} is not the same when it is read again"
        if example.task not in dataset.tasks:
            yield f"example {name!r} is of task {example.task}, the split has {', '.join(dataset.tasks)}"
        if example.image.unit_id not in known_images:
            yield f"the picture of example {name!r} is no unit of the split"
        if not all(candidate.text_unit.unit_id in known_texts for candidate in example.candidates):
            yield f"a text of example {name!r} is no unit of the split"
        yield from _broken_labels(dataset, example)
        for candidate in example.candidates:
            yield from _broken_text(example, candidate)
    yield from _broken_subsets(dataset, ids)


def _told(example: Example) -> tuple[object, ...]:
    boxes = example.image.boxes_R4.tolist()
    image = (example.image.unit_id, example.image.path, example.image.width, example.image.height, boxes)
    return (example.example_id, image, example.candidates, example.label, example.soft_label, example.cluster)


def _broken_labels(dataset: IndexedDataset, example: Example) -> Iterator[str]:
    is_choice = example.task in MULTIPLE_CHOICE_TASKS
    if is_choice == (len(example.candidates) < 2):
        yield f"example {example.example_id!r} of task {example.task} has {len(example.candidates)} candidates"
    count = len(example.candidates) if is_choice else len(dataset.label_names(example.task))
    if example.label is not None and not 0 <= example.label < count:
        yield f"the label of example {example.example_id!r} is {example.label}, there are {count}"
    classes = [index for index, _ in example.soft_label]
    if len(set(classes)) != len(classes) or not all(0 <= index < count for index in classes):
        yield f"the soft label of example {example.example_id!r} names a class twice or one that there is not"
    if not all(0 < score <= 1 for _, score in example.soft_label):
        yield f"the soft label of example {example.example_id!r} has a score outside (0, 1]"


def _broken_text(example: Example, candidate: Candidate) -> Iterator[str]:
    text, name = candidate.text, example.example_id
    if not text or normalise_text(text) != text:
        yield f"a text of example {name!r} is empty or not in normal form"
    if not 0 <= candidate.question_length <= candidate.context_length <= len(text):
        yield f"context or question of example {name!r} is longer than its text"
    for tag in candidate.tags:
        if not (0 <= tag.start < tag.end <= len(text) and 0 <= tag.box < len(example.image.boxes_R4)):
            yield f"a tag of example {name!r} lies outside its text, or names a box that its picture does not have"


def _broken_subsets(dataset: IndexedDataset, ids: list[str]) -> Iterator[str]:
    table = dataset.question_table()
    if sorted(name for names in table.example_ids for name in names) != sorted(ids):
        yield "the table of questions does not hold every example once"
    total = len(table.question_ids)
    small, large = (set(nested_subset(dataset, size, seed=0)) for size in (max(1, total // 4), max(1, total // 2)))
    if not small <= large:
        yield "the smaller subset of a seed is no part of the larger one"
