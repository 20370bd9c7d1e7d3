"""The readout agrees with a teacher whose relations the student has, and not with one whose relations it lacks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_corpus import SmallCorpus, signals_of

from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.students.registry import build_student
from advl_pipeline.training.landmarks import readout
from advl_pipeline.training.landmarks.readout import effective_rank, mean_by_group, readout_share, take_readout


def nodes(count: int = 300, width: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(count, width, generator=generator)
    rotation, _ = torch.linalg.qr(torch.randn(20, 20, generator=generator))
    student = torch.nn.functional.pad(teacher, (0, 20 - width)) @ rotation
    return student, teacher


def share(student: torch.Tensor, teacher: torch.Tensor, **changes: torch.Tensor) -> float:
    count = len(student)
    settings = {
        "asked_X": torch.ones(count, dtype=torch.bool),
        "offered_X": torch.ones(count, dtype=torch.bool),
        "group_X": torch.arange(count),
        **changes,
    }
    agreed = readout_share(student, teacher, **settings)  # type: ignore[arg-type]
    return agreed["share"]


def test_a_student_with_the_teacher_s_relations_agrees_and_a_stranger_does_by_chance() -> None:
    student, teacher = nodes()
    assert share(student, teacher) == 1.0
    assert share(5 * student + 3, teacher) == 1.0
    assert share(student[torch.randperm(300)], teacher) == pytest.approx(0.25, abs=0.08)


def test_only_offered_nodes_of_another_kin_are_chosen() -> None:
    student, teacher = nodes(8)
    offered = torch.arange(8) < 5
    agreed = readout_share(
        student,
        teacher,
        asked_X=~offered,
        offered_X=offered,
        group_X=torch.arange(8),
    )
    assert agreed == {"share": 1.0, "num_asked": 3, "chance": 0.25}
    # Two groups, so that all that may be chosen besides the best are of its own group.
    few = readout_share(
        student,
        teacher,
        asked_X=torch.ones(8, dtype=torch.bool),
        offered_X=torch.ones(8, dtype=torch.bool),
        group_X=torch.arange(8) % 4 // 2,
    )
    assert few is None


def test_occurrences_of_a_word_are_averaged() -> None:
    states = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    means, groups = mean_by_group(states, torch.tensor([7, 2, 7]))
    assert groups.tolist() == [2, 7]
    assert means.tolist() == [[0.0, 1.0], [2.0, 0.0]]


@pytest.mark.parametrize("tasks", [("vcr-q2a",), ("vcr-q2a", "vcr-qa2r")])
def test_no_more_regions_are_drawn_of_several_tasks_than_of_one(
    tasks: tuple[Any, ...], small_corpus: SmallCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounds, draw = list[int](), readout.some_of

    def watched(place_X: torch.Tensor, most: int, generator: Any) -> torch.Tensor:
        bounds.append(most)
        return draw(place_X, most, generator)

    monkeypatch.setattr(readout, "some_of", watched)
    monkeypatch.setattr(readout, "MAX_REGIONS", 32)
    dataset = open_dataset("scenes-vcr", split="train", data_root=small_corpus.data_root, tasks=tasks)
    take_readout(build_student("scenes-small"), dataset, range(len(dataset)), signals_of(small_corpus.caches[1]))
    assert 24 <= sum(bounds) <= 32


def test_a_student_that_sees_no_region_has_no_names_to_keep() -> None:
    student, teacher = nodes(4)
    ones_X, none_X = torch.ones(4, dtype=torch.bool), torch.zeros(0, dtype=torch.int64)
    placed = readout.Readout(
        words={"t": (student, teacher, torch.arange(4), ones_X)},
        texts={},
        regions={"t": (student[:0], teacher[:0], none_X, none_X.bool())},
        teachers=("t",),
    )
    assert placed.names() is None


@given(rank=st.integers(1, 6), more=st.integers(0, 5), scale=st.floats(1e-3, 1e3), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_effective_rank_counts_equal_directions_and_no_others(rank: int, more: int, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.linalg.qr(torch.randn(12, 12, generator=generator).double())[0] for _ in range(2))
    equal = scale * left[:, :rank] @ right[:rank]
    assert effective_rank(equal) == pytest.approx(rank, rel=1e-6)
    fading = (
        scale * left[:, : rank + more] @ torch.diag(0.5 ** torch.arange(rank + more).double()) @ right[: rank + more]
    )
    assert 1 - 1e-9 <= effective_rank(fading) <= rank + more + 1e-9
    assert effective_rank(fading) == pytest.approx(effective_rank(fading @ right.T), rel=1e-6)
    assert effective_rank(torch.cat([fading, fading])) == pytest.approx(effective_rank(fading), rel=1e-6)
    assert effective_rank(0 * equal) == 1
