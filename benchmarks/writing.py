"""Extraction against the bare forward passes on the same batches, and against the loop that people write first."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from advl_pipeline.cache.ragged import place
from advl_pipeline.configuration import build_config
from advl_pipeline.datasets.records import Example, ImageUnit, Task, TextUnit, text_unit
from advl_pipeline.extraction.config import ExtractConfig
from advl_pipeline.extraction.encode import plan_batches
from advl_pipeline.extraction.run import extract
from advl_pipeline.teachers.interface import PreparedUnit, Teacher

_BATCH_SIZE = 32
_SHARD_ROWS = 32768
_MEAN_WORDS = {"question": 7, "answer": 8, "rationale": 16}
_WORDS = (
    "why is person1 looking at the person2 because she wants to leave a party before it gets too late and he is "
    "worried about what will happen next in this small room with many old books on their shelves near window"
).split()


@dataclass(frozen=True, kw_only=True)
class WriteRates:
    """Texts per second: unique ones of the bare forwards and of the extraction; all of the dataset's, of which the
    extraction encodes each once, of the extraction and of the naive loop.

    Medians over rounds; `share_of_bare` and `against_naive` are medians of the rounds' ratios.
    """

    bare: float
    extract_unique: float
    extract: float
    naive: float
    share_of_bare: float
    against_naive: float


class VcrLikeTexts:
    """Candidates of VCR's two tasks, question by question, with lengths spread around VCR's means.

    Of ten questions, three occur again with the same four answers.
    """

    name, identity_name, split, text_style = "vcr-like", "vcr-like", "train", "plain"
    tasks: tuple[Task, ...] = ("vcr-q2a", "vcr-qa2r")

    def __init__(self, num_texts: int) -> None:
        generator = np.random.default_rng(0)
        self.in_dataset_order: list[TextUnit] = []
        while len(self.in_dataset_order) < num_texts:
            question, right = (_sentence(generator, part) for part in ("question", "answer"))
            answers = [right, *(_sentence(generator, "answer") for _ in range(3))]
            answered = [text_unit(f"{question} {answer}") for answer in answers]
            reasons = [text_unit(f"{question} {right} {_sentence(generator, 'rationale')}") for _ in range(4)]
            self.in_dataset_order += [*answered, *reasons]
            if generator.random() < 0.3:
                self.in_dataset_order += answered
        self._unique = list({unit.unit_id: unit for unit in self.in_dataset_order}.values())

    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: int) -> Example:
        raise IndexError(index)

    @property
    def example_ids(self) -> Sequence[str]:
        return []

    def label_names(self, task: Task) -> tuple[str, ...]:
        del task
        return ()

    def content_digest(self) -> str:
        return str(len(self.in_dataset_order))

    def image_units(self) -> Sequence[ImageUnit]:
        return []

    def text_units(self) -> Sequence[TextUnit]:
        return self._unique


def _sentence(generator: np.random.Generator, part: str) -> str:
    length = int(np.clip(generator.gamma(5.0, _MEAN_WORDS[part] / 5.0), 2, 50))
    return " ".join(generator.choice(_WORDS, length).tolist())


def measure_writing(teacher: Teacher, folder: Path, *, num_texts: int, rounds: int = 5) -> WriteRates:
    """Run the three ways over the same texts, in turn, several times; returns medians.

    The bare forwards run on batches made ready before, composed as the extraction composes them.
    """
    dataset = VcrLikeTexts(num_texts)
    tower: Any = teacher.text
    prepared = tower.prepare(dataset.text_units())
    lengths_N = np.array([item.num_tokens for item in prepared], np.int32)
    placement = place(lengths_N, shard_rows=_SHARD_ROWS)
    batches = [
        [prepared[unit] for unit in batch]
        for shard in range(placement.num_shards)
        for batch in plan_batches(placement.units_of(shard), lengths_N, batch_size=_BATCH_SIZE)
    ]
    tower.encode(batches[0])
    seconds = [
        (
            _bare_seconds(tower, batches),
            _extract_seconds(teacher, dataset, folder),
            _naive_seconds(tower, dataset, folder),
        )
        for _ in range(rounds)
    ]
    bare, extracted, naive = (statistics.median(column) for column in zip(*seconds, strict=True))
    num_unique, num_all = len(dataset.text_units()), len(dataset.in_dataset_order)
    return WriteRates(
        bare=num_unique / bare,
        extract_unique=num_unique / extracted,
        extract=num_all / extracted,
        naive=num_all / naive,
        share_of_bare=statistics.median(of_bare / of_ours for of_bare, of_ours, _ in seconds),
        against_naive=statistics.median(of_naive / of_ours for _, of_ours, of_naive in seconds),
    )


def _bare_seconds(tower: Any, batches: Sequence[Sequence[PreparedUnit]]) -> float:
    begin = time.perf_counter()
    for batch in batches:
        tower.encode(batch)
    return time.perf_counter() - begin


def _extract_seconds(teacher: Teacher, dataset: VcrLikeTexts, folder: Path) -> float:
    target = folder / "extract"
    shutil.rmtree(target, ignore_errors=True)
    settings = {
        "teacher": "bench",
        "dataset": dataset.name,
        "output": target,
        "batch_size": _BATCH_SIZE,
        "shard_rows": _SHARD_ROWS,
        "confidence": False,
        "modality": "text",
    }
    result = extract(build_config(ExtractConfig, settings), teacher, dataset)
    return sum(result.stage_seconds.values())


def _naive_seconds(tower: Any, dataset: VcrLikeTexts, folder: Path) -> float:
    target = folder / "naive"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    begin = time.perf_counter()
    for first in range(0, len(dataset.in_dataset_order), _BATCH_SIZE):
        encoded = tower.encode(tower.prepare(dataset.in_dataset_order[first : first + _BATCH_SIZE]))
        rows = torch.nn.utils.rnn.pad_sequence(list(encoded.token_values), batch_first=True)
        torch.save({"tokens": rows, "global": encoded.global_ND}, target / f"{first}.pt")
    return time.perf_counter() - begin
