"""A corpus of a few pictures, with caches of two real teachers over its VCR questions."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advl_data.scenes.config import ScenesConfig
from advl_data.scenes.generator.build import run_build_scenes
from advl_pipeline.base.configuration import build_config
from advl_pipeline.cache.reader import open_cache
from advl_pipeline.datasets.records import Dataset, Example, Task
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.datasets.words import fit_word_prior
from advl_pipeline.evaluation.config import EvaluateConfig
from advl_pipeline.evaluation.prepare import prepare_scoring
from advl_pipeline.evaluation.runner import run_evaluate
from advl_pipeline.extraction.config import ExtractConfig
from advl_pipeline.extraction.prepare import prepare_extract
from advl_pipeline.extraction.run import run_extract
from advl_pipeline.runs.evaluations import EvaluationDocument
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.facts import finetune_command
from advl_pipeline.training.prepare import prepare_finetune
from advl_pipeline.training.run import FinetuneResult, run_finetune
from advl_pipeline.training.signals.stored_signals import SignalSource
from advl_pipeline.training.signals.teacher_features import cached_teacher

SMALL_WORDS = ("word_size=16",)
"""`--student-option` values: full-width word embeddings are 90% of a small student and most of a short run's time."""


@dataclass(frozen=True)
class SmallCorpus:
    """Paths of the data and the caches, and the configuration of a short run on them."""

    data_root: Path
    caches: tuple[Path, ...]

    def config(self, output: Path, **changes: Any) -> FinetuneConfig:
        """Return the configuration of a six-step run (two of them adapt steps) of a student with `SMALL_WORDS`.

        Args:
            changes: options; a mapping given as a recipe is written to a file, as a user would.
        """
        settings: dict[str, Any] = {
            "dataset": "scenes-vcr",
            "data_root": self.data_root,
            "output": output,
            "method": "advl",
            "cache": self.caches,
            "task": ("vcr-q2a",),
            "num_steps": 4,
            "adapt_steps": 2,
            "adapt_texts": 16,
            "batch_size": 4,
            "confidence_folds": 2,
            # On sixteen questions no AUC differs from chance.
            "confidence_check": "none",
        }
        if not {"student", "init"} & changes.keys():
            settings["student_option"] = SMALL_WORDS
        if isinstance(keys := changes.get("recipe"), Mapping):
            file = output.with_name(f"{output.name}-recipe.toml")
            file.parent.mkdir(parents=True, exist_ok=True)
            tables = sorted(keys.items(), key=lambda entry: isinstance(entry[1], Mapping))
            file.write_text("".join(map(_toml_line, tables)), encoding="utf-8")
            changes |= {"recipe": str(file)}
        return build_config(FinetuneConfig, settings, changes)

    def command(self, output: Path, **changes: Any) -> list[str]:
        """Return the words of `advl finetune` for this configuration."""
        return shlex.split(finetune_command(self.config(output, **changes)))[1:]

    def run(self, output: Path, **changes: Any) -> FinetuneResult:
        """Finetune with the configuration of a short run and these changes."""
        return train(self.config(output, **changes))

    def extract(self, output: Path, *, teacher: str = "minilm-l6", **changes: Any) -> Path:
        """Extract a teacher over the training questions; returns the cache."""
        settings = {
            "dataset": "scenes-vcr",
            "data_root": self.data_root,
            "output": output,
            "confidence_folds": 2,
            **changes,
        }
        run_extract(prepare_extract(ExtractConfig(teacher=teacher, **settings), may_idle=True))
        return output

    def dataset(self, split: str = "train", *, name: str = "scenes-vcr", task: Task = "vcr-q2a") -> Dataset:
        """Open a split, by default the training questions of a short run."""
        return open_dataset(name, split=split, data_root=self.data_root, tasks=(task,))

    def examples(self, split: str = "train", *, number: int | None = None) -> list[Example]:
        """Return the first examples of a split, or all of them."""
        dataset = self.dataset(split)
        return [dataset[index] for index in range(len(dataset) if number is None else number)]

    def evaluate(self, run: Path, **changes: Any) -> dict[str, EvaluationDocument]:
        """Evaluate a run, by default on test; returns the document of each set."""
        config = EvaluateConfig(run=run, data_root=self.data_root, **changes)
        return run_evaluate(prepare_scoring(config, may_idle=True)).sets


def train(config: FinetuneConfig, **options: Any) -> FinetuneResult:
    """Finetune with options that may have no effect, as in a study; `options` are those of `prepare_finetune`."""
    return run_finetune(prepare_finetune(config, may_idle=True, **options))


def signals_of(*caches: Path) -> SignalSource:
    """Return the signals of teachers, given one cache each."""
    return SignalSource([cached_teacher(open_cache(cache)) for cache in caches], prior=fit_word_prior(["a dog"]))


def _toml_line(entry: tuple[str, Any]) -> str:
    key, value = entry
    if isinstance(value, Mapping):
        return f"[{key}]\n" + "".join(map(_toml_line, value.items()))
    return f"{key} = {json.dumps(value)}\n"


def build_small_corpus(folder: Path) -> SmallCorpus:
    """Build the corpus and extract both teachers over its training questions."""
    data_root = folder / "data"
    run_build_scenes(
        ScenesConfig(
            data_root=data_root,
            num_caption_scenes=20,
            num_train=8,
            num_val=4,
            num_test=4,
            num_unseen=4,
            num_compositional=4,
            num_shift_inputs=4,
            workers=1,
        )
    )
    teachers = ("minilm-l6", "efficientnet-lite0")
    corpus = SmallCorpus(data_root=data_root, caches=tuple(folder / teacher for teacher in teachers))
    for teacher in teachers:
        corpus.extract(folder / teacher, teacher=teacher)
    return corpus
