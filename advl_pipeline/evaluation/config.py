"""Configurations of `advl evaluate`, `predict` and `score`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from advl_pipeline.base.compute import ComputeConfig
from advl_pipeline.base.configuration import Configuration, Output, option
from advl_pipeline.base.outputs import ReplaceOptions
from advl_pipeline.datasets.config import DataRootOptions
from advl_pipeline.runs.evaluations import Protocol
from advl_pipeline.students.options import PictureOptions

Probe = Literal["swapped", "blanked", "removed", "none"]
"""How a picture is replaced: by another one of the set, by its boxes only, or hidden; `none` replaces none."""


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
