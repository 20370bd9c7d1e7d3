"""Whether a cache is there already, without its teacher: a finished one must not ask for weights again."""

from __future__ import annotations

from advl_pipeline.cache.reader import open_cache
from advl_pipeline.cache.records import COMPLETE_RECORD
from advl_pipeline.cache.stores import open_store
from advl_pipeline.configuration import config_to_dict
from advl_pipeline.extraction.config import ExtractConfig, location_of
from advl_pipeline.extraction.identity import describe_dataset
from advl_pipeline.extraction.part import open_part

_DECIDE_THE_NUMBERS = (
    *("teacher", "dataset", "split", "text_style", "modality", "image_tokens", "grid_side", "dtype"),
    *("compression", "select_tokens", "compute_dtype", "shard_rows", "on_error"),
)


def is_extracted(config: ExtractConfig, *, same_weights: bool) -> bool:
    """Tell whether a whole cache of these options and of the dataset's present content lies where it would go.

    Args:
        config: of the extraction.
        same_weights: it must also have been made with the same `weights`. Without, nobody has compared the teacher.

    Raises:
        DatasetError: the dataset is missing or malformed. CorruptCache: the cache is damaged.
    """
    location = location_of(config)
    if COMPLETE_RECORD not in open_store(location).list("records"):
        return False
    cache = open_cache(location)
    made, asked = cache.provenance["config"], config_to_dict(config)
    compared = (*_DECIDE_THE_NUMBERS, "weights") if same_weights else _DECIDE_THE_NUMBERS
    if any(made.get(key) != asked[key] for key in compared):
        return False
    return bool(cache.identity["dataset"] == describe_dataset(open_part(config)))
