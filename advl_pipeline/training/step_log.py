"""What an optimiser step tells of itself: a record of metrics.jsonl, over all micro-batches and processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def log_terms(share: float, terms: LossTerms, *, is_learned: bool) -> LoggedTerms:
    """Take the numbers out of a micro-batch's terms; `is_learned` says whether they gave gradients."""
    return LoggedTerms(
        share=share,
        is_learned=is_learned,
        weighted={name: float(value.detach()) for name, value in terms.weighted.items()},
        raw={name: float(value.detach()) for name, value in terms.raw.items()},
        balance={name: float(value) for name, value in terms.balance.items()},
        weights={name: value.float().tolist() for name, value in terms.weights.items()},
        confidence={name: value.float().tolist() for name, value in terms.confidence.items()},
        num_correct=None if terms.num_correct is None else float(terms.num_correct),
    )


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
