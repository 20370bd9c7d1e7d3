"""The training data of a run: the labelled subset of a split and the inputs of the adapt stage."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from advl_pipeline.base.errors import ConfigError, DatasetError
from advl_pipeline.cache.reader import TeacherCache
from advl_pipeline.datasets.lowshot import nested_subsets
from advl_pipeline.datasets.records import Dataset, StratifiedDataset, head_name
from advl_pipeline.datasets.registry import open_split, open_splits, read_dataset
from advl_pipeline.datasets.roots import dataset_label
from advl_pipeline.datasets.spec import DatasetSpec
from advl_pipeline.datasets.subsets import Concatenated, listed_ids, refuse_two_subsets
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.resolved import Run, takes_two_stages

OWN_INPUTS = ("inputs", "subset")

MOST_PASSES: Final = 50
"""Maximum of passes of the adapt stage over the inputs of your own data: few inputs are soon learnt."""


def other_splits(adapt_on: Sequence[str]) -> list[tuple[str, str]]:
    """Return (dataset, split) of each input of the adapt stage that names one.

    Raises:
        ConfigError: the list is empty, has duplicates, both `inputs` and `subset`, or an unknown word.
    """
    named = [text.rpartition("/") for text in adapt_on if text not in OWN_INPUTS]
    is_once = len(set(adapt_on)) == len(adapt_on) and not set(OWN_INPUTS) <= set(adapt_on)
    if not adapt_on or not is_once or not all(dataset and split for dataset, _, split in named):
        raise ConfigError(
            "--adapt-on takes inputs or subset, and DATASET/SPLIT such as mine.jsonl/val, each named once.",
            where="--adapt-on",
            why=f"got {', '.join(adapt_on) or 'nothing'}",
        )
    return [(dataset, split) for dataset, _, split in named]


def splits_read(config: FinetuneConfig) -> list[tuple[str, str]]:
    """Return dataset and split of all data of a run: the training split, and other inputs of the adapt stage."""
    return [(config.dataset, config.split), *other_splits(config.adapt.adapt_on)]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Training data of both stages: positions of the labelled subset in the split, and positions of the adapt stage's
    inputs in `adapt_dataset`, which starts with the split.

    `splits` are the training split and the other splits of the adapt stage. There, ids of the latter start with
    "DATASET/SPLIT:", and their labels are not used. `seen` are the positions in the split whose inputs may be used:
    all of them unless there is a pool.
    `num_skipped` counts malformed examples that the dataset left out.
    """

    dataset: Dataset
    splits: tuple[Dataset, ...]
    labelled: list[int]
    adapt_dataset: Dataset
    adapt: list[int]
    seen: Sequence[int]
    num_skipped: int

    @property
    def other_ids(self) -> frozenset[str]:
        """Ids of the adapt stage's examples from splits other than the training split."""
        return frozenset(self.adapt_dataset.example_ids[len(self.dataset) :])


def open_run_inputs(config: FinetuneConfig, spec: DatasetSpec, caches: Sequence[TeacherCache]) -> Inputs:
    """Open the training data of a run: its split, the labelled subset, and the inputs of the adapt stage.

    Args:
        spec: the dataset of the run.
        caches: of the run. If one covers a part of the split, only inputs of the pool are used, or only the labelled
            ones without a pool.

    Raises:
        DatasetError, ConfigError: as for `open_splits`, `nested_subsets` and `listed_ids`; or no training item has a
            label, or a split of the adapt stage has tasks of another kind.
    """
    refuse_two_subsets(config.shots, config.ids)
    dataset = open_splits(spec, config.split, tasks=config.task, **config.reading)
    everything = list(range(len(dataset)))
    labelled = seen = everything
    sizes = [size for size in (config.shots, config.pool) if size is not None]
    subsets = nested_subsets(dataset, sizes, config.seed)
    if config.ids is not None:
        labelled = _positions(dataset, listed_ids(config.ids, dataset))
    elif config.shots is not None:
        labelled = _positions(dataset, subsets[config.shots])
    if not any(dataset[place].label is not None or dataset[place].soft_label for place in labelled):
        raise DatasetError(
            "No item has a label, so there is nothing to learn.",
            where=f"{dataset_label(config.dataset)}/{config.split}, {len(labelled)} items",
            next_command="--split with one that has labels",
        )
    if config.pool is not None:
        seen = sorted({*labelled, *_positions(dataset, subsets[config.pool])})
    elif any(
        "selection" in made_from and (made_from["name"], made_from["split"]) == (dataset.identity_name, dataset.split)
        for made_from in (cache.identity["dataset"] for cache in caches)
    ):
        seen = labelled
    others: list[StratifiedDataset] = []
    specs = {config.dataset: spec}
    for name, split in other_splits(config.adapt.adapt_on) if takes_two_stages(config) else ():
        tasks = config.task if name == config.dataset else ()
        if name not in specs:
            specs[name] = read_dataset(name, config.data_root)
        other = open_split(specs[name], split, tasks=tasks, **config.reading)
        if {head_name(task) for task in other.tasks} != {head_name(task) for task in dataset.tasks}:
            raise ConfigError(
                f"{name}/{split} holds tasks of another kind than {', '.join(dataset.tasks)}.",
                where="--adapt-on",
                why=f"it has {', '.join(other.tasks)}",
            )
        others.append(other)
    prefixes = ["", *(f"{other.name}/{other.split}:" for other in others)]
    joined = Concatenated([dataset, *others], prefixes=prefixes) if others else dataset
    adapted = seen if "inputs" in config.adapt.adapt_on else labelled if "subset" in config.adapt.adapt_on else []
    return Inputs(
        dataset=dataset,
        splits=(dataset, *others),
        labelled=labelled,
        adapt_dataset=joined,
        adapt=[*adapted, *range(len(dataset), len(joined))],
        seen=seen,
        num_skipped=len(dataset.skipped),
    )


def _positions(dataset: Dataset, ids: Collection[str]) -> list[int]:
    chosen = set(ids)
    return [index for index, name in enumerate(dataset.example_ids) if name in chosen]


def dataset_identity(dataset: Dataset) -> dict[str, Any]:
    """Return the values that a cache must share with the training split."""
    return {
        "name": dataset.identity_name,
        "split": dataset.split,
        "text_style": dataset.text_style,
        "content_digest": dataset.content_digest(),
    }


def adapt_batch_size(run: Run, inputs: Inputs) -> int:
    """Return the examples of a step of the adapt stage."""
    texts_each = len(inputs.adapt_dataset[inputs.adapt[0]].candidates)
    return max(2 * run.world_size, round(run.config.adapt.adapt_texts / texts_each))


def within_passes(run: Run, inputs: Inputs) -> Run:
    """Return a run whose adapt stage, if there is one, reads its inputs at most `MOST_PASSES` times."""
    if not run.method.num_adapt_steps:
        return run
    most = math.ceil(MOST_PASSES * len(inputs.adapt) / adapt_batch_size(run, inputs))
    return replace(run, method=replace(run.method, num_adapt_steps=min(run.method.num_adapt_steps, most)))
