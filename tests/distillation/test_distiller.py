"""The loss terms of a batch against loops over examples, candidates, boxes and words, and their gradients; padding
does not change them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from laid_out import EYES, ITEMS, READERS, Array, Candidate, Item, distiller_of, draw, lay_out, run, terms_of
from torch import nn

from advl_pipeline.distillation.distiller import Distiller
from advl_pipeline.distillation.relational import relational_divergence
from advl_pipeline.distillation.weighting import KEPT_SHARE, PRIOR_SHARE


def apart(kind: str, projection: nn.Module, state: Array, target: Array) -> float:
    assert isinstance(projection, nn.Linear)
    weight, bias = (value.detach().numpy().astype(np.float64) for value in (projection.weight, projection.bias))
    a, b = ((v - v.mean()) / math.sqrt(v.var() + 1e-5) for v in (weight @ state + bias, target))
    if kind == "cosine":
        return 1.0 - float(a @ b) / float(np.linalg.norm(a) * np.linalg.norm(b))
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(a)


def vision_by_loop(distiller: Distiller, name: str, item: Item, candidate: Candidate) -> float:
    projections, settings = distiller.vision[name], distiller.settings
    total = 0.0
    if settings.vision_target in ("image", "both"):
        total += apart(settings.distance, projections.image, candidate.visual.mean(axis=0), item.image[name])
    if settings.vision_target in ("auto", "regions", "both"):
        each = [
            apart(settings.distance, projections.region, candidate.visual[row], item.boxes[name][box])
            for row, box in enumerate(candidate.box_of_visual)
            if box >= 0
        ]
        total += sum(each) / len(each) if each else 0.0
    return total


def chosen_by_loop(distiller: Distiller, candidate: Candidate, known: Array) -> list[int]:
    settings = distiller.settings
    present = [word for word in range(len(known)) if known[word] and word in candidate.word_of_token]

    def scaled(values: dict[int, float]) -> dict[int, float]:
        low, high = min(values.values()), max(values.values())
        return {word: (value - low) / (high - low) if high > low else 0.0 for word, value in values.items()}

    if not present or settings.selection == "all":
        return present
    prior = scaled({word: candidate.prior[word] for word in present})
    seen = scaled(
        {
            word: float(np.mean([candidate.attention[t] for t, w in enumerate(candidate.word_of_token) if w == word]))
            for word in present
        }
    )
    share = 1.0 if settings.selection == "prior" else PRIOR_SHARE
    score = {word: share * prior[word] + (1 - share) * seen[word] for word in present}
    count = math.ceil(KEPT_SHARE * len(present) - 1e-6)
    return sorted(present, key=lambda word: (-score[word], word))[:count]


def text_by_loop(distiller: Distiller, name: str, candidate: Candidate) -> float:
    projections, kind = distiller.text[name], distiller.settings.distance
    total = apart(kind, projections.summary, candidate.pooled, candidate.text[name])
    each = []
    for word in chosen_by_loop(distiller, candidate, candidate.known_words[name]):
        rows = [row for row, belongs in enumerate(candidate.word_of_token) if belongs == word]
        state = candidate.tokens[rows].mean(axis=0)
        each.append(apart(kind, projections.word, state, candidate.words[name][word]))
    return total + (sum(each) / len(each) if each else 0.0)


def divergences(student: list[Array], teacher: list[Array], groups: list[int]) -> list[float]:
    """The divergence of each node to those of other groups, which tests/distillation/test_relational.py holds."""
    states, features = (torch.tensor(np.array(rows)).float() for rows in (student, teacher))
    return relational_divergence(states, features, torch.tensor(groups)).tolist()


def relations_by_loop(distiller: Distiller, items: list[Item]) -> dict[str, list[float]]:
    """Nodes are the known words of a prior above 0, or the regions of each picture's first sequence."""
    found: dict[str, list[float]] = {"vision": [0.0] * len(items), "text": [0.0] * len(items)}
    for name in READERS:
        nodes = [
            (at, c, word)
            for at, item in enumerate(items)
            for c, candidate in enumerate(item.candidates)
            for word in range(len(candidate.prior))
            if candidate.known_words[name][word] and word in candidate.word_of_token and candidate.prior[word] > 0
        ]
        candidates = [items[at].candidates[c] for at, c, _ in nodes]
        rows = [
            [row for row, belongs in enumerate(candidate.word_of_token) if belongs == word]
            for candidate, (_, _, word) in zip(candidates, nodes, strict=True)
        ]
        student = [candidate.tokens[row].mean(axis=0) for candidate, row in zip(candidates, rows, strict=True)]
        teacher = [candidate.words[name][word] for candidate, (_, _, word) in zip(candidates, nodes, strict=True)]
        forms = [candidate.forms[word] for candidate, (_, _, word) in zip(candidates, nodes, strict=True)]
        values = divergences(student, teacher, forms)
        for at, item in enumerate(items):
            for c, candidate in enumerate(item.candidates):
                usable = candidate.known_words[name] & (candidate.prior > 0)
                chosen = chosen_by_loop(distiller, candidate, usable)
                each = [values[nodes.index((at, c, word))] for word in chosen]
                found["text"][at] += sum(each) / max(1, len(each)) / len(item.candidates) / len(READERS)
    for name in EYES:
        nodes_of = [
            (at, row, box)
            for at, item in enumerate(items)
            for row, box in enumerate(item.candidates[0].box_of_visual)
            if box >= 0
        ]
        student = [items[at].candidates[0].visual[row] for at, row, _ in nodes_of]
        teacher = [items[at].boxes[name][box] for at, _, box in nodes_of]
        places = [items[at].picture * 100 + box for at, _, box in nodes_of]
        values = divergences(student, teacher, places)
        for at in range(len(items)):
            each = [value for value, (owner, _, _) in zip(values, nodes_of, strict=True) if owner == at]
            found["vision"][at] += sum(each) / max(1, len(each)) / len(EYES)
    return found


def texts_by_loop(items: list[Item]) -> list[float]:
    """A text is the mean of its words, weighted by their prior between the lowest and the highest of the text."""
    found = [0.0] * len(items)
    for name in READERS:
        student, teacher, groups, owners = [], [], [], []
        for at, item in enumerate(items):
            for candidate in item.candidates:
                words = [
                    word
                    for word in range(len(candidate.prior))
                    if candidate.known_words[name][word] and word in candidate.word_of_token
                ]
                if not words:
                    continue
                low, high = (extreme(candidate.prior[words]) for extreme in (np.min, np.max))
                weights = (candidate.prior[words] - low) / (high - low) if high > low else np.ones(len(words))
                rows = [[r for r, belongs in enumerate(candidate.word_of_token) if belongs == word] for word in words]
                states = np.array([candidate.tokens[row].mean(axis=0) for row in rows])
                student.append(weights @ states / weights.sum())
                teacher.append(weights @ candidate.words[name][words] / weights.sum())
                groups.append(sum(candidate.forms[word] for word in words))
                owners.append(at)
        for value, at in zip(divergences(student, teacher, groups), owners, strict=True):
            found[at] += value / len(items[at].candidates) / len(READERS)
    return found


def terms_by_loop(distiller: Distiller, items: list[Item]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"vision": [], "text": []}
    for item in items:
        vision = [vision_by_loop(distiller, name, item, c) for name in distiller.vision for c in item.candidates]
        text = [text_by_loop(distiller, name, c) for name in distiller.text for c in item.candidates]
        found["vision"].append(sum(vision) / max(1, len(vision)))
        found["text"].append(sum(text) / max(1, len(text)))
    return found


def close(terms: dict[str, torch.Tensor], expected: dict[str, list[float]]) -> None:
    for pathway, value_B in terms.items():
        np.testing.assert_allclose(value_B.detach().numpy(), expected[pathway], rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"distance": "cosine"},
        {"vision_target": "image"},
        {"vision_target": "both"},
        {"selection": "all"},
        {"selection": "adaptive"},
        {"pathway": "vision"},
        {"pathway": "text"},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())) or "default",
)
def test_terms_equal_the_loops(settings: dict[str, Any]) -> None:
    distiller = distiller_of(**settings)
    terms = run(distiller, ITEMS)
    pathway = settings.get("pathway", "both")
    assert set(terms) == ({"vision", "text"} if pathway == "both" else {pathway})
    close(terms, terms_by_loop(distiller, ITEMS))


@pytest.mark.parametrize("seed", [0, 5])
@pytest.mark.parametrize("selection", ["all", "prior"])
def test_relational_terms_equal_the_loops(seed: int, selection: str) -> None:
    distiller = distiller_of(distance="relational", selection=selection, vision_target="regions")
    items = draw(seed, (4, 1, 3, 2))
    assert not list(distiller.vision.parameters()) + list(distiller.text.parameters())
    expected = relations_by_loop(distiller, items)
    assert min(sum(expected["text"]), sum(texts_by_loop(items))) > 0
    expected["text"] = [sum(both) for both in zip(expected["text"], texts_by_loop(items), strict=True)]
    for pathway, value_B in run(distiller, items).items():
        np.testing.assert_allclose(value_B.detach().numpy(), expected[pathway], rtol=2e-3, atol=2e-3)


FIELDS = {"pooled": "pooled_NP", "tokens": "text_states_NLH", "visual": "visual_states_NRH"}


@pytest.mark.parametrize("state", FIELDS)
def test_gradients_equal_finite_differences(state: str) -> None:
    """Of a student's state, through the projections; differences are of the loops, which know nothing of autograd."""
    distiller = distiller_of()
    items = draw(1, (2, 1))
    pathway = "vision" if state == "visual" else "text"
    first, *others = items[0].candidates
    instance_weights = [0.7, 1.9]

    def by_loop(changed: Array) -> float:
        nudged = replace(items[0], candidates=[replace(first, **{state: changed}), *others])
        terms = terms_by_loop(distiller, [nudged, items[1]])[pathway]
        return sum(weight * value for weight, value in zip(instance_weights, terms, strict=True))

    value = getattr(first, state)
    slope = np.zeros_like(value)
    for index in np.ndindex(value.shape):
        nudge = np.zeros_like(value)
        nudge[index] = 1e-5
        slope[index] = (by_loop(value + nudge) - by_loop(value - nudge)) / 2e-5
    output, *rest = lay_out(items)
    leaf = getattr(output, FIELDS[state]).requires_grad_()
    terms = terms_of(distiller, (output, *rest))
    (torch.tensor(instance_weights) * terms[pathway]).sum().backward()  # type: ignore[no-untyped-call]
    found = leaf.grad[0].numpy()
    np.testing.assert_allclose(found[: len(value)] if value.ndim > 1 else found, slope, atol=2e-4, rtol=2e-3)
    assert np.abs(slope).max() > 1e-2
