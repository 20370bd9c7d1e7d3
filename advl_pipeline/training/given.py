"""What is refused before torch loads: names, folders, files and options of a run that cannot be right."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

from advl_pipeline.cache.reader import TeacherCache, open_cache
from advl_pipeline.configuration import read_toml, refuse_ineffective
from advl_pipeline.datasets.registry import require_names, tasks_of
from advl_pipeline.errors import ConfigError
from advl_pipeline.outputs import require_outputs
from advl_pipeline.runs import names
from advl_pipeline.runs.trackers import trackers_named
from advl_pipeline.students.registry import require_student
from advl_pipeline.students.weight_files import is_on_hub, required_weights
from advl_pipeline.teachers.open_options import PICTURES
from advl_pipeline.training.config import FinetuneConfig, TeacherOptions
from advl_pipeline.training.methods import finetune_steps, resolve_method
from advl_pipeline.training.recipes import AUTO, NONE
from advl_pipeline.training.without_effect import without_effect


def require_given(config: FinetuneConfig, *, is_control: bool = False) -> None:
    """Refuse what can be refused without a model, in well under a second.

    Args:
        is_control: a study marks the run as a control.

    Raises:
        ConfigError: contradicting options, a name that does not exist, an output that holds something else, a cache
            that is not there, weights by labels outside of a control. DatasetError, CorruptCache, WeightsUnavailable:
            as they say.
    """
    if config.distill.weighting == "oracle" and not is_control:
        raise ConfigError(
            "Weights by labels are a control of studies, and no method.",
            where="--weighting oracle",
            why="it reads the labels of all inputs that the adapt step sees",
            next_command="put advl-oracle among the methods of a study, or give --weighting ratio",
        )
    resolve_method(config, num_steps=finetune_steps(config))
    trackers_named(config.log_with)
    require_student(config.student)
    require_outputs(config)
    if config.init is not None and not is_on_hub(config.init):
        required_weights(config.init)
    if config.optimisation.recipe not in (AUTO, NONE):
        read_toml(Path(config.optimisation.recipe))
    require_names(config.dataset, split=config.split, tasks=config.task, data_root=config.data_root)
    here = tuple(location for location in config.cache if isinstance(location, Path))
    open_caches(dataclasses.replace(config, cache=here))


def require_effect(config: FinetuneConfig) -> None:
    """Refuse options of a new run that would change nothing; what was begun goes on as it was.

    Raises:
        ConfigError: as said. DatasetError: data of one's own that cannot be read.
    """
    if (config.output / names.CONFIG).is_file():
        return
    method = resolve_method(config, num_steps=finetune_steps(config))
    tasks = config.task or tasks_of(config.dataset, config.data_root)
    refuse_ineffective(without_effect(config, method, tasks))


def open_caches(config: TeacherOptions) -> list[TeacherCache]:
    """Open the caches that the options name, through the disk cache where they lie in an object store.

    Raises:
        ConfigError: one holds pictures and not what a teacher says of them.
    """
    caches = [open_cache(path, disk_cache=config.disk_cache_config) for path in config.cache]
    for cache in caches:
        if cache.teacher_name.startswith(PICTURES):
            raise ConfigError(
                "This cache holds pictures, and no teacher's features.",
                where=str(cache.path),
                next_command=f"give it as --pictures {shlex.quote(str(cache.path))}",
            )
    return caches
