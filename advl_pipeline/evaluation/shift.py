"""The drop from a test set to its shifted version.

Several shifted sets ask only a part of the original questions in another way (VCR's rule-based sets). Their drop must
compare accuracies over the same questions, or it mixes the shift with the choice of questions. If the choice itself
is the shift (the hard part of SNLI-VE), the drop compares the part with the whole.

Questions are matched by id. There are three cases, and only the first has a drop over the common questions:
  - "same": the shifted set asks questions of the original in other words or on another picture;
  - "part": it contains questions of the original unchanged (the hard pairs of SNLI-VE, VQA-CE, VQA-VS). The choice is
    the shift: over the common questions the drop is always zero, so the part is compared with the whole;
  - "other": the two have no question in common.

Shapes: N questions of the original set, M of the shifted one, n in both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from advl_pipeline.base.errors import ConfigError, DatasetError, advise
from advl_pipeline.datasets.formats import FORMATS
from advl_pipeline.datasets.registry import known_dataset
from advl_pipeline.datasets.roots import set_name
from advl_pipeline.datasets.spec import DatasetSpec
from advl_pipeline.evaluation.config import ScoreShiftConfig
from advl_pipeline.evaluation.prepare import scored_again
from advl_pipeline.evaluation.statistics import (
    Contribution,
    joint_interval,
    lost_in_part,
    relative_percent,
    sign_flip_test,
)
from advl_pipeline.runs.evaluations import TRUE_PICTURE, Interval, evaluate_command, read_evaluation
from advl_pipeline.runs.names import set_of
from advl_pipeline.runs.results import read_config

Questions = Literal["same", "part", "other"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """The change of an accuracy, in points and in percent of the original."""

    points: float
    relative_percent: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Drop:
    """The accuracies of two sets in percent and their change; `num_items` counts the questions of the shifted one.

    The interval (points, bootstrap over questions) and p_value (sign-flip test over questions) apply to this run
    only, not to other seeds. A part asks no question in two ways, so it has no p-value.
    """

    questions: Questions
    num_items: int
    original: float
    shifted: float
    change: Change
    interval: Interval
    p_value: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ShiftScores:
    """The drops of a run from a set to its shifted version, by metric."""

    original_set: str
    shifted_set: str
    drops: dict[str, Drop]


def run_score_shift(config: ScoreShiftConfig) -> ShiftScores:
    """Compare two evaluated sets of a run on their common questions, or a part with its whole.

    Raises:
        ConfigError: the card names no set to compare with, or a set was not evaluated.
        DatasetError: the sets have no question in common.
    """
    dataset = str(read_config(config.run)["dataset"])
    original_set = original_of(dataset, config.on)
    if original_set is None:
        raise ConfigError(
            f"No card names a set to compare {config.on!r} with.",
            next_command=advise(["advl", "datasets", "card", dataset]),
        )
    with scored_again(config.run):
        original, shifted = (_items(config.run, name) for name in (original_set, config.on))
    drops = {}
    for metric in (name for name in original if name in shifted):
        before, after = original[metric], shifted[metric]
        match = match_questions(dataset, original_set, before["item"], config.on, after["item"])
        drops[metric] = shift_drop(before["score"].to_numpy(), after["score"].to_numpy(), match)
    return ShiftScores(original_set=original_set, shifted_set=config.on, drops=drops)


def _items(run: Path, name: str) -> dict[str, Any]:
    """Return the items of an evaluated set with their true pictures, by metric."""
    evaluation = read_evaluation(run, name)
    if evaluation is None:
        raise ConfigError(
            f"The run was not scored on the set {name}.",
            where=str(run),
            next_command=evaluate_command(run, name),
        )
    by_metric: Any = evaluation.items[evaluation.items["condition"] == TRUE_PICTURE].groupby("metric", sort=False)
    return dict(iter(by_metric))


def shift_drop(original_N: npt.NDArray[np.floating], shifted_M: npt.NDArray[np.floating], match: Match) -> Drop:
    """Compare item scores on the questions that both sets contain, or those of a part with those of the whole.

    Raises:
        DatasetError: the sets have no question in common.
    """
    if match.questions == "other":
        raise DatasetError("The shifted set has no question in common with the original one.")
    # The change is the loss with the opposite sign.
    whole, part = (
        Contribution(values_SN=-values.astype(np.float64)[None], groups=None) for values in (original_N, shifted_M)
    )
    before, after, gained = lost_to_shift(whole, part, match)
    is_same = match.questions == "same"
    original, shifted = (-100.0 * float(side.values_SN.mean()) for side in (before, after))
    points = shifted - original
    return Drop(
        questions=match.questions,
        num_items=after.values_SN.shape[1],
        original=original,
        shifted=shifted,
        change=Change(points=points, relative_percent=relative_percent(points, original)),
        interval=joint_interval(gained, resamples=4000 if is_same else 2000, resample_seeds=False),
        p_value=sign_flip_test(gained[0].values_SN[0]) if is_same else None,
    )


class Match(NamedTuple):
    """The relation of the questions of two sets, and their common rows: `original_n[i]` matches `shifted_n[i]`."""

    questions: Questions
    original_n: npt.NDArray[np.int64]
    shifted_n: npt.NDArray[np.int64]


def lost_to_shift(
    before: Contribution, after: Contribution, match: Match
) -> tuple[Contribution, Contribution, tuple[Contribution, ...]]:
    """Return both sides over the questions that count, and the loss from one to the other as disjoint sets.

    If the same questions are asked in another way, only they count, grouped by the pictures of the original set.
    """
    questions, original_n, shifted_n = match
    if questions == "part":
        return before, after, lost_in_part(before, after, original_n, shifted_n)
    if questions == "other":
        return before, after, (before, replace(after, values_SN=-after.values_SN))
    groups = before.groups.subset(original_n) if before.groups else None
    before = Contribution(values_SN=before.values_SN[:, original_n], groups=groups)
    after = Contribution(values_SN=after.values_SN[:, shifted_n], groups=groups)
    return before, after, (replace(before, values_SN=before.values_SN - after.values_SN),)


_Set = tuple[str, DatasetSpec | None]
"""A test set: its split and its dataset, which is None for rows without a card."""


def original_of(dataset: str, shifted_set: str) -> str | None:
    """Return the set that the card of a shifted set compares it with, in the same notation; None if there is none.

    Args:
        shifted_set: a split of `dataset`, or of another dataset as "dataset/split"; or the name that scores by
            another way of asking are filed under, such as "test-shift@letters".
    """
    name, _, _ = shifted_set.rpartition("/")
    split, known = _test_set(dataset, shifted_set)
    original = known.card.splits.get(split, {}).get("compare_with") if known else None
    if original is None:
        return None
    way = shifted_set.removeprefix(set_of(shifted_set))
    return f"{name}/{original}{way}" if name else f"{original}{way}"


def match_questions(
    dataset: str, original_set: str, original_ids: Sequence[str], shifted_set: str, shifted_ids: Sequence[str]
) -> Match:
    """Find the questions that two sets have in common.

    Args:
        original_set: a split of `dataset`, or of another dataset as "dataset/split".
        shifted_set: as `original_set`.
    """
    original, shifted = question_namer(dataset, original_set), question_namer(dataset, shifted_set)
    row_of = {original(question): row for row, question in enumerate(original_ids)}
    pairs = [(row_of[name], row) for row, question in enumerate(shifted_ids) if (name := shifted(question)) in row_of]
    rows = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    alike = _asks_alike(_test_set(dataset, original_set), _test_set(dataset, shifted_set))
    questions: Questions = "other" if not pairs else "part" if alike else "same"
    return Match(questions, rows[:, 0], rows[:, 1])


def question_namer(dataset: str, test_set: str) -> Callable[[str], str]:
    """Return a function from a question id of a set to the common name of the question in all sets that ask it."""
    split, known = _test_set(dataset, test_set)
    return str if known is None else partial(known.common_name, split)


def _test_set(dataset: str, name: str) -> _Set:
    dataset, split = set_name(set_of(name), dataset)
    return split, known_dataset(dataset)


def _asks_alike(original: _Set, shifted: _Set) -> bool:
    """Return whether a common id stands for the same words on the same picture with the same answer in both sets.

    Their format may have such ids, as VQA's has. Elsewhere, a part shares the annotations of its original.
    """
    annotated = []
    for split, known in (original, shifted):
        if known is None:
            return False
        annotations = known.card.splits.get(split, {}).get("annotations")
        annotated.append((known.card.format, known.name, annotations))
    (form, name, annotations), (other_form, other_name, other_annotations) = annotated
    is_of_one_file = (name, annotations) == (other_name, other_annotations) and annotations is not None
    has_common_ids = form == other_form and form in FORMATS and FORMATS[form].has_common_ids
    return has_common_ids or is_of_one_file
