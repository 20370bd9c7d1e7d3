"""VQA v2 and its reshuffles: one question, ten annotators, an answer vocabulary.

A generator of rows: the large JSON files are streamed once, and nothing of them is parsed again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from advl_pipeline.datasets.arrow_file import is_member
from advl_pipeline.datasets.boxes import PictureBoxes, boxes_of, read_box_file
from advl_pipeline.datasets.index import Index
from advl_pipeline.datasets.indexed import Reading, Variant
from advl_pipeline.datasets.json_stream import JsonItems, read_text
from advl_pipeline.datasets.problems import Malformed
from advl_pipeline.datasets.rows import Item, Row, RowSource
from advl_pipeline.datasets.vqa_answers import (
    ANSWER_TYPES,
    GroundTruth,
    answer_scores,
    build_vocabulary,
    parse_annotation,
    read_vocabulary,
    whole_number,
)
from advl_pipeline.errors import DatasetError

EITHER_FOLDER = "trainval2014"
_FOLDERS = ("train2014", "val2014")


@dataclass(frozen=True, kw_only=True, slots=True)
class VqaFiles:
    """Files of a split.

    `subtype` names the picture folder ("train2014"); None where every item names its own in `coco_split` (VQA-CP);
    `EITHER_FOLDER` where nothing does (VQA-VS) and the picture lies in train2014 or in val2014.
    """

    questions: Path
    annotations: Path | None
    subtype: str | None


def coco_image_name(subtype: str, image_id: int) -> str:
    """Return a picture's name below the folder of the COCO pictures."""
    return f"{subtype}/COCO_{subtype}_{image_id:012d}.jpg"


def vqa_source(
    files: VqaFiles,
    *,
    dataset: str,
    pictures: Path,
    boxes: Path | None = None,
) -> RowSource:
    """Return the questions of a split, with their annotations where they are public.

    Args:
        dataset: named in errors.
        pictures: folder that holds `train2014/` and its like.
        boxes: file of the pictures' boxes, which some corpora in this format have.
    """
    return RowSource(
        rows=lambda: _rows(files, dataset, boxes),
        pictures=pictures,
        files=tuple(path for path in (files.questions, files.annotations, boxes) if path is not None),
        version=f"vqa {files.subtype}",
        kind="answers",
    )


def vqa_reading(vocabulary: Callable[[], tuple[str, ...]]) -> Reading:
    """Return how questions become examples; `vocabulary` is called once when answers are needed."""
    return Reading(variants=(Variant("vqa", "answer"),), classes=vocabulary, scores=answer_scores, locate=_locate)


def _locate(pictures: Path, name: str) -> str:
    if not name.startswith(EITHER_FOLDER):
        return name
    # COCO numbers its pictures across both folders, so that at most one of these files exists.
    names = [name.replace(EITHER_FOLDER, folder) for folder in _FOLDERS]
    return next((name for name in names if (pictures / name).is_file()), names[0])


def vocabulary_or(
    given: Path | tuple[str, ...] | None, built: Callable[[], tuple[str, ...]]
) -> Callable[[], tuple[str, ...]]:
    """Return what gives the vocabulary: the one that is given, as a list or a file, else the one that is built."""
    if given is None:
        return built
    return lambda: read_vocabulary(given) if isinstance(given, Path) else given


def rows_kept(index: Index, keep: Collection[str]) -> npt.NDArray[np.int64]:
    """Return the rows whose ids are among those that are kept."""
    return np.flatnonzero(is_member(index.file.texts("id"), list(keep))).astype(np.int64)


def most_common_answers(index: Index, keep: Collection[str] | None = None) -> list[tuple[str, int]]:
    """Return (raw `multiple_choice_answer`, number of questions) of an index, for `vqa_answers.build_vocabulary`.

    Args:
        keep: question ids that are counted, None for all.
    """
    codes = index.file.numbers("label")
    if keep is not None:
        codes = codes[rows_kept(index, keep)]
    counts = np.bincount(codes[codes >= 0])
    answers = index.file.names("label_name")
    return [(answers[code], int(counts[code])) for code in np.flatnonzero(counts).tolist()]


def vocabulary_of(
    splits: Sequence[tuple[Index, Collection[str] | None]], *, min_occurrences: int, where: str
) -> tuple[str, ...]:
    """Build the answer vocabulary of the annotations of several splits.

    Args:
        splits: their indices, and the question ids that each keeps (None for all).
        min_occurrences: questions that an answer must be the most common one of.
        where: named in errors.

    Raises:
        DatasetError: no answer occurs often enough.
    """
    counts = [pair for index, keep in splits for pair in most_common_answers(index, keep)]
    answers = build_vocabulary(counts, min_occurrences=min_occurrences)
    if not answers:
        raise DatasetError(
            "The annotations give no answer vocabulary.",
            where=where,
            why=f"no answer is the most common one of {min_occurrences} questions or more",
            next_command="give a list of answers: --answers FILE (JSON)",
        )
    return answers


def _rows(files: VqaFiles, dataset: str, boxes_file: Path | None) -> Iterator[Row]:
    boxes, problems = read_box_file(boxes_file)
    yield from problems
    asked: dict[int, tuple[int, str, str]] = {}

    def malformed(why: str, file: Path, line: int) -> Row:
        return Row(Malformed(why), name="", file=str(file), line=line)

    for line, item in _items(files.questions, "questions", dataset):
        try:
            question_id, image_id, question = _check_question(item)
            if question_id in asked:
                raise Malformed(f"question_id {question_id} occurs twice")
            folder = files.subtype if files.subtype is not None else _coco_split(item)
            asked[question_id] = (line, coco_image_name(folder, image_id), question)
        except Malformed as error:
            yield malformed(str(error), files.questions, line)
    truths: dict[int, tuple[str, GroundTruth]] = {}
    once: dict[str, str] = {}
    if files.annotations is not None:
        for line, item in _items(files.annotations, "annotations", dataset):
            try:
                question_id, most_common, truth = parse_annotation(item)
                if question_id in truths:
                    raise Malformed(f"question_id {question_id} occurs twice")
                if question_id not in asked:
                    raise Malformed(f"question_id {question_id} has no question")
                # Millions of answers are few texts, each of which is held once.
                answers = tuple(once.setdefault(answer, answer) for answer in map(_sound, truth.answers))
                truths[question_id] = (
                    once.setdefault(_sound(most_common), most_common),
                    GroundTruth(_sound(truth.question_type), truth.answer_type, answers, truth.entries),
                )
            except Malformed as error:
                yield malformed(str(error), files.annotations, line)
    for question_id, (line, image, question) in asked.items():
        if files.annotations is not None and question_id not in truths:
            yield malformed(f"question_id {question_id} has no annotation", files.questions, line)
            continue
        try:
            row: Item | Malformed = _item(question_id, image, question, truths.get(question_id), boxes)
        except Malformed as error:
            row = error
        yield Row(row, name=str(question_id), file=str(files.questions), line=line)


def _item(
    question_id: int,
    image: str,
    question: str,
    told: tuple[str, GroundTruth] | None,
    boxes: Mapping[str, PictureBoxes] | None,
) -> Item:
    most_common, truth = told or (None, None)
    return Item(
        item_id=str(question_id),
        image=image,
        **boxes_of(boxes, image),
        texts=(question,),
        label=most_common,
        answers=truth.answers if truth else (),
        entries=truth.entries if truth else (),
        stratum=truth.question_type if truth else "",
        cell=ANSWER_TYPES.index(truth.answer_type) if truth else -1,
    )


def _items(path: Path, key: str, dataset: str) -> Iterator[tuple[int, Any]]:
    """Yield the items of a list in a JSON file with their lines."""
    text = read_text(path, dataset=dataset)
    line = _LineCounter(text)
    for offset, item in JsonItems(text, path=path, key=key, dataset=dataset):
        yield line.at(offset), item


def _sound(text: str) -> str:
    """Return a text.

    Raises:
        Malformed: JSON escapes in it stand for half a character.
    """
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Malformed("a text holds half of a surrogate pair") from None
    return text


class _LineCounter:
    """Lines of rising character offsets, counted on from the last one."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._offset = 0
        self._line = 1

    def at(self, offset: int) -> int:
        if offset > self._offset:
            self._line += self._text.count("\n", self._offset, offset)
            self._offset = offset
        return self._line


def _check_question(item: Any) -> tuple[int, int, str]:
    if not isinstance(item, dict):
        raise Malformed("a question is not an object")
    question = item.get("question")
    if not isinstance(question, str) or not question.strip():
        raise Malformed("field 'question' is missing or not a text")
    return whole_number(item, "question_id"), whole_number(item, "image_id"), _sound(question)


def _coco_split(item: Mapping[str, Any]) -> str:
    folder = item.get("coco_split")
    if folder not in _FOLDERS:
        raise Malformed(f"field 'coco_split' is {folder!r}, not train2014 or val2014")
    return str(folder)
