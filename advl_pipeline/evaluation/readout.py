"""`run_readout`: does a student, without labels, place words and regions as its teachers do?

The gate before a study: what a teacher knows can only help where the student comes to place words as it does.
Shapes: N sequences, L tokens, W words, R visual tokens, C candidates, H width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from advl_pipeline.cache.reader import open_cache
from advl_pipeline.compute import open_device
from advl_pipeline.datasets.interface import Dataset
from advl_pipeline.datasets.records import MULTIPLE_CHOICE_TASKS, Candidate, Example
from advl_pipeline.datasets.registry import open_dataset, open_splits
from advl_pipeline.datasets.words import KnownWords, WordPrior, fit_word_prior, word_spans
from advl_pipeline.distillation.pooling import pool_to_words
from advl_pipeline.errors import ConfigError
from advl_pipeline.evaluation.config import ReadoutConfig
from advl_pipeline.evaluation.given import cache_data, require_readable
from advl_pipeline.students.interface import Student
from advl_pipeline.students.known_words import known_words
from advl_pipeline.students.registry import build_student
from advl_pipeline.students.saved import read_description
from advl_pipeline.training.compatibility import check_caches, holds
from advl_pipeline.training.placement import places_of_boxes, read_placement
from advl_pipeline.training.signals import SignalSource, cached_teacher

EXAMPLES_AT_ONCE = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadoutResult:
    """Agreement by teacher (see `read_placement`), and percent of answers right by likeness, by question type."""

    placement: dict[str, dict[str, Any]]
    answers: dict[str, dict[str, float]]


def run_readout(config: ReadoutConfig) -> ReadoutResult:
    """Read a student's placement of words and regions beside the teachers of the caches.

    Raises:
        ConfigError: no cache, caches of different splits, or a split without multiple choice to answer.
        WeightsUnavailable: no student in the folder. IdentityMismatch: a cache of another dataset's content.
    """
    require_readable(config)
    student = build_student(read_description(config.student)["student"], weights=config.student)
    student.cut_texts()
    caches = [open_cache(path) for path in config.cache]
    splits = {(cache.identity["dataset"]["name"], cache.identity["dataset"]["split"]) for cache in caches}
    if len(splits) > 1:
        raise ConfigError(
            "The caches are of different splits.",
            where="--cache",
            why=", ".join(f"{name}/{split}" for name, split in sorted(splits)),
            next_command="give the caches of one split; run the command once for each",
        )
    ((_, split),) = splits
    made_by = caches[0].provenance["config"]
    name, data_root = cache_data(config, caches[0])
    reading = {key: value for key in ("text_style", "on_error") if (value := made_by.get(key)) is not None}
    dataset = open_splits(name, split=split, data_root=data_root, tasks=config.task, **reading)
    check_caches(caches, dataset, data_root=data_root)
    parts = [cache for cache in caches if "selection" in cache.identity["dataset"]]
    positions = [place for place in range(len(dataset)) if all(holds(cache, dataset[place]) for cache in parts)]
    device = open_device(config.device)
    student.to(device).eval()
    prior = fit_word_prior(choice.text for index in positions for choice in dataset[index].candidates)
    source = SignalSource(
        [cached_teacher(cache) for cache in caches],
        prior=prior,
        known=KnownWords(counts=known_words(config.student)),
    )
    answers: dict[str, dict[str, float]] = {}
    if config.answer_on is not None:
        asked = open_dataset(name, split=config.answer_on, data_root=data_root, tasks=config.task, **reading)
        answers = answers_by_likeness(student, asked, prior, device=device)
    return ReadoutResult(
        placement=read_placement(student, dataset, positions, source, device=device), answers=answers
    )


@torch.inference_mode()
def answers_by_likeness(
    student: Student, dataset: Dataset, prior: WordPrior, *, device: torch.device
) -> dict[str, dict[str, float]]:
    """Return percent right and number of questions by stratum, and over all under "".

    A candidate's score is the mean over the content words of its answer of the best cosine with a region, among the
    regions that its context refers to by tag where it refers to any. Nothing is trained and no head is used.

    Raises:
        ConfigError: the split has no multiple choice.
    """
    right: dict[str, list[bool]] = defaultdict(list)
    source = SignalSource([], prior=prior)
    for examples in _choices(dataset):
        batch = student.collate(examples).to(device)
        output = student.encode_unimodal(batch)
        candidates = [candidate for example in examples for candidate in example.candidates]
        example_of = [example for example in examples for _ in example.candidates]
        words = [word_spans(candidate.text) for candidate in candidates]
        alignment = source.signal(examples, batch, with_confidence=False).to(device).words
        assert alignment is not None
        states_NWH, seen_NW = pool_to_words(
            output.text_states_NLH, alignment.word_of_token_NL, alignment.prior_NW.shape[1]
        )
        content_NW = seen_NW & (alignment.prior_NW > 0)
        cosine_NWR = functional.normalize(states_NWH, dim=-1) @ functional.normalize(
            output.visual_states_NRH, dim=-1
        ).transpose(1, 2)
        scores = []
        for row, (candidate, spans) in enumerate(zip(candidates, words, strict=True)):
            places_SR = places_of_boxes(student, example_of[row], batch.box_index_NR[row].cpu())
            asked_R = _referred(candidate, places_SR).to(device) & batch.visual_mask_NR[row]
            in_answer = torch.tensor([start >= candidate.answer_start for start, _ in spans], device=device)
            kept_W = content_NW[row, : len(spans)] & in_answer
            best_W = cosine_NWR[row, : len(spans)].masked_fill(~asked_R, -1.0).amax(1)
            scores.append(float(best_W[kept_W].mean()) if bool(kept_W.any()) else -1.0)
        first = 0
        for example in examples:
            own = scores[first : first + len(example.candidates)]
            first += len(example.candidates)
            is_right = own.index(max(own)) == example.label
            right[example.stratum].append(is_right)
            right[""].append(is_right)
    return {
        stratum: {"percent": 100.0 * sum(hits) / len(hits), "num_questions": float(len(hits))}
        for stratum, hits in sorted(right.items())
    }


def _choices(dataset: Dataset) -> Iterator[Sequence[Example]]:
    if not set(dataset.tasks) & MULTIPLE_CHOICE_TASKS:
        raise ConfigError(
            "Only multiple choice is answered by likeness.",
            where="--answer-on",
            why=f"the tasks are {', '.join(dataset.tasks)}",
            next_command="leave out --answer-on",
        )
    waiting: list[Example] = []
    for index in range(len(dataset)):
        example = dataset[index]
        if example.task in MULTIPLE_CHOICE_TASKS and example.label is not None:
            waiting.append(example)
        if len(waiting) == EXAMPLES_AT_ONCE:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def _referred(candidate: Candidate, places_SR: torch.Tensor) -> torch.Tensor:
    """Return (R,) bool: the visual tokens of the boxes that the context refers to.

    All of them where it refers to none, or where the student sees none of these boxes as a token of its own.
    """
    boxes = sorted({tag.box for tag in candidate.tags if tag.end <= candidate.context_length})
    referred_R = (places_SR[boxes] > 0).any(0)
    return referred_R if bool(referred_R.any()) else torch.ones_like(referred_R)
