"""SNLI-VE: does the picture entail the hypothesis? The premise caption (`sentence1`) is never read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from advl_pipeline.datasets.columns import Columns, StringColumn, open_columns, problems_in
from advl_pipeline.datasets.indexed import READER_VERSION, IndexedDataset, Source, Variant
from advl_pipeline.datasets.interface import QuestionTable
from advl_pipeline.datasets.line_files import text_field
from advl_pipeline.datasets.own.tables import read_table
from advl_pipeline.datasets.problems import Malformed
from advl_pipeline.datasets.records import Candidate, Task, text_unit
from advl_pipeline.datasets.roots import is_safe_name, require_file

LabelOrder = Literal["uniter", "meter"]

LABEL_ORDERS: Mapping[str, tuple[str, ...]] = {
    "uniter": ("contradiction", "entailment", "neutral"),
    "meter": ("contradiction", "neutral", "entailment"),
}
"""Class order by the models that use it: UNITER and VILLA; METER, BridgeTower and LAVIS."""

STORED_ORDER = LABEL_ORDERS["uniter"]
"""Order of the class numbers in the index, whatever order a dataset is opened with."""


_TYPE_FIELD = "question_type"
"""Field of the built-in corpus alone; other pairs are all of one type."""

_PICTURE_FIELDS = ("Flickr30K_ID", "Flikr30kID", "Flickr30kID")
"""Spellings of the picture's field: of the generator, of the older files (sic), of e-SNLI-VE."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SnliVeFiles:
    """Files of a split, relative to the dataset folder; `boxes` exists for the built-in corpus only."""

    annotations: str
    images: str = "flickr30k_images"
    boxes: str | None = None


class SnliVeDataset(IndexedDataset):
    """A split of SNLI-VE.

    Args:
        source: folders; picture names are relative to the dataset folder.
        keep: pair ids to restrict the split to, None for all.

    Raises:
        DatasetError: a missing or malformed file.
    """

    def __init__(
        self,
        source: Source,
        files: SnliVeFiles,
        *,
        label_order: LabelOrder = "uniter",
        keep: frozenset[str] | None = None,
    ) -> None:
        super().__init__(source, variants=[Variant("snli-ve")], text_style="plain")
        self._order = LABEL_ORDERS[label_order]
        self._path = require_file(source.folder / files.annotations, dataset=source.dataset)
        self._digests = [source.annotation_digest(files.annotations)]
        key = {
            "index": "snli-ve",
            "reader": READER_VERSION,
            "file": self._digests[0].hex(),
            "images": files.images,
            "strata": _TYPE_FIELD,
        }
        self._columns = open_columns(source.index, key, lambda: build_snli_ve_columns(self._path, files.images))
        self._ids = StringColumn(self._columns, "pair_id")
        self._hypotheses = StringColumn(self._columns, "hypothesis")
        self._image_names = StringColumn(self._columns, "image")
        self._strata = StringColumn(self._columns, "stratum")
        problems = problems_in(self._columns, self._path)
        if files.boxes is not None:
            problems += self._read_boxes(files.boxes)
        rows = np.arange(len(self._ids), dtype=np.int64)
        if keep is not None:
            rows = rows[[pair_id in keep for pair_id in self._ids]]
        self._settle(rows, problems)

    def label_names(self, task: Task) -> tuple[str, ...]:
        return self._order

    def hypotheses_and_labels(self) -> tuple[list[str], npt.NDArray[np.int64]]:
        """Return all hypotheses and their classes in the order of `label_names`; no picture is touched."""
        rows = self._rows.tolist()
        labels = [self._label(row, self._variants[0])[0] for row in rows]
        return [self._candidates(row, self._variants[0])[0].text for row in rows], np.array(labels, dtype=np.int64)

    def question_table(self) -> QuestionTable:
        """Cells are the three classes."""
        return self._question_table(self._columns["label"][self._rows].astype(np.int64), by_class=True)

    def _candidates(self, row: int, variant: Variant) -> tuple[Candidate, ...]:
        return (Candidate(text_unit=text_unit(self._hypotheses[row])),)

    def _label(self, row: int, variant: Variant) -> tuple[int | None, tuple[tuple[int, float], ...]]:
        return self._order.index(STORED_ORDER[int(self._columns["label"][row])]), ()


def build_snli_ve_columns(path: Path, images_folder: str) -> Columns:
    """Scan an annotation file into columns; malformed lines become rows of the `problem` columns."""
    pair_ids: dict[str, int] = {}
    images: dict[str, int] = {}
    hypotheses: list[str] = []
    strata: dict[str, int] = {}
    rows: list[tuple[int, int, int, int]] = []
    problems: list[tuple[int, str]] = []
    hypothesis_field = "hypothesis" if path.suffix == ".csv" else "sentence2"  # Of e-SNLI-VE and of SNLI-VE.
    for number, record in read_table(path):
        try:
            if isinstance(record, Malformed):
                raise record
            pair_id = text_field(record, "pairID")
            hypothesis = text_field(record, hypothesis_field)
            label = gold_label(record)
            image = f"{images_folder}/{flickr_id(record)}.jpg"
            if pair_id in pair_ids:
                raise Malformed(f"pairID {pair_id!r} was used on line {pair_ids[pair_id]} already")
        except Malformed as error:
            problems.append((number, str(error)))
            continue
        pair_ids[pair_id] = number
        hypotheses.append(hypothesis)
        told = record.get(_TYPE_FIELD)
        stratum = strata.setdefault(told if isinstance(told, str) else "", len(strata))
        rows.append((number, STORED_ORDER.index(label), images.setdefault(image, len(images)), stratum))
    table = np.array(rows, dtype=np.int64).reshape(-1, 4)
    return {
        "line": table[:, 0],
        "label": table[:, 1].astype(np.int8),
        "image_number": table[:, 2].astype(np.int32),
        "stratum": table[:, 3].astype(np.int32),
        "problem.line": np.array([number for number, _ in problems], dtype=np.int64),
        **StringColumn.encode("pair_id", pair_ids),
        **StringColumn.encode("hypothesis", hypotheses),
        **StringColumn.encode("image", images),
        **StringColumn.encode("stratum", strata),
        **StringColumn.encode("problem", [why for _, why in problems]),
    }


def gold_label(record: Mapping[str, Any]) -> str:
    """Return the label of a pair.

    Raises:
        Malformed: it is none of the three.
    """
    label = record.get("gold_label")
    if label not in STORED_ORDER:
        raise Malformed(f"gold_label is {label!r}, not one of {', '.join(STORED_ORDER)}")
    return str(label)


def flickr_id(record: Mapping[str, Any]) -> str:
    """Return the picture's id, without ".jpg", from any spelling of its field, or from `pairID`.

    Raises:
        Malformed: there is none, or it would lead out of the folder.
    """
    value = next((record[name] for name in _PICTURE_FIELDS if record.get(name) is not None), None)
    if value is None:
        name, mark, _ = str(record.get("pairID", "")).partition(".jpg")
        value = name if mark else None
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value:
        raise Malformed("field 'Flickr30K_ID' is missing, and 'pairID' names no picture")
    value = value.removesuffix(".jpg")
    if not is_safe_name(value) or "/" in value:
        raise Malformed(f"picture id {value!r} leaves the dataset's folder")
    return value
