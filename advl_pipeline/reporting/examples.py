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
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from advl_pipeline.datasets.pictures import read_rgb
from advl_pipeline.datasets.records import Dataset, Example, head_name
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.datasets.roots import set_name
from advl_pipeline.errors import AdvlError, DatasetError
from advl_pipeline.evaluation.items import METRIC_OF_TASK, question_rank
from advl_pipeline.reporting import wording
from advl_pipeline.runs import names
from advl_pipeline.runs.names import evaluation_file
from advl_pipeline.runs.results import moved_to, read_evaluation, read_json
from advl_pipeline.studies.config import Setting
from advl_pipeline.studies.result import StudyResult

PICTURE_WIDTH = 360
"""Pixels; pictures are scaled down to it before they enter the page."""

Spans = Sequence[Sequence[Sequence[int]]]
"""One list of [start, end) character spans per candidate."""


def collect_words(
    result: StudyResult, setting: Setting, *, data_root: Path | None, limit: int
) -> dict[str, Any] | None:
    """Render training examples of the smallest size and first seed; None when the focus method selects no words.

    Returns:
        setting, where and runs; examples, as `_shown` has them, and why they are missing if so.
    """
    done = [cell for cell in result.finished(setting.name) if cell.method == result.study.focus]
    cell = next((cell for cell in done if (result.runs / cell.run / names.SELECTED_WORDS).exists()), None)
    if cell is None or limit == 0:
        return None
    selected: dict[str, Spans] = read_json(result.runs / cell.run / names.SELECTED_WORDS)
    config = read_json(result.runs / cell.run / names.CONFIG)

    def rendered() -> Iterator[dict[str, Any]]:
        dataset = _open(config, config["dataset"], config["split"], tuple(config["task"]), data_root)
        for name in list(selected)[:limit]:
            example = _find(dataset, name, "")
            yield _shown(example, _truth_name(dataset, example), None, None, selected[example.example_id])

    where = f"{config['split']}, {wording.shots_text(cell.shots)}, seed {cell.seed}"
    return {"setting": setting.name, "where": where, "runs": [cell.run], **_if_at_hand(rendered)}


def collect_examples(
    result: StudyResult, setting: Setting, *, data_root: Path | None, limit: int
) -> dict[str, Any] | None:
    """Find and render examples of the smallest size; None when no pair of runs is finished or none are wanted.

    Returns:
        setting, where and runs; whether two students are compared, else one is shown where it is right (won) and
        where it is wrong (lost); num_won, num_lost and num_tied; examples and why they are missing if so; whether the
        words are marked that the focus run would distil, and why they cannot be.
    """
    cells = _shown_runs(result, setting)
    test_set = setting.reference
    evaluations = [one for cell in cells if (one := read_evaluation(result.runs / cell.run, test_set)) is not None]
    task = next((name for name in setting.tasks if all(name in one.scores for one in evaluations)), None)
    if not cells or limit == 0 or len(evaluations) < len(cells) or task is None:
        return None
    metric, ids = METRIC_OF_TASK[task], evaluations[-1].ids[METRIC_OF_TASK[task]]
    right, chosen = [], []
    for one in evaluations:
        row_of = {name: row for row, name in enumerate(one.ids[metric])}
        order = [row_of[name] for name in ids]
        right.append(one.items[metric][order])
        chosen.append(one.scores[task].argmax(axis=1)[order])
    compares = len(cells) > 1
    # Without another student, one that is right half of the time is met by nobody better.
    other = right[0] if compares else np.full_like(right[0], 0.5)
    won, lost = np.flatnonzero(right[-1] > other), np.flatnonzero(right[-1] < other)
    tied = (chosen[0] != chosen[-1]) & (right[0] == right[-1])
    runs = [result.runs / cell.run for cell in cells]
    words_file = evaluation_file(runs[-1], test_set, names.ITEM_WORDS_SUFFIX)
    marked: dict[str, Spans] = read_json(words_file) if words_file.exists() else {}
    obstacle = runs[-1] / names.WORD_SELECTION

    def rendered() -> Iterator[dict[str, Any]]:
        name, split = set_name(test_set, setting.dataset)
        dataset = _open(read_json(runs[-1] / names.CONFIG), name, split, (task,), data_root)
        # Answers of a head mean what they meant in training.
        classes = [
            read_json(run / names.HEADS)[head_name(task)]["label_names"]
            if dataset.label_names(dataset.tasks[0])
            else ()
            for run in runs
        ]
        for row in (*_draw(won, ids, (limit + 1) // 2), *_draw(lost, ids, limit // 2)):
            example = _find(dataset, ids[row], task)
            said = [own[one[row]] if own else int(one[row]) for one, own in zip(chosen, classes, strict=True)]
            yield _shown(
                example,
                _truth_name(dataset, example),
                said[0] if compares else None,
                said[-1],
                marked.get(example.example_id, []),
                focus_is_right=bool(right[-1][row] > other[row]),
            )

    return {
        "setting": setting.name,
        "where": f"{test_set}, {wording.shots_text(cells[-1].shots)}, seed {cells[-1].seed}",
        "compares": compares,
        "runs": [cell.run for cell in cells],
        "num_won": len(won),
        "num_lost": len(lost),
        "num_tied": int(tied.sum()),
        "marks_words": bool(marked),
        "unmarked_because": "" if marked or not obstacle.exists() else str(read_json(obstacle).get("obstacle", "")),
        **_if_at_hand(rendered),
    }


def _if_at_hand(rendered: Callable[[], Iterator[dict[str, Any]]]) -> dict[str, Any]:
    """Return examples, or none and why: a study is reported where its data are not, too."""
    try:
        return {"examples": list(rendered()), "missing": ""}
    except AdvlError as error:
        return {"examples": [], "missing": error.what + (f" ({error.where})" if error.where else "")}


def _shown_runs(result: StudyResult, setting: Setting) -> list[Any]:
    """Return baseline and focus run of the smallest size and the first seed that finished both, or the only run."""
    done = result.finished(setting.name)
    if len(result.study.methods) == 1:
        return done[:1]
    for focus in (cell for cell in done if cell.method == result.study.focus):
        for other in done:
            if (other.method, other.shots, other.seed) == (result.study.baseline, focus.shots, focus.seed):
                return [other, focus]
    return []


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


def _truth_name(dataset: Dataset, example: Example) -> int | str | None:
    """Return the right answer: a class by name, or a candidate by position; None where it is not known."""
    best = example.label
    if best is None and example.soft_label:
        best = max(example.soft_label, key=lambda pair: pair[1])[0]
    classes = dataset.label_names(example.task)
    return classes[best] if classes and best is not None else best


def _find(dataset: Dataset, item_id: str, task: str) -> Example:
    """Return an example by its id or by the id of its question."""
    ids = list(dataset.example_ids)
    for name in (item_id, f"{item_id}:{task}"):
        if name in ids:
            return dataset[ids.index(name)]
    raise DatasetError("The dataset has no such item any more.", where=item_id)


def _shown(
    example: Example,
    truth: int | str | None,
    by_baseline: int | str | None,
    by_focus: int | str | None,
    spans: Spans,
    *,
    focus_is_right: bool | None = None,
) -> dict[str, Any]:
    """Return what the page shows of an example; `focus_is_right` is None where no student answered.

    `picture` is a data URI. A text is a list of pieces: a stretch of it, and whether it was selected.
    """
    picture, width, height = _picture(example.image.path)
    first, texts = example.candidates[0], {}
    if len(example.candidates) == 1:
        names = dict.fromkeys(name for name in (truth, by_baseline, by_focus) if name is not None)
        texts = {name: [(str(name), False)] for name in names}
    else:
        for index, one in enumerate(example.candidates):
            own = spans[index] if index < len(spans) else []
            texts[index] = _pieces(one.text, one.answer_start, len(one.text), own)
    end = len(first.text) if len(example.candidates) == 1 else first.context_length
    return {
        "example_id": example.example_id,
        "picture": picture,
        "width": width,
        "height": height,
        "boxes": _boxes(example, width),
        "context": _pieces(first.text, 0, end, spans[0] if spans else []),
        "choices": [
            {
                "pieces": pieces,
                "right": name == truth,
                "by_baseline": name == by_baseline,
                "by_focus": name == by_focus,
            }
            for name, pieces in texts.items()
        ],
        "focus_is_right": focus_is_right,
    }


def _pieces(text: str, start: int, end: int, spans: Sequence[Sequence[int]]) -> list[tuple[str, bool]]:
    """Cut [start, end) of a text at the selected spans."""
    pieces, at = [], start
    for low, high in sorted((int(low), int(high)) for low, high in spans):
        if at <= low and high <= end:
            pieces += [(text[at:low], False), (text[low:high], True)]
            at = high
    return [piece for piece in (*pieces, (text[at:end], False)) if piece[0]]


def _boxes(example: Example, width: int) -> list[dict[str, Any]]:
    """Return the boxes that the texts speak of, in pixels of the shown picture, by what the texts call them.

    They are all boxes when the texts speak of none.
    """
    image = example.image
    scale = width / image.width
    called = {tag.box: c.text[tag.start : tag.end] for c in reversed(example.candidates) for tag in reversed(c.tags)}
    rows = sorted(row for row in called if row < len(image.boxes_R4)) or range(len(image.boxes_R4))
    found = []
    for row in rows:
        x1, y1, x2, y2 = (float(value) * scale for value in image.boxes_R4[row])
        name = image.box_labels[row] if row < len(image.box_labels) else ""
        label = called.get(row) or f"{row} {name}".strip()
        found.append({"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1, "label": label})
    return found


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
