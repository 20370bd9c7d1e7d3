"""What scores are read beside: chance, always giving the commonest right answer, and what a student says most.

A student that answers "no" whatever it is asked looks as if it had learned something where most right answers are no.
Shapes: n examples, C candidates or classes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from advl_pipeline.datasets.records import Example
from advl_pipeline.evaluation.items import question_id


@dataclass(kw_only=True)
class AnswerTally:
    """Counts the right answers to the examples of a task and those of a student, part by part.

    `label_names` are of the classes; () for candidates, which are named by their place.
    """

    label_names: Sequence[str]
    _worth: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    _given: Counter[int] = field(default_factory=Counter)
    _chance: float = 0.0
    _labels: dict[str, int] = field(default_factory=dict)

    def add(self, examples: Sequence[Example], scores_nC: npt.NDArray[np.floating]) -> None:
        """Count examples; -inf marks a candidate that one lacks."""
        num_candidates_n = np.isfinite(scores_nC).sum(axis=1).tolist()
        for example, count in zip(examples, num_candidates_n, strict=True):
            worth = dict(example.soft_label) or ({} if example.label is None else {example.label: 1.0})
            for answer, value in worth.items():
                self._worth[answer] += value
            self._chance += sum(worth.values()) / max(1, count)
            self._labels[question_id(example)] = max(worth, key=worth.__getitem__, default=-1)
        self._given.update(scores_nC.argmax(axis=1).tolist())

    def summary(self) -> dict[str, Any]:
        """Return percentages of all examples.

        `chance`: an answer drawn at random. `majority`: always giving `answer`, the one that is right most often; a
        right answer that the student has no class for counts as wrong. `given`: how often the student gives
        `given_answer`, its commonest.
        """
        number = self._given.total()
        best, worth = max(self._worth.items(), key=lambda pair: pair[1], default=(0, 0.0))
        most, given = self._given.most_common(1)[0]
        return {
            "chance": 100.0 * self._chance / number,
            "majority": 100.0 * worth / number,
            "answer": self._name(best),
            "given": 100.0 * given / number,
            "given_answer": self._name(most),
        }

    def joint_summary(self, other: AnswerTally) -> dict[str, Any]:
        """Return the same of giving both right answers to a question, which the other task asks too."""
        both = [(label, other._labels[name]) for name, label in self._labels.items() if name in other._labels]
        (first, second), number = Counter(both).most_common(1)[0]
        return {
            "chance": self.summary()["chance"] * other.summary()["chance"] / 100.0,
            "majority": 100.0 * number / len(both),
            "answer": f"{self._name(first)}, {other._name(second)}",
        }

    def _name(self, place: int) -> str:
        return self.label_names[place] if self.label_names else f"choice {place + 1}"
