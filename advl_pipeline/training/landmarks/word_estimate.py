"""The estimate of the words that a student's pretraining taught, for students without a record of it.

It is a pure function of the student at the start and of the inputs, without labels and without teachers, so that a
resumed run finds the same, and controls anchor the same words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch

from advl_pipeline.datasets.records import Dataset
from advl_pipeline.datasets.words import KnownWords, WordPrior
from advl_pipeline.distillation.familiarity import familiarity, peak_cosines
from advl_pipeline.distillation.relational import GroupSums, some_of
from advl_pipeline.students.interface import Student
from advl_pipeline.students.known_words import WordRow
from advl_pipeline.training.landmarks.census import Census, StudentAtStart, sampled, take_census
from advl_pipeline.training.landmarks.search import MAX_REGIONS, MAX_TEXTS, TEXTS_AT_ONCE
from advl_pipeline.training.signals.stored_signals import SignalSource
from advl_pipeline.training.signals.teacher_features import form_of

MOST_HELD: Final = 0.25
"""Share of held words beyond which a run cautions. Our students whose estimate keeps the gain hold 0 to 6 % of the
words, and the one whose estimate does not, which starts from a language model, 46 %."""


@dataclass(frozen=True, kw_only=True)
class WordEstimate:
    """The words of the inputs with their classes; `why` says why nothing could be told, or is empty."""

    rows: tuple[WordRow, ...]
    why: str = ""

    def known_words(self) -> KnownWords:
        """Return the classes; nothing is known if nothing could be told."""
        return KnownWords() if self.why else KnownWords(classes={row.word: row.word_class for row in self.rows})

    def line(self) -> str:
        """Return a line about the finding."""
        if self.why:
            return (
                "nothing says which words the student's pretraining taught, so a text teacher has nothing to hold on "
                f"to and little gain is to be expected from it: {self.why} (--known-words lists the words)"
            )
        numbers = Counter(row.word_class for row in self.rows)
        line = (
            f"words that pretraining taught, estimated from the student: {numbers['landmark']} landmarks, "
            f"{numbers['held']} held, {numbers['moved']} moved"
        )
        if numbers["held"] <= MOST_HELD * len(self.rows):
            return line
        return (
            f"{line}; caution: with so many held, the scores of known and of new words overlap, as in a student that "
            "starts from a language model, and little gain is to be expected (--known-words lists the words)"
        )


@torch.no_grad()
def estimate_words(student: Student, dataset: Dataset, positions: Sequence[int], prior: WordPrior) -> WordEstimate:
    """Estimate which words of the inputs the student's pretraining taught; see `distillation/familiarity.py`.

    Words that are frequent in the inputs, or not in the sample, are held.

    Args:
        student: keeps its training or evaluation mode.
        positions: candidates for the sample; the first ones in a fixed random order are used.
        prior: of the inputs' words.
    """
    start = StudentAtStart.without_heads(student, SignalSource([], prior=prior))
    chosen = sampled(dataset, positions, num_texts=MAX_TEXTS)
    at_once = max(1, TEXTS_AT_ONCE // len(dataset[positions[0]].candidates))
    search = WordSearch(prior, most_at_once=max(1, MAX_REGIONS * at_once // len(chosen)))
    for census in take_census(start, dataset, chosen, at_once=at_once):
        search.add(census)
    return search.estimate()


class WordSearch:
    """Accumulator of an estimate, over a census of the student's states at the start."""

    def __init__(self, prior: WordPrior, *, most_at_once: int) -> None:
        """Args:
        prior: of the inputs' words.
        most_at_once: maximum number of visual tokens that are taken of a batch.
        """
        self._prior = prior
        self._words = GroupSums()
        self._visual = _VisualTokens(most_at_once=most_at_once)

    def add(self, census: Census) -> None:
        """Add the words and visual tokens of a batch."""
        if (other_B := _other_pictures(census)) is not None:
            self._add_words(census, other_B)
        self._visual.add(census)

    def estimate(self) -> WordEstimate:
        """Return the estimate of the batches so far."""
        if not self._words.of_group:
            why = "no text of the inputs has a word with a meaning and a picture of its own"
            return WordEstimate(rows=(), why=why)
        forms = sorted(self._words.of_group)
        sums_FY = torch.stack([self._words.of_group[form] for form in forms])
        count_F, nearer_F, states_FH = torch.split(sums_FY, [1, 1, sums_FY.shape[1] - 2], 1)
        visual_VH = torch.cat(self._visual.states)
        result = familiarity(states_FH / count_F, visual_VH, (nearer_F / count_F)[:, 0].numpy())
        word_of = {form_of(word): word for word in self._prior.idf}
        rows = [
            WordRow(word=word_of[form], num_occurrences=int(number), score=float(score), word_class=word_class)
            for form, number, score, word_class in zip(forms, count_F, result.score_F, result.classes(), strict=True)
        ]
        return WordEstimate(rows=tuple(rows), why=result.why)

    def _add_words(self, census: Census, other_B: torch.Tensor) -> None:
        """Add, by spelling, occurrences, own less other peaks, and states.

        Args:
            other_B: example that shows another picture.
        """
        batch, states_NWH = census.batch.student, census.states_NWH
        node_NW = census.meant() & ~census.words.frequent_NW
        own_NW, other_NW = (
            peak_cosines(states_NWH, census.states.visual_states_NRH[first_N], batch.visual_mask_NR[first_N])
            for first_N in (batch.first_B[batch.example_N], batch.first_B[other_B[batch.example_N]])
        )
        rows_XY = torch.cat(
            [torch.ones_like(own_NW)[node_NW][:, None], (own_NW - other_NW)[node_NW][:, None], states_NWH[node_NW]], 1
        )
        self._words.add(rows_XY, census.words.form_NW[node_NW])


class _VisualTokens:
    """States of visual tokens of pictures not seen yet, on the host; at most a number of each batch, at random."""

    def __init__(self, *, most_at_once: int) -> None:
        self.states: list[torch.Tensor] = []
        self._most_at_once = most_at_once
        self._pictures: set[int] = set()
        self._generator = torch.Generator().manual_seed(0)

    def add(self, census: Census) -> None:
        batch = census.batch.student
        place_of = {picture: place for place, picture in enumerate(census.batch.image_ids_B.tolist())}
        fresh = sorted(place for picture, place in place_of.items() if picture not in self._pictures)
        self._pictures.update(place_of)
        first_F = batch.first_B[fresh]
        place_X = torch.nonzero(batch.visual_mask_NR[first_F].flatten())[:, 0]
        kept_X = some_of(place_X, self._most_at_once, self._generator)
        self.states.append(census.states.visual_states_NRH[first_F].flatten(0, 1)[kept_X].cpu())


def _other_pictures(census: Census) -> torch.Tensor | None:
    """Return (B,) for each example of a batch the next one that shows another picture; None if all show the same."""
    image_ids_B = census.batch.image_ids_B
    is_other_BB = image_ids_B[:, None] != image_ids_B[None, :]
    if not bool(is_other_BB.any(1).all()):
        return None
    size = len(image_ids_B)
    place_B = torch.arange(size, device=image_ids_B.device)
    distance_BB = ((place_B[None, :] - place_B[:, None]) % size).masked_fill(~is_other_BB, size)
    return distance_BB.argmin(1)
