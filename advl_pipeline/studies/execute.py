"""What running one cell means: finetune, then score on every test set. Also what must exist before.

The two phases are imported when a cell runs, so that planning and gathering stay light.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from advl_pipeline.datasets.problems import OnError
from advl_pipeline.errors import ConfigError, DatasetError
from advl_pipeline.runs import names
from advl_pipeline.runs.results import read_json
from advl_pipeline.students.weight_files import is_on_hub, making_command, student_digest, weight_files
from advl_pipeline.studies.config import StudyConfig
from advl_pipeline.studies.folder import given_values
from advl_pipeline.studies.plan import Cell, build_plan, trained_on
from advl_pipeline.training.resolved import NAMED_FILES, named_files

CellExecutor = Callable[[Cell, StudyConfig], None]
"""Runs one cell to its end or raises; resumes what an interrupted call left in the cell's run folder."""

DatasetDigester = Callable[[str, str, Path | None], str]
"""Digest of the content of a dataset's split, given the folder of the datasets. Raises `DatasetError`."""


def execute_cell(cell: Cell, study: StudyConfig) -> None:
    """Finetune and evaluate in this process; the student goes where the study does not keep it."""
    from advl_pipeline.evaluation.runner import run_evaluate
    from advl_pipeline.training.run import run_finetune

    missing = missing_test_sets(cell)
    if missing and not all(file.exists() for file in _weights(cell.run)):
        # The student was not kept: the same run gives the same one again.
        (cell.run / names.RESULT).unlink(missing_ok=True)
    if not names.is_finished(cell.run):
        run_finetune(cell.finetune)
    if missing:
        run_evaluate(replace(cell.evaluate, on=missing))
    if not study.keep_weights:
        for file in _weights(cell.run):
            file.unlink(missing_ok=True)


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
    if asked.num_questions is not None and (found.get("sample") or {}).get("asked") != asked.num_questions:
        return False
    if asked.num_questions is None and found.get("sample"):
        return False
    if asked.vqa_mode is not None and found.get("vqa_mode", asked.vqa_mode) != asked.vqa_mode:
        return False
    if test_set not in asked.probe_on or cell.finetune.hide_picture:
        return True
    probed = {kind for by_kind in found.get("use_of_vision", {}).values() for kind in by_kind}
    return probed >= set(asked.probe) - {"none"}


def is_finished(cell: Cell) -> bool:
    """Whether the cell needs nothing more."""
    return names.is_finished(cell.run) and not missing_test_sets(cell)


def init_digests(study: StudyConfig) -> dict[Path, str]:
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
        Path(value): digest
        for option in NAMED_FILES
        for value in given_values(study, option)
        if (digest := named_files({option: value})[option]) is not None
    }
    return {init: student_digest(init) for init in inits if not is_on_hub(init)} | named


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
