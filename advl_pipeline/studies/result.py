"""What a study found: frozen records, all accuracies in percent and all differences in points.

Every record names its place in the grid; `StudyResult` finds records by place. Runs are named by their folder
relative to the folder that all of them lie in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import pandas as pd

from advl_pipeline.evaluation.calibration import Reliability
from advl_pipeline.evaluation.question_match import Questions
from advl_pipeline.evaluation.statistics import Interval, PairedComparison, Significance, Spread
from advl_pipeline.runs.results import Nodes
from advl_pipeline.studies.config import StudyConfig

LossQuantity = Literal["drop", "use"]
ClaimQuantity = Literal["accuracy", "drop", "use"]
CellState = Literal["finished", "partial", "pending"]
Record = TypeVar("Record")


@dataclass(frozen=True, kw_only=True, slots=True)
class CellRecord:
    """One cell of the grid. `partial`: trained, some test set missing. `command` repeats its finetuning."""

    cell_id: str
    setting: str
    method: str
    shots: int | None
    seed: int
    run: str
    state: CellState
    command: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where accuracies are compared. `size` orders shot sizes and is the x of figures: training questions."""

    setting: str
    metric: str
    test_set: str
    size: int
    shots: int | None

    @property
    def rank(self) -> tuple[int, bool]:
        """Order along the shots; all training questions stand after as many that were asked for by number."""
        return self.size, self.shots is None


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """A method's accuracy at a place."""

    place: Place
    method: str
    seeds: tuple[int, ...]
    per_seed: tuple[float, ...]
    accuracy: Spread
    num_items: int
    runs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Contrast:
    """One method against another at a place, over the seeds that both finished.

    The adjusted p are Holm's over the contrasts of the same family: all methods against their baselines ("grid"), or
    the focus method against every other ("focus").
    """

    place: Place
    treated: str
    baseline: str
    family: Literal["grid", "focus"]
    seeds: tuple[int, ...]
    comparison: PairedComparison
    seed_p_adjusted: float | None
    item_p_adjusted: float | None
    family_size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Trend:
    """Gain over the study's baseline as shots grow; `slope` is in points per doubling, None with one size.

    `slope_joint` is the interval of its mean over seeds and items.
    """

    setting: str
    metric: str
    test_set: str
    treated: str
    baseline: str
    sizes: tuple[int, ...]
    shots: tuple[int | None, ...]
    """What each size was asked for as; None is all data."""
    gains: tuple[Spread, ...]
    seeds: tuple[int, ...]
    slope_per_seed: tuple[float, ...]
    slope: Spread | None
    slope_test: Significance | None
    slope_joint: Interval | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """Accuracy lost from one side to another; `change` is the loss minus the baseline's.

    A "drop" is lost from the in-domain test set, which `against` names, to the shifted one of the place. Where that
    one asks the same questions otherwise (`questions` is "same"), all numbers are over the questions that both hold;
    else each accuracy is over its whole set. A "use" is lost when the picture is spoilt, in the way that `against`
    says (swapped, blanked, removed).
    """

    quantity: LossQuantity
    place: Place
    against: str
    questions: Questions | None
    method: str
    seeds: tuple[int, ...]
    per_seed: tuple[float, ...]
    before: Spread
    after: Spread
    lost: Spread
    baseline: str | None
    change_seeds: tuple[int, ...]
    change_per_seed: tuple[float, ...]
    change: Spread | None


@dataclass(frozen=True, kw_only=True, slots=True)
class MeanContrast:
    """The focus method against another in one quantity: mean over the shot sizes of the seeds that all of them have.

    `quantity` is the accuracy, the drop to a shifted set or what swapped pictures cost; `questions` is of a drop.
    """

    setting: str
    metric: str
    test_set: str
    quantity: ClaimQuantity
    questions: Questions | None
    treated: str
    baseline: str
    shots: tuple[int | None, ...]
    seeds: tuple[int, ...]
    per_seed: tuple[float, ...]
    joint_interval: Interval


@dataclass(frozen=True, kw_only=True, slots=True)
class TextShare:
    """How much of a test set its texts alone give away, and where a method is right.

    `share` is the percentage of items that the text-only student of the same seed gets right; `on_given` and
    `on_rest` are the method's accuracies on those items and on the others. `change` is `on_rest` minus the
    baseline's.
    """

    place: Place
    text_only: str
    method: str
    seeds: tuple[int, ...]
    share: Spread
    on_given: Spread
    on_rest: Spread
    baseline: str | None
    change: Spread | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Readout:
    """How often a method's students place words or regions as a teacher does, before and after the adapt step.

    `teacher` is the one of the cache: where a control shuffles it, the true one; where a control's teacher is
    random, that random one. `chance` is the percentage of a student that knows nothing of the teacher.
    """

    setting: str
    method: str
    shots: int | None
    teacher: str
    nodes: Nodes
    seeds: tuple[int, ...]
    before: Spread
    after: Spread
    chance: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What training a method costs, over the seeds of one shot size. Times in seconds, memory in bytes."""

    setting: str
    method: str
    shots: int | None
    num_steps: int
    seconds_per_step: float
    seconds: float
    wait_share: float
    peak_memory_bytes: int
    student_parameters: int
    training_only_parameters: int
    milliseconds_per_item: float | None
    """Inference, mean over test sets; None where it was not measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightHistogram:
    """Confidence weights of the finetune step, or the confidences behind them, pooled over seeds.

    `quantity` says which; `modality` is the pathway or probe, or "student". Shares of the bins sum to 1.
    """

    quantity: Literal["weight", "confidence"]

    setting: str
    method: str
    shots: int | None
    modality: str
    edges: tuple[float, ...]
    shares: tuple[float, ...]
    mean: float
    count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """Reliability of a method on a test set, pooled over seeds."""

    place: Place
    method: str
    reliability: Reliability


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheRecord:
    """A teacher cache that runs of the study read: its identity, and what is known of its making.

    `seconds` is None where nobody noted how long it took; `num_bytes` is None where the cache no longer lies.
    """

    path: str
    seconds: float | None
    num_bytes: int | None
    identity: Mapping[str, Any]
    provenance: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyResult:
    """Everything that was gathered."""

    study: StudyConfig
    folder: Path
    runs: Path
    """What the names of runs are relative to."""
    command: str
    cells: tuple[CellRecord, ...]
    standings: tuple[Standing, ...]
    contrasts: tuple[Contrast, ...]
    trends: tuple[Trend, ...]
    losses: tuple[Loss, ...]
    mean_contrasts: tuple[MeanContrast, ...]
    text_shares: tuple[TextShare, ...]
    readouts: tuple[Readout, ...]
    costs: tuple[Cost, ...]
    weights: tuple[WeightHistogram, ...]
    calibrations: tuple[Calibration, ...]
    caches: tuple[CacheRecord, ...]
    environments: tuple[Mapping[str, Any], ...]
    caveats: Mapping[str, tuple[str, ...]]
    """Setting -> what a reader of its numbers must know of what the students saw; none for most."""
    trivial: Mapping[tuple[str, str, str], Mapping[str, Any]]
    """(setting, metric, test set) -> chance and majority answer, as `AnswerTally.summary` gives them."""
    items: pd.DataFrame = field(compare=False, repr=False)
    """The tidy table that all of it follows from, as `item_frame` returns it."""
    of_runs: bool = False
    """Gathered from runs that no study asked for, which claim nothing."""

    @property
    def num_finished(self) -> int:
        return sum(cell.state == "finished" for cell in self.cells)

    def losses_of(self, quantity: LossQuantity) -> tuple[Loss, ...]:
        """Return what was lost under shift, or without the true picture."""
        return tuple(loss for loss in self.losses if loss.quantity == quantity)

    def places(self) -> Iterator[Place]:
        """Places that have a standing, in the order of the grid."""
        yield from dict.fromkeys(standing.place for standing in self.standings)

    def standing(self, place: Place, method: str) -> Standing | None:
        return _first(self.standings, place=place, method=method)

    def trivial_of(self, place: Place) -> Mapping[str, Any]:
        """Return what is right at a place without a student; nothing where its evaluations did not tell."""
        return self.trivial.get((place.setting, place.metric, place.test_set), {})

    def best_control(self, place: Place) -> Standing | None:
        """Return the best of the baseline and the controls at a place, over the seeds of the focus method.

        A gain that is no gain over this one does not come from what a teacher knows.
        """
        focus, roles = self.standing(place, self.study.focus), ("baseline", "control")
        rivals = [
            item
            for item in self.standings
            if item.place == place
            and item.method != self.study.focus
            and (item.method == self.study.baseline or self.study.variant(item.method).role in roles)
            and focus is not None
            and set(item.seeds) >= set(focus.seeds)
        ]
        return max(rivals, key=lambda item: item.accuracy.mean, default=None)

    def contrast(self, place: Place, treated: str, baseline: str) -> Contrast | None:
        """Return the comparison of two methods at a place, if it was made."""
        return _first(self.contrasts, place=place, treated=treated, baseline=baseline)

    def mean_contrast(self, **wanted: str) -> MeanContrast | None:
        """Return the focus method's comparison with `baseline` in a `quantity` on a test set, if it could be made."""
        return _first(self.mean_contrasts, **wanted)


def _first(records: Iterable[Record], **wanted: Any) -> Record | None:
    """Return the first record whose fields are as wanted."""
    return next((item for item in records if all(getattr(item, key) == value for key, value in wanted.items())), None)
