"""Dataset options: those of a run, and those of the `advl datasets` commands."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from advl_pipeline.base.configuration import Configuration, Output, option, rare_option
from advl_pipeline.base.outputs import ReplaceOptions
from advl_pipeline.datasets.records import TASKS
from advl_pipeline.datasets.roots import DATASET_HELP
from advl_pipeline.datasets.vcr_text import TextStyle


def facts_of_data(tasks: Collection[str]) -> dict[str, str]:
    """Return the facts about data that options need, in the form that `unused_options` expects.

    Args:
        tasks: tasks of the dataset; empty if unknown, so that no option is refused because of the data.
    """
    declared = [TASKS[task] for task in tasks]
    has_answers = any(task.kind == "answers" for task in declared)
    has_classes = any(task.kind == "classes" and not task.has_fixed_classes for task in declared)
    has_tags = any(task.has_wordless_tags for task in declared)
    lacking = {
        "tags without words": "" if has_tags else "the data are not in the format of VCR",
        "answers or classes": "" if has_answers or has_classes else "the data have neither open answers nor classes",
        "open answers": "" if has_answers else "the data have no open answers",
    }
    return lacking if declared else dict.fromkeys(lacking, "")


@dataclass(frozen=True, kw_only=True)
class DataRootOptions(Configuration):
    """Location of the datasets."""

    title: ClassVar[str] = "Data"

    data_root: Path | None = option(
        None, help="Folder of the datasets [default: $ADVL_DATA or datasets/].", identity="provenance"
    )


@dataclass(frozen=True, kw_only=True)
class DataOptions(DataRootOptions):
    """Selection of the examples that a run trains on."""

    title: ClassVar[str] = "Data"

    dataset: str = option(help=DATASET_HELP, also="--data", such_as="mine.jsonl", identity="content")
    split: str = option("train", help="Split to train on, or several joined, such as train+val.")
    task: tuple[str, ...] = option((), help="Tasks of the dataset to train on; repeatable [default: all].")
    text_style: TextStyle | None = rare_option(
        None,
        help="How VCR's object tags are turned into words [default: the dataset's].",
        needs=("tags without words",),
    )
    answers: Path | None = rare_option(
        None,
        help="Answer vocabulary for VQA, such as a checkpoint's own list [default: built, see --answer-list].",
        needs=("answers or classes",),
    )
    answer_list: Literal["train", "published"] = rare_option(
        "train",
        help="Splits whose answers form VQA's vocabulary: train, or all splits that the published models count. For "
        "VQA v2 and VQA-CP these include val, so training then knows val's answers.",
    )
    on_error: Literal["fail", "skip"] = rare_option(
        "fail", help="What to do with malformed items; use the same value as for extraction."
    )
    shots: int | None = option(
        None,
        help="Number of labelled questions in all, not for each class: a nested, class-balanced subset.",
        minimum=1,
    )
    ids: Path | None = rare_option(
        None,
        help="Train on the examples of a list from `advl datasets subset`, instead of --shots.",
        identity="content",
    )
    pool: int | None = rare_option(
        None,
        help="Number of questions whose inputs a run may see without labels. They are the first in the seed's order, "
        "so they include the labelled ones [default: all; the labelled ones if a cache has only a part of the "
        "split].",
        minimum=1,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckConfig(DataRootOptions):
    """Options of `advl datasets check`."""

    name: str = option(help=DATASET_HELP)
    split: tuple[str, ...] = option((), help="Split to check; repeatable [default: all].")
    deep: bool = option(False, help="Also decode every picture and check its boxes.")


@dataclass(frozen=True, kw_only=True, slots=True)
class SubsetConfig(DataRootOptions, ReplaceOptions):
    """Options of `advl datasets subset`."""

    name: str = option(help=DATASET_HELP)
    output: Path = option(
        help="JSON file to write the ids to.",
        such_as="subset.json",
        output=Output(
            makes="file", begins=rb'\{\n "dataset": ".*",\n "split": ".*",\n "shots": \d+,\n "seed": \d+,\n'
        ),
    )
    shots: int = option(help="Number of questions in all, not for each class.", such_as="100", minimum=1)
    split: str = option("train", help="Split to draw from.")
    seed: int = option(0, help="Seed of the subset; subsets of one seed are nested.", minimum=0)
