"""Mirrors of VCR, VQA v2 and SNLI-VE with as many items as the official downloads, in their layouts.

They are the mirrors of the tests (`tests/support/dataset_mirrors.py`), VCR's texts in the lengths of the real ones.
"""

from __future__ import annotations

import importlib
import random
import sys
from pathlib import Path
from typing import Any

from advl_pipeline.datasets.cards import load_card

SUPPORT = Path(__file__).resolve().parent.parent / "tests" / "support"
_WORDS = "man woman dog bus table red two small old near under holding looking street water chair open yellow".split()
_ANSWERS = tuple(f"answer {number}" for number in range(3_200))


def write_mirror(name: str, root: Path, *, share: float, held_out: int) -> None:
    """Write a dataset's training split at `share` of its official size, and a small split to predict.

    Args:
        name: vcr, vqa-v2 or snli-ve.
        root: folder of the datasets.
        share: 1 for the official number of items.
        held_out: items of the split to predict.
    """
    sys.path.insert(0, str(SUPPORT))
    mirrors = importlib.import_module("dataset_mirrors")
    items = round(load_card(name).split("train")["items"] * share)
    if name == "vqa-v2":
        for split, count in (("train", items), ("val", held_out)):
            mirrors.write_vqa(root, split=split, count=count, answers=_ANSWERS)
    elif name == "snli-ve":
        for split, count in (("train", items), ("test", held_out)):
            mirrors.write_snli_ve(root, name=split, count=count)
    else:
        rng = random.Random(0)
        for split, count in (("train", items), ("val", held_out)):
            records = (mirrors.vcr_record(number, split=split) | _texts(rng) for number in range(count))
            mirrors.write_vcr(root, records, split=split)


def _texts(rng: random.Random) -> dict[str, Any]:
    """Return a question of 7 words with answers of 8 and rationales of 16 on average, each with a tag."""

    def said(mean: int) -> list[Any]:
        words: list[Any] = rng.choices(_WORDS, k=max(2, int(rng.gauss(mean, mean / 3))))
        words[rng.randrange(len(words))] = [rng.randrange(4)]
        return [*words, "."]

    answers, rationales = ([said(mean) for _ in range(4)] for mean in (8, 16))
    return {"question": ["Why", "is", [1], *said(4)], "answer_choices": answers, "rationale_choices": rationales}
