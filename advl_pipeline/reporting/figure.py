"""A figure of the page: panels, a caption, the numbers behind it as a table, and the runs they come from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from advl_pipeline.studies.result import Place, StudyResult


class Placed(Protocol):
    """A record of a study that has a place in its grid."""

    @property
    def place(self) -> Place: ...


Record = TypeVar("Record", bound=Placed)


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One SVG of a figure with its heading."""

    heading: str
    svg: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """What a section shows. `series` are the methods in it, for the legend; `rows` repeat every number drawn."""

    identifier: str
    title: str
    caption: str
    panels: tuple[Panel, ...]
    series: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    runs: tuple[str, ...]


def distinct(items: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(items))


def anchor(result: StudyResult, setting: str, metric: str = "") -> str:
    """Return a part of ids that is unique for a setting and metric, whatever characters their names hold."""
    position = [item.name for item in result.study.settings].index(setting)
    return f"{position}-{metric}" if metric else str(position)


def in_domain(result: StudyResult, records: Iterable[Record], setting: str, metric: str) -> tuple[str, list[Record]]:
    """Return a setting's in-domain test set, its first one, and the records of a metric there."""
    reference = next(item.test_sets[0] for item in result.study.settings if item.name == setting)
    wanted = (setting, metric, reference)
    return reference, [
        item for item in records if (item.place.setting, item.place.metric, item.place.test_set) == wanted
    ]
