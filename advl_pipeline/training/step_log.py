"""What an optimiser step tells of itself: a record of metrics.jsonl, over all micro-batches and processes.

Its numbers leave the device in one piece, and are read when the next step is under way: whoever reads a number waits
for everything that the device was asked to do before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch

from advl_pipeline.training.finetune_model import LossTerms, Phase

HISTOGRAM_BINS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggedTerms:
    """The terms of one micro-batch as plain numbers, which processes can hand one another.

    `share` is that of its examples in the optimiser step.
    """

    share: float
    is_learned: bool
    weighted: dict[str, float]
    raw: dict[str, float]
    balance: dict[str, float]
    weights: dict[str, list[float]]
    confidence: dict[str, list[float]]
    num_correct: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class PhaseTotals:
    """Sums over the logged steps of a phase, whichever sitting they were taken in.

    `seconds` holds `seconds_waited` for data and the writing of checkpoints before each step. `seconds_preparing` is
    processor time of preparing data elsewhere.
    """

    seconds: float
    seconds_waited: float
    seconds_preparing: float
    num_steps: int
    num_examples: int
    num_texts: int
    num_texts_cut: int


def phase_totals(records: Sequence[Mapping[str, Any]]) -> dict[Phase, PhaseTotals]:
    """Add up the records of metrics.jsonl, phase by phase; phases without a step are left out."""
    found: dict[Phase, PhaseTotals] = {}
    for phase in get_args(Phase):
        steps = [record for record in records if record["phase"] == phase]
        if not steps:
            continue
        # Steps that version 0.2.0 logged lack these; what they cut would be a share of nothing.
        counted = [step for step in steps if "num_texts" in step]
        found[phase] = PhaseTotals(
            seconds=sum(step["seconds"] + step["seconds_waited"] + step.get("seconds_saving", 0.0) for step in steps),
            seconds_waited=sum(step["seconds_waited"] for step in steps),
            seconds_preparing=sum(step["seconds_preparing"] for step in counted),
            num_steps=len(steps),
            num_examples=sum(step["num_examples"] for step in steps),
            num_texts=sum(step["num_texts"] for step in counted),
            num_texts_cut=sum(step["num_texts_cut"] for step in counted),
        )
    return found


class StepNumbers:
    """The numbers of the micro-batches of one optimiser step, on their way from the device."""

    def __init__(self) -> None:
        self._micro_batches: list[tuple[float, bool, dict[str, dict[str, int]], bool]] = []
        self._values: list[torch.Tensor] = []
        self._ready: Any = None

    def add(self, share: float, terms: LossTerms, *, is_learned: bool) -> None:
        """Add the terms of a micro-batch; `is_learned` says whether they gave gradients."""
        kinds = {
            "weighted": terms.weighted,
            "raw": terms.raw,
            "balance": terms.balance,
            "weights": terms.weights,
            "confidence": terms.confidence,
        }
        self._values += [value for of_kind in kinds.values() for value in of_kind.values()]
        sizes = {kind: {name: value.numel() for name, value in found.items()} for kind, found in kinds.items()}
        has_count = terms.num_correct is not None
        if terms.num_correct is not None:
            self._values.append(terms.num_correct)
        self._micro_batches.append((share, is_learned, sizes, has_count))

    def send(self, gradient_norm: torch.Tensor | None) -> None:
        """Let the numbers leave the device, and the norm of the gradient with them."""
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
        """Return the terms of the micro-batches and the norm of the gradient, 0 where there was none."""
        if self._ready is not None:
            self._ready.synchronize()
        numbers = iter(self._values[0].tolist())
        found = []
        for share, is_learned, sizes, has_count in self._micro_batches:
            found.append(
                LoggedTerms(
                    share=share,
                    is_learned=is_learned,
                    # In the order in which they were added.
                    weighted=_take_each(numbers, sizes["weighted"]),
                    raw=_take_each(numbers, sizes["raw"]),
                    balance=_take_each(numbers, sizes["balance"]),
                    weights=_take(numbers, sizes["weights"]),
                    confidence=_take(numbers, sizes["confidence"]),
                    num_correct=next(numbers) if has_count else None,
                )
            )
        return found, next(numbers)


def _take_each(numbers: Iterator[float], sizes: Mapping[str, int]) -> dict[str, float]:
    return {name: next(numbers) for name in sizes}


def _take(numbers: Iterator[float], sizes: Mapping[str, int]) -> dict[str, list[float]]:
    return {name: [next(numbers) for _ in range(size)] for name, size in sizes.items()}


def summarise(logged: Sequence[LoggedTerms], num_examples: int) -> dict[str, Any]:
    """Return the record of an optimiser step from all of its micro-batches."""
    record: dict[str, Any] = {"num_examples": num_examples}
    for terms in logged:
        for kind, values in (("raw", terms.raw), ("weighted", terms.weighted)):
            for name, value in values.items():
                key = f"{kind}/{name}"
                record[key] = record.get(key, 0.0) + terms.share * value
        if terms.num_correct is not None:
            record["correct"] = record.get("correct", 0.0) + terms.num_correct / num_examples
    for name, factor in logged[0].balance.items():
        record[f"balance/{name}"] = factor
    for name in logged[0].weights:
        record[f"weights/{name}"] = histogram([value for terms in logged for value in terms.weights[name]])
    for name in logged[0].confidence:
        record[f"confidence/{name}"] = histogram([value for terms in logged for value in terms.confidence[name]])
    return record


def histogram(values: Sequence[float]) -> dict[str, Any]:
    """Bins of equal width from 0 to the largest value, at least to 1."""
    joined = torch.tensor(values)
    top = max(1.0, float(joined.max()))
    counts = torch.histc(joined, bins=HISTOGRAM_BINS, min=0.0, max=top)
    return {
        "mean": float(joined.mean()),
        "max": float(joined.max()),
        "bin_width": top / HISTOGRAM_BINS,
        "counts": counts.long().tolist(),
    }
