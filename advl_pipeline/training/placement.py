"""Read how a student places the words and regions of a split beside its teachers: see `distillation/readout.py`.

Shapes: N sequences, W words, B pictures, S boxes, X nodes, H student width, D teacher width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from advl_pipeline.datasets.interface import Dataset
from advl_pipeline.datasets.records import Example
from advl_pipeline.distillation.landmarks import KNOWN, mean_of_words, unplaced_words
from advl_pipeline.distillation.pooling import first_sequences, pool_to_regions, pool_to_words
from advl_pipeline.distillation.readout import Agreement, agreement, mean_by_group
from advl_pipeline.distillation.relational import some_of
from advl_pipeline.distillation.signal import shared_words
from advl_pipeline.students.interface import Student, StudentOutput
from advl_pipeline.students.pixel_student import PixelStudent
from advl_pipeline.training.batches import TrainingBatch, collate_batch
from advl_pipeline.training.signals import SignalSource

MAX_TEXTS = 1024
"""Texts that are looked at, with their pictures: enough for some thousand words, in seconds."""

MAX_REGIONS = 2048
"""Regions that are looked at: of students that see patches so many are drawn."""

EXAMPLES_AT_ONCE = 16

Nodes = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""States (X, H), features (X, D), an int64 group and whether each is known."""


@torch.inference_mode()
def read_placement(
    student: Student, dataset: Dataset, positions: Sequence[int], source: SignalSource, *, device: torch.device
) -> dict[str, dict[str, dict[str, float] | None]]:
    """Return, by teacher, the agreement on `words`, on `texts` and on `regions`; None where there are too few.

    Words are asked about that pretraining did not teach, and offered are those that it did; where no record of it is
    left, all are both. A word's state is the mean over its occurrences. A text is asked about as the mean of its
    words that a teacher places (`unplaced_words`), and offered are the known words again.

    Args:
        student: as it is; left in the mode that it was in.
        dataset: whose texts and pictures are looked at.
        positions: that may be looked at; the first ones in a fixed random order are.
    """
    texts_each = len(dataset[positions[0]].candidates)
    order = torch.randperm(len(positions), generator=torch.Generator().manual_seed(0))
    chosen = [positions[int(place)] for place in order[: max(1, MAX_TEXTS // texts_each)]]
    was_training = student.training
    student.eval()
    words: dict[str, list[Nodes]] = {}
    regions: dict[str, list[Nodes]] = {}
    texts: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    seen_pictures: set[int] = set()
    generator = torch.Generator().manual_seed(0)
    most = max(1, MAX_REGIONS * EXAMPLES_AT_ONCE // len(chosen))
    for start in range(0, len(chosen), EXAMPLES_AT_ONCE):
        examples = [dataset[position] for position in chosen[start : start + EXAMPLES_AT_ONCE]]
        batch = collate_batch(examples, dataset, student, source, labelled=False, labelled_ids=frozenset()).to(device)
        assert batch.signal is not None
        output = student.encode_unimodal(batch.student)
        for name, nodes, means in _words(output, batch):
            words.setdefault(name, []).append(nodes)
            texts.setdefault(name, []).append(means)
        fresh = [int(picture) not in seen_pictures for picture in batch.image_ids_B]
        seen_pictures.update(map(int, batch.image_ids_B))
        for name, nodes in _regions(output, batch, torch.tensor(fresh, device=device), most, generator):
            regions.setdefault(name, []).append(nodes)
    student.train(was_training)
    return {
        teacher.name: {
            "words": _as_numbers(_word_agreement(words.get(teacher.name, []))),
            "texts": _as_numbers(_text_agreement(texts.get(teacher.name, []), words.get(teacher.name, []))),
            "regions": _as_numbers(_region_agreement(regions.get(teacher.name, []))),
        }
        for teacher in source.teachers
    }


def _words(output: StudentOutput, batch: TrainingBatch) -> list[tuple[str, Nodes, tuple[torch.Tensor, torch.Tensor]]]:
    """Return, by teacher, the words with a meaning, and of each text the mean of the words that a teacher places."""
    signal = batch.signal
    assert signal is not None
    assert signal.words is not None
    words = signal.words
    states_NWH, seen_NW = pool_to_words(output.text_states_NLH, words.word_of_token_NL, words.prior_NW.shape[1])
    found = []
    for name, one in signal.text.items():
        if one.words_NWD is None:
            continue
        node_NW = shared_words(words, one, seen_NW) & (words.prior_NW > 0)
        is_known_X = words.known_NW[node_NW] >= KNOWN
        nodes = (states_NWH[node_NW], one.words_NWD[node_NW], words.form_NW[node_NW], is_known_X)
        unplaced_NW = unplaced_words(node_NW, words)
        means = (mean_of_words(states_NWH, unplaced_NW), mean_of_words(one.words_NWD, unplaced_NW))
        found.append((name, nodes, means))
    return found


def _regions(
    output: StudentOutput, batch: TrainingBatch, fresh_B: torch.Tensor, most: int, generator: torch.Generator
) -> list[tuple[str, Nodes]]:
    assert batch.signal is not None
    found = []
    for name, one in batch.signal.vision.items():
        if one.regions_BSD is None or one.region_mask_BS is None:
            continue
        first_B = first_sequences(batch.student.num_candidates, fresh_B.device)
        states_BSH, seen_BS = pool_to_regions(output.visual_states_NRH[first_B], one.shares_BSR)
        node_BS = some_of(seen_BS & one.region_mask_BS & fresh_B[:, None], most, generator)
        picture_BS = batch.image_ids_B[:, None].expand_as(node_BS)
        nodes = (states_BSH[node_BS], one.regions_BSD[node_BS], picture_BS[node_BS], node_BS[node_BS])
        found.append((name, nodes))
    return found


def _word_agreement(parts: list[Nodes]) -> Agreement | None:
    if not parts:
        return None
    states_XH, features_XD, form_X, known_X = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
    states_GH, form_G = mean_by_group(states_XH, form_X)
    features_GD, _ = mean_by_group(features_XD, form_X)
    known_G = mean_by_group(known_X.float()[:, None], form_X)[0][:, 0] >= KNOWN
    everything_G = torch.ones_like(known_G)
    has_both = bool(known_G.any()) and not bool(known_G.all())
    return agreement(
        states_GH,
        features_GD,
        asked_X=~known_G if has_both else everything_G,
        offered_X=known_G if has_both else everything_G,
        kin_X=form_G,
        generator=torch.Generator().manual_seed(0),
    )


def _text_agreement(parts: list[tuple[torch.Tensor, torch.Tensor]], words: list[Nodes]) -> Agreement | None:
    if not parts:
        return None
    states_TH, features_TD = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
    states_XH, features_XD, form_X, known_X = (torch.cat(column).cpu() for column in zip(*words, strict=True))
    known_KH, form_K = mean_by_group(states_XH[known_X], form_X[known_X])
    known_KD, _ = mean_by_group(features_XD[known_X], form_X[known_X])
    is_text_Y = torch.arange(len(states_TH) + len(known_KH)) < len(states_TH)
    return agreement(
        torch.cat([states_TH, known_KH]),
        torch.cat([features_TD, known_KD]),
        asked_X=is_text_Y,
        offered_X=~is_text_Y,
        kin_X=torch.cat([torch.full((len(states_TH),), -1), form_K]),
        generator=torch.Generator().manual_seed(0),
    )


def _region_agreement(parts: list[Nodes]) -> Agreement | None:
    if not parts:
        return None
    states_XH, features_XD, picture_X, every_X = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
    return agreement(
        states_XH,
        features_XD,
        asked_X=every_X,
        offered_X=every_X,
        kin_X=picture_X,
        generator=torch.Generator().manual_seed(0),
    )


def _as_numbers(found: Agreement | None) -> dict[str, Any] | None:
    return None if found is None else asdict(found)


def places_of_boxes(student: Student, example: Example, box_index_R: torch.Tensor) -> torch.Tensor:
    """Return (boxes, R): where each box lies among the visual tokens."""
    if isinstance(student, PixelStudent):
        return student.box_shares(example.image)
    return (box_index_R[None] == torch.arange(len(example.image.boxes_R4))[:, None]).float()
