"""The gate of names tells regions that a map can move onto their names from regions that hold no name."""

from __future__ import annotations

from collections.abc import Callable

import torch

from advl_pipeline.training.landmarks.naming import NamingGate, naming_gate

NUM_NAMES, WIDTH, NUM_CANDIDATES = 12, 16, 4


def gate_of(
    region_of: Callable[[torch.Tensor, torch.Generator], torch.Tensor], num_pictures: int = 200
) -> NamingGate:
    """Return the gate of questions about one of some names, whose region is a function of its name's state."""
    generator = torch.Generator().manual_seed(0)
    names_KH = torch.randn(NUM_NAMES, WIDTH, generator=generator)
    questions = []
    for number in range(200):
        chosen_C = torch.randperm(NUM_NAMES, generator=generator)[:NUM_CANDIDATES]
        label = int(torch.randint(NUM_CANDIDATES, (), generator=generator))
        region_H = region_of(names_KH[chosen_C[label]], generator)
        questions.append((region_H.expand(NUM_CANDIDATES, -1), names_KH[chosen_C], label, f"picture {number}"))
    gate = naming_gate(questions)
    assert gate is not None
    return gate


def test_names_that_lie_in_the_regions_under_another_map_can_be_gained() -> None:
    turn_HH = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(1)))[0]
    gate = gate_of(lambda name_H, _: name_H @ turn_HH)
    assert gate.num_asked == 200
    assert gate.chance == 25
    assert gate.as_it_is < 45
    assert gate.own_names < 60
    assert gate.true_names > 95
    assert gate.is_worth_running


def test_regions_without_names_gain_nothing_and_neither_do_those_that_are_named_already() -> None:
    noise = gate_of(lambda name_H, generator: torch.randn(name_H.shape, generator=generator))
    named = gate_of(lambda name_H, _: name_H)
    assert max(noise.as_it_is, noise.own_names, noise.true_names) < 45
    assert named.as_it_is == named.true_names == 100
    assert not named.is_worth_running


def test_pictures_of_one_fold_are_no_gate() -> None:
    assert naming_gate([(torch.ones(4, 3), torch.ones(4, 3), 0, "one")] * 40) is None
