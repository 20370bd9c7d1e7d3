"""The contrastive objective against a loop, its gradients, what must not change it, and what counts as a negative."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from advl_pipeline.distillation.contrastive import image_text_contrast
from advl_pipeline.distillation.distiller import Distiller
from advl_pipeline.distillation.settings import DistillationSettings
from advl_pipeline.students.interface import StudentBatch, StudentOutput

Array = np.ndarray


def by_loop(
    image: torch.Tensor, text: torch.Tensor, right: list[int], excluded: torch.Tensor, temperature: float
) -> float:
    def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(a @ b / (a.norm() * b.norm())) / temperature

    total = 0.0
    for b in range(len(image)):
        texts = [n for n in range(len(text)) if not excluded[b, n]]
        total -= cosine(image[b], text[right[b]])
        total += math.log(sum(math.exp(cosine(image[b], text[n])) for n in texts))
        pictures = [k for k in range(len(image)) if not excluded[k, right[b]]]
        total -= cosine(image[b], text[right[b]])
        total += math.log(sum(math.exp(cosine(image[k], text[right[b]])) for k in pictures))
    return total / (2 * len(image))


def test_likenesses_keep_their_precision_under_autocast() -> None:
    generator = torch.Generator().manual_seed(0)
    image, text = torch.randn(3, 5, generator=generator), torch.randn(12, 5, generator=generator)
    right, excluded = torch.tensor([1, 4, 11]), torch.zeros(3, 12, dtype=torch.bool)
    plain = image_text_contrast(image, text, right, same_image_BN=excluded, temperature=torch.tensor(0.01))
    with torch.autocast("cpu", torch.bfloat16):
        cast = image_text_contrast(image, text, right, same_image_BN=excluded, temperature=torch.tensor(0.01))
    assert cast.dtype == torch.float32
    assert cast.item() == plain.item()


def test_equals_the_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    image, text = torch.randn(3, 5, generator=generator), torch.randn(12, 5, generator=generator)
    right = torch.tensor([1, 4, 11])
    excluded = torch.zeros(3, 12, dtype=torch.bool)
    excluded[0, 4:8] = True
    excluded[1, 0:4] = True
    found = image_text_contrast(image, text, right, same_image_BN=excluded, temperature=torch.tensor(0.2))
    assert found.item() == pytest.approx(by_loop(image, text, right.tolist(), excluded, 0.2), rel=1e-5)


def test_wrong_candidates_are_hard_negatives() -> None:
    image = torch.eye(2)
    text = torch.tensor([[1.0, 0.0], [0.0, -1.0], [0.0, 1.0], [0.0, -1.0]])
    right = torch.tensor([0, 2])
    none = torch.zeros(2, 4, dtype=torch.bool)
    apart = image_text_contrast(image, text, right, same_image_BN=none, temperature=torch.tensor(0.1))
    text[1] = torch.tensor([1.0, 0.0])
    confused = image_text_contrast(image, text, right, same_image_BN=none, temperature=torch.tensor(0.1))
    # One of two pictures, one of two directions: log 2 / 4.
    assert confused - apart > 0.17


def batch_of(seed: int) -> tuple[torch.Tensor, torch.Tensor, list[range], list[int], torch.Tensor]:
    """Pictures, texts, the texts of each picture, the right one's place among them, and texts that do not count."""
    generator = torch.Generator().manual_seed(seed)
    counts = [4, 1, 3, 2]
    starts = np.cumsum([0, *counts])
    texts = [range(start, end) for start, end in itertools.pairwise(starts.tolist())]
    excluded = torch.zeros(4, 10, dtype=torch.bool)
    # The first and the third example show one picture.
    excluded[0, texts[2]] = True
    excluded[2, texts[0]] = True
    places = [3, 0, 1, 0]
    image, text = torch.randn(4, 5, generator=generator), torch.randn(10, 5, generator=generator)
    return image, text, texts, places, excluded


def test_gradients_are_finite_differences_of_the_loop() -> None:
    image, text, texts, places, excluded = batch_of(1)
    right = [own[place] for own, place in zip(texts, places, strict=True)]
    inputs = [image.requires_grad_(), text.requires_grad_(), torch.tensor(0.3, requires_grad=True)]
    image_text_contrast(
        inputs[0], inputs[1], torch.tensor(right), same_image_BN=excluded, temperature=inputs[2]
    ).backward()
    points = [value.detach().double() for value in inputs]
    step = 1e-5
    for which, value in enumerate(inputs):
        numeric = torch.empty_like(points[which]).flatten()
        for place in range(numeric.numel()):
            ends = []
            for sign in (1.0, -1.0):
                moved = [point.clone() for point in points]
                moved[which].view(-1)[place] += sign * step
                ends.append(by_loop(moved[0], moved[1], right, excluded, float(moved[2])))
            numeric[place] = (ends[0] - ends[1]) / (2 * step)
        assert value.grad is not None
        assert numeric.abs().max() > 1e-3
        torch.testing.assert_close(value.grad.double().flatten(), numeric, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_candidates_and_of_the_batch_changes_nothing(seed: int) -> None:
    image, text, texts, places, excluded = batch_of(seed)
    random = np.random.default_rng(seed)

    def value(examples: list[int], order: list[list[int]]) -> float:
        """The objective with the examples in an order, and each one's texts in an order of their own."""
        rows = [row for example in examples for row in order[example]]
        right = [rows.index(texts[example][places[example]]) for example in examples]
        return image_text_contrast(
            image[examples],
            text[rows],
            torch.tensor(right),
            same_image_BN=excluded[examples][:, rows],
            temperature=torch.tensor(0.2),
        ).item()

    written = [list(own) for own in texts]
    expected = value([0, 1, 2, 3], written)
    shuffled = [random.permutation(own).tolist() for own in texts]
    assert shuffled != written
    assert value([0, 1, 2, 3], shuffled) == pytest.approx(expected, rel=1e-5)
    assert value(random.permutation(4).tolist(), shuffled) == pytest.approx(expected, rel=1e-5)


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

    def shares_picture(b: int, other: int) -> bool:
        return b != other and batch.picture[b] == batch.picture[other]

    total = 0.0
    for b in examples:
        row = batch.right[b]
        texts = [
            like(b, other, candidate)
            for other in examples
            for candidate in range(len(text[other]))
            if not shares_picture(b, other)
            and (other != b or candidate == row or batch.known is None or batch.known[b])
        ]
        pictures = [like(other, b, row) for other in examples if not shares_picture(other, b)]
        for found in (texts, pictures):
            total += math.log(sum(map(math.exp, found))) - like(b, b, row)
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
        (ONE_PICTURE, 0, 0, True),
        (ONE_PICTURE, 0, 2, True),
        # Of an unlabelled item: its others are no negatives of it, and its chosen one has nothing to be told from.
        (ONE_PICTURE, 2, 0, False),
        (ONE_PICTURE, 2, 1, False),
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
