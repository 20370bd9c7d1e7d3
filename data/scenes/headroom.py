"""`run_headroom`: how much of what the teachers know could help a student on a task at all.

A study of distillation on data where nothing is to be gained shows nothing, whatever the method. The table has the
floor (chance, or the most frequent answer; the text alone), the student as it is (without labels; finetuned), the
teachers alone (a linear probe of their features), and the ceiling: the same student with the teachers' features as
inputs. Runs are ordinary runs of `advl finetune` and `advl evaluate`.

Shapes: N items, C candidates or classes; of a batch N sequences, L tokens, W words, R visual tokens, H width.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import logit
from torch.nn import functional

from advl_data.scenes.config import HeadroomConfig
from advl_data.scenes.given_features import GIVEN
from advl_pipeline.cache.reader import TeacherCache, open_cache
from advl_pipeline.confidence.estimators import assign_folds, confidence_views, examples_of, probe_data
from advl_pipeline.confidence.features import View
from advl_pipeline.confidence.probe import (
    DEFAULT_PENALTY,
    MAX_RATE,
    PENALTIES,
    ProbeData,
    ProbeHead,
    centred_features,
    masked_scores,
)
from advl_pipeline.configuration import build_config, config_to_dict
from advl_pipeline.datasets.indexed import IndexedDataset
from advl_pipeline.datasets.lowshot import nested_subset
from advl_pipeline.datasets.records import MULTIPLE_CHOICE_TASKS, Candidate, Dataset, Example, head_name
from advl_pipeline.datasets.registry import open_dataset, vqa_mode_of
from advl_pipeline.datasets.roots import dataset_label
from advl_pipeline.datasets.words import WordPrior, fit_word_prior, word_spans
from advl_pipeline.distillation.pooling import pool_to_words
from advl_pipeline.errors import ConfigError, advise
from advl_pipeline.evaluation.config import EvaluateConfig
from advl_pipeline.evaluation.items import METRIC_OF_TASK, score_answers, score_items, score_soft_labels
from advl_pipeline.evaluation.runner import run_evaluate
from advl_pipeline.folders import default_cache
from advl_pipeline.outputs import require_outputs
from advl_pipeline.runs.names import evaluation_file
from advl_pipeline.runs.results import read_json
from advl_pipeline.students.interface import Student
from advl_pipeline.students.registry import build_student
from advl_pipeline.students.saved import read_description
from advl_pipeline.training.compatibility import check_caches
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.placement import places_of_boxes
from advl_pipeline.training.run import run_finetune
from advl_pipeline.training.signals import SignalSource

TRAIN = "train"
PROBE_FOLDS = 5
EXAMPLES_AT_ONCE = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadroomRow:
    """Percent right of one kind of answerer, by seed where seeds matter; `runs` names its run folders."""

    name: str
    per_seed: tuple[float, ...]
    runs: tuple[Path, ...] = ()

    @property
    def mean(self) -> float:
        return sum(self.per_seed) / len(self.per_seed)


@dataclass(frozen=True, kw_only=True, slots=True)
class Headroom:
    """The table of one task and split. `headroom` is the student with the teachers' features minus plain, in points.

    `is_fit`: that is at least `margin`.
    """

    dataset: str
    task: str
    split: str
    shots: int
    num_items: int
    rows: tuple[HeadroomRow, ...]
    headroom: float
    margin: float
    is_fit: bool


@dataclass(frozen=True, kw_only=True)
class _Data:
    """Both splits of one task, with the caches of the same teachers, in the same order, of each."""

    train: IndexedDataset
    scored: IndexedDataset
    items: Sequence[Example]
    train_caches: Sequence[TeacherCache]
    scored_caches: Sequence[TeacherCache]

    @property
    def is_choice(self) -> bool:
        return self.items[0].task in MULTIPLE_CHOICE_TASKS


def run_headroom(config: HeadroomConfig) -> Headroom:
    """Measure a task's headroom; finished runs in the output folder are not run again.

    Raises:
        ConfigError: no such task, caches that are missing for one of the splits, or a student whose inputs take no
            features. IdentityMismatch: caches of other data, or runs of other settings in the folder.
        WeightsUnavailable: no student in the folder. DatasetError: data that are missing.
    """
    output = config.output or Path("runs/headroom") / dataset_label(config.dataset)
    require_outputs(config, output=output)
    student = read_description(config.init)["student"]
    data = _open(config)
    # Built once before anything is written: it says whether it can be given these features.
    build_student(f"{GIVEN}{student}", weights=config.init, overrides={"caches": list(map(str, config.cache))})
    seeds = range(config.seeds)
    floor = "chance" if data.is_choice else "most frequent answer of each question type"
    rows = [HeadroomRow(name=floor, per_seed=(_percent(data, _floor(data)),))]
    caches = ", ".join(f"'{location}'" for location in config.cache)
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "text only": ("text-only", {"student": student, "hide_picture": True}),
        "plain": ("plain", {"student": student}),
        "given the teachers' features": (
            "given",
            {"student": f"{GIVEN}{student}", "student_option": (f"caches=[{caches}]",)},
        ),
    }
    trained = {}
    for name, (label, options) in kinds.items():
        found = [_finetuned(config, data, output, label, seed, options) for seed in seeds]
        runs, percents = zip(*found, strict=True)
        trained[name] = HeadroomRow(name=name, per_seed=percents, runs=runs)
    rows.append(trained["text only"])
    if data.is_choice:
        prior = fit_word_prior(
            choice.text for index in range(len(data.train)) for choice in data.train[index].candidates
        )
        untrained = answers_by_likeness(build_student(student, weights=config.init).eval(), data.scored, prior)
        rows.append(HeadroomRow(name="student without labels", per_seed=(untrained,)))
    rows.append(trained["plain"])
    probes = tuple(_percent(data, _teachers_alone(config, data, seed)) for seed in seeds)
    rows += [HeadroomRow(name="teachers alone, linear probe", per_seed=probes)]
    rows.append(trained["given the teachers' features"])
    headroom = trained["given the teachers' features"].mean - trained["plain"].mean
    return Headroom(
        dataset=config.dataset,
        task=data.items[0].task,
        split=config.on,
        shots=config.shots,
        num_items=len(data.items),
        rows=tuple(rows),
        headroom=headroom,
        margin=config.margin,
        is_fit=headroom >= config.margin,
    )


def _open(config: HeadroomConfig) -> _Data:
    if config.on == TRAIN:
        raise ConfigError(
            "Headroom is measured on items that nothing is fitted on.", where="--on train", next_command="--on val"
        )
    found = open_dataset(config.dataset, split=TRAIN, data_root=config.data_root, tasks=())
    task = config.task or found.tasks[0]
    train = open_dataset(config.dataset, split=TRAIN, data_root=config.data_root, tasks=(task,))
    answers = train.label_names(train.tasks[0]) or None
    scored = open_dataset(config.dataset, split=config.on, data_root=config.data_root, tasks=(task,), answers=answers)
    nested_subset(train, config.shots, 0)
    by_split: dict[str, dict[str, TeacherCache]] = {TRAIN: {}, config.on: {}}
    for location in config.cache:
        cache = open_cache(location)
        split = cache.identity["dataset"]["split"]
        if split not in by_split:
            raise ConfigError(
                "This cache is of a split that is not read.",
                where=str(location),
                why=f"it is of {split}; read are {TRAIN} and {config.on}",
                next_command="leave it out",
            )
        by_split[split][cache.teacher_name] = cache
    names = sorted({name for of_split in by_split.values() for name in of_split}) or ["NAME"]
    for split, of_split in by_split.items():
        for name in names:
            if name not in of_split:
                raise ConfigError(
                    f"A cache is missing: of {name}, of {split}.",
                    where="--cache",
                    why="features are inputs in training and in evaluation",
                    next_command=advise(
                        ["advl", "extract", "--teacher", name, "--dataset", config.dataset, "--split", split],
                        note="then the same command with its cache",
                        again=["--cache", str(default_cache(name, dataset_label(config.dataset), split))],
                    ),
                )
    for dataset in (train, scored):
        check_caches(list(by_split[dataset.split].values()), dataset, data_root=config.data_root)
    return _Data(
        train=train,
        scored=scored,
        items=[scored[index] for index in range(len(scored))],
        train_caches=[by_split[TRAIN][name] for name in names],
        scored_caches=[by_split[config.on][name] for name in names],
    )


def _floor(data: _Data) -> npt.NDArray[np.float64] | None:
    """Return (N, C) scores that name the most frequent answer of train by question type; None for multiple choice."""
    if data.is_choice:
        return None
    counts: dict[str, Counter[int]] = defaultdict(Counter)
    for index in range(len(data.train)):
        example = data.train[index]
        answers = example.soft_label if example.label is None else ((example.label, 1.0),)
        for answer, score in answers:
            for stratum in (example.stratum, ""):
                counts[stratum][answer] += score  # type: ignore[assignment]
    scores = np.zeros((len(data.items), len(data.train.label_names(data.items[0].task))))
    for row, example in enumerate(data.items):
        known = counts.get(example.stratum) or counts[""]
        scores[row, max(known, key=lambda answer: (known[answer], -answer))] = 1.0
    return scores


def _percent(data: _Data, scores: npt.NDArray[np.float64] | None) -> float:
    """Return how often the best-scored answer is right, in percent; by chance where there are no scores."""
    if scores is None:
        return 100.0 * float(np.mean([1 / len(example.candidates) for example in data.items]))
    rows = scores.astype(np.float32)
    if data.scored.tasks != ("vqa",):
        score = score_soft_labels if head_name(data.items[0].task) == "vqa" else score_items
        return 100.0 * float(score(data.items, rows).score.mean())
    answers, mode = data.train.label_names("vqa"), vqa_mode_of(data.scored.name)
    return 100.0 * float(
        score_answers(data.items, rows, answers=answers, dataset=data.scored, mode=mode).score.mean()
    )


def _teachers_alone(config: HeadroomConfig, data: _Data, seed: int) -> npt.NDArray[np.float64]:
    """Return (N, C) scores by a probe of all teachers together, fitted on the labelled examples."""
    labelled = examples_of(data.train, sorted(nested_subset(data.train, config.shots, seed)))
    fold_N = assign_folds([example.cluster for example in labelled], folds=PROBE_FOLDS, seed=seed)
    views = confidence_views(data.train_caches, "probe")
    view: View = "joint" if len(views) > 1 else views[0]
    return probe_scores(
        probe_data(data.train_caches, data.train, labelled, view),
        fold_N,
        probe_data(data.scored_caches, data.train, data.items, view),
    )


def probe_scores(fitted_on: ProbeData, fold_N: npt.NDArray[np.int64], scored: ProbeData) -> npt.NDArray[np.float64]:
    """Return scores of other examples, (n, C) or (n, K), -inf for candidates that one lacks.

    The head is fitted on all of `fitted_on`; its penalty is the one with the lowest loss over its folds.

    Args:
        fold_N: fold of each of them, from `assign_folds`.
        scored: examples with features of the same stores' teachers; their truth is not looked at.
    """
    centred = centred_features(fitted_on)
    losses = np.zeros(len(PENALTIES))
    num_folds = int(fold_N.max(initial=0)) + 1
    for fold in range(num_folds if num_folds > 1 else 0):
        heads = ProbeHead.fit(fitted_on, centred, np.flatnonzero(fold_N != fold), PENALTIES)
        held_out = np.flatnonzero(fold_N == fold)
        losses += [head.mean_loss(fitted_on, centred, held_out) * len(held_out) for head in heads]
    penalty = PENALTIES[int(losses.argmin())] if num_folds > 1 else DEFAULT_PENALTY
    (head,) = ProbeHead.fit(fitted_on, centred, np.arange(len(fitted_on)), [penalty])
    others, rows = centred_features(scored), np.arange(len(scored))
    scores_nO = head.scores(others, rows)
    if scored.kind == "choice":
        return masked_scores(scores_nO[..., 0], scored, rows)
    if head.rate_K is None:
        return scores_nO[:, 0]
    # A class that is too rare for the head scores by its rate.
    scores_nK = np.tile(logit(np.minimum(head.rate_K, MAX_RATE)), (len(rows), 1))
    scores_nK[:, head.class_O] = scores_nO[:, 0]
    return scores_nK


@torch.inference_mode()
def answers_by_likeness(student: Student, dataset: Dataset, prior: WordPrior) -> float:
    """Return the percentage of a split's multiple choice that likeness answers right.

    A candidate's score is the mean over the content words of its answer of the best cosine with a region, among the
    regions that its context refers to by tag where it refers to any. Nothing is trained and no head is used.
    """
    is_right: list[bool] = []
    source = SignalSource([], prior=prior)
    for first in range(0, len(dataset), EXAMPLES_AT_ONCE):
        examples = [dataset[index] for index in range(first, min(first + EXAMPLES_AT_ONCE, len(dataset)))]
        batch = student.collate(examples)
        output = student.encode_unimodal(batch)
        words = source.signal(examples, batch, with_confidence=False).words
        assert words is not None
        states_NWH, seen_NW = pool_to_words(output.text_states_NLH, words.word_of_token_NL, words.prior_NW.shape[1])
        content_NW = seen_NW & (words.prior_NW > 0)
        regions_NRH = functional.normalize(output.visual_states_NRH, dim=-1)
        cosine_NWR = functional.normalize(states_NWH, dim=-1) @ regions_NRH.transpose(1, 2)
        places, row = places_of_boxes(student, examples, batch), 0
        for example in examples:
            scores = []
            for candidate in example.candidates:
                spans = word_spans(candidate.text)
                asked_R = referred(candidate, places[row]) & batch.visual_mask_NR[row]
                in_answer = torch.tensor([start >= candidate.answer_start for start, _ in spans])
                kept_W = content_NW[row, : len(spans)] & in_answer
                best_W = cosine_NWR[row, : len(spans)].masked_fill(~asked_R, -1.0).amax(1)
                scores.append(float(best_W[kept_W].mean()) if bool(kept_W.any()) else -1.0)
                row += 1
            is_right.append(scores.index(max(scores)) == example.label)
    return 100.0 * float(np.mean(is_right))


def referred(candidate: Candidate, places_SR: torch.Tensor) -> torch.Tensor:
    """Return (R,) bool: the visual tokens of the boxes that the context refers to.

    All of them where it refers to none, or where the student sees none of these boxes as a token of its own.
    """
    boxes = sorted({tag.box for tag in candidate.tags if tag.end <= candidate.context_length})
    referred_R = (places_SR[boxes] > 0).any(0)
    return referred_R if bool(referred_R.any()) else torch.ones_like(referred_R)


def _finetuned(
    config: HeadroomConfig, data: _Data, output: Path, label: str, seed: int, options: Mapping[str, Any]
) -> tuple[Path, float]:
    """Finetune and evaluate, or read what is there; return the run folder and the percentage."""
    task = data.items[0].task
    run = output / f"{task}-{label}-{config.shots}-{seed}"
    run_finetune(
        build_config(
            FinetuneConfig,
            {name: getattr(config, name) for name in ("dataset", "data_root", "init", "shots", "num_steps")},
            {"output": run, "task": (task,), "method": "plain", "seed": seed},
            options,
        )
    )
    path = evaluation_file(run, config.on, ".json")
    if not path.exists():
        run_evaluate(EvaluateConfig(run=run, on=(config.on,), data_root=config.data_root, probe=("none",)))
    document = read_json(path)
    if document["content_digest"] != data.scored.content_digest():
        raise ConfigError(
            "This run was scored on another content of the split.",
            where=str(path),
            why=f"{config.dataset}/{config.on} has changed since",
            next_command="choose another --output",
        )
    return run, float(document["metrics"][METRIC_OF_TASK[task]])


def headroom_as_dict(found: Headroom) -> dict[str, Any]:
    """Return the table as plain types, with the mean of each row."""
    document = config_to_dict(found)
    for row, told in zip(found.rows, document["rows"], strict=True):
        told["mean"] = row.mean
    return document
