"""Published formats: readers for the files that a card lists for each split."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

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
from advl_pipeline.datasets.spec import DatasetSpec, ReadOptions
from advl_pipeline.datasets.vcr import VcrReading, vcr_source, vcr_variants
from advl_pipeline.datasets.vqa import Part, kept_rows, locate_picture, vocabulary_of, vqa_source
from advl_pipeline.datasets.vqa_answers import MIN_OCCURRENCES, answer_scores


@dataclass(frozen=True, kw_only=True)
class SplitFiles(ABC):
    """Files of a split in a published format, as its card names them, below the datasets folder."""

    card: Card
    split: str
    root: Path
    tasks: ClassVar[tuple[Task, ...]]
    """Tasks of every dataset in the format."""

    @abstractmethod
    def open(self, options: ReadOptions) -> IndexedDataset:
        """Open the split."""

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


class VcrFiles(SplitFiles):
    """Questions with four answers and four rationales each."""

    tasks = ("vcr-q2a", "vcr-qa2r")

    def open(self, options: ReadOptions) -> IndexedDataset:
        is_labelled = self.facts["labelled"]
        rows = vcr_source(self.named("annotations"), labelled=is_labelled, pictures=self.pictures)
        reading = VcrReading(
            # A split without labels has no right answers.
            variants=vcr_variants(options.tasks, every_answer=options.every_answer or not is_labelled),
            text_style=options.text_style or self.card.facts["text_style"],
        )
        return IndexedDataset(self.index_of(rows), reading, split=self.split, on_error=options.on_error)


class VqaFiles(SplitFiles):
    """Questions with the answers of ten annotators each."""

    tasks = ("vqa",)

    def open(self, options: ReadOptions) -> IndexedDataset:
        index, rows = self.part()
        reading = VqaReading(variants=(RowVariant("vqa"),), given=options.answers, files=self, options=options)
        return IndexedDataset(index, reading, split=self.split, on_error=options.on_error, rows=rows)

    def part(self) -> Part:
        """Return the questions of the split."""
        named = [self.named(fact) for fact in ("questions", "annotations") if fact in self.facts]
        rows = vqa_source(*named, subtype=self.facts.get("subtype"), pictures=self.pictures)
        index = self.index_of(rows)
        return index, kept_rows(index, self.folder, self.card.name, self.facts)


@dataclass(frozen=True, kw_only=True)
class VqaReading(Reading):
    """Rules for converting questions of `files` to examples."""

    files: VqaFiles
    options: ReadOptions

    def classes(self) -> tuple[str, ...]:
        """Return the answer vocabulary: the given one, else that of the annotations that `answer_list` names."""
        if self.given is not None:
            return self.given
        files, options, facts = self.files, self.options, self.files.card.facts
        lists = facts["answer_lists"]
        # A run that trains on all splits that the published models count has all of their answers.
        counted = lists["published" if [*options.together] == lists.get("published") else options.answer_list]
        return vocabulary_of(
            [replace(files, split=split).part() for split in counted],
            min_occurrences=facts.get("min_occurrences", MIN_OCCURRENCES),
            where=", ".join(str(files.folder / str(files.card.split(split).get("annotations"))) for split in counted),
        )

    def scores(self, people: Mapping[str, int]) -> Mapping[str, float]:
        return answer_scores(people)

    def locate(self, pictures: Path, name: str) -> str:
        return locate_picture(pictures, name)


class SnliVeFiles(SplitFiles):
    """Hypotheses about pictures, each with a class."""

    tasks = ("snli-ve",)

    def open(self, options: ReadOptions) -> IndexedDataset:
        annotations = self.named("annotations")
        listed = pairs_of(self.named("ids")) if "ids" in self.facts else None
        index = self.index_of(snli_ve_source(annotations, pictures=self.pictures))
        rows, selected = None, ""
        if listed is not None:
            rows = np.flatnonzero(index.file.is_in("id", listed))
            selected = f"{len(rows):,} of {len({*listed}):,} listed pairs are in this split"
        reading = Reading(variants=(RowVariant("snli-ve"),), given=LABEL_ORDERS[options.label_order])
        return IndexedDataset(
            index, reading, split=self.split, on_error=options.on_error, rows=rows, selected=selected
        )


FORMATS: Mapping[str, type[SplitFiles]] = {"vcr": VcrFiles, "vqa": VqaFiles, "snli-ve": SnliVeFiles}
"""Format of a card -> its reader."""


class PublishedDataset(DatasetSpec):
    """A dataset whose card lists the files of each split in a published format."""

    def open(self, split: str, data_root: Path | None, options: ReadOptions) -> IndexedDataset:
        files = FORMATS[self.card.format]
        return files(card=self.card, split=split, root=resolve_data_root(data_root)).open(options)
