"""What a study will cost before it runs.

Bytes are told by the plans of its extractions and the size of runs; seconds are the steps of a cell times what a step
took runs alike that are finished. Before there is one, they are unknown.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from statistics import fmean
from typing import Any

from advl_pipeline.compute import device_name
from advl_pipeline.configuration import config_to_dict, pacing_options
from advl_pipeline.errors import AdvlError, ConfigError, DatasetError, WeightsUnavailable
from advl_pipeline.extraction.config import ExtractConfig
from advl_pipeline.folders import folder_bytes
from advl_pipeline.runs import names
from advl_pipeline.runs.results import read_config, read_json
from advl_pipeline.studies.config import StudyConfig, StudyRunConfig, asked_study, shots_label
from advl_pipeline.studies.execute import is_finished, missing_test_sets
from advl_pipeline.studies.plan import (
    Cell,
    build_plan,
    cells_folder,
    dataset_digests,
    default_folder,
    digest_dataset,
    input_digests,
    missing_inits,
)
from advl_pipeline.training.config import FinetuneConfig, config_of_run
from advl_pipeline.training.resolved import planned_steps, run_identity


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheForecast:
    """A cache to extract: what of, its bytes and seconds by the plan of the extraction; None, and why, without one.

    Without the teacher's weights there is no plan; bytes are then about what its stated widths come to.
    """

    path: Path
    content: str
    num_bytes: int | None
    seconds: float | None
    obstacle: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """What a study would do. Times are in seconds on one process, sizes in bytes; None where something is unknown.

    `cells` are the rows of the grid: setting, method, shots, seed, whether it is finished, and for those that are not
    the optimiser steps that are left and the seconds of training and scoring. `cell_seconds` and `cell_bytes` are of
    all cells that are left, `seconds_left` and `bytes_left` of cells and caches. Scoring on `sets_untold`, which no
    run alike was scored on, is not among the seconds. `num_measured` finished runs tell the seconds, `disk_basis`
    says in words what the bytes rest on, and `device` where this machine would compute.
    """

    name: str
    folder: Path
    cells: tuple[Mapping[str, Any], ...]
    caches: tuple[CacheForecast, ...]
    missing_inits: tuple[Path, ...]
    missing_dataset: str
    device: str
    num_left: int
    num_unmeasured: int
    sets_untold: tuple[str, ...]
    cell_seconds: float | None
    seconds_left: float | None
    cell_bytes: int | None
    bytes_left: float | None
    bytes_free: int
    num_measured: int
    disk_basis: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """What a run took: seconds per optimiser step, around its steps, and to score a set, by its name.

    `kind` is equal for runs whose steps cost alike.
    """

    kind: str
    per_step: float
    around: float
    scoring: Mapping[str, float]


def forecast_cache(config: ExtractConfig) -> CacheForecast:
    """Ask the extraction for its plan: the teacher is opened and encodes a few batches."""
    from advl_pipeline.extraction.estimate import card_with_sizes, estimates_by_card
    from advl_pipeline.extraction.run import estimate_extraction
    from advl_pipeline.extraction.sources import open_part

    num_bytes: int | None = None
    seconds, obstacle = None, ""
    try:
        estimates = estimate_extraction(config)
        num_bytes, seconds = sum(item.num_bytes for item in estimates), sum(item.seconds or 0.0 for item in estimates)
    except AdvlError as error:
        obstacle, card = error.what, card_with_sizes(config.teacher)
        if isinstance(error, WeightsUnavailable) and card is not None:
            with suppress(DatasetError):
                num_bytes = sum(item.num_bytes for item in estimates_by_card(config, card, open_part(config)))
    questions = "all questions" if config.shots is None else f"{config.shots:,} questions of seed {config.seed[0]}"
    tokens = "all tokens"
    if config.select_texts is not None:
        tokens = f"texts with {config.select_texts:.0%} of the words"
    content = f"{questions}, {tokens}, {config.dtype}"
    path = Path(str(config.output))
    return CacheForecast(path=path, content=content, num_bytes=num_bytes, seconds=seconds, obstacle=obstacle)


CacheForecaster = Callable[[ExtractConfig], CacheForecast]
"""Plans the extraction of a cache."""


def forecast_study(config: StudyRunConfig, *, plan_cache: CacheForecaster = forecast_cache) -> Forecast:
    """Lay out the grid without running it.

    A cell that is left takes its optimiser steps times what a step took finished runs alike, whatever study asked for
    them, and what these took around their steps. Where none is alike, others of its setting tell. Its test sets take
    what scoring each took them. Disk is the mean size of finished run folders, or the size of the student, and that
    of the caches that are still to be extracted.

    Args:
        plan_cache: plans the extraction of a missing cache; replaced in tests.

    Raises:
        ConfigError: as `load_study`.
    """
    study = asked_study(config)
    folder = config.output or default_folder(study)
    absent, missing_dataset, content = tuple(missing_inits(study)), "", dict[str, str]()
    place = partial(build_plan, study, cells=cells_folder(folder), caches=config.caches, data_root=config.data_root)
    draft = place()
    try:
        content = dataset_digests(draft, digest_dataset, folder=folder)
    except DatasetError as error:
        # A grid can be looked at before its data are there.
        missing_dataset = error.what + (f" ({error.where})" if error.where else "")
    plan = place(init_digests={} if absent else input_digests(draft), dataset_digests=content)
    left = [cell for cell in plan.cells if not is_finished(cell)]
    done = [cell.run for cell in plan.cells if cell not in left]
    kinds = {cell.cell_id: _kind(cell.finetune, cell.teachers) for cell in plan.cells}
    paces = _finished_paces(cells_folder(folder)) if left else []
    used: set[int] = set()
    untold: dict[str, None] = {}
    rows: list[dict[str, Any]] = []
    for cell in plan.cells:
        row = {"setting": cell.setting, "method": cell.method, "shots": shots_label(cell.shots), "seed": cell.seed}
        rows.append(row | {"finished": cell not in left})
        if cell not in left:
            continue
        beside = {kinds[other.cell_id] for other in plan.cells if other.setting == cell.setting}
        alike = [pace for pace in paces if pace.kind == kinds[cell.cell_id]]
        measured = alike or [pace for pace in paces if pace.kind in beside]
        used |= set(map(id, measured))
        # Training of one whose scores alone are missing is over.
        is_trained, seconds = names.is_finished(cell.run), None
        steps = 0 if is_trained else planned_steps(cell.finetune)
        if measured:
            scoring = {
                name: [pace.scoring[name] for pace in measured if name in pace.scoring]
                for name in missing_test_sets(cell)
            }
            untold |= dict.fromkeys(name for name, known in scoring.items() if not known)
            seconds = fmean(pace.per_step for pace in measured) * steps + sum(
                map(fmean, filter(None, scoring.values()))
            )
            seconds += 0.0 if is_trained else fmean(pace.around for pace in measured)
        rows[-1] |= {"steps": steps, "seconds": seconds}
    needed = {path for cell in left for path in cell.finetune.cache}
    missing = [path for path in plan.caches if path in needed and not (path / "identity.json").exists()]
    caches = tuple(plan_cache(plan.caches[path]) for path in missing)
    unfinished = [row["seconds"] for row in rows if not row["finished"]]
    cell_bytes, disk_basis = _cell_bytes(left, done, study)
    existing = next(parent for parent in [folder, *folder.absolute().parents] if parent.exists())
    return Forecast(
        name=study.name,
        folder=folder,
        cells=tuple(rows),
        caches=caches,
        missing_inits=absent,
        missing_dataset=missing_dataset,
        device=device_name(config.device),
        num_left=len(left),
        num_unmeasured=unfinished.count(None),
        sets_untold=tuple(untold),
        cell_seconds=_sum(unfinished),
        seconds_left=_sum([*unfinished, *(cache.seconds for cache in caches)]),
        cell_bytes=cell_bytes,
        bytes_left=_sum([cell_bytes, *(cache.num_bytes for cache in caches)]),
        bytes_free=shutil.disk_usage(existing).free,
        num_measured=len(used),
        disk_basis=disk_basis,
    )


def _sum(values: Sequence[float | None]) -> float | None:
    """Return the sum, or None where a value is unknown."""
    return None if None in values else sum(value or 0 for value in values)


def _cell_bytes(left: Sequence[Cell], done: Sequence[Path], study: StudyConfig) -> tuple[int | None, str]:
    """Return the bytes of the run folders of the cells that are left, and what that rests on.

    Finished ones tell; before there are any, a run folder holds little else than its student: as large as the
    pretrained one, or as its parameters. None where the student cannot be built here. Where students are not kept,
    one at a time lies there, beside its checkpoint with two moments.
    """
    if not left:
        return 0, "nothing is left"
    if sizes := [folder_bytes(run) for run in done]:
        return sum(sizes) // len(sizes) * len(left), f"as the {len(sizes)} finished ones"
    from advl_pipeline.training.build_model import student_bytes

    student_of = attrgetter("finetune.student", "finetune.init", "finetune.student_option")
    one_each = {student_of(cell): cell for cell in left}
    try:
        known = {student: student_bytes(cell.finetune) for student, cell in one_each.items()}
    except AdvlError as error:
        return None, error.what
    if not study.keep_weights:
        return 4 * max(known.values()), "one student at a time, since none is kept"
    return sum(known[student_of(cell)] for cell in left), "the size of the student"


def _kind(config: FinetuneConfig, teachers: Sequence[str]) -> str:
    """Return what a step of a run costs by: dataset, tasks, student, method, batch, teachers and so on."""
    kept = pacing_options(FinetuneConfig, run_identity(config_to_dict(config)))
    return json.dumps({**kept, "teachers": list(teachers)}, sort_keys=True, default=str)


def _finished_paces(cells: Path) -> list[Pace]:
    """Read what the finished runs of all studies took."""
    paces = []
    for run in sorted(result.parent for result in cells.glob(f"*/{names.RESULT}")):
        with suppress(ConfigError, KeyError, TypeError, ValueError):  # Its own commands say what is wrong with it.
            teachers = [str(cache["identity"]["teacher"]["name"]) for cache in read_json(run / names.CACHES, list)]
            paces.append(_pace(run, _kind(config_of_run(read_config(run)), teachers)))
    return paces


def _pace(run: Path, kind: str) -> Pace:
    result = read_json(run / names.RESULT)
    per_step, scoring = float(result["seconds_per_step"]), dict[str, float]()
    for path in (run / names.EVALUATION).glob("*.json"):
        document = read_json(path)
        if "seconds" in document:
            # Of the whole set, where a part of it was scored.
            sample = document.get("sample")
            share = document["num_examples"] / sample["of_examples"] if sample else 1.0
            scoring[names.set_of(path.stem.replace("--", "/"))] = document["seconds"] / share
    around = max(0.0, float(result["seconds"]) - per_step * float(result["num_steps"]))
    return Pace(kind=kind, per_step=per_step, around=around, scoring=scoring)
