"""Splits that are parts of other splits: published lists of ids, and the part of train that VQA-CP holds out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from advl_pipeline.datasets.index import Index
from advl_pipeline.datasets.indexed import Source
from advl_pipeline.datasets.roots import DatasetMissing, require_file
from advl_pipeline.errors import (
    DatasetError,
    advise,
)

HELD_OUT_SHARE = 0.05
"""Share of VQA-CP's training pictures whose questions become `val`: the benchmark has no validation split."""


def vqa_part(index: Index, folder: Path, dataset: str, facts: Mapping[str, Any]) -> frozenset[str] | None:
    """Return the question ids that a split keeps of its files, None for all.

    Args:
        index: of the files that the split is a part of.
        folder: lists of ids are relative to it.
        dataset: named in errors.
        facts: of the split's card: `ids` (files with the ids to keep), `without_ids` (files with the ids to drop),
            or `holdout` ("held" for the questions of the held-out pictures, "rest" for the others).

    Raises:
        DatasetError: a list is missing or malformed.
    """
    if "ids" in facts:
        return _union(folder, dataset, facts["ids"])
    if "without_ids" not in facts and "holdout" not in facts:
        return None
    ids = index.file.texts("id")[:]
    if "without_ids" in facts:
        return frozenset(ids) - _union(folder, dataset, facts["without_ids"])
    # Whole pictures are held out, chosen by a hash of their names, so that no picture is on both sides.
    images = range(len(index.file.names("image")))
    held = np.array([_is_held_out(index.picture(image).name) for image in images], dtype=bool)
    wanted: npt.NDArray[np.bool_] = held[index.file.numbers("image")] == (facts["holdout"] == "held")
    return frozenset(ids[row] for row in np.flatnonzero(wanted).tolist())


def _union(folder: Path, dataset: str, names: Sequence[str]) -> frozenset[str]:
    paths = [require_file(folder / name, dataset=dataset) for name in names]
    return frozenset().union(*map(_read, paths))


def _read(path: Path) -> frozenset[str]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DatasetError("The list of question ids is not JSON.", where=str(path), why=str(error)) from None
    items: list[Any] = value if isinstance(value, list) else [None]
    ids: list[Any] = [item.get("question_id") if isinstance(item, Mapping) else item for item in items]
    if not all(isinstance(item, int) and not isinstance(item, bool) for item in ids):
        raise DatasetError(
            "The list of question ids is malformed.",
            where=str(path),
            why="expected a JSON list of ids, or of objects with a question_id",
        )
    return frozenset(map(str, ids))


def read_pair_ids(source: Source, name: str) -> frozenset[str]:
    """Read the pair ids of a subset of SNLI-VE, as `advl datasets hard-subset` writes them.

    Raises:
        DatasetError: missing or malformed.
    """
    path = source.folder / name
    if not path.is_file():
        raise DatasetMissing(
            f"The list of pairs of {source.dataset} {source.split} has not been made.",
            where=str(path),
            next_command=advise(
                ["advl", "datasets", "hard-subset", source.dataset, "--split", source.split.removesuffix("-hard")]
            ),
        )
    try:
        return frozenset(str(pair_id) for pair_id in json.loads(path.read_text(encoding="utf-8"))["pair_ids"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        why = f"{type(error).__name__}: {error}"
        raise DatasetError("The list of pairs is malformed.", where=str(path), why=why) from None


def read_pairs(path: Path) -> npt.NDArray[np.int64]:
    """Read VQA v2's complementary pairs: a JSON list of [question_id, question_id].

    Returns:
        (pairs, 2) int64.

    Raises:
        DatasetError: missing or malformed.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError("The list of pairs cannot be read.", where=str(path), why=str(error)) from None
    pairs: list[Any] = value if isinstance(value, list) else [None]
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2 or not all(type(item) is int for item in pair):
            raise DatasetError(
                "The list of pairs is malformed.", where=str(path), why=f"{pair!r} is not [question_id, question_id]"
            )
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def _is_held_out(image_name: str) -> bool:
    digest = hashlib.blake2b(image_name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < HELD_OUT_SHARE * 2**64
