"""How far one gets without the picture, or with one cue of it: the figures in the card of the corpus.

Log-linear models over words, word pairs and, for multiple choice, pairs of a context word and a choice word; fitted
on train and scored on test. For SNLI-VE also what one cue of the picture gives, per question type and without any
word. Run as a program it prints the figures for a built corpus:

    python tests/support/scenes_text_only.py datasets/scenes
"""

from __future__ import annotations

import itertools
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from scipy import sparse

from advl_data.scenes.generator import paths
from advl_data.scenes.generator.snli_ve_items import LABELS
from advl_data.scenes.generator.vocabulary import load_vocabulary
from advl_pipeline.logistic import FloatArray, Likelihood, fit_logistic, of_candidates, of_classes

_MIN_COUNT: Final = 2
_PENALTY: Final = 1e-3
_SOFT_STEP: Final = 0.3
"""VQA score per annotator who gave the answer, up to 1."""
_CONTAINERS: Final = load_vocabulary().containers


FIGURES: Final = ("vcr-q2a", "vcr-qa2r", "vqa", "snli-ve", "snli-ve-container", "snli-ve-number")
"""What is measured. The last two know one cue of the picture and no word: the kind of its container, and how many
things it shows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextOnlyFigure:
    """Percent right. `baseline` is chance for multiple choice, else the best constant per question type."""

    num_items: int
    accuracy: float
    baseline: float

    @property
    def standard_error(self) -> float:
        """Of the baseline, in percent points."""
        share = self.baseline / 100
        return float(100 * np.sqrt(share * (1 - share) / self.num_items))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Item:
    """Words of each choice (classification has one), the label or the score of each answer, and the question type."""

    choices: tuple[tuple[str, ...], ...]
    scores: tuple[tuple[str, float], ...]
    question_type: str


def measure_text_only(
    folder: Path, *, split: str = "test", names: Sequence[str] = FIGURES
) -> dict[str, TextOnlyFigure]:
    """Fit on train and score on `split`.

    Args:
        folder: the built corpus.
        names: of `FIGURES`.
    """
    return {name: _measure(folder, split, name) for name in names}


def _measure(folder: Path, split: str, name: str) -> TextOnlyFigure:
    if name in ("vcr-q2a", "vcr-qa2r"):
        rationale = name == "vcr-qa2r"
        return _choice_figure(_vcr(folder, "train", rationale), _vcr(folder, split, rationale))
    if name == "vqa":
        return _class_figure(_vqa(folder, "train"), _vqa(folder, split))
    train, test = _snli_ve(folder, "train"), _snli_ve(folder, split)
    if name == "snli-ve":
        return _class_figure(train, test)
    cue = _CUES[name]
    return TextOnlyFigure(
        num_items=len(test),
        accuracy=_constant_accuracy(_seen_by_cue(folder, "train", cue), _seen_by_cue(folder, split, cue)),
        baseline=_constant_accuracy(train, test),
    )


def _vcr(folder: Path, split: str, rationale: bool) -> list[_Item]:
    items: list[_Item] = []
    for line in _lines(folder / paths.vcr_annotations(split)):
        context = _flat(line["question"])
        label = line["rationale_label" if rationale else "answer_label"]
        if rationale:
            context += _flat(line["answer_choices"][line["answer_label"]])
        choices = [_flat(choice) for choice in line["rationale_choices" if rationale else "answer_choices"]]
        items.append(
            _Item(
                choices=tuple(
                    (*_grams(choice), *(f"{one}|{other}" for one in context for other in choice))
                    for choice in choices
                ),
                scores=((str(label), 1.0),),
                question_type="",
            )
        )
    return items


def _vqa(folder: Path, split: str) -> list[_Item]:
    questions = json.loads((folder / paths.vqa_questions(split)).read_text(encoding="utf-8"))["questions"]
    annotations = json.loads((folder / paths.vqa_annotations(split)).read_text(encoding="utf-8"))["annotations"]
    items: list[_Item] = []
    for question, annotation in zip(questions, annotations, strict=True):
        votes = Counter(answer["answer"] for answer in annotation["answers"])
        items.append(
            _Item(
                choices=(tuple(_grams(question["question"].rstrip("?").lower().split())),),
                scores=tuple((answer, min(1.0, _SOFT_STEP * count)) for answer, count in votes.most_common()),
                question_type=annotation["question_type"],
            )
        )
    return items


def _snli_ve(folder: Path, split: str) -> list[_Item]:
    return [
        _Item(
            choices=(tuple(_grams(line["sentence2"].rstrip(".").lower().split())),),
            scores=((line["gold_label"], 1.0),),
            question_type=line["question_type"],
        )
        for line in _lines(folder / paths.snli_ve_annotations(split))
    ]


def _seen_by_cue(folder: Path, split: str, cue: Callable[[str], str]) -> list[_Item]:
    """Return items whose type is the question's, with what the cue tells of the picture."""
    return [
        _Item(
            choices=((),),
            scores=((line["gold_label"], 1.0),),
            question_type=f"{line['question_type']} {cue(line['sentence1'])}",
        )
        for line in _lines(folder / paths.snli_ve_annotations(split))
    ]


def _container_in(premise: str) -> str:
    """Return which container a listing of the picture's things names."""
    (name,) = (kind.name for kind in _CONTAINERS if f" {kind.name}" in premise)
    return name


def _number_in(premise: str) -> str:
    """Return how many things a listing of the picture's things names."""
    return str(premise.count(",") + 2)


_CUES: Final[Mapping[str, Callable[[str], str]]] = {"snli-ve-container": _container_in, "snli-ve-number": _number_in}


def _choice_figure(train: Sequence[_Item], test: Sequence[_Item]) -> TextOnlyFigure:
    num_choices = len(train[0].choices)
    columns = _columns(train)
    labels = np.array([int(item.scores[0][0]) for item in train])
    weights = _fit(train, columns, of_candidates(labels), num_outputs=1)[:, 0]
    logits = (_matrix(test, columns) @ weights).reshape(-1, num_choices)
    right = logits.argmax(axis=1) == np.array([int(item.scores[0][0]) for item in test])
    return TextOnlyFigure(num_items=len(test), accuracy=float(100 * right.mean()), baseline=100 / num_choices)


def _class_figure(train: Sequence[_Item], test: Sequence[_Item]) -> TextOnlyFigure:
    answers = sorted({answer for item in train for answer, _ in item.scores[:1]} | set(LABELS))
    index = {answer: position for position, answer in enumerate(answers)}
    labels = np.array([index[item.scores[0][0]] for item in train])
    columns = _columns(train)
    weights = _fit(train, columns, of_classes(labels), num_outputs=len(answers))
    chosen = (_matrix(test, columns) @ weights).argmax(axis=1)
    scores = [dict(item.scores).get(answers[position], 0.0) for item, position in zip(test, chosen, strict=True)]
    return TextOnlyFigure(
        num_items=len(test), accuracy=float(100 * np.mean(scores)), baseline=_constant_accuracy(train, test)
    )


def _constant_accuracy(train: Sequence[_Item], test: Sequence[_Item]) -> float:
    """Score of the answer that is the most frequent in train, per question type."""
    counts: dict[str, Counter[str]] = {}
    for item in train:
        counts.setdefault(item.question_type, Counter())[item.scores[0][0]] += 1
    best = {question_type: counter.most_common(1)[0][0] for question_type, counter in counts.items()}
    return float(100 * np.mean([dict(item.scores).get(best[item.question_type], 0.0) for item in test]))


def _fit(items: Sequence[_Item], columns: dict[str, int], likelihood: Likelihood, *, num_outputs: int) -> FloatArray:
    return fit_logistic(
        _matrix(items, columns),
        likelihood,
        num_examples=len(items),
        penalty=2 * _PENALTY,
        start_XO=np.zeros((len(columns), num_outputs)),
        has_intercept=False,
    )


def _columns(items: Sequence[_Item]) -> dict[str, int]:
    counts = Counter(gram for item in items for choice in item.choices for gram in set(choice))
    return {gram: column for column, gram in enumerate(sorted(g for g, n in counts.items() if n >= _MIN_COUNT))}


def _matrix(items: Sequence[_Item], columns: dict[str, int]) -> sparse.csr_array:
    """Return the presence of each feature, one row per choice."""
    rows = [
        sorted({columns[gram] for gram in choice if gram in columns}) for item in items for choice in item.choices
    ]
    starts = np.cumsum([0, *map(len, rows)])
    values = np.ones(int(starts[-1]))
    flat = np.array([column for row in rows for column in row], dtype=np.int64)
    return sparse.csr_array((values, flat, starts), shape=(len(rows), len(columns)))


def _grams(words: Sequence[str]) -> list[str]:
    return [*words, *(f"{one} {other}" for one, other in itertools.pairwise(words))]


def _flat(tokens: Iterable[str | list[int]]) -> list[str]:
    return [token if isinstance(token, str) else f"[{token[0]}]" for token in tokens]


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    measured = measure_text_only(Path(sys.argv[1]))
    document = {name: asdict(figure) | {"standard_error": figure.standard_error} for name, figure in measured.items()}
    print(json.dumps(document, indent=1))
