"""What a run's student reads, as far as it may surprise: its tokenizer, texts that are cut, regions of no detector.

It is looked at before the first step and said in the output, in settings.json and beside every number of the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from advl_pipeline.datasets.records import Dataset
from advl_pipeline.errors import ConfigError
from advl_pipeline.students.interface import Student
from advl_pipeline.students.region_student import RegionStudent
from advl_pipeline.students.saved import DESCRIPTION_FILE
from advl_pipeline.students.text_student import TextStudent
from advl_pipeline.students.weight_files import tokenizer_folder

SAMPLED_TEXTS = 256
"""Enough to see a share of a few percent; tokenised in less than a second."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudentInputs:
    """What a student starts from and reads: its weights, its tokenizer where it lies with them, sampled texts that it
    cuts."""

    start: str
    tokenizer: str
    num_texts: int
    num_cut: int
    max_tokens: int
    caveats: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return one line for people about each thing that may surprise."""
        lines = [self.start]
        if self.tokenizer:
            lines.append(f"tokenizer: {self.tokenizer}, which lies with the weights")
        if self.num_cut:
            share = 100 * self.num_cut / self.num_texts
            lines.append(
                f"texts: {self.num_cut} of {self.num_texts} sampled ({share:.0f} %) are longer than "
                f"{self.max_tokens} tokens and are cut"
            )
        return lines + [f"caution: {caveat}" for caveat in self.caveats]


def read_inputs(student: Student, dataset: Dataset, positions: Sequence[int], init: Path | None) -> StudentInputs:
    """Look at what a student reads of a split.

    Args:
        positions: of the examples that it will be trained on; of these some are sampled.
        init: where its weights came from.

    Raises:
        ConfigError: its tokenizer is of another vocabulary, or its published weights would see noise.
        WeightsUnavailable: its tokenizer is not at hand.
    """
    student.require_inputs()
    require_meaningful_regions(student, init)
    each = len(dataset[positions[0]].candidates)
    wanted = max(1, SAMPLED_TEXTS // each)
    stride = max(1, len(positions) // wanted)
    examples = [dataset[position] for position in positions[::stride][:wanted]]
    num_cut = student.count_cut(examples)
    beside = None if init is None else tokenizer_folder(init)
    used = student.config.tokenizer if isinstance(student, TextStudent) else None
    max_tokens = student.max_text_length or 0
    cut = (f"texts of more than {max_tokens} tokens are cut",) if num_cut else ()
    return StudentInputs(
        start=f"The student {student.name} starts from random weights: it knows no words and no pictures before this "
        "run, and --init would give it pretrained ones."
        if init is None
        else f"The student {student.name} starts from pretrained weights (--init).",
        tokenizer=str(beside) if beside is not None and used == str(beside) else "",
        num_texts=sum(len(example.candidates) for example in examples),
        num_cut=num_cut,
        max_tokens=max_tokens,
        caveats=(*student.caveats(), *cut),
    )


def require_meaningful_regions(student: Student, init: Path | None) -> None:
    """Refuse published weights of a region student on crops that it never saw, unless they are asked for by name.

    A student that this package saved was trained on what it is shown.

    Raises:
        ConfigError: as said.
    """
    if init is None or not isinstance(student, RegionStudent) or student.config.regions is not None:
        return
    if (init / DESCRIPTION_FILE).is_file():
        return
    raise ConfigError(
        f"{student.name} would see noise: small crops of the pictures through a random projection.",
        where=str(init),
        why="its weights learned from features of its own kind, and no --regions is given",
        next_command="--regions CACHE of such features; or a student that sees pixels, such as --student vilt; or "
        "--regions pixels for the crops all the same",
    )
