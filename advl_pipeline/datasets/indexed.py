"""The reader of every dataset: converts rows of an index to examples, lazily.

A split is a list of *rows* (questions, hypotheses, captions) and a list of *variants* (tasks of a row; for VCR's test
mode also the answer that a rationale is conditioned on). Example i is variant i % V of row i // V.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from advl_pipeline.base.errors import DatasetError
from advl_pipeline.datasets.arrow_file import ArrowFile, open_index_file, record_batch
from advl_pipeline.datasets.cards import Card
from advl_pipeline.datasets.index import Index
from advl_pipeline.datasets.indexed_pictures import IndexedPictures
from advl_pipeline.datasets.problems import OnError, Problem, nothing_usable, refuse, unlike
from advl_pipeline.datasets.reading import Reading, RowVariant
from advl_pipeline.datasets.records import Candidate, Example, ImageUnit, QuestionTable, Task, TextUnit
from advl_pipeline.datasets.vqa_answers import ANSWER_TYPES, GroundTruth, soft_target

READER_VERSION = 1
"""Version; increase it when the same files would yield other examples. Part of every content digest."""


class IndexedDataset:
    """A split read through its index; implements `records.Dataset`.

    Args:
        index: index of all rows of its files.
        reading: see `Reading`.
        split: a split of the dataset.
        on_error: handling of bad items.
        rows: positions of the rows, if the split is a part of its files; None for all.
        selected: message on how much of a published list the split contains; "" without a list.

    Raises:
        DatasetError: a row is malformed and malformed rows are not skipped, labels may be off by one, or no row is
            usable.
    """

    def __init__(
        self,
        index: Index,
        reading: Reading,
        *,
        split: str,
        on_error: OnError,
        rows: npt.NDArray[np.int64] | None = None,
        selected: str = "",
    ) -> None:
        self.name = index.dataset
        self.split = split
        self.tasks: tuple[Task, ...] = tuple(dict.fromkeys(variant.task for variant in reading.variants))
        self.text_style = reading.text_style
        self._index = index
        self._table = index.file
        self._reading = reading
        self._variants = reading.variants
        self._selected = selected
        self._digests = index.digests_of(split)
        rows = index.rows_of(split) if rows is None else rows
        self._pictures = IndexedPictures(index, rows, split=split, reading=reading)
        index.require_counted(split)
        problems = index.problems_of(split)
        if on_error == "fail" and problems:
            raise refuse(self.name, split, problems)
        if on_error == "skip":
            problems += self._pictures.drop_bad()
        self.skipped: tuple[Problem, ...] = tuple(problems)
        """Malformed items that were left out; empty unless opened with on_error="skip"."""
        if not len(self._rows):
            raise nothing_usable(
                self.name, split, problems, where=", ".join(map(str, index.source.files)) or self.name
            )

    @property
    def _rows(self) -> npt.NDArray[np.int64]:
        return self._pictures.rows

    # Content of a row.

    def _number(self, name: str, row: int) -> int:
        return int(self._table.numbers(name)[row])

    def _text(self, name: str, row: int) -> str:
        return self._table.text(name, self._number(name, row))

    def _candidates(self, row: int, variant: RowVariant) -> tuple[Candidate, ...]:
        """Return the candidates of an example."""
        texts, picture = self._table.lists("texts", row), self._index.picture(self._number("image", row))
        if variant.kind not in ("choice", "rationale"):
            return self._reading.word(picture, [], texts)
        rationales_start = 1 + self._number("num_choices", row)
        context, choices = texts[:1], texts[1:rationales_start]
        if variant.kind == "rationale":
            answer = self._number("label", row) if variant.conditioned_on is None else variant.conditioned_on
            context, choices = [texts[0], choices[answer]], texts[rationales_start:]
        return self._reading.word(picture, context, choices)

    def _label(self, row: int, variant: RowVariant) -> tuple[int | None, tuple[tuple[int, float], ...]]:
        """Return label and soft label of an example."""
        label = self._number("label", row)
        if label < 0:
            return None, ()
        if variant.kind == "choice":
            return label, ()
        if variant.kind == "rationale":
            rationale = self._number("rationale_label", row)
            return (rationale if variant.conditioned_on in (None, label) and rationale >= 0 else None), ()
        if variant.kind == "classes":
            return self._class_of[self._table.text("label_name", label)], ()
        target = soft_target(self._reading.scores(self._people(row)), self._class_of)
        # A question without an answer among the classes has an empty target and no label.
        best = max(target, key=lambda pair: (pair[1], -pair[0]), default=None)
        return (None if best is None else best[0]), target

    def _people(self, row: int) -> Counter[str]:
        """Return the number of people per answer."""
        answers = self._table.lists("answers", row)
        people: Counter[str] = Counter()
        for answer, count in zip(answers, self._table.lists("counts", row) or [1] * len(answers), strict=True):
            people[answer] += count
        return people

    def _group(self, row: int) -> str:
        """Return the group of dependent items, if that is not the picture with its boxes."""
        group, image = self._text("group", row), self._number("image", row)
        if group or self._index.is_published or not self._index.picture(image).boxes:
            return group
        # The same picture with other boxes is another unit, but its items are just as dependent.
        return self._pictures.facts(image).digest.hex()

    # Interface of `records.Dataset`.

    def __len__(self) -> int:
        return len(self._rows) * len(self._variants)

    def __getitem__(self, index: int) -> Example:
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(index)
        row, variant = self._place(index)
        label, soft_label = self._label(row, variant)
        return Example(
            example_id=self._table.text("id", row) + variant.suffix,
            task=variant.task,
            image=self._pictures.unit(self._number("image", row)),
            candidates=self._candidates(row, variant),
            label=label,
            soft_label=soft_label,
            stratum=self._text("stratum", row),
            group=self._group(row),
        )

    def words_and_labels(self, positions: Iterable[int] | None = None) -> Iterator[tuple[str, dict[int, float]]]:
        """Yield the texts of examples and the score of each answer, without opening a picture.

        Args:
            positions: positions of the examples; None for all.
        """
        for index in range(len(self)) if positions is None else positions:
            row, variant = self._place(index)
            label, soft_label = self._label(row, variant)
            yield self._table.lists("texts", row)[0], dict(soft_label) or ({} if label is None else {label: 1.0})

    def _place(self, index: int) -> tuple[int, RowVariant]:
        row, variant = divmod(index, len(self._variants))
        return int(self._rows[row]), self._variants[variant]

    @cached_property
    def identity_name(self) -> str:
        """Return the name, with the revision of a published dataset; for your own data the content digest."""
        return self._index.source.called or f"own-{self.content_digest()[:16]}"

    @cached_property
    def example_ids(self) -> Sequence[str]:
        return tuple(name + variant.suffix for name in self._question_ids for variant in self._variants)

    @property
    def _question_ids(self) -> list[str]:
        ids = self._table.texts("id").to_pylist()
        return ids if len(ids) == len(self._rows) else [ids[row] for row in self._rows.tolist()]

    def position(self, example_id: str) -> int:
        """Return the position of an example.

        Raises:
            KeyError: the split has no such example.
        """
        return self._positions[example_id]

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {example_id: position for position, example_id in enumerate(self.example_ids)}

    def label_names(self, task: Task) -> tuple[str, ...]:
        """Return the class names of a classification task in label order; () for multiple choice and captions."""
        return self._classes

    @cached_property
    def _classes(self) -> tuple[str, ...]:
        return self._reading.classes()

    @cached_property
    def _class_of(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self._classes)}

    def question_table(self) -> QuestionTable:
        """Return the questions with label cells and strata, for low-shot subsets; answers are too many for turns."""
        ids, per_row = self.example_ids, len(self._variants)
        strata, codes = self._table.texts("stratum").to_pylist(), self._table.numbers("stratum")[self._rows].tolist()
        cells = self._table.numbers("cell")[self._rows].astype(np.int64)
        return QuestionTable(
            question_ids=self._question_ids,
            example_ids=[tuple(ids[row * per_row : (row + 1) * per_row]) for row in range(len(self._rows))],
            cells=cells if self._index.is_published else np.maximum(cells, 0),
            strata=[strata[code] for code in codes],
            by_class=self._index.kind != "answers",
        )

    def content_digest(self) -> str:
        """Return the hexadecimal SHA-256 of annotations, wording, pictures and boxes, without paths or times.

        It does not depend on the opened tasks, on the order of the labels or on the answer vocabulary, so that one
        cache serves them all. A picture inside a file of a fixed hub revision is represented by its location.
        """
        return self._content_digest

    @cached_property
    def _content_digest(self) -> str:
        # Caches, the identity of a run and the name of your own data ask for it; 100,000 pictures take a second.
        facts = {"reader": READER_VERSION, "style": self.text_style, "rows": len(self._rows)}
        state = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        for digest in chain(self._digests, self._pictures.digests()):
            state.update(digest)
        return state.hexdigest()

    def image_units(self) -> Sequence[ImageUnit]:
        """Return the split's pictures, each once, in order of first appearance.

        Raises:
            DatasetError: a picture or its boxes are missing or malformed.
        """
        return self._pictures.units()

    def text_units(self) -> Sequence[TextUnit]:
        """Return the split's texts over all tasks and candidates, each once, in order of first appearance."""
        return TextUnits(self._text_table, self.candidates_of)

    @cached_property
    def _text_table(self) -> ArrowFile:
        """Return the first occurrence of each distinct text: the example and the choice."""
        key = {
            "index": "texts",
            "reader": READER_VERSION,
            "annotations": [digest.hex() for digest in self._digests],
            "style": self.text_style,
            "variants": [[variant.task, variant.conditioned_on] for variant in self._variants],
            "rows": hashlib.sha256(self._rows.astype("<i8").tobytes()).hexdigest(),
        }

        def build() -> Any:
            places: dict[str, tuple[int, int]] = {}
            for index in range(len(self)):
                for choice, candidate in enumerate(self.candidates_of(index)[1]):
                    places.setdefault(candidate.text_unit.unit_id, (index, choice))
            places_U2 = np.array([*places.values()], dtype=np.int64).reshape(-1, 2)
            return record_batch({"example": places_U2[:, 0].copy(), "choice": places_U2[:, 1].copy()})

        return open_index_file(self._index.folder, key, build)

    def candidates_of(self, index: int) -> tuple[Task, tuple[Candidate, ...]]:
        """Return the task and the candidates of an example without opening its picture."""
        row, variant = self._place(index)
        return variant.task, self._candidates(row, variant)

    # Properties of some datasets only, and checks.

    @property
    def left_out(self) -> str:
        """Message on rows that the card's rules leave out, or on the share of a published list; else ""."""
        return self._selected or self._index.left_out(self.split)

    @property
    def is_grouped(self) -> bool:
        """Whether a row yields several items: a group then counts as right if all of its items are."""
        return bool(self._index.facts["grouped"])

    @property
    def card(self) -> Card:
        """Card of the dataset; empty without one."""
        return self._index.source.card

    def facets_of(self, example_id: str) -> list[str]:
        """Return the facets of an example, in the order of the card.

        Raises:
            KeyError: the split has no such example.
        """
        return self._table.lists("facets", self._place(self.position(example_id))[0])

    def answers_of(self, example_id: str) -> dict[str, float]:
        """Return the people's answers to a question, each with its score.

        Raises:
            KeyError: the split has no such example.
        """
        return dict(self._reading.scores(self._people(self._place(self.position(example_id))[0])))

    def ground_truth(self, example_id: str) -> GroundTruth:
        """Return the annotators' answers to a VQA question, for `evaluation.vqa`.

        Raises:
            KeyError: the split has no such example.
            DatasetError: the split has no annotations.
        """
        row, _ = self._place(self.position(example_id))
        if self._number("label", row) < 0:
            raise DatasetError(f"The split {self.split} of {self.name} has no public answers.")
        return GroundTruth(
            question_type=self._text("stratum", row),
            answer_type=ANSWER_TYPES[self._number("cell", row)],
            answers=tuple(self._table.lists("answers", row)),
            entries=tuple(self._table.lists("entries", row)),
        )

    def require_known_classes(self) -> None:
        """Refuse a split with a label that is not one of the classes.

        Raises:
            DatasetError: a label is unknown; the message names the row.
        """
        names, codes = self._table.texts("label_name").to_pylist(), self._table.numbers("label")[self._rows]
        for code in np.unique(codes).tolist():
            if code >= 0 and names[code] not in self._class_of:
                why = unlike("label", names[code], f"one of {', '.join(self._classes)}; a card names all classes")
                raise DatasetError(
                    f"The split {self.split} of {self.name} has a label that is not one of the classes.",
                    where=self._index.where(int(self._rows[np.flatnonzero(codes == code)[0]])),
                    why=str(why),
                )

    def picture_problems(self, *, deep: bool, progress: bool = False) -> tuple[int, int, list[Problem]]:
        """Check every picture of the split.

        Args:
            deep: decode each picture and check its boxes; otherwise only check that it exists and is not empty,
                without downloading pictures from the hub.
            progress: show a progress bar on stderr.

        Returns:
            (number of pictures, number of known animations, problems of pictures).
        """
        pictures, num_animations = self._pictures, 0

        def look(image: int) -> None:
            nonlocal num_animations
            if deep:
                num_animations += pictures.decode(image)
            else:
                pictures.require_content(image)

        if deep:
            pictures.require_room()
        asked = [image for image in pictures.used if deep or image not in pictures.held]
        shown = tqdm(asked, desc=f"{self.name} {self.split}", unit="picture", disable=not progress)
        problems = pictures.problems(shown, look)
        return len(pictures.used), num_animations, list(problems.values())

    def command_for_pictures(self) -> str:
        """Return the command that brings the first missing picture beside the rows; "" without one."""
        image = next(filter(self._pictures.is_missing, self._pictures.used), None)
        return "" if image is None else self._pictures.command_for(image)

    def row_that_shows(self, path: Path) -> str:
        """Return file and line of the first row with a picture; "" without one."""
        row = self._pictures.row_that_shows(path)
        return "" if row is None else self._index.where(row)


class TextUnits(Sequence[TextUnit]):
    """The distinct texts of a split, worded on access."""

    def __init__(self, places: ArrowFile, candidates_of: Callable[[int], tuple[Task, tuple[Candidate, ...]]]) -> None:
        self._places = places
        self._candidates_of = candidates_of
        self._last: tuple[int, tuple[Candidate, ...]] = (-1, ())

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        example, choice = (int(self._places.numbers(name)[index]) for name in ("example", "choice"))
        if self._last[0] != example:
            self._last = (example, self._candidates_of(example)[1])
        return self._last[1][choice].text_unit
