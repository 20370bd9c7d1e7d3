"""Checks before torch loads: runs that are missing or not finished, test sets that do not exist."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from advl_pipeline.base.configuration import command_words, config_to_dict, require_effect
from advl_pipeline.base.errors import ConfigError, WeightsUnavailable, advise
from advl_pipeline.cache.reader import TeacherCache, open_cache
from advl_pipeline.datasets.registry import find_dataset, require_names
from advl_pipeline.datasets.roots import DatasetMissing, is_location, recorded_paths, refused_paths, set_name
from advl_pipeline.evaluation.config import BesideCaches, EvaluateConfig, PredictConfig
from advl_pipeline.evaluation.lettered import LETTERED_TASKS
from advl_pipeline.runs.names import is_finished
from advl_pipeline.runs.results import moved_to, read_config
from advl_pipeline.students.registry import student_names
from advl_pipeline.training.config import FinetuneConfig


def require_finished(run: Path) -> dict[str, Any]:
    """Return the configuration that a finished run was created with.

    Raises:
        ConfigError: the folder contains no run. WeightsUnavailable: the run is not finished.
    """
    config = read_config(run)
    if is_finished(run):
        return config
    resume = advise(["advl", "finetune", *command_words(FinetuneConfig, config | {"output": str(run)})])
    why = "there is no result.json, which comes last"
    raise WeightsUnavailable("The run is not finished.", where=str(run), why=why, next_command=resume)


def by_name(config: BesideCaches) -> bool:
    """Return whether a student is given by its name, not as a folder."""
    return not config.student.is_dir() and str(config.student) in student_names()


def require_readable(config: BesideCaches) -> None:
    """Refuse a look without caches, with missing caches, or with caches that name paths not given by the user.

    Raises:
        ConfigError: a cache is missing or names another path. CorruptCache: a cache is unfinished or damaged.
    """
    require_effect(config, {"a student by name": "" if by_name(config) else f"{config.student} has its own weights"})
    if not config.cache:
        extract = "advl extract --teacher NAME --dataset NAME --split train".split()
        advice = advise(extract, note="then give it as --cache DIR")
        what = "The command needs a teacher cache, whose inputs are looked at."
        raise ConfigError(what, where="--cache", next_command=advice)
    for location in config.cache:
        if isinstance(location, Path):
            cache_data(config, open_cache(location))


def cache_data(config: BesideCaches, cache: TeacherCache) -> tuple[str, Path | None]:
    """Return the dataset of a cache and the folder of the datasets; None for the default folder.

    A cache may come from anyone. A path in its record is opened only if the user typed it, or if the run that is read
    out was trained on it.

    Raises:
        ConfigError: the record names another path.
    """
    recorded = cache.provenance["config"]
    trained_on = read_config(config.student) if is_finished(config.student) else {}
    typed = {"dataset": config.dataset, "data_root": config.data_root}
    missing = {
        name: path
        for name, path in recorded_paths(recorded).items()
        if name in typed and typed[name] is None and trained_on.get(name) != path
    }
    if moved_to(None, recorded) is None:
        missing.pop("data_root", None)  # It does not exist on this machine, so the default folder is used.
    if missing:
        words = command_words(type(config), {**config_to_dict(config), **missing, "student": None})
        raise refused_paths(cache.path, missing, [*config.command, str(config.student), *words])
    return config.dataset or str(recorded["dataset"]), moved_to(config.data_root, recorded)


def check_scoring(run: Path, test_sets: Sequence[str], data_root: Path | None) -> None:
    """Refuse, in well under a second, a run that cannot answer and test sets that do not exist.

    Args:
        test_sets: splits of the run's dataset, or DATASET/SPLIT.

    Raises:
        ConfigError: no such run or set. WeightsUnavailable: the run is not finished. DatasetError: the user's own
            data cannot be read.
    """
    trained_on = require_finished(run)
    for test_set in test_sets:
        name, split = set_name(test_set, trained_on["dataset"])
        try:
            require_names(name, split=split, data_root=moved_to(data_root, trained_on))
        except DatasetMissing as error:
            if name == trained_on["dataset"] and is_location(name) and not Path(name).exists():
                # A run remains valid after its data move.
                error.next_command = f"say where the run's data are now: PATH/{split} in place of {split}"
            raise


def check_scoring_options(config: EvaluateConfig | PredictConfig) -> None:
    """Refuse options that would change nothing on these test sets.

    Raises:
        ConfigError: an option has no effect.
    """
    trained_on = read_config(config.run)
    sets = config.on if isinstance(config, EvaluateConfig) else (config.on,)
    tasks: set[str] = set()
    for test_set in sets:
        name, _ = set_name(test_set, trained_on["dataset"])
        tasks.update(find_dataset(name, moved_to(config.data_root, trained_on)).tasks)
    of_task = f"the task is {', '.join(sorted(tasks))}"
    facts = {"VQA": "" if "vqa" in tasks else of_task}
    if isinstance(config, EvaluateConfig):
        by_letters = config.protocol == "letters"
        not_evaluated = [name for name in config.probe_on if name not in sets]
        facts |= {
            "likelihoods": "--as letters scores by the set's own evaluator" if by_letters else "",
            "questions for letters": "" if tasks & LETTERED_TASKS else f"it asks choices and answers, and {of_task}",
            "pictures to replace": "--as letters asks complete questions, and replaces no picture"
            if by_letters
            else "",
            "an evaluated set": f"{not_evaluated[0]} is not evaluated (--on)" if not_evaluated else "",
            "a probe": "" if set(config.probes) - {"none"} else "--probe none replaces no picture",
        }
    require_effect(config, facts)
