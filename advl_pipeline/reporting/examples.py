"""Examples that two students of one seed answer differently: picture, candidates, both answers. For a single run,
examples that it answers correctly and incorrectly.

They are drawn by a hash of their ids, not picked by hand: half of them won and half of them lost by the focus method.
Training examples show the words that the focus method distils, as stored by its run in `selected_words.json`:
example id -> one list of [start, end) character spans per candidate.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from advl_pipeline.base.errors import AdvlError, DatasetError
from advl_pipeline.datasets.cards import JOIN
from advl_pipeline.datasets.indexed import IndexedDataset
from advl_pipeline.datasets.pictures import read_picture
from advl_pipeline.datasets.records import TASKS, Example, head_name
from advl_pipeline.datasets.registry import find_dataset
from advl_pipeline.datasets.roots import set_name
from advl_pipeline.evaluation.items import question_rank
from advl_pipeline.evaluation.open_sets import open_with_classes
from advl_pipeline.reporting import wording
from advl_pipeline.runs import names
from advl_pipeline.runs.evaluations import TRUE_PICTURE, Evaluation, filed_as, read_evaluation
from advl_pipeline.runs.results import moved_to, read_config, read_json
from advl_pipeline.students.heads import described_heads
from advl_pipeline.studies.config import Setting
from advl_pipeline.studies.result import StudyResult

PICTURE_WIDTH = 360
"""Maximum width in pixels; wider pictures are scaled down before they are embedded."""

Name = int | str | None
"""An answer: a class by name, or a candidate by position; None for no answer."""


Pieces = list[tuple[str, bool]]
"""A text in pieces: each a substring, and whether it was selected."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownBox:
    """A box in pixels of the shown picture; `label` is the words that mention it, or its number and class."""

    x: float
    y: float
    width: float
    height: float
    label: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownChoice:
    """A candidate, whether it is right, and which students answered it."""

    pieces: Pieces
    right: bool
    by_baseline: bool
    by_focus: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownExample:
    """What the page shows of an example; `focus_is_right` is None if no student answered.

    `picture` is a data URI. `boxes` are those that the texts mention, or all of them if the texts mention none.
    """

    example_id: str
    picture: str
    width: int
    height: int
    boxes: Sequence[ShownBox]
    context: Pieces
    choices: Sequence[ShownChoice]
    focus_is_right: bool | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendered:
    """Examples, or none and the reason why they are missing."""

    examples: Sequence[ShownExample] = ()
    missing: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class WordSet:
    """Training examples of a setting, with the words that a run selected; `where` is their split and its seed."""

    setting: str
    where: str
    run: str
    rendered: Rendered


@dataclass(frozen=True, kw_only=True, slots=True)
class ExampleSet:
    """Examples of a setting, which two students answer differently.

    If nothing `compares` them, they are of a single student: won where it is right, and lost where it is wrong.
    """

    setting: str
    where: str
    compares: bool
    runs: Sequence[str]
    num_won: int
    num_lost: int
    num_tied: int
    rendered: Rendered


def collect_words(result: StudyResult, setting: Setting, *, data_root: Path | None, limit: int) -> WordSet | None:
    """Render training examples of the smallest size and first seed; None if the focus method selects no words."""
    done = [row for row in result.finished(setting.name) if row.method == result.study.focus]
    row = next((row for row in done if (result.outer / row.run / names.SELECTED_WORDS).exists()), None)
    if row is None or limit == 0:
        return None
    run = result.outer / row.run
    selected = read_json(run / names.SELECTED_WORDS)
    config = read_config(run)

    def rendered() -> Iterator[ShownExample]:
        parts = [
            _open(run, config["dataset"], split, tuple(config["task"]), data_root)
            for split in config["split"].split(JOIN)
        ]
        for name in list(selected)[:limit]:
            dataset = next((part for part in parts if name in part.example_ids), parts[0])
            example = _find(dataset, name, "")
            yield _shown(example, dataset, spans=selected[example.example_id])

    where = f"{config['split']}, {wording.shots_text(row.shots)}, seed {row.seed}"
    return WordSet(setting=setting.name, where=where, run=row.run, rendered=_if_at_hand(rendered))


def collect_examples(
    result: StudyResult, setting: Setting, *, data_root: Path | None, limit: int
) -> ExampleSet | None:
    """Find and render examples of the smallest size; None if no pair of runs is finished or none are requested."""
    # Baseline and focus run of the first seed that finished both, or the only run.
    study, done, test_set = result.study, result.finished(setting.name), setting.reference
    of_baseline = {(row.shots, row.seed): row for row in done if row.method == study.baseline}
    of_focus = (row for row in done if row.method == study.focus)
    pairs = ([of_baseline[place], row] for row in of_focus if (place := (row.shots, row.seed)) in of_baseline)
    rows = done[:1] if len(study.methods) == 1 else next(pairs, [])
    runs = [result.outer / row.run for row in rows]
    ways = study.evaluation.get("vqa_mode"), study.evaluation.get("protocol", "likelihood")
    evaluations = [
        evaluation for run in runs if (evaluation := read_evaluation(run, filed_as(run, test_set, *ways))) is not None
    ]
    task = next(
        (name for name in setting.tasks if all(name in evaluation.scores for evaluation in evaluations)), None
    )
    if not rows or limit == 0 or len(evaluations) < len(rows) or task is None:
        return None
    answers = [_answers(evaluation, task) for evaluation in evaluations]
    focus_right, focus_said = answers[-1]["right"], answers[-1]["said"]
    compares = len(rows) > 1
    # A single student is compared with 0.5, so that right answers count as won and wrong ones as lost.
    other = answers[0]["right"].reindex(focus_right.index) if compares else 0.5
    won, lost = (list(focus_right.index[is_so]) for is_so in (focus_right > other, focus_right < other))
    tied = (answers[0]["said"].reindex(focus_said.index) != focus_said) & (focus_right == other)

    def rendered() -> Iterator[ShownExample]:
        name, split = set_name(names.set_of(test_set), setting.dataset)
        dataset = _open(runs[-1], name, split, (task,), data_root)
        # The outputs of a head keep the order of their classes in training.
        has_classes = bool(dataset.label_names(dataset.tasks[0]))
        heads = [described_heads(run)[head_name(task)] if has_classes else {} for run in runs]
        # Drawn by the hash of their ids: as good as random, and the same every time.
        drawn = sorted(won, key=question_rank)[: (limit + 1) // 2] + sorted(lost, key=question_rank)[: limit // 2]
        for item in drawn:
            chosen = [int(frame["said"][item]) for frame in answers]
            named: list[Name] = [
                head["label_names"][answer] if head else answer for head, answer in zip(heads, chosen, strict=True)
            ]
            yield _shown(
                _find(dataset, item, task),
                dataset,
                by_baseline=named[0] if compares else None,
                by_focus=named[-1],
                focus_is_right=item in won,
            )

    return ExampleSet(
        setting=setting.name,
        where=f"{test_set}, {wording.shots_text(rows[-1].shots)}, seed {rows[-1].seed}",
        compares=compares,
        runs=[row.run for row in rows],
        num_won=len(won),
        num_lost=len(lost),
        num_tied=int(tied.sum()),
        rendered=_if_at_hand(rendered),
    )


def _answers(evaluation: Evaluation, task: str) -> pd.DataFrame:
    """Return a row for each item: the answer and its score."""
    items = evaluation.items
    shown = items[(items["metric"] == TASKS[task].metric) & (items["condition"] == TRUE_PICTURE)]
    columns = {"right": shown["score"].to_numpy(), "said": evaluation.scores[task].argmax(axis=1)}
    return pd.DataFrame(columns, index=shown["item"])


def _if_at_hand(rendered: Callable[[], Iterator[ShownExample]]) -> Rendered:
    """Return examples, or none and the reason: a study can be reported without its data."""
    try:
        return Rendered(examples=list(rendered()))
    except AdvlError as error:
        return Rendered(missing=error.what + (f" ({error.where})" if error.where else ""))


def _open(run: Path, name: str, split: str, tasks: tuple[str, ...], data_root: Path | None) -> IndexedDataset:
    """Open a split with the wording and the classes of a run."""
    config = read_config(run)
    root = moved_to(data_root, config)
    return open_with_classes(
        find_dataset(name, root),
        split,
        config,
        next((tuple(head["label_names"]) for head in described_heads(run).values() if head["label_names"]), None),
        data_root=root,
        tasks=tasks,
        on_error=config.get("on_error", "fail"),
    )


def _find(dataset: IndexedDataset, item_id: str, task: str) -> Example:
    """Return an example by its id or the id of its question."""
    ids = list(dataset.example_ids)
    for name in (item_id, f"{item_id}:{task}"):
        if name in ids:
            return dataset[ids.index(name)]
    raise DatasetError(f"The dataset no longer has the item {item_id!r}.", where=dataset.name)


def _shown(
    example: Example,
    dataset: IndexedDataset,
    *,
    by_baseline: Name = None,
    by_focus: Name = None,
    spans: Sequence[Sequence[Sequence[int]]] = (),
    focus_is_right: bool | None = None,
) -> ShownExample:
    """Return what the page shows for an example.

    Raises:
        DatasetError: the picture cannot be read.
    """
    truth: Name = example.label
    if truth is None and example.soft_label:
        truth = max(example.soft_label, key=lambda pair: pair[1])[0]
    classes = dataset.label_names(example.task)
    truth = classes[truth] if classes and isinstance(truth, int) else truth
    if truth is None and classes:
        # A right answer that no training question has is in no list of classes.
        answers = dataset.answers_of(example.example_id)
        truth = max(answers, key=lambda answer: answers[answer], default=None)
    picture = read_picture(example.image)
    if picture.width > PICTURE_WIDTH:
        picture = picture.resize((PICTURE_WIDTH, round(picture.height * PICTURE_WIDTH / picture.width)))
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=82)
    image, scale, boxes = example.image, picture.width / example.image.width, []
    called = {tag.box: c.text[tag.start : tag.end] for c in reversed(example.candidates) for tag in reversed(c.tags)}
    for row in sorted(row for row in called if row < len(image.boxes_R4)) or range(len(image.boxes_R4)):
        x1, y1, x2, y2 = (float(value) * scale for value in image.boxes_R4[row])
        label = called.get(row) or f"{row} {image.box_labels[row] if row < len(image.box_labels) else ''}".strip()
        boxes.append(ShownBox(x=x1, y=y1, width=x2 - x1, height=y2 - y1, label=label))
    first, chooses = example.candidates[0], len(example.candidates) > 1
    texts: dict[Name, Pieces] = {}
    if chooses:
        for index, candidate in enumerate(example.candidates):
            words = spans[index] if index < len(spans) else []
            texts[index] = _pieces(candidate.text, candidate.answer_start, len(candidate.text), words)
    else:
        texts = {name: [(str(name), False)] for name in (truth, by_baseline, by_focus) if name is not None}
    end = first.context_length if chooses else len(first.text)
    return ShownExample(
        example_id=example.example_id,
        picture=f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}",
        width=picture.width,
        height=picture.height,
        boxes=boxes,
        context=_pieces(first.text, 0, end, spans[0] if spans else []),
        choices=[
            ShownChoice(
                pieces=pieces, right=name == truth, by_baseline=name == by_baseline, by_focus=name == by_focus
            )
            for name, pieces in texts.items()
        ],
        focus_is_right=focus_is_right,
    )


def _pieces(text: str, start: int, end: int, spans: Sequence[Sequence[int]]) -> Pieces:
    """Cut [start, end) of a text at the selected spans."""
    pieces, at = [], start
    for low, high in sorted((int(low), int(high)) for low, high in spans):
        if at <= low and high <= end:
            pieces += [(text[at:low], False), (text[low:high], True)]
            at = high
    return [piece for piece in (*pieces, (text[at:end], False)) if piece[0]]
