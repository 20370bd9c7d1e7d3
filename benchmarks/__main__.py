"""`make bench`: build the same data in each format, measure, and print every goal as passed or missed.

python -m benchmarks [--quick] [--folder DIR] [--json FILE] [--markdown docs/performance.md] [--only SECTIONS]
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import vcr_index
from benchmarks.corpus import pictures, texts
from benchmarks.feed import feeding_memory, measure_feed
from benchmarks.page import render, write_page
from benchmarks.reading import INLINE, STREAM, Rate, measure_reading, median_ratio, sequential_cold_share
from benchmarks.scale import opening_seconds, streaming_memory
from benchmarks.students import measure_students
from benchmarks.training import measure_training
from benchmarks.variants import measure_variants
from benchmarks.vcr_index import measure_vcr_index
from benchmarks.writing import measure_writing

_OURS = (STREAM, INLINE, "ours, by id")
_LIMIT = "np.memmap"
_SECTIONS = ("reading", "variants", "writing", "feed", "training", "students", "scale", "readers")


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A measured figure and what it should be: at least, or at most."""

    name: str
    value: float
    target: float
    at_least: bool = True

    @property
    def is_met(self) -> bool:
        return self.value >= self.target if self.at_least else self.value <= self.target

    def line(self) -> str:
        bound = "at least" if self.at_least else "at most"
        return f"{'PASS' if self.is_met else 'FAIL'}  {self.name}: {self.value:.3g} ({bound} {self.target})"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="A few minutes: less data, fewer rounds.")
    parser.add_argument("--folder", type=Path, help="Where to build the data [default: a temporary folder].")
    parser.add_argument("--json", type=Path, help="Also write the figures to this file.")
    parser.add_argument("--markdown", type=Path, help="Also write the tables into this page, between its marks.")
    parser.add_argument("--only", default=",".join(_SECTIONS), help="Sections to run, separated by commas.")
    options = parser.parse_args()
    sections = options.only.split(",")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        figures: dict[str, Any] = {"machine": _machine(), "sizes": "quick" if options.quick else "full"}
        goals: list[Goal] = []
        if "reading" in sections:
            goals += _reading(folder, options.quick, figures)
        if "variants" in sections:
            _variants(folder, options.quick, figures)
        if "writing" in sections:
            goals += _writing(folder, options.quick, figures)
        if "feed" in sections:
            goals += _feed(folder, options.quick, figures)
        if "training" in sections:
            goals += _training(folder, options.quick, figures)
        if "students" in sections:
            goals += _students(options.quick, figures)
        if "scale" in sections:
            goals += _scale(folder, options.quick, figures)
        if "readers" in sections:
            goals += _readers(options.quick, figures)
    print("\n".join(goal.line() for goal in goals))
    print(f"{sum(goal.is_met for goal in goals)} of {len(goals)} goals met")
    found = [asdict(goal) | {"is_met": goal.is_met} for goal in goals]
    if options.markdown:
        write_page(options.markdown, render(figures, found))
    if options.json:
        content = figures | {"goals": found}
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _machine() -> str:
    load = os.getloadavg()[0]
    return (
        f"{datetime.date.today().isoformat()}, {os.cpu_count()} cores, {platform.machine()}, Python "
        f"{platform.python_version()}, load {load:.1f} when the run began"
    )


def _variants(folder: Path, quick: bool, figures: dict[str, Any]) -> None:
    found = measure_variants(
        texts(1_000 if quick else 20_000), folder / "variants", rounds=3, seconds=0.5 if quick else 3.0
    )
    figures["variants"] = [asdict(item) for item in found]
    print(f"\n{'stored as':<24}{'MB':>8}{'thousand texts/s':>18}{'1 - cosine':>12}")
    for item in found:
        print(
            f"{item.name:<24}{item.num_bytes / 1e6:>8.0f}{item.units_per_second / 1e3:>18.1f}"
            f"{item.cosine_error:>12.1e}"
        )


def _feed(folder: Path, quick: bool, figures: dict[str, Any]) -> list[Goal]:
    """Prepare batches without a model: what a GPU could be fed."""
    found = measure_feed(folder / "feed", num_photos=64, num_examples=512 if quick else 2_048)
    small, large = feeding_memory(folder / "feed-memory", num_pictures=128 if quick else 512)
    figures["feed"] = asdict(found) | {"memory_1x": small, "memory_10x": large}
    print(f"\n{'examples/s prepared':<44}{'per core':>10}{'1 worker':>10}{'2 workers':>10}")
    for name, feed in (("photos", found.photos), ("stored pictures", found.stored), ("regions", found.regions)):
        print(f"{name:<44}{feed.per_core:>10.0f}{feed.one_worker:>10.0f}{feed.two_workers:>10.0f}")
    print(
        f"decoding alone {found.decoding:.0f} photos/s; {found.tokens_per_question:.0f} tokens a question of regions"
    )
    return [
        Goal(name="photos fed, share of decoding alone", value=found.photos.per_core / found.decoding, target=0.8),
        Goal(name="stored pictures fed, against decoding", value=found.stored.per_core / found.decoding, target=10),
        Goal(name="stored pictures/s, two cores", value=found.stored.two_cores, target=1_500),
        Goal(name="questions/s, 36 regions, two teachers, two cores", value=found.regions.two_cores, target=1_000),
        Goal(name="share of steps of 40 ms waiting, by the clock", value=found.waits, target=0.02, at_least=False),
        Goal(name="memory of phase 2 at 10x the data, ratio", value=large / small, target=1.1, at_least=False),
    ]


def _training(folder: Path, quick: bool, figures: dict[str, Any]) -> list[Goal]:
    # The runs time the parts of a step once for every 50 steps.
    sizes = (8, 50, 1, 2_000) if quick else (80, 150, 7, 40_000)
    costs = measure_training(
        folder / "training", num_pictures=sizes[0], num_steps=sizes[1], rounds=sizes[2], num_texts=sizes[3]
    )
    figures["training"] = asdict(costs)
    print(f"\nstep: plain {costs.plain:.4f} s, cached {costs.cached:.4f} s, live {costs.live:.4f} s")
    print(f"of which the distillation's own arithmetic {costs.arithmetic:.4f} s")
    print(f"a step with live teachers takes {costs.live / costs.cached:.1f} times one from caches")
    print(f"a cache of {sizes[3]} texts is checked in {costs.checking:.3f} s, {costs.checking_share:.2%} of an epoch")
    print(f"and hashed in {costs.hashing:.2f} s, {costs.hashing_share:.1%} of an epoch")
    return [
        Goal(name="share of the finetune loop waiting", value=costs.wait_share, target=0.02, at_least=False),
        Goal(name="step with cached distillation, arithmetic apart", value=costs.ratio, target=1.10, at_least=False),
        Goal(name="step with cached distillation, everything", value=costs.whole_ratio, target=1.15, at_least=False),
        Goal(name="adapt step over 10,000 texts, relational, s", value=costs.relational, target=30, at_least=False),
        Goal(name="adapt step over 10,000 texts, mse, s", value=costs.coordinate, target=30, at_least=False),
        Goal(name="checking a cache, share of an epoch", value=costs.checking_share, target=0.01, at_least=False),
    ]


def _students(quick: bool, figures: dict[str, Any]) -> list[Goal]:
    """Train `uniter-base` with random weights on questions as long as VCR's, against the original formulation."""
    rounds, batches, num_lengths = (1, 1, 400) if quick else (3, 2, 4_000)
    found = measure_students(rounds=rounds, batches=batches, num_lengths=num_lengths)
    figures["students"] = asdict(found)
    print(f"\nuniter-base, questions/s of training: ours {found.ours:.2f}, original {found.original:.2f}")
    print(f"the original on our batches by tokens: {found.original_by_tokens:.2f}")
    print(f"padding: layers {found.layer_padding:.1%}, attention {found.grid_padding:.1%}", end=", ")
    print(f"the original's random batches {found.random_padding:.1%}")
    return [
        Goal(name="training uniter-base, against the original formulation", value=found.ratio, target=1.5),
        Goal(name="padding in the layers", value=found.layer_padding, target=0.1, at_least=False),
    ]


def _readers(quick: bool, figures: dict[str, Any]) -> list[Goal]:
    """Index a synthetic VCR annotation file of the official size."""
    found = measure_vcr_index(vcr_index.QUESTIONS // 10 if quick else vcr_index.QUESTIONS)
    figures["vcr_index"] = found
    first, second = found["first"], found["second"]
    print(f"\nVCR annotations: {found['questions']:,} questions, {found['file_bytes'] / 1e6:,.0f} MB")
    print(f"first opening {first['seconds']:.2f} s, of which {first['cpu_seconds']:.2f} s computing")
    return [
        Goal(name="index VCR, seconds", value=first["seconds"], target=vcr_index.MAX_SECONDS, at_least=False),
        Goal(name="index VCR, GiB", value=first["peak_bytes"] / 2**30, target=1.0, at_least=False),
        Goal(name="open indexed VCR, seconds", value=second["seconds"], target=1.0, at_least=False),
    ]


def _reading(folder: Path, quick: bool, figures: dict[str, Any]) -> list[Goal]:
    goals: list[Goal] = []
    corpora = (texts(2_000 if quick else 40_000), pictures(400 if quick else 10_000))
    rounds, seconds = (3, 0.3) if quick else (5, 2.0)
    skipped: list[str] = []
    for corpus in corpora:
        print(f"\n{corpus.name}: {len(corpus)} units, {corpus.num_bytes / 1e9:.2f} GB, shuffled padded batches of 64")
        rates = {
            rate.name: rate
            for rate in measure_reading(corpus, folder, rounds=rounds, seconds=seconds, say=skipped.append)
        }
        print(f"{'thousand units/s':<24}{'warm':>8}{'cold':>8}")
        for rate in sorted(rates.values(), key=lambda rate: -rate.warm):
            print(f"{rate.name:<24}{rate.warm / 1e3:>8.1f}{rate.cold / 1e3:>8.1f}")
        figures.setdefault("reading", {})[corpus.name] = [
            {"name": rate.name, "warm": rate.warm, "cold": rate.cold}
            for rate in sorted(rates.values(), key=lambda rate: -rate.warm)
        ]
        goals += _reading_goals(corpus.name, rates)
    figures["skipped"] = list(dict.fromkeys(skipped))
    print("not measured: " + ", ".join(figures["skipped"]) if skipped else "all formats measured")
    share = sequential_cold_share(corpora[0], folder, rounds=rounds)
    figures["sequential_cold_share_of_dd"] = share
    return [*goals, Goal(name="sequential cold reading, share of dd", value=share, target=0.85)]


def _reading_goals(corpus: str, rates: Mapping[str, Rate]) -> list[Goal]:
    """Compare the fastest way of ours with memory mapping by hand and with the fastest other format."""
    goals = []
    for state, limit_target, peer_target in (("warm", 0.95, 1.5), ("cold", 1.9, 1.4)):
        rounds: dict[str, tuple[float, ...]] = {
            name: getattr(rate, f"{state}_rounds") for name, rate in rates.items()
        }
        ours = max(_OURS, key=lambda name: statistics.median(rounds[name]))
        peer = max(rounds.keys() - {*_OURS, _LIMIT}, key=lambda name: statistics.median(rounds[name]))
        for other, said, target in ((_LIMIT, _LIMIT, limit_target), (peer, f"the best peer, {peer}", peer_target)):
            ratio = median_ratio(rounds[ours], rounds[other])
            goals.append(Goal(name=f"{corpus}, {state}, against {said}", value=ratio, target=target))
    return goals


def _writing(folder: Path, quick: bool, figures: dict[str, Any]) -> list[Goal]:
    from advl_pipeline.teachers.registry import open_teacher

    rates = measure_writing(open_teacher("minilm-l6"), folder, num_texts=400 if quick else 2_400)
    figures["writing"] = asdict(rates)
    print(
        "\nextraction of VCR-like texts with minilm-l6; every text counts, the extraction encodes repeated ones once"
    )
    print(f"{'advl extract, texts/s':<24}{rates.extract:>8.0f}   (unique: {rates.extract_unique:.0f})")
    print(f"{'bare forward passes':<24}{rates.bare:>8.0f}   (unique)")
    print(f"{'naive loop':<24}{rates.naive:>8.0f}")
    return [
        Goal(name="extraction, share of the bare forward passes", value=rates.share_of_bare, target=0.95),
        Goal(name="extraction against the naive loop", value=rates.against_naive, target=2.5),
    ]


def _scale(folder: Path, quick: bool, figures: dict[str, Any]) -> list[Goal]:
    num_units = 1_000_000 if quick else 10_000_000
    opened = opening_seconds(num_units, folder / f"wide-{num_units}")
    small, large = streaming_memory(folder / "memory", num_units=500 if quick else 4_000)
    figures["scale"] = {"num_units": num_units, "open_seconds": opened, "memory_1x": small, "memory_10x": large}
    return [
        Goal(name=f"milliseconds to open {num_units} units", value=opened * 1e3, target=50.0, at_least=False),
        Goal(name="memory of streaming 10x the data, ratio", value=large / small, target=1.1, at_least=False),
    ]


if __name__ == "__main__":
    main()
