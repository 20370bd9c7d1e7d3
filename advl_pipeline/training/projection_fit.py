"""The start of a run with coordinate distances: projections fitted on the frozen student, and targets that it cannot
tell left out.

The fit is a pure function of the student as it starts, the inputs and the seed, so that a resumed run does it again
and finds the same. Labels are not read.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from advl_pipeline.datasets.interface import Dataset
from advl_pipeline.datasets.records import Example
from advl_pipeline.distillation.pathways import Pair
from advl_pipeline.distillation.pooling import example_of_sequence
from advl_pipeline.distillation.ridge import FittedProjection, ProjectionFit
from advl_pipeline.distillation.terms import Target
from advl_pipeline.training.batches import TrainingBatch, collate_batch
from advl_pipeline.training.finetune_model import FinetuneModel
from advl_pipeline.training.signals import SignalSource

MAX_INPUTS = 384
"""A quarter of them is held out: a few hundred questions give thousands of words and regions, and take seconds."""

HELD_OUT_SHARE = 0.25

MIN_HELD_OUT_PICTURES = 4
"""With fewer, R2 would be an accident of single pictures, and nothing is held out."""

BATCH_SIZE = 16


@dataclass(frozen=True, kw_only=True)
class TargetFit:
    """What was found about one target, and what was done about it."""

    target: Target
    fitted: FittedProjection
    is_left_out: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain JSON types."""
        return {
            "held_out_r2": self.fitted.r2,
            "distance_before": self.fitted.distance_before,
            "distance_after": self.fitted.distance_after,
            "penalty": self.fitted.penalty,
            "num_rows": self.fitted.num_rows,
            "left_out": self.is_left_out,
        }

    def line(self) -> str:
        """Return one line for people."""
        r2 = "not known, too few pictures" if self.fitted.r2 is None else f"{self.fitted.r2:.2f}"
        figures = (
            f"target {self.target}: held-out R2 {r2}, D {self.fitted.distance_before:.2f} with random projections, "
            f"{self.fitted.distance_after:.2f} fitted"
        )
        if self.is_left_out:
            return f"{figures}; LEFT OUT, the student's states do not tell it (--target-check none keeps it)"
        return figures


def fit_projections(
    model: FinetuneModel,
    dataset: Dataset,
    positions: Sequence[int],
    source: SignalSource,
    *,
    seed: int,
    device: torch.device,
) -> list[TargetFit]:
    """Fit the projections of the coordinate distances in place, and leave out targets that cannot be predicted.

    Args:
        model: before its first step, on `device`. Its settings say whether projections start fitted and whether
            targets are checked.
        seed: chooses the sample and what of it is held out.

    Returns:
        What was found, by target; empty where nothing is distilled by coordinates, or neither is asked for.
    """
    settings = model.distiller.settings
    starts_fitted, checks = settings.projection_start == "ridge", settings.target_check == "r2"
    has_teachers = any(model.distiller.teachers.values())
    if settings.distance == "relational" or not has_teachers or not (starts_fitted or checks):
        return []
    gathered = _gather(model, dataset, positions, source, seed=seed, device=device)
    found = []
    for target, (projection, fit) in gathered.items():
        fitted = fit.solve(projection, settings.distance)
        if fitted is None:
            continue
        is_left_out = checks and not fitted.is_predictable
        if is_left_out:
            model.distiller.leave_out(target)
        elif starts_fitted:
            with torch.no_grad():
                projection.weight.copy_(fitted.map.weight_HD.T)
                projection.bias.copy_(fitted.map.bias_D)
        found.append(TargetFit(target=target, fitted=fitted, is_left_out=is_left_out))
    return found


@torch.no_grad()
def _gather(
    model: FinetuneModel,
    dataset: Dataset,
    positions: Sequence[int],
    source: SignalSource,
    *,
    seed: int,
    device: torch.device,
) -> dict[Target, tuple[nn.Linear, ProjectionFit]]:
    chosen = random.Random(seed).sample(sorted(positions), min(MAX_INPUTS, len(positions)))
    examples = [dataset[position] for position in sorted(chosen)]
    held_out = _held_out_pictures(examples, seed)
    gathered: dict[Target, tuple[nn.Linear, ProjectionFit]] = {}
    with _as_trained(model, seed, device):
        for number, part in enumerate(_batches(examples)):
            batch = collate_batch(part, dataset, model.student, source, labelled=False, labelled_ids=frozenset())
            is_held_out_B = torch.tensor([example.image.unit_id in held_out for example in part])
            is_held_out_N = is_held_out_B[example_of_sequence(batch.student.num_candidates, is_held_out_B.device)]
            for target, pair in _pairs(model, batch.to(device), seed=seed + number).items():
                if target not in gathered:
                    width, teacher_width = pair.projection.in_features, pair.projection.out_features
                    gathered[target] = (pair.projection, ProjectionFit(width, teacher_width))
                gathered[target][1].add(*_rows(pair, is_held_out_N))
    return gathered


@contextmanager
def _as_trained(model: FinetuneModel, seed: int, device: torch.device) -> Iterator[None]:
    """Turn dropout on, drawn from the seed, and nothing else that a training step changes.

    The projections meet states under dropout: a map fitted without it leans on small differences that dropout hides.
    """
    was_training = model.training
    model.eval()
    for module in model.student.modules():
        if isinstance(module, nn.Dropout):
            module.train()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
    model.train(was_training)


def _pairs(model: FinetuneModel, batch: TrainingBatch, *, seed: int) -> Mapping[Target, Pair]:
    assert batch.signal is not None
    every_N = torch.ones(batch.student.num_sequences, dtype=torch.bool, device=batch.image_ids_B.device)
    generator = torch.Generator().manual_seed(seed)
    return model.distillation_terms(
        batch.student, batch.signal, every_N, batch.image_ids_B, generator=generator
    ).pairs


def _rows(pair: Pair, is_held_out_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the pair's vectors that count, (M, H) and (M, D), and which of them are held out, (M,) bool."""
    if pair.mask_NX is None:
        return pair.states, pair.targets, is_held_out_N
    row_M, _ = pair.mask_NX.nonzero(as_tuple=True)
    return pair.states[pair.mask_NX], pair.targets[pair.mask_NX], is_held_out_N[row_M.cpu()]


def _held_out_pictures(examples: Sequence[Example], seed: int) -> frozenset[str]:
    """Return a share of the pictures: questions on one of them must not lie on both sides."""
    pictures = sorted({example.image.unit_id for example in examples})
    random.Random(seed).shuffle(pictures)
    num_held_out = round(HELD_OUT_SHARE * len(pictures))
    return frozenset(pictures[:num_held_out] if num_held_out >= MIN_HELD_OUT_PICTURES else ())


def _batches(examples: Sequence[Example]) -> Iterator[list[Example]]:
    """Yield batches of one task each."""
    for task in dict.fromkeys(example.task for example in examples):
        of_task = [example for example in examples if example.task == task]
        for start in range(0, len(of_task), BATCH_SIZE):
            yield of_task[start : start + BATCH_SIZE]
