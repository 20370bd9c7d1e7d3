"""Whether a run's confidences know anything, and what follows: a pathway whose confidence does not is weighted
uniformly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from advl_pipeline.confidence.probe import TruthConfidence
from advl_pipeline.confidence.separation import Separation, separation

ConfidenceCheck = Literal["auc", "none"]

_WEIGHTED = {"vision": "the vision pathway's weights", "text": "the text pathway's weights", "joint": "all weights"}


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedConfidence:
    """The confidences of one modality: `separation` of right from wrong, and whether weights follow them."""

    modality: str
    separation: Separation
    is_used: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain JSON types."""
        return {**asdict(self.separation), "weights": "by confidence" if self.is_used else "uniform"}

    def line(self) -> str:
        """Return one line for people."""
        found = self.separation
        figures = (
            f"confidence {self.modality}: AUC {found.auc:.2f} for right against wrong "
            f"(95 % interval {found.low:.2f} to {found.high:.2f}, {found.num_items} items)"
        )
        if self.is_used:
            return figures
        return (
            f"{figures}; NOT ABOVE CHANCE, so {_WEIGHTED[self.modality]} are uniform "
            "(--confidence-check none follows it)"
        )


def check_confidences(
    estimates: Mapping[str, TruthConfidence], groups: Sequence[str], check: ConfidenceCheck
) -> list[CheckedConfidence]:
    """Tell for each modality whether its weights follow the confidence.

    Args:
        estimates: by modality, on the labelled items.
        groups: picture of each item.
        check: `auc` refuses a confidence whose 95 % interval does not lie above chance; `none` refuses nothing.
    """
    checked = []
    for modality, estimate in estimates.items():
        found = separation(estimate.outranked_N, groups)
        is_used = check == "none" or found.is_above_chance
        checked.append(CheckedConfidence(modality=modality, separation=found, is_used=is_used))
    return checked
