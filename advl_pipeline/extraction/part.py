"""What of a dataset an extraction is of: a split, or the part of it that low-shot runs need."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from advl_pipeline.datasets.indexed import IndexedDataset
from advl_pipeline.datasets.lowshot import nested_subset
from advl_pipeline.datasets.records import MULTIPLE_CHOICE_TASKS, Dataset, StratifiedDataset
from advl_pipeline.datasets.registry import open_splits
from advl_pipeline.datasets.views import SelectedExamples, UnionOfSplits, listed_ids, refuse_two_subsets
from advl_pipeline.errors import DatasetError
from advl_pipeline.extraction.config import ExtractConfig

Selection = IndexedDataset | UnionOfSplits | SelectedExamples


def open_part(config: ExtractConfig) -> Selection:
    """Open the split that is to be extracted, or the union of the subsets that are named of it.

    Raises:
        ConfigError, DatasetError: as `open_splits`, `nested_subset` and `listed_ids`.
    """
    whole = open_splits(
        config.dataset,
        split=config.split,
        data_root=config.data_root,
        text_style=config.text_style,
        on_error=config.on_error,
    )
    if config.shots is None and not config.ids:
        return whole
    refuse_two_subsets(config.shots, config.ids)
    subsets = [ids for seed in config.seed for ids in _subsets(config, whole, seed)]
    return SelectedExamples(whole, {name for ids in subsets for name in ids}, skipped=whole.skipped)


def subsets_of(config: ExtractConfig, dataset: Dataset) -> Iterator[tuple[Sequence[str], int]]:
    """Yield the ids of labelled examples and the seed of each run that the cache is made for.

    Args:
        dataset: as `open_part` opened it.
    """
    examples = map(dataset.__getitem__, range(len(dataset)))
    labelled = {example.example_id for example in examples if example.label is not None or example.soft_label}
    for seed in config.seed if labelled else ():
        whole = [dataset.example_ids]
        for ids in _subsets(config, dataset.whole, seed) if isinstance(dataset, SelectedExamples) else whole:
            yield [name for name in ids if name in labelled], seed


def _subsets(config: ExtractConfig, whole: StratifiedDataset, seed: int) -> list[tuple[str, ...]]:
    if config.shots is not None:
        return [nested_subset(whole, config.shots, seed)]
    return [listed_ids(file, whole) for file in config.ids]


def require_class_names(dataset: Dataset) -> None:
    """Read the class names that confidences need, before anything is encoded: they may come from other files.

    Raises:
        DatasetError: VQA's answers are counted over a split that is missing.
    """
    try:
        dataset[0]
        for task in dataset.tasks:
            if task not in MULTIPLE_CHOICE_TASKS:
                dataset.label_names(task)
    except DatasetError as error:
        raise DatasetError(
            "Confidences need the classes of the task, and what names them is missing.",
            where=error.where,
            why=error.why or error.what,
            next_command="leave confidences to a run: add --no-confidence",
        ) from None
