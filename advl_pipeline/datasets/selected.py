"""A part of a split by its examples: the low-shot subsets of some seeds, or the ids of a file.

Everything else is as in the whole split, its content digest too: a cache of the part says that it is one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from advl_pipeline.datasets.interface import Dataset, StratifiedDataset
from advl_pipeline.datasets.lowshot import read_id_list
from advl_pipeline.datasets.records import Example, ImageUnit, Task, TextUnit
from advl_pipeline.errors import ConfigError, DatasetError


class SelectedExamples:
    """Some examples of a split, in its order; implements `interface.Dataset`."""

    def __init__(self, whole: StratifiedDataset, ids: Collection[str], *, skipped: Sequence[Any] = ()) -> None:
        self.name, self.split, self.text_style = whole.name, whole.split, whole.text_style
        self.tasks: tuple[Task, ...] = whole.tasks
        self.skipped = tuple(skipped)
        self.whole = whole
        wanted = set(ids)
        self._positions = [position for position, name in enumerate(whole.example_ids) if name in wanted]

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> Example:
        return self.whole[self._positions[index]]

    @property
    def example_ids(self) -> Sequence[str]:
        ids = self.whole.example_ids
        return [ids[position] for position in self._positions]

    @property
    def identity_name(self) -> str:
        """Return the whole split's."""
        return self.whole.identity_name

    @property
    def selection(self) -> dict[str, Any]:
        """What tells this part from others, for the identity of a cache: how many examples, and which."""
        digest = hashlib.sha256("\n".join(sorted(self.example_ids)).encode()).hexdigest()
        return {"num_examples": len(self), "examples": digest}

    def label_names(self, task: Task) -> tuple[str, ...]:
        """Return the split's class names."""
        return self.whole.label_names(task)

    def content_digest(self) -> str:
        """Return the digest of the whole split."""
        return self.whole.content_digest()

    def image_units(self) -> Sequence[ImageUnit]:
        """Return the pictures of the part, each once."""
        found = {example.image.unit_id: example.image for example in self._examples()}
        return list(found.values())

    def text_units(self) -> Sequence[TextUnit]:
        """Return the texts of the part, each once."""
        units = (candidate.text_unit for example in self._examples() for candidate in example.candidates)
        return list({unit.unit_id: unit for unit in units}.values())

    def _examples(self) -> Iterable[Example]:
        return (self.whole[position] for position in self._positions)


def refuse_two_subsets(shots: int | None, ids: object) -> None:
    """Refuse a subset that is both drawn and listed.

    Raises:
        ConfigError: as said.
    """
    if shots is not None and ids:
        raise ConfigError(
            "A subset is drawn or listed, not both.",
            where="--shots and --ids",
            next_command="leave out --shots or --ids",
        )


def listed_ids(file: Path, dataset: Dataset) -> tuple[str, ...]:
    """Read a list that `advl datasets subset` wrote, as ids of an opened split.

    A split that is opened for one task names its examples without the task; those of other tasks are left out.

    Raises:
        DatasetError: the list is missing, malformed, of another split, or names what the split does not hold.
    """
    listed = read_id_list(file)
    if (listed.dataset, listed.split) != (dataset.identity_name, dataset.split):
        raise DatasetError(
            "The list of ids is of another split.",
            where=str(file),
            why=f"it is of {listed.dataset} {listed.split}, asked for is {dataset.identity_name} {dataset.split}",
        )
    known = set(dataset.example_ids)
    found: list[str] = []
    for listed_id in listed.example_ids:
        question, colon, task = listed_id.rpartition(":")
        named = [listed_id, *([question] if colon and dataset.tasks == (task,) else [])]
        here = [name for name in named if name in known]
        if not here and not colon:
            here = [name for each in dataset.tasks if (name := f"{listed_id}:{each}") in known]
        if not here and not (colon and task not in dataset.tasks):
            raise DatasetError(
                "The list of ids names an example that the split does not hold.", where=str(file), why=repr(listed_id)
            )
        found += here
    if not found:
        raise DatasetError(
            "The list of ids names no example of the tasks that are asked for.",
            where=str(file),
            why=", ".join(dataset.tasks),
        )
    return tuple(dict.fromkeys(found))
