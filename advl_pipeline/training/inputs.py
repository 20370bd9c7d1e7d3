"""What a run trains on: the labelled subset of a split, and the inputs of the adapt step."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from advl_pipeline.cache.reader import TeacherCache
from advl_pipeline.datasets.interface import Dataset
from advl_pipeline.datasets.joined import JoinedDataset
from advl_pipeline.datasets.lowshot import nested_subset
from advl_pipeline.datasets.records import Example
from advl_pipeline.datasets.registry import open_splits
from advl_pipeline.datasets.roots import dataset_label
from advl_pipeline.datasets.selected import listed_ids, refuse_two_subsets
from advl_pipeline.errors import DatasetError
from advl_pipeline.training.adapt_inputs import open_other_inputs
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.methods import takes_two_steps


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
