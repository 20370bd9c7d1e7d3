"""The contrastive objective against a loop, and what counts as a negative."""

from __future__ import annotations

import math

import pytest
import torch

from advl_pipeline.distillation.contrastive import image_text_contrast


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
