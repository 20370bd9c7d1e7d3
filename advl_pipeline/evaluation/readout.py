"""`run_readout`: does a student, without labels, place words and regions as its teachers do?

The gate before a study: a teacher can only help a student that learns to place words as the teacher does.
"""

from __future__ import annotations

from typing import Any

from advl_pipeline.base.compute import open_device
from advl_pipeline.base.errors import ConfigError, leave_out
from advl_pipeline.cache.reader import open_cache
from advl_pipeline.datasets.records import MULTIPLE_CHOICE_TASKS
from advl_pipeline.datasets.registry import open_splits
from advl_pipeline.datasets.words import KnownWords, fit_word_prior
from advl_pipeline.evaluation.checks import cache_data, require_readable
from advl_pipeline.evaluation.config import ReadoutConfig
from advl_pipeline.runs.names import is_finished
from advl_pipeline.runs.results import read_config
from advl_pipeline.students.registry import build_student
from advl_pipeline.students.saved import read_description
from advl_pipeline.students.weight_files import known_words
from advl_pipeline.training.checks import check_caches, holds, open_region_caches
from advl_pipeline.training.landmarks.census import StudentAtStart
from advl_pipeline.training.landmarks.naming import name_questions, naming_gate
from advl_pipeline.training.landmarks.readout import take_readout
from advl_pipeline.training.signals.stored_signals import SignalSource
from advl_pipeline.training.signals.teacher_features import cached_teacher
from advl_pipeline.training.student_inputs import regions_of_run, use_region_caches


def run_readout(config: ReadoutConfig) -> dict[str, Any]:
    """Compare how a student and the teachers of the caches place words and regions.

    Returns:
        placement: the readout by teacher (see `Readout.shares`); naming: the gate of names, None if not requested.

    Raises:
        ConfigError: no cache, caches of different splits, or no name questions for `--oracle`.
        WeightsUnavailable: no student in the folder. IdentityMismatch: a cache of another dataset's content.
    """
    require_readable(config)
    student = build_student(read_description(config.student)["student"], weights=config.student)
    student.cut_texts()
    caches = [open_cache(path) for path in config.cache]
    splits = {(cache.identity["dataset"]["name"], cache.identity["dataset"]["split"]) for cache in caches}
    if len(splits) > 1:
        why = ", ".join(f"{name}/{split}" for name, split in sorted(splits))
        advice = "give the caches of one split; run the command once for each"
        raise ConfigError("The caches are of different splits.", where="--cache", why=why, next_command=advice)
    ((_, split),) = splits
    made_by = caches[0].provenance["config"]
    name, data_root = cache_data(config, caches[0])
    reading = {key: value for key in ("text_style", "on_error") if (value := made_by.get(key)) is not None}
    dataset = open_splits(name, split=split, data_root=data_root, tasks=config.task, **reading)
    check_caches(caches, dataset, data_root=data_root)
    trained_regions = regions_of_run(read_config(config.student)) if is_finished(config.student) else []
    regions = open_region_caches(config.regions or trained_regions, [(name, split)], data_root=data_root)
    use_region_caches(student, regions)
    parts = [cache for cache in caches if "selection" in cache.identity["dataset"]]
    positions = [place for place in range(len(dataset)) if all(holds(cache, dataset[place]) for cache in parts)]
    student.to(open_device(config.device)).eval()
    prior = fit_word_prior(choice.text for index in positions for choice in dataset[index].candidates)
    source = SignalSource(
        [cached_teacher(cache) for cache in caches],
        prior=prior,
        known=KnownWords(counts=known_words(config.student)),
    )
    naming = None
    if config.oracle:
        choosing = [position for position in positions if dataset[position].task in MULTIPLE_CHOICE_TASKS]
        naming = naming_gate(name_questions(StudentAtStart.without_heads(student, source), dataset, choosing))
        if naming is None:
            raise ConfigError(
                "Too few labelled questions ask for a name that the student's pretraining taught.",
                where="--oracle",
                why=f"of the {len(positions)} examples of {name}/{split} that were read; such questions are of "
                "multiple choice, and each candidate points at boxes of its picture",
                next_command=leave_out("--oracle"),
            )
    return {"placement": take_readout(student, dataset, positions, source).shares(), "naming": naming}
