"""The readout: agreement between a student's words and regions of a split and its teachers'.

It compares similarities, without labels and in seconds. Teacher and student each pick the most similar of
`NUM_CHOICES` nodes to a node. A student without knowledge of the teacher's relations picks the same one by chance,
1 / NUM_CHOICES.
Shapes: X nodes, N sequences, W words, S regions, H student width, D teacher width, Q queried nodes, C choices.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch.nn import functional

from advl_pipeline.datasets.records import Dataset
from advl_pipeline.distillation.pooling import pool_to_regions
from advl_pipeline.distillation.relational import KNOWN, landmark_words, mean_of_words, some_of, unplaced_words
from advl_pipeline.students.interface import Student
from advl_pipeline.training.landmarks.census import Census, StudentAtStart, sampled, take_census
from advl_pipeline.training.signals.stored_signals import SignalSource

NUM_CHOICES = 4
"""C."""

Share = dict[str, float] | None
"""How often the student picks the teacher's choice: `share` of `num_asked`, by `chance`; None for too few nodes."""


def mean_by_group(states_XH: torch.Tensor, group_X: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (G, H) the mean state of each group, such as a word's occurrences, and (G,) the groups, ascending."""
    groups_G, place_X = torch.unique(group_X, return_inverse=True)
    sums_GH = states_XH.new_zeros(len(groups_G), states_XH.shape[1]).index_add_(0, place_X, states_XH)
    counts_G = torch.bincount(place_X, minlength=len(groups_G))
    return sums_GH / counts_G[:, None], groups_G


def effective_rank(states_XH: torch.Tensor) -> float:
    """Return the effective number of dimensions of states, from 1 to the rank of the matrix.

    It is the exponential of the entropy of the singular values over their sum (Roy and Vetterli, The effective rank,
    EUSIPCO 2007). It falls as representations collapse (Garrido et al., RankMe, ICML 2023). Scale does not matter.
    """
    values = torch.linalg.svdvals(states_XH.double())
    return float(torch.special.entr(values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)).sum().exp())


MAX_TEXTS = 1024
"""Maximum number of sampled texts, with their pictures: enough for some thousand words, in seconds."""

MAX_REGIONS = 2048
"""Maximum number of sampled regions; drawn at random for students that see patches."""

EXAMPLES_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True)
class ReadoutNodes:
    """The student's states of words, texts or regions, a teacher's features of them, and which are asked about.

    `asked_X` (bool): query nodes, such as words that pretraining did not teach. `offered_X` (bool): nodes that may be
    chosen, such as words that it did. `group_X` (int64): nodes of one group, such as the regions of one picture, are
    never offered for one another.
    """

    states_XH: torch.Tensor
    features_XD: torch.Tensor
    asked_X: torch.Tensor
    offered_X: torch.Tensor
    group_X: torch.Tensor

    @classmethod
    def joined(cls, parts: Sequence[ReadoutNodes]) -> ReadoutNodes:
        """Return all nodes, on the CPU."""
        columns = (field.name for field in fields(cls))
        return cls(**{name: torch.cat([getattr(part, name) for part in parts]).cpu() for name in columns})

    def by_group(self) -> ReadoutNodes:
        """Return the mean of each group, such as a word's occurrences; a group is asked or offered if a member is."""
        states_GH, group_G = mean_by_group(self.states_XH, self.group_X)
        features_GD, _ = mean_by_group(self.features_XD, self.group_X)
        flags_GF, _ = mean_by_group(torch.stack([self.asked_X, self.offered_X], 1).float(), self.group_X)
        asked_G, offered_G = (flags_GF > 0).unbind(1)
        return ReadoutNodes(
            states_XH=states_GH, features_XD=features_GD, asked_X=asked_G, offered_X=offered_G, group_X=group_G
        )

    def share(self) -> Share:
        """Return how often the student picks, of several nodes, the one that the teacher finds most similar."""
        generator = torch.Generator().manual_seed(0)
        centred = (
            functional.normalize(states.float() - states.float().mean(0), dim=-1)
            for states in (self.states_XH, self.features_XD)
        )
        student_XX, teacher_XX = (states @ states.T for states in centred)
        group_X = self.group_X
        hits: list[bool] = []
        for node in torch.nonzero(self.asked_X).flatten().tolist():
            allowed_Y = torch.nonzero(self.offered_X & (group_X != group_X[node])).flatten()
            if len(allowed_Y) < NUM_CHOICES:
                continue
            best = allowed_Y[teacher_XX[node, allowed_Y].argmax()]
            others_Y = allowed_Y[(allowed_Y != best) & (group_X[allowed_Y] != group_X[best])]
            if len(others_Y) < NUM_CHOICES - 1:
                continue
            drawn_Y = others_Y[torch.randperm(len(others_Y), generator=generator)[: NUM_CHOICES - 1]]
            choices_C = torch.cat([best[None], drawn_Y])
            hits.append(int(student_XX[node, choices_C].argmax()) == 0)
        if not hits:
            return None
        return {"share": sum(hits) / len(hits), "num_asked": len(hits), "chance": 1 / NUM_CHOICES}


@dataclass(frozen=True, kw_only=True)
class Readout:
    """States of a sample's words, texts and regions, and each teacher's features of them, on the CPU."""

    words: Mapping[str, ReadoutNodes]
    texts: Mapping[str, ReadoutNodes]
    regions: Mapping[str, ReadoutNodes]
    teachers: tuple[str, ...]

    def shares(self) -> dict[str, dict[str, Share]]:
        """Return, by teacher, the student's agreement with its choices of `words`, `texts` and `regions`."""
        by_teacher: dict[str, dict[str, Share]] = {}
        for name in self.teachers:
            of_teacher = by_teacher[name] = dict.fromkeys(("words", "texts", "regions"))
            if name in self.words:
                words = self.words[name].by_group()
                if not bool(words.asked_X.any()) or not bool(words.offered_X.any()):
                    every_G = torch.ones_like(words.asked_X)
                    words = replace(words, asked_X=every_G, offered_X=every_G)
                of_teacher["words"] = words.share()
                of_teacher["texts"] = ReadoutNodes.joined([self.texts[name], self._landmarks(name)]).share()
            if name in self.regions:
                of_teacher["regions"] = self.regions[name].share()
        return by_teacher

    def _landmarks(self, teacher: str) -> ReadoutNodes:
        """Return the words that may be chosen for a text."""
        words = self.words[teacher].by_group()
        offered_G = words.offered_X
        return ReadoutNodes(
            states_XH=words.states_XH[offered_G],
            features_XD=words.features_XD[offered_G],
            asked_X=torch.zeros_like(offered_G)[offered_G],
            offered_X=offered_G[offered_G],
            group_X=words.group_X[offered_G],
        )

    def effective_ranks(self) -> dict[str, float]:
        """Return the effective rank of the states of the `words` and `regions` that a teacher has features of."""
        first = {"words": next(iter(self.words.values()), None), "regions": next(iter(self.regions.values()), None)}
        return {
            kind: effective_rank(nodes.states_XH)
            for kind, nodes in first.items()
            if nodes is not None and len(nodes.states_XH)
        }

    def names(self) -> torch.Tensor | None:
        """Return (X,) int64: the known word whose mean state is nearest to each region; None without both."""
        teacher = next(iter(self.words), None)
        regions = next(iter(self.regions.values()), None)
        if teacher is None or regions is None:
            return None
        known = self._landmarks(teacher)
        if not len(known.group_X) or not len(regions.states_XH):
            return None
        regions_XH = functional.normalize(regions.states_XH.float(), dim=-1)
        cosine_XK = regions_XH @ functional.normalize(known.states_XH.float(), dim=-1).T
        return known.group_X[cosine_XK.argmax(1)]


@torch.inference_mode()
def take_readout(student: Student, dataset: Dataset, positions: Sequence[int], source: SignalSource) -> Readout:
    """Return the states of a student's words, texts and regions, with its teachers' features.

    The query words are those that pretraining did not teach, and the choices are those that it did; if nothing says
    which they are, all words are both. A word's state is the mean over its occurrences. A text is queried as the mean
    of its words that a teacher places (`unplaced_words`), and the choices are again the known words.

    Args:
        student: keeps its training or evaluation mode.
        dataset: provides the texts and pictures.
        positions: candidates for the sample; the first ones in a fixed random order are used.
    """
    chosen = sampled(dataset, positions, num_texts=MAX_TEXTS)
    start = StudentAtStart.without_heads(student, source)
    collected = CollectedNodes()
    most_at_once = max(1, MAX_REGIONS * EXAMPLES_AT_ONCE // len(chosen))
    num_before = 0
    for census in take_census(start, dataset, chosen, at_once=EXAMPLES_AT_ONCE):
        # Examples that are read at once come in a batch per task; the batches share the regions by their examples.
        first_at_once = num_before - num_before % EXAMPLES_AT_ONCE
        num_at_once = min(EXAMPLES_AT_ONCE, len(chosen) - first_at_once)
        num_before += len(census.examples)
        collected.add_words(census)
        collected.add_regions(census, most=max(1, most_at_once * len(census.examples) // num_at_once))
    return collected.readout(tuple(teacher.name for teacher in source.teachers))


class CollectedNodes:
    """The words, texts and regions of the batches so far, by teacher."""

    def __init__(self) -> None:
        self._words: dict[str, list[ReadoutNodes]] = defaultdict(list)
        self._texts: dict[str, list[ReadoutNodes]] = defaultdict(list)
        self._regions: dict[str, list[ReadoutNodes]] = defaultdict(list)
        self._pictures: set[int] = set()
        self._generator = torch.Generator().manual_seed(0)

    def add_words(self, census: Census) -> None:
        """Add the words that each teacher has features of, and the mean of the words that it places in each text."""
        words, states_NWH = census.words, census.states_NWH
        for name, text in census.signal.text.items():
            if text.words_NWD is None:
                continue
            node_NW = census.meant(text)
            self._words[name].append(
                ReadoutNodes(
                    states_XH=states_NWH[node_NW],
                    features_XD=text.words_NWD[node_NW],
                    asked_X=words.known_NW[node_NW] < KNOWN,
                    offered_X=landmark_words(words)[node_NW],
                    group_X=words.form_NW[node_NW],
                )
            )
            unplaced_NW = unplaced_words(node_NW, words)
            states_TH = mean_of_words(states_NWH, unplaced_NW)
            is_text_T = torch.ones(len(states_TH), dtype=torch.bool, device=states_TH.device)
            self._texts[name].append(
                ReadoutNodes(
                    states_XH=states_TH,
                    features_XD=mean_of_words(text.words_NWD, unplaced_NW),
                    asked_X=is_text_T,
                    offered_X=~is_text_T,
                    group_X=torch.full_like(is_text_T, -1, dtype=torch.int64),
                )
            )

    def add_regions(self, census: Census, *, most: int) -> None:
        """Add at most `most` regions, of pictures that were not seen yet."""
        batch = census.batch
        is_new_B = torch.tensor(
            [int(picture) not in self._pictures for picture in batch.image_ids_B], device=batch.image_ids_B.device
        )
        self._pictures.update(map(int, batch.image_ids_B))
        states_BRH = census.states.visual_states_NRH.index_select(0, batch.student.first_B)
        for name, vision in census.signal.vision.items():
            if vision.regions_BSD is None or vision.region_mask_BS is None:
                continue
            states_BSH = pool_to_regions(states_BRH, vision.shares_BSR)
            place_X = torch.nonzero((vision.shared_BS & is_new_B[:, None]).flatten())[:, 0]
            place_X = some_of(place_X, most, self._generator)
            picture_BS = batch.image_ids_B[:, None].expand_as(vision.region_mask_BS)
            every_X = torch.ones_like(place_X, dtype=torch.bool)
            self._regions[name].append(
                ReadoutNodes(
                    states_XH=states_BSH.flatten(0, 1).index_select(0, place_X),
                    features_XD=vision.regions_BSD.flatten(0, 1).index_select(0, place_X),
                    asked_X=every_X,
                    offered_X=every_X,
                    group_X=picture_BS.flatten().index_select(0, place_X),
                )
            )

    def readout(self, teachers: tuple[str, ...]) -> Readout:
        """Return the readout of the batches so far."""
        return Readout(
            teachers=teachers,
            words={name: ReadoutNodes.joined(parts) for name, parts in self._words.items()},
            texts={name: ReadoutNodes.joined(parts) for name, parts in self._texts.items()},
            regions={name: ReadoutNodes.joined(parts) for name, parts in self._regions.items()},
        )
