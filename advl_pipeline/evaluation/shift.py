"""The drop from a test set to its shifted version, on the same questions.

Several shifted sets hold only a part of the original questions (VCR's rule-based sets, the hard part of SNLI-VE). A
drop is between two accuracies over the same questions, or it mixes the shift with the choice of questions.

Shapes: n questions that both sets hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from advl_pipeline.array_archives import DamagedArchive, read_array_archive
from advl_pipeline.datasets.cards import load_card
from advl_pipeline.datasets.registry import SCENES_PREFIX
from advl_pipeline.errors import ConfigError, DatasetError
from advl_pipeline.evaluation.items import ItemScores
from advl_pipeline.evaluation.scoring_config import ScoreShiftConfig
from advl_pipeline.evaluation.statistics import (
    Effect,
    Interval,
    Significance,
    effect,
    paired_bootstrap,
    sign_flip_test,
)
from advl_pipeline.training.run import read_config


@dataclass(frozen=True, kw_only=True, slots=True)
class ShiftDrop:
    """Accuracies in percent over the common questions.

    `change` is shifted minus original, in points and in percent of the original. `interval` (points, bootstrap over
    questions) and `significance` (sign-flip test over questions) are of this one run and say nothing of other seeds.
    """

    num_items: int
    original: float
    shifted: float
    change: Effect
    interval: Interval
    significance: Significance


@dataclass(frozen=True, kw_only=True, slots=True)
class ShiftResult:
    """One drop per metric that both sets were scored by."""

    original_set: str
    shifted_set: str
    drops: dict[str, ShiftDrop]


def run_score_shift(config: ScoreShiftConfig) -> ShiftResult:
    """Compare two evaluated sets of a run on the questions that both hold.

    Raises:
        ConfigError: the card names no set to compare with, or a set was not evaluated.
        DatasetError: the sets have no question in common.
    """
    original_set = config.original or _original_of(str(read_config(config.run)["dataset"]), config.on)
    original, shifted = (_read_items(config.run, name) for name in (original_set, config.on))
    return ShiftResult(
        original_set=original_set,
        shifted_set=config.on,
        drops={metric: shift_drop(original[metric], shifted[metric]) for metric in original if metric in shifted},
    )


def shift_drop(original: ItemScores, shifted: ItemScores) -> ShiftDrop:
    """Compare scores on the questions that both sets hold.

    Raises:
        DatasetError: they have no question in common.
    """
    score_of = dict(zip(original.question_ids, original.score.tolist(), strict=True))
    pairs = [
        (score_of[question], score)
        for question, score in zip(shifted.question_ids, shifted.score.tolist(), strict=True)
        if question in score_of
    ]
    if not pairs:
        raise DatasetError("The shifted set has no question in common with the original one.")
    before_n, after_n = np.array(pairs, dtype=np.float64).T
    before, after = 100.0 * float(before_n.mean()), 100.0 * float(after_n.mean())
    return ShiftDrop(
        num_items=len(pairs),
        original=before,
        shifted=after,
        change=effect(after, before),
        interval=paired_bootstrap(after_n - before_n),
        significance=sign_flip_test(after_n - before_n),
    )


def _original_of(dataset: str, shifted_set: str) -> str:
    name, _, split = shifted_set.rpartition("/")
    card_name = "scenes" if (name or dataset).startswith(SCENES_PREFIX) else (name or dataset)
    original = load_card(card_name).splits.get(split, {}).get("compare_with")
    if original is None:
        raise ConfigError(
            f"The card of {card_name} names no set to compare {split!r} with.",
            next_command="name one with --original SET",
        )
    return f"{name}/{original}" if name else str(original)


def _read_items(run: Path, name: str) -> dict[str, ItemScores]:
    path = run / "evaluation" / f"{name.replace('/', '--')}.npz"
    try:
        arrays = read_array_archive(path)
        metrics = [key.removeprefix("item/") for key in arrays if key.startswith("item/")]
        return {
            metric: ItemScores(
                question_ids=tuple(map(str, arrays[f"item_ids/{metric}"])), score=arrays[f"item/{metric}"]
            )
            for metric in metrics
        }
    except FileNotFoundError:
        why = "it was not evaluated"
    except (OSError, DamagedArchive, KeyError) as error:
        why = str(error)
    raise ConfigError(
        f"The scores of the set {name} cannot be read.",
        where=str(path),
        why=why,
        next_command=f"advl evaluate --run {run} --on {name}",
    )
