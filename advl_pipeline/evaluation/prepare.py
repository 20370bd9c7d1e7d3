"""Prepare a scoring, before torch loads, by finding what it reads, once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from advl_pipeline.base.configuration import command_words, require_effect
from advl_pipeline.base.errors import Advice, ConfigError, IdentityMismatch, WeightsUnavailable, advise
from advl_pipeline.base.outputs import require_outputs
from advl_pipeline.datasets.records import TASKS
from advl_pipeline.datasets.registry import find_dataset, require_names, with_rows
from advl_pipeline.datasets.roots import DatasetMissing, is_location, set_name
from advl_pipeline.datasets.spec import DatasetSpec
from advl_pipeline.evaluation.config import EvaluateConfig, PredictConfig
from advl_pipeline.evaluation.lettered import LETTERED_TASKS
from advl_pipeline.runs.names import IDENTITY, is_finished, lacks_student, weights_of
from advl_pipeline.runs.results import moved_to, read_config, read_json
from advl_pipeline.training.config import SCHEMA, FinetuneConfig

ScoringT = TypeVar("ScoringT", EvaluateConfig, PredictConfig)


def training_command(run: Path, config: Mapping[str, Any]) -> list[str]:
    """Return the words of the command that trains a run in its folder, from the configuration in it."""
    return ["advl", "finetune", *command_words(FinetuneConfig, {**config, "output": str(run)})]


def _train(
    run: Path,
    config: Mapping[str, Any],
    *then: Sequence[str],
    note: str = "",
    again: Sequence[str] | None = None,
) -> Advice:
    """Advise to train a run to its end, then other commands. A run of another version starts over."""
    training = training_command(run, config)
    identity = run / IDENTITY
    # A run that ended before its first step has none.
    if not identity.is_file() or read_json(identity).get("schema") == SCHEMA:
        return advise(training, *then, note=note, again=again)
    starts_over = "another version wrote it: it starts over and loses its evaluations, or give another --output"
    return advise([*training, "--no-resume"], *then, note="; ".join(filter(None, (note, starts_over))), again=again)


def require_finished(run: Path) -> dict[str, Any]:
    """Return the configuration that a finished run was created with.

    Raises:
        ConfigError: the folder contains no run. WeightsUnavailable: the run is not finished, or kept no student.
    """
    config = read_config(run)
    if not is_finished(run):
        raise WeightsUnavailable(
            "The run is not finished.",
            where=str(run),
            why="there is no result.json, which comes last",
            next_command=_train(run, config),
        )
    if lacks_student(run):
        raise WeightsUnavailable(
            "The run kept no student.",
            where=str(run),
            why=", ".join(f"{file.name} is missing" for file in weights_of(run) if not file.exists()),
            next_command=_train(run, config, note="trains it again", again=()),
        )
    return config


@contextmanager
def scored_again(run: Path) -> Iterator[None]:
    """Let an error that advises to score a run advise to train it first if its student was not kept."""
    try:
        yield
    except (ConfigError, IdentityMismatch) as error:
        if isinstance(error.next_command, Advice) and lacks_student(run):
            error.next_command = _train(
                run,
                read_config(run),
                *error.next_command.commands,
                note="the run kept no student: it is trained again",
            )
        raise


@dataclass(frozen=True, kw_only=True)
class PreparedScoring(Generic[ScoringT]):
    """The scoring of a finished run that was checked.

    `trained_on` is the configuration that the run was created with, and `datasets` are those of the test sets, by
    name. In `config` the folder of the datasets is that of the run unless the user gave another.
    """

    config: ScoringT
    trained_on: Mapping[str, Any]
    datasets: Mapping[str, DatasetSpec]


def prepare_scoring(config: ScoringT, *, may_idle: bool = False) -> PreparedScoring[ScoringT]:
    """Find what a finished run is scored on, in well under a second. Refuse a run that cannot answer.

    Args:
        may_idle: allow options without effect, as a study gives them to all of its runs.

    Raises:
        ConfigError: no such run or set, or an option has no effect. WeightsUnavailable: the run is not finished.
            DatasetError: the user's own data cannot be read.
    """
    require_outputs(config)
    trained_on = require_finished(config.run)
    config = replace(config, data_root=moved_to(config.data_root, trained_on))
    datasets: dict[str, DatasetSpec] = {}
    for test_set in config.on if isinstance(config, EvaluateConfig) else (config.on,):
        name, split = set_name(test_set, trained_on["dataset"])
        try:
            dataset = datasets.get(name) or find_dataset(name, config.data_root)
            require_names(dataset, split, data_root=config.data_root)
            datasets[name] = with_rows(dataset, config.data_root)
        except DatasetMissing as error:
            if name == trained_on["dataset"] and is_location(name) and not Path(name).exists():
                # A run remains valid after its data move.
                error.next_command = f"say where the run's data are now: PATH/{split} in place of {split}"
            raise
    if not may_idle:
        _require_effect(config, datasets.values())
    return PreparedScoring(config=config, trained_on=trained_on, datasets=datasets)


def _require_effect(config: EvaluateConfig | PredictConfig, datasets: Iterable[DatasetSpec]) -> None:
    tasks = {task for dataset in datasets for task in dataset.tasks}
    of_task = f"the task is {', '.join(sorted(tasks))}"
    facts = {"VQA": "" if any(TASKS[task].by_annotators for task in tasks) else of_task}
    if isinstance(config, EvaluateConfig):
        by_letters = config.protocol == "letters"
        not_evaluated = [name for name in config.probe_on if name not in config.on]
        facts |= {
            "likelihoods": "--as letters scores by the set's own evaluator" if by_letters else "",
            "questions for letters": ""
            if LETTERED_TASKS & set(tasks)
            else f"it asks choices and answers, and {of_task}",
            "pictures to replace": "--as letters asks complete questions, and replaces no picture"
            if by_letters
            else "",
            "an evaluated set": f"{not_evaluated[0]} is not evaluated (--on)" if not_evaluated else "",
            "a probe": "" if set(config.probes) - {"none"} else "--probe none replaces no picture",
        }
    require_effect(config, facts)
