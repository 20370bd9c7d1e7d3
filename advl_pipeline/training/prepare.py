"""`prepare_finetune`: refuse an invalid run, before torch loads, by finding and opening everything that it reads.

Each dataset, cache, pretrained student and method is opened once and handed on to `run_finetune`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from advl_pipeline.base.compute import num_processes
from advl_pipeline.base.configuration import require_effect
from advl_pipeline.base.outputs import require_outputs
from advl_pipeline.base.toml import read_toml
from advl_pipeline.cache.reader import TeacherCache
from advl_pipeline.datasets.config import facts_of_data
from advl_pipeline.datasets.records import head_name
from advl_pipeline.datasets.registry import find_dataset, require_names, with_rows
from advl_pipeline.datasets.spec import DatasetSpec
from advl_pipeline.runs import names
from advl_pipeline.runs.run_folder import RunFolder
from advl_pipeline.runs.trackers import trackers_named
from advl_pipeline.stored_inputs.region_caches import open_region_caches
from advl_pipeline.students.known_words import read_known_words, recorded_words
from advl_pipeline.students.registry import require_student
from advl_pipeline.students.weight_files import is_on_hub, located, pinned_init, required_weights
from advl_pipeline.training.caches import check_teachers, open_caches
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.facts import command_of, facts_of_run
from advl_pipeline.training.identity import run_record
from advl_pipeline.training.inputs import Inputs, open_run_inputs, splits_read, within_passes
from advl_pipeline.training.recipes import AUTO, NONE
from advl_pipeline.training.resolved import Run, resolve_method, resolve_run
from advl_pipeline.training.validation import Validation, may_stop, open_validation


@dataclass(frozen=True, kw_only=True)
class PreparedFinetune:
    """A finetuning that was checked, with everything that it reads.

    `given` is the configuration as the user gave it, with the commit of a pretrained student, and `command` repeats
    it. In `run` the pretrained student is on this machine; device and precision are not resolved yet. `validation`
    holds the examples that the run is scored on during training, or the reason that there are none. `caches` are
    those of the teachers in the given order, empty if the method uses none, and `teachers` the same by split of
    `inputs.splits`. `begun` is the identity of the run if the folder has it already.
    """

    given: FinetuneConfig
    command: str
    folder: RunFolder
    dataset: DatasetSpec
    run: Run
    inputs: Inputs
    validation: Validation | str
    caches: Sequence[TeacherCache]
    teachers: Sequence[Sequence[TeacherCache]]
    region_caches: Sequence[TeacherCache]
    begun: Mapping[str, Any] | None = None

    def identity(self) -> Mapping[str, Any]:
        """Return the identity of the run (`run_record`); its precision counts, so resolve it first."""
        return self.begun or run_record(self.run, self.inputs, self.caches, self.region_caches, self.validation)


def prepare_finetune(
    config: FinetuneConfig,
    dataset: DatasetSpec | None = None,
    *,
    scores_val: bool = True,
    may_idle: bool = False,
) -> PreparedFinetune:
    """Find, open and check what a run reads. Nothing is written into its folder.

    Args:
        dataset: that of the configuration; None to find it.
        scores_val: score `val` during training; a study scores its runs after training.
        may_idle: allow options without effect: a study gives its options to all of its methods.

    Raises:
        ConfigError: options contradict each other or have no effect, a name does not exist, the output has other
            content, a cache is missing, or weights use labels outside of a control.
        IdentityMismatch: a cache belongs to another dataset, split or setting, or the folder to another run.
        DatasetError, CorruptCache, WeightsUnavailable: as their names say.
    """
    method = resolve_method(config)
    trackers_named(config.log_with)
    require_student(config.student)
    require_outputs(config)
    if config.init is not None and not is_on_hub(config.init):
        required_weights(config.init)
    if config.optimisation.recipe not in (AUTO, NONE):
        read_toml(Path(config.optimisation.recipe))
    dataset = dataset or find_dataset(config.dataset, config.data_root)
    require_names(dataset, config.split, tasks=config.task, data_root=config.data_root)
    dataset = with_rows(dataset, config.data_root)
    facts = facts_of_run(config, method, val_decides=dataset.val_decides)
    folder = RunFolder(config.output)
    # An interrupted run resumes with its options.
    if not may_idle and not (folder.path / names.CONFIG).is_file():
        require_effect(config, facts_of_data(config.task or dataset.tasks) | facts)
    caches = open_caches(config)
    region_caches = open_region_caches(config.regions, splits_read(config), data_root=config.data_root)
    # A cache of a part of the split limits the inputs of every method, so that methods are comparable.
    inputs = open_run_inputs(config, dataset, caches)
    validation: Validation | str = "the run is scored once it is trained"
    if scores_val:
        inputs, validation = open_validation(config, dataset, inputs)
    run = resolve_run(
        folder.resumed_config(config) if config.resume else config,
        method,
        kind=head_name(inputs.dataset.tasks[0]),
        num_labelled=len(inputs.labelled),
        is_published=dataset.has_published_format,
        world_size=num_processes(),
        stops_early=isinstance(validation, Validation) and validation.decides,
    )
    if config.adapt.adapt_steps is None and scores_val and may_stop(run.config, val_decides=dataset.val_decides):
        run = within_passes(run, inputs)
    caches = caches if method.uses_teachers else []
    teachers = check_teachers(caches, inputs, config, method.settings)
    if config.init is not None:
        # Pinned to its commit, so that an update on the hub does not change a run that resumes.
        begun_with = folder.commit_begun(config.init) if config.resume else config.init
        pinned = pinned_init(begun_with, config.student)
        config = replace(config, init=pinned)
        run = replace(run, config=replace(run.config, init=located(pinned)))
    if method.reads_words:
        known = (
            recorded_words(run.config.init, student=config.student)
            if config.known_words is None
            else read_known_words(config.known_words)
        )
        run = replace(run, known=known)
    prepared = PreparedFinetune(
        given=config,
        command=command_of(config, facts),
        folder=folder,
        dataset=dataset,
        run=run,
        inputs=inputs,
        validation=validation,
        caches=caches,
        teachers=teachers,
        region_caches=region_caches,
    )
    if config.resume and folder.identity.is_file():
        prepared = replace(prepared, begun=prepared.identity())
        folder.require_same_run(prepared.identity())
    return prepared
