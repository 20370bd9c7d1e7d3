"""The public sets of the README in the files that their repositories hold: names, page, columns, pictures.

Rows are made up. Pictures are JPEG of varied modes (grey, CMYK, turned by EXIF), as those of COCO are.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, List, Value
from PIL import Image, ImageDraw

COLOURS = ("red", "blue", "green", "yellow")
TEXT, WHOLE, PICTURE = Value("string"), Value("int64"), datasets.Image()
GROUP_ROWS = 8

Files = dict[str, bytes]


def jpeg(number: int) -> bytes:
    """Return a small photograph's file; numbers tell apart size, mode and orientation."""
    image = Image.new("RGB", (40 + number % 7, 30 + number % 5), COLOURS[number % 4])
    ImageDraw.Draw(image).rectangle((number % 20, 4, number % 20 + 9, 20), fill="white")
    file, exif = io.BytesIO(), Image.Exif()
    if number % 6 == 0:
        exif[0x0112] = 6
    image.convert(("RGB", "L", "RGB", "CMYK")[number // 4 % 4]).save(file, "JPEG", exif=exif)
    return file.getvalue()


def parquet(rows: Sequence[Mapping[str, Any]], features: Mapping[str, Any]) -> bytes:
    """Return a Parquet file as `push_to_hub` writes it."""
    file = io.BytesIO()
    schema = Features(features).arrow_schema
    pq.write_table(pa.Table.from_pylist([*rows], schema=schema), file, row_group_size=GROUP_ROWS)
    return file.getvalue()


def pictured(number: int, name: str | None = None) -> dict[str, Any]:
    """Return a picture as the library stores it in a table."""
    return {"bytes": jpeg(number), "path": name}


def aokvqa() -> Files:
    """Return the files of HuggingFaceM4/A-OKVQA: train in two, whose names end in the digests of older writers."""
    features = {
        "image": PICTURE, "question_id": TEXT, "question": TEXT, "choices": List(TEXT),
        "correct_choice_idx": Value("int8"), "direct_answers": TEXT, "difficult_direct_answer": Value("bool"),
        "rationales": List(TEXT),
    }  # fmt: skip

    def rows(split: str, numbers: range) -> Iterator[dict[str, Any]]:
        for number in numbers:
            right = {
                "correct_choice_idx": number % 4,
                "direct_answers": repr(
                    ["ride", "ride", "bus", "taxi", "it's a cab", "bus", "cab", "cab", "cab", "bus"]
                ),
                "rationales": ["A train would not be on the street.", "He waits.", "So."],
            }
            yield {
                "image": pictured(number),
                "question_id": f"22MexNkBPpdZGX6sxbx{number:04}",
                "question": f"What is the man by the {COLOURS[number % 4]} bags #{number} waiting for?",
                "choices": ["skateboarder", "train", "delivery", "cab"],
                "difficult_direct_answer": number % 3 == 0,
                **(dict.fromkeys(right) | {"rationales": []} if split == "test" else right),
            }

    names = {
        "train-00000-of-00002-c1d24e3bacb870e1": ("train", range(24)),
        "train-00001-of-00002-6b4f3abe2dc385d0": ("train", range(24, 48)),
        "validation-00000-of-00001-b2bd0de231b6326a": ("validation", range(48, 60)),
        "test-00000-of-00001-d306bf3ad53b6618": ("test", range(60, 72)),
    }
    page = "".join(f"  - name: {name}\n    num_examples: {count}\n" for name, count in (("train", 48), ("test", 12)))
    return {
        "README.md": f"---\ndataset_info:\n  splits:\n{page}---\n# Dataset Card for A-OKVQA\n".encode(),
        **{
            f"data/{name}.parquet": parquet([*rows(split, numbers)], features)
            for name, (split, numbers) in names.items()
        },
    }


def cv_bench() -> Files:
    """Return the files of nyu-visionx/CV-Bench: one a dimension, a page that says so, and what is read by nobody."""
    features = {
        "idx": WHOLE, "type": TEXT, "task": TEXT, "image": PICTURE, "question": TEXT, "choices": List(TEXT),
        "answer": TEXT, "prompt": TEXT, "filename": TEXT, "source": TEXT, "source_dataset": TEXT,
        "source_filename": TEXT, "target_class": TEXT, "target_size": WHOLE, "bbox": List(List(Value("float64"))),
    }  # fmt: skip
    kinds = {"2D": (("Count", "ADE20K"), ("Relation", "COCO")), "3D": (("Depth", "Omni3D"), ("Distance", "Omni3D"))}
    files: Files = {}
    number = 0
    for kind, tasks in kinds.items():
        rows: list[dict[str, Any]] = []
        for task, source in tasks:
            for _ in range(6):
                choices = [str(count) for count in range(2 + number % 4)] if task == "Count" else ["left", "right"]
                rows.append(
                    {
                        "idx": number,
                        "type": kind,
                        "task": task,
                        "image": pictured(number, f"{number}.png"),
                        "question": f"Which of the {COLOURS[number % 4]} things is it?",
                        "choices": choices,
                        "answer": f"({'ABCDEF'[number % len(choices)]})",
                        "source": source,
                        "prompt": "Which is it? Select from the following choices.",
                        "filename": f"img/{number}.png",
                        "source_dataset": f"{source} Validation Set",
                        "source_filename": f"{number:08}.jpg",
                        "bbox": None if kind == "2D" else [[1.0, 2.0, 30.0, 40.0]],
                    }
                )
                number += 1
        files[f"test_{kind.lower()}.parquet"] = parquet(rows, features)
    page = "".join(
        f'- config_name: {name}\n  data_files:\n  - split: test\n    path: "{path}"\n'
        for name, path in (("default", "test*.parquet"), ("2D", "test_2d.parquet"), ("3D", "test_3d.parquet"))
    )
    others = {"img/2D/count/0.png": jpeg(0), "evaluate.py": b"raise SystemExit('nobody runs this')\n"}
    return files | others | {"README.md": f"---\nlicense: apache-2.0\nconfigs:\n{page}---\n# CV-Bench\n".encode()}


def pope() -> Files:
    """Return the files of lmms-lab/POPE: the default configuration, and one with a split a category."""
    texts = ("id", "question_id", "question", "answer", "image_source", "category")
    features = {**dict.fromkeys(texts, TEXT), "image": PICTURE}
    files: Files = {}
    whole: list[dict[str, Any]] = []
    for category in ("adversarial", "popular", "random"):
        part = [
            {
                "id": str(number),
                "question_id": str(number + 1),
                "answer": ("yes", "no")[number % 2],
                "question": f"Is there a {COLOURS[number % 4]} car in the image?",
                "category": category,
                "image": pictured(number // 6, f"COCO_val2014_{number // 6:012}.jpg"),
                "image_source": f"COCO_val2014_{number // 6:012}",
            }
            for number in range(12)
        ]
        files[f"Full/{category}-00000-of-00001.parquet"] = parquet(part, features)
        whole += part
    page = "configs:\n- config_name: Full\n  data_files:\n"
    page += "".join(f"  - split: {name}\n    path: Full/{name}-*\n" for name in ("adversarial", "popular", "random"))
    page += "- config_name: default\n  data_files:\n  - split: test\n    path: data/test-*\n"
    return files | {
        "data/test-00000-of-00001.parquet": parquet(whole, features),
        "README.md": f"---\n{page}---\n".encode(),
    }


PUBLISHED: Mapping[str, Files] = {
    "datasets/HuggingFaceM4/A-OKVQA": aokvqa(),
    "datasets/nyu-visionx/CV-Bench": cv_bench(),
    "datasets/lmms-lab/POPE": pope(),
}
