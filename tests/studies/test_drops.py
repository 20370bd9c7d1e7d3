"""Drops on hand-made tables of item scores; golden numbers hold means over sizes and slopes."""

from __future__ import annotations

import numpy as np
import pytest

from advl_pipeline.evaluation.statistics import Contribution, item_groups
from advl_pipeline.runs.evaluations import TRUE_PICTURE
from advl_pipeline.studies.config import StudyConfig, parse_study
from advl_pipeline.studies.numbers import numbers_of
from advl_pipeline.studies.table import Place, Scores, Table

SEEDS = (0, 1, 2, 3, 4)


def study(dataset: str, task: str, test_sets: list[str]) -> StudyConfig:
    raw = {"name": "s", "dataset": dataset, "tasks": [task], "test_sets": test_sets, "teachers": ["minilm-l6"]}
    return parse_study({**raw, "methods": ["plain", "advl", "advl-shuffled"], "shots": [100]}, where="here")


def place(config: StudyConfig, test_set: str) -> Place:
    (setting,) = config.settings
    return Place(setting=setting.name, metric=setting.metrics[0], test_set=test_set, size=100, shots="100")


def series(items_SN: np.ndarray, ids: list[str]) -> Scores:
    groups = item_groups([f"picture {index // 3}" for index in range(len(ids))], [""] * len(ids))
    whole = Contribution(values_SN=items_SN.astype(np.float64), groups=groups)
    return Scores(seeds=SEEDS, runs=("run",) * len(SEEDS), ids=tuple(ids), sets=(whole,))


def table(config: StudyConfig, ids: dict[str, list[str]]) -> Table:
    """Item scores at random; of the in-domain set the first half of the items is easy."""
    random = np.random.default_rng(1)
    found: dict[tuple[Place, str, str], Scores] = {}
    reference = config.settings[0].test_sets[0]
    for method in config.methods:
        for test_set, names in ids.items():
            share = np.where(np.arange(len(names)) < len(names) // 2, 0.9, 0.3) if test_set == reference else 0.5
            items_SN = random.random((len(SEEDS), len(names))) < share
            found[place(config, test_set), method, TRUE_PICTURE] = series(items_SN, names)
    return Table(study=config, scores=found)


@pytest.mark.parametrize(
    ("dataset", "task", "shifted", "prefix", "questions"),
    [
        ("vcr", "vcr-q2a", "rule-plural", "q", "same"),
        ("scenes-vcr", "vcr-q2a", "test-shift", "test-shift-", "same"),
        ("scenes-vcr", "vcr-q2a", "test-unseen", "test-unseen-", "other"),
        ("snli-ve", "snli-ve", "test-hard", "q", "part"),
    ],
)
def test_a_drop_is_over_the_same_questions_where_they_are_asked_otherwise(
    dataset: str, task: str, shifted: str, prefix: str, questions: str
) -> None:
    reference = "val" if dataset == "vcr" else "test"
    own = f"{reference}-" if dataset == "scenes-vcr" else "q"
    config = study(dataset, task, [reference, shifted])
    names = {
        reference: [f"{own}{number}" for number in range(120)],
        shifted: [f"{prefix}{number}" for number in range(59, -1, -1)],
    }
    scores = table(config, names)
    numbers = numbers_of(scores)
    drops = {loss.method: loss for loss in numbers.losses}
    before, after = (scores.scores[place(config, name), "advl", TRUE_PICTURE].matrix for name in (reference, shifted))
    base = before[:, :60] if questions == "same" else before
    assert abs(before[:, :60].mean() - before.mean()) > 0.2
    assert drops["advl"].questions == questions
    assert drops["advl"].before.mean == pytest.approx(100 * base.mean())
    assert drops["advl"].after.mean == pytest.approx(100 * after.mean())
    assert drops["advl"].lost.per_seed == pytest.approx(100 * (base.mean(axis=1) - after.mean(axis=1)))
    contrast = next(mean for mean in numbers.means if mean.quantity == "drop")
    assert contrast.questions == questions
    expected = np.subtract(drops["advl"].lost.per_seed, drops["plain"].lost.per_seed)
    assert contrast.estimate.per_seed == pytest.approx(expected)
