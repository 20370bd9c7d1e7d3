"""Configuration of a finetuning run: every option of docs/method.md, for the command line, Python and studies.

An option is declared once, in the component that it configures. It has the same name as a flag, as a key of a file
and as an attribute of its component. A function asks for the component that it needs and accepts the full
configuration, which is a subclass. This module is light to import, because the command line reads its options.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from advl_pipeline.base.compute import ComputeConfig
from advl_pipeline.base.configuration import (
    ANY,
    Configuration,
    Output,
    bounded,
    build_config,
    component,
    config_to_dict,
    option,
    options_of_now,
    rare_option,
)
from advl_pipeline.base.errors import ConfigError
from advl_pipeline.base.locations import Location
from advl_pipeline.datasets.config import DataOptions
from advl_pipeline.distillation.settings import AdaptOptions, DistillationOptions
from advl_pipeline.students.options import PictureOptions, StudentOptions, default_student
from advl_pipeline.students.registry import label_order_of

SCHEMA = 5
"""Incremented whenever the same options give other results: by another default, or another method of the same name.
The identity of a run contains only differences from the defaults, so that a new option re-keys none of them.
`tests/assets/run_defaults.json` contains the defaults for this number.
"""

TaskLoss = Literal[
    "softmax-choice", "sigmoid-choice", "two-way-choice", "soft-target-bce", "soft-target-kl", "answer-lm"
]
"""Losses in `targets.py`."""

Optimiser = Literal["adamw", "bert-adamw", "bert-adam", "sgd"]
"""torch's AdamW and SGD; BERT's AdamW, and its Adam without bias correction (`optimiser.py`)."""

LearningRateSchedule = Literal["linear", "steps", "constant", "linear-nonzero"]
"""Learning rate after warmup. Three schedules follow the original implementations. `linear-nonzero` is ADVL's own:
linear up and down, with a rate above 0 in the first and the last step."""

PRETRAINED_LEARNING_RATE = 5e-5
"""Rate of a pretrained student without a known recipe: the highest rate that BERT's authors used for finetuning.
The rate without weights is for small students with random initialisation; it would destroy a pretrained model."""


DEFAULT_EPOCHS = 3.0
"""Default passes over the labelled examples; few labels are repeated more often."""

MOST_EPOCHS = 12.0
"""Default maximum of passes where a run ends early."""


class ScaleRule(NamedTuple):
    """A rule that scales the base learning rate by `scale` for parameters whose name matches `pattern`."""

    pattern: str
    scale: float


@dataclass(frozen=True, kw_only=True, slots=True)
class AdversarialConfig(Configuration):
    """VILLA's hyperparameters, the table `adversarial` of a recipe.

    A learning rate of 0 leaves that modality unperturbed; `max_norm` 0 disables the projection.
    """

    text_learning_rate: float = 0.0
    visual_learning_rate: float = 0.0
    num_steps: int = bounded(3, minimum=1)
    kl_weight: float = 1.5
    norm: Literal["l2", "linf"] = "l2"
    max_norm: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe(Configuration):
    """The settings of one recipe; a default is what the authors' training loop does where their files are silent.

    `batch_size` is per device, before accumulation. Exactly one of `num_steps` and `num_epochs` is positive.
    `warmup` is in optimiser steps when at least 1, else a share of all steps. `clip_norm` bounds the norm of all
    gradients together, `clip_each` the norm of each parameter's gradient; 0 disables either. `no_decay` is searched
    in parameter names; None exempts biases and norms by module type. `accumulation` says whether the gradients of a
    device's micro-batches are averaged or, as in UNITER, summed, which matters for clipping. `adversarial` contains
    VILLA's hyperparameters, and is empty for other recipes. `sources` maps each key to its origin.
    """

    student: str
    task: str
    size: str
    loss: TaskLoss
    optimiser: Optimiser
    learning_rate: float = bounded(above=0)
    weight_decay: float = bounded(minimum=0)
    num_steps: int | None = bounded(None, minimum=1)
    num_epochs: int = 0
    batch_size: int | None = bounded(None, minimum=1)
    batch_unit: Literal["tokens", "examples"] = "examples"
    accumulate: int = bounded(1, minimum=1)
    accumulation: Literal["mean", "sum"] = "mean"
    num_devices: int = 1
    head_lr_scale: float = bounded(1.0, minimum=0)
    adapt_lr_scale: float = bounded(1.0, minimum=0)
    lr_scales: tuple[ScaleRule, ...] = ()
    no_decay: str | None = ""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    momentum: float = 0.0
    schedule: LearningRateSchedule = "linear"
    warmup: float = 0.0
    milestones: tuple[float, ...] = ()
    lr_floor: float = 0.0
    clip_norm: float = bounded(0.0, minimum=0)
    clip_each: float = 0.0
    dropout: float = 0.1
    max_text_length: int = 0
    image_size: int = 0
    seed: int = 0
    adversarial: Mapping[str, Any]
    sources: Mapping[str, str]

    def source_of(self, setting: str) -> str:
        """Return the origin of a setting in a run that follows this recipe."""
        stated = {"task_loss": "loss", "max_text_tokens": "max_text_length", "loss_scale": "accumulation"}
        if not self.num_steps:
            stated["num_steps"] = "num_epochs"
        unstated = f"not stated by the recipe of {self.student}: its optimiser's or loop's default"
        return self.sources.get(stated.get(setting, setting), unstated)


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """The resolved hyperparameters of a run; a default is ADVL's own and applies without a recipe or an option.

    `batch_size` counts the examples of an optimiser step over all processes, or the padded tokens of one micro-batch.
    `accumulate` counts the micro-batches of an optimiser step, per process for examples, over all processes for
    tokens. `epochs` is the number of passes over the labelled examples, None where a batch counts tokens.
    `max_text_tokens` excludes longer examples from training; 0 for no limit. `loss_scale` multiplies every gradient
    (for recipes that sum micro-batches instead of averaging). The other fields are those of `Recipe`. `sources` gives
    the origin of each value, and `note` the chosen recipe.
    """

    num_steps: int = 300
    epochs: float | None = None
    batch_size: int = 16
    batch_unit: Literal["tokens", "examples"] = "examples"
    max_text_tokens: int = 0
    accumulate: int = 1
    loss_scale: float = 1.0
    optimiser: Optimiser = "adamw"
    learning_rate: float = 5e-4
    head_lr_scale: float = 1.0
    adapt_lr_scale: float = 1.0
    lr_scales: tuple[ScaleRule, ...] = ()
    weight_decay: float = 0.01
    no_decay: str | None = None
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    momentum: float = 0.0
    schedule: LearningRateSchedule = "linear-nonzero"
    warmup: float = 0.1
    milestones: tuple[float, ...] = ()
    lr_floor: float = 0.0
    clip_norm: float = 2.0
    clip_each: float = 0.0
    adversarial: AdversarialConfig | None = None
    task_loss: TaskLoss
    note: str
    sources: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return each setting with its value and source, and the note on the recipe, as JSON types."""
        plain = config_to_dict(self)
        described = {key: {"value": plain[key], "source": source} for key, source in self.sources.items()}
        return {"recipe": self.note, "settings": described}

    def step_line(self, num_processes: int) -> str:
        """Return a line that describes the batch size of an optimiser step and the number of processes."""
        on = "" if num_processes == 1 else f" on {num_processes} processes"
        if self.batch_unit == "tokens":
            return f"global batch: {self.accumulate} micro-batches of at most {self.batch_size} tokens{on}"
        cut = "" if self.accumulate == 1 else f", in {self.accumulate} micro-batches"
        return f"global batch: {self.batch_size} examples{on}{cut}"

    def line(self) -> str:
        """Return a line with the recipe and the options that override it."""
        flags = {source: key for key, source in reversed(list(self.sources.items())) if source.startswith("--")}
        # A reduced number carries its own explanation.
        options = [flag if " " in flag else f"{flag} {getattr(self, key)}" for flag, key in flags.items()]
        adversarial = "" if self.adversarial is None else f", adversarial ({self.adversarial.num_steps} passes)"
        return (
            f"{self.note}; given: {', '.join(sorted(options)) or 'nothing'}; "
            f"{self.task_loss}, {self.optimiser} at {self.learning_rate:.2g}{adversarial}, {self.num_steps} steps"
            + ("" if self.epochs is None else f", {self.epochs:.3g} epochs")
        )


@dataclass(frozen=True, kw_only=True)
class OptimiserOptions(Configuration):
    """Options of the optimisation; one that is not given follows the recipe, else `TrainingSettings`."""

    title: ClassVar[str] = "Optimiser"

    recipe: str = option(
        "auto",
        help="Recipe of the student's authors: auto (the published recipe if there is one), none, or a TOML file "
        "with its keys, such as optimiser, schedule and loss. Options override it.",
        identity="content",
    )
    num_steps: int | None = option(
        None,
        help="Optimiser steps of the finetune stage, instead of --epochs [default: the recipe's at full data, else "
        f"those of --epochs, and at least {TrainingSettings.num_steps}].",
        minimum=1,
    )
    epochs: float | None = option(
        None,
        help="Epochs of the finetune stage over the labelled examples, instead of --num-steps [default: the recipe's "
        f"at full data, else {DEFAULT_EPOCHS:g}]. Your own data: at most so many [{MOST_EPOCHS:g}], while val rises.",
        above=0,
    )
    batch_size: int | None = option(
        None,
        help=f"Examples per optimiser step [default: the recipe's, else {TrainingSettings.batch_size}].",
        minimum=1,
    )
    accumulate: int | None = rare_option(
        None,
        help=f"Micro-batches per optimiser step [default: the recipe's, else {TrainingSettings.accumulate}].",
        minimum=1,
    )
    learning_rate: float | None = option(
        None,
        help="Peak learning rate of the student [default: the recipe's, else that of its family on another task, "
        f"else {PRETRAINED_LEARNING_RATE:g} with --init and {TrainingSettings.learning_rate:g} without].",
        above=0,
    )
    head_lr_scale: float | None = rare_option(
        None,
        help="Learning rate of head and projections relative to the student's [default: the recipe's, else "
        f"{TrainingSettings.head_lr_scale:g}].",
        minimum=0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs is not None and self.num_steps is not None:
            raise ConfigError("Give --epochs or --num-steps, not both.", next_command="leave out one of them")


Method = Literal["plain", "plain-two-step", "naive-kd", "advl"]
TeacherControl = Literal["none", "shuffle", "shuffle-cells", "own-tokens"]


@dataclass(frozen=True, kw_only=True)
class TeacherOptions(Configuration):
    """Options that select the teachers of a run and the weights of their confidence."""

    title: ClassVar[str] = "Teachers"

    cache: tuple[Location, ...] = option(
        (),
        help="Teacher cache of the training split, folder or URL; repeat for several teachers.",
        identity="content",
    )
    confidence: Literal["probe", "zero-shot", "bridge", "none"] = rare_option(
        "probe",
        help="Source of the teacher's confidence: linear heads on its features (probe), a pair of towers "
        "(zero-shot), or a text teacher's knowledge of the student's names, without labels (bridge).",
        needs=("teachers", "ratio"),
    )
    confidence_folds: int = rare_option(
        5,
        help="Folds of the cross-fitted probe.",
        minimum=2,
        needs=("teachers", "ratio", "confidence", "a probe"),
    )
    confidence_check: Literal["auc", "none"] = rare_option(
        "auc",
        help="auc: weight a pathway uniformly unless its teacher's confidence separates correct from wrong, which "
        "means that the 95 % interval of its AUC on the labelled items is above 0.5. none: always use the "
        "confidence.",
        needs=("teachers", "ratio", "confidence"),
    )
    teacher_control: TeacherControl = rare_option(
        "none",
        help="Control: permute the teacher's features over units (shuffle), or only the patches of its grid within "
        "each picture (shuffle-cells); or replace a vision teacher's features by the student's own visual tokens, "
        "before they meet the text (own-tokens). A cache of `random:NAME` is another control.",
        needs=("teachers",),
    )


@dataclass(frozen=True, kw_only=True)
class RunOptions(Configuration):
    """Options that select the actions of a run and its output folder."""

    title: ClassVar[str] = "Run"

    output: Path = option(
        help="Run folder; an interrupted run in it resumes.",
        such_as="runs/mine",
        identity="none",
        output=Output(makes="run"),
    )
    method: Method = option("advl", help="How the teachers are used.")
    hide_picture: bool = rare_option(
        False,
        help="Control: a text-only student that sees no picture, in training or evaluation; options that would teach "
        "it from pictures are refused.",
    )
    seed: int = option(0, help="Seed of the low-shot subset, the initialisation and the order.", minimum=0)
    val_every: int | None = rare_option(
        None,
        help="Optimiser steps of the finetune stage between scorings of val; 0: never, so that no run ends early "
        "[default: 10 scorings, or 20 in the longest run where a run ends early].",
        minimum=0,
    )
    hold_out: bool = rare_option(
        True,
        help="Where there is no val, hold out a tenth of the labelled pictures in its place.",
        needs=("early stopping",),
    )
    checkpoint_every: int = rare_option(100, help="Optimiser steps between checkpoints.", minimum=1, identity="none")
    deterministic: bool = rare_option(
        False,
        help="Use deterministic operations on a GPU wherever torch has them, so that a resumed run is bit-identical; "
        "slower. torch warns about the others.",
        identity="none",
    )
    resume: bool = rare_option(True, help="Continue an interrupted run in the output folder.", identity="none")
    log_with: str = rare_option(
        "",
        help="Also log to tensorboard, wandb or mlflow, several joined by commas, in the run folder unless "
        "MLFLOW_TRACKING_URI is set. WANDB_MODE=offline needs no account.",
        identity="none",
    )


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(RunOptions, DataOptions, StudentOptions, PictureOptions, TeacherOptions, ComputeConfig):
    """Configuration of `advl finetune`; options that are None by default follow `method` or a recipe."""

    distill: DistillationOptions = component(DistillationOptions)
    adapt: AdaptOptions = component(AdaptOptions)
    optimisation: OptimiserOptions = component(OptimiserOptions)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.student:
            # The default student depends on the data; a run always records the one that it used.
            object.__setattr__(self, "student", default_student(self.dataset))

    @property
    def reading(self) -> dict[str, Any]:
        """Keyword arguments of `open_dataset` for the splits of a run."""
        names = ("data_root", "text_style", "answers", "answer_list", "on_error")
        return {name: getattr(self, name) for name in names} | {"label_order": label_order_of(self.student)}


_GONE: Mapping[str, Any] = {
    "relational_nodes": "both",
    "weight_normalise": "none",
    "candidates": "all",
    "live": False,
    "live_weights": [],
    **{f"adversarial_{name}": None for name in ("norm", "max_norm", "learning_rate", "steps", "kl_weight")},
    **dict.fromkeys(("ground_truth_regions", "region_naming", "region_split", "projection_start", "target_check")),
    "distill_decay": "none",
    "landmarks": "known",
    "student_temperature": 0.1,
    "teacher_temperature": 0.1,
    "selection_alpha": 0.5,
    "selection_rho": 0.3,
    "weight_max": 2.0,
    "target_norm": "standardise",
    "student_confidence": "start",
    "teacher_balance": "equal",
    "teacher_weight": [],
    **dict.fromkeys(("fresh_heads", "compile"), False),
    **dict.fromkeys(("align_layer", "lora_alpha")),
    "lora_target": [],
    **dict.fromkeys(("batch_tokens", "optimiser", "weight_decay", "schedule", "clip_norm", "warmup_fraction")),
    **dict.fromkeys(("adversarial", "task_loss")),
    **dict.fromkeys(
        ("dry_run", "step_ms", "disk_mb_s", "verify_caches", "disk_cache", "disk_cache_gb", "val_examples"), ANY
    ),
}
"""Options of earlier versions, with the values that match the present behaviour; `ANY` if the option changed no
result. Only coordinate distances read `projection_start` and `target_check`."""


def config_of_run(stored: Mapping[str, Any], *, where: str = "", **changes: Any) -> FinetuneConfig:
    """Return the configuration of an existing run, made by this version or by 0.2.

    Args:
        stored: content of its config.json.
        where: location, for error messages.
        changes: fields to override.

    Raises:
        ConfigError: the options are damaged, or one was removed and has a value that is no longer supported.
    """
    if lacking := sorted({"student", "distance"} - stored.keys()):
        raise ConfigError(
            "The options of a run are damaged.",
            where=where,
            why=f"no {lacking[0]}",
            next_command="delete the run folder and give the command that made it again",
        )
    gone = {**_GONE, "label_order": label_order_of(stored["student"])}
    if stored["distance"] == "relational":
        gone |= dict.fromkeys(("projection_start", "target_check"), ANY)

    def refused(option: str) -> ConfigError:
        return ConfigError(
            f"This run was made with an option that was removed in version 0.3, {option}.",
            where=where,
            next_command="leave this run out; it is evaluated as before",
        )

    return build_config(FinetuneConfig, options_of_now(stored, gone, refused=refused), changes, where=where)
