"""What one finetuning run is: every option of docs/method.md by name, for the command line, Python and studies.

An option is declared once, in the component that it configures. It has one name everywhere: as a flag, as a key of a
file, and as an attribute of its component. A function asks for the component that it needs, and takes the whole
configuration, which is one. Light to import, so that the command line can offer the options.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

from advl_pipeline.cache.config import DiskCacheOptions
from advl_pipeline.compute import ComputeConfig
from advl_pipeline.configuration import Configuration, Output, build_config, component, option, rare_option
from advl_pipeline.datasets.config import DataOptions
from advl_pipeline.distillation.settings import AdaptTerms, DistillationOptions
from advl_pipeline.errors import ConfigError
from advl_pipeline.locations import Location
from advl_pipeline.students.options import PictureOptions, StudentOptions, default_student

TaskLoss = Literal[
    "softmax-choice", "sigmoid-choice", "two-way-choice", "soft-target-bce", "soft-target-kl", "answer-lm"
]
"""Losses of `targets.py`."""

Optimiser = Literal["adamw", "bert-adamw", "bert-adam", "sgd"]
"""torch's AdamW; AdamW and Adam without bias correction as BERT's family runs them (`optimiser.py`)."""

LearningRateSchedule = Literal["linear", "steps", "constant", "linear-nonzero"]
"""Learning rate after warming up: three as the originals have it, and ADVL's own `linear-nonzero`, which is linear up
and down, with neither the first nor the last step at rate 0."""

PRETRAINED_LEARNING_RATE = 5e-5
"""Rate of a student with pretrained weights of whose family no recipe is known: the highest that BERT's authors
finetuned at. The rate without weights is meant for small students that start at random; it undoes a pretraining."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdversarialConfig(Configuration):
    """VILLA's numbers are the table `adversarial` of a recipe.

    A learning rate of 0 leaves that modality alone; `max_norm` 0 means no projection.
    """

    text_learning_rate: float = 0.0
    visual_learning_rate: float = 0.0
    num_steps: int = option(3, help="Adversarial passes per micro-batch.", minimum=1)
    kl_weight: float = 1.5
    norm: Literal["l2", "linf"] = "l2"
    max_norm: float = 0.0


Undecided = TypeVar("Undecided")
"""What a number is that nobody has decided: None among options and in recipes. In a run there is no such number."""


@dataclass(frozen=True, kw_only=True)
class Hyperparameters(Configuration, Generic[Undecided]):
    """Options, recipes and runs all have these numbers: those of finetuning a student that users give.

    How batches are counted, a recipe and a run say themselves.
    """

    title: ClassVar[str] = "Optimiser"

    num_steps: int | Undecided = option(
        None,
        help="Optimiser steps of the finetune step, in place of --epochs [default: the recipe's at full data, else "
        "those of --epochs, and at least {otherwise}].",
        minimum=1,
        otherwise=300,
    )
    batch_size: int | Undecided = option(
        None, help="Examples per optimiser step [default: the recipe's, else {otherwise}].", minimum=1, otherwise=16
    )
    accumulate: int | Undecided = rare_option(
        None,
        help="Micro-batches that one optimiser step is split into [default: the recipe's, else {otherwise}].",
        minimum=1,
        otherwise=1,
    )
    optimiser: Optimiser | Undecided = rare_option(
        None, help="Optimiser [default: as the learning rate's, else {otherwise}].", otherwise="adamw"
    )
    learning_rate: float | Undecided = option(
        None,
        help="Peak learning rate of the student [default: the recipe's, else that of its family on another task, "
        f"else {PRETRAINED_LEARNING_RATE:g} with --init and {{otherwise}} without].",
        above=0,
        otherwise=5e-4,
    )
    head_lr_scale: float | Undecided = rare_option(
        None,
        help="Learning rate of head and projections relative to the student's [default: the recipe's, else "
        "{otherwise}].",
        minimum=0,
        otherwise=1.0,
    )
    weight_decay: float | Undecided = rare_option(
        None,
        help="Weight decay [default: the recipe's, else {otherwise}].",
        minimum=0,
        otherwise=0.01,
    )
    schedule: LearningRateSchedule | Undecided = rare_option(
        None,
        help="Learning rate after warming up [default: the recipe's, else {otherwise}].",
        otherwise="linear-nonzero",
    )
    clip_norm: float | Undecided = rare_option(
        None,
        help="Gradient norm to clip at; 0 turns clipping off [default: the recipe's, else {otherwise}].",
        minimum=0,
        otherwise=2.0,
    )


@dataclass(frozen=True, kw_only=True)
class OptimiserOptions(Hyperparameters[None]):
    """The options say how a student is finetuned; one not given is the recipe's, else what its declaration says."""

    title: ClassVar[str] = "Optimiser"

    recipe: str = option(
        "auto",
        help="How the student's authors finetuned it: auto (the published recipe where there is one), none, or a "
        "TOML file of its keys. An option given here wins over it.",
        identity="content",
    )
    epochs: float | None = option(
        None,
        help="Passes of the finetune step over the labelled examples, in place of --num-steps [default: the recipe's "
        "at full data, else {otherwise}].",
        above=0,
        otherwise=3,
    )
    batch_tokens: int | None = rare_option(
        None,
        help="Padded tokens of a micro-batch, in place of a number of examples [default: the recipe's].",
        minimum=1,
    )
    warmup_fraction: float | None = rare_option(
        None,
        help="Share of each step's budget spent warming up the learning rate [default: the recipe's, else "
        "{otherwise}].",
        minimum=0,
        below=1,
        otherwise=0.1,
    )
    task_loss: TaskLoss | None = rare_option(
        None,
        help="Loss of the task [default: the recipe's, else softmax-choice, and soft-target-bce for VQA].",
    )
    adversarial: Literal["none", "text", "image", "both"] | None = rare_option(
        None,
        help="VILLA's adversarial finetuning: what is perturbed [default: the recipe's]. Its numbers are the "
        "recipe's, else VILLA's; --recipe FILE.toml changes them.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs is not None and self.num_steps is not None:
            raise ConfigError(
                "--epochs and --num-steps exclude each other.",
                why=f"{self.epochs:g} epochs are another number of steps than {self.num_steps}, or the same twice",
                next_command="leave out one of them",
            )


Method = Literal["plain", "plain-two-step", "naive-kd", "advl"]
TeacherControl = Literal["none", "shuffle", "shuffle-cells", "shift-grid", "own-tokens"]


@dataclass(frozen=True, kw_only=True)
class TeacherOptions(DiskCacheOptions):
    """The options say which teachers a run hears, and how far they are believed."""

    title: ClassVar[str] = "Teachers"

    cache: tuple[Location, ...] = option(
        (),
        help="Teacher cache of the training split, folder or URL; repeat for several teachers.",
        identity="content",
    )
    verify_caches: bool = rare_option(
        False,
        help="Hash every file of the caches before the first step; without, those that changed since they were "
        "written or last checked.",
        identity="none",
    )
    teacher_weight: tuple[str, ...] = rare_option(
        (),
        help="Weight of a teacher in its pathways, for --teacher-balance fixed; once for each.",
        metavar="NAME=NUMBER",
    )
    target_norm: Literal["standardise", "none"] = rare_option(
        "standardise", help="Scale teacher targets per dimension by the cache's mean and variance."
    )
    confidence: Literal["probe", "zero-shot", "bridge", "none"] = rare_option(
        "probe",
        help="Where the teacher's confidence comes from: linear heads on its features (probe), a pair of towers "
        "(zero-shot), or what a text teacher knows of the student's names, without labels (bridge).",
    )
    confidence_folds: int = rare_option(5, help="Folds of the cross-fitted probe.", minimum=2)
    student_confidence: Literal["start", "current"] = rare_option(
        "start",
        help="Whose confidence of the student weighs an item. start: that of the beginning of step 2, before it saw "
        "a label (one pass over the labelled items). current: that of the present step.",
    )
    confidence_check: Literal["auc", "none"] = rare_option(
        "auc",
        help="Weigh a pathway uniformly where its teacher's confidence does not tell right from wrong. Its AUC on "
        "the labelled items then has a 95 % interval that is not above 0.5. none follows it whatever it knows.",
    )
    teacher_control: TeacherControl = rare_option(
        "none",
        help="Control: permute the teacher's features over units (shuffle). Or only move the cells of its grid "
        "inside each picture, at random (shuffle-cells) or by half the grid (shift-grid). Or take the student's own "
        "visual tokens, before they meet the text, for a vision teacher's (own-tokens). A cache of `random:NAME` is "
        "another one.",
    )


@dataclass(frozen=True, kw_only=True)
class AdaptOptions(AdaptTerms):
    """The options decide the adapt step, which comes before the labels are learned."""

    title: ClassVar[str] = "Adapt step"

    steps: Literal["one", "two"] | None = rare_option(None, help="Two-step finetuning, or the finetune step alone.")
    adapt_steps: int = option(
        400, help="Optimiser steps of the adapt step, beside those of the finetune step.", minimum=1
    )
    adapt_texts: int = rare_option(
        64,
        help="Texts of an adapt step, over all candidates of its examples: how many words are related at once.",
        minimum=2,
    )
    adapt_lr_scale: float | None = rare_option(
        None,
        help="Learning rate of the student in the adapt step, relative to its own in the finetune step. Projections, "
        "which start anew, learn at their own [default: the recipe's, else {otherwise}].",
        minimum=0,
        otherwise=1.0,
    )
    adapt_on: tuple[str, ...] = rare_option(
        ("inputs",),
        help="Inputs of the adapt step, without labels: inputs, all of the split; subset, the labelled ones; or "
        "DATASET/SPLIT, such as pictures in the style of the target. Caches of that split must be given too. "
        "Repeatable.",
        metavar="INPUTS",
    )


@dataclass(frozen=True, kw_only=True)
class RunOptions(Configuration):
    """The options say what is done, and name the folder of it."""

    title: ClassVar[str] = "Run"

    output: Path = option(
        help="Run folder; an interrupted run in it resumes.",
        such_as="runs/mine",
        identity="none",
        output=Output(makes="run"),
    )
    method: Method = option("advl", help="What is done with the teachers.")
    hide_picture: bool = rare_option(
        False,
        help="Control: a text-only student, which never sees a picture, neither in training nor in evaluation; "
        "options that would teach it from pictures are refused.",
    )
    seed: int = option(0, help="Chooses the low-shot subset, the initialisation and the order.", minimum=0)
    val_examples: int = rare_option(
        200,
        help="Examples of the split val, where there is one, that are scored ten times on the way; 0 for none.",
        minimum=0,
        identity="none",
    )
    checkpoint_every: int = rare_option(100, help="Optimiser steps between checkpoints.", minimum=1, identity="none")
    deterministic: bool = rare_option(
        False,
        help="Have a GPU add up in one order wherever torch can, so that a resumed run is the same to the last bit; "
        "slower. What torch cannot is named.",
        identity="none",
    )
    resume: bool = rare_option(True, help="Continue an interrupted run in the output folder.", identity="none")
    log_with: str = rare_option(
        "",
        help="Also log for tensorboard, wandb or mlflow, several joined by commas; into the run folder, unless "
        "MLFLOW_TRACKING_URI says otherwise. WANDB_MODE=offline needs no account.",
        identity="none",
    )


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(RunOptions, DataOptions, StudentOptions, PictureOptions, TeacherOptions, ComputeConfig):
    """It configures `advl finetune`; options that are None by default follow `method` or a recipe."""

    distill: DistillationOptions = component(DistillationOptions)
    adapt: AdaptOptions = component(AdaptOptions)
    optimisation: OptimiserOptions = component(OptimiserOptions)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.student:
            # Which student is the default hangs on the data; a run always names the one that it took.
            object.__setattr__(self, "student", default_student(self.dataset))


_GONE: Mapping[str, Any] = {
    "relational_nodes": "both",
    "weight_normalise": "none",
    "candidates": "all",
    "live": False,
    "dry_run": False,
    "step_ms": None,
    "disk_mb_s": None,
    "live_weights": [],
    **{f"adversarial_{name}": None for name in ("norm", "max_norm", "learning_rate", "steps", "kl_weight")},
    **dict.fromkeys(("ground_truth_regions", "region_naming", "region_split", "projection_start", "target_check")),
}
"""Options of earlier versions: the values that every run now computes as. The last two are read by coordinate
distances alone."""


def config_of_run(stored: Mapping[str, Any], *, where: str = "", **changes: Any) -> FinetuneConfig:
    """Return the configuration that a run was made with, by this version or by 0.2.

    Args:
        stored: content of its config.json.
        where: named in errors.
        changes: fields that are to have other values.

    Raises:
        ConfigError: the run was made with an option that is gone, at a value that no run now computes as.
    """
    # None says that nobody gave the option.
    known = {name: value for name, value in stored.items() if name not in _GONE and value is not None}
    unread = {"projection_start", "target_check"} if stored["distance"] == "relational" else set()
    for name in stored.keys() & _GONE.keys() - unread:
        if stored[name] != _GONE[name]:
            raise ConfigError(
                "This run was made with an option that is gone, so it cannot stand beside others.",
                where=where,
                why=f"{name} = {stored[name]!r} went with version 0.3",
                next_command="leave this run out; it is evaluated as before",
            )
    return build_config(FinetuneConfig, known, changes, where=where)
