"""The loss terms of a batch against loops over examples, candidates, boxes and words, and what must not change them:
padding, the order of candidates and of the batch, the scale of the teacher."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from advl_pipeline.base.errors import ConfigError
from advl_pipeline.distillation.adapt_objectives import anchor_loss
from advl_pipeline.distillation.distiller import Distiller
from advl_pipeline.distillation.relational import (
    Landmarks,
    RegionLandmarks,
    gather_alone,
    relational_divergence,
    some_of,
)
from advl_pipeline.distillation.settings import DistillationSettings
from advl_pipeline.distillation.signal import Features, TeacherSignal, TextSignal, VisionSignal, WordAlignment
from advl_pipeline.distillation.weighting import KEPT_SHARE, PRIOR_SHARE
from advl_pipeline.students.interface import StudentBatch, StudentOutput

WIDTH, POOLED, EXTRA = 6, 5, 2
EYES = {"lens": (7, 4), "eye": (3, 8)}
READERS = {"scribe": (5, 9), "clerk": (4, 4)}
"""Teachers: widths of the global feature and of a box or word."""

Array = np.ndarray


@dataclass
class Candidate:
    """One sequence: the student's states, row by row, the word or box of each, and the teachers' features."""

    pooled: Array
    tokens: Array
    word_of_token: list[int]
    attention: Array
    visual: Array
    box_of_visual: list[int]
    prior: Array
    text: dict[str, Array]
    words: dict[str, Array]
    known_words: dict[str, Array]
    forms: list[int]


@dataclass
class Item:
    """One example."""

    candidates: list[Candidate]
    picture: int
    image: dict[str, Array]
    boxes: dict[str, Array]


def draw(seed: int, num_candidates: tuple[int, ...]) -> list[Item]:
    random = np.random.default_rng(seed)
    items = []
    for count in num_candidates:
        num_boxes = int(random.integers(0, 4))
        candidates = []
        for _ in range(count):
            num_words = int(random.integers(1, 7))
            # Words of one or two tokens, the last one of none; -1 for a special token.
            word_of_token = [-1, *(word for word in range(num_words - 1) for _ in range(random.integers(1, 3)))]
            box_of_visual = [-1, *range(min(num_boxes, 2))]
            candidates.append(
                Candidate(
                    pooled=random.normal(size=POOLED),
                    tokens=random.normal(size=(len(word_of_token), WIDTH)),
                    word_of_token=word_of_token,
                    attention=random.random(len(word_of_token)),
                    visual=random.normal(size=(len(box_of_visual), WIDTH)),
                    box_of_visual=box_of_visual,
                    prior=random.random(num_words),
                    text={name: random.normal(size=widths[0]) for name, widths in READERS.items()},
                    words={name: random.normal(size=(num_words, widths[1])) for name, widths in READERS.items()},
                    known_words={name: random.random(num_words) < 0.8 for name in READERS},
                    forms=random.integers(0, 12, size=num_words).tolist(),
                )
            )
        items.append(
            Item(
                candidates=candidates,
                picture=int(random.integers(3)),
                image={name: random.normal(size=widths[0]) for name, widths in EYES.items()},
                boxes={name: random.normal(size=(num_boxes, widths[1])) for name, widths in EYES.items()},
            )
        )
    return items


def distiller_of(**settings: Any) -> Distiller:
    torch.manual_seed(3)
    widths = {name: {"image": a, "region": b} for name, (a, b) in EYES.items()}
    widths |= {name: {"summary": a, "word": b} for name, (a, b) in READERS.items()}
    given = {"distance": "mse", "selection": "prior"}
    chosen = DistillationSettings(**{**given, **settings})
    targets = {} if chosen.vision_target == "auto" else dict.fromkeys(EYES, chosen.vision_target)
    return Distiller(chosen, widths, hidden_size=WIDTH, pooled_size=POOLED, vision_targets=targets)  # type: ignore[arg-type]


def stack(rows: list[Array], *, fill: Any) -> torch.Tensor:
    """Pad to more than the longest, with a value that must not matter."""
    length = max(len(row) for row in rows) + EXTRA
    out = np.full((len(rows), length, *np.shape(rows[0])[1:]), fill)
    for index, row in enumerate(rows):
        out[index, : len(row)] = row
    return torch.from_numpy(out)


LaidOut = tuple[StudentOutput, StudentBatch, TeacherSignal, torch.Tensor]


def lay_out(items: list[Item]) -> LaidOut:
    """Return the examples as a batch, padded with garbage: what `Distiller.terms` takes."""
    flat = [candidate for item in items for candidate in item.candidates]
    box_index = stack([np.array(c.box_of_visual) for c in flat], fill=-1)
    masks = [np.ones(len(c.visual), bool) for c in flat]
    batch = StudentBatch(
        num_candidates=tuple(len(item.candidates) for item in items),
        token_ids_NL=torch.zeros(len(flat), 1, dtype=torch.int64),
        token_mask_NL=torch.ones(len(flat), 1),
        char_spans_NL2=torch.zeros(len(flat), 1, 2, dtype=torch.int64),
        visual_mask_NR=stack(masks, fill=False),
        box_index_NR=box_index,
    )
    output = StudentOutput(
        text_states_NLH=stack([c.tokens for c in flat], fill=50.0).float(),
        visual_states_NRH=stack([c.visual for c in flat], fill=-50.0).float(),
        pooled_NP=torch.tensor(np.stack([c.pooled for c in flat])).float(),
        relevance_NL=stack([c.attention for c in flat], fill=9.0).float(),
    )
    # A word more for each token more, so that the padded words are many too.
    words = WordAlignment(
        word_of_token_NL=stack([np.array(c.word_of_token) for c in flat], fill=-1),
        prior_NW=stack([c.prior for c in flat], fill=7.0).float(),
        word_mask_NW=stack([np.ones(len(c.prior), bool) for c in flat], fill=False),
        form_NW=stack([np.array(c.forms) for c in flat], fill=0),
        known_NW=stack([np.zeros(len(c.prior)) for c in flat], fill=1.0).float(),
        frequent_NW=stack([np.zeros(len(c.prior), bool) for c in flat], fill=False),
    )
    firsts = torch.tensor([0, *(len(item.candidates) for item in items[:-1])]).cumsum(0)
    signal = TeacherSignal(
        vision={
            name: VisionSignal(
                picture=Features(values_MD=torch.tensor(np.stack([item.image[name] for item in items])).float()),
                regions=Features(values_MD=stack([item.boxes[name] for item in items], fill=20.0).float()),
                region_mask_BS=stack([np.ones(len(i.boxes[name]), bool) for i in items], fill=False),
                shares_BSR=(
                    box_index[firsts][:, None]
                    == torch.arange(EXTRA + max(len(item.boxes[name]) for item in items))[None, :, None]
                ).float(),
            )
            for name in EYES
        },
        text={
            name: TextSignal(
                text=Features(values_MD=torch.tensor(np.stack([c.text[name] for c in flat])).float()),
                words=Features(values_MD=stack([c.words[name] for c in flat], fill=30.0).float()),
                word_mask_NW=stack([c.known_words[name] for c in flat], fill=True),
            )
            for name in READERS
        },
        words=words,
    )
    return output, batch, signal, torch.tensor([item.picture for item in items])


def run(distiller: Distiller, items: list[Item]) -> dict[str, torch.Tensor]:
    return terms_of(distiller, lay_out(items))


def terms_of(distiller: Distiller, laid_out: LaidOut) -> dict[str, torch.Tensor]:
    """Return (B,) of each pathway, the mean over its teachers."""
    output, *rest = laid_out
    terms, _ = distiller.terms(output, *rest, relevance_NL=output.relevance_NL)
    return {pathway: torch.stack(list(by_teacher.values())).mean(0) for pathway, by_teacher in terms.items()}


def selected_of(distiller: Distiller, laid_out: LaidOut) -> torch.Tensor:
    output, *rest = laid_out
    selected_NW = distiller.terms(output, *rest, relevance_NL=output.relevance_NL)[1]
    assert selected_NW is not None
    return selected_NW


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


ITEMS = draw(0, (4, 1, 3, 2))


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


def test_words_that_pretraining_taught_are_landmarks_and_not_distilled() -> None:
    distiller = distiller_of(distance="relational", selection="all", pathway="text")
    output, batch, signal, *rest = lay_out(ITEMS)
    known_NW = (signal.words.form_NW % 2).float()
    frequent_NW = signal.words.form_NW % 7 == 2
    signal = replace(signal, words=replace(signal.words, known_NW=known_NW, frequent_NW=frequent_NW))
    given = (output, batch, signal, *rest)
    selected, text_B = [selected_of(distiller, given)], [terms_of(distiller, given)["text"]]
    draws = torch.Generator().manual_seed(0)
    for name in READERS:
        width = signal.text[name].words_NWD.shape[-1]  # type: ignore[union-attr]
        distiller.landmarks[name] = Landmarks(
            states_KH=torch.randn(5, output.text_states_NLH.shape[-1], generator=draws),
            features_KD=torch.randn(5, width, generator=draws),
            mean_D=torch.randn(width, generator=draws),
        )
    selected, text_B = [*selected, selected_of(distiller, given)], [*text_B, terms_of(distiller, given)["text"]]
    for selected_NW, has_known in zip(selected, (True, False), strict=True):
        assert bool(selected_NW.any())
        assert bool((selected_NW & ((known_NW > 0.5) | frequent_NW)).any()) == has_known
    assert not torch.allclose(*text_B)


def test_regions_that_the_student_names_are_held_and_the_others_are_placed() -> None:
    distiller = distiller_of(distance="relational", pathway="vision", vision_target="regions")
    output, batch, signal, *rest = lay_out(draw(2, (4, 1, 3, 2)))
    assert signal.words is not None
    # Below the fusion all sequences of an example have the same picture.
    first_N = torch.tensor([0] * 4 + [4] + [5] * 3 + [8] * 2)
    visual = output.visual_states_NRH[first_N].clone().requires_grad_()
    batch = replace(batch, visual_mask_NR=batch.visual_mask_NR[first_N], box_index_NR=batch.box_index_NR[first_N])
    output = replace(output, visual_states_NRH=visual)
    draws = torch.Generator().manual_seed(0)
    names = torch.randn(5, visual.shape[-1], generator=draws)
    for name in EYES:
        width = signal.vision[name].regions_BSD.shape[-1]  # type: ignore[union-attr]
        distiller.region_landmarks[name] = RegionLandmarks(
            states_KH=torch.randn(5, visual.shape[-1], generator=draws),
            features_KD=torch.randn(5, width, generator=draws),
            mean_D=torch.randn(width, generator=draws),
            names_NH=names,
            margin=0.2,
        )
    terms = terms_of(distiller, (output, batch, signal, *rest))
    terms["vision"].sum().backward()  # type: ignore[no-untyped-call]
    moved_NR = visual.grad.abs().sum(-1) > 0  # type: ignore[union-attr]
    best = torch.nn.functional.cosine_similarity(visual.detach()[:, :, None], names, dim=-1).topk(2, dim=-1).values
    is_known_NR = best[..., 0] - best[..., 1] >= 0.2
    is_region_NR = (batch.box_index_NR >= 0) & batch.visual_mask_NR
    assert bool((is_region_NR & is_known_NR).any())
    assert bool(moved_NR.any())
    assert not bool((moved_NR & ~(is_region_NR & ~is_known_NR)).any())
    # The anchor holds what no teacher places, and nothing else of a picture.
    batch = replace(batch, token_mask_NL=torch.ones(output.text_states_NLH.shape[:2], dtype=torch.bool))
    left = StudentOutput(
        text_states_NLH=output.text_states_NLH, visual_states_NRH=visual.detach(), pooled_NP=output.pooled_NP
    )
    known = distiller.known_regions(left, batch, signal)
    for moved, is_free in ((is_region_NR & ~is_known_NR, True), (is_region_NR & is_known_NR, False)):
        shifted = replace(left, visual_states_NRH=torch.where(moved[..., None], 2 * visual.detach(), visual.detach()))
        assert (float(anchor_loss(shifted, left, batch, signal, known, gather=gather_alone)) == 0.0) == is_free


def test_relations_without_partners_or_features_are_refused() -> None:
    distiller = distiller_of(distance="relational", selection="all", vision_target="regions")
    alike = [replace(i, candidates=[replace(c, forms=[3] * len(c.forms)) for c in i.candidates]) for i in ITEMS]
    with pytest.raises(ConfigError, match="fewer than two words"):
        run(distiller, alike)
    with torch.inference_mode():
        value_B = run(distiller, alike[1:2])["text"]
    assert not value_B.any(), "a text that is looked at alone has nothing to be related to"
    widths = {"teacher": {"summary": 4}}
    with pytest.raises(ConfigError, match="no features of words"):
        Distiller(DistillationSettings(distance="relational"), widths, hidden_size=WIDTH, pooled_size=POOLED)


def test_an_aligned_teacher_says_what_is_seen_before_the_students_attention_does() -> None:
    distiller = distiller_of(selection="adaptive")
    output, batch, signal, *rest = lay_out(ITEMS)
    by_attention = selected_of(distiller, (output, batch, signal, *rest))
    scribe = signal.text["scribe"]
    num_sequences, _, width = scribe.words_NWD.shape
    picture = Features(values_MD=torch.randn(num_sequences, width, generator=torch.Generator().manual_seed(3)))
    text = {"scribe": replace(scribe, picture=picture), "clerk": signal.text["clerk"]}
    by_towers = selected_of(distiller, (output, batch, replace(signal, text=text), *rest))
    without = replace(output, relevance_NL=None)
    assert not by_towers.equal(by_attention)
    again = selected_of(distiller, (without, batch, replace(signal, text=text), *rest))
    assert again.equal(by_towers)


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


@pytest.mark.parametrize("distance", ["mse", "relational"])
def test_a_grid_over_tokens_is_distilled_as_boxes_of_one_token_each(distance: str) -> None:
    """Without shares, region s is visual token s: the same as shares that say so."""
    distiller = distiller_of(distance=distance, selection="all", pathway="vision", vision_target="regions")
    output, batch, signal, *rest = lay_out(ITEMS)
    num_visual = output.visual_states_NRH.shape[1]
    generator = torch.Generator().manual_seed(0)
    count = len(batch.num_candidates)

    def with_shares(shares_BSR: torch.Tensor | None) -> torch.Tensor:
        generator.manual_seed(1)
        vision = {
            name: replace(
                one,
                regions=Features(values_MD=torch.randn(count, num_visual, EYES[name][1], generator=generator)),
                region_mask_BS=torch.rand(count, num_visual, generator=generator) < 0.7,
                shares_BSR=shares_BSR,
            )
            for name, one in signal.vision.items()
        }
        given = (output, batch, replace(signal, vision=vision), *rest)
        return terms_of(distiller, given)["vision"]  # type: ignore[arg-type]

    dense_B = with_shares(None)
    torch.testing.assert_close(dense_B, with_shares(torch.eye(num_visual).expand(count, -1, -1)))
    assert bool((dense_B > 0).any())


def test_no_more_regions_are_related_than_the_bound_and_none_that_has_no_target() -> None:
    mask_X = torch.rand(630, generator=torch.Generator().manual_seed(0)) < 0.6
    place_X = torch.nonzero(mask_X)[:, 0]
    generator = torch.Generator().manual_seed(0)
    kept_X = some_of(place_X, 50, generator)
    assert len(kept_X) == 50
    assert bool((kept_X.diff() > 0).all()), "each once, in order"
    assert bool(mask_X[kept_X].all())
    assert not torch.equal(kept_X, some_of(place_X, 50, generator)), "another draw in another step"
    assert torch.equal(some_of(place_X, len(place_X), generator), place_X)
