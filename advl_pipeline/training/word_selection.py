"""The words that a finished run distils, on a few training examples, for inspection.

Shapes: N sequences, W words.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from advl_pipeline.datasets.records import Dataset
from advl_pipeline.datasets.words import word_spans
from advl_pipeline.training.landmarks.census import StudentAtStart
from advl_pipeline.training.step import FinetuneModel, StepConditions

MAX_EXAMPLES = 24
AT_ONCE = 8
"""Number of examples per batch, if a micro-batch of the run has at least as many."""

SelectedWords = dict[str, list[list[list[int]]]]
"""Example id -> per candidate the [start, end) characters of each distilled word."""


@torch.inference_mode()
def selected_words(
    model: FinetuneModel, start: StudentAtStart, dataset: Dataset, positions: Sequence[int], *, at_once: int
) -> SelectedWords:
    """Select words as the last training step would have, with dropout off.

    Args:
        model: after training.
        start: its student, with the source of its training signals.
        positions: of the training examples; those with the smallest hash of their ids are selected.
        at_once: examples per batch.
    """
    ids = dataset.example_ids
    ranked = sorted(positions, key=lambda position: hashlib.blake2b(ids[position].encode()).digest())
    selected: SelectedWords = {}
    chosen = ranked[:MAX_EXAMPLES]
    for places, examples, batch in start.looked_at(dataset, chosen, at_once=at_once, labelled_ids=None):
        assert batch.signal is not None
        step = StepConditions(stage="finetune", generator=torch.Generator().manual_seed(places[0]))
        with start.evaluating():
            _, selected_NW = model.distillation_terms(batch, batch.signal, step)
        if selected_NW is None:
            continue
        rows = iter(selected_NW.tolist())
        for example in examples:
            selected[example.example_id] = [
                [list(span) for span, kept in zip(word_spans(candidate.text), next(rows), strict=False) if kept]
                for candidate in example.candidates
            ]
    return selected
