"""What phase 2 prepares without a model: photos decoded, pictures stored before, region features with two teachers.

Rates are per second of processor time, which other jobs on the machine leave alone; the wall clock is beside them.
Decoding, scaling, tokenising and copying leave Python's lock, so that workers add up until the cores are used.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lmdb
import msgpack
import numpy as np
from PIL import Image, ImageFilter

from advl_pipeline.cache.reader import open_cache
from advl_pipeline.compute import num_threads
from advl_pipeline.datasets.interface import Dataset
from advl_pipeline.datasets.pictures import read_square
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.datasets.words import fit_word_prior
from advl_pipeline.extraction.config import ExtractConfig, PrepareConfig, of_pictures
from advl_pipeline.extraction.run import run_extract
from advl_pipeline.prefetch import Prefetcher
from advl_pipeline.students.interface import Student
from advl_pipeline.students.picture_source import DecodedPictures
from advl_pipeline.students.pixel_student import PixelStudent
from advl_pipeline.students.registry import build_student
from advl_pipeline.training.batch_order import ExampleOrder
from advl_pipeline.training.batches import training_batches
from advl_pipeline.training.signals import SignalSource, cached_teacher
from advl_pipeline.training.stored_pictures import StoredPictures
from benchmarks.rows import Row

PHOTO = (1280, 720)
SIZE = 384
_SMALL = 64
BATCH = 64
GPU_STEP = 0.040
"""Seconds of a step whose model costs this machine nothing: what a GPU would take for a batch."""

_WORDS = "person car dog street window table behind holding looking green tall quickly before after because".split()


@dataclass(frozen=True, kw_only=True)
class Feed:
    """Examples prepared per second of processor time, and by the clock with one and with two workers."""

    per_core: float
    one_worker: float
    two_workers: float

    @property
    def two_cores(self) -> float:
        """Examples per second that two cores give which have nothing else to do."""
        return 2 * self.per_core


@dataclass(frozen=True, kw_only=True)
class FeedRates:
    """`decoding`: photos per second of processor time, nothing but decoding. `waits`: share of steps of 40 ms that
    64 questions of the stored pictures are waited for.
    """

    decoding: float
    photos: Feed
    stored: Feed
    regions: Feed
    tokens_per_question: float
    waits: float


def measure_feeding(folder: Path, quick: bool) -> list[Row]:
    """Measure all rows of this section."""
    found = measure_feed(folder, num_photos=64, num_examples=512 if quick else 2_048)
    small, large = feeding_memory(folder / "memory", num_pictures=128 if quick else 512)

    def said(feed: Feed, what: str) -> str:
        return (
            f"{feed.per_core:.0f} {what} per processor second; by the clock {feed.one_worker:.0f}/s with one worker, "
            f"{feed.two_workers:.0f}/s with two"
        )

    return [
        Row(
            name=f"feed: photos of {PHOTO[0]} x {PHOTO[1]} at {SIZE}, as a share of decoding",
            value=found.photos.per_core / found.decoding,
            goal=0.8,
            detail=f"{said(found.photos, 'photos')}; decoding {found.decoding:.0f} per processor second",
        ),
        Row(
            name="feed: stored pictures, against decoding",
            value=found.stored.per_core / found.decoding,
            goal=10.0,
            detail=said(found.stored, "pictures"),
        ),
        Row(name="feed: stored pictures/s, two cores", value=found.stored.two_cores, goal=1_500.0, detail="as above"),
        Row(
            name="feed: questions/s of 36 regions, two teachers with tokens, two cores",
            value=found.regions.two_cores,
            goal=1_000.0,
            detail=f"{said(found.regions, 'questions')}; {found.tokens_per_question:.0f} tokens a question",
        ),
        Row(
            name="feed: share of steps of 40 ms waiting for 64 questions",
            value=found.waits,
            goal=0.02,
            at_least=False,
            detail="of stored pictures, by the clock",
        ),
        Row(
            name="feed: memory at 10 x the data, ratio",
            value=large / small,
            goal=1.1,
            at_least=False,
            detail=f"{small / 2**20:.0f} and {large / 2**20:.0f} MiB",
        ),
    ]


def measure_feed(folder: Path, *, num_photos: int, num_examples: int) -> FeedRates:
    """Prepare batches of 64 questions in each of the three ways.

    Args:
        folder: for photos and caches.
        num_photos: of 1280 x 720 pixels.
        num_examples: that are prepared of each kind; photos come again, decoded anew.
    """
    rows = build_questions(folder, num_photos)
    short = open_dataset(str(rows["short"]), split="train")
    paths = [unit.path for unit in short.image_units()]
    decoding = _per_processor_second(lambda: [read_square(path, SIZE) for path in paths], len(paths))

    overrides: dict[str, Any] = {"tokenizer": "minilm-l6", "num_layers": 1, "image_size": SIZE}
    student = build_student("vilt", overrides=overrides)
    assert isinstance(student, PixelStudent)
    student.pictures = DecodedPictures(SIZE, kept_bytes=0)
    photos = _feed(short, student, None, num_examples=num_photos)
    stored_at = folder / "pictures"
    run_extract(of_pictures(PrepareConfig(dataset=str(rows["short"]), output=stored_at), SIZE))
    student.pictures = StoredPictures([open_cache(stored_at)], SIZE)
    stored = _feed(short, student, None, num_examples=num_examples)
    waits = _wait_share(short, student, num_steps=max(8, num_examples // BATCH))

    long = open_dataset(str(rows["long"]), split="train")
    overrides = {
        "tokenizer": "minilm-l6",
        "vocab_size": 30522,
        "num_layers": 1,
        "regions": folder / "regions" / "all",
    }
    regions = build_student("uniter-base", overrides=overrides)
    source = _two_teachers(folder, rows["long"], long)
    batch = regions.collate([long[index] for index in range(8)])
    return FeedRates(
        decoding=decoding,
        photos=photos,
        stored=stored,
        regions=_feed(long, regions, source, num_examples=num_examples),
        tokens_per_question=float(batch.token_mask_NL.sum()) / 8,
        waits=waits,
    )


def feeding_memory(folder: Path, *, num_pictures: int) -> tuple[int, int]:
    """Return anonymous memory in bytes that feeding 1x the data ten times takes at most, and 10x once.

    Small pictures are stored before, so that nothing but the amount of data differs.
    """
    found = []
    for factor in (1, 10):
        target = folder / f"{factor}x"
        rows = _small_pictures(target, num_pictures * factor)
        run_extract(of_pictures(PrepareConfig(dataset=str(rows), output=target / "stored"), _SMALL))
        context = multiprocessing.get_context("spawn")
        queue = context.Queue()
        worker = context.Process(target=_feed_and_report, args=(rows, num_pictures * 10 // BATCH, queue))
        worker.start()
        found.append(int(queue.get(timeout=600)))
        worker.join()
    return found[0], found[1]


def _feed_and_report(rows: Path, num_steps: int, queue: multiprocessing.Queue[int]) -> None:
    student = build_student("vilt", overrides={"tokenizer": "minilm-l6", "num_layers": 1, "image_size": _SMALL})
    assert isinstance(student, PixelStudent)
    student.pictures = StoredPictures([open_cache(rows.parent / "stored")], _SMALL)
    dataset = open_dataset(str(rows), split="train")
    batches = partial(_batches, dataset, student, None, num_steps=num_steps, num_workers=2)
    peak = 0
    with Prefetcher(batches) as items:
        for _ in items:
            peak = max(peak, anonymous_bytes())
    queue.put(peak)


def _small_pictures(folder: Path, count: int) -> Path:
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(count):
        pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        row = {"image": f"{number}.png", "split": "train", "text": _text(generator, 10), "label": "yes"}
        lines.append(json.dumps(row | ({"label": "no"} if number % 2 else {})) + "\n")
    rows = folder / "rows.jsonl"
    rows.write_text("".join(lines), encoding="utf-8")
    return rows


def _batches(
    dataset: Dataset, student: Student, source: SignalSource | None, *, num_steps: int, num_workers: int
) -> Iterator[Any]:
    indices = [index % len(dataset) for index in range(max(len(dataset), BATCH))]
    order = ExampleOrder(len(indices), batch_size=BATCH, accumulate=1, seed=0)
    return training_batches(
        dataset,
        indices,
        student,
        source,
        steps=range(num_steps),
        order=order,
        labelled=False,
        num_workers=num_workers,
    )


def _feed(dataset: Dataset, student: Student, source: SignalSource | None, *, num_examples: int) -> Feed:
    num_steps = max(4, num_examples // BATCH)
    for _ in _batches(dataset, student, source, num_steps=2, num_workers=1):
        pass

    def prepare(num_workers: int) -> Callable[[], object]:
        batches = partial(_batches, dataset, student, source, num_steps=num_steps, num_workers=num_workers)

        def all_of_them() -> None:
            with Prefetcher(batches) as items:
                deque(items, maxlen=0)

        return all_of_them

    count = num_steps * BATCH
    clock, processor = [], []
    for num_workers in (1, 2):
        began = time.perf_counter()
        processor.append(_per_processor_second(prepare(num_workers), count))
        clock.append(count / (time.perf_counter() - began))
    return Feed(per_core=max(processor), one_worker=clock[0], two_workers=clock[1])


def _wait_share(dataset: Dataset, student: Student, *, num_steps: int) -> float:
    batches = partial(_batches, dataset, student, None, num_steps=num_steps, num_workers=num_threads(None))
    with Prefetcher(batches) as items:
        for step, _ in enumerate(items):
            if step == 0:
                # The first batch is waited for whatever prepares it.
                began, waited = time.perf_counter(), items.seconds_waited
            time.sleep(GPU_STEP)
    return (items.seconds_waited - waited) / (time.perf_counter() - began)


def _per_processor_second(work: Callable[[], object], count: int) -> float:
    began = time.process_time()
    work()
    return count / (time.process_time() - began)


def _two_teachers(folder: Path, rows: Path, dataset: Dataset) -> SignalSource:
    caches = []
    for teacher in ("minilm-l6", "efficientnet-lite0"):
        output = folder / teacher
        run_extract(ExtractConfig(teacher=teacher, dataset=str(rows), output=output, confidence=False))
        caches.append(open_cache(output))
    texts = [candidate.text for index in range(len(dataset)) for candidate in dataset[index].candidates]
    return SignalSource([cached_teacher(cache) for cache in caches], prior=fit_word_prior(texts))


def build_questions(folder: Path, num_photos: int) -> dict[str, Path]:
    """Write photos, a question with one answer about each, and one with four long answers and region features."""
    generator, words = np.random.default_rng(0), np.random.default_rng(1)
    for name in ("photos", "regions"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict[str, Any]]] = {"short": [], "long": []}
    for number in range(num_photos):
        photo = folder / "photos" / f"{number}.jpg"
        if not photo.exists():
            _draw(generator).save(photo, quality=90)
        asked = {"image": f"photos/{number}.jpg", "split": "train"}
        rows["short"].append({**asked, "text": f"{_text(words, 10)}.", "label": "yes" if number % 2 else "no"})
        choices = [_text(words, 42) for _ in range(4)]
        rows["long"].append({**asked, "question": f"{_text(words, 10)}?", "choices": choices, "label": 0})
    _write_regions(folder / "regions" / "all", num_photos, generator)
    found = {}
    for name, content in rows.items():
        found[name] = folder / f"{name}.jsonl"
        found[name].write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return found


def _write_regions(folder: Path, num_photos: int, generator: np.random.Generator) -> None:
    """Write 36 regions a photo as UNITER's LMDB holds them: shares of the photo, and features in half precision."""
    folder.mkdir(parents=True, exist_ok=True)
    with lmdb.open(str(folder), map_size=1 << 32) as environment, environment.begin(write=True) as transaction:
        for number in range(num_photos):
            corners = np.sort(generator.uniform(0, 1, (36, 2, 2)), axis=1).reshape(36, 4)
            shares = np.concatenate([corners, corners[:, 2:] - corners[:, :2]], axis=1)
            features = generator.standard_normal((36, 2048))
            record = {
                name: {b"nd": True, b"type": "<f2", b"kind": b"", b"shape": values.shape, b"data": half.tobytes()}
                for name, values in (("norm_bb", shares), ("features", features))
                for half in [values.astype(np.float16)]
            }
            transaction.put(f"{number}.npz".encode(), msgpack.packb(record))


def _text(generator: np.random.Generator, num_words: int) -> str:
    return " ".join(generator.choice(_WORDS, num_words).tolist())


def _draw(generator: np.random.Generator) -> Image.Image:
    """Draw a picture that compresses as photos do: coarse shapes under fine grain."""
    coarse = Image.fromarray(generator.integers(0, 256, (18, 32, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize(PHOTO, Image.Resampling.BICUBIC), np.float32)
    pixels = np.clip(smooth + generator.normal(0, 12, (PHOTO[1], PHOTO[0], 1)), 0, 255)
    return Image.fromarray(pixels.astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.7))


def anonymous_bytes() -> int:
    """Return the memory of this process that no file backs."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))
