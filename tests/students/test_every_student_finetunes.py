"""Every student goes through the method from end to end at a tiny size: real pictures, caches, a run folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_corpus import SmallCorpus, build_small_corpus

from advl_pipeline.students.recipe_choice import choose_recipe
from advl_pipeline.students.registry import build_student, student_names
from advl_pipeline.training.run import run_finetune

TINY = [name for name in student_names() if name.endswith("-tiny")]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> SmallCorpus:
    return build_small_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_the_method_runs_on(name: str, corpus: SmallCorpus, tmp_path: Path) -> None:
    recipe = choose_recipe(name, "vcr", "auto").recipe
    result = run_finetune(
        corpus.config(
            tmp_path / "run",
            student=name,
            task=(),
            num_steps=4,
            adapt_fraction=0.5,
            # Where its authors finetuned it on VCR, batches are theirs too.
            batch_size=2 if recipe is None else None,
        )
    )
    assert result.summary["status"] == "done"
    written = json.loads((tmp_path / "run" / "settings.json").read_text(encoding="utf-8"))["settings"]
    expected = ("softmax-choice", "adamw") if recipe is None else (recipe.loss, recipe.optimiser)
    assert (written["task_loss"]["value"], written["optimiser"]["value"]) == expected
    assert bool(written["adversarial"]["value"]) == (name == "villa-tiny")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    logged = [json.loads(line) for line in lines]
    assert {entry["phase"] for entry in logged} == {"adapt", "finetune"}
    assert all(key in logged[-1] for key in ("raw/task", "raw/vision", "raw/text"))
    assert build_student(name, weights=tmp_path / "run").name == name
