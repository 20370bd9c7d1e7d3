"""What is scored by `advl score`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from advl_pipeline.configuration import Configuration, option


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreVqaConfig(Configuration):
    """Configuration of `advl score vqa`."""

    questions: Path = option(help="Questions file of VQA v2, or VQA-CP's bare list.")
    annotations: Path = option(help="Annotations file that belongs to it.")
    results: Path = option(help="JSON list of {question_id, answer}, exactly the annotated questions.")
    mode: Literal["2021", "2017", "vqa-vs"] = option(
        "2021", help="Which evaluator: the current official one, the older one, or VQA-VS's min(k/3, 1)."
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreVcrConfig(Configuration):
    """Configuration of `advl score vcr`."""

    annotations: Path = option(help="Annotations with labels, such as val.jsonl.")
    answers: Path = option(help="Scores of the answers: .npy or CSV of shape items x 4.")
    rationales: Path = option(help="Scores of the rationales given the right answer: .npy or CSV of shape items x 4.")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreSnliVeConfig(Configuration):
    """Configuration of `advl score snli-ve`."""

    annotations: Path = option(help="Annotations, such as snli_ve_test.jsonl.")
    results: Path = option(help="Predictions: JSON list, JSONL or CSV with pairID and label.")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreShiftConfig(Configuration):
    """Configuration of `advl score shift`."""

    run: Path = option(help="Run folder that `advl evaluate` has scored on both sets.")
    on: str = option(help="The shifted set, as it was named to `advl evaluate --on`.")
    original: str | None = option(None, help="Set to compare with [default: the one that the dataset's card names].")
