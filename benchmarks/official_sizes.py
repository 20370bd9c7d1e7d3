"""Mirrors of VCR, VQA v2 and SNLI-VE with as many items and pictures as the official downloads, in their layouts.

Texts are made up in the lengths of the real ones; pictures are a few small ones, told apart by their bytes.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from advl_pipeline.datasets.cards import load_card
from benchmarks.vcr_index import write_annotations

SIZE = (64, 48)
_WORDS = "man woman dog bus table red two small old near under holding looking street water chair open yellow".split()
_ANSWERS = tuple(f"answer {number}" for number in range(3_200))
_BOXES = [[x, y, x + 20, y + 15, 0.9] for x, y in ((0, 0), (10, 5), (20, 10), (30, 15), (40, 20))]


def write_mirror(name: str, root: Path, *, share: float, held_out: int) -> None:
    """Write a dataset's training split at `share` of its official size, and a small split to predict.

    Args:
        name: vcr, vqa-v2 or snli-ve.
        root: folder of the datasets.
        share: 1 for the official numbers of items and pictures.
        held_out: items of the split to predict.
    """
    facts = load_card(name).split("train")
    items, pictures = round(facts["items"] * share), max(1, round(facts["pictures"] * share))
    _WRITERS[name](root / name, items, pictures, held_out)


def _write_vcr(folder: Path, items: int, pictures: int, held_out: int) -> None:
    del pictures  # `write_annotations` spreads its questions over as many pictures as the real split.
    folder.mkdir(parents=True)
    write_annotations(folder / "train.jsonl", items)
    write_annotations(folder / "val.jsonl", held_out, seed=1)
    drawn = _pictures()
    for split in ("train", "val"):
        seen: set[str] = set()
        for line in (folder / f"{split}.jsonl").open(encoding="utf-8"):
            record = json.loads(line)
            if record["img_fn"] in seen:
                continue
            seen.add(record["img_fn"])
            picture = folder / "vcr1images" / record["img_fn"]
            picture.parent.mkdir(parents=True, exist_ok=True)
            picture.write_bytes(next(drawn))
            boxes = [_BOXES[number % len(_BOXES)] for number in range(len(record["objects"]))]
            facts = {"names": record["objects"], "boxes": boxes, "segms": [[] for _ in boxes]}
            size = {"width": SIZE[0], "height": SIZE[1]}
            (folder / "vcr1images" / record["metadata_fn"]).write_text(json.dumps(facts | size), encoding="utf-8")


def _write_vqa(folder: Path, items: int, pictures: int, held_out: int) -> None:
    rng, drawn = random.Random(0), _pictures()
    for subtype, count, number_of_pictures in (
        ("train2014", items, pictures),
        ("val2014", held_out, max(1, held_out // 5)),
    ):
        (folder / subtype).mkdir(parents=True)
        for image in range(number_of_pictures):
            (folder / subtype / f"COCO_{subtype}_{image:012d}.jpg").write_bytes(next(drawn))
        asked = [(number % number_of_pictures, number // number_of_pictures) for number in range(count)]
        questions = (
            {"image_id": image, "question": _sentence(rng, 6) + "?", "question_id": image * 1000 + place}
            for image, place in asked
        )
        answered = (_vqa_annotation(rng, image, place) for image, place in asked)
        _write_wrapped(folder / f"v2_OpenEnded_mscoco_{subtype}_questions.json", "questions", questions, subtype)
        _write_wrapped(folder / f"v2_mscoco_{subtype}_annotations.json", "annotations", answered, subtype)


def _vqa_annotation(rng: random.Random, image: int, place: int) -> dict[str, Any]:
    # As skewed as real answers: the most frequent one is right for a tenth of the questions.
    main = _ANSWERS[min(int(rng.paretovariate(0.5)) - 1, len(_ANSWERS) - 1)]
    given = [main] * 7 + [_ANSWERS[0]] * 3
    return {
        "question_id": image * 1000 + place,
        "image_id": image,
        "question_type": rng.choice(("what is the", "how many", "is the", "none of the above")),
        "answer_type": rng.choice(("yes/no", "number", "other")),
        "multiple_choice_answer": main,
        "answers": [
            {"answer": answer, "answer_confidence": "yes", "answer_id": person}
            for person, answer in enumerate(given, start=1)
        ],
    }


def _write_snli_ve(folder: Path, items: int, pictures: int, held_out: int) -> None:
    rng, drawn = random.Random(0), _pictures()
    (folder / "flickr30k_images").mkdir(parents=True)
    for place in range(pictures):
        (folder / "flickr30k_images" / f"{1_000_000 + place}.jpg").write_bytes(next(drawn))
    for split, count in (("train", items), ("test", held_out)):
        with (folder / f"snli_ve_{split}.jsonl").open("w", encoding="utf-8") as file:
            for number in range(count):
                image = f"{1_000_000 + number % pictures}"
                record = {
                    "Flickr30K_ID": image,
                    "annotator_labels": ["neutral"],
                    "captionID": f"{image}.jpg#{number % 5}",
                    "gold_label": ("entailment", "neutral", "contradiction")[number % 3],
                    "pairID": f"{image}.jpg#{number}r1n",
                    "sentence1": "",
                    "sentence2": _sentence(rng, 7) + ".",
                }
                file.write(json.dumps(record) + "\n")


_WRITERS: Mapping[str, Callable[[Path, int, int, int], None]] = {
    "vcr": _write_vcr,
    "vqa-v2": _write_vqa,
    "snli-ve": _write_snli_ve,
}


def _pictures() -> Iterator[bytes]:
    """Yield small pictures; bytes after the end of one make it another."""
    shades = []
    for shade in range(16):
        buffer = io.BytesIO()
        Image.new("RGB", SIZE, (shade * 16, 255 - shade * 16, 128)).save(buffer, "JPEG")
        shades.append(buffer.getvalue())
    number = 0
    while True:
        yield shades[number % len(shades)] + number.to_bytes(8, "big")
        number += 1


def _sentence(rng: random.Random, mean: int) -> str:
    return " ".join(rng.choices(_WORDS, k=max(2, int(rng.gauss(mean, mean / 3)))))


def _write_wrapped(path: Path, key: str, items: Iterable[Mapping[str, Any]], subtype: str) -> None:
    """Write one JSON object around a list, as VQA's files are, item by item."""
    head = {"info": {"year": 2017, "version": "2.0"}, "data_type": "mscoco", "data_subtype": subtype}
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps(head)[:-1] + f', "{key}": [')
        for number, item in enumerate(items):
            file.write(("," if number else "") + json.dumps(item))
        file.write("]}")
