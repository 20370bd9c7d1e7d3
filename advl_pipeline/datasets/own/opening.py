"""One's own data, opened: its rows found, its index there, ready to give splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from advl_pipeline.datasets.indexed import Source
from advl_pipeline.datasets.names import is_own_data
from advl_pipeline.datasets.own.dataset import OwnDataset
from advl_pipeline.datasets.own.index import OwnIndex, describe, open_index
from advl_pipeline.datasets.own.rows import RowSource
from advl_pipeline.datasets.own.source import find_source, plugin_entry_points
from advl_pipeline.datasets.problems import OnError
from advl_pipeline.datasets.records import Task
from advl_pipeline.datasets.roots import index_folder


@dataclass(frozen=True)
class OwnData:
    """A dataset of rows before one of its splits is opened."""

    name: str
    rows: RowSource
    index: OwnIndex

    def line(self) -> str:
        """Return the line that tells a user what was made of the columns."""
        return describe(self.index, self.name)

    def open(
        self, split: str, *, tasks: Sequence[Task], classes: Path | tuple[str, ...] | None, on_error: OnError
    ) -> OwnDataset:
        """Open a split, which must be one of `index.splits`.

        Raises:
            DatasetError: a row or a picture is malformed, or nothing is usable.
        """
        source = Source(
            dataset=self.name,
            split=split,
            folder=self.rows.pictures,
            pictures=self.rows.pictures,
            index=self.index.folder,
            on_error=on_error,
        )
        return OwnDataset(source, self.index, self.rows.card, tasks=tasks, classes=classes)


def is_rows(name: str) -> bool:
    """Tell whether a dataset is given as rows: one's own data, or those of a reader of another package."""
    return is_own_data(name) or name in plugin_entry_points()


def open_own(name: str, data_root: Path | None) -> OwnData:
    """Find and index a dataset of rows.

    Raises:
        ConfigError: a card that cannot be used.
        DatasetError: there are no such data, or no row of them can be used.
    """
    rows, home = find_source(name, data_root)
    folder = index_folder(home, home if is_own_data(name) else home / name)
    return OwnData(name, rows, open_index(rows, dataset=name, folder=folder))
