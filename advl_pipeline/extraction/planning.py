"""The plan of an extraction: which rows units get, what it will cost, whether there is room."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from tqdm import tqdm

from advl_pipeline.cache.commit_records import COMPLETE_RECORD, PLAN_RECORD, ModalityRecord
from advl_pipeline.cache.identity import (
    PROVENANCE_FILE,
    SCHEMA_VERSION,
    describe_run,
    renew_command,
    require_identity,
)
from advl_pipeline.cache.reader import open_cache
from advl_pipeline.cache.store import IDENTITY_FILE, MissingFile, Overtaken, Store, read_json
from advl_pipeline.cache.stores import open_store
from advl_pipeline.cache.writer import ModalityPlan, begin_cache
from advl_pipeline.compute import AUTO
from advl_pipeline.configuration import config_to_dict, options_without
from advl_pipeline.datasets.records import Dataset
from advl_pipeline.datasets.views import SelectedExamples
from advl_pipeline.extraction.config import ExtractConfig, location_of
from advl_pipeline.extraction.estimate import Estimate, estimate, modality_shape, require_room
from advl_pipeline.extraction.sources import FORECAST_TEXTS, Source, TokenCounts, image_tokens_of, open_part
from advl_pipeline.teachers.interface import Teacher


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What an extraction will cost, per modality, and the room there is; empty where the plan was made before."""

    estimates: tuple[Estimate, ...] = ()
    free_bytes: int | None = None


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
    """Return what of the identity is the dataset's; the part that is selected, if it is not the whole split."""
    whole = {
        "name": dataset.identity_name,
        "split": dataset.split,
        "tasks": list(dataset.tasks),
        "text_style": dataset.text_style,
        "content_digest": dataset.content_digest(),
    }
    return whole | ({"selection": dataset.selection} if isinstance(dataset, SelectedExamples) else {})


def as_begun(config: ExtractConfig) -> ExtractConfig:
    """Return the configuration with the precision and the batches of what was begun in its place, where it leaves
    these open.

    A machine with a GPU goes on in fp32 with what one without has begun.
    """
    left_open = [name for name in ("mixed_precision", "batch_size") if getattr(config, name) == AUTO]
    if not left_open:
        return config
    store = open_store(location_of(config), config.disk_cache_config)
    if PROVENANCE_FILE not in store.list("records"):
        return config
    begun = read_json(store, PROVENANCE_FILE).get("config", {})
    return replace(config, **{name: begun.get(name, AUTO) for name in left_open})


def is_extracted(config: ExtractConfig, *, same_weights: bool) -> bool:
    """Tell whether a whole cache of these options and of the dataset's present content lies where it would go.

    Args:
        same_weights: it must also have been made with the same `weights`. Without, nobody has compared the teacher.

    Raises:
        DatasetError: the dataset is missing or malformed. CorruptCache: the cache is damaged.
    """
    location = location_of(config)
    if COMPLETE_RECORD not in open_store(location).list("records"):
        return False
    cache = open_cache(location)
    made, asked = cache.provenance["config"], config_to_dict(as_begun(config))
    compared = options_without(ExtractConfig, asked, "content", "beside", "none")
    if any(made.get(key) != value for key, value in compared.items()):
        return False
    if same_weights and made.get("weights") != asked["weights"]:
        return False
    return bool(cache.identity["dataset"] == describe_dataset(open_part(config)))


def settle_plan(config: ExtractConfig, store: Store, sources: Sequence[Source], identity: Mapping[str, Any]) -> Plan:
    """Take the plan that is there, or make one.

    Raises:
        IdentityMismatch: the plan that is there is of another cache. StorageError: as `make_plan`.
    """
    settings = options_without(ExtractConfig, config_to_dict(config), "none")

    def is_planned() -> bool:
        records = store.list("records")
        try:
            begun = read_json(store, IDENTITY_FILE) if records else identity
        except MissingFile:
            begun = {}
        # What a repair that was cut short left has shards of the old identity and no plan.
        require_identity(
            identity,
            begun,
            where=str(store.location),
            next_command=renew_command(settings, store.location, note="or give another --output"),
        )
        return PLAN_RECORD in records

    provenance = describe_run(settings, device=config.device)
    if config.dry_run:
        is_planned()
        return make_plan(config, store, sources, identity, provenance=provenance)
    if is_planned():
        return Plan()
    plan = Plan()
    with suppress(Overtaken):
        plan = make_plan(config, store, sources, identity, provenance=provenance)
    if not is_planned():
        why = "another process removed the cache"
        raise Overtaken("The plan that was just written is not there.", where=str(store.location), why=why)
    return plan


def make_plan(
    config: ExtractConfig,
    store: Store,
    sources: Sequence[Source],
    identity: Mapping[str, Any],
    *,
    provenance: Mapping[str, Any],
    is_begun: bool = False,
) -> Plan:
    """Count tokens, place units, check the room, and write the plan unless this is a dry run.

    Of a cache that is begun, and repaired, most is there: no room is asked for.

    Raises:
        Overtaken: another process made another plan at the same time.
        StorageError: the cache would not fit on the disk.
    """
    counts = count_tokens(sources, forecast=config.dry_run)
    modalities = {
        source.modality: ModalityPlan(
            shape=shape_of(config, source),
            unit_ids_N16=source.unit_ids(),
            lengths_N=counts[source.modality].lengths_N,
        )
        for source in sources
    }
    begin = partial(
        begin_cache,
        store,
        identity=identity,
        provenance=provenance,
        stored_dtype=config.stored_dtype,
        shard_rows=config.shard_rows,
        modalities=modalities,
        anew=is_begun,
    )
    begin(dry_run=True)
    # Who is about to encode sees the speed from the first shard on; a trial would make a small job much longer.
    estimates = estimates_of(config, sources, counts, trial=config.dry_run)
    free_bytes = None
    if store.folder is not None and not is_begun:
        free_bytes = require_room(store.folder, sum(item.num_bytes for item in estimates))
    if not config.dry_run:
        begin()
    return Plan(estimates=estimates, free_bytes=free_bytes)


def shape_of(config: ExtractConfig, source: Source) -> ModalityRecord:
    """Return what is written of a modality."""
    tower = source.tower
    return modality_shape(
        config,
        source.modality,
        len(source.unit_ids()),
        global_dim=tower.global_dim,
        token_dim=tower.token_dim if source.has_tokens else None,
        regions=source.has_regions,
    )


def estimates_of(
    config: ExtractConfig, sources: Sequence[Source], counts: Mapping[str, TokenCounts], *, trial: bool
) -> tuple[Estimate, ...]:
    """Return the cost of each modality; its time where a trial is asked for."""
    return tuple(
        estimate(
            config,
            source.modality,
            shape_of(config, source),
            counts[source.modality],
            tried=source if trial else None,
        )
        for source in sources
    )


def count_tokens(sources: Sequence[Source], *, forecast: bool) -> dict[str, TokenCounts]:
    counts = {}
    for source in sources:
        with tqdm(total=len(source.unit_ids()), desc=f"{source.modality}: counting tokens", unit="unit") as bar:
            at_most = FORECAST_TEXTS if forecast else None
            counts[source.modality] = source.count_tokens(progress=bar.update, at_most=at_most)
    return counts
