"""VCR: question -> answer and question + answer -> rationale, with object tags that point at boxes.

The annotation file is scanned and checked once into columns; a question's words are parsed from its line when used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from advl_pipeline.datasets.boxes import read_vcr_boxes
from advl_pipeline.datasets.columns import Columns, StringColumn, open_columns, problems_in
from advl_pipeline.datasets.indexed import READER_VERSION, IndexedDataset, Source, Variant
from advl_pipeline.datasets.interface import QuestionTable
from advl_pipeline.datasets.line_files import MappedLines, parse_object, scan_lines, text_field
from advl_pipeline.datasets.problems import Malformed
from advl_pipeline.datasets.records import Candidate, Task
from advl_pipeline.datasets.roots import is_safe_name, require_file
from advl_pipeline.datasets.vcr_text import MASKED_TAG, TextStyle, Tokens, word_candidates

NUM_CHOICES = 4
Conditioning = Literal["right", "all"]
"""Rationales are read given the right answer, or given each of the four answers (the test server's 20 scores)."""

_TYPE_FIELD = "question_type"
"""Field of the built-in corpus alone."""

_WH_WORDS = frozenset({"why", "what", "where", "how", "who", "when", "which", "whose"})
_AUXILIARIES = frozenset(
    "is are was were am do does did can could will would should may might must has have had".split()
)


@dataclass(frozen=True, kw_only=True, slots=True)
class VcrFiles:
    """Annotation file of a split, relative to the dataset folder, and whether its items must have labels."""

    annotations: str
    labelled: bool


class VcrDataset(IndexedDataset):
    """A split of VCR.

    Args:
        source: folders; pictures are relative to `vcr1images`.
        tasks: "vcr-q2a", "vcr-qa2r" or both.
        conditioning: None for "right" where there are labels, "all" elsewhere.

    Raises:
        DatasetError: a missing or malformed file.
    """

    def __init__(
        self,
        source: Source,
        files: VcrFiles,
        *,
        tasks: Sequence[Task],
        text_style: TextStyle,
        conditioning: Conditioning | None = None,
    ) -> None:
        conditioning = conditioning or ("right" if files.labelled else "all")
        super().__init__(source, variants=_variants(tasks, conditioning), text_style=text_style)
        self._style = text_style
        self._path = require_file(source.folder / files.annotations, dataset=source.dataset)
        self._digests = [source.annotation_digest(files.annotations)]
        self._lines = MappedLines(self._path)
        self._last_record: tuple[int, dict[str, Any]] | None = None
        key = {
            "index": "vcr",
            "reader": READER_VERSION,
            "file": self._digests[0].hex(),
            "labelled": files.labelled,
            "strata": _TYPE_FIELD,
        }
        self._columns = open_columns(source.index, key, lambda: build_vcr_columns(self._path, files.labelled))
        self._ids = StringColumn(self._columns, "annot_id")
        self._image_names = StringColumn(self._columns, "image")
        self._metadata_names = StringColumn(self._columns, "metadata")
        self._image_objects = StringColumn(self._columns, "objects")
        self._strata = StringColumn(self._columns, "stratum")
        self._settle(np.arange(len(self._ids), dtype=np.int64), problems_in(self._columns, self._path))

    def label_names(self, task: Task) -> tuple[str, ...]:
        return ()

    def question_table(self) -> QuestionTable:
        """Cells are the 16 combinations of right answer and right rationale, in an order that balances both."""
        answer = self._columns["answer_label"][self._rows].astype(np.int64)
        rationale = self._columns["rationale_label"][self._rows].astype(np.int64)
        # Four cells in a row hold every answer label and every rationale label once.
        cells = ((rationale - answer) % NUM_CHOICES) * NUM_CHOICES + answer
        return self._question_table(np.where((answer < 0) | (rationale < 0), 0, cells), by_class=True)

    def _record(self, row: int) -> dict[str, Any]:
        if self._last_record is None or self._last_record[0] != row:
            data = self._lines.read(int(self._columns["offset"][row]), int(self._columns["length"][row]))
            self._last_record = (row, parse_object(data))
        return self._last_record[1]

    def _candidates(self, row: int, variant: Variant) -> tuple[Candidate, ...]:
        record = self._record(row)
        context: list[Tokens] = [record["question"]]
        choices = record["answer_choices"]
        if variant.task == "vcr-qa2r":
            answer = variant.conditioned_on
            context.append(choices[record["answer_label"] if answer is None else answer])
            choices = record["rationale_choices"]
        return word_candidates(self._style, record["objects"], context, choices)

    def _label(self, row: int, variant: Variant) -> tuple[int | None, tuple[tuple[int, float], ...]]:
        answer = int(self._columns["answer_label"][row])
        if variant.task == "vcr-q2a":
            return (answer if answer >= 0 else None), ()
        rationale = int(self._columns["rationale_label"][row])
        meant = variant.conditioned_on in (None, answer)
        return (rationale if meant and rationale >= 0 else None), ()

    def _side_files(self, image: int) -> tuple[str, ...]:
        return (self._metadata_names[image],)

    def _boxes_of(self, image: int) -> tuple[npt.NDArray[np.float32], tuple[str, ...], tuple[int, int] | None]:
        name = self._metadata_names[image]
        names, boxes = read_vcr_boxes(self._source.pictures / name, name)
        if "\n".join(names) != self._image_objects[image]:
            raise Malformed(f"{name}: its names are not the objects of the annotations")
        return boxes.boxes_R4, names, (boxes.width, boxes.height)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_last_record": None}


def question_of(example_id: str) -> str:
    """Return the `annot_id` of a VCR example id."""
    return example_id.rsplit(":", 1)[0]


def _variants(tasks: Sequence[Task], conditioning: Conditioning) -> list[Variant]:
    variants = []
    for task in tasks:
        if task == "vcr-qa2r" and conditioning == "all":
            variants += [Variant(task, f":{task}-a{answer}", answer) for answer in range(NUM_CHOICES)]
        else:
            variants.append(Variant(task, f":{task}"))
    return variants


def build_vcr_columns(path: Path, labelled: bool) -> Columns:
    """Scan an annotation file into columns; malformed lines become rows of the `problem` columns."""
    annot_ids: dict[str, int] = {}
    seen: dict[tuple[str, str], tuple[int, Any]] = {}
    strata: dict[str, int] = {}
    rows: list[tuple[int, int, int, int, int, int, int]] = []
    problems: list[tuple[int, str]] = []
    for line in scan_lines(path):
        try:
            record = parse_object(line.data)
            annot_id = text_field(record, "annot_id")
            if annot_id in annot_ids:
                raise Malformed(f"annot_id {annot_id!r} was used on line {annot_ids[annot_id]} already")
            names = (text_field(record, "img_fn"), text_field(record, "metadata_fn"))
            if names not in seen:
                check_picture_fields(record)
            objects = record.get("objects")
            number, known_objects = seen.get(names, (len(seen), objects))
            if known_objects != objects:
                raise Malformed(f"objects differ from those of another question about {names[0]}")
            check_words(record, len(known_objects))
            labels = vcr_labels(record, labelled)
            seen[names] = (number, known_objects)
            annot_ids[annot_id] = line.number
        except Malformed as error:
            problems.append((line.number, str(error)))
            continue
        stratum = strata.setdefault(question_type(record), len(strata))
        rows.append((line.number, line.offset, len(line.data), number, stratum, *labels))
    table = np.array(rows, dtype=np.int64).reshape(-1, 7)
    return {
        "line": table[:, 0],
        "offset": table[:, 1],
        "length": table[:, 2].astype(np.int32),
        "image_number": table[:, 3].astype(np.int32),
        "stratum": table[:, 4].astype(np.int32),
        "answer_label": table[:, 5].astype(np.int8),
        "rationale_label": table[:, 6].astype(np.int8),
        "problem.line": np.array([number for number, _ in problems], dtype=np.int64),
        **StringColumn.encode("annot_id", annot_ids),
        **StringColumn.encode("image", [image for image, _ in seen]),
        **StringColumn.encode("metadata", [metadata for _, metadata in seen]),
        **StringColumn.encode("objects", ["\n".join(objects) for _, objects in seen.values()]),
        **StringColumn.encode("stratum", strata),
        **StringColumn.encode("problem", [why for _, why in problems]),
    }


def check_picture_fields(record: Mapping[str, Any]) -> None:
    """Check the fields that say which picture a question is about.

    Raises:
        Malformed: a name leaves the folder of the pictures, or `objects` is not a list of texts.
    """
    for name in ("img_fn", "metadata_fn"):
        if not is_safe_name(record[name]):
            raise Malformed(f"{name} {record[name]!r} leaves the dataset's folder")
    objects = record.get("objects")
    if not isinstance(objects, list) or not all(isinstance(item, str) for item in objects):
        raise Malformed("field 'objects' is not a list of texts")


def check_words(record: Mapping[str, Any], num_objects: int) -> None:
    """Check question, answers and rationales.

    Raises:
        Malformed: one is missing or of another type, or has a tag that no object of the picture has.
    """
    question = record.get("question")
    _check_tokens("question", question, num_objects)
    if not question:
        raise Malformed("field 'question' has no words")
    for name in ("answer_choices", "rationale_choices"):
        choices = record.get(name)
        if not isinstance(choices, list) or len(choices) != NUM_CHOICES:
            raise Malformed(f"field {name!r} is not a list of {NUM_CHOICES} choices")
        for choice in choices:
            _check_tokens(name, choice, num_objects)


def vcr_labels(record: Mapping[str, Any], labelled: bool) -> tuple[int, int]:
    """Return the labels of a question, -1 where it has none.

    Raises:
        Malformed: a label is out of range, or missing from a labelled split.
    """
    answer, rationale = (_label_of(record, name) for name in ("answer_label", "rationale_label"))
    if (answer < 0) != (rationale < 0) or (labelled and answer < 0):
        missing = "answer_label" if answer < 0 else "rationale_label"
        raise Malformed(f"field {missing!r} is missing")
    return answer, rationale


def _check_tokens(name: str, tokens: Any, num_objects: int) -> None:
    if tokens.__class__ is not list:
        raise Malformed(f"field {name!r} is not a list of tokens")
    # Two million sentences pass here when a full annotation file is indexed: words are put aside at once.
    for token in [token for token in tokens if token.__class__ is not str]:
        if token.__class__ is not list:
            raise Malformed(f"field {name!r} holds a token that is neither a word nor a list of tags")
        for tag in token:
            if tag.__class__ is not int or not (0 <= (tag if tag < MASKED_TAG else tag - MASKED_TAG) < num_objects):
                raise Malformed(f"field {name!r} has tag {tag!r}, the picture has {num_objects} objects")


def _label_of(record: Mapping[str, Any], name: str) -> int:
    label = record.get(name)
    if label is None:
        return -1
    if label.__class__ is not int or not 0 <= label < NUM_CHOICES:
        raise Malformed(f"{name} is {label!r}, not one of 0 to {NUM_CHOICES - 1}")
    return int(label)


def question_type(record: Mapping[str, Any]) -> str:
    """Return the kind of a question: what its line says, or as official lines say nothing, a kind by its first word.

    That is a wh-word, "yes/no" or "other".
    """
    told, question = record.get(_TYPE_FIELD), record["question"]
    if isinstance(told, str):
        return told
    first = question[0].lower() if isinstance(question[0], str) else ""
    if first in _WH_WORDS:
        return first
    return "yes/no" if first in _AUXILIARIES else "other"
