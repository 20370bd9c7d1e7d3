"""What `advl study --dry-run` prints."""

from __future__ import annotations

from collections import Counter

from advl_pipeline.reporting import wording
from advl_pipeline.studies.config import shots_label
from advl_pipeline.studies.forecast import Forecast
from advl_pipeline.training.config import planned_steps


def forecast_as_text(forecast: Forecast) -> str:
    """Render the grid as one line per setting, method and shots, then what is left to do."""
    seeds: dict[tuple[str, str, str], list[str]] = {}
    for item in forecast.cells:
        key = (item.cell.setting, item.cell.method, shots_label(item.cell.shots))
        seeds.setdefault(key, []).append(f"{item.cell.seed}{'*' if item.finished else ''}")
    width = max(len(key[1]) for key in seeds)
    lines = [f"{forecast.name}: {len(forecast.cells)} cells in {forecast.folder} (* is finished)"]
    lines += [
        f"  {setting}  {method:<{width}}  {shots:>6} shots  seeds {' '.join(names)}"
        for (setting, method, shots), names in seeds.items()
    ]
    steps = Counter(planned_steps(item.cell.finetune) for item in forecast.cells if not item.finished)
    lines.append(
        f"left: {forecast.num_left} cells"
        + "".join(f", {number} of {count} steps" for count, number in sorted(steps.items()))
    )
    seconds = "unknown" if forecast.seconds_left is None else wording.duration(forecast.seconds_left)
    disk = "unknown" if forecast.bytes_left is None else wording.size(forecast.bytes_left)
    lines.append(f"time: {seconds} on one process ({forecast.basis})")
    lines.append(f"disk: {disk}, {wording.size(forecast.bytes_free)} free")
    lines += [f"cache to extract: {path}" for path in forecast.missing_caches]
    lines += [f"pretrained student missing: {path}" for path in forecast.missing_inits]
    if forecast.missing_dataset:
        lines.append(f"dataset missing: {forecast.missing_dataset}")
    return "\n".join(lines)
