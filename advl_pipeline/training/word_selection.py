"""Which words a finished run distils, on a few of its training examples, and what tells them on other items: for
people to look at.

Shapes: N sequences, W words.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from advl_pipeline.datasets.records import Dataset
from advl_pipeline.datasets.words import word_spans
from advl_pipeline.training.batches import collate_batch
from advl_pipeline.training.finetune_model import FinetuneModel, StepConditions
from advl_pipeline.training.signals import SignalSource

MAX_EXAMPLES = 24

SelectedWords = dict[str, list[list[list[int]]]]
"""Example id -> per candidate the [start, end) characters of each word that is distilled."""


def selects_words(model: FinetuneModel) -> bool:
    """Whether the run distils some words and not others."""
    return bool(model.distiller.teachers["text"]) and model.distiller.settings.selection != "all"


def describe_selection(model: FinetuneModel, source: SignalSource) -> dict[str, Any]:
    """Return what `evaluation/item_words.py` selects words of items without teachers by.

    Where that cannot be, `obstacle` says why in its place: words are drawn at random, an aligned pair of towers says
    how much of a word is seen, or the teacher has features of some words only.
    """
    settings, obstacle = model.distiller.settings, ""
    selecting = [one.name for one in source.teachers if one.words_are_selected or not one.reads_context]
    seeing = [teacher.name for teacher in source.teachers if teacher.sees_words]
    if settings.selection == "random":
        obstacle = "they are drawn at random, so that they would be others each time"
    elif selecting:
        obstacle = f"the cache of {', '.join(selecting)} holds some words of the training texts only"
    elif seeing and settings.selection == "adaptive" and settings.selection_alpha < 1:
        obstacle = f"the towers of {seeing[0]} decide how much of a word is seen, and no teacher runs on test items"
    if obstacle:
        return {"selection": settings.selection, "obstacle": obstacle}
    return {
        "selection": settings.selection,
        "alpha": settings.selection_alpha,
        "rho": settings.selection_rho,
        "content_words": settings.distance == "relational",
        # With landmarks, known and frequent words are not placed.
        "known": source.known.counts if model.distiller.landmarks else None,
        "prior": asdict(source.prior),
    }


@torch.inference_mode()
def selected_words(
    model: FinetuneModel, dataset: Dataset, positions: Sequence[int], source: SignalSource
) -> SelectedWords:
    """Select words as the last training step would have, with dropout off.

    Args:
        model: as trained.
        positions: of the examples that were trained on; those with the smallest hash of their ids are taken.
    """
    ids = dataset.example_ids
    ranked = sorted(positions, key=lambda position: hashlib.blake2b(ids[position].encode()).digest())
    device = next(model.parameters()).device
    found: SelectedWords = {}
    was_training = model.training
    model.eval()
    for position in ranked[:MAX_EXAMPLES]:
        example = dataset[position]
        batch = collate_batch([example], dataset, model.student, source, labelled=False).to(device)
        assert batch.signal is not None
        conditions = StepConditions(phase="finetune", generator=torch.Generator().manual_seed(position))
        selected_NW = model.distillation_terms(batch, batch.signal, conditions).selected_NW
        if selected_NW is None:
            continue
        found[example.example_id] = [
            [list(span) for span, kept in zip(word_spans(candidate.text), row, strict=False) if kept]
            for candidate, row in zip(example.candidates, selected_NW.tolist(), strict=True)
        ]
    model.train(was_training)
    return found
