"""Find the landmarks of a run: each known word of its inputs, as the student starts with it and as a teacher sees it.

A pure function of the student as it starts and the inputs, so that a resumed run finds the same. Labels are not read.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from advl_pipeline.datasets.interface import Dataset
from advl_pipeline.distillation.landmarks import Landmarks, LandmarkSums
from advl_pipeline.distillation.pooling import pool_to_words
from advl_pipeline.distillation.signal import shared_words
from advl_pipeline.training.batches import collate_batch
from advl_pipeline.training.finetune_model import FinetuneModel
from advl_pipeline.training.signals import SignalSource

MAX_TEXTS = 8192
"""Texts that are looked at: enough to meet each known word many times."""

_TEXTS_AT_ONCE = 128


@torch.no_grad()
def find_landmarks(
    model: FinetuneModel, dataset: Dataset, positions: Sequence[int], source: SignalSource, *, device: torch.device
) -> dict[str, Landmarks]:
    """Return the landmarks by text teacher; none where the method has no use for them, or words have no record.

    Args:
        model: before its first step, on `device`; left in the mode that it was in.
        dataset: of the inputs.
        positions: that may be looked at; the first ones in a fixed random order are.
        source: of the teachers' signals on them.
        device: that the model is on.
    """
    settings, teachers = model.distiller.settings, model.distiller.teachers["text"]
    if settings.distance != "relational" or settings.landmarks != "known" or not teachers or not source.knows_words:
        return {}
    texts_each = len(dataset[positions[0]].candidates)
    order = torch.randperm(len(positions), generator=torch.Generator().manual_seed(0))
    chosen = [positions[int(place)] for place in order[: max(1, MAX_TEXTS // texts_each)]]
    was_training = model.training
    model.eval()
    sums = {name: LandmarkSums() for name in teachers}
    at_once = max(1, _TEXTS_AT_ONCE // texts_each)
    for start in range(0, len(chosen), at_once):
        examples = [dataset[position] for position in chosen[start : start + at_once]]
        for task in dict.fromkeys(example.task for example in examples):
            of_task = [example for example in examples if example.task == task]
            batch = collate_batch(of_task, dataset, model.student, source, labelled=False).to(device)
            assert batch.signal is not None
            words = batch.signal.words
            assert words is not None
            states_NLH = model.states(batch.student).text_states_NLH
            states_NWH, seen_NW = pool_to_words(states_NLH, words.word_of_token_NL, words.prior_NW.shape[1])
            for name in teachers:
                one = batch.signal.text[name]
                assert one.words_NWD is not None
                node_NW = shared_words(words, one, seen_NW) & (words.prior_NW > 0)
                sums[name].add(states_NWH, one.words_NWD, node_NW, words)
    model.train(was_training)
    found = {name: of_teacher.landmarks() for name, of_teacher in sums.items()}
    return {name: landmarks for name, landmarks in found.items() if landmarks is not None}
