"""The contrastive objective against a loop, its gradients, what must not change it, and what counts as a negative."""

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


def by_loop(
    image: torch.Tensor, text: torch.Tensor, own: list[list[int]], left_out: torch.Tensor, temperature: float
) -> float:
    def fit(b: int, texts: list[int]) -> float:
        """Sum of exp(likeness) of a picture and those of the texts that count for it."""
        counted = [n for n in texts if not left_out[b, n]]
        return sum(
            math.exp(float(image[b] @ text[n] / (image[b].norm() * text[n].norm())) / temperature) for n in counted
        )

    total = 0.0
    for b in range(len(image)):
        total += math.log(fit(b, list(range(len(text))))) - math.log(fit(b, own[b]))
        total += math.log(sum(fit(k, own[b]) for k in range(len(image)))) - math.log(fit(b, own[b]))
    return total / (2 * len(image))


def pulled(own: list[list[int]], num_texts: int) -> torch.Tensor:
    mask = torch.zeros(len(own), num_texts, dtype=torch.bool)
    for row, texts in enumerate(own):
        mask[row, texts] = True
    return mask


OWN = [[1], [4, 5], [11]]


def test_likenesses_keep_their_precision_under_autocast() -> None:
    generator = torch.Generator().manual_seed(0)
    image, text = torch.randn(3, 5, generator=generator), torch.randn(12, 5, generator=generator)
    nothing = torch.zeros(3, 12, dtype=torch.bool)
    options = {"left_out_BN": nothing, "temperature": torch.tensor(0.01)}
    plain = image_text_contrast(image, text, pulled(OWN, 12), **options)
    with torch.autocast("cpu", torch.bfloat16):
        cast = image_text_contrast(image, text, pulled(OWN, 12), **options)
    assert cast.dtype == torch.float32
    assert cast.item() == plain.item()


def test_equals_the_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    image, text = torch.randn(3, 5, generator=generator), torch.randn(12, 5, generator=generator)
    left_out = torch.zeros(3, 12, dtype=torch.bool)
    left_out[0, 4:8] = True
    left_out[1, 0:4] = True
    found = image_text_contrast(image, text, pulled(OWN, 12), left_out_BN=left_out, temperature=torch.tensor(0.2))
    assert found.item() == pytest.approx(by_loop(image, text, OWN, left_out, 0.2), rel=1e-5)


def batch_of(seed: int) -> tuple[torch.Tensor, torch.Tensor, list[list[int]], torch.Tensor]:
    """Pictures, texts, the texts that belong to each picture, and those that do not count."""
    generator = torch.Generator().manual_seed(seed)
    own = [[3], [4], [6, 5, 7], [8]]
    left_out = torch.zeros(4, 10, dtype=torch.bool)
    # The first and the third example show one picture; the rivals of the last one's text are left out.
    left_out[0, 5:8] = True
    left_out[2, 0:4] = True
    left_out[3, 9] = True
    image, text = torch.randn(4, 5, generator=generator), torch.randn(10, 5, generator=generator)
    return image, text, own, left_out


def test_gradients_are_finite_differences_of_the_loop() -> None:
    image, text, own, left_out = batch_of(1)
    inputs = [image.requires_grad_(), text.requires_grad_(), torch.tensor(0.3, requires_grad=True)]
    image_text_contrast(inputs[0], inputs[1], pulled(own, 10), left_out_BN=left_out, temperature=inputs[2]).backward()
    points = [value.detach().double() for value in inputs]
    step = 1e-5
    for which, value in enumerate(inputs):
        numeric = torch.empty_like(points[which]).flatten()
        for place in range(numeric.numel()):
            ends = []
            for sign in (1.0, -1.0):
                moved = [point.clone() for point in points]
                moved[which].view(-1)[place] += sign * step
                ends.append(by_loop(moved[0], moved[1], own, left_out, float(moved[2])))
            numeric[place] = (ends[0] - ends[1]) / (2 * step)
        assert value.grad is not None
        assert numeric.abs().max() > 1e-3
        torch.testing.assert_close(value.grad.double().flatten(), numeric, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_texts_and_of_the_batch_changes_nothing(seed: int) -> None:
    image, text, own, left_out = batch_of(seed)
    random = np.random.default_rng(seed)

    def value(examples: list[int], rows: list[int]) -> float:
        return image_text_contrast(
            image[examples],
            text[rows],
            pulled(own, 10)[examples][:, rows],
            left_out_BN=left_out[examples][:, rows],
            temperature=torch.tensor(0.2),
        ).item()

    expected = value([0, 1, 2, 3], list(range(10)))
    turned = value(random.permutation(4).tolist(), random.permutation(10).tolist())
    assert turned == pytest.approx(expected, rel=1e-5)


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
    distiller = Distiller(DistillationSettings(), {}, hidden_size=WIDTH, pooled_size=POOLED, contrast_size=8)
    torch.nn.init.constant_(distiller.log_temperature, math.log(0.4))
    return distiller


@pytest.mark.parametrize("known", [None, [True] * 4, [True, False, False, True], [False] * 4])
@pytest.mark.parametrize("whole", [False, True])
def test_the_distillers_contrast_equals_a_loop_over_examples(known: list[bool] | None, whole: bool) -> None:
    distiller, batch = new_distiller(), shown(known=known, whole=whole)
    assert by_distiller(distiller, batch).item() == pytest.approx(by_numpy(distiller, batch), rel=1e-5)


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
