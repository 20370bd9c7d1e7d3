"""The scripts in `examples/` do what they say, as a user types them."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
from real_processes import run_script, start

from advl_pipeline.cache.reader import open_cache
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.runs.names import evaluation_file, is_finished

EXAMPLES = Path(__file__).parents[1] / "examples"


def run_example(path: Path, *arguments: Path, folder: Path) -> str:
    """Run a script in a folder, in a process of its own; return what it prints."""
    running = start(run_script, path, list(map(str, arguments)), folder)
    assert running.wait() == 0, running.messages()
    return running.printed()


def test_every_example_is_run_by_a_test() -> None:
    tests = [path.read_text(encoding="utf-8") for path in Path(__file__).parent.rglob("test_*.py")]
    scripts = [*EXAMPLES.glob("*.py"), *EXAMPLES.glob("*.ipynb")]
    untested = [path.name for path in scripts if not any(f'"{path.name}"' in text for text in tests)]
    assert not untested


def test_examples_use_the_public_names_alone() -> None:
    for path in [*EXAMPLES.glob("*.py"), *EXAMPLES.glob("*.ipynb")]:
        assert not re.search(r"advl_(?:pipeline\.|cli|data)", path.read_text(encoding="utf-8")), path.name


@pytest.mark.slow
def test_extract_and_train(tmp_path: Path) -> None:
    run_example(EXAMPLES / "extract_and_train.py", tmp_path, folder=tmp_path)
    assert is_finished(tmp_path / "run")
    assert evaluation_file(tmp_path / "run", "val", ".json").is_file()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    """Its cells, in one process and in order."""
    notebook = json.loads((EXAMPLES / "first_steps.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell.get("outputs") for cell in notebook["cells"])
    (tmp_path / "cells.py").write_text("\nprint('-- next cell')\n".join(cells), encoding="utf-8")
    printed = run_example(tmp_path / "cells.py", folder=tmp_path).split("-- next cell\n")
    assert sum(line.startswith("right") for line in printed[1].splitlines()) == 1
    assert len(printed[3].splitlines()) == 3
    assert "raw/" in printed[6]
    assert "choice" in printed[7]
    assert "removed" in printed[7]


@pytest.fixture(scope="module")
def texts(small_corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The texts of the corpus, one a line: what somebody has who made a cache of them."""
    dataset = open_dataset("scenes-vcr", split="train", data_root=small_corpus.data_root)
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n".join(unit.text for unit in dataset.text_units()), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("loop_pytorch.py", "torch"),
        pytest.param("loop_accelerate.py", "accelerate", marks=pytest.mark.slow),
        pytest.param("loop_trainer.py", "transformers", marks=pytest.mark.slow),
        pytest.param("loop_lightning.py", "pytorch_lightning", marks=pytest.mark.slow),
    ],
)
def test_a_loop_of_ones_own_learns_from_a_cache(
    name: str, module: str, small_corpus: Any, texts: Path, tmp_path: Path
) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    assert len((EXAMPLES / name).read_text(encoding="utf-8").splitlines()) <= 30
    printed = run_example(EXAMPLES / name, small_corpus.caches[0], texts, folder=tmp_path)
    losses = [float(value) for value in re.findall(r"loss['\"=:]* *'?([\d.]+)", printed)]
    assert losses[-1] < losses[0]


def test_a_new_teacher_fills_a_cache(small_corpus: Any, tmp_path: Path) -> None:
    run_example(EXAMPLES / "new_teacher.py", small_corpus.data_root, tmp_path / "colours", folder=tmp_path)
    cache = open_cache(tmp_path / "colours")
    assert cache.image is not None
    assert cache.image.global_dim == cache.image.token_dim == 6
    assert cache.teacher_name == "colours"


def test_a_published_set_becomes_data_of_ones_own(tmp_path: Path) -> None:
    pytest.importorskip("easy_vqa")
    run_example(EXAMPLES / "convert_easy_vqa.py", tmp_path, Path("8"), folder=tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "easy-vqa.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row["split"] for row in rows} == {"train", "test"}
    assert all((tmp_path / row["image"]).is_file() and row["answer"] for row in rows)
