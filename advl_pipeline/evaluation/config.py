"""Configurations of `advl evaluate`, `predict`, `readout` and `score`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from advl_pipeline.base.compute import ComputeConfig, DeviceConfig
from advl_pipeline.base.configuration import Configuration, Output, option
from advl_pipeline.base.locations import Location
from advl_pipeline.base.outputs import ReplaceOptions
from advl_pipeline.datasets.config import DataRootOptions
from advl_pipeline.runs import names
from advl_pipeline.students.options import PictureOptions, RegionOptions

Probe = Literal["swapped", "blanked", "removed", "none"]
"""How a picture is replaced: by another one of the set, by its boxes only, or hidden; `none` replaces none."""

Protocol = Literal["likelihood", "letters"]


@dataclass(frozen=True, kw_only=True)
class AnswerOptions(DataRootOptions, ComputeConfig, PictureOptions):
    """Options of a student that answers, and of its inputs."""

    batch_size: int = option(64, help="Examples per forward pass.", minimum=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig(AnswerOptions):
    """Configuration of `advl evaluate`."""

    run: Path = option(help="Run folder of a finished finetuning.", such_as="runs/mine")
    on: tuple[str, ...] = option(
        ("test",), help="Test set: a split of the run's dataset, or DATASET/SPLIT; repeatable."
    )
    protocol: Protocol = option(
        "likelihood",
        also="--as",
        help="How questions are asked. `likelihood` scores the likeliest candidate. `letters` lists options by "
        "letter, parses the generated text by the rule of the set's card, and compares answers as texts, for VQA by "
        "its evaluator; scores go to SET@letters, and no picture is replaced.",
        needs=("questions for letters",),
    )
    num_questions: int | None = option(
        None,
        help="Score a random sample of this many questions per set, the same for every run, and print the 95 % "
        "interval [default: all].",
        minimum=1,
    )
    vqa_mode: Literal["2021", "2017", "vqa-vs"] | None = option(
        None,
        help="VQA evaluator [default: from the set's card; for most, the official one of 2021].",
        needs=("likelihoods", "VQA"),
    )
    probe: tuple[Probe, ...] = option(
        (),
        help="Use of vision: also score with every picture swapped for another, blanked, or removed; repeatable "
        "[default: all three; none with --as letters].",
        needs=("pictures to replace",),
    )
    probe_on: tuple[str, ...] = option(
        (),
        help="Test sets to score with --probe; repeatable [default: the first one of --on].",
        needs=("pictures to replace", "an evaluated set", "a probe"),
    )

    @property
    def probes(self) -> tuple[Probe, ...]:
        """Replacements of the pictures, as given or by default."""
        return self.probe or (() if self.protocol == "letters" else ("swapped", "blanked", "removed"))


@dataclass(frozen=True, kw_only=True)
class BesideCaches(DataRootOptions, DeviceConfig, RegionOptions):
    """A student before or after training, and the inputs of caches, on which its states are looked at."""

    command: ClassVar[tuple[str, ...]]
    """Words of the command."""

    student: Path = option(
        help="Folder of a pretrained student or of a finished run, or the name of a student (`advl students list`)."
    )
    init: Path | None = option(
        None,
        help="Pretrained weights of a student that is given by name: a folder, a checkpoint file, or hf:ORG/MODEL.",
        needs=("a student by name",),
    )
    cache: tuple[Location, ...] = option(
        (), help="Teacher cache of the split to look at; repeatable, all of one split."
    )
    dataset: str | None = option(
        None, help="Your own data that the caches are of, if the run was not trained on them.", also="--data"
    )
    task: tuple[str, ...] = option((), help="Tasks whose texts are used; repeatable [default: all].")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadoutConfig(BesideCaches):
    """Configuration of `advl readout`."""

    command: ClassVar[tuple[str, ...]] = ("advl", "readout")
    oracle: bool = option(
        False,
        help="Also use labels: the share of name questions that the student answers correctly by cosine, and after a "
        "linear map onto true names, or onto its own names as the control. If the two differ by less than five "
        "points, a vision step is not worth running.",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class WordsConfig(BesideCaches, ReplaceOptions):
    """Configuration of `advl students words`."""

    command: ClassVar[tuple[str, ...]] = ("advl", "students", "words")
    output: Path = option(
        Path(names.WORDS),
        help="Table to write.",
        output=Output(makes="file", begins=rb"word,occurrences,score,class\n"),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreShiftConfig(Configuration):
    """Configuration of `advl score shift`."""

    run: Path = option(help="Run folder, scored by `advl evaluate` on both sets.", such_as="runs/mine")
    on: str = option(help="The shifted set, as named in `advl evaluate --on`.", such_as="rule-singular")


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictConfig(AnswerOptions, ReplaceOptions):
    """Configuration of `advl predict`."""

    run: Path = option(help="Run folder of a finished finetuning.", such_as="runs/mine")
    on: str = option("test", help="Split of the run's dataset, or DATASET/SPLIT.")
    output: Path | None = option(
        None,
        help="File to write [default: RUN/predictions/SPLIT.csv or .json].",
        output=Output(
            makes="file",
            begins=rb'annot_id,answer_0,|pairID,label\n|id,index,prediction\n|\[\{"question_id": ',
            home=("run", "predictions/*"),
        ),
    )
    generate: bool = option(
        False,
        help="For VQA, write the answers that a student generates instead of the likeliest of the run's list.",
        needs=("VQA",),
    )
