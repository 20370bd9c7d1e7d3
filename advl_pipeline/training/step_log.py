"""Step records of metrics.jsonl, over all micro-batches and processes.

The numbers of a step leave the device in one transfer and are read while the next step runs, because reading a number
waits for all work queued on the device. A loss term, a gradient or a weight that is not finite stops the training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import fmean
from typing import Any, get_args

import torch
from torch import nn

from advl_pipeline.base.errors import NotFinite, advise
from advl_pipeline.runs.results import STAGE_KEY
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.step import LossTerms, Stage

LoggedTerms = tuple[float, bool, dict[str, list[float]]]
"""The terms of one micro-batch as plain numbers, which processes can exchange.

They are its share of the examples of the optimiser step, whether it has gradients, and the values by "kind/name". The
kinds are those of `step.LossTerms` and `correct`, the number of correct predictions.
"""


TOTALLED = (
    "seconds",
    "num_steps",
    "seconds_waited",
    "seconds_preparing",
    "num_examples",
    "num_texts",
    "num_texts_cut",
)


def stage_totals(records: Sequence[Mapping[str, Any]]) -> dict[Stage, dict[str, float]]:
    """Sum the records of metrics.jsonl by stage; stages without a step are left out.

    `seconds` includes `seconds_waited` for data and the time of writing checkpoints before each step.
    `seconds_preparing` is processor time of data preparation elsewhere. Numbers missing from steps that version 0.2.0
    logged count as 0.
    """
    totals: dict[Stage, dict[str, float]] = {}
    for stage in get_args(Stage):
        steps = [record for record in records if record[STAGE_KEY] == stage]
        if steps:
            totals[stage] = {key: sum(step.get(key, 0) for step in steps) for key in TOTALLED}
            totals[stage]["num_steps"] = len(steps)
            totals[stage]["seconds"] += sum(
                step["seconds_waited"] + step.get("seconds_saving", 0.0) for step in steps
            )
    return totals


class StepNumbers:
    """Transfer of the numbers of an optimiser step's micro-batches from the device."""

    def __init__(self) -> None:
        self._micro_batches: list[tuple[float, bool, dict[str, int]]] = []
        self._values: list[torch.Tensor] = []
        self._ready: Any = None

    def add(self, share: float, terms: LossTerms, *, is_learned: bool) -> None:
        """Add the terms of a micro-batch; `is_learned` says whether they gave gradients."""
        values = {
            f"{kind}/{name}": value
            for kind in ("weighted", "raw", "weights", "confidence")
            for name, value in getattr(terms, kind).items()
        }
        if terms.num_correct is not None:
            values["correct"] = terms.num_correct
        self._values += values.values()
        self._micro_batches.append((share, is_learned, {key: value.numel() for key, value in values.items()}))

    def send(self, gradient_norm: torch.Tensor | None) -> None:
        """Start the transfer of the numbers and the gradient norm from the device."""
        device = self._values[0].device
        norm = torch.zeros((), device=device) if gradient_norm is None else gradient_norm
        flat = torch.cat([value.detach().float().reshape(-1) for value in (*self._values, norm) if value.numel()])
        self._values = [flat]
        if device.type == "cuda" and torch.cuda.is_available():
            host = torch.empty(flat.shape, pin_memory=True)
            host.copy_(flat, non_blocking=True)
            self._values, self._ready = [host], torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._ready.record()

    def read(self) -> tuple[list[LoggedTerms], float]:
        """Return the terms of the micro-batches and the gradient norm, 0 where there was none."""
        if self._ready is not None:
            self._ready.synchronize()
        numbers = iter(self._values[0].tolist())
        terms = []
        for share, is_learned, sizes in self._micro_batches:
            # In the order of addition.
            values = {key: list(islice(numbers, size)) for key, size in sizes.items()}
            terms.append((share, is_learned, values))
        return terms, next(numbers)


def step_record(logged: Sequence[LoggedTerms], num_examples: int) -> dict[str, Any]:
    """Return the record of an optimiser step from all of its micro-batches."""
    record: dict[str, Any] = {"num_examples": num_examples}
    drawn: dict[str, list[float]] = {}
    for share, _, by_key in logged:
        for key, values in by_key.items():
            kind = key.partition("/")[0]
            if kind in ("weights", "confidence"):
                drawn.setdefault(key, []).extend(values)
            else:
                value = values[0] / num_examples if kind == "correct" else share * values[0]
                record[key] = record.get(key, 0.0) + value
    return record | {key: {"mean": fmean(values), "max": max(values)} for key, values in drawn.items()}


_SHOWN = 3
_SMALLEST_LOSS_SCALE = 1.0
"""If fp16's loss scale was halved below this value, a gradient overflow is not the fault of the scale."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepPlace:
    """The position of a run: step and stage as in metrics.jsonl, and the number of steps in its checkpoint."""

    config: FinetuneConfig
    step: int
    stage: str
    num_saved: int

    def error(self, what: str, why: str, *, suspects_cache: bool = False) -> NotFinite:
        """Return the error that stops the run at this step."""
        kept = f"the checkpoint after {self.num_saved} steps is kept" if self.num_saved else "there is no checkpoint"
        instead = "lower --learning-rate and start over with --no-resume"
        verify = [["advl", "cache", "verify", str(cache)] for cache in self.config.cache]
        return NotFinite(
            f"Training stopped at step {self.step} of the {self.stage} stage: {what} is not finite.",
            where=str(self.config.output),
            why=f"{why}; {kept}",
            next_command=advise(*verify, note=f"where the caches are sound, {instead}")
            if suspects_cache
            else instead,
        )


def require_finite_terms(terms: Sequence[LoggedTerms], place: StepPlace) -> None:
    """Stop on loss terms that are not finite, and name them.

    Raises:
        NotFinite: a term is infinite or NaN. If only teacher terms are, the message suggests verifying the caches.
    """
    values: dict[str, float] = {}
    for _, _, by_key in terms:
        for key, numbers in by_key.items():
            kind, _, name = key.partition("/")
            if kind in ("weighted", "raw") and (name not in values or not math.isfinite(numbers[0])):
                values[name] = numbers[0]
    bad = {name: value for name, value in values.items() if not math.isfinite(value)}
    if bad:
        raise place.error(
            f"the loss term {_list(sorted(bad))}",
            ", ".join(f"{name} = {value}" for name, value in sorted(bad.items())),
            suspects_cache=bool(place.config.cache) and len(bad) < len(values) and "task" not in bad,
        )


def require_finite_gradient(
    norm: float,
    parameters: Iterable[tuple[str, nn.Parameter]],
    place: StepPlace,
    *,
    loss_scale: Callable[[], float] | None,
) -> None:
    """Stop on a gradient that is not finite, and name the parameters.

    Args:
        norm: of all gradients together.
        parameters: by name.
        loss_scale: of fp16, None without. If it is large, an overflow of the gradient only skips the step.

    Raises:
        NotFinite: the gradient is infinite or NaN.
    """
    if math.isfinite(norm) or (loss_scale is not None and loss_scale() >= _SMALLEST_LOSS_SCALE):
        return
    bad = [name for name, value in parameters if value.grad is not None and not bool(value.grad.isfinite().all())]
    raise place.error("the gradient", f"its norm is {norm}, from {_list(bad) or 'the sum of finite ones'}")


def require_finite_weights(model: nn.Module, place: StepPlace) -> None:
    """Stop on weights that are not finite, before they are written.

    Raises:
        NotFinite: a weight is infinite or NaN; the message names the weights.
    """
    state = model.state_dict()
    # One norm checks all weights, unless the norm of finite weights overflows.
    norm = nn.utils.get_total_norm([value for value in state.values() if value.is_floating_point()])
    if bool(norm.isfinite()):
        return
    bad = [name for name, value in state.items() if not bool(value.isfinite().all())]
    if bad:
        raise place.error("a weight", f"not finite: {_list(bad)}")


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
