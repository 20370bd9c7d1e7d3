"""Which words a finished run distils, on a few of its training examples: for people to look at.

Shapes: N sequences, W words.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from advl_pipeline.datasets.records import Dataset
from advl_pipeline.datasets.words import word_spans
from advl_pipeline.training.batches import looked_at
from advl_pipeline.training.signals.stored_signals import SignalSource
from advl_pipeline.training.step import FinetuneModel, StepConditions

MAX_EXAMPLES = 24
AT_ONCE = 8
"""Examples that are looked at together, where a micro-batch of the run holds so many."""

SelectedWords = dict[str, list[list[list[int]]]]
"""Example id -> per candidate the [start, end) characters of each word that is distilled."""


def selects_words(model: FinetuneModel) -> bool:
    """Return whether the run distils some words and not others."""
    return bool(model.distiller.teachers["text"]) and model.distiller.settings.selection != "all"


@torch.inference_mode()
def selected_words(
    model: FinetuneModel, dataset: Dataset, positions: Sequence[int], source: SignalSource, *, at_once: int
) -> SelectedWords:
    """Select words as the last training step would have, with dropout off.

    Args:
        model: as trained.
        positions: of the examples that were trained on; those with the smallest hash of their ids are taken.
        at_once: examples that are looked at together.
    """
    ids = dataset.example_ids
    ranked = sorted(positions, key=lambda position: hashlib.blake2b(ids[position].encode()).digest())
    device = next(model.parameters()).device
    selected: SelectedWords = {}
    was_training = model.training
    model.eval()
    for chosen, examples, batch in looked_at(
        dataset, ranked[:MAX_EXAMPLES], model.student, source, at_once=at_once, device=device, labelled_ids=None
    ):
        assert batch.signal is not None
        conditions = StepConditions(phase="finetune", generator=torch.Generator().manual_seed(chosen[0]))
        selected_NW = model.distillation_terms(batch, batch.signal, conditions).selected_NW
        if selected_NW is None:
            continue
        rows = iter(selected_NW.tolist())
        for example in examples:
            selected[example.example_id] = [
                [list(span) for span, kept in zip(word_spans(candidate.text), next(rows), strict=False) if kept]
                for candidate in example.candidates
            ]
    model.train(was_training)
    return selected
