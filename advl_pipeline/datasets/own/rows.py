"""What a reader of rows hands over: the interface between what stores data and what makes examples of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from advl_pipeline.datasets.own.card import DataCard
from advl_pipeline.datasets.problems import Malformed


class Row(NamedTuple):
    """One item as it is stored.

    `record` maps columns to values (`docs/adding-a-dataset.md`), or is what is wrong with a line that cannot be
    parsed. `split` is the split that the file is of, None where a column says it or where there is one split alone.
    `file` and `line` (from 1) name the place in messages. `name` is unique within the split; it makes the id of an
    item that has none, as SPLIT-NAME.
    """

    record: Mapping[str, Any] | Malformed
    name: str
    split: str | None = None
    file: str = ""
    line: int = 0


@dataclass(frozen=True, kw_only=True)
class RowSource:
    """Rows of a whole dataset, over all splits, in a fixed order.

    `rows` is called when there is no index of the content yet, rarely more than once. The content is known by the
    bytes of `files` and by `version`, whatever else decides the rows: where both are as before, `rows` is not called.
    `pictures` is the folder that names of pictures are relative to. `split` is that of rows which name none.
    """

    rows: Callable[[], Iterable[Row]]
    pictures: Path
    files: tuple[Path, ...] = ()
    version: str = ""
    split: str = "train"
    card: DataCard = field(default_factory=DataCard)
