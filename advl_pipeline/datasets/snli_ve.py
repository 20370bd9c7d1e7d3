"""SNLI-VE: does the picture entail the hypothesis? The premise caption (`sentence1`) is not used."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from advl_pipeline.base.errors import DatasetError
from advl_pipeline.datasets.indexed import IndexedDataset
from advl_pipeline.datasets.problems import Malformed
from advl_pipeline.datasets.reading import Reading, RowVariant
from advl_pipeline.datasets.roots import is_safe_name
from advl_pipeline.datasets.row_files import MALFORMED_FILE, checked, read_table, text_field
from advl_pipeline.datasets.rows import Item, RowSource, checked_rows
from advl_pipeline.datasets.spec import ReadOptions
from advl_pipeline.datasets.split_files import SplitFiles

LabelOrder = Literal["uniter", "meter"]

LABEL_ORDERS: Mapping[str, tuple[str, ...]] = {
    "uniter": ("contradiction", "entailment", "neutral"),
    "meter": ("contradiction", "neutral", "entailment"),
}
"""Class orders of published models: UNITER and VILLA; METER, BridgeTower and LAVIS."""

STORED_ORDER = LABEL_ORDERS["uniter"]
"""Order of the class-balance cells, independent of the order that a dataset is opened with."""

_IMAGES = "flickr30k_images"
"""Folder of the pictures."""

_PICTURE_FIELDS = ("Flickr30K_ID", "Flikr30kID", "Flickr30kID")
"""Spellings of the picture's field: in the generator, in the older files (sic), in e-SNLI-VE."""


class SnliVeFiles(SplitFiles):
    """Hypotheses about pictures, each with a class.

    The annotations are JSON lines of SNLI-VE, or the CSV of e-SNLI-VE.
    """

    tasks = ("snli-ve",)

    def open(self, options: ReadOptions) -> IndexedDataset:
        annotations = self.named("annotations")
        listed = pairs_of(self.named("ids")) if "ids" in self.facts else None
        hypothesis = "hypothesis" if annotations.suffix == ".csv" else "sentence2"  # e-SNLI-VE, SNLI-VE.
        index = self.index_of(
            RowSource(
                rows=lambda: checked_rows(annotations, partial(_item, hypothesis=hypothesis)),
                pictures=self.pictures,
                files=(annotations,),
                version=f"snli-ve {_IMAGES}",
                kind="classes",
            )
        )
        rows, selected = None, ""
        if listed is not None:
            rows = np.flatnonzero(index.file.is_in("id", listed))
            selected = f"{len(rows):,} of {len({*listed}):,} listed pairs are in this split"
        reading = Reading(variants=(RowVariant("snli-ve"),), given=LABEL_ORDERS[options.label_order])
        return IndexedDataset(
            index, reading, split=self.split, on_error=options.on_error, rows=rows, selected=selected
        )


def _item(record: Mapping[str, Any], hypothesis: str) -> Item:
    label = gold_label(record)
    # Corpora in this format may give the type of a question; all other pairs have one type.
    question_type = record.get("question_type")
    return Item(
        image=f"{_IMAGES}/{flickr_id(record)}.jpg",
        item_id=text_field(record, "pairID"),
        texts=(text_field(record, hypothesis),),
        label=label,
        stratum=question_type if isinstance(question_type, str) else "",
        cell=STORED_ORDER.index(label),
    )


def gold_label(record: Mapping[str, Any]) -> str:
    """Return the label of a pair.

    Raises:
        Malformed: it is not one of the three.
    """
    label = record.get("gold_label")
    if label not in STORED_ORDER:
        raise Malformed(f"gold_label is {label!r}, not one of {', '.join(STORED_ORDER)}")
    return str(label)


def flickr_id(record: Mapping[str, Any]) -> str:
    """Return the picture's id, without ".jpg", from any spelling of its field, or from `pairID`.

    Raises:
        Malformed: the id is missing, or would leave the folder.
    """
    value = next((record[name] for name in _PICTURE_FIELDS if record.get(name) is not None), None)
    if value is None:
        name, mark, _ = str(record.get("pairID", "")).partition(".jpg")
        value = name if mark else None
    if not isinstance(value, (str, int)) or isinstance(value, bool) or value == "":
        raise Malformed("field 'Flickr30K_ID' is missing, and 'pairID' names no picture")
    picture_id = str(value).removesuffix(".jpg")
    if not is_safe_name(picture_id) or "/" in picture_id:
        raise Malformed(f"picture id {picture_id!r} leaves the dataset's folder")
    return picture_id


def pairs_of(file: Path) -> list[str]:
    """Return the pair ids of a published subset in SNLI's format, such as `snli_1.0_test_hard.jsonl`.

    Raises:
        DatasetError: a line is malformed.
    """
    pairs = []
    for line, pair in checked(read_table(file), lambda record: text_field(record, "pairID")):
        if isinstance(pair, Malformed):
            raise DatasetError(MALFORMED_FILE, where=f"{file}:{line}", why=str(pair))
        pairs.append(pair)
    return pairs
