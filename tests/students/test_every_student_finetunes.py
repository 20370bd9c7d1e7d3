"""Every student goes through the method from end to end at a tiny size: real pictures, caches, a run folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from advl_pipeline.datasets.scenes.build import run_build_scenes
from advl_pipeline.datasets.scenes.config import ScenesConfig
from advl_pipeline.extraction.config import ExtractConfig
from advl_pipeline.extraction.run import run_extract
from advl_pipeline.students.registry import build_student, student_names
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.run import run_finetune

TINY = [name for name in student_names() if name.endswith("-tiny")]


@dataclass(frozen=True)
class Corpus:
    """A corpus of a few pictures and the caches of two teachers over its VCR questions."""

    data_root: Path
    caches: tuple[Path, ...]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    data_root = folder / "data"
    run_build_scenes(
        ScenesConfig(
            data_root=data_root,
            num_caption_scenes=10,
            num_train=8,
            num_val=4,
            num_test=4,
            num_unseen=4,
            num_compositional=4,
            workers=1,
        )
    )
    caches = []
    for teacher in ("minilm-l6", "efficientnet-lite0"):
        output = folder / teacher
        run_extract(ExtractConfig(teacher=teacher, dataset="scenes-vcr", data_root=data_root, output=output, folds=2))
        caches.append(output)
    return Corpus(data_root=data_root, caches=tuple(caches))


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_the_method_runs_on(name: str, corpus: Corpus, tmp_path: Path) -> None:
    result = run_finetune(
        FinetuneConfig(
            dataset="scenes-vcr",
            data_root=corpus.data_root,
            output=tmp_path / "run",
            student=name,
            method="advl",
            cache=corpus.caches,
            num_steps=4,
            adapt_fraction=0.5,
            batch_size=2,
            confidence_folds=2,
        )
    )
    assert result.summary["status"] == "done"
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    logged = [json.loads(line) for line in lines]
    assert {entry["phase"] for entry in logged} == {"adapt", "finetune"}
    assert all(key in logged[-1] for key in ("raw/task", "raw/vision", "raw/text"))
    assert build_student(name, weights=tmp_path / "run").name == name
