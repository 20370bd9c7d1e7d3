"""`advl study --dry-run`: the grid, and what it will cost as far as finished cells and plans of extraction tell."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from advl_pipeline.compute import device_name
from advl_pipeline.errors import AdvlError, DatasetError, WeightsUnavailable
from advl_pipeline.extraction.config import ExtractConfig
from advl_pipeline.folders import folder_bytes
from advl_pipeline.studies.caches import extraction_config
from advl_pipeline.studies.config import StudyConfig, StudyRunConfig, asked_study
from advl_pipeline.studies.execute import (
    copied_bytes,
    dataset_digests,
    digest_dataset,
    finished_beside,
    init_digests,
    is_finished,
    missing_inits,
)
from advl_pipeline.studies.folder import default_folder, recorded
from advl_pipeline.studies.plan import CacheNeed, Cell, build_plan
from advl_pipeline.studies.timings import HERE, Timing, cell_kind, measure_kinds, timings_beside, timings_here
from advl_pipeline.teachers.registry import card_of


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheForecast:
    """A cache to extract, its bytes and seconds by the plan of the extraction; None, and why, where there is none.

    Without the teacher's weights there is no plan; bytes are then about what its stated widths come to.
    `content` says in words what is kept of what.
    """

    path: Path
    num_bytes: int | None
    seconds: float | None
    obstacle: str
    content: str = ""


def forecast_cache(need: CacheNeed, study: StudyConfig, data_root: Path | None) -> CacheForecast:
    """Ask the extraction for its plan: the teacher is opened and encodes a few batches."""
    from advl_pipeline.extraction.estimate import bytes_by_card
    from advl_pipeline.extraction.run import estimate_extraction

    config = extraction_config(need, study, data_root)
    content = describe_content(config)
    try:
        estimates = estimate_extraction(config)
    except AdvlError as error:
        num_bytes = None
        card = card_of(need.teacher.removeprefix("random:").partition("@")[0])
        if isinstance(error, WeightsUnavailable) and card is not None:
            with suppress(DatasetError):
                num_bytes = bytes_by_card(config, card)
        return CacheForecast(path=need.path, num_bytes=num_bytes, seconds=None, obstacle=error.what, content=content)
    return CacheForecast(
        path=need.path,
        num_bytes=sum(item.num_bytes for item in estimates),
        seconds=sum(item.seconds or 0.0 for item in estimates),
        obstacle="",
        content=content,
    )


def describe_content(config: ExtractConfig) -> str:
    """Return in words what an extraction keeps: of which questions, which tokens, how exactly."""
    share = config.select_tokens
    seeds = " and ".join(map(str, config.seed))
    questions = "all questions" if config.shots is None else f"{config.shots:,} questions of seed {seeds}"
    tokens = "all tokens" if share is None else f"the tokens of {share:.0%} of the words"
    return f"{questions}, {tokens}, {config.dtype}"


CacheForecaster = Callable[[CacheNeed, StudyConfig, Path | None], CacheForecast]
"""Plans the extraction of a cache, given the folder of the datasets."""

KindMeasurer = Callable[[Sequence[Cell]], list[Timing]]
"""Runs a few steps of each kind of cell."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CellForecast:
    """State of a cell; `seconds` is measured when finished, else estimated, or None when nothing is measured yet.

    `scoring` is what scoring a cell that is left takes beside that, None where no run was scored yet. A cell that is
    `finished_beside`, in a study in a folder beside this one, is copied from there.
    """

    cell: Cell
    finished: bool
    finished_beside: bool
    seconds: float | None
    scoring: float | None = None

    @property
    def is_left(self) -> bool:
        """Whether the cell is still to be run."""
        return not self.finished and not self.finished_beside


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """What a study would do. Times are in seconds on one process; sizes in bytes.

    `cell_seconds`, `scoring_seconds` and `cell_bytes` are of all cells that are left, None where unknown: of training
    them, of scoring them, and of their folders. `time_basis` and `disk_basis` say in words what they rest on, and
    `device` where this machine would compute.
    """

    name: str
    folder: Path
    cells: tuple[CellForecast, ...]
    caches: tuple[CacheForecast, ...]
    missing_inits: tuple[Path, ...]
    missing_dataset: str
    device: str
    cell_seconds: float | None
    scoring_seconds: float | None
    cell_bytes: int | None
    bytes_free: int
    time_basis: str
    disk_basis: str

    @property
    def num_left(self) -> int:
        return sum(item.is_left for item in self.cells)

    @property
    def num_copied(self) -> int:
        """Cells that studies beside this one have finished."""
        return sum(item.finished_beside for item in self.cells)

    @property
    def num_unmeasured(self) -> int:
        """Cells that are left and of which nobody knows how long they take."""
        return sum(item.is_left and item.seconds is None for item in self.cells)

    @property
    def seconds_left(self) -> float | None:
        """Seconds of cells and caches, or None where some are unknown; of scoring as far as it is known."""
        seconds = [self.cell_seconds, *(cache.seconds for cache in self.caches)]
        known = [value for value in seconds if value is not None]
        return sum(known) + (self.scoring_seconds or 0.0) if len(known) == len(seconds) else None

    @property
    def bytes_left(self) -> int | None:
        """Bytes of the run folders and of the caches, or None where some are unknown."""
        sizes = [self.cell_bytes, *(cache.num_bytes for cache in self.caches)]
        known = [value for value in sizes if value is not None]
        return sum(known) if len(known) == len(sizes) else None


def forecast_study(
    config: StudyRunConfig,
    *,
    measure: bool = False,
    plan_cache: CacheForecaster = forecast_cache,
    measure_cells: KindMeasurer = measure_kinds,
) -> Forecast:
    """Lay out the grid without running it.

    Times of unfinished cells come from finished ones: seconds per optimiser step of the same method in the same
    setting, else of cells alike in the studies whose folders lie beside this one, else, with `measure`, of a few
    steps that are run now, else of another method of the same setting; times the steps of the cell, plus the mean
    time around the training loop. Scoring takes what it took other cells of the setting. Disk is the mean size of
    finished run folders, or the size of the student, and that of the caches that are still to be extracted.

    Args:
        measure: run a few steps of each kind of cell that no finished one is alike.
        plan_cache: plans the extraction of a missing cache; replaced in tests.
        measure_cells: runs a few steps; replaced in tests.

    Raises:
        ConfigError: as `load_study`.
        AdvlError: with `measure`, what a run raised.
    """
    study = asked_study(config)
    folder = config.output or default_folder(study)
    absent = tuple(missing_inits(study))
    copies, digests = recorded(folder)
    recipes = {name: kept for name, kept in copies.items() if not Path(name).exists()}
    content, missing_dataset = _dataset_digests(study, config.data_root, digests, recipes)
    plan = build_plan(
        study,
        folder=folder,
        caches=config.caches,
        data_root=config.data_root,
        init_digests={} if absent else init_digests(study),
        dataset_digests=content,
        recipes=recipes,
    )
    finished = [is_finished(cell) for cell in plan.cells]
    beside = [
        None if done else finished_beside(cell, study, folder)
        for cell, done in zip(plan.cells, finished, strict=True)
    ]
    left = [cell for cell, *there in zip(plan.cells, finished, beside, strict=True) if not any(there)]
    timings = _Timings(timings_here(plan.cells), timings_beside(folder) if left else [])
    if measure:
        timings.pools[2] += measure_cells([cell for cell in left if not timings.alike(cell)])
    pools = [timings.for_cell(cell) for cell in plan.cells]
    cells = tuple(
        CellForecast(
            cell=cell,
            finished=done,
            finished_beside=elsewhere is not None,
            seconds=_seconds(cell, pool, finished=done),
            scoring=timings.scoring_of(cell),
        )
        for cell, done, elsewhere, pool in zip(plan.cells, finished, beside, pools, strict=True)
    )
    scoring = [item.scoring for item in cells if item.is_left and item.scoring is not None]
    known = [item.seconds for item in cells if item.is_left and item.seconds is not None]
    needed = {path for cell in left for path in cell.finetune.cache}
    missing = [need for need in plan.caches if need.path in needed and not (need.path / "identity.json").exists()]
    done = [cell.run for cell, there in zip(plan.cells, finished, strict=True) if there]
    num_bytes, disk_basis = _cell_bytes(left, done, keep_weights=study.keep_weights)
    copied = sum(copied_bytes(source, study) for source in beside if source is not None)
    existing = next(parent for parent in [folder, *folder.absolute().parents] if parent.exists())
    return Forecast(
        name=study.name,
        folder=folder,
        cells=cells,
        caches=tuple(plan_cache(need, study, config.data_root) for need in missing),
        missing_inits=absent,
        missing_dataset=missing_dataset,
        device=device_name(config.device),
        cell_seconds=sum(known) if len(known) == len(left) else None,
        scoring_seconds=sum(scoring) if len(scoring) == len(left) else None,
        cell_bytes=None if num_bytes is None else num_bytes + copied,
        bytes_free=shutil.disk_usage(existing).free,
        time_basis=_basis(timing for item, pool in zip(cells, pools, strict=True) for timing in pool if item.is_left),
        disk_basis=disk_basis,
    )


def _dataset_digests(
    study: StudyConfig, data_root: Path | None, known: Mapping[str, str], recipes: Mapping[str, Path]
) -> tuple[dict[str, str], str]:
    """Return the digests, or what is missing: a grid can be looked at before its data are there."""
    try:
        return dataset_digests(study, data_root, digest_dataset, recorded=known, recipes=recipes), ""
    except DatasetError as error:
        return {}, error.what + (f" ({error.where})" if error.where else "")


class _Timings:
    """Timings, those of this study's own cells first, then those of the studies beside it, then measured ones."""

    def __init__(self, here: list[Timing], beside: list[Timing]) -> None:
        self.pools = [here, beside, []]

    def alike(self, cell: Cell) -> list[Timing]:
        """Return those whose steps cost what a cell's do, from the nearest place that has any."""
        here, *others = self.pools
        kind = cell_kind(cell)
        own = [item for item in here if (item.setting, item.method) == (cell.setting, cell.method)]
        return next(filter(None, [own, *([item for item in pool if item.kind == kind] for pool in others)]), [])

    def for_cell(self, cell: Cell) -> list[Timing]:
        """Return what a cell's time is told by: its own run, cells alike, or other methods of its setting."""
        own = [item for item in self.pools[0] if item.cell_id == cell.cell_id]
        return own or self.alike(cell) or [item for item in self.pools[0] if item.setting == cell.setting]

    def scoring_of(self, cell: Cell) -> float | None:
        """Return what scoring a cell takes: every method's student costs the same."""
        here, made = ([item for item in self.pools[k] if item.setting == cell.setting] for k in (0, 2))
        known = (
            [item.scoring for item in pool if item.scoring is not None] for pool in (here, self.alike(cell), made)
        )
        return next((sum(found) / len(found) for found in known if found), None)


def _seconds(cell: Cell, pool: Sequence[Timing], *, finished: bool) -> float | None:
    if not pool:
        return None
    if pool[0].cell_id == cell.cell_id and pool[0].source == HERE:
        # Training is over; where the cell is not finished, its scores are missing.
        return pool[0].total if finished else 0.0
    return sum(timing.seconds_of(cell) for timing in pool) / len(pool)


def _basis(used: Iterable[Timing]) -> str:
    counts = Counter(source for source, _ in {(timing.source, timing.cell_id) for timing in used})
    return ", ".join(f"{source} ({number})" for source, number in sorted(counts.items()))


def _cell_bytes(left: Sequence[Cell], done: Sequence[Path], *, keep_weights: bool) -> tuple[int | None, str]:
    """Return the bytes of the run folders of the cells that are left, and what that rests on.

    Finished ones tell; before there are any, a run folder holds little else than its student: as large as the
    pretrained one, or as its parameters. None where the student cannot be built here. Where students are not kept,
    one at a time lies there, beside its checkpoint with two moments.
    """
    if not left:
        return 0, "as those that are copied"
    if sizes := [folder_bytes(run) for run in done]:
        return sum(sizes) // len(sizes) * len(left), f"as the {len(sizes)} finished ones"
    from advl_pipeline.training.build_model import student_bytes

    known: dict[tuple[str, Path | None, tuple[str, ...]], int] = {}
    try:
        for cell in left:
            config = cell.finetune
            key = (config.student, config.init, config.student_option)
            known.setdefault(key, student_bytes(config))
    except AdvlError as error:
        return None, error.what
    if not keep_weights:
        return 4 * max(known.values(), default=0), "one student at a time, since none is kept"
    total = sum(known[(c.finetune.student, c.finetune.init, c.finetune.student_option)] for c in left)
    return total, "the size of the student"
