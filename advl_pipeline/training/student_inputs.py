"""Checks of a student's inputs before the first step.

They look for a tokenizer from the weights, truncated texts and regions without a detector. The findings are in the
output, in settings.json and with every result of the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from advl_pipeline.base.errors import ConfigError, enumeration
from advl_pipeline.datasets.records import Dataset
from advl_pipeline.students.abilities import HasInputFiles, HasTextLimit, caveats_of, towers_of
from advl_pipeline.students.interface import Student
from advl_pipeline.students.region_student import RegionStudent
from advl_pipeline.students.saved import DESCRIPTION_FILE
from advl_pipeline.students.text_student import TextStudent
from advl_pipeline.students.weight_files import tokenizer_folder
from advl_pipeline.teachers.registry import teacher_plugins

SAMPLED_TEXTS = 256
"""Number of sampled texts: enough to detect a share of a few percent, and tokenised in less than a second."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudentInputs:
    """A student's initial state and inputs: its weights, its tokenizer if it comes with them, and the sampled texts
    that it truncates."""

    start: str
    tokenizer: str
    num_texts: int
    num_cut: int
    max_tokens: int
    caveats: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return a line about each finding that may be unexpected."""
        lines = [self.start]
        if self.tokenizer:
            lines.append(f"tokenizer: {self.tokenizer}, which is next to the weights")
        if self.num_cut:
            share = 100 * self.num_cut / self.num_texts
            lines.append(
                f"texts: {self.num_cut} of {self.num_texts} sampled ({share:.0f} %) are longer than "
                f"{self.max_tokens} tokens and are cut"
            )
        return lines + [f"caution: {caveat}" for caveat in self.caveats]


def read_inputs(
    student: Student,
    dataset: Dataset,
    positions: Sequence[int],
    init: Path | None,
    *,
    teachers: Sequence[str] = (),
) -> StudentInputs:
    """Check the inputs of a student from a split.

    Args:
        positions: of the training examples, from which some are sampled.
        init: origin of its weights.
        teachers: of the run, by name.

    Raises:
        ConfigError: its tokenizer has another vocabulary, or its published weights would see noise.
        WeightsUnavailable: its tokenizer is not available.
    """
    if isinstance(student, HasInputFiles):
        student.require_inputs()
    is_published = init is not None and not (init / DESCRIPTION_FILE).is_file()
    if is_published and isinstance(student, RegionStudent) and student.config.regions is None:
        # A student that this package saved was trained on the inputs that it now gets.
        raise ConfigError(
            f"{student.name} needs the features of a detector.",
            where=str(init),
            why="its weights were trained on them, and no --regions is given",
            next_command="--regions CACHE of such features; --student vilt, which sees pixels; "
            "or --regions pixels for crops",
        )
    each = len(dataset[positions[0]].candidates)
    wanted = max(1, SAMPLED_TEXTS // each)
    stride = max(1, len(positions) // wanted)
    examples = [dataset[position] for position in positions[::stride][:wanted]]
    num_cut = 0
    max_tokens = 0
    if isinstance(student, HasTextLimit):
        num_cut = student.count_cut(examples)
        max_tokens = student.max_text_length
    of_weights = None if init is None else tokenizer_folder(init)
    used = student.config.tokenizer if isinstance(student, TextStudent) else None
    cut = (f"texts of more than {max_tokens} tokens are cut",) if num_cut else ()
    return StudentInputs(
        start=_start(student, init),
        tokenizer=str(of_weights) if of_weights is not None and used == str(of_weights) else "",
        num_texts=sum(len(example.candidates) for example in examples),
        num_cut=num_cut,
        max_tokens=max_tokens,
        caveats=(*caveats_of(student), *_own_teachers(student, teachers), *cut),
    )


def _start(student: Student, init: Path | None) -> str:
    """Describe the student's knowledge before the first step."""
    if init is not None:
        return f"The student {student.name} starts from pretrained weights (--init)."
    if towers := towers_of(student):
        return (
            f"The student {student.name} starts from {enumeration(towers)}, which were trained separately: "
            "the layers that relate words to pictures are random before this run."
        )
    return (
        f"The student {student.name} starts from random weights: it knows no words and no pictures before this run, "
        "and --init would give it pretrained ones."
    )


def _own_teachers(student: Student, teachers: Sequence[str]) -> list[str]:
    """Describe the teachers whose weights the student starts from, with alternatives that are as easy to install."""
    towers = towers_of(student)
    same = [name for name in teachers if name in towers]
    if not same:
        return []
    others = [name for name in teacher_plugins() if name not in towers]
    return [
        f"{enumeration(same)}: the student starts from the same weights, so that it learns nothing new of them; "
        f"teachers of other weights: {', '.join((*others, 'and those of advl teachers list'))}"
    ]
