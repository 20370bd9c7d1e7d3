"""Phase 1 as one call: plan, encode what is not committed, finalise, estimate confidences.

Every step first looks at what is there, so the same call resumes an interrupted run, shares the work with other
processes that make the same call, and does nothing to a complete cache.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from tqdm import tqdm

from advl_pipeline.cache.reader import TeacherCache, open_cache
from advl_pipeline.cache.records import (
    PLAN_RECORD,
    committed_shards,
    load_complete,
    shard_name,
)
from advl_pipeline.cache.store import LeaseLost, Store
from advl_pipeline.cache.stores import open_store
from advl_pipeline.cache.writer import FINALISE, CacheWriter, clear_work
from advl_pipeline.compute import num_threads, resolved
from advl_pipeline.datasets.interface import Dataset
from advl_pipeline.errors import CorruptCache
from advl_pipeline.extraction.config import ExtractConfig, location_of, without_network
from advl_pipeline.extraction.encode import WriteBehind, encode_shard
from advl_pipeline.extraction.estimate import Estimate, estimate_confidences
from advl_pipeline.extraction.given import require_given
from advl_pipeline.extraction.identity import as_begun, build_identity
from advl_pipeline.extraction.interruption import interruptible
from advl_pipeline.extraction.part import Part, open_part, require_class_names, subsets_of
from advl_pipeline.extraction.planning import count_tokens, estimates_of, settle_plan
from advl_pipeline.extraction.progress import Progress, Stage, record_extraction
from advl_pipeline.extraction.ray_engine import run_on_ray
from advl_pipeline.extraction.sources import Source, image_tokens_of, open_sources
from advl_pipeline.locations import Location
from advl_pipeline.teachers.interface import Teacher

_SECONDS_BETWEEN_LOOKS = 0.5

OpenInputs = Callable[[ExtractConfig], tuple[Teacher, Part]]


@dataclass(frozen=True, kw_only=True)
class ExtractResult:
    """What an extraction did.

    `estimates` and `free_bytes` are filled when the plan was made by this call or only asked for. `encoded_units`
    counts units that this call encoded, `stage_seconds` where its time went. `quarantined` counts pictures that
    could not be read, `clipped` values beyond the range of the stored dtype, `confidences` the estimated examples,
    `skipped` what the dataset left out as malformed (`advl datasets check` lists it).
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


def run_extract(config: ExtractConfig, teacher: Teacher | None = None) -> ExtractResult:
    """Run a frozen teacher over a dataset split and write its cache.

    Args:
        config: what is extracted, and whereto.
        teacher: one that is open already; None to open the configuration's by its name.

    Raises:
        ConfigError: unknown names, a tower that the teacher lacks, an output or a --progress-file that holds
            something else.
        DatasetError: the dataset is missing or malformed, a picture cannot be read, there is nothing to extract.
        WeightsUnavailable: the teacher's weights are not at hand.
        IdentityMismatch: the folder holds a cache of other settings.
        StorageError: the disk or the object store is full or failed; the same call resumes.
        ClusterError: the Ray cluster cannot be reached, or its workers keep dying; the same call resumes.
        Interrupted: stopped by a signal; the same call resumes.
    """
    with interruptible():
        require_given(config)
        # Before the teacher loads; the extraction itself checks again.
        with cache_of(config) as store:
            store.require_place()
        config = resolved(as_begun(without_network(config)))
        opener = open_inputs if teacher is None else lambda config: (teacher, open_part(config))
        if config.engine == "ray" and not config.dry_run:
            return extract_on_ray(config, opener)
        return _extract_opened(config, opener)


def open_inputs(config: ExtractConfig) -> tuple[Teacher, Part]:
    """Open the teacher and what of the dataset is to be extracted, by their names.

    Class names are read before anything is encoded: VQA's come from another split's files, which may be missing.
    """
    from advl_pipeline.teachers.registry import open_teacher

    dataset = open_part(config)
    if config.confidence:
        require_class_names(dataset)
    teacher = open_teacher(
        config.teacher,
        weights=config.weights,
        device=config.device,
        image_tokens=image_tokens_of(config, dataset),
        grid_side=config.grid_side,
        dtype=config.compute_dtype,
    )
    return teacher, dataset


def _extract_opened(config: ExtractConfig, opener: OpenInputs) -> ExtractResult:
    teacher, dataset = opener(config)
    return replace(extract(config, teacher, dataset), skipped=len(dataset.skipped))


def extract_on_ray(config: ExtractConfig, opener: OpenInputs) -> ExtractResult:
    """As `run_extract`, in several tasks of a Ray cluster, which claim shards as processes on one machine do.

    Args:
        config: resolved; the output must be a folder that all nodes share, or a URL.
        opener: opens the teacher and the dataset in a task; must be importable there.
    """
    work = partial(_extract_opened, replace(config, engine="local", ray_tasks=None), opener)
    resource = "GPU" if config.device.startswith("cuda") else "CPU"
    with tqdm(desc="Ray tasks", unit="shard") as bar, cache_of(config) as store:
        watch = partial(_show_committed, bar, store)
        results = run_on_ray(work, resource=resource, num_tasks=config.ray_tasks, watch=watch)
    seconds = {stage: math.fsum(one.stage_seconds[stage] for one in results) for stage in results[0].stage_seconds}
    return replace(
        max(results, key=lambda result: len(result.estimates)),
        encoded_units=sum(result.encoded_units for result in results),
        seconds=max(result.seconds for result in results),
        stage_seconds=seconds,
    )


def _show_committed(bar: Any, store: Store) -> None:
    names = () if bar.disable else store.list("records")
    if PLAN_RECORD in names:
        writer = CacheWriter(store)
        bar.total = sum(writer.placement(modality).num_shards for modality in writer.plan.modalities)
        bar.n = len(committed_shards(names))
        bar.refresh()


def estimate_extraction(config: ExtractConfig) -> tuple[Estimate, ...]:
    """Return what an extraction would cost, whatever is in its place already; nothing is written.

    The teacher encodes two batches of each modality. Of many texts a sample is tokenised.

    Raises:
        ConfigError, DatasetError, WeightsUnavailable: as `run_extract`.
    """
    config = resolved(as_begun(config))
    teacher, dataset = open_inputs(config)
    sources = open_sources(config, teacher, dataset)
    estimates = estimates_of(config, sources, count_tokens(sources, forecast=True), trial=True)
    return (*estimates, *estimate_confidences(config, sources, dataset))


def extract(config: ExtractConfig, teacher: Teacher, dataset: Dataset) -> ExtractResult:
    """As `run_extract`, with a teacher and a dataset that are open already."""
    begun = time.perf_counter()
    sources = open_sources(config, teacher, dataset)
    identity = build_identity(config, teacher, dataset, sources)
    with cache_of(config) as store:
        store.require_place()
        plan = settle_plan(config, store, sources, identity)
        if config.dry_run:
            estimates = (*plan.estimates, *estimate_confidences(config, sources, dataset))
            return ExtractResult(path=store.location, dry_run=True, estimates=estimates, free_bytes=plan.free_bytes)
        writer = CacheWriter(store)
        encoded, stage_seconds = _encode_pending(config, writer, sources)
        with store.claim(FINALISE, wait=True):
            _finalise(writer)
            cache = open_cache(store.location, identity, disk_cache=config.disk_cache_config)
            confidences = _estimate_confidences(config, cache, dataset) if config.confidence else 0
            clear_work(store)
        complete = load_complete(store)
    seconds = time.perf_counter() - begun
    if encoded and store.folder is not None:
        record_extraction(store.folder, seconds=seconds, num_units=encoded, device=config.device)
    return ExtractResult(
        path=store.location,
        estimates=plan.estimates,
        free_bytes=plan.free_bytes,
        encoded_units=encoded,
        seconds=seconds,
        stage_seconds={str(stage): seconds for stage, seconds in stage_seconds.items()},
        quarantined=sum(map(len, complete.quarantined.values())),
        clipped=sum(complete.clipped.values()),
        confidences=confidences,
    )


@contextmanager
def cache_of(config: ExtractConfig) -> Iterator[Store]:
    """Open the place that a cache is written to."""
    store = open_store(location_of(config), config.disk_cache_config)
    try:
        yield store
    finally:
        store.close()


def _finalise(writer: CacheWriter) -> None:
    try:
        if not writer.is_complete():
            writer.finalise()
            files = load_complete(writer.store).files
            writer.store.vouch(writer.store.changed(files))
    except (CorruptCache, LeaseLost):
        # Another process that held the claim has completed the cache, and removed its work in progress since.
        if not writer.is_complete():
            raise


def _encode_pending(
    config: ExtractConfig, writer: CacheWriter, sources: Sequence[Source]
) -> tuple[int, dict[Stage, float]]:
    encoded = 0
    seconds: dict[Stage, float] = {"read": 0.0, "encode": 0.0, "write": 0.0}
    for source in sources:
        while not writer.is_complete() and (pending := writer.pending(source.modality)):
            count, spent = _encode_claimed(config, writer, source, pending)
            encoded += count
            seconds = {stage: seconds[stage] + spent[stage] for stage in seconds}
            if count == 0:
                # Other processes hold all that is left; should one die, its claim is free at the next look.
                time.sleep(_SECONDS_BETWEEN_LOOKS)
    return encoded, seconds


def _encode_claimed(
    config: ExtractConfig, writer: CacheWriter, source: Source, pending: Sequence[int]
) -> tuple[int, dict[Stage, float]]:
    """Encode those of the pending shards that this process can claim; returns their units and the time spent."""
    placement = writer.placement(source.modality)
    encoded = 0
    left = sum(len(placement.units_of(shard)) for shard in pending)
    progress = Progress(
        label=source.modality,
        total=placement.num_units,
        done=placement.num_units - left,
        file=config.progress_file,
    )
    behind = WriteBehind()
    with ExitStack() as stack:
        claims = stack.enter_context(ExitStack())
        stack.enter_context(progress)
        stack.callback(behind.close)
        readers = min(num_threads(config.num_workers), source.prepare_threads)
        pool = stack.enter_context(ThreadPoolExecutor(readers, thread_name_prefix="advl-read"))
        for shard in pending:
            held = claims.enter_context(ExitStack())
            ours = held.enter_context(writer.store.claim(shard_name(source.modality, shard)))
            if not ours or writer.is_committed(source.modality, shard):
                held.close()
                continue
            encode_shard(
                source,
                writer,
                shard,
                batch_size=config.batch_size,
                skip_unreadable=config.on_error == "skip",
                prepare_pool=pool,
                behind=behind,
                progress=progress,
            )
            behind.submit(held.close)
            encoded += len(placement.units_of(shard))
        with progress.stage("write"):
            behind.drain()
    return encoded, progress.seconds


def _estimate_confidences(config: ExtractConfig, cache: TeacherCache, dataset: Dataset) -> int:
    from advl_pipeline.confidence.estimate import load_or_estimate_confidence

    estimated: set[str] = set()
    for example_ids, seed in subsets_of(config, dataset):
        load_or_estimate_confidence(
            caches=[cache],
            dataset=dataset,
            example_ids=example_ids,
            estimator="probe",
            folds=config.folds,
            seed=seed,
            must_store=True,
        )
        estimated.update(example_ids)
    return len(estimated)
