"""The study folder: study.json (the study as it was resolved), cells/ID/ (one run folder per cell), and extraction/
(the time that each cache took, whoever extracted it).

A folder copied from another machine gathers there: nothing in it refers to a path outside.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from advl_pipeline.atomic import write_text
from advl_pipeline.configuration import build_config, config_to_dict
from advl_pipeline.errors import ConfigError
from advl_pipeline.studies.config import StudyConfig
from advl_pipeline.studies.plan import CacheNeed, Plan, build_plan

STUDY_FILE = "study.json"
EXTRACTION_FOLDER = "extraction"


def default_folder(study: StudyConfig) -> Path:
    return Path("runs") / "studies" / study.name


def write_study(
    folder: Path,
    plan: Plan,
    *,
    digests: dict[Path, str],
    dataset_digests: dict[str, str],
    caches: Path,
    command: str,
) -> None:
    """Record the study, so that the folder alone says what it holds."""
    record = {
        "study": config_to_dict(plan.study),
        "init_digests": {str(path): digest for path, digest in digests.items()},
        "dataset_digests": dataset_digests,
        "caches": str(caches),
        "command": command,
        "cells": {cell.cell_id: cell.title for cell in plan.cells},
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / STUDY_FILE, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def write_extraction(folder: Path, need: CacheNeed, seconds: float) -> None:
    """Record how long a cache took to extract: caches themselves keep no times, so that equal ones are equal."""
    path = _extraction_file(folder, need.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({"teacher": need.teacher, "cache": str(need.path), "seconds": seconds}) + "\n")


def read_extraction_seconds(folder: Path, cache: Path) -> float | None:
    """Return how long a cache took, or None where nobody noted it."""
    path = _extraction_file(folder, cache)
    return float(json.loads(path.read_text(encoding="utf-8"))["seconds"]) if path.exists() else None


def _extraction_file(folder: Path, cache: Path) -> Path:
    return folder / EXTRACTION_FOLDER / ("-".join(cache.parts[-3:]) + ".json")


def recorded_dataset_digests(folder: Path) -> dict[str, str]:
    """Return the digests of the splits that the folder's study was trained on; none for a new folder.

    Raises:
        ConfigError: the record of the study is damaged.
    """
    if not (folder / STUDY_FILE).exists():
        return {}
    _, record = read_study_folder(folder)
    return {str(name): str(digest) for name, digest in record.get("dataset_digests", {}).items()}


def read_study_folder(folder: Path) -> tuple[Plan, dict[str, Any]]:
    """Rebuild the plan of a study folder; also returns its record.

    Raises:
        ConfigError: the folder holds no study, or its record is damaged.
    """
    path = folder / STUDY_FILE
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        study = build_config(StudyConfig, record["study"], where=str(path))
        digests = {Path(name): str(digest) for name, digest in record["init_digests"].items()}
        dataset_digests = {str(name): str(digest) for name, digest in record.get("dataset_digests", {}).items()}
        caches = Path(record["caches"])
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            "This folder holds no study.",
            where=str(folder),
            why=f"it has no {STUDY_FILE}",
            next_command="advl study NAME --output FOLDER",
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError("The record of the study is damaged.", where=str(path), why=repr(error)) from error
    plan = build_plan(study, folder=folder, caches=caches, init_digests=digests, dataset_digests=dataset_digests)
    return plan, record
