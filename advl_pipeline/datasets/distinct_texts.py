"""The distinct texts of a split, each once, in order of first appearance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import overload

import numpy as np

from advl_pipeline.datasets.columns import Columns
from advl_pipeline.datasets.records import UNIT_ID_LENGTH, Candidate, TextUnit

CandidatesAt = Callable[[int], tuple[Candidate, ...]]
"""Gives the candidates of the example at a position."""


def distinct_texts(num_examples: int, candidates_at: CandidatesAt) -> Columns:
    """Return the columns of `TextUnits`: `ids`, and `places`, the example and the choice where each text is first."""
    places: dict[bytes, tuple[int, int]] = {}
    for index in range(num_examples):
        for choice, candidate in enumerate(candidates_at(index)):
            places.setdefault(bytes.fromhex(candidate.text_unit.unit_id), (index, choice))
    ids = np.frombuffer(b"".join(places), dtype=np.uint8).reshape(-1, UNIT_ID_LENGTH // 2)
    return {"ids": ids, "places": np.array(list(places.values()), dtype=np.int64).reshape(-1, 2)}


class TextUnits(Sequence[TextUnit]):
    """The texts; ids come from the index, texts are worded when asked for."""

    def __init__(self, columns: Columns, candidates_at: CandidatesAt) -> None:
        self._columns = columns
        self._candidates_at = candidates_at
        self._last: tuple[int, tuple[Candidate, ...]] = (-1, ())

    def __len__(self) -> int:
        return len(self._columns["places"])

    @overload
    def __getitem__(self, index: int) -> TextUnit: ...

    @overload
    def __getitem__(self, index: slice) -> list[TextUnit]: ...

    def __getitem__(self, index: int | slice) -> TextUnit | list[TextUnit]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        example, choice = map(int, self._columns["places"][index])
        if self._last[0] != example:
            self._last = (example, self._candidates_at(example))
        return self._last[1][choice].text_unit

    @property
    def unit_ids(self) -> list[str]:
        """Ids of the units in order, without wording any text."""
        blob = self._columns["ids"].tobytes().hex()
        return [blob[start : start + UNIT_ID_LENGTH] for start in range(0, len(blob), UNIT_ID_LENGTH)]
