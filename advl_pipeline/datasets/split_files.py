"""Files of a split in a published format, as a card lists them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from advl_pipeline.datasets.boxes import with_boxes
from advl_pipeline.datasets.cards import Card
from advl_pipeline.datasets.index import Index, open_index
from advl_pipeline.datasets.indexed import IndexedDataset
from advl_pipeline.datasets.records import Task
from advl_pipeline.datasets.roots import index_folder, require_there
from advl_pipeline.datasets.rows import RowSource
from advl_pipeline.datasets.spec import ReadOptions


@dataclass(frozen=True, kw_only=True)
class SplitFiles(ABC):
    """Files of a split in a published format, as its card names them, below the datasets folder."""

    card: Card
    split: str
    root: Path
    tasks: ClassVar[tuple[Task, ...]]
    """Tasks of every dataset in the format."""
    has_common_ids: ClassVar[bool] = False
    """Whether an id stands for the same question, picture and answers in every dataset in the format."""

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
        rows = replace(rows, called=self.card.name)
        return open_index(rows, dataset=self.card.name, folder=folder, is_published=True)
