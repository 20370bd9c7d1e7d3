"""A figure of the page: panels, a caption, the numbers behind it as a table, and the runs they come from.

A method has the same look in every figure: a colour, a marker, a dash. The colours are those of Okabe and Ito, told
apart with any colour vision; the page's style sheet holds a light and a dark shade of each as classes c0 to c7. Roles
can be told without colour: controls are hollow and dashed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from advl_pipeline.reporting import wording
from advl_pipeline.studies.config import StudyConfig
from advl_pipeline.studies.result import Place, StudyResult

_SHAPES = ("circle", "square", "diamond", "triangle")
_FREE_COLOURS = (2, 3, 4, 5, 6, 7)


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """Classes and marker of a method. `series` is its name on the page."""

    series: str
    label: str
    colour: str
    shape: str
    hollow: bool

    @property
    def line(self) -> str:
        return f"line {self.colour}" + (" dashed" if self.hollow else "")

    @property
    def point(self) -> str:
        return f"point {self.colour}" + (" hollow" if self.hollow else "")


def looks(study: StudyConfig) -> dict[str, Look]:
    """Give every method of a study its look: grey for the baseline, blue for the focus, the rest in order."""
    found = {}
    free = 0
    for method in study.methods:
        if method == study.baseline:
            colour, shape = 0, "circle"
        elif method == study.focus:
            colour, shape = 1, "circle"
        else:
            colour, shape = _FREE_COLOURS[free % len(_FREE_COLOURS)], _SHAPES[1 + free % 3]
            free += 1
        variant = study.variant(method)
        found[method] = Look(
            series=method,
            label=wording.method_label(study, method),
            colour=f"c{colour}",
            shape=shape,
            hollow=variant.role == "control",
        )
    return found


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
    reference = result.study.setting(setting).reference
    wanted = (setting, metric, reference)
    return reference, [
        item for item in records if (item.place.setting, item.place.metric, item.place.test_set) == wanted
    ]
