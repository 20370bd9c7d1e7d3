"""Low-shot subsets: nested in their size, balanced over classes and question types, the same for every method.

All questions of a split are put into one order that depends on the seed and on their ids alone; a subset is its
beginning. Hence a subset of 50 is inside the subset of 100, and any prefix is balanced.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

from advl_pipeline.base.atomic import make_folder, write_text
from advl_pipeline.base.errors import ConfigError
from advl_pipeline.datasets.records import QuestionTable, StratifiedDataset
from advl_pipeline.datasets.row_files import parse_json_file


def nested_subset(dataset: StratifiedDataset, shots: int, seed: int) -> tuple[str, ...]:
    """Return the ids of the examples of `shots` questions, in the order of the subset.

    Args:
        dataset: a labelled split; all examples of a chosen question belong to the subset.

    Raises:
        ConfigError: the split holds fewer questions, or `shots` is not positive.
    """
    table = require_shots(dataset, shots)
    chosen = question_order(table, seed)[:shots]
    return tuple(example_id for question in chosen for example_id in table.example_ids[question])


def require_shots(dataset: StratifiedDataset, shots: int) -> QuestionTable:
    """Return the questions of a split; refuse a subset of more than there are.

    Raises:
        ConfigError: the split holds fewer questions, or `shots` is not positive.
    """
    table = dataset.question_table()
    if not 0 < shots <= len(table.question_ids):
        what = f"A subset of {shots} questions cannot be drawn."
        why = f"the split holds {len(table.question_ids)} questions"
        raise ConfigError(what, where=f"{dataset.name} {dataset.split}", why=why)
    return table


def question_order(table: QuestionTable, seed: int) -> list[int]:
    """Return all questions in the order from which subsets are taken.

    Inside a cell, strata follow one another in proportion to their size. Cells take turns (`by_class`) or, where
    classes are too many to be equally frequent, follow one another in proportion to their size too.
    """
    members: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for question, cell in enumerate(table.cells.tolist()):
        members[cell][table.strata[question]].append(question)
    queues: dict[int, list[int]] = {}
    for cell in sorted(members):
        strata = {}
        for stratum in sorted(members[cell]):
            questions = members[cell][stratum]
            questions.sort(key=lambda question: draw_key(seed, "question", table.question_ids[question]))
            strata[stratum] = questions
        offsets = {stratum: _fraction(seed, "stratum", str(cell), stratum) for stratum in strata}
        queues[cell] = list(_in_proportion(strata, offsets))
    if table.by_class:
        # Cells take turns; one that is empty is passed over.
        turns = zip_longest(*queues.values())
        return [question for turn in turns for question in turn if question is not None]
    groups = {str(cell): queue for cell, queue in queues.items()}
    return list(_in_proportion(groups, {name: _fraction(seed, "cell", name) for name in groups}))


def _in_proportion(groups: dict[str, list[int]], offsets: dict[str, float]) -> Iterator[int]:
    """Merge groups so that every prefix holds each in proportion to its size, up to one member."""
    places = [
        ((rank + offsets[name]) / len(group), name, member)
        for name, group in groups.items()
        for rank, member in enumerate(group)
    ]
    for _, _, member in sorted(places, key=lambda place: place[:2]):
        yield member


def draw_key(seed: int, *parts: str) -> bytes:
    """Return what is drawn by: it depends on seed and parts alone, and on no library's random generator."""
    text = "\0".join((str(seed), *parts))
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def _fraction(seed: int, *parts: str) -> float:
    return int.from_bytes(draw_key(seed, *parts), "big") / 2**64


def write_id_list(path: Path, subset: Mapping[str, Any]) -> None:
    """Write a subset as others can reuse it; raises what `atomic.write_text` does."""
    make_folder(path.parent)
    write_text(path, json.dumps(subset, indent=1) + "\n")


def read_id_list(path: Path) -> tuple[str, str, tuple[str, ...]]:
    """Read of a subset the dataset, the split and the ids.

    Raises:
        DatasetError: missing or malformed.
    """

    def subset(value: Any) -> tuple[str, str, tuple[str, ...]]:
        return str(value["dataset"]), str(value["split"]), tuple(map(str, value["example_ids"]))

    return parse_json_file(path, "The list of ids", subset)
