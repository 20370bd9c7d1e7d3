"""What a run trains on: the labelled subset of a split, and the inputs of the adapt step."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from advl_pipeline.cache.reader import TeacherCache
from advl_pipeline.datasets.lowshot import nested_subset
from advl_pipeline.datasets.records import Dataset, Example, head_name
from advl_pipeline.datasets.registry import open_dataset, open_splits
from advl_pipeline.datasets.roots import dataset_label
from advl_pipeline.datasets.views import JoinedDataset, listed_ids, refuse_two_subsets
from advl_pipeline.errors import (
    ConfigError,
    DatasetError,
    advise,
)
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.methods import takes_two_steps

OWN_INPUTS = ("inputs", "subset")


def other_splits(adapt_on: Sequence[str]) -> list[tuple[str, str]]:
    """Return (dataset, split) of each input of the adapt step that names one.

    Raises:
        ConfigError: nothing is named, one twice, both `inputs` and `subset`, or another word.
    """
    if not adapt_on or len(set(adapt_on)) != len(adapt_on) or set(OWN_INPUTS) <= set(adapt_on):
        raise ConfigError(
            "The inputs of the adapt step must be named, each once, and one of inputs and subset at most.",
            where="--adapt-on",
            why=f"got {', '.join(adapt_on) or 'nothing'}",
            next_command="--adapt-on inputs --adapt-on DATASET/SPLIT",
        )
    found = []
    for text in adapt_on:
        if text in OWN_INPUTS:
            continue
        dataset, slash, split = text.rpartition("/")
        if not dataset or not slash or not split:
            raise ConfigError(
                f"The adapt step cannot take its inputs from {text!r}.",
                where="--adapt-on",
                why="known: inputs, subset, or DATASET/SPLIT such as vcr/val",
                next_command=f"--adapt-on DATASET/{text}, with the dataset of the split" if not slash else "",
            )
        found.append((dataset, split))
    return found


def open_other_inputs(config: FinetuneConfig, dataset: Dataset) -> list[Dataset]:
    """Open the other splits that the adapt step sees, for the tasks of the run.

    Raises:
        ConfigError: a split whose tasks are of another kind. DatasetError: it is not there.
    """
    found: list[Dataset] = []
    for name, split in other_splits(config.adapt.adapt_on):
        tasks = config.task if name == config.dataset else ()
        other = open_dataset(name, split=split, tasks=tasks, **config.reading)
        kinds = {head_name(task) for task in dataset.tasks}
        if {head_name(task) for task in other.tasks} != kinds:
            raise ConfigError(
                f"{name}/{split} holds tasks of another kind than the run's.",
                where="--adapt-on",
                why=f"it has {', '.join(other.tasks)}; the run has {', '.join(dataset.tasks)}",
            )
        found.append(other)
    return found


def cache_of_split(caches: Sequence[TeacherCache], splits: Sequence[Dataset]) -> list[list[TeacherCache]]:
    """Return the caches of each split, those of every split in the order of the first's teachers.

    A cache of a dataset and split that nobody asks for counts as one of the first split, whose check refuses it.

    Raises:
        ConfigError: two caches of one teacher for a split, or a teacher that has none for another split.
    """
    names = [(split.identity_name, split.split) for split in splits]
    found: list[dict[str, TeacherCache]] = [{} for _ in splits]
    for cache in caches:
        made_from = cache.identity["dataset"]
        key = (made_from.get("name"), made_from.get("split"))
        place = names.index(key) if key in names else 0
        if cache.teacher_name in found[place]:
            raise ConfigError(
                "Two caches hold the same teacher.",
                where=f"{splits[place].name}/{splits[place].split}",
                why=cache.teacher_name,
            )
        found[place][cache.teacher_name] = cache
    for other, of_split in zip(splits[1:], found[1:], strict=True):
        if missing := [teacher for teacher in found[0] if teacher not in of_split]:
            raise ConfigError(
                f"The adapt step takes inputs from {other.name}/{other.split}, and a teacher has no cache of them.",
                where="--adapt-on",
                why=f"missing: {', '.join(missing)}",
                next_command=advise(
                    ["advl", "extract", "--teacher", missing[0], "--dataset", other.name, "--split", other.split],
                    note="then give it by one more --cache",
                ),
            )
    return [[of_split[teacher] for teacher in found[0]] for of_split in found]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What the phases train on: positions in the split of the labelled subset, and in `adapt_dataset`, which begins
    with the split, of the adapt step's inputs.

    `seen` are positions in the split whose inputs may be looked at at all: all of them unless there is a pool.
    `num_skipped` counts what the dataset left out as malformed.
    """

    dataset: Dataset
    labelled: list[int]
    adapt_dataset: Dataset
    adapt: list[int]
    seen: Sequence[int]
    num_skipped: int

    @property
    def splits(self) -> tuple[Dataset, ...]:
        """The split to train on, and then the other ones that the adapt step sees."""
        return self.adapt_dataset.parts if isinstance(self.adapt_dataset, JoinedDataset) else (self.dataset,)

    @property
    def other_ids(self) -> frozenset[str]:
        """Examples of the adapt step that are of other splits than the one to train on."""
        return self.adapt_dataset.other_ids if isinstance(self.adapt_dataset, JoinedDataset) else frozenset()


def open_inputs(config: FinetuneConfig, caches: Sequence[TeacherCache]) -> Inputs:
    """Open what a run trains on: its split, the labelled subset of it, and what the adapt step sees.

    Args:
        caches: that it reads. Where one holds a part of the split, no other inputs are seen than the pool's, and
            without a pool than the labelled ones.

    Raises:
        DatasetError, ConfigError: as `open_splits`, `nested_subset`, `listed_ids` and `open_other_inputs` say, or no
            item to learn from has a label.
    """
    refuse_two_subsets(config.shots, config.ids)
    dataset = open_splits(config.dataset, split=config.split, tasks=config.task, **config.reading)
    everything = list(range(len(dataset)))
    labelled = seen = everything
    if config.ids is not None:
        labelled = _positions(dataset, listed_ids(config.ids, dataset))
    elif config.shots is not None:
        labelled = _positions(dataset, nested_subset(dataset, config.shots, config.seed))
    if not any(_has_label(dataset[position]) for position in labelled):
        raise DatasetError(
            "No item has a label, so there is nothing to learn.",
            where=f"{dataset_label(config.dataset)}/{config.split}",
            why=f"{len(labelled)} items were looked at",
            next_command="--split with one that has labels",
        )
    if config.pool is not None:
        seen = sorted({*labelled, *_positions(dataset, nested_subset(dataset, config.pool, config.seed))})
    elif any(_is_part_of(cache, dataset) for cache in caches):
        seen = labelled
    others = open_other_inputs(config, dataset) if takes_two_steps(config) else []
    joined = JoinedDataset([dataset, *others]) if others else dataset
    own = seen if "inputs" in config.adapt.adapt_on else labelled if "subset" in config.adapt.adapt_on else []
    return Inputs(
        dataset=dataset,
        labelled=labelled,
        adapt_dataset=joined,
        adapt=[*own, *range(len(dataset), len(joined))],
        seen=seen,
        num_skipped=len(dataset.skipped),
    )


def _positions(dataset: Dataset, ids: Collection[str]) -> list[int]:
    chosen = set(ids)
    return [index for index, name in enumerate(dataset.example_ids) if name in chosen]


def _has_label(example: Example) -> bool:
    return example.label is not None or bool(example.soft_label)


def _is_part_of(cache: TeacherCache, dataset: Dataset) -> bool:
    made_from = cache.identity["dataset"]
    return "selection" in made_from and (made_from["name"], made_from["split"]) == (
        dataset.identity_name,
        dataset.split,
    )
