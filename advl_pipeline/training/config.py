"""What one finetuning run is: every option of docs/method.md by name, for the command line, Python and studies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from advl_pipeline.cache.config import DEFAULT_GB
from advl_pipeline.compute import ComputeConfig
from advl_pipeline.configuration import option
from advl_pipeline.datasets.names import DATASET_HELP
from advl_pipeline.datasets.vcr_text import TextStyle
from advl_pipeline.locations import Location
from advl_pipeline.training.recipe_terms import AdversarialModality, LearningRateSchedule, Optimiser, TaskLoss

PLAIN: Mapping[str, float] = {
    "num_steps": 300,
    "batch_size": 16,
    "accumulate": 1,
    "learning_rate": 5e-4,
    "head_lr_scale": 1.0,
    "weight_decay": 0.01,
    "warmup_fraction": 0.1,
    "clip_norm": 2.0,
    "adapt_lr_scale": 1.0,
}
"""What stands for options that are left to a recipe, where there is none."""

PRETRAINED_LEARNING_RATE = 5e-5
"""Rate of a student with pretrained weights of whose family no recipe is known: the highest that BERT's authors
finetuned at. The rate above is meant for small students that start at random; it undoes a pretraining."""

Method = Literal["plain", "plain-two-step", "naive-kd", "advl"]
TeacherControl = Literal["none", "shuffle", "shuffle-cells", "shift-grid"]


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneConfig(ComputeConfig):
    """Configuration of `advl finetune`. Fields set to None by default follow `method` (`methods.py`)."""

    dataset: str = option(help=DATASET_HELP, also="--data", identity="content")
    output: Path = option(help="Run folder; an interrupted run in it resumes.", identity="none")
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
    )
    disk_cache: Path | None = option(
        None, help="Where files of remote caches are kept [default: $ADVL_DISK_CACHE].", identity="none"
    )
    disk_cache_gb: float = option(DEFAULT_GB, help="How much the disk cache may hold.", above=0, identity="none")
    data_root: Path | None = option(
        None, help="Folder of the datasets [default: $ADVL_DATA or datasets/].", identity="beside"
    )
    split: str = option("train", help="Split to train on, or several as one, such as train+val.")
    task: tuple[str, ...] = option((), help="Tasks of the dataset to train on; repeatable [default: all].")
    text_style: TextStyle | None = option(None, help="How VCR's object tags become words [default: the dataset's].")
    label_order: Literal["uniter", "meter"] = option("uniter", help="Whose order SNLI-VE's classes have.")
    answers: Path | None = option(
        None, help="Answer vocabulary for VQA, such as a checkpoint's own list [default: built, see --answer-list]."
    )
    answer_list: Literal["train", "published"] = option(
        "train",
        help="Whose answers make VQA's vocabulary: those of train, or those of all splits that the published models "
        "count. For VQA v2 and VQA-CP these include val, whose answers are then known in training.",
    )
    on_error: Literal["fail", "skip"] = option(
        "fail", help="What to do about malformed items: as it was when the caches were extracted."
    )
    student: str = option("scenes-small", help="Student to finetune; see `advl students list`.")
    init: Path | None = option(
        None,
        help="Pretrained student: a folder, a checkpoint file, or hf:ORG/MODEL for a repository of the hub.",
        identity="content",
    )
    head_answers: Path | None = option(
        None,
        help="Answers that the checkpoint's VQA head is of, such as LXMERT's all_ans.json; rows are taken by answer.",
        paces=False,
    )
    known_words: Path | None = option(
        None,
        help="Words that the student's pretraining taught, with their counts: a JSON object, or lines of word, tab, "
        "count [default: what `advl pretrain` recorded, else every word counts as known].",
        paces=False,
    )
    fresh_heads: bool = option(
        False, help="Start the task's head anew even where the checkpoint holds one.", paces=False
    )
    tokenizer: str | None = option(
        None,
        help="Folder or hub name of the student's tokenizer, or minilm-l6 [default: the one that lies with --init, "
        "else the student's own].",
    )
    regions: Path | None = option(
        None,
        help="Detector's region features: .tsv, .h5, UNITER's LMDB folder, or a folder of .npz or .json files; "
        "{split} in the path stands for the split that the pictures are filed under, such as val, or val2014 for "
        "pictures of COCO. The word pixels stands for small crops through a random projection, which a student "
        "without --init sees unasked.",
    )
    ground_truth_regions: Path | None = option(None, help="Features of the dataset's own boxes, put first, likewise.")
    region_naming: Literal["number", "stem", "uniter"] | None = option(
        None, help="How those files name pictures [default: stem]."
    )
    region_split: str | None = option(
        None,
        help="Split that stands for {split}, and in UNITER's names of VCR pictures; several joined by + [default: "
        "what the pictures of the split are filed under].",
    )
    student_option: tuple[str, ...] = option(
        (), help="Another setting of the student as KEY=VALUE, such as num_layers=6; repeatable.", metavar="KEY=VALUE"
    )
    method: Method = option("advl", help="What is done with the teachers.")
    shots: int | None = option(
        None, help="Train on a nested, class-balanced subset of this many questions.", minimum=1, paces=False
    )
    ids: Path | None = option(
        None,
        help="Train on the examples of a list that `advl datasets subset` wrote, in place of --shots.",
        identity="content",
    )
    pool: int | None = option(
        None,
        help="Questions of the split whose inputs a run may see without labels, the first of the seed's order, so "
        "that the labelled ones are among them [default: all; the labelled ones where a cache holds a part].",
        minimum=1,
        paces=False,
    )
    seed: int = option(
        0, help="Chooses the low-shot subset, the initialisation and the order.", minimum=0, paces=False
    )

    recipe: str = option(
        "auto",
        help="How the student's authors finetuned it: auto (the published recipe where there is one), none, or a "
        "TOML file of its keys. An option given here wins over it.",
        identity="content",
    )
    num_steps: int | None = option(
        None,
        help="Optimiser steps of the finetune step [default: the recipe's at full data, else 300].",
        minimum=1,
        paces=False,
    )
    batch_size: int | None = option(
        None, help="Examples per optimiser step [default: the recipe's, else 16].", minimum=1
    )
    batch_tokens: int | None = option(
        None,
        help="Padded tokens of a micro-batch, in place of a number of examples [default: the recipe's].",
        minimum=1,
    )
    accumulate: int | None = option(
        None, help="Micro-batches that one optimiser step is split into [default: the recipe's, else 1].", minimum=1
    )
    optimiser: Optimiser | None = option(None, help="Optimiser [default: as the learning rate's, else adamw].")
    learning_rate: float | None = option(
        None,
        help="Peak learning rate of the student [default: the recipe's, else that of its family on another task, "
        "else 5e-5 with --init and 5e-4 without].",
        above=0,
        paces=False,
    )
    head_lr_scale: float | None = option(
        None,
        help="Learning rate of head and projections relative to the student's [default: the recipe's, else 1].",
        minimum=0,
        paces=False,
    )
    weight_decay: float | None = option(
        None, help="Weight decay [default: the recipe's, else 0.01].", minimum=0, paces=False
    )
    schedule: LearningRateSchedule | None = option(
        None, help="Learning rate after warming up [default: the recipe's, else linear-nonzero].", paces=False
    )
    warmup_fraction: float | None = option(
        None,
        help="Share of each step's budget spent warming up the learning rate [default: the recipe's, else 0.1].",
        minimum=0,
        below=1,
        paces=False,
    )
    clip_norm: float | None = option(
        None,
        help="Gradient norm to clip at; 0 turns clipping off [default: the recipe's, else 2].",
        minimum=0,
        paces=False,
    )
    task_loss: TaskLoss | None = option(
        None,
        help="Loss of the task [default: the recipe's, else softmax-choice, and soft-target-bce for VQA].",
    )
    adversarial: AdversarialModality | None = option(
        None, help="VILLA's adversarial finetuning: what is perturbed [default: the recipe's]."
    )
    adversarial_norm: Literal["l2", "linf"] | None = option(
        None, help="Norm of its gradient steps and of the ball [default: the recipe's, else l2]."
    )
    adversarial_max_norm: float | None = option(
        None,
        help="Radius of the ball that perturbations stay in, 0 for none [default: the recipe's, else 0].",
        minimum=0,
    )
    adversarial_learning_rate: float | None = option(
        None, help="Step size of the perturbations [default: the recipe's, else 1e-3].", above=0
    )
    adversarial_steps: int | None = option(
        None, help="Adversarial passes per micro-batch [default: the recipe's, else 3].", minimum=1
    )
    adversarial_kl_weight: float | None = option(
        None, help="Weight of the divergence from the clean pass [default: the recipe's, else 1.5].", minimum=0
    )
    gradient_checkpointing: bool = option(
        False,
        help="Compute each layer again in the backward pass, not keep its inside: less memory, slower.",
    )
    lora_rank: int = option(
        0,
        help="Train low-rank updates of this rank to the attention projections alone; 0 trains the student.",
        minimum=0,
    )
    compile: bool = option(
        False, help="Run the student through torch.compile; refused for students that are not tested under it."
    )
    checkpoint_every: int = option(100, help="Optimiser steps between checkpoints.", minimum=1, identity="none")
    resume: bool = option(True, help="Continue an interrupted run in the output folder.", identity="none")

    tensorboard: bool = option(
        False, help="Also log for TensorBoard, into tensorboard/ of the run folder.", identity="none"
    )

    distill_weight: float = option(
        0.3,
        help="lambda: strength of the distillation terms beside the task loss. For scale: the loss of a choice of "
        "four begins at 1.4; with --distance mse each target of a pathway begins near 2.",
        minimum=0,
        paces=False,
    )
    distill_decay: Literal["none", "linear", "cosine"] = option(
        "none", help="Schedule of lambda over the finetune step, down to 0 at its end.", paces=False
    )
    pathway: Literal["both", "vision", "text"] = option("both", help="Pathways in use.")
    distance: Literal["relational", "mse", "l1", "cosine", "smooth-l1"] = option(
        "relational",
        help="What of a teacher is followed: relational, its likenesses among the words (regions) of a batch; or the "
        "coordinates of its features, through a projection, by mse, l1, cosine or smooth-l1.",
    )
    relational_nodes: Literal["words", "texts", "both"] = option(
        "both",
        help="Of relational: what of a text is related, its words, the text as the mean of its words, or both.",
    )
    landmarks: Literal["all", "known"] = option(
        "known",
        help="Of relational: what words are related to. known takes all words of the inputs that pretraining taught, "
        "where it left them, and places the others; all takes the words of the batch, as does a student without a "
        "record of its pretraining.",
    )
    student_temperature: float = option(
        0.1, help="Of relational: the temperature of the student's distribution of likenesses.", above=0
    )
    teacher_temperature: float = option(
        0.1, help="Of relational: the temperature of the teacher's distribution of likenesses.", above=0
    )
    distill_layer: Literal["unimodal", "fused"] = option(
        "unimodal",
        help="Which states are distilled: those that have seen one modality alone, from below the fusion where the "
        "student has such layers, else from a pass that hides the other modality; or those after the fusion.",
    )
    target_norm: Literal["standardise", "none"] = option(
        "standardise", help="Scale teacher targets per dimension by the cache's mean and variance."
    )
    projection_start: Literal["ridge", "random"] = option(
        "ridge",
        help="How projections of the coordinate distances start: fitted in closed form on the frozen student over "
        "some hundred inputs without labels, or at random.",
    )
    target_check: Literal["r2", "none"] = option(
        "r2",
        help="Leave out targets of the coordinate distances that no linear map tells from the student's states: the "
        "same fit's R2 on held-out inputs is below 0.05. none keeps them all.",
    )
    vision_target: Literal["auto", "patches", "regions", "image", "both"] = option(
        "auto",
        help="Targets of the vision pathway: the student's patches or grid cells, its regions, the whole picture, or "
        "both places and picture; auto takes the places where student and cache have them, else the picture.",
    )
    teacher_balance: Literal["equal", "fixed", "learned"] = option(
        "equal",
        help="How several teachers share a pathway: their mean, a mean under --teacher-weight, or weights learned "
        "from each teacher's uncertainty.",
    )
    teacher_weight: tuple[str, ...] = option(
        (),
        help="Weight of a teacher in its pathways, for --teacher-balance fixed; once for each.",
        metavar="NAME=NUMBER",
    )
    selection: Literal["adaptive", "prior", "visual", "need", "random", "all"] | None = option(
        None, help="Adaptive Text Token Selection: how words are scored."
    )
    selection_alpha: float = option(
        0.5, help="Share of the prior in a word's score.", minimum=0, maximum=1, paces=False
    )
    selection_rho: float = option(0.3, help="Share of the words that is kept.", above=0, maximum=1, paces=False)
    candidates: Literal["all", "right"] = option(
        "all", help="Candidates whose text is distilled; `right` leaks the label and is an ablation."
    )
    weighting: Literal["ratio", "teacher", "gap", "uniform"] | None = option(
        None, help="Adaptive Confidence-based Weighting: the weight of an instance."
    )
    weight_max: float = option(2.0, help="Upper bound of an instance's weight.", above=0, paces=False)
    weight_normalise: Literal["none", "batch-mean"] = option(
        "none",
        help="Rescale weights to mean 1 in the batch, none above --weight-max: what is cut goes to the others.",
    )
    weight_shuffle: bool = option(False, help="Control: permute the weights inside the batch.")
    confidence: Literal["probe", "probe-joint", "zero-shot", "none"] = option(
        "probe", help="Where the teacher's confidence comes from.", paces=False
    )
    confidence_folds: int = option(5, help="Folds of the cross-fitted probe.", minimum=2, paces=False)
    student_confidence: Literal["start", "smoothed", "current"] = option(
        "start",
        help="Whose confidence of the student weighs an item: that of the beginning of step 2, before it saw a label "
        "(one pass over the labelled items); one smoothed over the visits of the item; or the current one.",
    )
    confidence_check: Literal["auc", "none"] = option(
        "auc",
        help="Weigh a pathway uniformly where its teacher's confidence does not tell right from wrong: the 95 % "
        "interval of its AUC on the labelled items is not above 0.5. none follows it whatever it knows.",
    )
    steps: Literal["one", "two"] | None = option(None, help="Two-step finetuning, or the finetune step alone.")
    adapt_steps: int = option(
        400, help="Optimiser steps of the adapt step, beside those of the finetune step.", minimum=1
    )
    adapt_texts: int = option(
        64,
        help="Texts of an adapt step, over all candidates of its examples: how many words are related at once.",
        minimum=2,
    )
    adapt_lr_scale: float | None = option(
        None,
        help="Learning rate of the student in the adapt step relative to its own in the finetune step; projections, "
        "which start anew, learn at their own [default: the recipe's, else 1].",
        minimum=0,
        paces=False,
    )
    anchor_weight: float = option(
        20.0,
        help="How strongly the adapt step holds what pictures show, and words that pretraining knew, where it left "
        "them; in units of their variance, 0 lets them go.",
        minimum=0,
    )
    adapt_objective: Literal["contrastive", "distil-only", "projections-only"] | None = option(
        None,
        help="What the adapt step learns: distillation alone, the contrast of pictures and texts with it, or the "
        "projections with the student held [default: contrastive for plain-two-step, else distil-only].",
    )
    adapt_on: tuple[str, ...] = option(
        ("inputs",),
        help="Inputs of the adapt step, without labels: inputs, all of the split; subset, the labelled ones; or "
        "DATASET/SPLIT, of which caches must be given too, such as pictures in the style of the target. Repeatable.",
        metavar="INPUTS",
        paces=False,
    )
    teacher_control: TeacherControl = option(
        "none",
        help="Control: permute the teacher's features over units (shuffle), or only move the cells of its grid "
        "inside each picture, at random (shuffle-cells) or by half the grid (shift-grid); a cache of `random:NAME` "
        "is another one.",
    )
    hide_picture: bool = option(
        False,
        help="Control: a text-only student, which never sees a picture, neither in training nor in evaluation; "
        "options that would teach it from pictures are refused.",
    )
    live: bool = option(False, help="Run the teachers instead of reading caches, for checking.")
    live_weights: tuple[str, ...] = option(
        (),
        help="With --live, the local weights of a teacher whose cache was made with `advl extract --weights`; once "
        "for each.",
        metavar="NAME=PATH",
        identity="beside",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig(ComputeConfig):
    """Configuration of `advl pretrain`."""

    output: Path | None = option(None, help="Folder of the pretrained student [default: students/STUDENT].")
    dataset: str = option("scenes-captions", help="Image-caption pairs with phrase boxes.")
    data_root: Path | None = option(None, help="Folder of the datasets [default: $ADVL_DATA or datasets/].")
    split: str = option("train", help="Split to train on.")
    student: str = option(
        "scenes-small", help="Student to pretrain: scenes-small, scenes-small-lm, scenes-uniter or scenes-vilt."
    )
    seed: int = option(0, help="Chooses initialisation, order and masks.", minimum=0)
    warmup_steps: int = option(500, help="Steps of region-phrase contrast alone.", minimum=0)
    joint_steps: int = option(
        250, help="Steps of all objectives together: contrast, masked words, matching, naming.", minimum=0
    )
    batch_size: int = option(96, help="Pairs per step.", minimum=1)
    learning_rate: float = option(1e-3, help="Peak learning rate.", above=0)
    weight_decay: float = option(0.01, help="AdamW weight decay.", minimum=0)
    mask_probability: float = option(
        0.25, help="Share of the words of a caption that is masked.", minimum=0, maximum=1
    )
