"""Where the adapt step's inputs come from: the split that is trained on, its labelled subset, or other splits."""

from __future__ import annotations

from collections.abc import Sequence

from advl_pipeline.cache.reader import TeacherCache
from advl_pipeline.datasets.interface import Dataset
from advl_pipeline.datasets.records import head_name
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.errors import (
    ConfigError,
    advise,
)
from advl_pipeline.training.config import FinetuneConfig

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
