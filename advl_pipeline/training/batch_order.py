"""The examples of each optimiser step: pure functions of the step, so that training can resume at any step.

Both orders concatenate epochs, each with every example exactly once. Batches by number of tokens group sequences of
similar length, which reduces padding. They behave like UNITER's (ChenRocks/UNITER 1dbfa62, `data/sampler.py`):
shuffle, cut into buckets, sort each bucket by length, fill batches up to a number of padded tokens, shuffle the
batches.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from advl_pipeline.base.errors import ConfigError
from advl_pipeline.datasets.records import Dataset
from advl_pipeline.students.interface import Student
from advl_pipeline.students.text_student import TextStudent
from advl_pipeline.training.inputs import Inputs, adapt_batch_size
from advl_pipeline.training.resolved import Run

BUCKET_SIZE = 8192
"""Number of examples that are sorted by length together: UNITER's `BUCKET_SIZE` (`utils/const.py`)."""

GROUP_SIZE = 8
"""Number of examples added to a batch at once, as in UNITER's sampler; halved until a group of the longest fits."""

BY_EXAMPLES = "--batch-size, which counts examples and not tokens"

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ExampleOrder:
    """Batches with a fixed number of examples.

    Args:
        num_examples: total number of examples.
        batch_size: examples per optimiser step over all ranks.
        accumulate: micro-batches per step and rank.
    """

    num_examples: int
    _: KW_ONLY
    batch_size: int
    accumulate: int
    seed: int
    rank: int = 0
    world_size: int = 1

    def micro_batches(self, step: int) -> list[Positions]:
        """Return the positions of this rank's examples by micro-batch; each example belongs to exactly one rank.

        A micro-batch has the same examples over all ranks, whatever their number, and all ranks get a part of it.
        """
        positions = positions_of_step(self.num_examples, step=step, batch_size=self.batch_size, seed=self.seed)
        num_parts = max(1, min(self.accumulate, len(positions) // self.world_size))
        parts = np.array_split(positions, num_parts)
        shares = [np.array_split(part, self.world_size)[self.rank] for part in parts]
        return [share for share in shares if len(share)]


@dataclass
class TokenOrder:
    """Batches with a bounded number of padded tokens, of examples with similar length.

    Args:
        sizes: tokens of each example.
        max_tokens: bound for one micro-batch: its longest example times the number of its examples.
        accumulate: micro-batches per optimiser step over all ranks; never more than an epoch has.

    Raises:
        ConfigError: a single example exceeds the bound, or there are fewer micro-batches than processes.
    """

    sizes: Sequence[int]
    _: KW_ONLY
    max_tokens: int
    accumulate: int
    seed: int
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        self._group = GROUP_SIZE
        while self._group > 1 and self._group * max(self.sizes) > self.max_tokens:
            self._group //= 2
        self._epochs: list[list[list[int]]] = []
        num_batches = len(self._epoch(0))
        self.accumulate = max(self.world_size, min(self.accumulate, num_batches))
        if num_batches < self.world_size:
            raise ConfigError(
                "There are fewer micro-batches than processes.",
                why=f"{len(self.sizes)} examples make {num_batches} micro-batches of {self.max_tokens} tokens",
                next_command=BY_EXAMPLES,
            )

    def micro_batches(self, step: int) -> list[Positions]:
        """Return the positions of this rank's examples by micro-batch."""
        first = step * self.accumulate
        micro_batches: list[Positions] = []
        epoch = passed = 0
        while len(micro_batches) < self.accumulate:
            batches = self._epoch(epoch)
            start = first + len(micro_batches) - passed
            if start < len(batches):
                wanted = self.accumulate - len(micro_batches)
                micro_batches += [np.array(batch, dtype=np.int64) for batch in batches[start : start + wanted]]
            else:
                passed += len(batches)
                epoch += 1
        return micro_batches[self.rank :: self.world_size]

    def _epoch(self, epoch: int) -> list[list[int]]:
        while len(self._epochs) <= epoch:
            self._epochs.append(
                token_batches(
                    self.sizes,
                    max_tokens=self.max_tokens,
                    bucket_size=BUCKET_SIZE,
                    seed=self.seed * 1_000_003 + len(self._epochs),
                    multiple=self._group,
                )
            )
        return self._epochs[epoch]


BatchOrder = ExampleOrder | TokenOrder
"""An order that gives the micro-batches of an optimiser step."""


def epoch_order(num_items: int, *, seed: int, epoch: int) -> Positions:
    """Return the permutation of range(num_items) for epoch number `epoch`."""
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch])))
    return generator.permutation(num_items).astype(np.int64)


def positions_of_step(num_examples: int, *, step: int, batch_size: int, seed: int) -> Positions:
    """Return the positions of the examples of optimiser step `step`.

    The stream concatenates epochs, each a permutation of all examples, so every example occurs exactly
    once per epoch; a batch may span two epochs.
    """
    first = step * batch_size
    epochs = range(first // num_examples, (first + batch_size - 1) // num_examples + 1)
    stream = np.concatenate([epoch_order(num_examples, seed=seed, epoch=epoch) for epoch in epochs])
    offset = first - epochs.start * num_examples
    return stream[offset : offset + batch_size]


def token_batches(
    lengths: Sequence[int],
    *,
    max_tokens: int,
    bucket_size: int,
    seed: int,
    multiple: int = 8,
) -> list[list[int]]:
    """Return batches of positions in `lengths`.

    Args:
        lengths: tokens (text and regions) of each item.
        max_tokens: bound on the longest length times the number of items of a batch.
        bucket_size: items that are sorted together; larger means less padding and less mixing.
        seed: of both shuffles.
        multiple: items are added in groups of this size, which suits half-precision hardware.

    Raises:
        ConfigError: a single group exceeds the bound.
    """
    generator = random.Random(seed)
    order = list(range(len(lengths)))
    generator.shuffle(order)
    batches: list[list[int]] = []
    for start in range(0, len(order), bucket_size):
        bucket = sorted(order[start : start + bucket_size], key=lambda item: lengths[item], reverse=True)
        batch: list[int] = []
        longest = 0
        for first in range(0, len(bucket), multiple):
            group = bucket[first : first + multiple]
            # The longest item so far bounds the rest of the bucket too, as in the original.
            longest = max(longest, *(lengths[item] for item in group))
            if longest * (len(batch) + multiple) <= max_tokens:
                batch = batch + group
                continue
            if not batch:
                raise ConfigError(
                    "Sequences exceed the recipe's limit of tokens in a batch.",
                    why=f"{multiple} of {longest} tokens, at most {max_tokens} tokens",
                    next_command=BY_EXAMPLES,
                )
            batches.append(batch)
            batch = group
        batches.append(batch)
    generator.shuffle(batches)
    return batches


def order_examples(
    run: Run, student: Student, dataset: Dataset, indices: Sequence[int], *, rank: int
) -> tuple[Sequence[int], BatchOrder]:
    """Return the indices of the training examples and the order of the positions in them.

    Batches of tokens exclude examples whose text exceeds the recipe's bound, as UNITER does in training.

    Raises:
        ConfigError: the student cannot count tokens, nothing is left, or a step has fewer examples than processes.
    """
    settings, world_size = run.settings, run.world_size
    shares = {"accumulate": settings.accumulate, "seed": run.config.seed, "rank": rank, "world_size": world_size}
    if settings.batch_unit == "examples":
        if settings.batch_size < world_size:
            raise ConfigError(
                "A step has fewer examples than there are processes.",
                next_command=f"--batch-size {world_size} or more, or fewer processes",
            )
        return indices, ExampleOrder(len(indices), batch_size=settings.batch_size, **shares)
    sizes = count_tokens(student, dataset, indices)
    bound = settings.max_text_tokens
    kept = [row for row, (text, _) in enumerate(sizes) if not bound or text <= bound]
    if not kept:
        raise ConfigError(
            "Every text is longer than the recipe trains on.",
            why=f"at most {bound} tokens, the shortest has {min(sizes)[0]}",
            next_command=BY_EXAMPLES,
        )
    order = TokenOrder([sum(sizes[row]) for row in kept], max_tokens=settings.batch_size, **shares)
    return [indices[row] for row in kept], order


CHUNK_SIZE = 256
"""Number of examples that are tokenised together."""


def count_tokens(student: Student, dataset: Dataset, indices: Sequence[int]) -> list[tuple[int, int]]:
    """Return the text tokens of each example, counting every candidate as long as the longest, and its regions.

    UNITER counts a picture's regions once, however many candidates see them (`data/vcr.py`).

    Raises:
        ConfigError: the student cannot count them. DatasetError: the student cannot process a text or picture.
    """
    if not isinstance(student, TextStudent):
        raise ConfigError(f"The batches of {student.name} cannot be counted in tokens.", next_command=BY_EXAMPLES)
    sizes = []
    starts = range(0, len(indices), CHUNK_SIZE)
    for start in tqdm(starts, desc="count tokens", unit="chunk", leave=False, disable=not sys.stderr.isatty()):
        examples = [dataset[index] for index in indices[start : start + CHUNK_SIZE]]
        tensors, _ = student.collate_texts(examples)
        lengths = iter(tensors["token_mask_NL"].sum(1).tolist())
        for example in examples:
            longest = max(next(lengths) for _ in example.candidates)
            sizes.append((longest * len(example.candidates), student.num_visual_of(example.image)))
    return sizes


def order_inputs(run: Run, inputs: Inputs, *, rank: int) -> ExampleOrder:
    """Return the order in which the adapt stage visits its inputs."""
    return ExampleOrder(
        len(inputs.adapt),
        batch_size=adapt_batch_size(run, inputs),
        accumulate=1,
        seed=run.config.seed,
        rank=rank,
        world_size=run.world_size,
    )


def inputs_visited(run: Run, inputs: Inputs) -> list[int]:
    """Return the positions of the inputs that all processes together visit in the adapt stage, each once."""
    orders = [order_inputs(run, inputs, rank=rank) for rank in range(run.world_size)]
    visits = (order.micro_batches(step) for order in orders for step in range(run.method.num_adapt_steps))
    return [inputs.adapt[row] for row in sorted({int(row) for batches in visits for rows in batches for row in rows})]
