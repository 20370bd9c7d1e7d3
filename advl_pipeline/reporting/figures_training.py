"""Figures of confidence: the weights that instances got in training, and how sure students are of their answers."""

from __future__ import annotations

from collections.abc import Mapping

from advl_pipeline.reporting import wording
from advl_pipeline.reporting.figure import Figure, Look, Panel, anchor, distinct, in_domain
from advl_pipeline.reporting.svg import Canvas, linear, nice_ticks
from advl_pipeline.studies.config import shots_label
from advl_pipeline.studies.result import Calibration, StudyResult, WeightHistogram

_WIDTH = 168.0
"""Two panels beside each other on a phone, five on a desk: there are many of them."""

_HEIGHT, _SIDE, _TOP, _BOTTOM = 140.0, 6.0, 12.0, 34.0


def weight_figure(result: StudyResult, look: Mapping[str, Look], *, setting: str) -> Figure | None:
    """Distribution of the confidence weights of the focus method; None when no run logged any."""
    histograms = [item for item in result.weights if (item.setting, item.method) == (setting, result.study.focus)]
    if not histograms:
        return None
    panels = tuple(
        Panel(
            heading=f"{_what(item)}, {wording.shots_text(item.shots)}",
            svg=_histogram(item, look[item.method], identifier=f"weights-{anchor(result, setting)}-{number}"),
        )
        for number, item in enumerate(histograms)
    )
    rows = tuple(
        (
            _what(item),
            shots_label(item.shots),
            f"{item.mean:.2f}",
            f"{100 * item.shares[-1]:.0f} %",
            wording.count(item.count),
        )
        for item in histograms
    )
    runs = [cell.run for cell in result.cells if (cell.setting, cell.method) == (setting, result.study.focus)]
    return Figure(
        identifier=f"weights-{anchor(result, setting)}",
        title="How much each instance is distilled",
        caption=(
            "Confidence weights w given in the finetune step, and the probabilities of the right answer behind them, "
            "of the student (c_S) and of the teachers' cross-fitted probes (c_T), pooled over seeds and steps. With "
            "the default ratio c_T / c_S, a weight above 1 means that the teacher was surer of the right answer than "
            "the student. If nearly all lie at one value, weighting does nothing; if c_T lies at chance, it follows "
            "the student alone."
        ),
        panels=panels,
        series=(result.study.focus,),
        columns=("quantity", "shots", "mean", "share in the top bin", "count"),
        rows=rows,
        runs=distinct(runs),
    )


def _what(item: WeightHistogram) -> str:
    if item.quantity == "weight":
        return f"w, {item.modality}"
    return "c_S, student" if item.modality == "student" else f"c_T, {item.modality}"


def _axis(item: WeightHistogram) -> str:
    return "confidence weight" if item.quantity == "weight" else "P(right answer)"


def _histogram(item: WeightHistogram, style: Look, *, identifier: str) -> str:
    top = max(item.shares)
    canvas = Canvas(
        width=_WIDTH,
        height=_HEIGHT,
        identifier=identifier,
        title=f"Distribution of {_what(item)} at {wording.shots_text(item.shots)}",
        description=(
            f"{item.count} values between 0 and {item.edges[-1]:.2g} with mean {item.mean:.2f}; "
            f"{100 * item.shares[-1]:.0f} % lie in the top bin."
        ),
    )
    x = linear((0.0, item.edges[-1]), (_SIDE, _WIDTH - _SIDE))
    y = linear((0.0, top), (_HEIGHT - _BOTTOM, _TOP + 16))
    canvas.open_group("series", style.series)
    for low, high, share in zip(item.edges, item.edges[1:], item.shares, strict=False):
        canvas.rect(x(low) + 0.5, y(share), x(high) - x(low) - 1.0, y(0) - y(share), f"column {style.colour}")
    canvas.close_group()
    canvas.line(_SIDE, y(0), _WIDTH - _SIDE, y(0), "zero")
    for tick in nice_ticks(0.0, item.edges[-1]):
        if tick <= item.edges[-1]:
            canvas.text(x(tick), _HEIGHT - _BOTTOM + 15, f"{tick:g}", "tick", anchor="middle")
    canvas.line(x(item.mean), _TOP, x(item.mean), y(0), "mean")
    side, anchor_at = (5, "start") if item.mean < 0.5 * item.edges[-1] else (-5, "end")
    canvas.text(x(item.mean) + side, _TOP + 6, f"mean {item.mean:.2f}", "value", anchor=anchor_at)
    canvas.text(_WIDTH / 2, _HEIGHT - 4, _axis(item), "axis", anchor="middle")
    return canvas.render()


def calibration_figure(result: StudyResult, look: Mapping[str, Look], *, setting: str, metric: str) -> Figure | None:
    """Accuracy against confidence on the in-domain test set at the smallest size; None without stored scores."""
    reference, found = in_domain(result, result.calibrations, setting, metric)
    if not found:
        return None
    sizes = sorted({item.place.size for item in found})
    shown = [item for item in found if item.place.size == sizes[0]]
    panels = tuple(
        Panel(
            heading=look[item.method].label,
            svg=_reliability(
                item, look[item.method], identifier=f"calibration-{anchor(result, setting, metric)}-{number}"
            ),
        )
        for number, item in enumerate(shown)
    )
    rows = tuple(
        (look[item.method].label, shots_label(item.place.shots), f"{item.reliability.expected_error:.1f}")
        for item in found
    )
    return Figure(
        identifier=f"calibration-{anchor(result, setting, metric)}",
        title="Right as often as sure",
        caption=(
            f"{reference}, {wording.shots_text(shown[0].place.shots)}, all seeds: accuracy of the answers in each "
            "tenth of confidence; the area of a mark grows with the number of answers. On the diagonal, confidence "
            "is honest; below it, the student is too sure. ECE is the mean distance from it in points."
        ),
        panels=panels,
        series=distinct(item.method for item in shown),
        columns=("method", "shots", "ECE, points"),
        rows=rows,
        runs=distinct(run for item in result.standings if item.place == shown[0].place for run in item.runs),
    )


def _reliability(item: Calibration, style: Look, *, identifier: str) -> str:
    bins = item.reliability.bins
    told = ", ".join(f"{100 * b.accuracy:.0f} % right at {100 * b.confidence:.0f} % sure" for b in bins)
    canvas = Canvas(
        width=_WIDTH,
        height=_WIDTH,
        identifier=identifier,
        title=f"Reliability of {style.label}",
        description=f"Expected calibration error {item.reliability.expected_error:.1f} points: {told}.",
    )
    left, foot = 28.0, _WIDTH - _BOTTOM
    x, y = linear((0.0, 1.0), (left, _WIDTH - 12)), linear((0.0, 1.0), (foot, _TOP))
    for tick in (0.0, 0.5, 1.0):
        canvas.line(x(0), y(tick), x(1), y(tick), "grid")
        canvas.text(left - 6, y(tick) + 3.5, f"{100 * tick:g}", "tick", anchor="end")
        canvas.text(x(tick), foot + 15, f"{100 * tick:g}", "tick", anchor="middle")
    canvas.line(x(0), y(0), x(1), y(1), "zero")
    canvas.open_group("series", style.series)
    total = sum(b.count for b in bins)
    canvas.path([(x(b.confidence), y(b.accuracy)) for b in bins], style.line)
    for b in bins:
        radius = 2.0 + 5 * (b.count / total) ** 0.5
        canvas.marker(x(b.confidence), y(b.accuracy), style.shape, style.point, radius=radius)
    canvas.close_group()
    canvas.text(x(0.98), y(0.05), f"ECE {item.reliability.expected_error:.1f}", "value", anchor="end")
    canvas.text((x(0) + x(1)) / 2, _WIDTH - 4, "confidence %", "axis", anchor="middle")
    return canvas.render()
