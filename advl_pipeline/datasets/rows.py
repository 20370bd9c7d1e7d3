"""Rows of a dataset, each with its file and line.

Every reader of stored data returns a `RowSource`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from advl_pipeline.datasets.cards import Card, Kind
from advl_pipeline.datasets.problems import Malformed
from advl_pipeline.datasets.row_files import checked, read_table

HELD = "//"
"""Prefix of the names of `Held` pictures in an index; no name in a row has it."""


class Held(NamedTuple):
    """A picture inside a Parquet file of the hub that is not downloaded yet.

    `file` is ORG/NAME@REVISION/PATH. The other fields locate the picture: row group, row, column, and position in
    the column's list. `num_bytes` is the size of that column in the row group.
    """

    file: str
    column: str
    group: int
    row: int
    place: int
    num_bytes: int

    @classmethod
    def named(cls, name: str) -> Held:
        """Return the picture with a name."""
        return cls(*json.loads(name.removeprefix(HELD)))

    @property
    def name(self) -> str:
        return HELD + json.dumps(self)

    @property
    def repository(self) -> str:
        """Return the repository as ORG/NAME@REVISION."""
        return self.file[: -len(self.inside) - 1]

    @property
    def inside(self) -> str:
        """Return the path of the file in its repository."""
        return self.file.partition("@")[2].partition("/")[2]


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """A checked row.

    `image` is the name of a picture, its bytes, or its location on the hub. `boxes` are in pixels; `size` is the size
    of the picture if the data give it. If the boxes are in a file next to the picture, `boxes_file` names it and
    `box_labels` are its expected labels.
    `texts` contains the question or the text, then `num_choices` choices, then the rationales.
    `label` is the position of the right choice, or the name of the class or of the most frequent answer; None
    without a label. `facets` follow the order of the card. `answers` are the texts that people gave, `counts` the
    number of people per answer (one each if empty), `entries` as in `vqa_answers.GroundTruth`. `cell` is the
    class-balance cell of low-shot subsets; None if the label is the cell.
    """

    item_id: str | None
    image: str | bytes | Held
    texts: tuple[str, ...]
    num_choices: int = 0
    boxes: tuple[tuple[float, ...], ...] = ()
    box_labels: tuple[str, ...] = ()
    boxes_file: str = ""
    size: tuple[int, int] | None = None
    label: int | str | None = None
    rationale_label: int | None = None
    answers: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()
    entries: tuple[int, ...] = ()
    group: str = ""
    stratum: str = ""
    cell: int | None = None
    facets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for label, texts in ((self.label, self.choices), (self.rationale_label, self.rationales)):
            # The label may be a NumPy integer.
            if not (label is None or isinstance(label, str) or 0 <= label < len(texts)):
                raise Malformed(f"the label is {label}, and there are {len(texts)} texts to choose from")

    @property
    def choices(self) -> tuple[str, ...]:
        """The choices; () for texts with a class or an answer."""
        return self.texts[1 : 1 + self.num_choices]

    @property
    def rationales(self) -> tuple[str, ...]:
        """The rationales to choose from; () without rationales."""
        return self.texts[1 + self.num_choices :]


class Row(NamedTuple):
    """One stored item.

    `record` is a mapping from columns to values (`docs/adding-a-dataset.md`), an item that its reader has checked,
    the error of a line that cannot be parsed, or None for a row that the card leaves out. `split` is the split of
    the file; None if a column contains it or if there is only one split. `file` and `line` (from 1) name the place
    in messages. `name` is unique within the split; an item without an id gets the id SPLIT-NAME.
    """

    record: Mapping[str, Any] | Item | Malformed | None
    name: str
    split: str | None = None
    file: str = ""
    line: int = 0


@dataclass(frozen=True, kw_only=True)
class RowSource:
    """Rows of a dataset over all splits, in a fixed order.

    `rows` is called if the content has no index yet, rarely more than once. The bytes of `files` and `version`,
    which covers everything else that determines the rows, identify the content: if both are unchanged, `rows` is
    not called. `state`, if given, returns a value that changes when rows change while they are read.
    `pictures` is the folder that picture names are relative to. With `is_confined`, links that leave it are refused,
    since the folder comes from others. `command_for`, if given, maps the name of a missing picture to the command
    that brings it there, "" if none does. `split` is the split of rows that name none.
    `kind` is the kind of all items of a reader that yields items; otherwise the first row determines it. `called` is
    the name in identities of published rows; other rows are identified by their content.
    """

    rows: Callable[[], Iterable[Row]]
    pictures: Path
    files: tuple[Path, ...] = ()
    version: str = ""
    state: Callable[[], Any] | None = None
    is_confined: bool = False
    command_for: Callable[[str], str] | None = None
    split: str = "train"
    card: Card = field(default_factory=Card)
    kind: Kind | None = None
    called: str = ""


def checked_rows(path: Path, check: Callable[[Mapping[str, Any]], Item]) -> Iterator[Row]:
    """Yield the rows of a file, each as a checked item or as the error of a malformed one."""
    for line, record in checked(read_table(path), check):
        yield Row(record, name=str(line), file=str(path), line=line)


class PictureFacts(NamedTuple):
    """Facts of a picture that rows give; see `Item`.

    A name that begins with "/" is the digest of a picture in a table, one with "//" the name of a `Held` picture.
    """

    name: str
    boxes: Sequence[Sequence[float]]
    box_labels: Sequence[str]
    boxes_file: str
    size: Sequence[int] | None
