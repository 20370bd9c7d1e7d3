"""What one finetuning run is: every option of docs/method.md by name, for the command line, Python and studies.

An option is declared once, in the component that it configures, beside the code that reads it. It has one name
everywhere: as a flag, as a key of a file, and as an attribute. A function asks for the component that it needs, and
takes the whole configuration, which is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from advl_pipeline.cache.config import DiskCacheOptions
from advl_pipeline.compute import ComputeConfig
from advl_pipeline.configuration import Configuration, Output, build_config, component, option
from advl_pipeline.datasets.config import DataOptions
from advl_pipeline.distillation.settings import AdaptTerms, DistillationOptions, StrengthOptions
from advl_pipeline.errors import ConfigError
from advl_pipeline.locations import Location
from advl_pipeline.students.options import PictureOptions, StudentOptions
from advl_pipeline.training.recipe_terms import AdversarialOptions, OptimiserOptions

Method = Literal["plain", "plain-two-step", "naive-kd", "advl"]
TeacherControl = Literal["none", "shuffle", "shuffle-cells", "shift-grid"]


@dataclass(frozen=True, kw_only=True)
class TeacherOptions(DiskCacheOptions):
    """Which teachers a run hears, and how far they are believed."""

    title: ClassVar[str] = "Teachers"

    cache: tuple[Location, ...] = option(
        (),
        help="Teacher cache of the training split, folder or URL; repeat for several teachers.",
        identity="content",
        paces=False,
    )
    verify_caches: bool = option(
        False,
        help="Hash every file of the caches before the first step; without, those that changed since they were "
        "written or last checked, and a sample of the numbers is looked at.",
        identity="none",
        rare=True,
    )
    teacher_weight: tuple[str, ...] = option(
        (),
        help="Weight of a teacher in its pathways, for --teacher-balance fixed; once for each.",
        metavar="NAME=NUMBER",
        rare=True,
    )
    target_norm: Literal["standardise", "none"] = option(
        "standardise", help="Scale teacher targets per dimension by the cache's mean and variance.", rare=True
    )
    confidence: Literal["probe", "zero-shot", "bridge", "none"] = option(
        "probe",
        help="Where the teacher's confidence comes from: linear heads on its features (probe), a pair of towers "
        "(zero-shot), or what a text teacher knows of the student's names, without labels (bridge).",
        paces=False,
        rare=True,
    )
    confidence_folds: int = option(5, help="Folds of the cross-fitted probe.", minimum=2, paces=False, rare=True)
    student_confidence: Literal["start", "current"] = option(
        "start",
        help="Whose confidence of the student weighs an item. start: that of the beginning of step 2, before it saw "
        "a label (one pass over the labelled items). current: that of the present step.",
        rare=True,
    )
    confidence_check: Literal["auc", "none"] = option(
        "auc",
        help="Weigh a pathway uniformly where its teacher's confidence does not tell right from wrong. Its AUC on "
        "the labelled items then has a 95 % interval that is not above 0.5. none follows it whatever it knows.",
        rare=True,
    )
    teacher_control: TeacherControl = option(
        "none",
        help="Control: permute the teacher's features over units (shuffle). Or only move the cells of its grid "
        "inside each picture, at random (shuffle-cells) or by half the grid (shift-grid); a cache of `random:NAME` "
        "is another one.",
        rare=True,
    )


@dataclass(frozen=True, kw_only=True)
class DistillOptions(StrengthOptions, DistillationOptions):
    """What is distilled, and how strongly."""


@dataclass(frozen=True, kw_only=True)
class AdaptOptions(AdaptTerms):
    """The step before the labels."""

    title: ClassVar[str] = "Adapt step"

    steps: Literal["one", "two"] | None = option(
        None, help="Two-step finetuning, or the finetune step alone.", rare=True
    )
    adapt_steps: int = option(
        400, help="Optimiser steps of the adapt step, beside those of the finetune step.", minimum=1
    )
    adapt_texts: int = option(
        64,
        help="Texts of an adapt step, over all candidates of its examples: how many words are related at once.",
        minimum=2,
        rare=True,
    )
    adapt_lr_scale: float | None = option(
        None,
        help="Learning rate of the student in the adapt step, relative to its own in the finetune step. Projections, "
        "which start anew, learn at their own [default: the recipe's, else {otherwise}].",
        minimum=0,
        paces=False,
        otherwise=1.0,
        rare=True,
    )
    adapt_on: tuple[str, ...] = option(
        ("inputs",),
        help="Inputs of the adapt step, without labels: inputs, all of the split; subset, the labelled ones; or "
        "DATASET/SPLIT, such as pictures in the style of the target. Caches of that split must be given too. "
        "Repeatable.",
        metavar="INPUTS",
        paces=False,
        rare=True,
    )


@dataclass(frozen=True, kw_only=True)
class RunOptions(Configuration):
    """What is done, and the folder of it."""

    title: ClassVar[str] = "Run"

    output: Path = option(
        help="Run folder; an interrupted run in it resumes.",
        such_as="runs/mine",
        identity="none",
        output=Output(makes="run"),
    )
    method: Method = option("advl", help="What is done with the teachers.")
    hide_picture: bool = option(
        False,
        help="Control: a text-only student, which never sees a picture, neither in training nor in evaluation; "
        "options that would teach it from pictures are refused.",
        rare=True,
    )
    seed: int = option(
        0, help="Chooses the low-shot subset, the initialisation and the order.", minimum=0, paces=False
    )
    checkpoint_every: int = option(
        100, help="Optimiser steps between checkpoints.", minimum=1, identity="none", rare=True
    )
    resume: bool = option(True, help="Continue an interrupted run in the output folder.", identity="none", rare=True)
    log_with: str = option(
        "",
        help="Also log for tensorboard, wandb or mlflow, several joined by commas; into the run folder, unless "
        "MLFLOW_TRACKING_URI says otherwise. WANDB_MODE=offline needs no account.",
        identity="none",
        rare=True,
    )


@dataclass(frozen=True, kw_only=True)
class DryRunOptions(Configuration):
    """What an epoch would take."""

    title: ClassVar[str] = "Dry run"

    dry_run: bool = option(
        False,
        help="Only say what an epoch takes and what limits it, from a few steps in a temporary folder.",
        identity="none",
        paces=False,
    )
    step_ms: float | None = option(
        None,
        help="Of --dry-run: milliseconds of a step on another machine, such as one with a GPU [default: measured].",
        above=0,
        identity="none",
        paces=False,
        rare=True,
    )
    disk_mb_s: float | None = option(
        None,
        help="Of --dry-run: MB/s that the disk reads; without, everything read is taken to be in memory.",
        above=0,
        identity="none",
        paces=False,
        rare=True,
    )


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(RunOptions, DataOptions, StudentOptions, PictureOptions, TeacherOptions, ComputeConfig):
    """Configuration of `advl finetune`; options that are None by default follow `method` or a recipe."""

    distill: DistillOptions = component(DistillOptions)
    adapt: AdaptOptions = component(AdaptOptions)
    optimisation: OptimiserOptions = component(OptimiserOptions)
    adversary: AdversarialOptions = component(AdversarialOptions)
    forecast: DryRunOptions = component(DryRunOptions)


_GONE = {"relational_nodes": "both", "weight_normalise": "none", "live": False, "live_weights": []}
_GONE_OF_COORDINATES = ("projection_start", "target_check")
"""Options of 0.2: the values that every run now computes as, and those that only coordinate distances read."""


def config_of_run(stored: Mapping[str, Any], *, where: str = "", **changes: Any) -> FinetuneConfig:
    """Return the configuration that a run was made with, by this version or by 0.2.

    Args:
        stored: content of its config.json.
        where: named in errors.
        changes: fields that are to have other values.

    Raises:
        ConfigError: the run was made with an option that is gone, at a value that no run now computes as.
    """
    gone = {name: stored[name] for name in (*_GONE, *_GONE_OF_COORDINATES) if name in stored}
    if stored["distance"] == "relational":
        gone = {name: value for name, value in gone.items() if name in _GONE}
    for name, value in gone.items():
        if value != _GONE.get(name):
            raise ConfigError(
                "This run was made with an option that is gone, so it cannot stand beside others.",
                where=where,
                why=f"{name} = {value!r} went with version 0.3",
                next_command="leave this run out; it is evaluated as before",
            )
    known = {name: value for name, value in stored.items() if name not in (*_GONE, *_GONE_OF_COORDINATES)}
    return build_config(FinetuneConfig, known, changes, where=where)
