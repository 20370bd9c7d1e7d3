"""Random examples, laid out as a batch of states and signals with garbage padding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from advl_pipeline.distillation.distiller import Distiller
from advl_pipeline.distillation.settings import DistillationSettings
from advl_pipeline.distillation.signal import Features, TeacherSignal, TextSignal, VisionSignal, WordAlignment
from advl_pipeline.students.interface import StudentBatch, StudentOutput

WIDTH, POOLED, EXTRA = 6, 5, 2
EYES = {"lens": (7, 4), "eye": (3, 8)}
READERS = {"scribe": (5, 9), "clerk": (4, 4)}
"""Teacher -> widths of the global feature and of a box or word feature."""

Array = np.ndarray


@dataclass
class Candidate:
    """One sequence: the student's states by row, the word or box of each row, and the teachers' features."""

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
            # Words have one or two tokens, the last has none; -1 marks a special token.
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
    """Stack rows, padded beyond the longest with a value that must not matter."""
    length = max(len(row) for row in rows) + EXTRA
    out = np.full((len(rows), length, *np.shape(rows[0])[1:]), fill)
    for index, row in enumerate(rows):
        out[index, : len(row)] = row
    return torch.from_numpy(out)


LaidOut = tuple[StudentOutput, StudentBatch, TeacherSignal, torch.Tensor]


def lay_out(items: list[Item]) -> LaidOut:
    """Return the examples as a batch for `Distiller.terms`, padded with garbage."""
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
    # One more word per padding token, so that there are many padded words too.
    words = WordAlignment(
        word_of_token_NL=stack([np.array(c.word_of_token) for c in flat], fill=-1),
        prior_NW=stack([c.prior for c in flat], fill=7.0).float(),
        word_mask_NW=stack([np.isin(np.arange(len(c.prior)), c.word_of_token) for c in flat], fill=False),
        form_NW=stack([np.array(c.forms) for c in flat], fill=0),
        known_NW=stack([np.zeros(len(c.prior)) for c in flat], fill=1.0).float(),
        held_NW=stack([np.zeros(len(c.prior), bool) for c in flat], fill=False),
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
    """Return pathway -> (B,), the mean over its teachers."""
    output, *rest = laid_out
    terms, _ = distiller.terms(output, *rest, relevance_NL=output.relevance_NL)
    return {pathway: torch.stack(list(by_teacher.values())).mean(0) for pathway, by_teacher in terms.items()}


def selected_of(distiller: Distiller, laid_out: LaidOut) -> torch.Tensor:
    output, *rest = laid_out
    selected_NW = distiller.terms(output, *rest, relevance_NL=output.relevance_NL)[1]
    assert selected_NW is not None
    return selected_NW


ITEMS = draw(0, (4, 1, 3, 2))
