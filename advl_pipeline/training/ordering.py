"""The order in which a phase takes its examples, as the run's settings say: by number, or by their tokens."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from advl_pipeline.datasets.records import Dataset
from advl_pipeline.errors import ConfigError
from advl_pipeline.students.interface import Student
from advl_pipeline.students.text_student import TextStudent
from advl_pipeline.training.batch_order import BatchOrder, ExampleOrder, TokenOrder
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.inputs import Inputs
from advl_pipeline.training.settings import TrainingSettings


def order_examples(
    settings: TrainingSettings,
    student: Student,
    dataset: Dataset,
    indices: Sequence[int],
    *,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
) -> tuple[Sequence[int], BatchOrder]:
    """Return the indices that are trained on and the order of the positions in them.

    Batches of tokens leave out examples whose text is over the recipe's bound, as UNITER does in training.

    Raises:
        ConfigError: the student cannot count tokens, nothing is left, or a step has fewer examples than processes.
    """
    if settings.batch_unit == "examples":
        if settings.batch_size < world_size:
            raise ConfigError(
                "A step has fewer examples than there are processes.",
                why=f"{settings.batch_size} examples, {world_size} processes",
                next_command=f"--batch-size {world_size} or more, or fewer processes",
            )
        return indices, ExampleOrder(
            len(indices),
            batch_size=settings.batch_size,
            accumulate=settings.accumulate,
            seed=seed,
            rank=rank,
            world_size=world_size,
        )
    sizes = measure_examples(student, dataset, indices)
    bound = settings.max_text_tokens
    kept = [row for row, text in enumerate(sizes.text.tolist()) if not bound or text <= bound]
    if not kept:
        raise ConfigError(
            "Every text is longer than the recipe trains on.",
            why=f"at most {bound} tokens, the shortest has {int(sizes.text.min())}",
            next_command="count batches in examples: --batch-size N",
        )
    order = TokenOrder(
        sizes.total[kept].tolist(),
        max_tokens=settings.batch_size,
        accumulate=settings.accumulate,
        seed=seed,
        rank=rank,
        world_size=world_size,
    )
    return [indices[row] for row in kept], order


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


def order_inputs(config: FinetuneConfig, inputs: Inputs, *, rank: int, world_size: int) -> ExampleOrder:
    """Return the order in which the adapt step visits its inputs."""
    texts_each = len(inputs.adapt_dataset[inputs.adapt[0]].candidates)
    return ExampleOrder(
        len(inputs.adapt),
        batch_size=max(2 * world_size, round(config.adapt.adapt_texts / texts_each)),
        accumulate=1,
        seed=config.seed,
        rank=rank,
        world_size=world_size,
    )


def inputs_visited(config: FinetuneConfig, inputs: Inputs, *, num_steps: int, world_size: int) -> list[int]:
    """Return the positions of the inputs that all processes together visit in the adapt step, each once."""
    orders = [order_inputs(config, inputs, rank=rank, world_size=world_size) for rank in range(world_size)]
    visits = (order.micro_batches(step) for order in orders for step in range(num_steps))
    return [inputs.adapt[row] for row in sorted({int(row) for batches in visits for rows in batches for row in rows})]
