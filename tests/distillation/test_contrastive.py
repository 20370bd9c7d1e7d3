"""The contrastive objective and its gradients against a loop, and its precision."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from laid_out import POOLED, WIDTH, Array, draw, lay_out

from advl_pipeline.distillation.adapt_objectives import image_text_contrast
from advl_pipeline.distillation.distiller import Distiller
from advl_pipeline.distillation.settings import DistillationSettings


def test_similarities_keep_their_precision_under_autocast() -> None:
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


ITEMS = [replace(item, picture=picture) for item, picture in zip(draw(5, (4, 1, 3, 2)), (7, 3, 7, 1), strict=True)]
RIGHT = (2, 0, 1, 1)
Known = list[bool] | None


def by_distiller(distiller: Distiller, known: Known, whole: Array | None) -> torch.Tensor:
    """`whole`: the student's own state of the whole picture of every sequence, where it has one."""
    output, batch, _, pictures = lay_out(ITEMS)
    if whole is not None:
        output = replace(output, image_state_NH=torch.tensor(whole).float())
    right_B, known_B = batch.first_B + torch.tensor(RIGHT), None if known is None else torch.tensor(known)
    return distiller.contrast(output, batch, right_B, pictures, known_B=known_B)


def by_numpy(distiller: Distiller, known: Known, whole: Array | None) -> float:
    """The term as docs/method.md words it, example by example."""

    def project(layer: torch.nn.Linear, state: Array) -> Array:
        weight, bias = (value.detach().numpy().astype(np.float64) for value in (layer.weight, layer.bias))
        out: Array = weight @ state + bias
        return out / np.linalg.norm(out)

    examples = range(len(ITEMS))
    temperature = max(0.01, float(distiller.log_temperature.detach().double().exp()))
    # The picture of an example is taken from the sequence of its right candidate.
    first = np.cumsum([0, *(len(item.candidates) for item in ITEMS)])
    image = [
        project(
            distiller.contrast_image,
            ITEMS[b].candidates[RIGHT[b]].visual.mean(axis=0) if whole is None else whole[first[b] + RIGHT[b]],
        )
        for b in examples
    ]
    text = [[project(distiller.contrast_text, one.pooled) for one in item.candidates] for item in ITEMS]

    def like(b: int, other: int, row: int) -> float:
        return float(image[b] @ text[other][row]) / temperature

    def own(b: int) -> list[int]:
        return [RIGHT[b]] if known is None or known[b] else list(range(len(text[b])))

    def counts(b: int, other: int, row: int) -> bool:
        return ITEMS[b].picture != ITEMS[other].picture or (b == other and row in own(b))

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


@pytest.mark.parametrize(
    ("known", "whole"),
    [(None, False), ([True] * 4, True), ([True, False, False, True], False), ([False] * 4, False)],
)
def test_the_distillers_contrast_and_its_gradients_are_those_of_a_loop_over_examples(
    known: Known, whole: bool
) -> None:
    torch.manual_seed(2)
    distiller = Distiller(DistillationSettings(), {}, hidden_size=WIDTH, pooled_size=POOLED)
    torch.nn.init.constant_(distiller.log_temperature, math.log(0.4))
    num_sequences = sum(len(item.candidates) for item in ITEMS)
    given = known, np.random.default_rng(6).normal(size=(num_sequences, WIDTH)) if whole else None
    value = by_distiller(distiller, *given)
    assert value.item() == pytest.approx(by_numpy(distiller, *given), rel=1e-5)
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
                    ends.append((by_numpy(distiller, *given), float(parameter.view(-1)[place])))
                    parameter.copy_(kept)
            slope = (ends[0][0] - ends[1][0]) / (ends[0][1] - ends[1][1])
            assert float(parameter.grad.view(-1)[place]) == pytest.approx(slope, rel=1e-2, abs=1e-4)
