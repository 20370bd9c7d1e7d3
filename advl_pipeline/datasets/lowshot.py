"""Low-shot subsets: nested by size, balanced over classes and question types, the same for every method.

All questions of a split are put into one order that depends only on the seed and their ids. A subset is a prefix of
this order. Hence the subset of 100 contains the subset of 50, and every prefix is balanced.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from advl_pipeline.base.atomic import make_folder, write_text
from advl_pipeline.base.configuration import to_plain
from advl_pipeline.base.errors import ConfigError
from advl_pipeline.datasets.records import QuestionTable, StratifiedDataset
from advl_pipeline.datasets.row_files import parse_json_file


def nested_subset(dataset: StratifiedDataset, shots: int, seed: int) -> tuple[str, ...]:
    """Return the ids of the examples of `shots` questions, in the order of the subset.

    Args:
        dataset: a labelled split; all examples of a chosen question belong to the subset.

    Raises:
        ConfigError: the split has fewer questions, or `shots` is not positive.
    """
    return nested_subsets(dataset, [shots], seed)[shots]


def nested_subsets(dataset: StratifiedDataset, sizes: Sequence[int], seed: int) -> dict[int, tuple[str, ...]]:
    """Return several subsets by their number of questions, as `nested_subset` returns and refuses one."""
    if not sizes:
        return {}
    table = dataset.question_table()
    for shots in sizes:
        if not 0 < shots <= len(table.question_ids):
            raise ConfigError(
                f"A subset must have between 1 and {len(table.question_ids)} questions of this split, not {shots}.",
                where=f"{dataset.name} {dataset.split}",
            )
    order = question_order(table, seed)
    return {
        shots: tuple(example_id for question in order[:shots] for example_id in table.example_ids[question])
        for shots in sizes
    }


def question_order(table: QuestionTable, seed: int) -> list[int]:
    """Return all questions in the order that subsets are prefixes of.

    Inside a cell, strata are interleaved in proportion to their size. Cells take turns (`by_class`). With too many
    classes for equal frequencies, they are interleaved in proportion to their size too.
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
        # Cells take turns; empty cells are skipped.
        turns = zip_longest(*queues.values())
        return [question for turn in turns for question in turn if question is not None]
    groups = {str(cell): queue for cell, queue in queues.items()}
    return list(_in_proportion(groups, {name: _fraction(seed, "cell", name) for name in groups}))


def _in_proportion(groups: dict[str, list[int]], offsets: dict[str, float]) -> Iterator[int]:
    """Merge groups so that every prefix contains each in proportion to its size, up to one member."""
    places = [
        ((rank + offsets[name]) / len(group), name, member)
        for name, group in groups.items()
        for rank, member in enumerate(group)
    ]
    for _, _, member in sorted(places, key=lambda place: place[:2]):
        yield member


def draw_key(seed: int, *parts: str) -> bytes:
    """Return a sort key for random draws, which depends only on seed and parts, not on a library's generator."""
    text = "\0".join((str(seed), *parts))
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def _fraction(seed: int, *parts: str) -> float:
    return int.from_bytes(draw_key(seed, *parts), "big") / 2**64


@dataclass(frozen=True, kw_only=True, slots=True)
class Subset:
    """A low-shot subset, as its file has it: the examples of `shots` questions that a seed draws from a split.

    A file that was written by hand may leave out how its examples were drawn.
    """

    dataset: str
    split: str
    shots: int | None = None
    seed: int | None = None
    example_ids: tuple[str, ...]


def write_id_list(path: Path, subset: Subset) -> None:
    """Write a subset to a file that others can reuse; raises what `atomic.write_text` does."""
    make_folder(path.parent)
    write_text(path, json.dumps(to_plain(subset), indent=1) + "\n")


def read_id_list(path: Path) -> Subset:
    """Read a subset.

    Raises:
        DatasetError: the file is missing or malformed.
    """

    def listed(value: Any) -> Subset:
        return Subset(
            dataset=str(value["dataset"]),
            split=str(value["split"]),
            shots=value.get("shots"),
            seed=value.get("seed"),
            example_ids=tuple(map(str, value["example_ids"])),
        )

    return parse_json_file(path, "The list of ids", listed)
