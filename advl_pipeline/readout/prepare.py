"""Prepare a look at a student beside caches, before torch loads, by finding and opening what it reads, once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from advl_pipeline.base.configuration import command_words, config_to_dict, require_effect
from advl_pipeline.base.errors import ConfigError, advise
from advl_pipeline.base.outputs import require_outputs
from advl_pipeline.cache.reader import TeacherCache, open_cache
from advl_pipeline.datasets.registry import read_dataset
from advl_pipeline.datasets.roots import recorded_paths, refused_paths
from advl_pipeline.datasets.spec import DatasetSpec
from advl_pipeline.readout.config import BesideCaches
from advl_pipeline.runs.names import is_finished
from advl_pipeline.runs.results import moved_to, read_config
from advl_pipeline.students.registry import student_names

LookT = TypeVar("LookT", bound=BesideCaches)


def by_name(config: BesideCaches) -> bool:
    """Return whether a student is given by its name, not as a folder."""
    return not config.student.is_dir() and str(config.student) in student_names()


@dataclass(frozen=True, kw_only=True)
class PreparedLook(Generic[LookT]):
    """A look at a student beside caches that was checked, with the caches opened, in the given order.

    `trained_on` is the configuration of the run that is looked at, empty if the student is no run. `dataset`, `split`
    and `data_root` (None for the default folder) are those of the caches.
    """

    config: LookT
    trained_on: Mapping[str, Any]
    caches: Sequence[TeacherCache]
    dataset: DatasetSpec
    split: str
    data_root: Path | None


def prepare_look(
    config: LookT, dataset: DatasetSpec | None = None, *, caches: Sequence[TeacherCache] | None = None
) -> PreparedLook[LookT]:
    """Open the caches of a look, and find their dataset.

    Args:
        dataset: that of the caches, as `read_dataset` returns it; None to find it.
        caches: those of the configuration; None to open them.

    Raises:
        ConfigError: a cache is missing or names a path not given by the user, or the caches are of different splits.
        CorruptCache: a cache is unfinished or damaged. DatasetError: the user's own data cannot be read.
    """
    require_outputs(config)
    require_effect(config, {"a student by name": "" if by_name(config) else f"{config.student} has its own weights"})
    if not config.cache:
        raise ConfigError(
            "The command needs a teacher cache, and examines the inputs in it.",
            where="--cache",
            next_command=advise(
                "advl extract --teacher NAME --dataset NAME --split train".split(),
                note="then give it as --cache DIR",
            ),
        )
    trained_on = read_config(config.student) if is_finished(config.student) else {}
    if caches is None:
        caches = [open_cache(location) for location in config.cache]
    for cache in caches:
        _require_typed_paths(config, cache, trained_on)
    splits = {(cache.identity["dataset"]["name"], cache.identity["dataset"]["split"]) for cache in caches}
    if len(splits) > 1:
        raise ConfigError(
            "The caches are of different splits.",
            where="--cache",
            why=", ".join(f"{name}/{split}" for name, split in sorted(splits)),
            next_command="give the caches of one split; run the command once for each",
        )
    recorded = caches[0].provenance["config"]
    data_root = moved_to(config.data_root, recorded)
    return PreparedLook(
        config=config,
        trained_on=trained_on,
        caches=caches,
        dataset=dataset or read_dataset(config.dataset or str(recorded["dataset"]), data_root),
        split=caches[0].identity["dataset"]["split"],
        data_root=data_root,
    )


def _require_typed_paths(config: BesideCaches, cache: TeacherCache, trained_on: Mapping[str, Any]) -> None:
    """Refuse paths in a cache's record that the user did not type and that the run was not trained on.

    A cache may come from anyone, so its paths are not opened.

    Raises:
        ConfigError: the record names another path.
    """
    recorded = cache.provenance["config"]
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
