"""Data preparation of phase 2 without a model: decoded photos, stored pictures, cached regions with two teachers.

Rates are per second of processor time, which other jobs do not affect, and per second of wall-clock time.
Decoding, scaling, tokenising and copying release the GIL, so throughput scales with workers up to the core count.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from advl_pipeline.base.compute import num_threads
from advl_pipeline.base.prefetch import Prefetcher
from advl_pipeline.cache.reader import open_cache
from advl_pipeline.datasets.pictures import read_square
from advl_pipeline.datasets.records import Dataset
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.datasets.words import fit_word_prior
from advl_pipeline.extraction.config import ExtractConfig, ImportConfig, PrepareConfig, of_pictures
from advl_pipeline.extraction.prepare import prepare_extract
from advl_pipeline.extraction.run import run_extract, run_import
from advl_pipeline.stored_inputs.pictures import StoredPictures
from advl_pipeline.stored_inputs.regions import use_region_caches
from advl_pipeline.students.interface import Student
from advl_pipeline.students.picture_source import DecodedPictures
from advl_pipeline.students.pixel_student import PixelStudent
from advl_pipeline.students.registry import build_student
from advl_pipeline.training.batch_order import ExampleOrder
from advl_pipeline.training.batches import training_batches
from advl_pipeline.training.signals.stored_signals import SignalSource
from advl_pipeline.training.signals.teacher_features import cached_teacher
from benchmarks.made_up import sentence, write_photos, write_rows
from benchmarks.rows import Row

PHOTO = (1280, 720)
SIZE = 384
BATCH = 64
NUM_PHOTOS = 64
GPU_STEP = 0.040
"""Seconds of a step whose model uses no CPU: the time of a GPU for a batch."""


def measure_feeding(folder: Path, quick: bool) -> list[Row]:
    """Measure all rows of this section."""
    num_examples = 512 if quick else 2_048
    short_rows, long_rows = write_questions(folder)
    short, long = (open_dataset(str(rows), split="train") for rows in (short_rows, long_rows))
    units = short.image_units()
    decoding = _per_processor_second(lambda: [read_square(unit, SIZE) for unit in units], len(units))

    overrides: dict[str, Any] = {"tokenizer": "minilm-l6", "num_layers": 1}
    student = build_student("vilt", overrides={**overrides, "image_size": SIZE})
    assert isinstance(student, PixelStudent)
    student.pictures = DecodedPictures(SIZE, kept_bytes=0)
    photos, of_photos = _feed(short, student, None, num_examples=NUM_PHOTOS)
    run_extract(
        prepare_extract(of_pictures(PrepareConfig(dataset=str(short_rows), output=folder / "pictures"), SIZE))
    )
    student.pictures = StoredPictures([open_cache(folder / "pictures")], SIZE)
    stored, of_stored = _feed(short, student, None, num_examples=num_examples)
    waits = _wait_share(short, student, num_steps=max(8, num_examples // BATCH))

    regions = build_student("uniter-base", overrides={**overrides, "vocab_size": 30522})
    use_region_caches(regions, [open_cache(import_regions(folder, long_rows))])
    caches = []
    for teacher in ("minilm-l6", "efficientnet-lite0"):
        output = folder / teacher
        run_extract(
            prepare_extract(ExtractConfig(teacher=teacher, dataset=str(long_rows), output=output, confidence="none"))
        )
        caches.append(cached_teacher(open_cache(output)))
    texts = [candidate.text for index in range(len(long)) for candidate in long[index].candidates]
    source = SignalSource(caches, prior=fit_word_prior(texts))
    tokens = float(regions.collate([long[index] for index in range(8)]).token_mask_NL.sum()) / 8
    questions, of_questions = _feed(long, regions, source, num_examples=num_examples)
    share, regions_name = "as a share of decoding", "questions/s of 36 regions, two teachers with tokens, two cores"
    of_photos += f"; decoding {decoding:.0f} per processor second"
    of_questions += f"; {tokens:.0f} tokens a question"
    waiting = ("feed: share of steps of 40 ms waiting for 64 questions", waits, 0.02)
    return [
        Row(f"feed: photos of {PHOTO[0]} x {PHOTO[1]} at {SIZE}, {share}", photos / decoding, 0.8, detail=of_photos),
        Row("feed: stored pictures/s, two cores", 2 * stored, 1_500.0, detail=f"pictures: {of_stored}"),
        Row(f"feed: {regions_name}", 2 * questions, 1_000.0, detail=of_questions),
        Row(*waiting, at_least=False, detail="of stored pictures, by the clock"),
    ]


def _batches(
    dataset: Dataset, student: Student, source: SignalSource | None, *, num_steps: int, num_workers: int
) -> Iterator[Any]:
    indices = [index % len(dataset) for index in range(max(len(dataset), BATCH))]
    order = ExampleOrder(len(indices), batch_size=BATCH, accumulate=1, seed=0)
    options: dict[str, Any] = {"order": order, "labelled": False, "num_workers": num_workers}
    return training_batches(dataset, indices, student, source, steps=range(num_steps), **options)


def _feed(dataset: Dataset, student: Student, source: SignalSource | None, *, num_examples: int) -> tuple[float, str]:
    """Return the examples prepared per second of processor time, and per second of wall-clock time."""
    deque(_batches(dataset, student, source, num_steps=2, num_workers=1), maxlen=0)
    num_steps = max(4, num_examples // BATCH)
    clock, processor = [], []
    for num_workers in (1, 2):
        batches = partial(_batches, dataset, student, source, num_steps=num_steps, num_workers=num_workers)

        def prepare(batches: Callable[[], Iterator[Any]] = batches) -> None:
            with Prefetcher(batches) as items:
                deque(items, maxlen=0)

        began = time.perf_counter()
        processor.append(_per_processor_second(prepare, num_steps * BATCH))
        clock.append(num_steps * BATCH / (time.perf_counter() - began))
    return max(processor), (
        f"{max(processor):.0f} per processor second; by the clock {clock[0]:.0f}/s with one worker, "
        f"{clock[1]:.0f}/s with two"
    )


def _wait_share(dataset: Dataset, student: Student, *, num_steps: int) -> float:
    batches = partial(_batches, dataset, student, None, num_steps=num_steps, num_workers=num_threads(None))
    with Prefetcher(batches) as items:
        for step, _ in enumerate(items):
            if step == 0:
                # Every kind of preparation waits for the first batch.
                began, waited = time.perf_counter(), items.seconds_waited
            time.sleep(GPU_STEP)
    return (items.seconds_waited - waited) / (time.perf_counter() - began)


def _per_processor_second(work: Callable[[], object], count: int) -> float:
    began = time.process_time()
    work()
    return count / (time.process_time() - began)


def write_questions(folder: Path, num_photos: int = NUM_PHOTOS) -> tuple[Path, Path]:
    """Write photos, a question with one answer about each, and one with four long answers."""
    words = np.random.default_rng(1)
    short, long = [], []
    for number, photo in enumerate(write_photos(folder / "photos", num_photos, PHOTO)):
        short.append({"image": photo, "text": f"{sentence(words, 10)}.", "label": ("yes", "no")[number % 2]})
        choices = [sentence(words, 40) for _ in range(4)]
        long.append({"image": photo, "question": f"{sentence(words, 10)}?", "choices": choices, "label": 0})
    return write_rows(folder / "short.jsonl", short), write_rows(folder / "long.jsonl", long)


def import_regions(folder: Path, rows: Path, num_photos: int = NUM_PHOTOS) -> Path:
    """Import 36 regions per photo in UNITER's format: box coordinates as fractions, features in half precision."""
    files, output = folder / "regions", folder / "regions-cache"
    files.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for number in range(num_photos):
        corners = np.sort(generator.uniform(0, 1, (36, 2, 2)), axis=1).reshape(36, 4)
        shares = np.concatenate([corners, corners[:, 2:] - corners[:, :2]], axis=1).astype(np.float16)
        features = generator.standard_normal((36, 2048)).astype(np.float16)
        np.savez(files / f"{number}.npz", norm_bb=shares, features=features)
    run_import(ImportConfig(source=files, name="detector", dataset=str(rows), output=output))
    return output
