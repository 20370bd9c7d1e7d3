"""The readout agrees with a teacher whose relations the student has, and not with one whose relations it lacks."""

from __future__ import annotations

import pytest
import torch

from advl_pipeline.training.placement import agreement, mean_by_group


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
        "kin_X": torch.arange(count),
        **changes,
    }
    found = agreement(student, teacher, **settings)  # type: ignore[arg-type]
    return found.share


def test_a_student_with_the_teacher_s_relations_agrees_and_a_stranger_does_by_chance() -> None:
    student, teacher = nodes()
    assert share(student, teacher) == 1.0
    assert share(5 * student + 3, teacher) == 1.0
    assert share(student[torch.randperm(300)], teacher) == pytest.approx(0.25, abs=0.08)


def test_only_offered_nodes_of_another_kin_are_chosen() -> None:
    student, teacher = nodes(8)
    offered = torch.arange(8) < 5
    found = agreement(
        student,
        teacher,
        asked_X=~offered,
        offered_X=offered,
        kin_X=torch.arange(8),
    )
    assert (found.num_asked, found.share, found.chance) == (3, 1.0, 0.25)
    # Two kin, so that all that may be chosen beside the best are of its own kin.
    few = agreement(
        student,
        teacher,
        asked_X=torch.ones(8, dtype=torch.bool),
        offered_X=torch.ones(8, dtype=torch.bool),
        kin_X=torch.arange(8) % 4 // 2,
    )
    assert few is None


def test_occurrences_of_a_word_are_averaged() -> None:
    states = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    means, groups = mean_by_group(states, torch.tensor([7, 2, 7]))
    assert groups.tolist() == [2, 7]
    assert means.tolist() == [[0.0, 1.0], [2.0, 0.0]]
