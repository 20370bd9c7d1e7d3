"""The drop from a test set to its shifted version.

Several shifted sets ask only a part of the original questions in another way (VCR's rule-based sets). Their drop is
between two accuracies over the same questions, or it mixes the shift with the choice of questions. Where the choice
itself is the shift (the hard part of SNLI-VE), it is between the part and the whole.

Questions are known by their ids. There are three cases, and only in the first is a drop over the common questions a
number of its own:
  - "same": the shifted set asks questions of the original otherwise, in other words or on another picture;
  - "part": it holds questions of the original as they are (the hard pairs of SNLI-VE, VQA-CE, VQA-VS). The choice is
    the shift: over the common questions nothing could ever drop, so the part is compared with the whole;
  - "other": the two have no question in common.

Shapes: N questions of the original set, M of the shifted one, n that both hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from advl_pipeline.base.errors import ConfigError, DatasetError, advise
from advl_pipeline.datasets.registry import known_dataset
from advl_pipeline.datasets.roots import set_name
from advl_pipeline.datasets.spec import DatasetSpec
from advl_pipeline.evaluation.config import ScoreShiftConfig
from advl_pipeline.evaluation.statistics import (
    Contribution,
    joint_interval,
    lost_in_part,
    relative_percent,
    sign_flip_test,
)
from advl_pipeline.runs.names import set_of
from advl_pipeline.runs.results import read_config, read_evaluation


def run_score_shift(config: ScoreShiftConfig) -> dict[str, Any]:
    """Compare two evaluated sets of a run on the questions that both hold, or a part with the whole that it is of.

    Returns:
        original_set, shifted_set, and drops: metric that both were scored by -> what `shift_drop` returns.

    Raises:
        ConfigError: the card names no set to compare with, or a set was not evaluated.
        DatasetError: the sets have no question in common.
    """
    dataset = str(read_config(config.run)["dataset"])
    original_set = original_of(dataset, config.on)
    if original_set is None:
        what = f"No card names a set to compare {config.on!r} with."
        raise ConfigError(what, next_command=advise(["advl", "datasets", "card", dataset]))
    original, shifted = (_items(config.run, name) for name in (original_set, config.on))
    drops = {}
    for metric in (name for name in original if name in shifted):
        before, after = original[metric], shifted[metric]
        match = match_questions(dataset, original_set, before["item"], config.on, after["item"])
        drops[metric] = shift_drop(before["score"].to_numpy(), after["score"].to_numpy(), match)
    return {"original_set": original_set, "shifted_set": config.on, "drops": drops}


def _items(run: Path, name: str) -> dict[str, Any]:
    """Return the items of an evaluated set with the true pictures, by metric."""
    evaluation = read_evaluation(run, name)
    if evaluation is None:
        advice = advise(["advl", "evaluate", str(run), "--on", name])
        raise ConfigError(f"The run was not scored on the set {name}.", where=str(run), next_command=advice)
    by_metric: Any = evaluation.items[evaluation.items["view"] == ""].groupby("metric", sort=False)
    return dict(iter(by_metric))


def shift_drop(
    original_N: npt.NDArray[np.floating], shifted_M: npt.NDArray[np.floating], match: Match
) -> dict[str, Any]:
    """Compare item scores on the questions that both sets hold, or those of a part with those of the whole.

    Returns:
        How the questions go together, num_items of the shifted set, the two accuracies in percent, and their change:
        points, and percent of the original. Its interval (points, bootstrap over questions) and p_value (sign-flip
        test over questions) are of this one run and say nothing of other seeds. A part asks no question in two ways,
        so it has no p.

    Raises:
        DatasetError: they have no question in common.
    """
    if match.questions == "other":
        raise DatasetError("The shifted set has no question in common with the original one.")
    # The change is what is lost with the other sign.
    whole, part = (
        Contribution(values_SN=-values.astype(np.float64)[None], groups=None) for values in (original_N, shifted_M)
    )
    before, after, gained = lost_to_shift(whole, part, match)
    is_same = match.questions == "same"
    original, shifted = (-100.0 * float(side.values_SN.mean()) for side in (before, after))
    points = shifted - original
    return {
        "questions": match.questions,
        "num_items": after.values_SN.shape[1],
        "original": original,
        "shifted": shifted,
        "change": {"points": points, "relative_percent": relative_percent(points, original)},
        "interval": joint_interval(gained, resamples=4000 if is_same else 2000, resample_seeds=False),
        "p_value": sign_flip_test(gained[0].values_SN[0]) if is_same else None,
    }


Questions = Literal["same", "part", "other"]


class Match(NamedTuple):
    """How the questions of two sets go together: row i of the one is the question in row i of the other."""

    questions: Questions
    original_n: npt.NDArray[np.int64]
    shifted_n: npt.NDArray[np.int64]


def lost_to_shift(
    before: Contribution, after: Contribution, match: Match
) -> tuple[Contribution, Contribution, tuple[Contribution, ...]]:
    """Return both sides over the questions that count, and what is lost from one to the other, as disjoint sets.

    Where the same questions are asked otherwise, it is over these, grouped by the pictures of the original set.
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
"""A test set: its split and the dataset that it is of; None for rows that no card describes."""


def original_of(dataset: str, shifted_set: str) -> str | None:
    """Return the set that the card of a shifted set compares it with, named as the shifted set is; None for none.

    Args:
        shifted_set: a split of it, or of another dataset as "dataset/split".
    """
    name, _, _ = shifted_set.rpartition("/")
    split, known = _test_set(dataset, shifted_set)
    original = known.card.splits.get(split, {}).get("compare_with") if known else None
    if original is None:
        return None
    return f"{name}/{original}" if name else str(original)


def match_questions(
    dataset: str, original_set: str, original_ids: Sequence[str], shifted_set: str, shifted_ids: Sequence[str]
) -> Match:
    """Find the questions that two sets have in common.

    Args:
        original_set: a split of it, or of another dataset as "dataset/split".
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
    """Return what gives a question of a set the name that it has in all sets that ask it."""
    split, known = _test_set(dataset, test_set)
    return str if known is None else partial(known.common_name, split)


def _test_set(dataset: str, name: str) -> _Set:
    dataset, split = set_name(set_of(name), dataset)
    return split, known_dataset(dataset)


def _asks_alike(original: _Set, shifted: _Set) -> bool:
    """Return whether a common id stands for the same words on the same picture with the same answer in both sets.

    A VQA id names question, picture and answers; elsewhere a part is read from the annotations of its original.
    """
    annotated = []
    for split, known in (original, shifted):
        if known is None:
            return False
        annotations = known.card.splits.get(split, {}).get("annotations")
        annotated.append((known.card.format, known.name, annotations))
    (form, name, annotations), (other_form, other_name, other_annotations) = annotated
    is_of_one_file = (name, annotations) == (other_name, other_annotations) and annotations is not None
    return form == other_form == "vqa" or is_of_one_file
