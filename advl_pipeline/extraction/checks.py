"""What is refused before torch loads: teachers and splits that do not exist, a place that holds something else."""

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
    """Refuse a folder that holds neither a cache nor a started one; a place in an object store is asked later.

    Raises:
        ConfigError: there is no cache.
    """
    if isinstance(location, Path):
        require_cache(open_store(location))


def check_extraction_options(config: ExtractConfig) -> None:
    """Refuse options that would change nothing in this extraction.

    Raises:
        ConfigError: an option has no effect.
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
    """Refuse what can be refused without a teacher, in well under a second.

    Args:
        config: as it is given.
        by_name: the teacher is still to be opened by its name.

    Raises:
        ConfigError: a name that does not exist, an output that holds something else, or a subset of more questions
            than there are. DatasetError: own data that cannot be read.
    """
    if by_name:
        require_teacher(config.teacher)
    require_names(config.dataset, split=config.split, data_root=config.data_root)
    require_outputs(config, output=location_of(config))
    if config.shots is not None:
        split = open_splits(config.dataset, split=config.split, data_root=config.data_root, on_error=config.on_error)
        require_shots(split, config.shots)


def require_import(config: ImportConfig) -> None:
    """Refuse an import of nothing, or for a dataset that is not there, in well under a second.

    Raises:
        ConfigError, DatasetError: the source or the dataset is not there.
    """
    require_names(config.dataset, split=config.split, data_root=config.data_root)
    if "{split}" not in str(config.source) and not config.source.exists():
        raise ConfigError("There is nothing to import.", where=str(config.source))
