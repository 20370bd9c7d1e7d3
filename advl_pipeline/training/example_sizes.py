"""Tokens of examples, which batches of a number of tokens are made by."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from advl_pipeline.datasets.interface import Dataset
from advl_pipeline.errors import ConfigError
from advl_pipeline.students.interface import Student
from advl_pipeline.students.text_student import TextStudent

CHUNK_SIZE = 256
"""Examples that are tokenised together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExampleSizes:
    """Text tokens of all candidates of each example as if as long as its longest, and its regions; int64."""

    text: npt.NDArray[np.int64]
    visual: npt.NDArray[np.int64]

    @property
    def total(self) -> npt.NDArray[np.int64]:
        """As UNITER counts: a picture's regions once, however many candidates see them (`data/vcr.py`)."""
        return self.text + self.visual


def measure_examples(student: Student, dataset: Dataset, indices: Sequence[int]) -> ExampleSizes:
    """Tokenise examples and count their regions.

    Raises:
        ConfigError: the student cannot say. DatasetError: a text or picture that it cannot take.
    """
    if not isinstance(student, TextStudent):
        raise ConfigError(
            f"{student.name} has no batches by tokens.",
            why="it does not count the tokens of an example before batches are made",
            next_command="--batch-size counts examples",
        )
    text, visual = [], []
    starts = range(0, len(indices), CHUNK_SIZE)
    for start in tqdm(starts, desc="count tokens", unit="chunk", leave=False, disable=not sys.stderr.isatty()):
        examples = [dataset[index] for index in indices[start : start + CHUNK_SIZE]]
        tensors, _ = student.collate_texts(examples)
        lengths = iter(tensors["token_mask_NL"].sum(1).tolist())
        for example in examples:
            longest = max(next(lengths) for _ in example.candidates)
            text.append(longest * len(example.candidates))
            visual.append(student.num_visual_of(example.image))
    return ExampleSizes(text=np.array(text, dtype=np.int64), visual=np.array(visual, dtype=np.int64))
