"""What `advl study --dry-run` prints."""

from __future__ import annotations

from collections import Counter

from advl_pipeline.reporting import wording
from advl_pipeline.studies.forecast import CacheForecast, Forecast


def forecast_as_text(forecast: Forecast) -> str:
    """Render the grid as one line per setting, method and shots, then what is left to do."""
    seeds: dict[tuple[str, str, str], list[str]] = {}
    for row in forecast.cells:
        key = (row["setting"], row["method"], row["shots"])
        seeds.setdefault(key, []).append(f"{row['seed']}{'*' if row['finished'] else ''}")
    width = max(len(method) for _, method, _ in seeds)
    lines = [f"{forecast.name}: {len(forecast.cells)} cells in {forecast.folder} (* is finished)"]
    lines += [
        f"  {setting}  {method:<{width}}  {shots:>6} shots  seeds {' '.join(names)}"
        for (setting, method, shots), names in seeds.items()
    ]
    steps = Counter(row["steps"] for row in forecast.cells if not row["finished"])
    lines.append(
        f"left: {forecast.num_left} cells"
        + "".join(f", {number} of {count} steps" for count, number in sorted(steps.items()))
    )
    lines += [_time(forecast), _disk(forecast)]
    lines += [_cache(cache) for cache in forecast.caches]
    lines += [f"pretrained student missing: {path}" for path in forecast.missing_inits]
    if forecast.missing_dataset:
        lines.append(f"dataset missing: {forecast.missing_dataset}")
    return "\n".join(lines)


def _time(forecast: Forecast) -> str:
    """Say how long it takes on one process and what that rests on, or what is not known and how it is measured."""
    extraction = sum(cache.seconds or 0.0 for cache in forecast.caches)
    parts = [f"extraction {wording.duration(extraction)}"] if extraction else []
    if forecast.num_unmeasured:
        how = "the same command with --measure trains a few steps of each method"
        if forecast.caches:
            how += ", of those with teachers once the caches are extracted"
        parts.append(f"{forecast.num_unmeasured} cells not measured yet: {how}")
    elif forecast.cell_seconds:
        basis = f"measured on {forecast.time_basis}"
        scoring = "unknown, on top: no run was scored yet"
        if forecast.scoring_seconds is not None:
            scoring = wording.duration(forecast.scoring_seconds)
        parts.append(f"training {wording.duration(forecast.cell_seconds)}, scoring {scoring}, {basis}")
    total = "unknown" if forecast.seconds_left is None else wording.duration(forecast.seconds_left)
    return f"time: {total} on one process on {forecast.device}" + (f" ({'; '.join(parts)})" if parts else "")


def _disk(forecast: Forecast) -> str:
    known = [cache.num_bytes for cache in forecast.caches if cache.num_bytes is not None]
    runs = "unknown" if forecast.cell_bytes is None else wording.size(forecast.cell_bytes)
    parts = [f"run folders {runs}: {forecast.disk_basis}"] if forecast.num_left else []
    if known:
        parts.append(f"caches {wording.size(sum(known))}")
    if unplanned := len(forecast.caches) - len(known):
        parts.append(f"caches not counted: {unplanned}")
    total = "unknown" if forecast.bytes_left is None else wording.size(forecast.bytes_left)
    return f"disk: {total}, {wording.size(forecast.bytes_free)} free" + (f" ({'; '.join(parts)})" if parts else "")


def _cache(cache: CacheForecast) -> str:
    content = f" ({cache.content})" if cache.content else ""
    if cache.num_bytes is not None and cache.seconds is None:
        about = f"about {wording.size(cache.num_bytes)} by the teacher's widths"
        return f"cache to extract: {cache.path}, {about}, time unknown: {cache.obstacle}{content}"
    if cache.num_bytes is None or cache.seconds is None:
        return f"cache to extract: {cache.path}, size unknown: {cache.obstacle}{content}"
    cost = f"{wording.size(cache.num_bytes)}, {wording.duration(cache.seconds)}"
    return f"cache to extract: {cache.path}, {cost}{content}"
