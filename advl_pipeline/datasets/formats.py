"""Published formats: readers for the files that a card lists for each split."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from advl_pipeline.datasets.boxes import with_boxes
from advl_pipeline.datasets.cards import Card
from advl_pipeline.datasets.index import Index, open_index
from advl_pipeline.datasets.indexed import IndexedDataset
from advl_pipeline.datasets.reading import Reading, RowVariant
from advl_pipeline.datasets.records import Task
from advl_pipeline.datasets.roots import index_folder, require_there, resolve_data_root
from advl_pipeline.datasets.rows import RowSource
from advl_pipeline.datasets.snli_ve import LABEL_ORDERS, pairs_of, snli_ve_source
from advl_pipeline.datasets.spec import ReadOptions
from advl_pipeline.datasets.vcr import vcr_reading, vcr_source
from advl_pipeline.datasets.vqa import Part, kept_rows, locate_picture, vocabulary_of, vqa_source
from advl_pipeline.datasets.vqa_answers import MIN_OCCURRENCES, answer_scores


class SplitFiles(NamedTuple):
    """Files of a split, as its card names them, below the datasets folder."""

    card: Card
    split: str
    root: Path

    @property
    def facts(self) -> Mapping[str, Any]:
        return self.card.split(self.split)

    @property
    def folder(self) -> Path:
        return require_there(self.root / str(self.card.facts["folder"]), dataset=self.card.name)

    @property
    def pictures(self) -> Path:
        return self.root / str(self.card.facts["pictures_folder"])

    def named(self, fact: str) -> Path:
        """Return the path of the file that a fact of the split names."""
        return require_there(self.folder / self.facts[fact], dataset=self.card.name)

    def index_of(self, rows: RowSource) -> Index:
        """Return the index of the split's rows, with boxes from a separate file if the corpus has one."""
        if boxes := self.facts.get("boxes"):
            rows = with_boxes(rows, self.folder / boxes)
        folder = index_folder(self.root, self.folder)
        return open_index(rows, dataset=self.card.name, folder=folder, is_published=True)


def _read_vcr(files: SplitFiles, options: ReadOptions) -> IndexedDataset:
    is_labelled = files.facts["labelled"]
    rows = vcr_source(files.named("annotations"), labelled=is_labelled, pictures=files.pictures)
    reading = vcr_reading(
        options.tasks,
        # A split without labels has no right answers.
        every_answer=options.every_answer or not is_labelled,
        style=options.text_style or files.card.facts["text_style"],
    )
    return IndexedDataset(files.index_of(rows), reading, split=files.split, on_error=options.on_error)


def _read_vqa(files: SplitFiles, options: ReadOptions) -> IndexedDataset:
    card = files.card

    def part(split: str) -> Part:
        of_split = files._replace(split=split)
        named = [of_split.named(fact) for fact in ("questions", "annotations") if fact in of_split.facts]
        rows = vqa_source(*named, subtype=of_split.facts.get("subtype"), pictures=files.pictures)
        index = of_split.index_of(rows)
        return index, kept_rows(index, files.folder, card.name, of_split.facts)

    def built() -> tuple[str, ...]:
        lists = card.facts["answer_lists"]
        # A run that trains on all splits that the published models count has all of their answers.
        counted = lists["published" if [*options.together] == lists.get("published") else options.answer_list]
        return vocabulary_of(
            [part(split) for split in counted],
            min_occurrences=card.facts.get("min_occurrences", MIN_OCCURRENCES),
            where=", ".join(str(files.folder / str(card.split(split).get("annotations"))) for split in counted),
        )

    index, rows = part(files.split)
    reading = Reading(
        variants=(RowVariant("vqa"),),
        # Built when answers are first needed.
        classes=built if options.answers is None else partial(tuple, options.answers),
        scores=answer_scores,
        locate=locate_picture,
    )
    return IndexedDataset(index, reading, split=files.split, on_error=options.on_error, rows=rows)


def _read_snli_ve(files: SplitFiles, options: ReadOptions) -> IndexedDataset:
    annotations = files.named("annotations")
    listed = pairs_of(files.named("ids")) if "ids" in files.facts else None
    index = files.index_of(snli_ve_source(annotations, pictures=files.pictures))
    rows, selected = None, ""
    if listed is not None:
        rows = np.flatnonzero(index.file.is_in("id", listed))
        selected = f"{len(rows):,} of {len({*listed}):,} listed pairs are in this split"
    reading = Reading(variants=(RowVariant("snli-ve"),), classes=lambda: LABEL_ORDERS[options.label_order])
    return IndexedDataset(index, reading, split=files.split, on_error=options.on_error, rows=rows, selected=selected)


class Format(NamedTuple):
    """A published format: its default tasks and its reader."""

    tasks: tuple[Task, ...]
    read: Callable[[SplitFiles, ReadOptions], IndexedDataset]

    def open(self, card: Card, split: str, data_root: Path | None, options: ReadOptions) -> IndexedDataset:
        """Open a split that a card describes."""
        return self.read(SplitFiles(card, split, resolve_data_root(data_root)), options)


FORMATS: Mapping[str, Format] = {
    "vcr": Format(("vcr-q2a", "vcr-qa2r"), _read_vcr),
    "vqa": Format(("vqa",), _read_vqa),
    "snli-ve": Format(("snli-ve",), _read_snli_ve),
}
"""Format of a card -> its reader."""
