"""What one finetuning run is: every option of METHOD.md by name, shared by the command line, Python and studies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from advl_pipeline.configuration import option
from advl_pipeline.datasets.vcr_text import TextStyle

Method = Literal["plain", "plain-two-step", "naive-kd", "advl"]
TeacherControl = Literal["none", "shuffle"]


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneConfig:
    """Configuration of `advl finetune`. Fields set to None by default follow `method` (`methods.py`)."""

    dataset: str = option(help="Dataset to finetune on, such as scenes-vcr, vcr, vqa-v2 or snli-ve.")
    output: Path = option(help="Run folder; an interrupted run in it resumes.")
    cache: tuple[Path, ...] = option((), help="Teacher cache of the training split; repeat for several teachers.")
    data_root: Path | None = option(None, help="Folder of the datasets [default: $ADVL_DATA or datasets/].")
    split: str = option("train", help="Split to train on.")
    task: tuple[str, ...] = option((), help="Tasks of the dataset to train on; repeatable [default: all].")
    text_style: TextStyle | None = option(None, help="How VCR's object tags become words [default: the dataset's].")
    label_order: Literal["uniter", "meter"] = option("uniter", help="Whose order SNLI-VE's classes have.")
    answers: Path | None = option(
        None, help="Answer vocabulary for VQA, such as a checkpoint's own list [default: built by the rules]."
    )
    on_error: Literal["fail", "skip"] = option(
        "fail", help="What to do about malformed items: as it was when the caches were extracted."
    )
    student: str = option("scenes-small", help="Student to finetune; see `advl students list`.")
    init: Path | None = option(None, help="Pretrained student folder or checkpoint file.")
    method: Method = option("advl", help="What is done with the teachers.")
    shots: int | None = option(None, help="Train on a nested, class-balanced subset of this many questions.")
    seed: int = option(0, help="Chooses the low-shot subset, the initialisation and the order.")

    num_steps: int = option(300, help="Optimiser steps in total, both steps of the method together.")
    batch_size: int = option(16, help="Examples per optimiser step.")
    accumulate: int = option(1, help="Micro-batches that one optimiser step is split into.")
    learning_rate: float = option(5e-4, help="Peak learning rate of the student.")
    head_lr_scale: float = option(1.0, help="Learning rate of head and projections relative to the student's.")
    weight_decay: float = option(0.01, help="AdamW weight decay.")
    warmup_fraction: float = option(0.1, help="Share of each step's budget spent warming up the learning rate.")
    clip_norm: float = option(2.0, help="Gradient norm to clip at; 0 turns clipping off.")
    mixed_precision: Literal["no", "fp16", "bf16"] = option("no", help="Mixed precision, by accelerate.")
    checkpoint_every: int = option(100, help="Optimiser steps between checkpoints.")
    resume: bool = option(True, help="Continue an interrupted run in the output folder.")

    tensorboard: bool = option(False, help="Also log for TensorBoard, into tensorboard/ of the run folder.")

    distill_weight: float = option(1.0, help="lambda: strength of the distillation terms beside the task loss.")
    distill_decay: Literal["none", "linear", "cosine"] = option(
        "none", help="Schedule of lambda over the finetune step, down to 0 at its end."
    )
    pathway: Literal["both", "vision", "text"] = option("both", help="Pathways in use.")
    distance: Literal["mse", "l1", "cosine", "smooth-l1"] = option("mse", help="Distance of the pathways.")
    target_norm: Literal["standardise", "none"] = option(
        "standardise", help="Scale teacher targets per dimension by the cache's mean and variance."
    )
    vision_target: Literal["image", "regions", "both"] = option("both", help="Targets of the vision pathway.")
    selection: Literal["adaptive", "prior", "visual", "random", "all"] | None = option(
        None, help="Adaptive Text Token Selection: how words are scored."
    )
    selection_alpha: float = option(0.5, help="Share of the prior in a word's score.")
    selection_rho: float = option(0.3, help="Share of the words that is kept.")
    candidates: Literal["all", "right"] = option(
        "all", help="Candidates whose text is distilled; `right` leaks the label and is an ablation."
    )
    weighting: Literal["ratio", "teacher", "gap", "uniform"] | None = option(
        None, help="Adaptive Confidence-based Weighting: the weight of an instance."
    )
    weight_max: float = option(2.0, help="Upper bound of an instance's weight.")
    weight_normalise: Literal["none", "batch-mean"] = option("none", help="Rescale weights to mean 1 in the batch.")
    weight_shuffle: bool = option(False, help="Control: permute the weights inside the batch.")
    confidence: Literal["probe", "probe-joint", "zero-shot", "none"] = option(
        "probe", help="Where the teacher's confidence comes from."
    )
    confidence_folds: int = option(5, help="Folds of the cross-fitted probe.")
    steps: Literal["one", "two"] | None = option(None, help="Two-step finetuning, or the finetune step alone.")
    adapt_fraction: float = option(0.15, help="Share of the budget spent in the adapt step.")
    adapt_objective: Literal["contrastive", "distil-only", "projections-only"] = option(
        "contrastive", help="What the adapt step learns."
    )
    adapt_on: Literal["subset", "inputs"] = option(
        "subset",
        help="Inputs of the adapt step: the labelled subset, or all inputs of the split without labels.",
    )
    teacher_control: TeacherControl = option(
        "none", help="Control: permute the teacher's features over units; a cache of `random:NAME` is the other one."
    )
    hide_picture: bool = option(
        False,
        help="Control: a text-only student, which never sees a picture, neither in training nor in evaluation.",
    )
    live: bool = option(False, help="Run the teachers instead of reading caches, for checking.")
