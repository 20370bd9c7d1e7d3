"""The order in which a phase takes its examples, as the run's settings say: by number, or by tokens."""

from __future__ import annotations

from collections.abc import Sequence

from advl_pipeline.datasets.interface import Dataset
from advl_pipeline.errors import ConfigError
from advl_pipeline.students.interface import Student
from advl_pipeline.training.batch_order import BatchOrder, ExampleOrder, TokenOrder
from advl_pipeline.training.example_sizes import measure_examples
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
        ConfigError: the student cannot count tokens, or nothing is left.
    """
    if settings.batch_unit == "examples":
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
