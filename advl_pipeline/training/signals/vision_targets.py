"""What is distilled from each vision teacher: the places that the student sees, the picture, or both.

A sample of pictures decides it. A target that no place has would give a loss of zero for the entire run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from advl_pipeline.base.errors import ConfigError
from advl_pipeline.datasets.records import Dataset
from advl_pipeline.distillation.settings import VisionTarget
from advl_pipeline.students.interface import PlaceKind, Student
from advl_pipeline.training.landmarks.census import StudentAtStart
from advl_pipeline.training.signals.stored_signals import SignalSource
from advl_pipeline.training.signals.teacher_features import TeacherFeatures

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
            is_place = vision.region_mask_BS
            if vision.shares_BSR is None:
                assert batch.student.places_BR4 is not None
                is_place = ~batch.student.places_BR4.isnan().any(2)
            assert is_place is not None
            num_targets, num_places, num_pictures = totals[name]
            counts = num_targets + int(vision.shared_BS.sum()), num_places + int(is_place.sum())
            totals[name] = (*counts, num_pictures + len(part))
    return totals
