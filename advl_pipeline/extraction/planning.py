"""The plan of an extraction: placement of units, cost, and the check for free space."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from advl_pipeline.base.compute import AUTO
from advl_pipeline.base.configuration import config_to_dict, options_without
from advl_pipeline.base.packages import installed_versions
from advl_pipeline.cache.commit_records import COMPLETE_RECORD, PLAN_RECORD, ModalityRecord, PlanRecord
from advl_pipeline.cache.identity import (
    PROVENANCE_FILE,
    SCHEMA_VERSION,
    digest,
    extract_command,
    require_identity,
)
from advl_pipeline.cache.reader import open_cache
from advl_pipeline.cache.store import IDENTITY_FILE, MissingFile, Overtaken, Store, read_metadata
from advl_pipeline.cache.stores import open_store
from advl_pipeline.cache.writer import CachePlan, begin_cache, plan_cache
from advl_pipeline.datasets.records import Dataset
from advl_pipeline.datasets.subsets import Selected
from advl_pipeline.extraction.config import ExtractConfig, location_of
from advl_pipeline.extraction.forecast import Estimate, estimates_of, require_room
from advl_pipeline.extraction.prepare import open_part
from advl_pipeline.extraction.sources import (
    SizedUnits,
    Source,
    averaged_grid,
    image_tokens_of,
)
from advl_pipeline.teachers.interface import Teacher

_LIBRARIES = ("advl-pipeline", "numpy", "torch", "transformers", "timm", "zarr")


def build_identity(
    config: ExtractConfig, teacher: Teacher, dataset: Dataset, sources: Sequence[Source]
) -> dict[str, Any]:
    """Return everything that changes the numbers, as plain JSON types; never paths, versions or the device."""
    towers = {source.modality: source.tower.describe() for source in sources}
    return {
        "schema_version": SCHEMA_VERSION,
        "teacher": {
            "name": teacher.name,
            "aligned": teacher.aligned,
            "logit_scale": teacher.logit_scale,
            "image": towers.get("image"),
            "text": towers.get("text"),
            "image_tokens": image_tokens_of(config, dataset) if "image" in towers else None,
            "compute_dtype": config.compute_dtype,
        },
        "dataset": describe_dataset(dataset),
        "storage": {"dtype": config.stored_dtype},
    }


def describe_dataset(dataset: Dataset) -> dict[str, Any]:
    """Return the dataset's part of the identity, with the selection if it is not the entire split."""
    whole = {
        "name": dataset.identity_name,
        "split": dataset.split,
        "tasks": list(dataset.tasks),
        "text_style": dataset.text_style,
        "content_digest": dataset.content_digest(),
    }
    return whole | ({"selection": dataset.selection} if isinstance(dataset, Selected) else {})


def resumed_config(config: ExtractConfig) -> ExtractConfig:
    """Return the configuration, with precision, batch size and the teacher's commit taken from a started cache in its
    place if they are not set.

    So a machine with a GPU resumes in fp32 a cache that a machine without one began.
    """
    left_open = [name for name in ("mixed_precision", "batch_size") if getattr(config, name) == AUTO]
    if config.revision is None and config.weights is None:
        left_open.append("revision")
    if not left_open:
        return config
    store = open_store(location_of(config))
    if PROVENANCE_FILE not in store.list("records"):
        return config
    begun = read_metadata(store, PROVENANCE_FILE).get("config", {})
    if begun.get("teacher") != config.teacher:
        left_open = [name for name in left_open if name != "revision"]
    return replace(config, **{name: begun.get(name, getattr(config, name)) for name in left_open})


def is_extracted(config: ExtractConfig, *, same_weights: bool) -> bool:
    """Return whether a complete cache with these options and the dataset's current content is in its place.

    Args:
        same_weights: require the same `weights` too. Otherwise the teacher is not compared.

    Raises:
        DatasetError: the dataset is missing or malformed.
        CorruptCache: the cache is damaged.
    """
    location = location_of(config)
    if COMPLETE_RECORD not in open_store(location).list("records"):
        return False
    cache = open_cache(location)
    made, asked = cache.provenance["config"], config_to_dict(resumed_config(config))
    compared = options_without(ExtractConfig, asked, "content", "provenance", "none")
    if any(made.get(key) != value for key, value in compared.items()):
        return False
    if same_weights and made.get("weights") != asked["weights"]:
        return False
    return bool(cache.identity["dataset"] == describe_dataset(open_part(config)))


def is_planned(config: ExtractConfig, store: Store, identity: Mapping[str, Any]) -> bool:
    """Return whether the plan of this extraction exists.

    Raises:
        IdentityMismatch: another cache is in its place.
    """
    records = store.list("records")
    try:
        begun = read_metadata(store, IDENTITY_FILE) if records else identity
    except MissingFile:
        begun = {}
    # An interrupted repair may leave shards of the old identity without a plan.
    require_identity(
        identity,
        begun,
        where=str(store.location),
        next_command=extract_command(
            provenance_options(config), store.location, renew=True, note="or give another --output"
        ),
    )
    return PLAN_RECORD in records


def take_or_make_plan(
    config: ExtractConfig, store: Store, sources: Sequence[Source], identity: Mapping[str, Any]
) -> tuple[Estimate, ...]:
    """Use the existing plan, or make one; return the estimates of a new plan, () for an existing one.

    Raises:
        IdentityMismatch: the existing plan belongs to another cache.
        StorageError: as `make_plan`.
    """
    if is_planned(config, store, identity):
        return ()
    estimates: tuple[Estimate, ...] = ()
    with suppress(Overtaken):
        estimates = make_plan(config, store, sources, identity)
    if not is_planned(config, store, identity):
        raise Overtaken(
            "The plan that was just written has disappeared.",
            where=str(store.location),
            why="another process removed the cache",
        )
    return estimates


def plan_sources(
    config: ExtractConfig,
    sources: Sequence[Source | SizedUnits],
    *,
    identity: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    max_file_bytes: int | None = None,
    at_most: int | None = None,
) -> CachePlan:
    """Count the tokens of all units, or of a sample of `at_most` texts, and place the units.

    Args:
        identity, provenance: given if the plan will be written.
        max_file_bytes: the largest file that the store accepts.

    Raises:
        ConfigError: the shards are too large.
    """
    lengths, shapes, unit_ids = {}, {}, {}
    for source in sources:
        name, is_text = source.modality, source.modality == "text"
        unit_ids[name] = source.unit_ids()
        with tqdm(total=len(unit_ids[name]), desc=f"{name}: counting tokens", unit="unit") as bar:
            lengths[name] = source.count_tokens(progress=bar.update, at_most=at_most)
        shapes[name] = ModalityRecord(
            num_units=len(unit_ids[name]),
            global_dim=source.global_dim,
            token_dim=source.token_dim,
            spans=is_text,
            kept=is_text and config.select_texts is not None,
            regions=source.has_regions,
        )
    record = PlanRecord(
        identity_sha256=digest(identity or {}),
        stored_dtype=config.stored_dtype,
        shard_rows=config.shard_rows,
        modalities=shapes,
        files={},
        provenance=provenance or {},
    )
    return plan_cache(record, unit_ids, lengths, max_file_bytes=max_file_bytes)


def make_plan(
    config: ExtractConfig,
    store: Store,
    sources: Sequence[Source],
    identity: Mapping[str, Any],
    *,
    repaired: Mapping[str, Any] | None = None,
) -> tuple[Estimate, ...]:
    """Count tokens, place units, check the free space, and write the plan; return the estimated costs.

    Args:
        repaired: the provenance of a cache under repair. Most of its files exist, so free space is not checked.

    Raises:
        ConfigError: the shards are too large.
        Overtaken: another process made a different plan at the same time.
        StorageError: the cache would not fit on the disk.
    """
    plan = plan_sources(
        config,
        sources,
        identity=identity,
        provenance=repaired or _provenance(config, sources),
        max_file_bytes=store.max_file_bytes,
    )
    # Encoding shows the speed from the first shard on; measuring it here would make a small job much longer.
    estimates = estimates_of(plan, {})
    if store.folder is not None and repaired is None:
        require_room(store.folder, sum(item.num_bytes for item in estimates))
    begin_cache(store, plan, identity, overwrite=repaired is not None)
    return estimates


def _provenance(config: ExtractConfig, sources: Sequence[Source]) -> dict[str, Any]:
    """Return configuration, device and library versions, but no times, so that equal runs give equal bytes."""
    provenance: dict[str, Any] = {
        "config": provenance_options(config),
        "device": config.device,
        "python": platform.python_version(),
        "libraries": installed_versions(_LIBRARIES, absent="absent"),
    }
    if grid := averaged_grid(sources):
        provenance["averaged_grid"] = grid
    return provenance


def provenance_options(config: ExtractConfig) -> dict[str, Any]:
    """Return the options for a cache's record: how it was made, and from what."""
    return options_without(ExtractConfig, config_to_dict(config), "none")
