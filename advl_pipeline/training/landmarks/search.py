"""Find the landmarks of a run, with the student's states at the start and a teacher's features.

Landmarks are the known words of the inputs, and the regions that the student names by such a word.

The search is a pure function of the student at the start and the inputs, so that a resumed run finds the same. It
reads no labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from advl_pipeline.datasets.records import Dataset
from advl_pipeline.distillation.pooling import pool_to_regions
from advl_pipeline.distillation.relational import (
    Landmarks,
    LandmarkSums,
    RegionLandmarks,
    landmark_words,
    region_landmarks,
)
from advl_pipeline.distillation.settings import DistillationSettings
from advl_pipeline.distillation.signal import VisionSignal, Widths, teachers_by_pathway
from advl_pipeline.students.interface import StudentOutput
from advl_pipeline.training.batches import TrainingBatch
from advl_pipeline.training.landmarks.census import Census, StudentAtStart, sampled, take_census

MAX_TEXTS = 8192
"""Maximum number of sampled texts: enough to meet each known word many times."""

MAX_REGIONS = 8192
"""Maximum number of sampled regions."""

TEXTS_AT_ONCE = 128
"""Number of texts whose states are computed at once."""


@dataclass(frozen=True, kw_only=True)
class FoundLandmarks:
    """Landmarks by teacher: known words of text teachers, named regions of vision teachers.

    `of_student` are the known words without a teacher, with the student's states as features.
    """

    words: Mapping[str, Landmarks] = field(default_factory=dict)
    regions: Mapping[str, RegionLandmarks] = field(default_factory=dict)
    of_student: Landmarks | None = None


@torch.no_grad()
def find_landmarks(start: StudentAtStart, dataset: Dataset, positions: Sequence[int]) -> FoundLandmarks:
    """Return the landmarks of a run; empty if the method does not use them, or if nothing says which words are known.

    Regions have landmarks below the fusion only, where a region's name is the word that pretraining aligned it with.

    Args:
        start: keeps its training or evaluation mode.
        positions: candidates for the sample; the first ones in a fixed random order are used.
    """
    settings, source = start.settings, start.source
    assert source is not None
    teachers = teachers_by_pathway(settings, source.widths())
    if settings.distance != "relational" or not source.known.is_given:
        return FoundLandmarks()
    if not any(teachers.values()) and not settings.asks_itself:
        return FoundLandmarks()
    chosen = sampled(dataset, positions, num_texts=MAX_TEXTS)
    search = LandmarkSearch(settings, source.widths())
    at_once = max(1, TEXTS_AT_ONCE // len(dataset[positions[0]].candidates))
    for census in take_census(start, dataset, chosen, at_once=at_once):
        search.add(census)
    return search.landmarks()


class LandmarkSearch:
    """Accumulator of the landmarks of a student, over a census of its states at the start."""

    def __init__(self, settings: DistillationSettings, widths: Mapping[str, Widths]) -> None:
        """Args:
        settings: of a method that distils relations.
        widths: the feature widths of each teacher.
        """
        teachers = teachers_by_pathway(settings, widths)
        below_fusion = settings.distill_layer == "unimodal"
        self._asks_itself = settings.asks_itself
        self._words = {name: LandmarkSums() for name in teachers["text"]}
        self._words_seen = LandmarkSums()
        self._regions = {name: _RegionRows() for name in teachers["vision"] if below_fusion}

    def add(self, census: Census) -> None:
        """Add the words and regions of a batch."""
        states_NWH, words, signal = census.states_NWH, census.words, census.signal
        followed = [(self._words[name], part) for name, part in signal.text.items() if name in self._words]
        seen = [(self._words_seen, None)] if self._regions or self._asks_itself else []
        for gathered, part in (*seen, *followed):
            features_NWD = states_NWH if part is None else part.words_NWD
            if features_NWD is not None:
                node_NW = census.meant(part)
                is_known_X = landmark_words(words)[node_NW]
                gathered.add(states_NWH[node_NW], features_NWD[node_NW], words.form_NW[node_NW], is_known_X)
        for name, rows in self._regions.items():
            if name in signal.vision:
                rows.add(census.states, census.batch, signal.vision[name])

    def landmarks(self) -> FoundLandmarks:
        """Return the landmarks of the batches so far."""
        of_words = {name: of_teacher.landmarks() for name, of_teacher in self._words.items()}
        names = self._words_seen.landmarks()
        of_regions = (
            {}
            if names is None
            else {name: search.landmarks(names.states_KH) for name, search in self._regions.items()}
        )
        return FoundLandmarks(
            words={name: marks for name, marks in of_words.items() if marks is not None},
            regions={name: marks for name, marks in of_regions.items() if marks is not None},
            of_student=names if self._asks_itself else None,
        )


class _RegionRows:
    """Accumulator of a teacher's regions of pictures not seen yet, and the student's states of them."""

    def __init__(self) -> None:
        self._num_rows = 0
        self._pictures: set[int] = set()
        self._states: list[torch.Tensor] = []
        self._features: list[torch.Tensor] = []

    def add(self, states: StudentOutput, batch: TrainingBatch, part: VisionSignal) -> None:
        if part.regions_BSD is None or part.region_mask_BS is None or self._num_rows >= MAX_REGIONS:
            return
        place_of = {picture: place for place, picture in reversed(list(enumerate(batch.image_ids_B.tolist())))}
        fresh = sorted(place for picture, place in place_of.items() if picture not in self._pictures)
        self._pictures.update(place_of)
        first_F = batch.student.first_B[fresh]
        shares_FSR = None if part.shares_BSR is None else part.shares_BSR[fresh]
        states_FSH = pool_to_regions(states.visual_states_NRH[first_F], shares_FSR)
        node_FS = part.shared_BS[fresh]
        self._states.append(states_FSH[node_FS])
        self._features.append(part.regions_BSD[fresh][node_FS])
        self._num_rows += int(node_FS.sum())

    def landmarks(self, names_NH: torch.Tensor) -> RegionLandmarks | None:
        if not self._states:
            return None
        return region_landmarks(torch.cat(self._states), torch.cat(self._features), names_NH)
