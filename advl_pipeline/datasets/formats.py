"""Published formats by the names that cards have for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from advl_pipeline.datasets.indexed import IndexedDataset
from advl_pipeline.datasets.roots import resolve_data_root
from advl_pipeline.datasets.snli_ve import SnliVeFiles
from advl_pipeline.datasets.spec import DatasetSpec, ReadOptions
from advl_pipeline.datasets.split_files import SplitFiles
from advl_pipeline.datasets.vcr import VcrFiles
from advl_pipeline.datasets.vqa import VqaFiles

FORMATS: Mapping[str, type[SplitFiles]] = {"vcr": VcrFiles, "vqa": VqaFiles, "snli-ve": SnliVeFiles}
"""Format of a card -> its reader."""


class PublishedDataset(DatasetSpec):
    """A dataset whose card lists the files of each split in a published format."""

    def open(self, split: str, data_root: Path | None, options: ReadOptions) -> IndexedDataset:
        files = FORMATS[self.card.format]
        return files(card=self.card, split=split, root=resolve_data_root(data_root)).open(options)
