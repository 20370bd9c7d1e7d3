"""VQA v2 and its reshuffles: one question, ten annotators, an answer vocabulary.

The reader is a generator of rows: it streams the large JSON files once, and nothing is parsed again. A split may be
a part of its files: by published lists of ids, or by the held-out share of VQA-CP's train.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from advl_pipeline.base.errors import DatasetError
from advl_pipeline.datasets.index import Index
from advl_pipeline.datasets.problems import Malformed
from advl_pipeline.datasets.roots import require_there
from advl_pipeline.datasets.row_files import json_items, parse_json_file
from advl_pipeline.datasets.rows import Item, Row, RowSource
from advl_pipeline.datasets.vqa_answers import (
    ANSWER_TYPES,
    GroundTruth,
    build_vocabulary,
    parse_annotation,
    whole_number,
)

EITHER_FOLDER = "trainval2014"
_FOLDERS = ("train2014", "val2014")

HELD_OUT_SHARE = 0.05
"""Share of VQA-CP's training pictures whose questions become `val`, as the benchmark has no validation split."""

Part = tuple[Index, npt.NDArray[np.int64] | None]
"""Questions of a split: the index of its files, and the rows that belong to it, None for all."""


def vqa_source(questions: Path, annotations: Path | None = None, *, subtype: str | None, pictures: Path) -> RowSource:
    """Return the questions of a split, with their annotations if they are public.

    Args:
        subtype: name of the picture folder ("train2014"); None if every item names its folder in `coco_split`
            (VQA-CP); `EITHER_FOLDER` if none is named (VQA-VS) and the picture is in train2014 or in val2014.
        pictures: folder that contains `train2014/` and the others.
    """
    return RowSource(
        rows=lambda: _rows(questions, annotations, subtype),
        pictures=pictures,
        files=(questions,) if annotations is None else (questions, annotations),
        version=f"vqa {subtype}",
        kind="answers",
    )


def locate_picture(pictures: Path, name: str) -> str:
    """Return the name of a picture's file for an item that does not name the folder."""
    if not name.startswith(EITHER_FOLDER):
        return name
    # COCO numbers its pictures across both folders, so at most one of these files exists.
    names = [name.replace(EITHER_FOLDER, folder) for folder in _FOLDERS]
    return next((name for name in names if (pictures / name).is_file()), names[0])


def kept_rows(index: Index, folder: Path, dataset: str, facts: Mapping[str, Any]) -> npt.NDArray[np.int64] | None:
    """Return the rows of the files that belong to a split, None for all.

    Args:
        index: index of the files that the split is a part of.
        folder: lists of ids are relative to it.
        dataset: name for error messages.
        facts: facts of the split: `ids` (files with the ids to keep), `without_ids` (files with the ids to drop),
            or `holdout` ("held" for the questions of the held-out pictures, "rest" for the others).

    Raises:
        DatasetError: a list is missing or malformed.
    """
    if "holdout" in facts:
        # Pictures are held out with all their questions, by a hash of their names: none is on both sides.
        names = (index.picture(image).name.encode() for image in range(len(index.file.texts("image"))))
        draws = (hashlib.blake2b(name, digest_size=8).digest() for name in names)
        held = np.array([int.from_bytes(draw, "big") < HELD_OUT_SHARE * 2**64 for draw in draws], dtype=bool)
        return np.flatnonzero(held[index.file.numbers("image")] == (facts["holdout"] == "held"))
    lists = facts.get("ids") or facts.get("without_ids")
    if lists is None:
        return None
    files = [require_there(folder / name, dataset=dataset) for name in lists]
    listed = [name for file in files for name in parse_json_file(file, "The list of question ids", _question_ids)]
    return np.flatnonzero(index.file.is_in("id", listed) == ("ids" in facts))


def _question_ids(value: Any) -> list[str]:
    ids = [item["question_id"] if isinstance(item, dict) else item for item in value]
    if not isinstance(value, list) or not all(type(item) is int for item in ids):
        raise ValueError("expected a JSON list of ids, or of objects with a question_id")
    return [str(item) for item in ids]


def vocabulary_of(parts: Sequence[Part], *, min_occurrences: int, where: str) -> tuple[str, ...]:
    """Build the answer vocabulary of the annotations of several splits.

    Args:
        parts: the splits.
        min_occurrences: minimum number of questions with an answer as their most common one.
        where: location for error messages.

    Raises:
        DatasetError: no answer occurs often enough.
    """
    counts = chain.from_iterable(
        index.label_counts(slice(None) if rows is None else rows).items() for index, rows in parts
    )
    vocabulary = build_vocabulary(counts, min_occurrences=min_occurrences)
    if not vocabulary:
        raise DatasetError(
            "The annotations give no answer vocabulary.",
            where=where,
            why=f"no answer is the most common one of {min_occurrences} questions or more",
            next_command="give a list of answers: --answers FILE (JSON)",
        )
    return vocabulary


def _rows(questions: Path, annotations: Path | None, subtype: str | None) -> Iterator[Row]:
    asked: dict[int, tuple[int, str, str]] = {}
    for line, item in json_items(questions, "questions"):
        try:
            question_id, image, question = _question(item, subtype)
            if question_id in asked:
                raise Malformed(f"question_id {question_id} occurs twice")
            asked[question_id] = (line, image, question)
        except Malformed as error:
            yield Row(error, name="", file=str(questions), line=line)
    truths: dict[int, tuple[str, GroundTruth]] = {}
    for line, item in json_items(annotations, "annotations") if annotations else ():
        try:
            question_id, most_common, truth = parse_annotation(item)
            if question_id in truths:
                raise Malformed(f"question_id {question_id} occurs twice")
            if question_id not in asked:
                raise Malformed(f"question_id {question_id} has no question")
            truths[question_id] = (most_common, truth)
        except Malformed as error:
            yield Row(error, name="", file=str(annotations), line=line)
    for question_id, (line, image, question) in asked.items():
        row: Item | Malformed
        try:
            if annotations and question_id not in truths:
                raise Malformed(f"question_id {question_id} has no annotation")
            label, truth = truths.get(question_id, (None, GroundTruth("", "", (), ())))
            row = Item(
                item_id=str(question_id),
                image=image,
                texts=(question,),
                label=label,
                answers=truth.answers,
                entries=truth.entries,
                stratum=truth.question_type,
                cell=ANSWER_TYPES.index(truth.answer_type) if annotations else -1,
            )
            "".join((question, label or "", truth.question_type, *truth.answers)).encode()
        except UnicodeEncodeError:
            # JSON escapes may encode half of a surrogate pair.
            row = Malformed("a text holds half of a surrogate pair")
        except Malformed as error:
            row = error
        yield Row(row, name=str(question_id), file=str(questions), line=line)


def _question(item: Any, subtype: str | None) -> tuple[int, str, str]:
    """Return the id of a question, the name of its picture below the COCO folder, and its text."""
    if not isinstance(item, dict):
        raise Malformed("a question is not an object")
    question, folder = item.get("question"), subtype or item.get("coco_split")
    if not isinstance(question, str) or not question.strip():
        raise Malformed("field 'question' is missing or not a text")
    if subtype is None and folder not in _FOLDERS:
        raise Malformed(f"field 'coco_split' is {folder!r}, not train2014 or val2014")
    question_id, image_id = whole_number(item, "question_id"), whole_number(item, "image_id")
    return question_id, f"{folder}/COCO_{folder}_{image_id:012d}.jpg", question
