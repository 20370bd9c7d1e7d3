"""What a dataset is made of: rows, each of which knows its file and line.

Whatever stores data hands over a `RowSource`.
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
"""How the names of `Held` pictures begin, in an index; no name of a row does."""


class Held(NamedTuple):
    """A picture inside a Parquet file of the hub, which nobody has fetched yet.

    `file` is ORG/NAME@REVISION/PATH. The picture stands in a row of a row group, in a column, at a place of its list.
    `num_bytes` is the size of the whole row group in that column.
    """

    file: str
    column: str
    group: int
    row: int
    place: int
    num_bytes: int

    @classmethod
    def named(cls, name: str) -> Held:
        """Return the picture of a name."""
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
        """Path of the file in its repository."""
        return self.file.partition("@")[2].partition("/")[2]


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """A row, checked.

    `image` is the name of a picture, its bytes, or where it is held. `boxes` are in pixels, of a picture of `size`
    where the data say it. Where they are in a file next to the picture, `boxes_file` names it and `box_labels` are
    what it must hold.
    `texts` holds the question or the text, then the choices, then the rationales: `num_choices` of them are choices.
    `label` is the position of the right choice, or the name of the class or of the most frequent answer; None where
    there is none. `facets` are in the order of the card's. `answers` are the texts that people gave, `counts` how
    many gave each (one each where it is empty), `entries` what `vqa_answers.GroundTruth` says. `cell` is the class-
    balance cell of low-shot subsets, None where that is the label.
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
            # A number may be NumPy's.
            if not (label is None or isinstance(label, str) or 0 <= label < len(texts)):
                raise Malformed(f"the label is {label}, and there are {len(texts)} texts to choose from")

    @property
    def choices(self) -> tuple[str, ...]:
        """What is to be chosen from; () where a text has a class or an answer."""
        return self.texts[1 : 1 + self.num_choices]

    @property
    def rationales(self) -> tuple[str, ...]:
        """The rationales to choose from; () where there are none."""
        return self.texts[1 + self.num_choices :]


class Row(NamedTuple):
    """One item as it is stored.

    `record` maps columns to values (`docs/adding-a-dataset.md`), is an item that its reader has checked, is what is
    wrong with a line that cannot be parsed, or None for a row that the card leaves out. `split` is the split that the
    file is of, None where a column says it or where there is one split alone. `file` and `line` (from 1) name the
    place in messages. `name` is unique within the split; it makes the id of an item that has none, as SPLIT-NAME.
    """

    record: Mapping[str, Any] | Item | Malformed | None
    name: str
    split: str | None = None
    file: str = ""
    line: int = 0


@dataclass(frozen=True, kw_only=True)
class RowSource:
    """Rows of a whole dataset, over all splits, in a fixed order.

    `rows` is called when there is no index of the content yet, rarely more than once. The content is known by the
    bytes of `files` and by `version`, whatever else decides the rows: where both are as before, `rows` is not called.
    `state`, where there is one, returns what changes when rows change while they are read.
    `pictures` is the folder that names of pictures are relative to; with `is_confined` a link that leads out of it is
    refused, as others made it. `split` is that of rows which name none. `kind`
    is told by a reader that hands over items, which are all of it; else the first row tells it. `called` is what
    identities call the whole where the rows have a published version; else they are called by their content.
    """

    rows: Callable[[], Iterable[Row]]
    pictures: Path
    files: tuple[Path, ...] = ()
    version: str = ""
    state: Callable[[], Any] | None = None
    is_confined: bool = False
    split: str = "train"
    card: Card = field(default_factory=Card)
    kind: Kind | None = None
    called: str = ""


def checked_rows(path: Path, check: Callable[[Mapping[str, Any]], Item]) -> Iterator[Row]:
    """Yield the rows of a file, each of which a reader has checked or found malformed."""
    for line, record in checked(read_table(path), check):
        yield Row(record, name=str(line), file=str(path), line=line)


class PictureFacts(NamedTuple):
    """What rows say of a picture; see `Item`.

    A name that begins with "/" is the digest of a picture in a table, one with "//" that of a `Held` picture.
    """

    name: str
    boxes: Sequence[Sequence[float]]
    box_labels: Sequence[str]
    boxes_file: str
    size: Sequence[int] | None
