"""Published formats: a split that a card describes is the rows of its files, read as its format is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from advl_pipeline.datasets.boxes import with_boxes
from advl_pipeline.datasets.cards import Card
from advl_pipeline.datasets.index import Index, open_index
from advl_pipeline.datasets.indexed import IndexedDataset
from advl_pipeline.datasets.records import Task
from advl_pipeline.datasets.roots import index_folder, require_there, resolve_data_root
from advl_pipeline.datasets.rows import RowSource
from advl_pipeline.datasets.snli_ve import pairs_of, snli_ve_reading, snli_ve_source
from advl_pipeline.datasets.spec import ReadOptions
from advl_pipeline.datasets.vcr import vcr_reading, vcr_source
from advl_pipeline.datasets.vqa import Part, kept_rows, vocabulary_of, vqa_reading, vqa_source
from advl_pipeline.datasets.vqa_answers import MIN_OCCURRENCES


@dataclass(frozen=True)
class _Files:
    """Files of a dataset below the folder of the datasets, as its card names them."""

    card: Card
    data_root: Path | None

    @property
    def root(self) -> Path:
        return resolve_data_root(self.data_root)

    @property
    def folder(self) -> Path:
        return require_there(self.root / str(self.card.facts["folder"]), dataset=self.card.name)

    @property
    def pictures(self) -> Path:
        return self.root / str(self.card.facts["pictures_folder"])

    def named(self, name: str) -> Path:
        return require_there(self.folder / name, dataset=self.card.name)

    def index_of(self, rows: RowSource, split: str) -> Index:
        """Return the index of a split's rows, with the boxes of a file of boxes, which some corpora have."""
        if boxes := self.card.split(split).get("boxes"):
            rows = with_boxes(rows, self.folder / boxes)
        return open_index(
            rows, dataset=self.card.name, folder=index_folder(self.root, self.folder), is_published=True
        )


def _open_vcr(card: Card, split: str, data_root: Path | None, options: ReadOptions) -> IndexedDataset:
    files, facts = _Files(card, data_root), card.split(split)
    rows = vcr_source(files.named(facts["annotations"]), labelled=facts["labelled"], pictures=files.pictures)
    reading = vcr_reading(
        options.tasks,
        # Nobody knows the right answers of a split without labels.
        every_answer=options.every_answer or not facts["labelled"],
        style=options.text_style or card.facts["text_style"],
    )
    return IndexedDataset(files.index_of(rows, split), reading, split=split, on_error=options.on_error)


def _open_vqa(card: Card, split: str, data_root: Path | None, options: ReadOptions) -> IndexedDataset:
    files = _Files(card, data_root)

    def part(part_name: str) -> Part:
        facts = card.split(part_name)
        names = [facts[name] for name in ("questions", "annotations") if name in facts]
        rows = vqa_source(*map(files.named, names), subtype=facts.get("subtype"), pictures=files.pictures)
        index = files.index_of(rows, part_name)
        return index, kept_rows(index, files.folder, card.name, facts)

    def built() -> tuple[str, ...]:
        lists = card.facts["answer_lists"]
        # A run that trains on all that the published models count knows all of their answers.
        counted = lists["published" if [*options.together] == lists.get("published") else options.answer_list]
        return vocabulary_of(
            [part(part_name) for part_name in counted],
            min_occurrences=card.facts.get("min_occurrences", MIN_OCCURRENCES),
            where=", ".join(
                str(files.folder / str(card.split(part_name).get("annotations"))) for part_name in counted
            ),
        )

    index, rows = part(split)
    return IndexedDataset(
        index, vqa_reading(options.answers, built), split=split, on_error=options.on_error, rows=rows
    )


def _open_snli_ve(card: Card, split: str, data_root: Path | None, options: ReadOptions) -> IndexedDataset:
    files, facts = _Files(card, data_root), card.split(split)
    annotations = files.named(facts["annotations"])
    listed = pairs_of(files.named(facts["ids"])) if "ids" in facts else None
    index = files.index_of(snli_ve_source(annotations, pictures=files.pictures), split)
    reading = snli_ve_reading(options.label_order)
    if listed is None:
        return IndexedDataset(index, reading, split=split, on_error=options.on_error)
    rows = np.flatnonzero(index.file.is_in("id", listed))
    selected = f"{len(rows):,} of {len({*listed}):,} listed pairs are in this split"
    return IndexedDataset(index, reading, split=split, on_error=options.on_error, rows=rows, selected=selected)


class Format(NamedTuple):
    """A published format: tasks that a dataset in it is opened for unless fewer are asked for, and what opens it."""

    tasks: tuple[Task, ...]
    open: Callable[[Card, str, Path | None, ReadOptions], IndexedDataset]


FORMATS: Mapping[str, Format] = {
    "vcr": Format(("vcr-q2a", "vcr-qa2r"), _open_vcr),
    "vqa": Format(("vqa",), _open_vqa),
    "snli-ve": Format(("snli-ve",), _open_snli_ve),
}
"""Format of a card -> how it is opened."""
