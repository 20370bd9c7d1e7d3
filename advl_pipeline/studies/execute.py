"""What running one cell means: finetune, then score on every test set. Also what must exist before: teacher caches.

The two phases are imported when a cell runs, so that planning and gathering stay light.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from advl_pipeline.errors import ConfigError, DatasetError, InUse, WeightsUnavailable, again
from advl_pipeline.extraction.config import ExtractConfig
from advl_pipeline.runs import names
from advl_pipeline.runs.results import filed_as, read_json
from advl_pipeline.students.weight_files import (
    file_digest,
    is_on_hub,
    making_command,
    student_digest,
    weight_files,
)
from advl_pipeline.studies.config import StudyConfig
from advl_pipeline.studies.plan import STUDY_FILE, Cell, Plan, studies_of, trained_on
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.given import open_region_caches, region_places, splits_read
from advl_pipeline.training.resolved import NAMED_FILES

_SECONDS_BETWEEN_LOOKS = 10.0

CellExecutor = Callable[[Cell], None]
"""Runs one cell to its end or raises; resumes what an interrupted call left in the cell's run folder."""

DatasetDigester = Callable[[FinetuneConfig], str]
"""Digest of the content of the split that a run trains on. Raises `DatasetError`."""

CachePreparer = Callable[[ExtractConfig], None]
"""Makes sure that a cache exists."""


def execute_cell(cell: Cell) -> None:
    """Finetune and evaluate in this process; the student goes where no study that has the cell keeps it."""
    from advl_pipeline.evaluation.runner import run_evaluate
    from advl_pipeline.training.run import run_finetune

    missing = missing_test_sets(cell)
    # Where the student was not kept, the same run gives the same one again.
    is_gone = (missing or cell.keeps_student) and not all(file.exists() for file in _weights(cell.run))
    if is_gone or not names.is_finished(cell.run):
        recipe = cell.finetune.optimisation.recipe
        if file_digest(recipe) != cell.recipe_digest:
            raise ConfigError(
                "The recipe has changed since the study was begun.",
                where=recipe,
                next_command=again("give the same command once more: its cells then follow the recipe as it is now"),
            )
        (cell.run / names.RESULT).unlink(missing_ok=True)
        run_finetune(cell.finetune, is_control=cell.is_control)
    if missing:
        # An evaluation has what the study asks for and what another study of the cell has asked for.
        asked, stored = cell.evaluate, {name: _stored(cell, name) for name in missing}
        probes = dict.fromkeys(probe for probe in asked.probe if probe != "none")
        probes |= dict.fromkeys(probe for document in stored.values() for probe in _probed(document))
        found = [_num_questions(document) for document in stored.values() if document]
        most = max([asked.num_questions or math.inf, *found])
        probed = (name for name, document in stored.items() if _probed(document))
        run_evaluate(
            replace(
                asked,
                on=missing,
                num_questions=None if most == math.inf else int(most),
                probe=tuple(probes) or ("none",),
                probe_on=tuple(dict.fromkeys((*asked.probe_on, *probed))),
            )
        )
    if not cell.keeps_student and not any(keeps for _, keeps in studies_of(cell.run)):
        for file in _weights(cell.run):
            file.unlink(missing_ok=True)


def _stored(cell: Cell, test_set: str) -> Mapping[str, Any]:
    """Return the document of a cell's evaluation by the evaluator that the study asks for; nothing without one."""
    file = names.evaluation_file(cell.run, filed_as(cell.run, test_set, cell.evaluate.vqa_mode), ".json")
    return read_json(file) if file.exists() else {}


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
    missing, asked = [], cell.evaluate
    for name in cell.test_sets:
        found = _stored(cell, name)
        is_probed = name in asked.probe_on and not cell.finetune.hide_picture
        wanted = set(asked.probe) - {"none"} if is_probed else set()
        # The questions of a sample are the first ones of a larger one.
        if not found or _num_questions(found) < (asked.num_questions or math.inf) or wanted - set(_probed(found)):
            missing.append(name)
    return tuple(missing)


def is_finished(cell: Cell) -> bool:
    """Whether the cell needs nothing more; a student that another study did not keep is trained again."""
    gone = (cell.run / names.STUDENT).exists() and not all(file.exists() for file in _weights(cell.run))
    return names.is_finished(cell.run) and not missing_test_sets(cell) and not (cell.keeps_student and gone)


def prepare_cache(config: ExtractConfig) -> None:
    """Extract a cache; where another process is at it, that one's end is waited for.

    A finished cache of the same options needs no teacher: one whose weights are no longer at hand is taken as it is.
    """
    from advl_pipeline.extraction.planning import is_extracted
    from advl_pipeline.extraction.run import run_extract

    while not is_extracted(config, same_weights=True):
        try:
            run_extract(config)
            break
        except WeightsUnavailable:
            if is_extracted(config, same_weights=False):
                break
            raise
        except InUse as error:
            tqdm.write(f"{config.output}: waiting for {error.why}", file=sys.stderr)
            time.sleep(_SECONDS_BETWEEN_LOOKS)


def missing_inits(study: StudyConfig) -> dict[Path, str]:
    """Return the pretrained students that do not exist, with the name of the student each is for."""
    inits = {setting.init: setting.student for setting in study.settings if setting.init is not None}
    return {path: student for path, student in inits.items() if not is_on_hub(path) and not weight_files(path)}


def input_digests(draft: Plan) -> dict[str, str]:
    """Digest what cells start from or see beside their dataset, so that another content makes other cells.

    These are pretrained students, files of students that options name, and caches of regions.

    Args:
        draft: the plan as it is laid out without digests.

    Raises:
        ConfigError: a pretrained student does not exist, or a cache of regions is none, with the command that makes
            it. CorruptCache: it is damaged.
    """
    for path, student in missing_inits(draft.study).items():
        published = (
            f"put the published weights there, or --init hf:ORG/MODEL; what they are: advl students show {student}"
        )
        raise ConfigError(
            "The pretrained student does not exist.",
            where=str(path),
            why="init names a folder with a *.safetensors file, or a checkpoint file",
            next_command=making_command(student, path) or published,
        )
    found: dict[str, str] = {}
    for config in (cell.finetune for cell in draft.cells):
        if config.init is not None and str(config.init) not in found and not is_on_hub(config.init):
            found[str(config.init)] = student_digest(config.init)
        for option, digest_file in NAMED_FILES.items():
            value = getattr(config, option)
            if value is None or str(Path(value)) in found:
                continue
            if (digest := digest_file(str(value))) is not None:
                found[str(Path(value))] = digest
        if not found.keys() >= set(map(str, region_places(config.regions, splits_read(config)))):
            caches = open_region_caches(config.regions, splits_read(config), data_root=config.data_root)
            found |= {str(cache.path): cache.identity_digest for cache in caches}
    return found


def dataset_digests(draft: Plan, digest: DatasetDigester, *, folder: Path) -> dict[str, str]:
    """Digest every split that a plan trains on, so that a rebuilt dataset makes other cells.

    Args:
        draft: the plan as it is laid out without digests.
        folder: of the study. What it remembers serves where the datasets are not at hand, so that a finished study
            can be looked at anywhere.

    Returns:
        "dataset/split" -> digest.

    Raises:
        DatasetError: a dataset is missing or malformed, and the folder remembers nothing of it.
    """
    splits = {trained_on(cell.finetune): cell.finetune for cell in draft.cells}
    try:
        return {name: digest(config) for name, config in splits.items()}
    except DatasetError:
        file = folder / STUDY_FILE
        recorded = read_json(file).get("dataset_digests", {}) if file.exists() else {}
        if splits.keys() - recorded.keys():
            raise
        return {name: recorded[name] for name in splits}


def digest_dataset(config: FinetuneConfig) -> str:
    """Return the content digest of the split that a run trains on, without the rows that it leaves out."""
    from advl_pipeline.datasets.registry import open_splits

    opened = open_splits(config.dataset, split=config.split, data_root=config.data_root, on_error=config.on_error)
    return opened.content_digest()
