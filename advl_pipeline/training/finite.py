"""What training must not go on from: a loss term, a gradient or a weight that is not finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from advl_pipeline.errors import (
    NotFinite,
    advise,
)
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.step_log import LoggedTerms

_SHOWN = 3
_SMALLEST_LOSS_SCALE = 1.0
"""A scale of fp16 gradients below this was halved so often that their overflow is none of the scale's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepPlace:
    """Where a run is: step and phase as in metrics.jsonl, and the steps that its checkpoint holds."""

    config: FinetuneConfig
    step: int
    phase: str
    num_saved: int

    def error(self, what: str, why: str, *, suspects_cache: bool = False) -> NotFinite:
        """Return the error that stops the run here."""
        kept = f"the checkpoint after {self.num_saved} steps is kept" if self.num_saved else "there is no checkpoint"
        anew = "lower --learning-rate and start over with --no-resume"
        verify = [["advl", "cache", "verify", str(cache)] for cache in self.config.cache]
        return NotFinite(
            f"Training stopped at step {self.step} of the {self.phase} step: {what} is not finite.",
            where=str(self.config.output),
            why=f"{why}; {kept}",
            next_command=advise(*verify, note=f"where the caches are sound, {anew}") if suspects_cache else anew,
        )


def require_finite_terms(terms: Sequence[LoggedTerms], place: StepPlace) -> None:
    """Stop on loss terms that are not finite, named.

    Raises:
        NotFinite: as said; where only terms of teachers are at fault, their caches are to be verified.
    """
    values: dict[str, float] = {}
    for one in terms:
        for name, number in (*one.weighted.items(), *one.raw.items()):
            if not math.isfinite(number) or name not in values:
                values[name] = number
    bad = {name: value for name, value in values.items() if not math.isfinite(value)}
    if bad:
        named = ", ".join(f"{name} = {value}" for name, value in sorted(bad.items()))
        raise place.error(
            f"the loss term {_list(sorted(bad))}",
            named,
            suspects_cache=bool(place.config.cache) and len(bad) < len(values) and "task" not in bad,
        )


def require_finite_gradient(
    norm: float,
    parameters: Iterable[tuple[str, nn.Parameter]],
    place: StepPlace,
    *,
    loss_scale: Callable[[], float] | None,
) -> None:
    """Stop on a gradient that is not finite, with the parameters at fault.

    Args:
        norm: of all gradients together.
        parameters: by name.
        loss_scale: of fp16, None without. A gradient that overflows under a large one only skips the step.

    Raises:
        NotFinite: as said.
    """
    if math.isfinite(norm) or (loss_scale is not None and loss_scale() >= _SMALLEST_LOSS_SCALE):
        return
    bad = [name for name, value in parameters if value.grad is not None and not bool(value.grad.isfinite().all())]
    raise place.error("the gradient", f"its norm is {norm}, from {_list(bad) or 'the sum of finite ones'}")


def require_finite_weights(model: nn.Module, place: StepPlace) -> None:
    """Stop on weights that are not finite, before anything is written of them.

    Raises:
        NotFinite: with their names.
    """
    bad = [name for name, value in model.state_dict().items() if not bool(value.isfinite().all())]
    if bad:
        raise place.error("a weight", f"not finite: {_list(bad)}")


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
