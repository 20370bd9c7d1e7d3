"""Open a student, and the inputs of caches on which its states are looked at, before or after training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from advl_pipeline.base.compute import open_device
from advl_pipeline.cache.reader import TeacherCache
from advl_pipeline.datasets.records import Dataset
from advl_pipeline.datasets.registry import open_splits
from advl_pipeline.datasets.words import KnownWords, WordPrior, fit_word_prior
from advl_pipeline.readout.config import BesideCaches
from advl_pipeline.readout.prepare import LookT, PreparedLook, by_name
from advl_pipeline.stored_inputs.region_caches import open_region_caches, regions_of_run
from advl_pipeline.stored_inputs.regions import use_region_caches
from advl_pipeline.students.abilities import HasTextLimit
from advl_pipeline.students.interface import Student
from advl_pipeline.students.known_words import recorded_words
from advl_pipeline.students.registry import build_student
from advl_pipeline.students.saved import read_description
from advl_pipeline.students.weight_files import located
from advl_pipeline.training.build_model import fill_towers
from advl_pipeline.training.caches import check_caches, holds
from advl_pipeline.training.landmarks.word_estimate import WordEstimate, estimate_words


@dataclass(frozen=True, kw_only=True)
class OpenedStudent:
    """A student on its device, in evaluation mode, and the examples that all caches hold.

    `recorded` is the record of its pretraining, if there is one, and `prior` is that of the examples' words.
    """

    student: Student
    caches: Sequence[TeacherCache]
    dataset: Dataset
    positions: Sequence[int]
    prior: WordPrior
    recorded: KnownWords

    def estimate(self) -> WordEstimate:
        """Estimate which words its pretraining taught, whether or not there is a record."""
        return estimate_words(self.student, self.dataset, self.positions, self.prior)


def open_student(look: PreparedLook[LookT]) -> OpenedStudent:
    """Open the student and the inputs that a command looks at.

    Raises:
        WeightsUnavailable: no student in the folder.
        IdentityMismatch: a cache of another dataset's content.
    """
    config = look.config
    caches = look.caches
    student = _build(config)
    if isinstance(student, HasTextLimit):
        student.cut_texts()
    made_by = caches[0].provenance["config"]
    reading = {key: value for key in ("text_style", "on_error") if (value := made_by.get(key)) is not None}
    dataset = open_splits(look.dataset, look.split, data_root=look.data_root, tasks=config.task, **reading)
    check_caches(caches, dataset, data_root=look.data_root)
    regions = open_region_caches(
        config.regions or regions_of_run(look.trained_on),
        [(look.dataset.name, look.split)],
        data_root=look.data_root,
    )
    use_region_caches(student, regions)
    parts = [cache for cache in caches if "selection" in cache.identity["dataset"]]
    positions = [place for place in range(len(dataset)) if all(holds(cache, dataset[place]) for cache in parts)]
    student.to(open_device(config.device)).eval()
    return OpenedStudent(
        student=student,
        caches=caches,
        dataset=dataset,
        positions=positions,
        prior=fit_word_prior(choice.text for index in positions for choice in dataset[index].candidates),
        recorded=recorded_words(
            config.init or (None if by_name(config) else config.student), student=str(config.student)
        ),
    )


def _build(config: BesideCaches) -> Student:
    if not by_name(config):
        return build_student(read_description(config.student)["student"], weights=config.student)
    weights = None if config.init is None else located(config.init, student=str(config.student))
    student = build_student(str(config.student), weights=weights)
    if weights is None:
        fill_towers(student)
    return student
