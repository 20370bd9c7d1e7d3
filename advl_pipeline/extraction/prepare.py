"""`prepare_extract`: refuse an invalid extraction, before torch loads, and open the data that it encodes once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from advl_pipeline.base.configuration import require_effect
from advl_pipeline.base.errors import ConfigError
from advl_pipeline.base.locations import Location
from advl_pipeline.base.outputs import require_outputs
from advl_pipeline.cache.parts import parse_part
from advl_pipeline.cache.store import require_cache
from advl_pipeline.cache.stores import open_store
from advl_pipeline.datasets.config import facts_of_data
from advl_pipeline.datasets.indexed import IndexedDataset
from advl_pipeline.datasets.lowshot import nested_subset
from advl_pipeline.datasets.records import StratifiedDataset
from advl_pipeline.datasets.registry import find_dataset, open_splits, read_dataset, require_names, with_rows
from advl_pipeline.datasets.spec import DatasetSpec
from advl_pipeline.datasets.subsets import Concatenated, Selected, listed_ids, refuse_two_subsets
from advl_pipeline.extraction.config import ExtractConfig, ImportConfig, location_of, without_network
from advl_pipeline.teachers.registry import is_of_hub, require_teacher


def require_cache_there(location: Location) -> None:
    """Refuse a folder without a complete or started cache; an object store is checked later.

    Raises:
        ConfigError: there is no cache.
    """
    if isinstance(location, Path):
        require_cache(open_store(location))


Selection = IndexedDataset | Concatenated | Selected


@dataclass(frozen=True, kw_only=True)
class PreparedExtract:
    """An extraction that was checked, and the part of the dataset that it encodes, opened."""

    config: ExtractConfig
    part: Selection


def prepare_extract(
    config: ExtractConfig, dataset: DatasetSpec | None = None, *, by_name: bool = True, may_idle: bool = False
) -> PreparedExtract:
    """Refuse an extraction that cannot work, without opening a teacher, and open its data.

    Args:
        config: the unresolved configuration.
        dataset: that of the configuration; None to find it.
        by_name: the teacher will be opened by its name.
        may_idle: allow options without effect, as a study gives them to all of its teachers.

    Raises:
        ConfigError: a name does not exist, an option has no effect, the output contains something else, or a subset
            has more questions than the dataset.
        DatasetError: the dataset is missing or malformed.
    """
    if config.part is not None:
        parse_part(config.part)
    if by_name:
        require_teacher(config.teacher)
    dataset = dataset or find_dataset(config.dataset, config.data_root)
    require_names(dataset, config.split, data_root=config.data_root)
    require_outputs(config, output=location_of(config))
    if not may_idle:
        _require_effect(config, dataset)
    part = open_part(config, with_rows(dataset, config.data_root))
    return PreparedExtract(config=without_network(config), part=part)


def _require_effect(config: ExtractConfig, dataset: DatasetSpec) -> None:
    reads_pictures, names_commit = config.modality != "text", config.weights is None and is_of_hub(config.teacher)
    unversioned = "the teacher is of no repository of the hub, or its name says the revision"
    facts = (
        ("texts", config.modality != "image", "no text is read"),
        ("pictures", reads_pictures, "no picture is read"),
        ("a grid", config.image_tokens not in ("boxes", "none"), "no grid is stored"),
        ("a repository of the hub", names_commit, unversioned),
        ("confidences", config.estimates_confidences, "no confidence is estimated"),
        ("ray", config.engine == "ray", "--engine is not ray"),
    )
    of_data = facts_of_data(dataset.tasks)
    require_effect(config, of_data | {name: "" if holds else why for name, holds, why in facts})


def open_part(config: ExtractConfig, dataset: DatasetSpec | None = None) -> Selection:
    """Open the split to extract, or the union of the requested subsets of it.

    Args:
        dataset: as for `prepare_extract`.

    Raises:
        ConfigError, DatasetError: as `open_splits`, `nested_subset` and `listed_ids`.
    """
    whole = open_splits(
        dataset or read_dataset(config.dataset, config.data_root),
        config.split,
        data_root=config.data_root,
        text_style=config.text_style,
        on_error=config.on_error,
    )
    if config.shots is None and not config.ids:
        return whole
    refuse_two_subsets(config.shots, config.ids)
    subsets = [ids for seed in config.seed for ids in subset_ids(config, whole, seed)]
    return Selected(whole, {name for ids in subsets for name in ids})


def subset_ids(config: ExtractConfig, whole: StratifiedDataset, seed: int) -> list[tuple[str, ...]]:
    """Return the ids of the requested subsets of a split with a seed."""
    if config.shots is not None:
        return [nested_subset(whole, config.shots, seed)]
    return [listed_ids(file, whole) for file in config.ids]


def require_import(config: ImportConfig) -> DatasetSpec:
    """Refuse an import without a source or a dataset, in well under a second; return its dataset.

    Raises:
        ConfigError, DatasetError: the source or the dataset is missing.
    """
    dataset = find_dataset(config.dataset, config.data_root)
    require_names(dataset, config.split, data_root=config.data_root)
    if "{split}" not in str(config.source) and not config.source.exists():
        raise ConfigError("There is nothing to import.", where=str(config.source))
    return with_rows(dataset, config.data_root)
