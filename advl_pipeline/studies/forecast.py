"""`advl study --dry-run`: the grid, and what it will cost as far as finished cells tell."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from advl_pipeline.errors import DatasetError
from advl_pipeline.studies.config import StudyConfig, StudyRunConfig, load_study
from advl_pipeline.studies.execute import dataset_digests, digest_dataset, init_digests, is_finished, missing_inits
from advl_pipeline.studies.folder import default_folder, recorded_dataset_digests, recorded_recipes
from advl_pipeline.studies.plan import Cell, build_plan
from advl_pipeline.training.config import planned_steps


@dataclass(frozen=True, kw_only=True, slots=True)
class CellForecast:
    """State of a cell; `seconds` is measured when finished, else estimated, or None when nothing is measured yet."""

    cell: Cell
    finished: bool
    seconds: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """What a study would do. Times are in seconds on one process; sizes in bytes."""

    name: str
    folder: Path
    cells: tuple[CellForecast, ...]
    missing_caches: tuple[Path, ...]
    missing_inits: tuple[Path, ...]
    missing_dataset: str
    seconds_left: float | None
    bytes_left: int | None
    bytes_free: int
    basis: str

    @property
    def num_left(self) -> int:
        return sum(not item.finished for item in self.cells)


def forecast_study(config: StudyRunConfig) -> Forecast:
    """Lay out the grid without running anything.

    Times of unfinished cells come from finished ones of this folder: seconds per optimiser step of the same method,
    else of any method, times the steps of the cell, plus the mean time around the training loop. Disk is the mean
    size of finished run folders, or the size of the pretrained student.

    Raises:
        ConfigError: as `load_study`.
    """
    study = load_study(config.study)
    folder = config.output or default_folder(study)
    absent = tuple(missing_inits(study))
    recipes = {name: kept for name, kept in recorded_recipes(folder).items() if not Path(name).exists()}
    content, missing_dataset = _dataset_digests(study, config.data_root, folder, recipes)
    plan = build_plan(
        study,
        folder=folder,
        caches=config.caches,
        data_root=config.data_root,
        init_digests={} if absent else init_digests(study),
        dataset_digests=content,
        recipes=recipes,
    )
    timings = [timing for cell in plan.cells if is_finished(cell) for timing in [_measured(cell)]]
    cells = tuple(
        CellForecast(cell=cell, finished=is_finished(cell), seconds=_seconds(cell, timings)) for cell in plan.cells
    )
    left = [item for item in cells if not item.finished]
    known = [item.seconds for item in left if item.seconds is not None]
    size = _cell_bytes(plan.cells)
    existing = next(parent for parent in [folder, *folder.absolute().parents] if parent.exists())
    return Forecast(
        name=study.name,
        folder=folder,
        cells=cells,
        missing_caches=tuple(need.path for need in plan.caches if not (need.path / "identity.json").exists()),
        missing_inits=absent,
        missing_dataset=missing_dataset,
        seconds_left=sum(known) if len(known) == len(left) else None,
        bytes_left=None if size is None else size * len(left),
        bytes_free=shutil.disk_usage(existing).free,
        basis=f"measured on {len(timings)} finished cells"
        if timings
        else "no cell is finished yet: nothing measured",
    )


def _dataset_digests(
    study: StudyConfig, data_root: Path | None, folder: Path, recipes: Mapping[str, Path]
) -> tuple[dict[str, str], str]:
    """Return the digests, or what is missing: a grid can be looked at before its data are there."""
    try:
        recorded = recorded_dataset_digests(folder)
        return dataset_digests(study, data_root, digest_dataset, recorded=recorded, recipes=recipes), ""
    except DatasetError as error:
        return {}, error.what + (f" ({error.where})" if error.where else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Timing:
    cell_id: str
    method: str
    setting: str
    per_step: float
    around: float
    total: float


def _measured(cell: Cell) -> _Timing:
    result = json.loads((cell.run / "result.json").read_text(encoding="utf-8"))
    per_step, total = float(result["seconds_per_step"]), float(result["seconds"])
    return _Timing(
        cell_id=cell.cell_id,
        method=cell.method,
        setting=cell.setting,
        per_step=per_step,
        around=max(0.0, total - per_step * float(result["num_steps"])),
        total=total,
    )


def _seconds(cell: Cell, timings: Sequence[_Timing]) -> float | None:
    own = [timing.total for timing in timings if timing.cell_id == cell.cell_id]
    if own:
        return own[0]
    same_setting = [timing for timing in timings if timing.setting == cell.setting]
    pool = [timing for timing in same_setting if timing.method == cell.method] or same_setting
    if not pool:
        return None
    per_step = sum(timing.per_step for timing in pool) / len(pool)
    around = sum(timing.around for timing in pool) / len(pool)
    return per_step * planned_steps(cell.finetune) + around


def _cell_bytes(cells: Sequence[Cell]) -> int | None:
    sizes = [_folder_bytes(cell.run) for cell in cells if is_finished(cell)]
    if sizes:
        return sum(sizes) // len(sizes)
    inits = {cell.finetune.init for cell in cells if cell.finetune.init is not None and cell.finetune.init.exists()}
    return max((_folder_bytes(path) for path in inits), default=None)


def _folder_bytes(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())
