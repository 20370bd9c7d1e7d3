"""Metrics that a card defines for a dataset: facets of items, and measures over them.

A facet is an additional text of a row, such as its source. A measure aggregates the scores of items to one number,
or to one number per value of a facet (`evaluation/measures.py` computes it).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from advl_pipeline.base.configuration import Configuration, option
from advl_pipeline.base.errors import ConfigError, suggest_names
from advl_pipeline.datasets.problems import written_number

OF_EVERY_ITEM = ("group", "picture", "question", "type")
"""Facets that items have without a card: their group, picture, question text and stratum."""

Quantity = Literal["accuracy", "groups", "precision", "recall", "f1", "positives", "distribution"]

Ties = Literal["first", "right", "wrong"]
"""Score of an item whose right choice ties for the highest score: by the order of the choices, 1, or 0."""

Rule = Literal["letter", "mmstar", "cv-bench", "scienceqa", "ranked", "pope", "naturalbench"]
"""Rule for parsing a generated answer (`evaluation/answer_reading.py`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Facet(Configuration):
    """A facet of the items: the value of a column, or a part of it."""

    column: str
    """Source column; the first entry of a list; COLUMN.FIELD for a table."""
    pattern: str = ""
    """Regular expression: the facet is the groups of its first match."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Value of the column -> name of the facet; other values are unchanged."""
    per: int | None = None
    """The column counts from 1, and this many consecutive values share a name."""

    def of(self, record: Mapping[str, Any]) -> str:
        """Return the facet of a row; "" if the row has none."""
        value: Any = record
        for part in self.column.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        value = next(iter(value), None) if isinstance(value, list) else value
        text = "" if value is None else str(value)
        if self.pattern:
            match = re.search(self.pattern, text)
            text = " ".join(part for part in match.groups() if part) if match else ""
        if self.per is not None and (number := written_number(text)) is not None:
            text = str((number - 1) // self.per)
        return self.names.get(text, text)


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure(Configuration):
    """A metric in percent: `accuracy`, the share of `groups` that are all right, or a metric of a yes/no task.

    `distribution` is the distance between the distributions of the given and the right answers within groups; 0 is
    best (GQA).
    """

    name: str
    """Name of the measure."""
    of: Quantity = "accuracy"
    """Measured quantity."""
    positive: str | None = None
    """Positive answer for precision, recall, F1 and the share of positives."""
    by: str | None = None
    """Facet to report one number per value of."""
    mean_of: tuple[Any, ...] = ()
    """Values of the facet `by` to average; a nested list is averaged first; "each" for all."""
    keys: tuple[str, ...] = ()
    """Facets that define a group; items without one belong to no group of a `distribution`."""
    size: int | None = option(
        None,
        help="Items per complete group; incomplete groups are wrong.",
        minimum=1,
    )
    denominator: int | None = option(None, help="Items that there are, whatever is scored.", minimum=1)
    splits: tuple[str, ...] = ()
    """Splits that the measure applies to [default: all]."""

    @property
    def facets(self) -> tuple[str, ...]:
        """Facets that the measure needs."""
        return (*self.keys, *([self.by] if self.by else []))


def require_measures(measures: Iterable[Measure], facets: Mapping[str, Facet], *, where: str) -> None:
    """Refuse measures that cannot be computed, and invalid patterns.

    Raises:
        ConfigError: a measure or a pattern is invalid; the message names the measure or the facet.
    """
    for name, facet in facets.items():
        try:
            has_groups = not facet.pattern or re.compile(facet.pattern).groups
        except re.error as error:
            raise ConfigError(
                f"The pattern of the facet {name!r} is no valid regular expression.", where=where, why=str(error)
            ) from None
        if name in OF_EVERY_ITEM or not has_groups:
            raise ConfigError(
                f"The facet {name!r} cannot be read.",
                where=where,
                why="items have a facet of that name without a card" if has_groups else "its pattern has no group",
            )
    for measure in measures:
        known = (*facets, *OF_EVERY_ITEM)
        unknown = next((facet for facet in measure.facets if facet not in known), None)
        needs_answer = measure.of in ("precision", "recall", "f1", "positives")
        is_grouped = measure.of in ("groups", "distribution")
        near = suggest_names(unknown or "", known)
        reasons = {
            f"it needs the facet {unknown!r}, which [facets] does not give; {near}": unknown,
            f"{measure.of} needs `positive`, the answer that it means": needs_answer and measure.positive is None,
            f"{measure.of} need `keys`, the facets that items share": is_grouped and not measure.keys,
            "`mean_of` needs `by`, the facet whose values it names": measure.mean_of and measure.by is None,
            "`size` and `keys` are of groups": (measure.keys and not is_grouped)
            or (measure.size and measure.of != "groups"),
            "`denominator` is of an accuracy": measure.of != "accuracy" and measure.denominator,
            f"`positive` is of no {measure.of}": not needs_answer and measure.positive,
        }
        if unmet := [reason for reason, holds in reasons.items() if holds]:
            raise ConfigError(
                f"The measure {measure.name!r} of the card cannot be computed.", where=where, why=unmet[0]
            )
