"""What running one cell means: finetune, then score on every test set. Also what must exist before.

The two phases are imported when a cell runs, so that planning and gathering stay light.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from advl_pipeline.datasets.problems import OnError
from advl_pipeline.errors import ConfigError, DatasetError
from advl_pipeline.evaluation.config import EvaluateConfig
from advl_pipeline.runs import names
from advl_pipeline.runs.results import read_json
from advl_pipeline.students.weight_files import is_on_hub, making_command, student_digest, weight_files
from advl_pipeline.studies.config import StudyConfig
from advl_pipeline.studies.folder import given_values, studies_of
from advl_pipeline.studies.plan import Cell, build_plan, trained_on
from advl_pipeline.training.given import open_region_caches, region_places, splits_read
from advl_pipeline.training.resolved import NAMED_FILES, named_files

CellExecutor = Callable[[Cell], None]
"""Runs one cell to its end or raises; resumes what an interrupted call left in the cell's run folder."""

DatasetDigester = Callable[[str, str, Path | None], str]
"""Digest of the content of a dataset's split, given the folder of the datasets. Raises `DatasetError`."""


def execute_cell(cell: Cell) -> None:
    """Finetune and evaluate in this process; the student goes where no study that has the cell keeps it."""
    from advl_pipeline.evaluation.runner import run_evaluate
    from advl_pipeline.training.run import run_finetune

    missing = missing_test_sets(cell)
    if (missing or cell.keeps_student) and not all(file.exists() for file in _weights(cell.run)):
        # The student was not kept: the same run gives the same one again.
        (cell.run / names.RESULT).unlink(missing_ok=True)
    if not names.is_finished(cell.run):
        run_finetune(cell.finetune, is_control=cell.is_control)
    if missing:
        run_evaluate(_asked_or_stored(cell, missing))
    if not cell.keeps_student and not any(keeps for _, keeps in studies_of(cell.run)):
        for file in _weights(cell.run):
            file.unlink(missing_ok=True)


def _asked_or_stored(cell: Cell, test_sets: tuple[str, ...]) -> EvaluateConfig:
    """Return an evaluation that has what the study asks for and what another study of the cell has asked for."""
    asked = cell.evaluate
    files = {name: names.evaluation_file(cell.run, name, ".json") for name in test_sets}
    stored = {name: read_json(file) for name, file in files.items() if file.exists()}
    probes = dict.fromkeys(probe for probe in asked.probe if probe != "none")
    probes |= dict.fromkeys(probe for document in stored.values() for probe in _probed(document))
    most = max([asked.num_questions or math.inf, *map(_num_questions, stored.values())])
    return replace(
        asked,
        on=test_sets,
        num_questions=None if most == math.inf else int(most),
        probe=tuple(probes) or ("none",),
        probe_on=tuple(dict.fromkeys((*asked.probe_on, *(name for name, found in stored.items() if _probed(found))))),
    )


def _probed(document: Mapping[str, Any]) -> list[Any]:
    """Return how pictures were spoilt in an evaluation."""
    return list(dict.fromkeys(kind for kinds in document.get("use_of_vision", {}).values() for kind in kinds))


def _num_questions(document: Mapping[str, Any]) -> float:
    """Return how many questions were asked for in an evaluation; infinitely many where it is of the whole set."""
    sample = document.get("sample")
    return sample["asked"] if sample else math.inf


def _weights(run: Path) -> list[Path]:
    adapter = run / names.ADAPTER_WEIGHTS
    return [adapter if adapter.exists() else run / names.STUDENT_WEIGHTS, run / names.HEADS_WEIGHTS]


def missing_test_sets(cell: Cell) -> tuple[str, ...]:
    """Return the test sets that the cell has no finished evaluation of, with the study's probes and VQA evaluator."""
    return tuple(name for name in cell.test_sets if not _is_scored(cell, name))


def _is_scored(cell: Cell, test_set: str) -> bool:
    path = names.evaluation_file(cell.run, test_set, ".json")
    if not path.exists():
        return False
    found, asked = read_json(path), cell.evaluate
    # The questions of a sample are the first ones of a larger one.
    if _num_questions(found) < (asked.num_questions or math.inf):
        return False
    if asked.vqa_mode is not None and found.get("vqa_mode", asked.vqa_mode) != asked.vqa_mode:
        return False
    if test_set not in asked.probe_on or cell.finetune.hide_picture:
        return True
    return set(_probed(found)) >= set(asked.probe) - {"none"}


def is_finished(cell: Cell) -> bool:
    """Whether the cell needs nothing more; a student that another study did not keep is trained again."""
    gone = (cell.run / names.STUDENT).exists() and not all(file.exists() for file in _weights(cell.run))
    return names.is_finished(cell.run) and not missing_test_sets(cell) and not (cell.keeps_student and gone)


def init_digests(study: StudyConfig) -> dict[str, str]:
    """Digest the pretrained students that the study starts from, and the files of students that its options name.

    Another content makes other cells.

    Raises:
        ConfigError: a pretrained student does not exist.
    """
    missing = missing_inits(study)
    if missing:
        path, student = next(iter(missing.items()))
        published = (
            f"put the published weights there, or --init hf:ORG/MODEL; what they are: advl students show {student}"
        )
        raise ConfigError(
            "The pretrained student does not exist.",
            where=str(path),
            why="init names a folder with a *.safetensors file, or a checkpoint file",
            next_command=making_command(student, path) or published,
        )
    inits = {setting.init for setting in study.settings if setting.init is not None}
    named = {
        str(Path(value)): digest
        for option in NAMED_FILES
        for value in given_values(study, option)
        if (digest := named_files({option: value})[option]) is not None
    }
    return {str(init): student_digest(init) for init in inits if not is_on_hub(init)} | named


def region_digests(study: StudyConfig, data_root: Path | None, recipes: Mapping[str, Path]) -> dict[str, str]:
    """Digest the caches of regions that the study's students see.

    Args:
        recipes: as `build_plan` takes them.

    Raises:
        ConfigError: a cache that is none, with the command that imports it. CorruptCache: it is damaged.
    """
    found: dict[str, str] = {}
    for config in (cell.finetune for cell in build_plan(study, cells=Path(), recipes=recipes).cells):
        if not found.keys() >= set(map(str, region_places(config.regions, splits_read(config)))):
            caches = open_region_caches(config.regions, splits_read(config), data_root=data_root)
            found |= {str(cache.path): cache.identity_digest for cache in caches}
    return found


def dataset_digests(
    study: StudyConfig,
    data_root: Path | None,
    digest: DatasetDigester,
    *,
    recorded: Mapping[str, str],
    recipes: Mapping[str, Path],
) -> dict[str, str]:
    """Digest every split that the study trains on, so that a rebuilt dataset makes other cells.

    Args:
        recorded: what the study folder remembers; it serves where the datasets are not at hand, so that a finished
            study can be looked at anywhere.
        recipes: as `build_plan` takes them.

    Returns:
        "dataset/split" -> digest.

    Raises:
        DatasetError: a dataset is missing or malformed, and the folder remembers nothing of it.
    """
    cells = build_plan(study, cells=Path(), recipes=recipes).cells
    splits = {trained_on(cell.finetune): (cell.finetune.dataset, cell.finetune.split) for cell in cells}
    try:
        return {name: digest(dataset, split, data_root) for name, (dataset, split) in splits.items()}
    except DatasetError:
        if splits.keys() - recorded.keys():
            raise
        return {name: recorded[name] for name in splits}


def digest_dataset(dataset: str, split: str, data_root: Path | None, *, on_error: OnError = "fail") -> str:
    """Return the content digest of a split."""
    from advl_pipeline.datasets.registry import open_splits

    return open_splits(dataset, split=split, data_root=data_root, on_error=on_error).content_digest()


def missing_inits(study: StudyConfig) -> dict[Path, str]:
    """Return the pretrained students that do not exist, with the name of the student each is for."""
    inits = {setting.init: setting.student for setting in study.settings if setting.init is not None}
    return {path: student for path, student in inits.items() if not is_on_hub(path) and not weight_files(path)}
