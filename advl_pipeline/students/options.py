"""Options of a run's student. The module imports quickly, because the command line needs it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from advl_pipeline.base.configuration import Configuration, option, rare_option
from advl_pipeline.base.locations import Location
from advl_pipeline.base.packages import read_tables

BaseDtype = Literal["fp32", "bf16"]

PIXELS = Path("pixels")
"""Value of `regions` that selects small crops instead of a cache."""

_DEFAULTS = read_tables("defaults.toml")
DEFAULT_STUDENT: str = _DEFAULTS["student"]
"""The default student of a run."""


def default_student(dataset: str) -> str:
    """Return the default student of a run on a dataset."""
    of_dataset = _DEFAULTS.get(dataset)
    return of_dataset["student"] if isinstance(of_dataset, dict) else DEFAULT_STUDENT


@dataclass(frozen=True, kw_only=True)
class RegionOptions(Configuration):
    """Sources of a student's regions."""

    title: ClassVar[str] = "Student"

    regions: tuple[Location, ...] = option(
        (),
        help="Cache of a detector's regions from `advl cache import`, folder or URL; repeatable. {dataset} and "
        "{split} in it are replaced by what is read [default: those of the run]. The word pixels selects small crops "
        "through a random projection, the default of a student without --init.",
        identity="content",
    )


@dataclass(frozen=True, kw_only=True)
class PictureOptions(RegionOptions):
    """Sources of a student's pictures and regions."""

    title: ClassVar[str] = "Student"

    pictures: tuple[Location, ...] = rare_option(
        (),
        help="Pictures stored by `advl prepare`, folder or URL, read instead of decoding; repeatable [default: those "
        "of the split, if they are in the default place].",
        identity="none",
    )


@dataclass(frozen=True, kw_only=True)
class StudentOptions(Configuration):
    """Choice and construction of a run's student."""

    title: ClassVar[str] = "Student"

    student: str = option(
        "",
        help=f"Student to finetune; see `advl students list` [default: {DEFAULT_STUDENT}, unless the dataset's "
        "package names another].",
    )
    init: Path | None = option(
        None,
        help="Pretrained student: a folder, a checkpoint file, or hf:ORG/MODEL for a repository of the hub.",
        identity="content",
    )
    head_answers: Path | None = rare_option(
        None,
        help="Answers of the checkpoint's VQA head, such as LXMERT's all_ans.json; rows are matched by answer.",
        identity="content",
        needs=("pretrained weights", "open answers"),
    )
    known_words: Path | None = rare_option(
        None,
        help="Words that the student's pretraining taught: a table of `advl students words`, edited or not, or a "
        "JSON object of words and counts [default: the record of its pretraining, else an estimate from its states].",
        identity="content",
        needs=("known words",),
    )
    tokenizer: str | None = rare_option(
        None,
        help="Folder or hub name of the student's tokenizer, or minilm-l6 [default: the one next to --init, else the "
        "student's own].",
        identity="content",
    )
    student_option: tuple[str, ...] = rare_option(
        (),
        help="Setting of the student as KEY=VALUE, such as num_layers=6; repeatable.",
        metavar="KEY=VALUE",
    )
    gradient_checkpointing: bool = rare_option(
        False,
        help="Recompute activations in the backward pass instead of keeping them: less memory, slower.",
    )
    lora_rank: int | None = option(
        None,
        help="Rank of low-rank updates, the only weights that are then trained; 0 trains all weights [default: the "
        "student's own if it starts from --init and answers in words, else 0].",
        minimum=0,
        needs=("pretrained weights",),
    )
    base_dtype: BaseDtype | None = rare_option(
        None,
        help="Data type of the frozen weights under low-rank updates; the updates are fp32 [default: bf16 on a GPU "
        "that supports it, else fp32].",
        needs=("pretrained weights", "low-rank updates"),
    )
