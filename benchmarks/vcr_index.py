"""Time and memory of indexing a synthetic VCR annotation file of the official size (212,923 questions).

    python -m benchmarks.vcr_index [--questions N] [--json]

Bounds: the first opening below 15 s of processor time and 1 GiB of resident memory; every later one, and so every
epoch, parses nothing. A random example, whose picture is known, takes less than 100 microseconds of it.
The file is generated into a temporary folder (about 430 MB) and removed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

from advl_pipeline.training.process_memory import peak_memory_bytes

QUESTIONS = 212_923
QUESTIONS_PER_PICTURE = 2.65
MAX_SECONDS = 15.0
MAX_EXAMPLE_SECONDS = 100e-6
PICTURES = 100
"""Pictures that are there; examples are drawn from the questions about them."""
MAX_BYTES = 1 << 30
_OBJECTS = ["person"] * 5 + ["chair", "bottle", "car", "dog"]
_WORDS = "the person is going to leave because they want some water near an old table and look very angry now".split()


def _picture_name(picture: int) -> str:
    return f"lsmdc_{picture % 97:04d}_SYNTHETIC_MOVIE/{picture:06d}_SYNTHETIC_MOVIE_00.00.00.000@0"


def _write_pictures(folder: Path) -> None:
    metadata = {"names": _OBJECTS, "boxes": [[1, 1, 9, 9, 0.9]] * len(_OBJECTS), "width": 64, "height": 48}
    for picture in range(PICTURES):
        path = folder / f"{_picture_name(picture)}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48), (picture, 0, 0)).save(path)
        path.with_suffix(".json").write_text(json.dumps(metadata))


def write_annotations(path: Path, questions: int, seed: int = 0) -> None:
    """Write questions with the lengths of the real ones: 7 words, answers of 8, rationales of 16, nine objects."""
    rng = random.Random(seed)

    def sentence(mean: int) -> list[Any]:
        words: list[Any] = rng.choices(_WORDS, k=max(2, int(rng.gauss(mean, mean / 3))))
        words[rng.randrange(len(words))] = [rng.randrange(5)]
        return [*words, "."]

    with path.open("w", encoding="utf-8") as file:
        for number in range(questions):
            picture = int(number / QUESTIONS_PER_PICTURE)
            base = _picture_name(picture)
            answers = [sentence(8) for _ in range(4)]
            rationales = [sentence(16) for _ in range(4)]
            record = {
                "movie": "SYNTHETIC_MOVIE",
                "objects": _OBJECTS,
                "interesting_scores": [0],
                "answer_likelihood": "possible",
                "img_fn": f"{base}.jpg",
                "metadata_fn": f"{base}.json",
                "answer_orig": " ".join(map(str, answers[0])),
                "question_orig": "",
                "rationale_orig": " ".join(map(str, rationales[0])),
                "question": ["Why", "is", [1], *sentence(4)],
                "answer_match_iter": [3, 0, 2, 1],
                "answer_sources": [3287, 0, 10184, 2260],
                "answer_choices": answers,
                "answer_label": rng.randrange(4),
                "rationale_choices": rationales,
                "rationale_sources": [0, 5521, 10140, 6281],
                "rationale_match_iter": [1, 2, 3, 0],
                "rationale_label": rng.randrange(4),
                "img_id": f"train-{picture}",
                "question_number": 0,
                "annot_id": f"train-{number}",
                "match_fold": f"train-{number % 11}",
                "match_index": number,
            }
            file.write(json.dumps(record) + "\n")


def measure(root: Path) -> dict[str, float]:
    """Open the split once, in a process of its own; returns seconds and peak memory."""
    from advl_pipeline.datasets.registry import open_dataset

    began, began_cpu = time.perf_counter(), time.process_time()
    dataset = open_dataset("vcr", split="train", data_root=root)
    opened, cpu = time.perf_counter(), time.process_time() - began_cpu
    ids = dataset.example_ids
    listed = time.perf_counter()
    known = range(2 * int(PICTURES * QUESTIONS_PER_PICTURE))
    for position in known:
        _ = dataset[position]
    drawn = random.Random(0).choices(known, k=5000)
    began_drawing = time.process_time()
    for position in drawn:
        _ = dataset[position]
    return {
        "seconds": opened - began,
        "cpu_seconds": cpu,
        "seconds_to_list_ids": listed - opened,
        "example_seconds": (time.process_time() - began_drawing) / len(drawn),
        "peak_bytes": peak_memory_bytes(),
        "num_examples": len(ids),
    }


def measure_vcr_index(questions: int = QUESTIONS) -> dict[str, Any]:
    """Generate the file and measure a first and a second opening."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "vcr").mkdir()
        annotations = root / "vcr" / "train.jsonl"
        write_annotations(annotations, questions)
        _write_pictures(root / "vcr" / "vcr1images")
        size = annotations.stat().st_size
        openings = []
        for _ in range(2):
            with context.Pool(1) as pool:
                openings.append(pool.apply(measure, (root,)))
        index = sum(file.stat().st_size for file in (root / ".index").rglob("*") if file.is_file())
    return {
        "questions": questions,
        "file_bytes": size,
        "index_bytes": index,
        "first": openings[0],
        "second": openings[1],
        "within_bounds": openings[0]["cpu_seconds"] < MAX_SECONDS
        and openings[0]["peak_bytes"] < MAX_BYTES
        and openings[1]["example_seconds"] < MAX_EXAMPLE_SECONDS,
    }


def main() -> int:
    """Print the measurement; exit code 1 when a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=QUESTIONS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = measure_vcr_index(options.questions)
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        first, second = result["first"], result["second"]
        print(f"VCR annotations: {result['questions']:,} questions, {result['file_bytes'] / 1e6:,.0f} MB")
        for name, one in (("first", first), ("second", second)):
            cpu, peak = one["cpu_seconds"], one["peak_bytes"] / 2**20
            print(f"  {name + ' opening':<16}{one['seconds']:6.2f} s ({cpu:.2f} s of CPU), {peak:,.0f} MiB")
            print(f"  random example  {1e6 * one['example_seconds']:6.0f} us of CPU")
        print(f"  index           {result['index_bytes'] / 2**20:,.0f} MiB")
    return 0 if result["within_bounds"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
