"""What an extraction will cost, and when a cache pays: bytes from the plan, time from two trial batches, room and
speed of the disk.

Where the teacher's weights are not at hand, the sizes that its card states tell all but the time.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from advl_pipeline.cache.commit_records import ModalityRecord
from advl_pipeline.cache.layout import Placement
from advl_pipeline.cache.writer import CachePlan, ModalityPlan, plan_cache
from advl_pipeline.confidence.estimators import IMAGE_DIM, SKETCH_DIM, TEXT_DIM
from advl_pipeline.confidence.probe import Kind, forecast_seconds
from advl_pipeline.datasets.records import MULTIPLE_CHOICE_TASKS, Dataset, head_name
from advl_pipeline.datasets.words import word_spans
from advl_pipeline.errors import StorageError
from advl_pipeline.extraction.config import ExtractConfig
from advl_pipeline.extraction.encode import plan_batches
from advl_pipeline.extraction.sources import (
    SizedUnits,
    Source,
    TokenCounts,
    image_tokens_of,
    repeated,
    units_to_encode,
)
from advl_pipeline.teachers.registry import TeacherCard, card_of

_CONFIDENCE_BYTES = 32
"""Of an example in a set: its id and two numbers."""

_SPARE_BYTES = 64_000_000
"""Left free beside a cache: its metadata, and work of the system that a full disk would stop."""

_PIECES_PER_WORD = 1.15
"""Word pieces of a word or mark of plain English, about."""

FORECAST_TEXTS = 20_000
"""Texts that a forecast tokenises; for more of them it knows rows and bytes within an interval."""

_WORDED_TEXTS = 2_000

_SAMPLED_EXAMPLES = 100
"""Whose texts are counted, to learn how many an epoch reads."""

_TRIED_BYTES = 32_000_000
"""Written and read again to learn the speed of a disk."""

_SUSTAINED_BYTES = 1_000_000_000
"""A cache of more is written for so long that a drive's own cache may be full before it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """Cost of one modality, or of confidences, whose units are examples; `seconds` is None without a trial.

    Token rows were counted in `num_counted` of the units. With fewer than all of them, rows and bytes are estimates:
    `margin` is half the width of their 95 % interval, as a share. Where none were counted, for want of the teacher's
    tokenizer, the words of the texts tell them, and `margin` is None.
    """

    modality: str
    num_units: int
    num_counted: int
    margin: float | None
    num_token_rows: int
    num_shards: int
    num_bytes: int
    seconds: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class DiskSpeed:
    """Bytes per second."""

    reading: float
    writing: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Payback:
    """When a cache is cheaper than its teacher in every step; all times are in seconds.

    `is_burst`: the cache is so much larger than what was written to learn the speed of the disk that a drive may
    take that much in its own cache, and be a fraction as fast afterwards.

    Encoding and writing the cache takes `once`. An epoch then spends `cached` on reading it at `bytes_per_second`,
    where it would spend `live` on the teacher. `epochs`, over all student runs, is how many it takes until the cache
    is cheaper; None where it never is.
    """

    once: float
    live: float
    cached: float
    bytes_per_second: float
    epochs: int | None
    is_burst: bool = False


def plan_sources(
    config: ExtractConfig,
    sources: Sequence[Source | SizedUnits],
    *,
    identity: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    max_file_bytes: int | None = None,
    at_most: int | None = None,
) -> tuple[dict[str, TokenCounts], CachePlan]:
    """Count the tokens of all units, or of a sample of `at_most` texts, and place the units.

    Args:
        identity, provenance: of a plan that is to be written.
        max_file_bytes: the largest file that the store takes.

    Raises:
        ConfigError: shards that are too large.
    """
    counts, modalities, is_selected = {}, {}, config.select_texts is not None
    for source in sources:
        unit_ids_N16, is_text = source.unit_ids(), source.modality == "text"
        with tqdm(total=len(unit_ids_N16), desc=f"{source.modality}: counting tokens", unit="unit") as bar:
            counts[source.modality] = source.count_tokens(progress=bar.update, at_most=at_most)
        shape = ModalityRecord(
            num_units=len(unit_ids_N16),
            global_dim=source.global_dim,
            token_dim=source.token_dim,
            spans=is_text,
            kept=is_text and is_selected,
            regions=source.has_regions,
        )
        modalities[source.modality] = ModalityPlan(
            shape=shape, unit_ids_N16=unit_ids_N16, lengths_N=counts[source.modality].lengths_N
        )
    plan = plan_cache(
        identity=identity or {},
        provenance=provenance or {},
        stored_dtype=config.stored_dtype,
        shard_rows=config.shard_rows,
        modalities=modalities,
        max_file_bytes=max_file_bytes,
    )
    return counts, plan


def estimates_of(
    counts: Mapping[str, TokenCounts], plan: CachePlan, seconds: Mapping[str, float]
) -> tuple[Estimate, ...]:
    """Return the cost of each modality of a plan, with the time where it is known."""
    return tuple(
        Estimate(
            modality=modality,
            num_units=placement.num_units,
            num_counted=counts[modality].num_counted,
            margin=counts[modality].margin,
            num_token_rows=int(placement.lengths_N.sum()),
            num_shards=placement.num_shards,
            num_bytes=plan.num_bytes(modality),
            seconds=seconds.get(modality),
        )
        for modality, placement in plan.placements.items()
    )


def forecast(
    config: ExtractConfig, sources: Sequence[Source], *, max_file_bytes: int | None = None
) -> tuple[Estimate, ...]:
    """Return what a cache will take, its time by a trial; of many texts a sample is tokenised, nothing is written.

    Raises:
        ConfigError: as `plan_sources`.
    """
    counts, plan = plan_sources(config, sources, max_file_bytes=max_file_bytes, at_most=FORECAST_TEXTS)
    trials = {source.modality: _trial_seconds(config, source, plan.placements[source.modality]) for source in sources}
    return estimates_of(counts, plan, trials)


def estimate_confidences(config: ExtractConfig, modalities: Sequence[str], dataset: Dataset) -> tuple[Estimate, ...]:
    """Return the cost of the confidences that follow on encoding; nothing where none are asked for or possible.

    Args:
        modalities: those to extract, each of which gets heads of its own.
    """
    if not config.confidence or not len(dataset):
        return ()
    first = dataset[0]
    if first.label is None and not first.soft_label:
        return ()
    choice = first.task in MULTIPLE_CHOICE_TASKS
    kind: Kind = "choice" if choice else "soft-labels" if head_name(first.task) == "vqa" else "classes"
    seconds = sum(
        forecast_seconds(
            kind,
            num_examples=len(dataset),
            num_outputs=len(first.candidates) if choice else len(dataset.label_names(first.task)),
            num_features=TEXT_DIM if modality == "text" else 3 * (IMAGE_DIM + SKETCH_DIM),
            folds=config.folds,
        )
        for modality in modalities
    )
    return (
        Estimate(
            modality="confidence",
            num_units=len(dataset),
            num_counted=len(dataset),
            margin=0.0,
            num_token_rows=0,
            num_shards=0,
            num_bytes=len(config.seed) * len(modalities) * len(dataset) * _CONFIDENCE_BYTES,
            seconds=len(config.seed) * seconds,
        ),
    )


def payback(estimates: Sequence[Estimate], uses: Mapping[str, int], disk: DiskSpeed) -> Payback:
    """Return when a cache pays.

    Args:
        estimates: of modalities, with their seconds; those that `uses` does not name are passed over.
        uses: modality -> how many of its units the examples of an epoch have, repeated ones counted: a teacher in
            every step would encode so many.
        disk: of the cache.
    """
    used = [(item, uses[item.modality] / item.num_units) for item in estimates if item.modality in uses]
    once = sum((item.seconds or 0.0) + item.num_bytes / disk.writing for item, _ in used)
    live = sum((item.seconds or 0.0) * often for item, often in used)
    cached = sum(item.num_bytes * often for item, often in used) / disk.reading
    epochs = math.floor(once / (live - cached)) + 1 if live > cached else None
    return Payback(
        once=once,
        live=live,
        cached=cached,
        bytes_per_second=disk.reading,
        epochs=epochs,
        is_burst=sum(item.num_bytes for item, _ in used) > _SUSTAINED_BYTES,
    )


def uses_per_epoch(dataset: Dataset) -> dict[str, int]:
    """Return modality -> how many of its units all examples have, repeated ones counted; of texts about."""
    if not len(dataset):
        return {"image": len(dataset.image_units()), "text": 0}
    places = np.linspace(0, len(dataset) - 1, min(len(dataset), _SAMPLED_EXAMPLES)).astype(int)
    texts = np.mean([len(dataset[place].candidates) for place in places.tolist()])
    return {"image": len(dataset), "text": round(len(dataset) * float(texts))}


def measure_disk(root: Path) -> DiskSpeed | None:
    """Write and read a file without a name where a cache is to lie; None where nothing can be written."""
    content = os.urandom(_TRIED_BYTES)
    with suppress(OSError), tempfile.TemporaryFile(dir=_existing(root)) as file:
        begin = time.perf_counter()
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        written = time.perf_counter()
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        before = time.perf_counter()
        file.read()
        return DiskSpeed(
            reading=_TRIED_BYTES / (time.perf_counter() - before), writing=_TRIED_BYTES / (written - begin)
        )
    return None


def require_room(root: Path, num_bytes: int) -> int:
    """Return the free bytes where the cache goes; raises `StorageError` when it would not fit."""
    free = shutil.disk_usage(_existing(root)).free
    if num_bytes + _SPARE_BYTES > free:
        raise StorageError(
            "There is not enough room for the cache.",
            where=str(root),
            why=f"about {num_bytes / 1e6:.1f} MB are needed and {_SPARE_BYTES / 1e6:.0f} MB are to stay free, "
            f"{free / 1e6:.1f} MB are free",
            next_command="make room, or give another --output",
        )
    return free


def _existing(folder: Path) -> Path:
    """Return the nearest folder that is there."""
    while not folder.exists():
        folder = folder.parent
    return folder


def _trial_seconds(config: ExtractConfig, source: Source, placement: Placement) -> float:
    """Return about how long encoding a modality takes: two batches of middling length tell the speed."""
    batches = [
        batch
        for shard in range(placement.num_shards)
        for batch in plan_batches(placement.units_of(shard), placement.lengths_N, batch_size=config.units_per_pass)
    ]
    rates = []
    for batch in (batches[len(batches) // 3], batches[2 * len(batches) // 3]):
        prepared = source.prepare(batch, skip_unreadable=True).prepared
        if not prepared:
            continue
        begin = time.perf_counter()
        source.tower.encode(prepared).on_cpu()
        rates.append((time.perf_counter() - begin) / len(prepared))
    # The first forward pass also pays for warming up; the second tells more.
    return rates[-1] * placement.num_units if rates else 0.0


def card_with_sizes(teacher: str) -> TeacherCard | None:
    """Return the card that states the sizes of a teacher's features; None where there is none.

    Args:
        teacher: any name that opens one; a control with random weights has the sizes of what it is a control of.
    """
    card = card_of(teacher.removeprefix("random:").partition("@")[0])
    return card if card is not None and card.states_sizes else None


def estimates_by_card(config: ExtractConfig, card: TeacherCard, dataset: Dataset) -> tuple[Estimate, ...]:
    """Return the cost of each modality but for its time. Rows of texts are told by their words.

    Args:
        card: as `card_with_sizes` returns it.
        dataset: what is to be extracted.

    Raises:
        ConfigError, DatasetError: as `units_to_encode`.
    """
    pictures, texts = units_to_encode(config, dataset, teacher=config.teacher, towers=card.modalities)
    sources = []
    if pictures:
        kind = image_tokens_of(config, dataset)
        cells = min(card.grid_shape[0], config.grid_side) * min(card.grid_shape[1], config.grid_side)
        rows = {"grid": cells, "none": 0}
        lengths_N = np.array([rows.get(kind, len(unit.boxes_R4)) for unit in pictures], np.int32)
        counts = TokenCounts(lengths_N=lengths_N, num_counted=len(pictures))
        token_dim = None if kind == "none" else card.grid_dim
        sources.append(SizedUnits(modality="image", global_dim=card.image_dim, token_dim=token_dim, counts=counts))
    if texts:
        drawn = np.random.default_rng(0).choice(len(texts), min(len(texts), _WORDED_TEXTS), replace=False)
        lengths = [_about_num_pieces(texts[place].text, card, config) for place in np.sort(drawn).tolist()]
        worded = repeated(np.array(lengths, np.int32), len(texts)).lengths_N
        counts = TokenCounts(lengths_N=worded, num_counted=0, margin=None)
        sources.append(SizedUnits(modality="text", global_dim=card.text_dim, token_dim=card.token_dim, counts=counts))
    return estimates_of(*plan_sources(config, sources), {})


def _about_num_pieces(text: str, card: TeacherCard, config: ExtractConfig) -> int:
    pieces = min(len(word_spans(text)) * _PIECES_PER_WORD, card.max_length or float("inf"))
    return max(1, round(pieces * (config.select_texts or 1.0)))
