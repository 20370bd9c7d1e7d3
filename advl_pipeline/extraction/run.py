"""Phase 1 as one call: plan, encode the uncommitted shards, finalise, estimate confidences.

Every step first checks what exists, so the same call resumes an interrupted run and leaves a complete cache as it
is. Several processes share the work by parts: each encodes its own shards, and the last one to finish does the later
steps. An import is an extraction from existing features.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from advl_pipeline.base.compute import AUTO, num_threads, resolved
from advl_pipeline.base.errors import (
    ConfigError,
    CorruptCache,
    DatasetError,
    StorageError,
    WeightsUnavailable,
)
from advl_pipeline.base.interruption import interruptible
from advl_pipeline.base.locations import Location
from advl_pipeline.base.outputs import require_outputs
from advl_pipeline.cache.commit_records import PLAN_RECORD, committed_shards, load_complete
from advl_pipeline.cache.identity import IMPORTED
from advl_pipeline.cache.parts import ExtractionPart, holding
from advl_pipeline.cache.reader import TeacherCache, open_cache
from advl_pipeline.cache.store import Store
from advl_pipeline.cache.stores import open_store
from advl_pipeline.cache.writer import CacheWriter, clear_work
from advl_pipeline.datasets.records import Dataset
from advl_pipeline.datasets.registry import open_splits, read_dataset
from advl_pipeline.datasets.spec import DatasetSpec
from advl_pipeline.extraction.cluster import run_on_ray
from advl_pipeline.extraction.config import (
    ExtractConfig,
    ImportConfig,
    ImportedExtraction,
    ImportedFiles,
    default_output,
    location_of,
)
from advl_pipeline.extraction.encode import encode_shards, with_batch_size
from advl_pipeline.extraction.forecast import (
    Estimate,
    Payback,
    disk_speed,
    estimates_of,
    measured_seconds,
    payback,
    require_room,
    uses_per_epoch,
)
from advl_pipeline.extraction.imports.tower import open_tower
from advl_pipeline.extraction.planning import (
    build_identity,
    is_planned,
    plan_sources,
    resumed_config,
    take_or_make_plan,
)
from advl_pipeline.extraction.prepare import PreparedExtract, Selection, open_part
from advl_pipeline.extraction.progress import Progress, record_extraction
from advl_pipeline.extraction.sources import (
    Source,
    averaged_grid,
    image_tokens_of,
    open_sources,
    require_class_names,
    row_that_shows,
    sized_by_card,
    subsets_of,
)
from advl_pipeline.teachers.interface import Teacher
from advl_pipeline.teachers.open_options import PICTURES
from advl_pipeline.teachers.registry import card_of, open_teacher

FORECAST_TEXTS = 20_000
"""Texts that a forecast tokenises; for larger splits rows and bytes are known within an interval."""

OpenInputs = Callable[[ExtractConfig], tuple[Teacher, Selection]]


@dataclass(frozen=True, kw_only=True)
class ExtractResult:
    """Summary of an extraction.

    `estimates` are set if this call made the plan or was a dry run, `free_bytes` for a dry run into a folder.
    `encoded_units` counts the units that this call encoded, and `stage_seconds` is its time per stage. `quarantined`
    counts pictures that could not be read, `clipped` values beyond the range of the stored dtype, `confidences`
    examples with estimates, `skipped` entries that the dataset omitted as malformed (`advl datasets check` lists
    them). `shards_left` counts uncommitted shards of other parts; the cache is complete if it is 0. `payback` is set
    for a dry run of a teacher into a folder. `untimed` is the reason why a dry run has no time: the weights are not
    available, and the sizes come from the teacher's card. `confidence_seconds` is the time of the confidences in a
    dry run, None without any. `averaged_grid`: see `sources.averaged_grid`. `cache` is the complete cache, opened.
    """

    path: Location
    dry_run: bool = False
    estimates: tuple[Estimate, ...] = ()
    free_bytes: int | None = None
    encoded_units: int = 0
    seconds: float = 0.0
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    quarantined: int = 0
    clipped: int = 0
    confidences: int = 0
    skipped: int = 0
    shards_left: int = 0
    payback: Payback | None = None
    untimed: WeightsUnavailable | None = None
    confidence_seconds: float | None = None
    averaged_grid: Mapping[str, Sequence[int]] = field(default_factory=dict)
    cache: TeacherCache | None = field(default=None, repr=False)

    def document(self) -> dict[str, Any]:
        """Return the fields that a document of the command holds: all but the opened cache."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name != "cache"}


def run_extract(prepared: PreparedExtract, teacher: Teacher | None = None) -> ExtractResult:
    """Run a frozen teacher over a dataset split and write its cache.

    Args:
        prepared: as `prepare_extract` returns it.
        teacher: an open teacher; None to open the one named in the configuration.

    Raises:
        ConfigError: the teacher lacks a tower, or the output contains something else.
        DatasetError: a picture cannot be read, there is nothing to extract.
        WeightsUnavailable: the teacher's weights are not available; for a dry run, only if its sizes are unknown too.
        IdentityMismatch: the folder contains a cache with other settings.
        StorageError: the disk or the object store is full or failed; the same call resumes.
        InUse: another process is writing this cache, or the same part of it.
        ClusterError: the Ray cluster cannot be reached, or its workers keep dying; the same call resumes.
        KeyboardInterrupt: stopped by a signal; the same call resumes.
    """
    with interruptible("The extraction", kept="every committed shard is kept"):
        config = prepared.config
        # Check before the teacher loads; the extraction itself checks again.
        store_of(config).require_place()
        if config.engine == "ray" and not config.dry_run:
            opener = open_teacher_and_data if teacher is None else lambda config: (teacher, open_part(config))
            return extract_on_ray(config, opener)
        return _extract_part(resolved(resumed_config(config)), prepared.part, teacher)


def open_teacher_and_data(config: ExtractConfig) -> tuple[Teacher, Selection]:
    """Open the teacher and the part of the dataset to extract, by their names."""
    dataset = open_part(config)
    return open_teacher_for(config, dataset), dataset


def open_teacher_for(config: ExtractConfig, dataset: Selection) -> Teacher:
    """Open the teacher of an extraction.

    Class names are read before encoding: VQA's come from another split's files, which may be missing.
    """
    if config.estimates_confidences:
        require_class_names(dataset)
    return open_teacher(
        config.teacher,
        weights=config.weights,
        revision=config.revision,
        device=config.device,
        image_tokens=image_tokens_of(config, dataset),
        grid_side=config.grid_side,
        dtype=config.compute_dtype,
    )


def _extract_part(config: ExtractConfig, dataset: Selection, teacher: Teacher | None) -> ExtractResult:
    try:
        teacher = teacher or open_teacher_for(config, dataset)
    except WeightsUnavailable as error:
        # A control with random weights has the sizes of the original teacher.
        card = card_of(config.teacher.removeprefix("random:").partition("@")[0])
        if card is None or not card.states_sizes or not config.dry_run or config.weights is not None:
            raise
        # Only the sizes are known without the weights, not whether an existing cache is this one.
        estimates = estimates_of(plan_sources(config, sized_by_card(config, card, dataset)), {})
        result = forecast_result(config, estimates, dataset, untimed=error)
    else:
        result = extract(config, teacher, dataset)
    return replace(result, skipped=len(dataset.skipped))


def extract_on_ray(config: ExtractConfig, opener: OpenInputs) -> ExtractResult:
    """As `run_extract`, in several tasks of a Ray cluster, each of which encodes one part.

    Args:
        config: not resolved, since the driver and its tasks may have different devices. The output must be a folder
            shared by all nodes, or a URL.
        opener: opens the teacher and the dataset in a task; must be importable there.
    """
    if config.part is not None:
        raise ConfigError("Give --part or --engine ray, not both.", why="Ray's tasks are given the parts")
    work = partial(extract_part, replace(config, engine="local", ray_tasks=None), opener)
    resource = {"cuda": "GPU", AUTO: None}.get(config.device.partition(":")[0], "CPU")
    store = store_of(config)
    with tqdm(desc="Ray tasks", unit="shard") as bar:

        def show_committed() -> None:
            names = () if bar.disable else store.list("records")
            if PLAN_RECORD in names:
                writer = CacheWriter(store)
                bar.total = sum(writer.placement(modality).num_shards for modality in writer.plan.modalities)
                bar.n = len(committed_shards(names))
                bar.refresh()

        results = run_on_ray(work, resource=resource, num_tasks=config.ray_tasks, watch=show_committed)
    seconds = {
        stage: math.fsum(result.stage_seconds[stage] for result in results) for stage in results[0].stage_seconds
    }
    return replace(
        min(results, key=lambda result: (result.shards_left, -len(result.estimates))),
        encoded_units=sum(result.encoded_units for result in results),
        seconds=max(result.seconds for result in results),
        stage_seconds=seconds,
    )


def extract_part(config: ExtractConfig, opener: OpenInputs, part: ExtractionPart) -> ExtractResult:
    """As `run_extract`, for one part, in a task."""
    # A task sees only its own GPU, whatever its number on the machine.
    device = "cuda" if config.device.startswith("cuda") else config.device
    config = resolved(resumed_config(replace(config, part=str(part), device=device)))
    teacher, dataset = opener(config)
    return _extract_part(config, dataset, teacher)


def extract(config: ExtractConfig, teacher: Teacher, dataset: Dataset) -> ExtractResult:
    """As `run_extract`, with an open teacher and an open dataset."""
    sources = open_sources(config, teacher, dataset)
    identity = build_identity(config, teacher, dataset, sources)
    config = with_batch_size(replace(config, revision=teacher.commit or None), sources)
    store = store_of(config)
    store.require_place()
    if not config.dry_run:
        with holding(store, config.own_part):
            return extract_held(config, store, sources, identity, dataset)
    # Refuse another cache in its place, as the extraction would.
    is_planned(config, store, identity)
    plan = plan_sources(config, sources, max_file_bytes=store.max_file_bytes, at_most=FORECAST_TEXTS)
    estimates = estimates_of(plan, measured_seconds(config, sources, plan))
    result = forecast_result(config, estimates, dataset)
    confidence_seconds = _forecast_confidences(config, sources, dataset) if config.estimates_confidences else None
    return replace(result, averaged_grid=averaged_grid(sources), confidence_seconds=confidence_seconds)


def _forecast_confidences(config: ExtractConfig, sources: Sequence[Source], dataset: Dataset) -> float | None:
    from advl_pipeline.confidence.estimators import Modality
    from advl_pipeline.confidence.forecast import forecast_seconds

    widths: dict[Modality, int] = {
        "vision" if source.modality == "image" else "text": source.global_dim for source in sources
    }
    num_examples = min(config.shots or len(dataset), len(dataset)) * len(config.seed)
    return forecast_seconds(dataset, widths, num_examples=num_examples, folds=config.confidence_folds) or None


def forecast_result(
    config: ExtractConfig,
    estimates: Sequence[Estimate],
    dataset: Dataset,
    *,
    untimed: WeightsUnavailable | None = None,
) -> ExtractResult:
    """Return the result of a dry run: the size of the cache, the free space, the payback.

    Args:
        estimates: costs of the modalities.
        untimed: the reason why they have no time.

    Raises:
        StorageError: the cache would not fit on the disk.
    """
    location, folder = location_of(config), store_of(config).folder
    free_bytes = None if folder is None else require_room(folder, sum(item.num_bytes for item in estimates))
    # Stored pictures and imported features have no teacher that a training step could run.
    is_taught = untimed is None and not config.teacher.startswith((PICTURES, IMPORTED))
    speed = disk_speed(folder) if folder is not None and is_taught else None
    return ExtractResult(
        path=location,
        dry_run=True,
        estimates=tuple(estimates),
        free_bytes=free_bytes,
        payback=None if speed is None else payback(estimates, uses_per_epoch(dataset), speed),
        untimed=untimed,
    )


def extract_held(
    config: ExtractConfig, store: Store, sources: Sequence[Source], identity: Mapping[str, Any], dataset: Dataset
) -> ExtractResult:
    """As `extract`, for a part that this process has locked."""
    begun = time.perf_counter()
    estimates = take_or_make_plan(config, store, sources, identity)
    writer = CacheWriter(store)
    encoded = num_before = 0
    stage_seconds = {"plan": time.perf_counter() - begun, "read": 0.0, "encode": 0.0, "write": 0.0, "confidence": 0.0}
    try:
        for source in sources:
            placement = writer.placement(source.modality)
            pending = [] if writer.is_complete() else writer.pending(source.modality)
            if part := [shard for shard in pending if config.own_part.holds(num_before + shard)]:
                wanted = sum(len(placement.units_of(shard)) for shard in part)
                total = placement.num_units
                with closing(Progress(label=source.modality, total=total, done=total - wanted)) as progress:
                    encode_shards(
                        source,
                        writer,
                        part,
                        batch_size=config.units_per_pass,
                        skip_unreadable=config.on_error == "skip",
                        num_workers=min(num_threads(config.num_workers), source.prepare_threads),
                        progress=progress,
                    )
                encoded += wanted
                stage_seconds |= {stage: stage_seconds[stage] + spent for stage, spent in progress.seconds.items()}
            num_before += placement.num_shards
    except DatasetError as error:
        if row := row_that_shows(dataset, Path(error.where)):
            error.why = f"{error.why} (used by {row})"
        if estimates and config.part is None and not committed_shards(store.list("records")):
            # This call began the cache, and nothing in it is worth keeping.
            store.delete_under()
        raise
    shards_left = 0
    if not writer.is_complete():
        shards_left = sum(len(writer.pending(modality)) for modality in writer.plan.modalities)
    confidences, complete = 0, None
    cache: TeacherCache | None = None
    if not shards_left:
        encoded_by = time.perf_counter()
        cache = _complete_cache(config, store, writer, identity)
        committed_by = time.perf_counter()
        stage_seconds["write"] += committed_by - encoded_by
        confidences = _estimate_confidences(config, cache, dataset) if config.estimates_confidences else 0
        stage_seconds["confidence"] = time.perf_counter() - committed_by
        clear_work(store)
        complete = load_complete(store)
    seconds = time.perf_counter() - begun
    if encoded and store.folder is not None:
        record_extraction(store.folder, seconds=seconds, num_units=encoded, device=config.device)
    return ExtractResult(
        path=store.location,
        estimates=estimates,
        encoded_units=encoded,
        seconds=seconds,
        stage_seconds=stage_seconds,
        quarantined=sum(map(len, complete.quarantined.values())) if complete else 0,
        clipped=sum(complete.clipped.values()) if complete else 0,
        confidences=confidences,
        shards_left=shards_left,
        averaged_grid=averaged_grid(sources),
        cache=cache,
    )


def _complete_cache(
    config: ExtractConfig, store: Store, writer: CacheWriter, identity: Mapping[str, Any]
) -> TeacherCache:
    """Finalise the cache from its shards, and open it."""
    try:
        if not writer.is_complete():
            writer.finalise()
            store.mark_verified(store.changed(load_complete(store).files))
    except (CorruptCache, StorageError):
        # Another part's process completed the cache at the same time, and removed the work in progress.
        if not writer.is_complete():
            raise
    return open_cache(store.location, identity)


def store_of(config: ExtractConfig) -> Store:
    """Return the store that a cache is written to."""
    return open_store(location_of(config))


def _estimate_confidences(config: ExtractConfig, cache: TeacherCache, dataset: Dataset) -> int:
    from advl_pipeline.confidence.estimators import load_or_estimate_confidence

    estimated: set[str] = set()
    for example_ids, seed in subsets_of(config, dataset):
        load_or_estimate_confidence(
            caches=[cache],
            dataset=dataset,
            example_ids=example_ids,
            estimator="probe",
            folds=config.confidence_folds,
            seed=seed,
            must_store=True,
        )
        estimated.update(example_ids)
    return len(estimated)


def run_import(config: ImportConfig, dataset: DatasetSpec | None = None) -> ExtractResult:
    """Write a cache from existing features.

    Args:
        dataset: that of the configuration, as `read_dataset` returns it; None to find it.

    Raises:
        ConfigError: there is nothing to import, or an option does not apply to the files.
        DatasetError: a picture has no features, or they cannot be read safely.
    """
    output = config.output or default_output(IMPORTED + config.name, config.dataset, config.split)
    require_outputs(config, output=output)
    with interruptible("The import", kept="every committed shard is kept"):
        dataset = dataset or read_dataset(config.dataset, config.data_root)
        return import_features(config, open_splits(dataset, config.split, data_root=config.data_root))


def import_features(config: ImportConfig, dataset: Dataset) -> ExtractResult:
    """As `run_import`, with an open dataset."""
    extraction = ImportedExtraction(
        **{item.name: getattr(config, item.name) for item in fields(ImportedFiles)},
        **{name: getattr(config, name) for name in ("dataset", "split", "data_root", "output")},
        teacher=IMPORTED + config.name,
        modality="image",
        confidence="none",
        num_workers=1,
        dry_run=config.dry_run,
    )
    with ExitStack() as stack:
        tower = open_tower(extraction, dataset.image_units(), stack)
        extraction = replace(
            extraction,
            image_tokens=tower.tokens,
            dtype=config.dtype or ("float16" if tower.fits_float16 or not tower.has_regions else "float32"),
        )
        return extract(extraction, Teacher(name=extraction.teacher, image=tower), dataset)
