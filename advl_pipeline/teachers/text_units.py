"""Towers over a text tower: what is read of an answer choice, and which of its tokens are kept.

A teacher reads the candidate with its question, it alone, or each in turn. A text unit stays the whole text, by which
it is looked up and to which all characters refer. A cache may hold only the tokens of some words, such as those with
the highest prior, or of texts that are chosen so that all words come up about as often (docs/method.md, cover).
Shapes: N texts, R readings of each, D teacher width, W words and M token rows of a text.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from advl_pipeline.cache.identity import digest
from advl_pipeline.datasets.records import Dataset, TextUnit
from advl_pipeline.datasets.words import (
    ROUNDING,
    STOP_WORDS,
    WordPrior,
    assign_tokens_to_words,
    fit_word_prior,
    is_function_word,
    top_words,
    word_spans,
)
from advl_pipeline.errors import ConfigError, leave_out
from advl_pipeline.teachers.interface import EncodedBatch, PreparedUnit, TextTower
from advl_pipeline.teachers.open_options import TextUnits


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadUnit(PreparedUnit):
    """A unit as the readings of it that the tower itself prepared, in order."""

    readings: tuple[PreparedUnit, ...]


class CandidateTextTower:
    """A text tower that reads candidates without their questions, alone or beside the whole text.

    Args:
        starts: unit id -> first character of the candidate; 0 for a text without a question.
    """

    def __init__(self, tower: TextTower, starts: Mapping[str, int], reads: TextUnits) -> None:
        self._tower = tower
        self.global_dim, self.token_dim = tower.global_dim, tower.token_dim
        self._starts = starts
        self._reads = reads

    def describe(self) -> dict[str, Any]:
        """As the tower, and what it reads."""
        return {**self._tower.describe(), "reads": self._reads}

    def prepare(self, units: Sequence[TextUnit]) -> list[PreparedUnit]:
        """As the tower, for each reading; characters refer to the whole text."""
        starts = [self._starts[unit.unit_id] for unit in units]
        alone = [replace(unit, text=unit.text[start:]) for unit, start in zip(units, starts, strict=True)]
        shifted = []
        for prepared, start in zip(self._tower.prepare(alone), starts, strict=True):
            assert prepared.char_spans_M2 is not None
            # A piece that covers nothing stays at 0.
            covers_M1 = (prepared.char_spans_M2[:, :1] != prepared.char_spans_M2[:, 1:]).astype(np.int32)
            moved_M2 = prepared.char_spans_M2 + covers_M1 * np.int32(start)
            shifted.append(replace(prepared, char_spans_M2=moved_M2.astype(np.int32)))
        if self._reads == "candidate":
            return [_join([reading]) for reading in shifted]
        whole = self._tower.prepare(units)
        return [_join(readings) for readings in zip(whole, shifted, strict=True)]

    def encode(self, units: Sequence[PreparedUnit]) -> EncodedBatch:
        """Encode each reading; rows follow one another, and statistics are means.

        Global features are means that are as long as the readings' are on average: a direction keeps its length.
        """
        read = [unit.readings for unit in units if isinstance(unit, ReadUnit)]
        if len(read) != len(units):
            raise TypeError("units must come from `prepare` of this tower")
        batches = [self._tower.encode(readings) for readings in zip(*read, strict=True)]
        readings_RND = torch.stack([batch.global_ND for batch in batches])
        direction_ND = torch.nn.functional.normalize(readings_RND.mean(dim=0), dim=-1)
        return EncodedBatch(
            global_ND=direction_ND * readings_RND.norm(dim=-1, keepdim=True).mean(dim=0),
            token_values=[torch.cat(rows) for rows in zip(*(batch.token_values for batch in batches), strict=True)],
            stats={
                name: torch.stack([batch.stats[name] for batch in batches]).mean(dim=0) for name in batches[0].stats
            },
        )


def with_text_units(tower: TextTower, reads: TextUnits, dataset: Dataset) -> TextTower:
    """Return the tower that reads what is asked for; the tower itself for whole texts.

    Raises:
        ConfigError: no text of the dataset has a question before its candidate.
    """
    starts = candidate_starts(reads, dataset)
    return CandidateTextTower(tower, starts, reads) if starts else tower


def candidate_starts(reads: TextUnits, dataset: Dataset) -> dict[str, int]:
    """Return the first character of the candidate in each text, by its id; nothing where whole texts are read.

    Raises:
        ConfigError: no text of the dataset has a question before its candidate.
    """
    if reads == "question":
        return {}
    starts = {
        candidate.text_unit.unit_id: candidate.answer_start
        for example in map(dataset.__getitem__, range(len(dataset)))
        for candidate in example.candidates
    }
    if not any(starts.values()):
        raise ConfigError(
            f"No text of {dataset.name} has a question before a candidate.",
            where=f"--text-units {reads}",
            why="its teachers read one text per item",
            next_command=leave_out("--text-units"),
        )
    return starts


def _join(readings: Sequence[PreparedUnit]) -> ReadUnit:
    spans = [reading.char_spans_M2 for reading in readings if reading.char_spans_M2 is not None]
    return ReadUnit(
        inputs=readings[-1].inputs,
        num_tokens=sum(reading.num_tokens for reading in readings),
        char_spans_M2=np.concatenate(spans),
        readings=tuple(readings),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectedUnit(PreparedUnit):
    """A unit of which some tokens are kept; `full` is what the tower itself prepared."""

    full: PreparedUnit


def _kept(share: float, **how: str) -> dict[str, Any]:
    return {"share": share, **how, "stop_words": digest(sorted(STOP_WORDS))}


@dataclass(frozen=True, kw_only=True)
class RarestWords:
    """Keeps ceil(share * W) words of each text, those with the highest prior."""

    prior: WordPrior
    share: float

    def describe(self) -> dict[str, Any]:
        """Return what is kept, for the identity of a cache."""
        return {"kept_tokens": _kept(self.share, words="highest IDF over the candidates of the split")}

    def words(self, unit: TextUnit) -> npt.NDArray[np.int64]:
        """Return the words of a text whose tokens are kept, ascending."""
        return top_words(self.prior.of_text(unit.text), self.share)


class SelectingTextTower:
    """A text tower whose token rows are those of some words. Its global features are untouched.

    Tokens that belong to no word, such as special ones, are not kept.
    """

    def __init__(self, tower: TextTower, keeps: RarestWords | CoveringTexts) -> None:
        self._tower = tower
        self.global_dim, self.token_dim = tower.global_dim, tower.token_dim
        self._keeps = keeps

    def describe(self) -> dict[str, Any]:
        """As the tower, and which tokens are kept."""
        return {**self._tower.describe(), **self._keeps.describe()}

    def prepare(self, units: Sequence[TextUnit]) -> list[PreparedUnit]:
        """As the tower, with the rows and spans of the kept tokens."""
        return [self._select(unit, full) for unit, full in zip(units, self._tower.prepare(units), strict=True)]

    def encode(self, units: Sequence[PreparedUnit]) -> EncodedBatch:
        """Encode whole texts; return the rows that are kept."""
        selected = [unit for unit in units if isinstance(unit, SelectedUnit)]
        if len(selected) != len(units):
            raise TypeError("units must come from `prepare` of this tower")
        encoded = self._tower.encode([unit.full for unit in selected])
        return EncodedBatch(
            global_ND=encoded.global_ND,
            token_values=[
                rows[torch.from_numpy(unit.kept_M).to(rows.device)]
                for rows, unit in zip(encoded.token_values, selected, strict=True)
            ],
            stats=encoded.stats,
        )

    def _select(self, unit: TextUnit, full: PreparedUnit) -> SelectedUnit:
        if full.char_spans_M2 is None:
            raise ValueError("a text tower gives the characters of each token")
        word_of_token = assign_tokens_to_words(full.char_spans_M2, word_spans(unit.text))
        kept_M = np.flatnonzero(np.isin(word_of_token, self._keeps.words(unit))).astype(np.int32)
        return SelectedUnit(
            inputs=full.inputs,
            num_tokens=len(kept_M),
            char_spans_M2=full.char_spans_M2[kept_M],
            kept_M=kept_M,
            full=full,
        )


def fit_split_prior(dataset: Dataset) -> WordPrior:
    """Return the prior over all candidates of a split: what finetuning on the whole split fits."""
    return fit_word_prior(
        candidate.text
        for example in map(dataset.__getitem__, range(len(dataset)))
        for candidate in example.candidates
    )


def cover(words_of_texts: Sequence[Sequence[Hashable]], share: float) -> list[int]:
    """Return the texts that are chosen, in the order in which they are; the earlier one on a tie.

    Greedy: t* = argmax_t of the mean, over the words j of t, of 2^(-n(j)), with n(j) how often word j was chosen,
    until the share rho of all words is chosen. Words with a meaning count, known or not: it needs no student.

    Args:
        words_of_texts: of each text; one without a word is never chosen.
        share: rho, of all words.
    """
    chosen: list[int] = []
    times: Counter[Hashable] = Counter()
    wanted = share * sum(map(len, words_of_texts)) - ROUNDING
    num_words = 0

    def gain(text: int) -> float:
        words = words_of_texts[text]
        return sum(2.0 ** -times[word] for word in words) / len(words)

    # Gains only fall, so that one which is still the largest when it is looked up anew is the largest of all.
    waiting = [(-1.0, text) for text, words in enumerate(words_of_texts) if words]
    heapq.heapify(waiting)
    while num_words < wanted:
        _, text = waiting[0]
        now = (-gain(text), text)
        if len(waiting) > 1 and now > min(waiting[1:3]):
            heapq.heapreplace(waiting, now)
            continue
        heapq.heappop(waiting)
        chosen.append(text)
        times.update(words_of_texts[text])
        num_words += len(words_of_texts[text])
    return chosen


@dataclass(frozen=True, kw_only=True)
class CoveringTexts:
    """Keeps the words with a meaning of the texts that were chosen, and nothing of the others."""

    share: float
    chosen: frozenset[str]

    @classmethod
    def of_texts(cls, units: Iterable[TextUnit], share: float) -> CoveringTexts:
        """Choose among the texts of a split."""
        units = list(units)
        words = [[word for word in _lower_words(unit) if not is_function_word(word)] for unit in units]
        return cls(share=share, chosen=frozenset(units[text].unit_id for text in cover(words, share)))

    def describe(self) -> dict[str, Any]:
        """Return what is kept, for the identity of a cache."""
        return {"kept_texts": _kept(self.share, texts="greedy cover of the words with a meaning")}

    def words(self, unit: TextUnit) -> npt.NDArray[np.int64]:
        """Return the words of a text whose tokens are kept, ascending."""
        if unit.unit_id not in self.chosen:
            return np.zeros(0, np.int64)
        return np.flatnonzero([not is_function_word(word) for word in _lower_words(unit)])


def _lower_words(unit: TextUnit) -> list[str]:
    return [unit.text[start:end].lower() for start, end in word_spans(unit.text)]
