"""What is refused before torch loads: teachers and splits that do not exist, a place that holds something else."""

from __future__ import annotations

from pathlib import Path

from advl_pipeline.cache.checks import require_cache
from advl_pipeline.cache.stores import open_store
from advl_pipeline.datasets.registry import require_names
from advl_pipeline.extraction.config import ExtractConfig, location_of
from advl_pipeline.locations import Location
from advl_pipeline.outputs import require_outputs
from advl_pipeline.teachers.registry import require_teacher


def require_cache_there(location: Location) -> None:
    """Refuse a folder that holds neither a cache nor a started one; a place in an object store is asked later.

    Raises:
        ConfigError: as said.
    """
    if isinstance(location, Path):
        require_cache(open_store(location))


def require_given(config: ExtractConfig) -> None:
    """Refuse what can be refused without a teacher, in well under a second.

    Raises:
        ConfigError: a name that does not exist, or an output that holds something else. DatasetError: data of one's
            own that cannot be read.
    """
    require_teacher(config.teacher)
    require_names(config.dataset, split=config.split, data_root=config.data_root)
    require_outputs(config, output=location_of(config))
