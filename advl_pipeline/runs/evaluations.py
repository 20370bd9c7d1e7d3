"""The evaluations of a run: a document and a file of item scores for each test set, both written and read here only.

`evaluation/SET.json` is an `EvaluationDocument`. It names the file of item scores, whose arrays are
  - for each metric, `item/METRIC` with the true pictures and `item_CONDITION/METRIC` with replaced ones, the same
    with `_ids` for the ids of the items, and `pictures/METRIC` and `strata/METRIC`, which group them;
  - for each task, `example_ids/TASK`, and `scores/TASK` with `labels/TASK`, or `written/TASK`.

Shapes: n items of a metric; N examples of a task, C candidates or classes.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from advl_pipeline.base.array_archives import arrays_digest, read_array_archive
from advl_pipeline.base.atomic import replacing_file, write_text, writing
from advl_pipeline.base.compute import AUTO, MixedPrecision
from advl_pipeline.base.configuration import json_text, to_plain
from advl_pipeline.base.errors import Advice, IdentityMismatch, advise
from advl_pipeline.base.folders import LOCK
from advl_pipeline.base.locations import read_regular
from advl_pipeline.base.process_lock import process_lock
from advl_pipeline.runs import names
from advl_pipeline.runs.names import evaluation_file, files_of_evaluation, items_suffix, set_of
from advl_pipeline.runs.results import as_record, run_digest, say_on_trust, undamaged

if TYPE_CHECKING:
    import pandas as pd

Protocol = Literal["likelihood", "letters"]
"""How questions are asked: the likeliest candidate is scored, or the text that the student writes."""

LETTERS: Protocol = "letters"
"""Also the suffix of the name of a set, for scores of generated answers to questions with lettered options."""

TRUE_PICTURE = ""
"""Condition with the true picture; the names of other conditions say how it was replaced."""

_AS_SHOWN = 0.001
"""Percentage points that no table shows; the mean of many item scores depends on the order of the additions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A 95 % confidence interval, in percent of an accuracy and in points of a difference."""

    low: float
    high: float

    def contains(self, value: float) -> bool:
        return self.low <= value <= self.high

    def scaled(self, factor: float) -> Interval:
        """Return the interval multiplied by a factor."""
        low, high = sorted((factor * self.low, factor * self.high))
        return Interval(low=low, high=high)


@dataclass(frozen=True, kw_only=True, slots=True)
class PartAccuracy:
    """The accuracy of a part of the items, in percent."""

    accuracy: float
    num_items: int


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupAccuracy:
    """The percentage of groups with all items right."""

    accuracy: float
    num_groups: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ConditionAccuracy:
    """The accuracy with replaced pictures in percent, and what it lost to that with the true ones, in points."""

    accuracy: float
    drop: float


@dataclass(frozen=True, kw_only=True, slots=True)
class TrivialScores:
    """The accuracy without a student, in percent of all examples, and what is known of the student's own answers.

    `chance`: a random answer. `majority`: always giving `answer`, the one that is right most often; a right answer
    without a class in the student counts as wrong. `given`: how often the student gives `given_answer`, its most
    common answer. `outside`: questions for which the student has no class of any right answer; its accuracy is at
    most the remaining share. `prior`: the most common training answer to the same question, or to all questions for
    one that is not in training; `prior_known`: questions that are in training too.
    """

    chance: float
    majority: float
    answer: str
    given: float | None = None
    given_answer: str | None = None
    outside: float | None = None
    prior: float | None = None
    prior_known: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Confusion:
    """The number of examples of each true class (row) and predicted class (column)."""

    label_names: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """The number of questions that were asked for, and the number of examples that they were drawn from."""

    asked: int
    of_examples: int


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationDocument:
    """What an evaluation of a run on a test set says: accuracies in percent, by metric.

    An evaluation of an earlier version lacks some of it. `measures` are the numbers that the set's card defines, by
    metric and name, None without a denominator. `use_of_vision` is by metric and condition.
    """

    dataset: str
    split: str
    metrics: Mapping[str, float]
    num_items: Mapping[str, int] = field(default_factory=dict)
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    trivial: Mapping[str, TrivialScores] = field(default_factory=dict)
    use_of_vision: Mapping[str, Mapping[str, ConditionAccuracy]] = field(default_factory=dict)
    measures: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    by_question_type: Mapping[str, Mapping[str, PartAccuracy]] = field(default_factory=dict)
    by_answer_type: Mapping[str, PartAccuracy] = field(default_factory=dict)
    by_group: Mapping[str, GroupAccuracy] = field(default_factory=dict)
    confusion: Confusion | None = None
    protocol: Protocol = "likelihood"
    vqa_mode: str | None = None
    regions: tuple[str, ...] = ()
    """Caches of a detector's regions, as given; none for those of the run."""
    mixed_precision: MixedPrecision = "auto"
    """Precision of matrix products, as given."""
    sample: Sample | None = None
    caveats: tuple[str, ...] = ()
    seconds: float = 0.0
    num_examples: int | None = None
    milliseconds_per_item: float | None = None
    content_digest: str | None = None
    """Digest of the content of the test set."""
    run_digest: str | None = None
    """`run_digest` of the run that was scored."""
    items_digest: str | None = None
    """`arrays_digest` of the item scores, which are in the file of that name."""

    @property
    def probes(self) -> set[str]:
        """Return the conditions in which pictures were swapped, blanked or removed."""
        return {condition for conditions in self.use_of_vision.values() for condition in conditions}


@dataclass(frozen=True, kw_only=True)
class ScoredItems:
    """Items scored by a metric: scores `score_n` (n,) in [0, 1], and columns, which are empty if not needed.

    Questions on one picture are not independent. The columns are not a pandas frame, since importing pandas would
    delay scoring commands by half a second.
    """

    score_n: npt.NDArray[np.floating]
    question_ids: Sequence[str] = ()
    pictures: Sequence[str] = ()
    types: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class ExampleScores:
    """The scores of the examples of a task with their true pictures, or the texts that the student wrote.

    Scores are padded with -inf where C varies. Examples with several right answers have no label.
    """

    task: str
    example_ids: Sequence[str]
    scores_NC: npt.NDArray[np.floating] | None = None
    label_N: npt.NDArray[np.int64] | None = None
    written: Sequence[str] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """The scores of one run on one test set, as they are read."""

    document: EvaluationDocument
    items: pd.DataFrame
    """Tidy table with one row per score.

    Its columns are `metric`, `condition`, `item`, its `picture` and question `type` ("" where the evaluation did not
    write them), and `score` in [0, 1].
    """
    scores: Mapping[str, npt.NDArray[np.floating]]
    """Task -> logits (N, C), in the item order of the task's own metric; padded with -inf where C varies."""


def without_the_unmeasured(record: Any) -> Any:
    """Return a record as plain JSON types, as it is written: what was not measured is left out."""
    if dataclasses.is_dataclass(record):
        values = {item.name: getattr(record, item.name) for item in dataclasses.fields(record)}
        return {
            name: without_the_unmeasured(value) for name, value in values.items() if value is not None and value != {}
        }
    if isinstance(record, Mapping):
        return {name: without_the_unmeasured(value) for name, value in record.items()}
    return to_plain(record)


def write_evaluation(
    run: Path,
    filed: str,
    document: EvaluationDocument,
    items: Mapping[str, Mapping[str, ScoredItems]],
    examples: Sequence[ExampleScores],
) -> EvaluationDocument:
    """Replace an evaluation: write the item scores under a name of their own, then the document that names them.

    The document commits both: until it is in its place, the former document names the former item scores.

    Args:
        filed: the name of the set, see `filed_as`.
        items: condition of the pictures -> metric -> items.

    Returns:
        the document as it was written.
    """
    arrays = _arrays(items, examples)
    document = dataclasses.replace(document, items_digest=arrays_digest(arrays))
    scores_path = evaluation_file(run, filed, items_suffix(document.items_digest))
    path = evaluation_file(run, filed, ".json")
    with process_lock(path.parent / LOCK, "this evaluation", wait=_say_who):
        with replacing_file(scores_path) as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
        write_text(path, json_text(without_the_unmeasured(document), sort_keys=True) + "\n")
        with writing(path.parent):
            for left in files_of_evaluation(run, filed):
                if left not in (scores_path, path):
                    left.unlink()
    return document


def _say_who(holder: str) -> None:
    print(f"the scores are written: waiting for {holder}", file=sys.stderr)


def _arrays(
    items: Mapping[str, Mapping[str, ScoredItems]], examples: Sequence[ExampleScores]
) -> dict[str, npt.NDArray[Any]]:
    arrays: dict[str, npt.NDArray[Any]] = {}
    for of_task in examples:
        arrays[f"example_ids/{of_task.task}"] = np.array(of_task.example_ids)
        if of_task.scores_NC is not None:
            arrays[f"scores/{of_task.task}"] = of_task.scores_NC
        if of_task.label_N is not None:
            arrays[f"labels/{of_task.task}"] = of_task.label_N
        if of_task.written is not None:
            arrays[f"written/{of_task.task}"] = np.array(of_task.written)
    for condition, by_metric in items.items():
        kind = f"item_{condition}" if condition else "item"
        for metric, scored in by_metric.items():
            arrays[f"{kind}/{metric}"] = scored.score_n
            arrays[f"{kind}_ids/{metric}"] = np.array(scored.question_ids)
            arrays[f"pictures/{metric}"] = np.array(scored.pictures)
            arrays[f"strata/{metric}"] = np.array(scored.types)
    return arrays


def evaluate_command(run: Path, filed: str, document: EvaluationDocument | None = None) -> Advice:
    """Return the command that repeats an evaluation: sample, regions, precision and conditions of the pictures.

    Args:
        filed: the name of the set, see `filed_as`.
        document: None if there is none, or a damaged one: all questions are scored then, in the default conditions.
    """
    test_set = set_of(filed)
    way = filed.removeprefix(test_set).removeprefix("@")
    words = ["advl", "evaluate", str(run), "--on", test_set]
    if way:
        words += ["--as", LETTERS] if way == LETTERS else ["--vqa-mode", way]
    if document is None:
        return advise(words)
    if document.sample is not None:
        words += ["--num-questions", str(document.sample.asked)]
    words += [word for place in document.regions for word in ("--regions", place)]
    if document.mixed_precision != AUTO:
        words += ["--mixed-precision", document.mixed_precision]
    if way != LETTERS:
        words += [word for name in sorted(document.probes or {"none"}) for word in ("--probe", name)]
    return advise(words)


def read_document(run: Path, filed: str) -> EvaluationDocument | None:
    """Return the document of a run's evaluation; None if the run was not scored on the set.

    Args:
        filed: the name of the set, see `filed_as`.

    Raises:
        ConfigError: it is damaged.
    """
    path = evaluation_file(run, filed, ".json")
    return _document(path, evaluate_command(run, filed)) if path.exists() else None


def read_documents(run: Path) -> dict[str, EvaluationDocument]:
    """Return the document of each evaluation of a run, by test set as passed to `advl evaluate --on`.

    The keys of scores by another VQA evaluator than the set's default, and of letters that the student wrote, are the
    names that they are filed under.

    Raises:
        ConfigError: an evaluation is damaged.
    """
    documents: dict[str, EvaluationDocument] = {}
    for path in sorted((run / names.EVALUATION).glob("*.json")):
        usual_name = path.stem.replace("--", "/")
        document = _document(path, evaluate_command(run, usual_name))
        test_sets = document.split, f"{document.dataset}/{document.split}"
        filed = [*test_sets, *(f"{name}@{way}" for name in test_sets for way in (document.vqa_mode, LETTERS))]
        name = next((name for name in filed if evaluation_file(run, name, ".json") == path), None)
        documents[name or usual_name] = document
    return documents


def _document(path: Path, next_command: str) -> EvaluationDocument:
    """Read a document of this version or an earlier one; raises `ConfigError` for a damaged one."""
    with undamaged("The document of an evaluation is damaged.", str(path), next_command):
        document = as_record(EvaluationDocument, json.loads(read_regular(path)))
        if document.items_digest is not None and not re.fullmatch("[0-9a-f]{64}", document.items_digest):
            raise ValueError("its items_digest is no SHA-256")
    return document


def is_of_run(run: Path, document: EvaluationDocument) -> bool:
    """Return whether the document of an evaluation is about a run; one of an earlier version is taken on trust.

    Raises:
        ConfigError: the result of the run is damaged.
    """
    present = run_digest(run)
    if document.run_digest is None or present is None:
        say_on_trust("evaluations by an earlier version, or of a run of one, do not tell which student they scored")
        return True
    return document.run_digest == present


def filed_as(run: Path, test_set: str, vqa_mode: str | None, protocol: Protocol = "likelihood") -> str:
    """Return the name under which the scores of a test set by a VQA evaluator are filed.

    It is the name of the set for the set's default evaluator. Scores by another one are filed next to those.

    Args:
        vqa_mode: the requested evaluator; None for the default.
        protocol: how questions are asked; `LETTERS` for scores of letters.

    Raises:
        ConfigError: the evaluation is damaged.
    """
    if protocol == LETTERS:
        return f"{test_set}@{LETTERS}"
    usual = None if vqa_mode is None else read_document(run, test_set)
    if vqa_mode is None or (usual is not None and usual.vqa_mode in (None, vqa_mode)):
        return test_set
    return f"{test_set}@{vqa_mode}"


def read_evaluation(run: Path, filed: str) -> Evaluation | None:
    """Read a run's evaluation on a test set; None if the run was not evaluated on it.

    Args:
        filed: the name of the set, see `filed_as`.

    Raises:
        ConfigError: the evaluation is damaged, or its document and its item scores contradict each other.
        IdentityMismatch: it is an evaluation of another run.
    """
    if (document := read_document(run, filed)) is None:
        return None
    import pandas as pd

    parts: list[pd.DataFrame] = []
    path = evaluation_file(run, filed, ".json")
    # The report of a study would have other numbers after any other command.
    again_by = evaluate_command(run, filed, document)
    if names.is_finished(run) and not is_of_run(run, document):
        raise IdentityMismatch(
            "The evaluation is of another run.",
            where=str(path),
            why="its run_digest is not that of the files of this run",
            next_command=again_by,
        )
    scores_path = evaluation_file(run, filed, items_suffix(document.items_digest))
    with undamaged("The item scores of a run cannot be read.", str(scores_path), again_by):
        arrays = read_array_archive(scores_path)
        if document.items_digest not in (None, arrays_digest(arrays)):
            raise ValueError(f"they are not those that {path.name} was written with")
        _require_own_numbers(document, arrays)
        for name, array in arrays.items():
            kind, _, metric = name.partition("/")
            if kind != "item" and (not kind.startswith("item_") or kind.endswith("_ids")):
                continue
            ids = list(map(str, arrays[f"{kind}_ids/{metric}"]))
            if len(ids) != len(array):
                raise ValueError(f"{name} has {len(array)} values for {len(ids)} items")
            if ids != list(map(str, arrays[f"item_ids/{metric}"])):
                raise ValueError(f"{name} is about other items than item/{metric}")
            table: dict[str, Any] = {"metric": metric, "condition": kind[len("item_") :], "item": ids}
            for column, group in (("picture", "pictures"), ("type", "strata")):
                table[column] = arrays[f"{group}/{metric}"].tolist() if f"{group}/{metric}" in arrays else ""
            parts.append(pd.DataFrame(table | {"score": array.astype(np.float64)}))
        scores = {name.removeprefix("scores/"): array for name, array in arrays.items() if name.startswith("scores/")}
        columns = ["metric", "condition", "item", "picture", "type", "score"]
        items = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
        return Evaluation(document=document, items=items, scores=scores)


def _require_own_numbers(document: EvaluationDocument, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Refuse accuracies, with the true picture or another one, that are not the means of their item scores.

    Raises:
        ValueError: one of them contradicts its items.
    """
    percents = {f"item/{metric}": percent for metric, percent in document.metrics.items()}
    for metric, conditions in document.use_of_vision.items():
        percents |= {f"item_{condition}/{metric}": seen.accuracy for condition, seen in conditions.items()}
    for name, percent in percents.items():
        if name not in arrays:
            continue
        mean = 100.0 * float(arrays[name].mean())
        if not math.isclose(percent, mean, abs_tol=_AS_SHOWN):
            raise ValueError(f"the mean of {name} is {mean:.3f}, and the document says {percent:.3f}")
