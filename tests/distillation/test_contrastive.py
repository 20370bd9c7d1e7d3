"""The contrastive objective and its gradients against a loop, its precision, and what counts as a negative."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from advl_pipeline.distillation.adapt_objectives import image_text_contrast
from advl_pipeline.distillation.distiller import Distiller
from advl_pipeline.distillation.settings import DistillationSettings
from advl_pipeline.students.interface import StudentBatch, StudentOutput

Array = np.ndarray


def test_likenesses_keep_their_precision_under_autocast() -> None:
    generator = torch.Generator().manual_seed(0)
    image, text = torch.randn(3, 5, generator=generator), torch.randn(12, 5, generator=generator)
    nothing = torch.zeros(3, 12, dtype=torch.bool)
    own = torch.zeros(3, 12, dtype=torch.bool)
    own[[0, 1, 1, 2], [1, 4, 5, 11]] = True
    options = {"left_out_BN": nothing, "temperature": torch.tensor(0.01)}
    plain = image_text_contrast(image, text, own, **options)
    with torch.autocast("cpu", torch.bfloat16):
        cast = image_text_contrast(image, text, own, **options)
    assert cast.dtype == torch.float32
    assert cast.item() == plain.item()


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A batch for `Distiller.contrast`: by example, the pooled texts, and the visual states of every sequence."""

    pooled: list[Array]
    visual: list[list[Array]]
    right: list[int]
    picture: list[int]
    known: list[bool] | None
    whole: list[list[Array]] | None = None
    """The student's own state of the whole picture of every sequence, where it has one."""


WIDTH, POOLED = 6, 5


def shown(*, known: list[bool] | None, whole: bool = False) -> Shown:
    random = np.random.default_rng(5)
    counts = [4, 1, 3, 2]
    return Shown(
        pooled=[random.normal(size=(count, POOLED)) for count in counts],
        visual=[[random.normal(size=(random.integers(1, 4), WIDTH)) for _ in range(count)] for count in counts],
        right=[2, 0, 1, 1],
        picture=[7, 3, 7, 1],
        known=known,
        whole=[[random.normal(size=WIDTH) for _ in range(count)] for count in counts] if whole else None,
    )


def by_distiller(distiller: Distiller, batch: Shown) -> torch.Tensor:
    counts = tuple(len(own) for own in batch.pooled)
    flat = [states for own in batch.visual for states in own]
    longest = max(map(len, flat)) + 1
    # Padding holds a value that must not matter.
    visual, mask = np.full((len(flat), longest, WIDTH), 40.0), np.zeros((len(flat), longest), bool)
    for row, states in enumerate(flat):
        visual[row, : len(states)], mask[row, : len(states)] = states, True
    starts = np.cumsum([0, *counts[:-1]])
    whole = None if batch.whole is None else np.stack([state for own in batch.whole for state in own])
    nothing = torch.zeros(len(flat), 1, dtype=torch.int64)
    output = StudentOutput(
        text_states_NLH=torch.zeros(len(flat), 1, WIDTH),
        visual_states_NRH=torch.tensor(visual).float(),
        pooled_NP=torch.tensor(np.concatenate(batch.pooled)).float(),
        image_state_NH=None if whole is None else torch.tensor(whole).float(),
    )
    inputs = StudentBatch(
        num_candidates=counts,
        token_ids_NL=nothing,
        token_mask_NL=nothing.bool(),
        char_spans_NL2=nothing[..., None].expand(-1, -1, 2),
        visual_mask_NR=torch.tensor(mask),
        box_index_NR=torch.full(mask.shape, -1),
    )
    return distiller.contrast(
        output,
        inputs,
        torch.tensor(starts + np.array(batch.right)),
        torch.tensor(batch.picture),
        known_B=None if batch.known is None else torch.tensor(batch.known),
    )


def by_numpy(distiller: Distiller, batch: Shown) -> float:
    """The term as docs/method.md words it, example by example."""

    def project(layer: torch.nn.Linear, state: Array) -> Array:
        weight, bias = (value.detach().numpy().astype(np.float64) for value in (layer.weight, layer.bias))
        out: Array = weight @ state + bias
        return out / np.linalg.norm(out)

    examples = range(len(batch.pooled))
    temperature = max(0.01, float(distiller.log_temperature.detach().double().exp()))
    # The picture of an example is taken from the sequence of its right candidate.
    image = []
    for b in examples:
        row = batch.right[b]
        state = batch.visual[b][row].mean(axis=0) if batch.whole is None else batch.whole[b][row]
        image.append(project(distiller.contrast_image, state))
    text = [[project(distiller.contrast_text, state) for state in own] for own in batch.pooled]

    def like(b: int, other: int, row: int) -> float:
        return float(image[b] @ text[other][row]) / temperature

    def own(b: int) -> list[int]:
        is_known = batch.known is None or batch.known[b]
        return [batch.right[b]] if is_known else list(range(len(text[b])))

    def counts(b: int, other: int, row: int) -> bool:
        return batch.picture[b] != batch.picture[other] or (b == other and row in own(b))

    total = 0.0
    for b in examples:
        mine = sum(math.exp(like(b, b, row)) for row in own(b))
        texts = [
            like(b, other, row) for other in examples for row in range(len(text[other])) if counts(b, other, row)
        ]
        pictures = [like(other, b, row) for other in examples for row in own(b) if counts(other, b, row)]
        for found in (texts, pictures):
            total += math.log(sum(map(math.exp, found))) - math.log(mine)
    return total / (2 * len(examples))


def new_distiller() -> Distiller:
    torch.manual_seed(2)
    distiller = Distiller(DistillationSettings(), {}, hidden_size=WIDTH, pooled_size=POOLED)
    torch.nn.init.constant_(distiller.log_temperature, math.log(0.4))
    return distiller


@pytest.mark.parametrize(
    ("known", "whole"),
    [(None, False), ([True] * 4, True), ([True, False, False, True], False), ([False] * 4, False)],
)
def test_the_distillers_contrast_and_its_gradients_are_those_of_a_loop_over_examples(
    known: list[bool] | None, whole: bool
) -> None:
    distiller, batch = new_distiller(), shown(known=known, whole=whole)
    value = by_distiller(distiller, batch)
    assert value.item() == pytest.approx(by_numpy(distiller, batch), rel=1e-5)
    value.backward()  # type: ignore[no-untyped-call]
    step = 1e-4
    for parameter in (distiller.log_temperature, distiller.contrast_text.bias, distiller.contrast_image.bias):
        assert parameter.grad is not None
        for place in range(parameter.numel()):
            ends = []
            for sign in (1.0, -1.0):
                with torch.no_grad():
                    kept = parameter.clone()
                    parameter.view(-1)[place] += sign * step
                    ends.append((by_numpy(distiller, batch), float(parameter.view(-1)[place])))
                    parameter.copy_(kept)
            slope = (ends[0][0] - ends[1][0]) / (ends[0][1] - ends[1][1])
            assert float(parameter.grad.view(-1)[place]) == pytest.approx(slope, rel=1e-2, abs=1e-4)


ONE_PICTURE, OWN_PICTURES = [7, 7, 7, 7], [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("picture", "example", "row", "counts"),
    [
        # Alone with one picture nothing is told apart: rivals of a right candidate may be true of it too.
        (ONE_PICTURE, 0, 0, False),
        (ONE_PICTURE, 0, 2, False),
        (ONE_PICTURE, 2, 0, False),
        # Rivals are negatives of other pictures, and all texts of an unlabelled item belong to its own.
        (OWN_PICTURES, 0, 0, True),
        (OWN_PICTURES, 2, 0, True),
        (OWN_PICTURES, 2, 1, True),
    ],
)
def test_which_texts_have_a_say(picture: list[int], example: int, row: int, counts: bool) -> None:
    distiller = new_distiller()
    batch = replace(shown(known=[True, True, False, True]), picture=picture)
    moved = replace(batch, pooled=[own.copy() for own in batch.pooled])
    moved.pooled[example][row] *= -3.0
    before, after = (by_distiller(distiller, one).item() for one in (batch, moved))
    assert (before != pytest.approx(after, rel=1e-5)) == counts
