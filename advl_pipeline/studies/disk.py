"""How much room a study takes: its run folders, and the teacher caches that it extracts first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from advl_pipeline.configuration import config_to_dict
from advl_pipeline.errors import AdvlError
from advl_pipeline.students.weight_files import weight_files
from advl_pipeline.studies.caches import extraction_config
from advl_pipeline.studies.config import StudyConfig
from advl_pipeline.studies.execute import is_finished
from advl_pipeline.studies.plan import CacheNeed, Cell
from advl_pipeline.training.config import FinetuneConfig

_BYTES_PER_PARAMETER = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheForecast:
    """A cache to extract, its bytes and seconds by the plan of the extraction; None, and why, where there is none."""

    path: Path
    num_bytes: int | None
    seconds: float | None
    obstacle: str


def forecast_cache(need: CacheNeed, study: StudyConfig, data_root: Path | None) -> CacheForecast:
    """Ask the extraction for its plan: the teacher is opened and encodes a few batches."""
    from advl_pipeline.extraction.run import estimate_extraction

    try:
        estimates = estimate_extraction(extraction_config(need, study, data_root))
    except AdvlError as error:
        return CacheForecast(path=need.path, num_bytes=None, seconds=None, obstacle=error.what)
    return CacheForecast(
        path=need.path,
        num_bytes=sum(item.num_bytes for item in estimates),
        seconds=sum(item.seconds for item in estimates),
        obstacle="",
    )


def cell_bytes(cells: Sequence[Cell]) -> tuple[int | None, str]:
    """Return the bytes of all run folders that are still to come, and what that rests on.

    Finished ones tell; before there are any, a run folder holds little else than its student: as large as the
    pretrained one, or as its parameters. None where the student cannot be built here.
    """
    left = [cell for cell in cells if not is_finished(cell)]
    sizes = [_folder_bytes(cell.run) for cell in cells if is_finished(cell)]
    if sizes:
        return sum(sizes) // len(sizes) * len(left), f"as the {len(sizes)} finished ones"
    known: dict[tuple[str, Path | None, tuple[str, ...]], int] = {}
    try:
        for cell in left:
            config = cell.finetune
            key = (config.student, config.init, config.student_option)
            known.setdefault(key, _student_bytes(config))
    except AdvlError as error:
        return None, error.what
    total = sum(known[(c.finetune.student, c.finetune.init, c.finetune.student_option)] for c in left)
    return total, "the size of the student"


def _student_bytes(config: FinetuneConfig) -> int:
    """Return the size of the pretrained student, else of the parameters of one that is built without values."""
    if config.init is not None and (files := weight_files(config.init)):
        return sum(file.stat().st_size for file in files)
    import torch

    from advl_pipeline.students.registry import build_student
    from advl_pipeline.training.student_options import student_options

    options = student_options(config_to_dict(config), dataset=config.dataset, split=config.split)
    with torch.device("meta"):
        student = build_student(config.student, overrides=options)
    return _BYTES_PER_PARAMETER * sum(parameter.numel() for parameter in student.parameters())


def _folder_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
