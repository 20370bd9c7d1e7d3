"""Scores per item, the input of paired statistics, and the trivial scores that they are compared with.

The trivial scores are chance and the most common correct answer. If most correct answers are no, a student that only
answers "no" seems to have learned something, so its most common answer is reported too.
Shapes: n items, C candidates or classes, K answers.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from advl_pipeline.base.errors import ConfigError, DatasetError, advise
from advl_pipeline.datasets.indexed import IndexedDataset
from advl_pipeline.datasets.measures import Ties
from advl_pipeline.datasets.records import JOINT_METRICS, TASKS, Example, Task
from advl_pipeline.datasets.vqa_answers import ANSWER_TYPES
from advl_pipeline.evaluation.measures import Items, group_share
from advl_pipeline.evaluation.official_metrics import VqaMode, question_accuracy
from advl_pipeline.runs.evaluations import GroupAccuracy, PartAccuracy, TrivialScores


def metric_name(metric: str) -> str:
    """Return the display name of a metric; a metric of a plug-in keeps its own."""
    titles = {facts.metric: facts.title for facts in TASKS.values()}
    titles |= {joint.metric: joint.title for joint in JOINT_METRICS}
    return titles.get(metric, metric)


def question_rank(question_id: str) -> bytes:
    """Return the sort key by which questions are drawn: as good as random, and the same every time."""
    return hashlib.blake2b(question_id.encode()).digest()


def question_id(example: Example) -> str:
    """Return the id of the question that an example asks: its id without the task."""
    return example.example_id.removesuffix(f":{example.task}")


def questions_of(example_ids: Sequence[str], tasks: Sequence[Task]) -> list[str]:
    """Return the question id of each example of a split opened for these tasks."""
    suffixes = tuple(f":{task}" for task in tasks)
    return [name.rpartition(":")[0] if name.endswith(suffixes) else name for name in example_ids]


def first_maximum(scores_nC: npt.NDArray[np.floating], names: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return (n,) the position of the first maximum of each row; -inf marks candidates that an item lacks.

    Raises:
        ConfigError: a row contains a NaN, as from a run that diverged; the NaN would be its maximum.
    """
    bad = np.flatnonzero(np.isnan(scores_nC).any(axis=1))
    if bad.size:
        raise ConfigError(
            f"The student's scores are NaN for {bad.size} of {len(scores_nC)} items.",
            where=names[int(bad[0])],
            why="the run has most likely diverged",
            next_command="look at metrics.jsonl of the run; train again with a lower --learning-rate",
        )
    chosen: npt.NDArray[np.int64] = scores_nC.argmax(axis=1)
    return chosen


def _unscorable(what: str, where: str) -> DatasetError:
    advice = advise(["advl", "predict", "--help"], note="writes answers without scoring them")
    return DatasetError(what, where=where, next_command=advice)


def score_labels(examples: Sequence[Example], chosen: Sequence[int]) -> list[float]:
    """Score choices against the labels: 1 or 0.

    Raises:
        DatasetError: an item without a label.
    """
    if unlabelled := [example.example_id for example in examples if example.label is None]:
        raise _unscorable("An item has no label, so it cannot be scored.", unlabelled[0])
    return [float(choice == example.label) for example, choice in zip(examples, chosen, strict=True)]


def score_ties(
    examples: Sequence[Example], chosen: Sequence[int], scores_nC: npt.NDArray[np.floating], ties: Ties
) -> list[float]:
    """Score choices against the labels with a rule for ties.

    Args:
        ties: `right` counts a right candidate that shares the highest score, `wrong` only one that does not share it.

    Raises:
        DatasetError: an item without a label.
    """
    values = score_labels(examples, chosen)
    if ties == "first":
        return values
    labels = np.array([example.label for example in examples])
    right_n = scores_nC[np.arange(len(examples)), labels]
    is_highest = right_n == scores_nC.max(axis=1)
    is_alone = (scores_nC == right_n[:, None]).sum(axis=1) == 1
    return [float(is_right) for is_right in is_highest & (is_alone | (ties == "right"))]


def score_texts(
    examples: Sequence[Example], texts: Sequence[str], *, dataset: IndexedDataset, mode: VqaMode
) -> list[float]:
    """Score answers in words as the official VQA evaluator does, with its normalisation.

    Raises:
        DatasetError: the split has no public answers.
    """
    return [
        question_accuracy(text, dataset.ground_truth(example.example_id), mode)
        for example, text in zip(examples, texts, strict=True)
    ]


def score_soft_labels(examples: Sequence[Example], chosen: Sequence[int]) -> list[float]:
    """Score choices by the items' soft labels; an answer missing from the soft label gets 0.

    Raises:
        DatasetError: no item has an answer among the classes.
    """
    if not any(example.soft_label for example in examples):
        raise _unscorable(
            "The items cannot be scored: none of their answers is in the run's list of answers.",
            examples[0].example_id,
        )
    return [dict(example.soft_label).get(choice, 0.0) for example, choice in zip(examples, chosen, strict=True)]


def joint_items(answers: Items, rationales: Items) -> Items:
    """Return Q->AR: the joint score of both tasks for the questions that both ask."""
    rationale_of = dict(zip(rationales.question_ids, rationales.score_n, strict=True))
    both = answers.take([row for row, question in enumerate(answers.question_ids) if question in rationale_of])
    return replace(both, score_n=both.score_n * [rationale_of[question] for question in both.question_ids])


def accuracy_by(kinds: Sequence[str], score_n: npt.NDArray[np.floating]) -> dict[str, PartAccuracy]:
    """Return accuracy in percent and number of items per kind; `kinds` gives the kind of each item."""
    kind_n = np.array(kinds)
    return {
        kind: PartAccuracy(
            accuracy=100.0 * float(score_n[kind_n == kind].mean()), num_items=int((kind_n == kind).sum())
        )
        for kind in sorted(set(kinds))
    }


def group_accuracy(items: Items) -> GroupAccuracy:
    """Return the percentage of groups with all items right, and the number of groups."""
    share = group_share(items.score_n, items.pictures) or 0.0
    return GroupAccuracy(accuracy=100.0 * share, num_groups=len(set(items.pictures)))


def accuracy_by_answer_type(items: Items, dataset: IndexedDataset) -> dict[str, PartAccuracy]:
    """Return accuracy and number of VQA questions by answer type: yes/no, number or other."""
    types = [dataset.ground_truth(name).answer_type for name in items.question_ids]
    accuracies = accuracy_by(types, items.score_n)
    return {kind: accuracies[kind] for kind in ANSWER_TYPES if kind in accuracies}


@dataclass(kw_only=True)
class AnswerTally:
    """Counter of the right answers to the examples of a task and of a student's answers, part by part.

    `label_names` are the class names; () for candidates, which are named by position.
    """

    label_names: Sequence[str]
    _worth: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    _given: Counter[int] = field(default_factory=Counter)
    _chance: float = 0.0
    _num_outside: int = 0
    _labels: dict[str, int] = field(default_factory=dict)

    def add(self, examples: Sequence[Example], given: Sequence[int]) -> None:
        """Count examples and the student's answers to them; a negative answer means none."""
        for example in examples:
            worth = dict(example.soft_label) or ({} if example.label is None else {example.label: 1.0})
            self._num_outside += not worth
            for answer, value in worth.items():
                self._worth[answer] += value
            self._chance += sum(worth.values()) / len(self.label_names or example.candidates)
            self._labels[question_id(example)] = max(worth, key=worth.__getitem__, default=-1)
        self._given.update(given)

    def summary(self) -> TrivialScores:
        """Return percentages of all examples, without a prior; without `outside` if there are no such questions."""
        number = self._given.total()
        best, worth = max(self._worth.items(), key=lambda pair: pair[1], default=(0, 0.0))
        most, times = self._given.most_common(1)[0]
        return TrivialScores(
            chance=100.0 * self._chance / number,
            majority=100.0 * worth / number,
            answer=self._name(best),
            given=100.0 * times / number,
            given_answer=self._name(most),
            outside=100.0 * self._num_outside / number if self._num_outside else None,
        )

    def joint_summary(self, other: AnswerTally) -> TrivialScores:
        """Return the same summary for both answers to a question being right, with `other` the second task."""
        both = [(label, other._labels[name]) for name, label in self._labels.items() if name in other._labels]
        (first, second), number = Counter(both).most_common(1)[0]
        return TrivialScores(
            chance=self.summary().chance * other.summary().chance / 100.0,
            majority=100.0 * number / len(both),
            answer=f"{self._name(first)}, {other._name(second)}",
        )

    def _name(self, place: int) -> str:
        if place < 0:
            return "no option"
        return self.label_names[place] if self.label_names else f"choice {place + 1}"
