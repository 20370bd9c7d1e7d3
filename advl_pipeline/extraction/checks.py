"""Checks before torch loads: unknown teachers and splits, or an output that contains something else."""

from __future__ import annotations

from pathlib import Path

from advl_pipeline.base.configuration import require_effect
from advl_pipeline.base.errors import ConfigError
from advl_pipeline.base.locations import Location
from advl_pipeline.base.outputs import require_outputs
from advl_pipeline.cache.store import require_cache
from advl_pipeline.cache.stores import open_store
from advl_pipeline.datasets.config import facts_of_data
from advl_pipeline.datasets.lowshot import require_shots
from advl_pipeline.datasets.registry import find_dataset, open_splits, require_names
from advl_pipeline.extraction.config import ExtractConfig, ImportConfig, location_of
from advl_pipeline.teachers.registry import is_of_hub, require_teacher


def require_cache_there(location: Location) -> None:
    """Refuse a folder without a complete or started cache; an object store is checked later.

    Raises:
        ConfigError: there is no cache.
    """
    if isinstance(location, Path):
        require_cache(open_store(location))


def check_extraction_options(config: ExtractConfig) -> None:
    """Refuse options that have no effect in this extraction.

    Raises:
        ConfigError: such an option is given.
    """
    reads_pictures, names_commit = config.modality != "text", config.weights is None and is_of_hub(config.teacher)
    unversioned = "the teacher is of no repository of the hub, or its name says the revision"
    facts = (
        ("texts", config.modality != "image", "no text is read"),
        ("pictures", reads_pictures, "no picture is read"),
        ("a grid", config.image_tokens not in ("boxes", "none"), "no grid is stored"),
        ("a repository of the hub", names_commit, unversioned),
        ("confidences", config.confidence, "no confidence is estimated"),
        ("ray", config.engine == "ray", "--engine is not ray"),
    )
    of_data = facts_of_data(find_dataset(config.dataset, config.data_root).tasks)
    require_effect(config, of_data | {name: "" if holds else why for name, holds, why in facts})


def check_extraction(config: ExtractConfig, *, by_name: bool = True) -> None:
    """Refuse an extraction that cannot work, without opening a teacher, in well under a second.

    Args:
        config: the unresolved configuration.
        by_name: the teacher will be opened by its name.

    Raises:
        ConfigError: a name does not exist, the output contains something else, or a subset has more questions than
            the dataset.
        DatasetError: the user's own data cannot be read.
    """
    if by_name:
        require_teacher(config.teacher)
    require_names(config.dataset, split=config.split, data_root=config.data_root)
    require_outputs(config, output=location_of(config))
    if config.shots is not None:
        split = open_splits(config.dataset, split=config.split, data_root=config.data_root, on_error=config.on_error)
        require_shots(split, config.shots)


def require_import(config: ImportConfig) -> None:
    """Refuse an import without a source or a dataset, in well under a second.

    Raises:
        ConfigError, DatasetError: the source or the dataset is missing.
    """
    require_names(config.dataset, split=config.split, data_root=config.data_root)
    if "{split}" not in str(config.source) and not config.source.exists():
        raise ConfigError("There is nothing to import.", where=str(config.source))
