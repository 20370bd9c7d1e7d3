"""The scripts in `examples/` do what they say, as a user types them."""

from __future__ import annotations

import importlib.util
import json
import re
import runpy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from own_rows import write_json_lines
from PIL import Image
from real_processes import run_script, start
from tiny_chat_models import write_tiny
from tiny_extraction import tiny_extract

from advl_pipeline.cache.reader import open_cache
from advl_pipeline.datasets.records import text_unit_id
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.runs.names import is_finished

EXAMPLES = Path(__file__).parents[1] / "examples"


def run_example(path: Path, *arguments: Path | str, folder: Path) -> str:
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


LOOPS = {
    "loop_pytorch.py": "torch",
    "loop_accelerate.py": "accelerate",
    "loop_trainer.py": "transformers",
    "loop_lightning.py": "pytorch_lightning",
    "loop_trl.py": "trl",
}
"""Loops of one's own, and the module that each needs."""


def agreed(printed: str, when: str) -> float:
    """Return how often the student picks the teacher's word for a text, or for a word if no word is known."""
    shares = re.search(
        rf"^{when}: .*?'words': \{{'share': ([\d.]+).*?'texts': (?:None|\{{'share': ([\d.]+))", printed, re.M
    )
    assert shares is not None
    return float(shares[2] or shares[1])


@pytest.mark.parametrize(
    "name", [name if name == "loop_pytorch.py" else pytest.param(name, marks=pytest.mark.slow) for name in LOOPS]
)
def test_a_loop_of_ones_own_learns_from_a_cache(name: str, small_corpus: Any, texts: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec(LOOPS[name]) is None:
        pytest.skip(f"{LOOPS[name]} is not installed")
    source = (EXAMPLES / name).read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 60
    given: list[Path] = [texts]
    if name == "loop_trl.py":
        asked = [text.rpartition(" ? ") for text in texts.read_text(encoding="utf-8").splitlines()]
        rows = [
            {"image": "pictures/red.png", "question": f"{question} ?", "answer": answer}
            for question, _, answer in asked
        ]
        write_tiny("smolvlm", tmp_path / "model")
        given = [write_json_lines(tmp_path / "rows.jsonl", rows), tmp_path / "model"]
    printed = run_example(EXAMPLES / name, small_corpus.caches[0], *given, folder=tmp_path)
    losses = [float(value) for value in re.findall(r"loss['\"=:]* *'?([\d.]+)", printed)]
    assert losses[-1] < losses[0]
    if "RelationalDistillation" in source:
        least = 0.4 if name == "loop_pytorch.py" else 0.05
        assert agreed(printed, "after") > agreed(printed, "before") + least


def test_a_loop_of_ones_own_learns_nothing_from_shuffled_teachers(
    small_corpus: Any, texts: Path, tmp_path: Path
) -> None:
    printed = run_example(EXAMPLES / "loop_pytorch.py", small_corpus.caches[0], texts, "shuffled", folder=tmp_path)
    assert agreed(printed, "after") < agreed(printed, "before") + 0.2


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_cache_is_read_in_fifty_lines_without_this_project(tmp_path: Path, dtype: str) -> None:
    script = EXAMPLES / "read_cache.py"
    source = script.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 50
    assert "advl_pipeline" not in source
    tiny_extract(tmp_path / "data", tmp_path / "cache", dtype=dtype)
    printed = run_example(script, tmp_path / "cache", folder=tmp_path)
    example = runpy.run_path(str(script), run_name="example")
    complete = example["open_whole"](tmp_path / "cache")
    cache = open_cache(tmp_path / "cache")
    for modality, store in cache.stores().items():
        assert f"{modality} {len(store)} units" in printed
        features = example["Features"](tmp_path / "cache", modality, complete)
        assert sorted(features.row_of) == sorted(store.ids)
        for unit_id in store.ids:
            np.testing.assert_array_equal(features.vector(unit_id), store.global_features([unit_id])[0])
            np.testing.assert_array_equal(features.tokens(unit_id), store.token_features([unit_id])[0])
    (tmp_path / "cache" / "records" / "complete.json").unlink()
    with pytest.raises(SystemExit, match="is no finished cache"):
        example["open_whole"](tmp_path / "cache")


def test_a_cache_becomes_the_label_column_of_a_distillation(small_corpus: Any, texts: Path, tmp_path: Path) -> None:
    """The columns that sentence-transformers' trainer reads; the library is not here, and training is not tried."""
    output = tmp_path / "labels.parquet"
    run_example(EXAMPLES / "label_column.py", small_corpus.caches[0], texts, output, folder=tmp_path)
    table = pq.read_table(output)
    cache, sentences = open_cache(small_corpus.caches[0]), table["sentence"].to_pylist()
    assert sentences == texts.read_text(encoding="utf-8").splitlines()
    assert table.column_names == ["sentence", "label"]
    assert cache.text is not None
    expected = cache.text.global_features(list(map(text_unit_id, sentences)))
    np.testing.assert_array_equal(np.array(table["label"].to_pylist(), dtype=np.float32), expected.astype(np.float32))


def test_a_new_teacher_fills_a_cache(small_corpus: Any, tmp_path: Path) -> None:
    run_example(EXAMPLES / "new_teacher.py", small_corpus.data_root, tmp_path / "colours", folder=tmp_path)
    cache = open_cache(tmp_path / "colours")
    assert cache.image is not None
    assert cache.image.global_dim == cache.image.token_dim == 6
    assert cache.teacher_name == "colours"


EASY_VQA = """
import pathlib
ASKED = [("what color is the shape?", "red"), ("is there a blue shape?", "no")] * 10
def get_train_questions():
    return [text for text, _ in ASKED], [answer for _, answer in ASKED], [n // 2 for n in range(20)]
def get_test_questions():
    return tuple(column[:4] for column in get_train_questions())
def get_train_image_paths():
    return {n: str(pathlib.Path("drawn.png").resolve()) for n in range(10)}
get_test_image_paths = get_train_image_paths
"""
"""What the package gives, in its own form, of one picture."""


@pytest.mark.slow
def test_easy_vqa_is_learned_and_scored_by_one_command(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "drawn.png")
    arguments = (tmp_path / "made", "10", "0.5")
    if importlib.util.find_spec("easy_vqa") is None:
        (tmp_path / "easy_vqa.py").write_text(EASY_VQA, encoding="utf-8")
    # Beside the stand-in for the package.
    script = Path(shutil.copy(EXAMPLES / "learn_easy_vqa.py", tmp_path))
    printed = run_example(script, *arguments, folder=tmp_path)
    assert re.search(r"^\d+ questions of test, \d+ s in all$", printed, re.M)
    rows = [json.loads(line) for line in (tmp_path / "made/easy-vqa.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row["split"] for row in rows} == {"train", "val", "test"}
    assert is_finished(tmp_path / "made/run")


@pytest.mark.slow
def test_a_probe_answers_choices_and_open_questions_of_people(tmp_path: Path) -> None:
    """Of files in the form of DAQUAR and of Flickr8k."""
    daquar = tmp_path / "datasets/daquar"
    flickr = tmp_path / "datasets/flickr-captions"
    for folder, name in ((daquar, "image{}.png"), (flickr, "{}.jpg")):
        (folder / "images").mkdir(parents=True)
        for number in range(20):
            Image.new("RGB", (32, 24), (12 * number, 90, 30)).save(folder / "images" / name.format(number))
    for split, numbers in (("train", range(10)), ("test", range(10, 20))):
        asked = [
            f"what is on the table in the image{number} ?\n{('cup', 'lamp')[number % 2]}\n" for number in numbers
        ]
        (daquar / f"qa.894.raw.{split}.txt").write_text("".join(asked), encoding="utf-8")
    said = [f"{number}.jpg,Number {number} is {word} ." for number in range(20) for word in ("dark", "plain")]
    (flickr / "captions.txt").write_text("\n".join(["image,caption", *said]), encoding="utf-8")
    for name, shots, number in (("daquar", "4", 10), ("flickr-captions", "6", 8)):
        printed = run_example(EXAMPLES / "probe.py", name, "--shots", shots, folder=tmp_path)
        assert re.search(rf"^[\d.]+ % of {number} questions of test$", printed, re.M)
        (cache,) = (tmp_path / "caches/minilm-l6" / name).glob("train-*/identity.json")
        assert json.loads(cache.read_text(encoding="utf-8"))["dataset"]["selection"]["num_examples"] == int(shots)


@pytest.mark.slow
def test_nlvr_is_learned_and_scored_by_one_command(tmp_path: Path) -> None:
    """Of files in the form of its repository, where the second test set has no folders of a hundred pictures."""
    for name in ("test", "hidden", "dev"):
        folder = tmp_path / "nlvr" / name / "images" / "0"
        folder.mkdir(parents=True)
        lines = []
        for number in range(8, 12):
            for order in range(6):
                Image.new("RGBA", (40, 10), ("yellow", "black")[number % 2]).save(
                    folder / f"{name}-{number}-0-{order}.png"
                )
            about = {"sentence": "There is a yellow block.", "label": ("true", "false")[number % 2]}
            lines.append(json.dumps(about | {"identifier": f"{number}-0"}))
        (folder.parents[1] / f"{name}.json").write_text("\n".join(lines) + "\n", encoding="utf-8")
    arguments = (tmp_path / "nlvr", tmp_path / "made", "0.5")
    printed = run_example(EXAMPLES / "learn_nlvr.py", *arguments, folder=tmp_path)
    assert "24 drawings of dev" in printed
