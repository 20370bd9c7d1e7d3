"""What is distilled of each vision teacher: the places that the student sees, the whole picture, or both.

Decided once, on a sample of pictures, before anything is written: a target that no place has would be a loss of zero
for a whole run. Shapes as in `vision_signals.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from advl_pipeline.datasets.records import Dataset, Example
from advl_pipeline.distillation.settings import DistillationSettings, VisionTarget
from advl_pipeline.distillation.signal import VisionSignal
from advl_pipeline.errors import ConfigError
from advl_pipeline.students.interface import PlaceKind, Student, StudentBatch
from advl_pipeline.training.signals import SignalSource, TeacherFeatures

NUM_PICTURES = 64
"""Pictures that are looked at."""

_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionChoice:
    """What is distilled of a teacher; `num_targets` of the `num_places` that the sampled pictures have got a target.

    `places` says what these are; None where only the picture was asked for.
    """

    teacher: str
    target: VisionTarget
    places: PlaceKind | None = None
    num_targets: int = 0
    num_places: int = 0
    num_pictures: int = 0

    def line(self) -> str:
        """Return one line for people."""
        if self.places is None:
            return f"vision target of {self.teacher}: the whole picture"
        what = {"image": "the whole picture", "regions": self.places, "both": f"{self.places} and the whole picture"}
        return (
            f"vision target of {self.teacher}: {what[self.target]}; {self.num_targets} of {self.num_places} "
            f"{self.places} have one in {self.num_pictures} pictures looked at"
        )


def choose_vision_targets(
    settings: DistillationSettings,
    student: Student,
    dataset: Dataset,
    positions: Sequence[int],
    source: SignalSource,
) -> tuple[list[VisionChoice], SignalSource]:
    """Return each vision teacher's targets, and the source without features of places that are no target.

    Args:
        positions: in it, of a sample of which the pictures are looked at.

    Raises:
        ConfigError: what was asked for is not what student and cache have, or no place of the sample has it.
    """
    teachers = [teacher for teacher in source.teachers if teacher.image and settings.pathway != "text"]
    wanted = settings.vision_target
    kinds: dict[str, PlaceKind] = {}
    for teacher in teachers:
        if wanted != "image" and (kind := _kind(teacher, student, wanted)) is not None:
            kinds[teacher.name] = kind
    counts = _count(student, _sample(dataset, positions), source, tuple(kinds)) if kinds else {}
    choices = [
        _choice(teacher.name, wanted, kinds.get(teacher.name), counts.get(teacher.name, (0, 0, 0)))
        for teacher in teachers
    ]
    with_places = {choice.teacher for choice in choices if choice.target != "image"}
    read = [one if one.name in with_places else replace(one, image_places=None) for one in source.teachers]
    return choices, source.with_teachers(read)


def _kind(teacher: TeacherFeatures, student: Student, wanted: str) -> PlaceKind | None:
    """Return what the places are that student and teacher share; None where the teacher has none and may have none.

    Raises:
        ConfigError: as `choose_vision_targets`.
    """
    if teacher.image_places is None:
        if wanted == "auto":
            return None
        raise ConfigError(
            "This teacher's cache has no features of regions or of grid cells, so none can be a target.",
            where=teacher.name,
            why="it was made without them, or it does not say where its rows lie in a picture",
            next_command="--vision-target image, or extract again with --image-tokens grid",
        )
    if teacher.image_places == "boxes":
        kind: PlaceKind = "regions"
        why = "its cache holds features of the dataset's boxes"
        advice = "--vision-target regions, or extract again with --image-tokens grid"
    elif student.places is None:
        raise ConfigError(
            f"A teacher's grid cannot be laid over what {student.name} sees.",
            where=teacher.name,
            why="the student does not say where its visual tokens lie (`places_BR4` of its batches)",
            next_command="--vision-target image; to say it: docs/adding-a-student.md, rule 4",
        )
    else:
        kind = student.places
        why = f"the visual tokens of {student.name} are {kind}"
        advice = f"--vision-target {kind}"
    if wanted not in (kind, "auto", "both"):
        raise ConfigError(f"There are no {wanted} to be a target.", where=teacher.name, why=why, next_command=advice)
    return kind


def _choice(name: str, wanted: str, kind: PlaceKind | None, counted: tuple[int, int, int]) -> VisionChoice:
    if kind is None:
        return VisionChoice(teacher=name, target="image")
    num_targets, num_places, num_pictures = counted
    if num_targets == 0 and wanted != "auto":
        raise ConfigError(
            f"None of the student's {kind} has a target.",
            where=name,
            why=f"{num_pictures} pictures were looked at; the student sees {num_places} {kind} in them"
            if num_places == 0
            else f"{num_pictures} pictures were looked at; of their {num_places} {kind} the student sees none that "
            "the teacher has features of",
            next_command="--vision-target image; or extract again with --image-tokens grid; or give the student "
            "regions: --regions, --ground-truth-regions",
        )
    target: VisionTarget = "both" if wanted == "both" else "regions" if num_targets else "image"
    return VisionChoice(
        teacher=name,
        target=target,
        places=kind,
        num_targets=num_targets,
        num_places=num_places,
        num_pictures=num_pictures,
    )


def _sample(dataset: Dataset, positions: Sequence[int]) -> list[Example]:
    """Return examples on as many pictures as are looked at, from all over the positions."""
    by_picture: dict[str, Example] = {}
    for position in positions[:: max(1, len(positions) // NUM_PICTURES)]:
        example = dataset[position]
        by_picture.setdefault(example.image.unit_id, example)
    return list(by_picture.values())[:NUM_PICTURES]


def _count(
    student: Student, examples: Sequence[Example], source: SignalSource, names: Sequence[str]
) -> Mapping[str, tuple[int, int, int]]:
    """Return, by teacher, how many places have a target, how many there are, and in how many pictures."""
    totals = dict.fromkeys(names, (0, 0, 0))
    for start in range(0, len(examples), _AT_ONCE):
        part = examples[start : start + _AT_ONCE]
        batch = student.collate(part)
        signal = source.signal(part, batch, with_confidence=False, places=student.places)
        for name in names:
            num_targets, num_places = _targets_and_places(signal.vision[name], batch)
            before = totals[name]
            totals[name] = (before[0] + num_targets, before[1] + num_places, before[2] + len(part))
    return totals


def _targets_and_places(one: VisionSignal, batch: StudentBatch) -> tuple[int, int]:
    assert one.region_mask_BS is not None
    if one.shares_BSR is not None:
        return int((one.region_mask_BS & one.shares_BSR.any(2)).sum()), int(one.region_mask_BS.sum())
    assert batch.places_BR4 is not None
    return int(one.region_mask_BS.sum()), int((~batch.places_BR4.isnan().any(2)).sum())
