"""The small canvas: scales, ticks and escaping."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from advl_pipeline.reporting.svg import Canvas, linear, logarithmic, nice_ticks

values = st.floats(-1000, 1000, allow_nan=False)


@given(values, values)
@example(0.0, 5e-324)
def test_ticks_cover_the_range_in_equal_steps(one: float, other: float) -> None:
    low, high = min(one, other), max(one, other)
    ticks = nice_ticks(low, high)
    assert 2 <= len(ticks) <= 9
    slack = 1e-6 * max(1.0, abs(low), abs(high), high - low)
    assert ticks[0] <= low + slack
    assert ticks[-1] >= high - slack
    steps = [b - a for a, b in itertools.pairwise(ticks)]
    assert steps == pytest.approx([steps[0]] * len(steps), rel=1e-3, abs=1e-9)


@given(st.floats(1, 1e5), st.floats(1.01, 100))
def test_the_logarithmic_scale_maps_doublings_to_equal_lengths(low: float, factor: float) -> None:
    scale = logarithmic((low, low * factor), (0.0, 100.0))
    assert scale(low) == pytest.approx(0, abs=1e-6)
    assert scale(low * math.sqrt(factor)) == pytest.approx(50, abs=1e-6)


def test_a_domain_without_width_maps_to_the_middle() -> None:
    assert linear((3, 3), (10, 20))(3) == 15


def test_texts_are_escaped() -> None:
    canvas = Canvas(width=10, height=10, identifier='a"b', title="<t>", description="&")
    canvas.text(0, 0, "<script>", 'x" onload="y')
    canvas.open_group("series", '"><b>')
    canvas.close_group()
    drawn = canvas.render()
    assert "<script>" not in drawn
    assert "<t>" not in drawn
    assert 'onload="y' not in drawn
    assert '"><b>' not in drawn
