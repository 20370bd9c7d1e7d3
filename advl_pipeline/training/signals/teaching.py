"""All training signals besides labels, in one object that is built before the first step and never changes.

It contains the signals of teachers, modified by a control if there is one, the places that are distilled, landmarks,
confidences and answers. A sample of pictures decides what is distilled from a vision teacher: the places that the
student sees, the picture, or both. A target that no place has would give a loss of zero for the entire run.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import torch
from accelerate import Accelerator

from advl_pipeline.base.errors import ConfigError
from advl_pipeline.base.tensors import moved
from advl_pipeline.cache.reader import TeacherCache
from advl_pipeline.cache.verify import require_trustworthy
from advl_pipeline.confidence.separation import Separation
from advl_pipeline.datasets.records import Dataset
from advl_pipeline.datasets.words import fit_word_prior
from advl_pipeline.distillation.settings import VisionTarget
from advl_pipeline.students.interface import PlaceKind, Student
from advl_pipeline.training.batch_order import inputs_visited
from advl_pipeline.training.inputs import Inputs
from advl_pipeline.training.landmarks.bridge import TeacherAnswers, find_answers
from advl_pipeline.training.landmarks.census import StudentAtStart
from advl_pipeline.training.landmarks.search import FoundLandmarks, find_landmarks
from advl_pipeline.training.landmarks.word_estimate import WordEstimate, estimate_words
from advl_pipeline.training.process_group import computed_by_first
from advl_pipeline.training.resolved import Run
from advl_pipeline.training.signals.confidences import find_confidences
from advl_pipeline.training.signals.stored_signals import SignalSource
from advl_pipeline.training.signals.teacher_features import TeacherFeatures, cached_teacher

NUM_PICTURES = 64
"""Number of sampled pictures."""

_AT_ONCE = 16

PICTURE_ALONE = "--vision-target image, or extract again with --image-tokens grid"


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionChoice:
    """What is distilled from a teacher; `num_targets` of the `num_places` in the sampled pictures have a target.

    `places` is the kind of these places; None if only the picture was requested.
    """

    teacher: str
    target: VisionTarget
    places: PlaceKind | None = None
    num_targets: int = 0
    num_places: int = 0
    num_pictures: int = 0

    def line(self) -> str:
        """Return a line that describes the choice."""
        if self.places is None:
            return f"vision target of {self.teacher}: the whole picture"
        if not self.num_places:
            why = f"nothing tells where the student's {self.places} lie in {self.num_pictures} pictures looked at"
            return f"vision target of {self.teacher}: the whole picture alone, because {why}"
        what = {"image": "the whole picture", "regions": self.places, "both": f"{self.places} and the whole picture"}
        line = (
            f"vision target of {self.teacher}: {what[self.target]}; {self.num_targets} of {self.num_places} "
            f"{self.places} have one in {self.num_pictures} pictures looked at"
        )
        if self.places != "patches" or self.num_targets == self.num_places:
            return line
        return f"{line}; a teacher that squeezes pictures and crops none, such as siglip2-b, covers the others"


@dataclass(frozen=True, kw_only=True)
class Teaching:
    """All training signals besides labels, and the findings about them.

    `source` gives the teachers' signals, with the confidences behind the weights. `judge` gives those of the
    original teachers, without the control. Without teachers both are None. `words` is the estimate of what the
    student's pretraining taught, None if a record or a list says it.
    """

    source: SignalSource | None = None
    judge: SignalSource | None = None
    vision: tuple[VisionChoice, ...] = ()
    words: WordEstimate | None = None
    landmarks: FoundLandmarks = field(default_factory=FoundLandmarks)
    confidences: Mapping[str, Separation] = field(default_factory=dict)
    answers: TeacherAnswers | None = None

    @property
    def followed(self) -> Collection[str]:
        """The modalities whose confidence determines weights."""
        return () if self.source is None else self.source.confidence.keys()

    def lines(self) -> list[str]:
        """Return a line about each finding."""
        texts = [choice.line() for choice in self.vision]
        if self.words is not None:
            texts.append(self.words.line())
        weighted = {name: f"the {name} pathway's weights" for name in ("vision", "text")} | {"joint": "all weights"}
        for modality, measured in self.confidences.items():
            uniform = f"NOT ABOVE CHANCE, so {weighted[modality]} are uniform (--confidence-check none uses it)"
            followed = "" if modality in self.followed else f"; {uniform}"
            texts.append(f"confidence {modality}: {measured}{followed}")
        return texts if self.answers is None else [*texts, *self.answers.lines()]


def open_teaching(
    run: Run,
    start: StudentAtStart,
    teachers: Sequence[Sequence[TeacherCache]],
    inputs: Inputs,
    accelerator: Accelerator,
) -> Teaching:
    """Open the training signals besides labels; the result is empty without teachers, anchor or answers.

    Args:
        start: the student to train, on its device; keeps its training or evaluation mode.
        teachers: the teachers' caches of each split of `inputs.splits`, as `check_teachers` returns them.

    Raises:
        CorruptCache: a damaged cache. ConfigError: teachers or options contradict each other.
    """
    opened = _open_sources(run, start, teachers, inputs)
    if opened is None:
        answers = find_answers(run, start, FoundLandmarks(), inputs)
        return Teaching(answers=answers)
    source, judge = opened
    words = None
    if not source.known.is_given:
        # Only what the run distils, so that a short run of a large student does not look at thousands of pictures.
        positions = inputs_visited(run, inputs) if run.method.num_adapt_steps else inputs.labelled

        def estimate() -> WordEstimate:
            return estimate_words(start.student, inputs.adapt_dataset, positions, source.prior)

        words = computed_by_first(estimate, accelerator)
        source, judge = (replace(signals, known=words.known_words()) for signals in (source, judge))
    vision, source = choose_vision_targets(replace(start, source=source), inputs.dataset, inputs.labelled)
    start = replace(start, source=source)

    def find() -> FoundLandmarks:
        return moved(find_landmarks(start, inputs.adapt_dataset, inputs.adapt), torch.device("cpu"))

    landmarks = moved(computed_by_first(find, accelerator), accelerator.device)
    # The first process estimates what is missing; the others read its files.
    with accelerator.main_process_first():
        measured, followed = find_confidences(run, teachers[0], inputs, start, landmarks.words)
    return Teaching(
        source=replace(source, confidence=followed),
        judge=judge,
        vision=tuple(vision),
        words=words,
        landmarks=landmarks,
        confidences=measured,
        answers=find_answers(run, start, landmarks, inputs),
    )


def _open_sources(
    run: Run, start: StudentAtStart, teachers: Sequence[Sequence[TeacherCache]], inputs: Inputs
) -> tuple[SignalSource, SignalSource] | None:
    """Return the teachers' signals, and those of the original teachers.

    Return None if none is needed. The two differ under a control.

    Raises:
        CorruptCache: a damaged cache. ConfigError: teachers or options contradict each other.
    """
    if not run.method.reads_words:
        return None
    for cache in chain.from_iterable(teachers):
        require_trustworthy(cache)
    candidates = [
        candidate
        for index in sorted({*inputs.labelled, *inputs.adapt})
        for candidate in inputs.adapt_dataset[index].candidates
    ]
    texts = {candidate.text_unit.unit_id: candidate.text for candidate in candidates}
    cached = [cached_teacher(*of_teacher) for of_teacher in zip(*teachers, strict=True)]
    learned = [start.control.features(teacher).serving(texts) for teacher in cached]
    start.control.require(cached, run.config)
    prior = fit_word_prior(candidate.text for candidate in candidates)
    source = SignalSource(learned, prior=prior, known=run.known)
    return source, replace(source, teachers=[teacher.serving(texts) for teacher in cached])


def choose_vision_targets(
    start: StudentAtStart, dataset: Dataset, positions: Sequence[int]
) -> tuple[list[VisionChoice], SignalSource]:
    """Return each vision teacher's targets, and the source without features of places that are no target.

    Args:
        start: the student, with the source of its teachers' signals.
        positions: in the dataset, of the examples from which pictures are sampled.

    Raises:
        ConfigError: student and cache do not have the requested places, or no place of the sample has a target.
    """
    student, source, wanted = start.student, start.source, start.settings.vision_target
    assert source is not None
    teachers = [teacher for teacher in source.teachers if teacher.image and start.settings.pathway != "text"]
    kinds = {teacher.name: None if wanted == "image" else _kind(teacher, student, wanted) for teacher in teachers}
    counts = _count(start, dataset, positions, [name for name, kind in kinds.items() if kind is not None])
    choices = []
    for name, kind in kinds.items():
        if kind is None:
            choices.append(VisionChoice(teacher=name, target="image"))
            continue
        num_targets, num_places, num_pictures = counts[name]
        if num_targets == 0 and wanted != "auto":
            raise ConfigError(
                f"A target needs {kind} that student and teacher share, and there are none.",
                where=name,
                why=f"of {num_places} {kind} in {num_pictures} pictures the teacher knows none"
                if num_places
                else f"nothing tells where they lie in {num_pictures} pictures looked at",
                next_command=f"{PICTURE_ALONE}; or --regions CACHE, an import with --ground-truth-regions",
            )
        places: VisionTarget = "regions" if num_targets else "image"
        choices.append(
            VisionChoice(
                teacher=name,
                target="both" if wanted == "both" else places,
                places=kind,
                num_targets=num_targets,
                num_places=num_places,
                num_pictures=num_pictures,
            )
        )
    with_places = {choice.teacher for choice in choices if choice.target != "image"}
    read = [
        teacher if teacher.name in with_places else replace(teacher, image_places=None) for teacher in source.teachers
    ]
    return choices, replace(source, teachers=read)


def _kind(teacher: TeacherFeatures, student: Student, wanted: str) -> PlaceKind | None:
    """Return the kind of places that student and teacher share; None if the teacher has none and needs none.

    Raises:
        ConfigError: as `choose_vision_targets`.
    """
    if teacher.image_places is None:
        if wanted == "auto":
            return None
        raise ConfigError(
            "The teacher's cache has no features of regions or patches to distil.",
            where=teacher.name,
            next_command=PICTURE_ALONE,
        )
    if teacher.image_places == "boxes":
        kind: PlaceKind = "regions"
        why = "its cache holds features of the dataset's boxes"
    elif student.places is None:
        raise ConfigError(
            f"A teacher's grid cannot be aligned with {student.name}, which gives no `places_BR4`.",
            where=teacher.name,
            next_command="--vision-target image; "
            "to give the positions of visual tokens: docs/adding-a-student.md, rule 4",
        )
    else:
        kind = student.places
        why = f"the visual tokens of {student.name} are {kind}"
    if wanted not in (kind, "auto", "both"):
        raise ConfigError(
            f"The teacher has no features of {wanted} to distil.",
            where=teacher.name,
            why=why,
            next_command=f"--vision-target {kind}",
        )
    return kind


def _count(
    start: StudentAtStart, dataset: Dataset, positions: Sequence[int], names: Sequence[str]
) -> Mapping[str, tuple[int, int, int]]:
    """Return, by teacher, the number of places with a target, the number of places, and the number of pictures.

    The pictures are spread over all positions.
    """
    totals = dict.fromkeys(names, (0, 0, 0))
    by_picture: dict[str, int] = {}
    for position in positions[:: max(1, len(positions) // NUM_PICTURES)] if names else ():
        by_picture.setdefault(dataset[position].image.unit_id, position)
    pictures = list(by_picture.values())[:NUM_PICTURES]
    for part, _, batch in start.looked_at(dataset, pictures, at_once=_AT_ONCE):
        assert batch.signal is not None
        for name in names:
            vision = batch.signal.vision[name]
            assert vision.region_mask_BS is not None
            has_target = is_place = vision.region_mask_BS
            if vision.shares_BSR is not None:
                has_target = has_target & vision.shares_BSR.any(2)
            else:
                assert batch.student.places_BR4 is not None
                is_place = ~batch.student.places_BR4.isnan().any(2)
            num_targets, num_places, num_pictures = totals[name]
            counts = num_targets + int(has_target.sum()), num_places + int(is_place.sum())
            totals[name] = (*counts, num_pictures + len(part))
    return totals
