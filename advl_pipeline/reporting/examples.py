"""Examples where two students of one seed answer differently: picture, candidates, both answers. Of a single run,
examples that it answers rightly and wrongly.

They are drawn by a hash of their ids, half of them won and half of them lost by the focus method, so that nobody
chose them. The words that the focus method would distil are marked, as its evaluation stored them; training examples
are shown with the words that it does distil, as its run stored them in `selected_words.json`. Both files map an
example id to one list of [start, end) character spans per candidate. Where words of test items cannot be told, the
run's `word_selection.json` says why, and the page repeats it.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from advl_pipeline.datasets.interface import Dataset
from advl_pipeline.datasets.pictures import read_rgb
from advl_pipeline.datasets.records import Example, head_name
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.datasets.roots import set_name
from advl_pipeline.errors import AdvlError, DatasetError
from advl_pipeline.evaluation.items import METRIC_OF_TASK, question_rank
from advl_pipeline.reporting import wording
from advl_pipeline.runs import names
from advl_pipeline.runs.names import evaluation_file
from advl_pipeline.runs.results import Evaluation, moved_to, read_evaluation, read_json
from advl_pipeline.studies.config import Setting
from advl_pipeline.studies.result import CellRecord, StudyResult

PICTURE_WIDTH = 360
"""Pixels; pictures are scaled down to it before they enter the page."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """A stretch of a text; selected words are marked."""

    text: str
    selected: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """One candidate or class, whether it is right, and whether each student chose it."""

    pieces: tuple[Piece, ...]
    right: bool
    by_baseline: bool
    by_focus: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Box:
    """A box in pixels of the scaled picture, with the words that the texts call it by."""

    x: float
    y: float
    width: float
    height: float
    label: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownExample:
    """One example of the page. `picture` is a data URI; `focus_is_right` is None where no student answered."""

    example_id: str
    picture: str
    width: int
    height: int
    boxes: tuple[Box, ...]
    context: tuple[Piece, ...]
    choices: tuple[Choice, ...]
    focus_is_right: bool | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ExampleSet:
    """Examples of one setting, how they were found, and why there are none if so.

    `compares`: two students are compared; else one is shown where it is right (won) and where it is wrong (lost).
    `marks_words`: the words that the focus run would distil are marked; `unmarked_because`: why they cannot be.
    """

    setting: str
    where: str
    compares: bool
    runs: tuple[str, ...]
    num_won: int
    num_lost: int
    num_both_wrong: int
    examples: tuple[ShownExample, ...]
    missing: str
    marks_words: bool
    unmarked_because: str


@dataclass(frozen=True, kw_only=True, slots=True)
class WordSet:
    """Training examples of one setting with the words that a run distils, and why there are none if so."""

    setting: str
    where: str
    run: str
    examples: tuple[ShownExample, ...]
    missing: str


def collect_words(result: StudyResult, setting: Setting, *, data_root: Path | None, limit: int) -> WordSet | None:
    """Render training examples of the smallest size and first seed; None when the focus method selects no words."""
    done = [cell for cell in _finished(result, setting) if cell.method == result.study.focus]
    files = [(cell, result.runs / cell.run / names.SELECTED_WORDS) for cell in done]
    cell, path = next(((cell, path) for cell, path in files if path.exists()), (None, None))
    if cell is None or path is None or limit == 0:
        return None
    selected: dict[str, list[list[list[int]]]] = read_json(path)
    config = read_json(result.runs / cell.run / names.CONFIG)
    examples: tuple[ShownExample, ...] = ()
    missing = ""
    try:
        dataset = _open(config, config["dataset"], config["split"], tuple(config["task"]), data_root)
        found = [_find(dataset, name, "") for name in list(selected)[:limit]]
        examples = tuple(
            _render(example, _truth_name(dataset, example), None, None, selected[example.example_id])
            for example in found
        )
    except AdvlError as error:
        missing = error.what + (f" ({error.where})" if error.where else "")
    return WordSet(
        setting=setting.name,
        where=f"{config['split']}, {wording.shots_text(cell.shots)}, seed {cell.seed}",
        run=cell.run,
        examples=examples,
        missing=missing,
    )


def collect_examples(
    result: StudyResult, setting: Setting, *, data_root: Path | None, limit: int
) -> ExampleSet | None:
    """Find and render examples of the smallest size; None when no pair of runs is finished or none are wanted."""
    cells = _shown_runs(result, setting)
    test_set = setting.reference
    found = [read_evaluation(result.runs / cell.run, test_set) for cell in cells]
    evaluations = [one for one in found if one is not None]
    if not cells or limit == 0 or len(evaluations) < len(found):
        return None
    focus = evaluations[-1]
    task = next((name for name in setting.tasks if all(name in one.scores for one in evaluations)), None)
    if task is None:
        return None
    metric = METRIC_OF_TASK[task]
    orders = [_order(one, focus, metric) for one in evaluations]
    right = [one.items[metric][order] for one, order in zip(evaluations, orders, strict=True)]
    chosen = [one.scores[task].argmax(axis=1)[order] for one, order in zip(evaluations, orders, strict=True)]
    # Without another student, one that is right half of the time is met by nobody better.
    other = right[0] if len(cells) > 1 else np.full_like(right[0], 0.5)
    won, lost = np.flatnonzero(right[-1] > other), np.flatnonzero(right[-1] < other)
    tied = np.flatnonzero((chosen[0] != chosen[-1]) & (right[0] == right[-1]))
    ids = focus.ids[metric]
    shown = [*_draw(won, ids, (limit + 1) // 2), *_draw(lost, ids, limit // 2)]
    runs = [result.runs / cell.run for cell in cells]
    words_file = evaluation_file(runs[-1], test_set, names.ITEM_WORDS_SUFFIX)
    marked: dict[str, list[list[list[int]]]] = read_json(words_file) if words_file.exists() else {}
    examples: tuple[ShownExample, ...] = ()
    missing = ""
    try:
        name, split = set_name(test_set, setting.dataset)
        config = read_json(runs[-1] / names.CONFIG)
        dataset = _open(config, name, split, (task,), data_root)
        classes = [_answers_of(run, task) if dataset.label_names(dataset.tasks[0]) else () for run in runs]
        said = [[_answer(int(place), own) for place in one] for one, own in zip(chosen, classes, strict=True)]
        examples = tuple(
            _render(
                example := _find(dataset, ids[row], task),
                _truth_name(dataset, example),
                said[0][row] if len(cells) > 1 else None,
                said[-1][row],
                marked.get(example.example_id, []),
                focus_is_right=bool(right[-1][row] > other[row]),
            )
            for row in shown
        )
    except AdvlError as error:
        missing = error.what + (f" ({error.where})" if error.where else "")
    return ExampleSet(
        setting=setting.name,
        where=f"{test_set}, {wording.shots_text(cells[-1].shots)}, seed {cells[-1].seed}",
        compares=len(cells) > 1,
        runs=tuple(cell.run for cell in cells),
        num_won=len(won),
        num_lost=len(lost),
        num_both_wrong=len(tied),
        examples=examples,
        missing=missing,
        marks_words=bool(marked),
        unmarked_because="" if marked else _obstacle(runs[-1]),
    )


def _obstacle(run: Path) -> str:
    """Return why the words that a run would distil cannot be told of test items, or nothing where they can."""
    path = run / names.WORD_SELECTION
    return str(read_json(path).get("obstacle", "")) if path.exists() else ""


def _shown_runs(result: StudyResult, setting: Setting) -> list[CellRecord]:
    """Return baseline and focus run of the smallest size and the first seed that finished both, or the only run."""
    done = _finished(result, setting)
    if len(result.study.methods) == 1:
        return done[:1]
    for focus in done:
        if focus.method != result.study.focus:
            continue
        for other in done:
            if (other.method, other.shots, other.seed) == (result.study.baseline, focus.shots, focus.seed):
                return [other, focus]
    return []


def _finished(result: StudyResult, setting: Setting) -> list[CellRecord]:
    """Finished cells, the smallest size and the first seed first."""
    done = [cell for cell in result.cells if cell.setting == setting.name and cell.state == "finished"]
    return sorted(done, key=lambda cell: (cell.shots is None, cell.shots or 0, cell.seed))


def _order(baseline: Evaluation, focus: Evaluation, metric: str) -> list[int]:
    where = {name: row for row, name in enumerate(baseline.ids[metric])}
    return [where[name] for name in focus.ids[metric]]


def _draw(rows: np.ndarray, ids: Sequence[str], number: int) -> list[int]:
    """Choose rows by the hash of their ids: as good as at random, and the same every time."""
    ranked = sorted(map(int, rows), key=lambda row: question_rank(ids[row]))
    return ranked[:number]


def _open(
    config: Mapping[str, Any], name: str, split: str, tasks: tuple[str, ...], data_root: Path | None
) -> Dataset:
    """Open a split as the run read its own: the same wording, order of classes and answer list."""
    answers = config.get("answers")
    return open_dataset(
        name,
        split=split,
        data_root=moved_to(data_root, config),
        tasks=tasks,
        text_style=config.get("text_style"),
        label_order=config.get("label_order", "uniter"),
        answers=Path(answers) if answers else None,
        answer_list=config.get("answer_list", "train"),
        on_error=config.get("on_error", "fail"),
    )


def _answers_of(run: Path, task: str) -> tuple[str, ...]:
    """Class names of a run's own head: its answers mean what they meant in training."""
    classes: list[str] = read_json(run / names.HEADS)[head_name(task)]["label_names"]
    return tuple(classes)


def _answer(choice: int, classes: tuple[str, ...]) -> int | str:
    """Return what a student answered: a class by name, or a candidate by position."""
    return classes[choice] if classes else choice


def _truth_name(dataset: Dataset, example: Example) -> int | str | None:
    """Return the right answer: a class by name, or a candidate by position; None where it is not known."""
    names, best = dataset.label_names(example.task), _best(example)
    return names[best] if names and best is not None else best


def _find(dataset: Dataset, item_id: str, task: str) -> Example:
    """Return an example by its id or by the id of its question."""
    ids = list(dataset.example_ids)
    for name in (item_id, f"{item_id}:{task}"):
        if name in ids:
            return dataset[ids.index(name)]
    raise DatasetError("The dataset has no such item any more.", where=item_id)


def _render(
    example: Example,
    truth: int | str | None,
    by_baseline: int | str | None,
    by_focus: int | str | None,
    spans: Sequence[Sequence[Sequence[int]]],
    *,
    focus_is_right: bool | None = None,
) -> ShownExample:
    picture, width, height = _picture(example.image.path)
    first = example.candidates[0]
    texts: list[tuple[int | str, tuple[Piece, ...]]]
    if len(example.candidates) == 1:
        names = dict.fromkeys(name for name in (truth, by_baseline, by_focus) if name is not None)
        texts = [(name, (Piece(text=str(name), selected=False),)) for name in names]
        context = _pieces(first.text, 0, len(first.text), spans[0] if spans else [])
    else:
        texts = [
            (index, _pieces(c.text, c.answer_start, len(c.text), spans[index] if index < len(spans) else []))
            for index, c in enumerate(example.candidates)
        ]
        context = _pieces(first.text, 0, first.context_length, spans[0] if spans else [])
    return ShownExample(
        example_id=example.example_id,
        picture=picture,
        width=width,
        height=height,
        boxes=_boxes(example, width),
        context=context,
        choices=tuple(
            Choice(pieces=pieces, right=name == truth, by_baseline=name == by_baseline, by_focus=name == by_focus)
            for name, pieces in texts
        ),
        focus_is_right=focus_is_right,
    )


def _best(example: Example) -> int | None:
    if example.label is not None or not example.soft_label:
        return example.label
    return max(example.soft_label, key=lambda pair: pair[1])[0]


def _pieces(text: str, start: int, end: int, spans: Sequence[Sequence[int]]) -> tuple[Piece, ...]:
    """Cut [start, end) of a text at the selected spans."""
    pieces, at = [], start
    for low, high in sorted((int(low), int(high)) for low, high in spans):
        if low < at or high > end:
            continue
        if low > at:
            pieces.append(Piece(text=text[at:low], selected=False))
        pieces.append(Piece(text=text[low:high], selected=True))
        at = high
    if at < end:
        pieces.append(Piece(text=text[at:end], selected=False))
    return tuple(pieces)


def _boxes(example: Example, width: int) -> tuple[Box, ...]:
    """Boxes that the texts speak of, scaled to the shown picture; all boxes when they speak of none."""
    image = example.image
    scale = width / image.width
    called = {tag.box: c.text[tag.start : tag.end] for c in reversed(example.candidates) for tag in reversed(c.tags)}
    rows = sorted(row for row in called if row < len(image.boxes_R4)) or range(len(image.boxes_R4))
    found = []
    for row in rows:
        x1, y1, x2, y2 = (float(value) * scale for value in image.boxes_R4[row])
        name = image.box_labels[row] if row < len(image.box_labels) else ""
        label = called.get(row) or f"{row} {name}".strip()
        found.append(Box(x=x1, y=y1, width=x2 - x1, height=y2 - y1, label=label))
    return tuple(found)


def _picture(path: Path) -> tuple[str, int, int]:
    """Return a picture as a data URI with its width and height.

    Raises:
        DatasetError: it cannot be read.
    """
    picture = read_rgb(path)
    if picture.width > PICTURE_WIDTH:
        picture = picture.resize((PICTURE_WIDTH, round(picture.height * PICTURE_WIDTH / picture.width)))
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=82)
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:image/jpeg;base64,{encoded}", picture.width, picture.height
