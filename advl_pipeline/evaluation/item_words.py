"""Which words of test items a run's selection would distil: nothing is distilled there, but people want to see.

The student's attention and the training texts' word statistics decide, as in training; no teacher is asked.
Shapes: N sequences, W words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, get_args

import torch

from advl_pipeline.datasets.records import Dataset, Example
from advl_pipeline.datasets.words import KnownWords, WordPrior, word_spans
from advl_pipeline.distillation.landmarks import unplaced_words
from advl_pipeline.distillation.pooling import pool_to_words
from advl_pipeline.distillation.settings import Selection
from advl_pipeline.distillation.weighting import select_words
from advl_pipeline.evaluation.items import question_rank, questions_of
from advl_pipeline.evaluation.predict import FinishedRun
from advl_pipeline.runs import names
from advl_pipeline.runs.results import read_json
from advl_pipeline.training.signals import SignalSource
from advl_pipeline.training.word_selection import SelectedWords

MAX_ITEMS = 200
"""Items whose words are told, those with the smallest hash of their question: a page draws its examples so too."""


def read_selection(run: Path) -> dict[str, Any] | None:
    """Return how a run selects words; None where it selects none, or by teachers, or by a rule that is gone."""
    path = run / names.WORD_SELECTION
    if not path.exists():
        return None
    described: dict[str, Any] = read_json(path)
    return None if "obstacle" in described or described["selection"] not in get_args(Selection) else described


@torch.inference_mode()
def item_words(
    finished: FinishedRun, described: Mapping[str, Any], dataset: Dataset, *, batch_size: int
) -> SelectedWords:
    """Return, per example id and candidate, the [start, end) characters of the words that would be distilled.

    Args:
        described: from `read_selection`.
    """
    known = KnownWords(counts=described.get("known"))
    source = SignalSource([], prior=WordPrior(**described["prior"]), known=known)
    ids = dataset.example_ids
    questions = questions_of(ids, dataset.tasks)
    ranked = sorted(range(len(ids)), key=lambda index: question_rank(questions[index]))[:MAX_ITEMS]
    examples = sorted((dataset[index] for index in ranked), key=lambda example: example.task)
    found: SelectedWords = {}
    for _, of_task in groupby(examples, key=lambda example: example.task):
        several = list(of_task)
        for start in range(0, len(several), batch_size):
            found |= _select(finished, described, source, several[start : start + batch_size])
    return found


def _select(
    finished: FinishedRun, described: Mapping[str, Any], source: SignalSource, examples: Sequence[Example]
) -> SelectedWords:
    batch = finished.student.collate(examples)
    words = source.signal(examples, batch, with_confidence=False).to(finished.device).words
    assert words is not None
    output = finished.student.encode(
        batch.to(finished.device),
        mask_visual=finished.hides_picture,
        need_relevance=described["selection"] != "prior",
    )
    num_words = words.prior_NW.shape[1]
    _, seen_NW = pool_to_words(output.text_states_NLH, words.word_of_token_NL, num_words)
    relevance_NW = None
    if output.relevance_NL is not None:
        relevance_NW = pool_to_words(output.relevance_NL[..., None], words.word_of_token_NL, num_words)[0][..., 0]
    mask_NW = words.word_mask_NW & seen_NW & ((words.prior_NW > 0) | (not described["content_words"]))
    selected_NW = select_words(
        described["selection"],
        mask_NW=unplaced_words(mask_NW, words) if source.knows_words else mask_NW,
        prior_NW=words.prior_NW,
        relevance_NW=relevance_NW,
        alpha=described["alpha"],
        rho=described["rho"],
    )
    rows = iter(selected_NW.tolist())
    return {
        example.example_id: [
            [list(span) for span, kept in zip(word_spans(candidate.text), next(rows), strict=False) if kept]
            for candidate in example.candidates
        ]
        for example in examples
    }
