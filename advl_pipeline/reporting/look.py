"""How each method looks: a colour, a marker and a dash that stay the same in every figure.

The colours are those of Okabe and Ito, told apart with any colour vision; the page's style sheet holds a light and a
dark shade of each as classes c0 to c7. Roles can be told without colour: controls are hollow and dashed.
"""

from __future__ import annotations

from dataclasses import dataclass

from advl_pipeline.reporting import wording
from advl_pipeline.studies.config import StudyConfig

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
