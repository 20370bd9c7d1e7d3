"""The study folder: study.json (the study as it was resolved, and a list of its cells), recipes/ (copies of the
recipe files that the study names), and extraction/ (the time that each cache took, whoever extracted it).

Runs lie beside the studies, each once: runs/cells/ID for runs/studies/NAME. So studies that ask for one cell
share it. Studies that are copied to another machine together with the folder of cells gather there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from advl_pipeline.atomic import make_folder, write_bytes, write_text
from advl_pipeline.configuration import build_config, config_to_dict
from advl_pipeline.errors import ConfigError, advise
from advl_pipeline.folders import MARKERS
from advl_pipeline.runs.results import read_json
from advl_pipeline.studies.config import StudyConfig
from advl_pipeline.studies.plan import CacheNeed, Plan, build_plan
from advl_pipeline.training.recipes import AUTO, NONE

STUDY_FILE = MARKERS["study"].file
STUDIES_FOLDER = "studies"
CELLS_FOLDER = "cells"
EXTRACTION_FOLDER = "extraction"
RECIPE_FOLDER = "recipes"
_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyRecord:
    """What study.json holds.

    `init_digests` are of the pretrained students and of other files that options name, `dataset_digests` of the
    splits that are trained on. `recipes`: a recipe file as the study names it -> the name of its copy. `cells`: id ->
    title.
    """

    study: StudyConfig
    init_digests: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    dataset_digests: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    recipes: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    caches: Path
    command: str = ""
    cells: Mapping[str, str] = field(default_factory=lambda: _NOTHING)


def default_folder(study: StudyConfig) -> Path:
    return Path("runs") / STUDIES_FOLDER / study.name


def cells_folder(folder: Path) -> Path:
    """Return where the runs of a study lie: in `cells`, beside the study or beside the folder `studies` of it."""
    beside = folder.parent
    return (beside.parent if beside.name == STUDIES_FOLDER else beside) / CELLS_FOLDER


def studies_of(run: Path) -> Iterator[tuple[Path, bool]]:
    """Yield the studies beside a run's folder that list its cell, by name, and whether they keep its student."""
    outer = run.absolute().parent.parent
    for file in sorted([*outer.glob(f"{STUDIES_FOLDER}/*/{STUDY_FILE}"), *outer.glob(f"*/{STUDY_FILE}")]):
        with suppress(OSError, ValueError):
            record = json.loads(file.read_text(encoding="utf-8"))
            if run.name in record["cells"]:
                yield file.parent, record["study"].get("keep_weights", True)


def write_study(folder: Path, record: StudyRecord, copies: Mapping[Path, bytes]) -> None:
    """Record the study, so that the folder alone says what it holds, and then copy its recipes."""
    make_folder(folder)
    write_text(folder / STUDY_FILE, json.dumps(config_to_dict(record), indent=2, ensure_ascii=False) + "\n")
    for path, content in copies.items():
        make_folder(path.parent)
        write_bytes(path, content)


def given_values(study: StudyConfig, option: str) -> set[str]:
    """Return all that a study gives to an option of its runs, in one table or another."""
    tables = (
        *(study.training, *(setting.training for setting in study.settings), *study.at_shots.values()),
        *(study.variant(name).training for name in study.methods),
    )
    return {str(value) for table in tables for key, value in table.items() if key.replace("-", "_") == option}


def read_recipes(folder: Path, study: StudyConfig) -> tuple[dict[str, Path], dict[Path, bytes]]:
    """Read the study's recipe files, which its folder keeps copies of: what cells follow must not change under them.

    A file that is gone is taken from the folder, if it was copied before. Nothing is written.

    Returns:
        A recipe file as the study names it -> its copy in the folder; and the copies that are to be written, with
        their content.

    Raises:
        ConfigError: a file can be read neither there nor here, or the record of the study is damaged.
    """
    kept, _ = recorded(folder)
    copies: dict[Path, bytes] = {}
    for name in sorted(given_values(study, "recipe") - {AUTO, NONE}):
        try:
            content = Path(name).read_bytes()
        except OSError as error:
            if name in kept:
                continue
            raise ConfigError("A recipe cannot be read.", where=name, why=str(error)) from error
        kept[name] = folder / RECIPE_FOLDER / (hashlib.blake2b(content, digest_size=8).hexdigest() + ".toml")
        copies[kept[name]] = content
    return kept, copies


def recorded(folder: Path) -> tuple[dict[str, Path], Mapping[str, str]]:
    """Return the recipe files that the folder holds copies of and the digests of the splits; none for a new folder.

    Returns:
        Name of a recipe in the study -> its copy; split that the folder's study was trained on -> its digest.

    Raises:
        ConfigError: the record of the study is damaged.
    """
    if not (folder / STUDY_FILE).exists():
        return {}, {}
    record = read_record(folder)
    copies = {name: folder / RECIPE_FOLDER / Path(file).name for name, file in record.recipes.items()}
    return copies, record.dataset_digests


def write_extraction(folder: Path, need: CacheNeed, seconds: float) -> None:
    """Record how long a cache took to extract: caches themselves keep no times, so that equal ones are equal."""
    path = _extraction_file(folder, need.path)
    make_folder(path.parent)
    write_text(path, json.dumps({"teacher": need.teacher, "cache": str(need.path), "seconds": seconds}) + "\n")


def read_extraction_seconds(folder: Path, cache: Path) -> float | None:
    """Return how long a cache took, or None where nobody noted it."""
    path = _extraction_file(folder, cache)
    return float(read_json(path)["seconds"]) if path.exists() else None


def _extraction_file(folder: Path, cache: Path) -> Path:
    return folder / EXTRACTION_FOLDER / ("-".join(cache.parts[-3:]) + ".json")


def read_record(folder: Path) -> StudyRecord:
    """Read study.json.

    Raises:
        ConfigError: the folder holds no study, or its record is damaged.
    """
    path = folder / STUDY_FILE
    if not path.exists():
        raise ConfigError(
            "This folder holds no study.",
            where=str(folder),
            why=f"it has no {STUDY_FILE}",
            next_command=advise(["advl", "study", "NAME", "--output", "FOLDER"]),
        )
    try:
        return build_config(StudyRecord, dict(json.loads(path.read_text(encoding="utf-8"))), where=str(path))
    except (ValueError, TypeError) as error:
        raise ConfigError("The record of the study is damaged.", where=str(path), why=repr(error)) from error


def read_study_folder(folder: Path) -> tuple[Plan, StudyRecord]:
    """Rebuild the plan of a study folder; also returns its record.

    Raises:
        ConfigError: the folder holds no study, or its record is damaged.
    """
    record = read_record(folder)
    plan = build_plan(
        record.study,
        cells=cells_folder(folder),
        caches=record.caches,
        init_digests=record.init_digests,
        dataset_digests=record.dataset_digests,
        recipes=recorded(folder)[0],
    )
    return plan, record
