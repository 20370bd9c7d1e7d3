"""The distinct texts of a split, each once, in order of first appearance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, overload

import pyarrow as pa

from advl_pipeline.datasets.arrow_file import ArrowFile, record_batch
from advl_pipeline.datasets.records import UNIT_ID_LENGTH, Candidate, TextUnit

CandidatesAt = Callable[[int], tuple[Candidate, ...]]
"""Gives the candidates of the example at a position."""


def distinct_texts(num_examples: int, candidates_at: CandidatesAt) -> Any:
    """Return the record batch of `TextUnits`: each text's id, and the example and the choice where it is first."""
    places: dict[bytes, tuple[int, int]] = {}
    for index in range(num_examples):
        for choice, candidate in enumerate(candidates_at(index)):
            places.setdefault(bytes.fromhex(candidate.text_unit.unit_id), (index, choice))
    columns = list(zip(*places.values(), strict=True)) or [(), ()]
    return record_batch(
        {
            "id": pa.array(places, pa.binary(UNIT_ID_LENGTH // 2)),
            "example": pa.array(columns[0], pa.int64()),
            "choice": pa.array(columns[1], pa.int32()),
        }
    )


class TextUnits(Sequence[TextUnit]):
    """The texts; ids come from the index, texts are worded when asked for."""

    def __init__(self, file: ArrowFile, candidates_at: CandidatesAt) -> None:
        self._file = file
        self._candidates_at = candidates_at
        self._last: tuple[int, tuple[Candidate, ...]] = (-1, ())

    def __len__(self) -> int:
        return len(self._file)

    @overload
    def __getitem__(self, index: int) -> TextUnit: ...

    @overload
    def __getitem__(self, index: slice) -> list[TextUnit]: ...

    def __getitem__(self, index: int | slice) -> TextUnit | list[TextUnit]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        example, choice = (int(self._file.numbers(name)[index]) for name in ("example", "choice"))
        if self._last[0] != example:
            self._last = (example, self._candidates_at(example))
        return self._last[1][choice].text_unit

    @property
    def unit_ids(self) -> list[str]:
        """Ids of the units in order, without wording any text."""
        blob = b"".join(self._file.batch.column("id").to_pylist()).hex()
        return [blob[start : start + UNIT_ID_LENGTH] for start in range(0, len(blob), UNIT_ID_LENGTH)]
