"""Training speed of `uniter-base` with random weights: as the pipeline runs it, against the original formulation.

Questions have four candidates and the lengths of VCR's: words of a question, answer and rationale, boxes, and regions
that a detector adds. In each round all ways train on the same questions (forward, loss, backward, with dropout):

- ours: batches by tokens as a run makes them, a picture embedded once for its candidates, no padding in the layers;
- original: random batches of as many questions, every candidate with its own copy of the regions, rows padded to the
  longest, eager attention under an additive mask of -10000 (ChenRocks/UNITER 1dbfa62, `model/model.py`,
  `data/vcr.py`);
- original by tokens: the same on our batches, which are made as the original's sampler makes them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from advl_pipeline.datasets.records import Candidate, Example, ImageUnit, Task, text_unit
from advl_pipeline.students.bert_parts import kinds_of
from advl_pipeline.students.region_source import Regions
from advl_pipeline.students.registry import build_student
from advl_pipeline.students.single_stream import ATTENTION
from advl_pipeline.students.uniter import Uniter
from advl_pipeline.training.batch_order import GROUP_SIZE, TokenOrder, padding_share
from advl_pipeline.training.ordering import measure_examples
from advl_pipeline.training.targets import two_way_choice
from benchmarks.rows import Row

MAX_TOKENS = 4000
"""Of a micro-batch: UNITER's recipe for VCR."""

_WORDS = "the person is going to leave because they want some water near an old table and look very angry now".split()
_MEAN_WORDS = {"question": 7, "answer": 8, "rationale": 16}
_PARTS: tuple[tuple[Task, tuple[str, ...]], ...] = (
    ("vcr-q2a", ("question", "answer")),
    ("vcr-qa2r", ("question", "answer", "rationale")),
)


@dataclass(frozen=True, kw_only=True)
class StudentRates:
    """Questions per second of each way, median over rounds; `ratio` is the median of the rounds' ours / original.

    `layer_padding` is the share of padding among the positions that the layers of our way compute, `grid_padding` the
    same of the rows that attention sees, `random_padding` that of the original's random batches.
    """

    ours: float
    original: float
    original_by_tokens: float
    ratio: float
    layer_padding: float
    grid_padding: float
    random_padding: float


class DrawnRegions:
    """Random regions, as many of each picture as its name says."""

    def __init__(self, feature_size: int) -> None:
        self.feature_size = feature_size

    def regions(self, unit: ImageUnit) -> Regions:
        count = int(unit.unit_id.rpartition("-")[2])
        noise = np.random.default_rng(count)
        return Regions(
            features_RF=noise.random((count, self.feature_size), dtype=np.float32),
            positions_R7=noise.random((count, 7), dtype=np.float32),
            box_index_R=np.full(count, -1),
            whole_first=False,
        )


def questions(number: int, seed: int) -> list[Example]:
    """Draw VCR-like questions: lengths are gamma-distributed around VCR's means, 12 to 140 regions, 46 on average."""
    rng = np.random.default_rng(seed)

    def words(kind: str) -> str:
        count = int(np.clip(rng.gamma(5.0, _MEAN_WORDS[kind] / 5.0), 2, 50))
        return " ".join(rng.choice(_WORDS, count)) + " ."

    found = []
    for row in range(number):
        task, parts = _PARTS[row % 2]
        boxes, detected = np.clip(rng.gamma(3.0, 3.0), 2, 40), np.clip(rng.gamma(4.0, 9.25), 10, 100)
        unit = ImageUnit(
            unit_id=f"picture-{row}-{int(boxes) + int(detected)}",
            path=Path("absent.jpg"),
            width=640,
            height=480,
            boxes_R4=np.zeros((0, 4), dtype=np.float32),
        )
        *context, last = parts
        given = [words(kind) for kind in context]
        text = " ".join(given)
        candidates = tuple(
            Candidate(
                text_unit=text_unit(f"{text} {words(last)}"),
                context_length=len(text),
                question_length=len(given[0]) if len(given) > 1 else 0,
            )
            for _ in range(4)
        )
        found.append(
            Example(example_id=str(row), task=task, image=unit, candidates=candidates, label=int(rng.integers(4)))
        )
    return found


def build_uniter(name: str, **overrides: Any) -> Uniter:
    """Return the student over drawn regions, with a tokenizer that installs from the package index."""
    options = {"tokenizer": "minilm-l6", "vocab_size": 30522, **overrides}
    student = build_student(name, overrides=options)
    assert isinstance(student, Uniter)
    student.regions = DrawnRegions(student.config.feature_size)
    return student


def our_pass(student: Uniter, batch: Any) -> torch.Tensor:
    """Return the pooled states (N, H) as training without teachers computes them."""
    student.model.encoder.config._attn_implementation = ATTENTION
    return student.encode_pooled(batch).pooled_NP


def original_pass(student: Uniter, batch: Any) -> torch.Tensor:
    """Return the pooled states (N, H) as the original computes them."""
    model = student.model
    model.encoder.config._attn_implementation = "eager"
    text_NLH = model.embed_text(batch.token_ids_NL, types_NL=batch.types_NL)
    regions_NRH = model.embed_regions(batch.per_sequence(batch.features_BRF), batch.per_sequence(batch.positions_BR7))
    visible_NS = kinds_of(batch.token_mask_NL, batch.visual_mask_NR) >= 0
    size = int(visible_NS.sum(1).max())
    index_NS = torch.argsort(~visible_NS, dim=1, stable=True)[:, :size]
    joined = torch.cat([text_NLH, regions_NRH], dim=1)
    packed_NSH = joined.gather(1, index_NS[..., None].expand(-1, -1, joined.shape[-1]))
    mask_NS = visible_NS.gather(1, index_NS).to(joined.dtype)
    last_NSH = model.layers(packed_NSH, (1.0 - mask_NS[:, None, None, :]) * -10000.0)[-1]
    pooled_NH: torch.Tensor = model.pooler(last_NSH)
    return pooled_NH


def measure_uniter(folder: Path, quick: bool) -> list[Row]:
    """Measure the row of this section."""
    del folder
    rounds, batches, num_lengths = (1, 1, 400) if quick else (3, 2, 4_000)
    found = measure_students(rounds=rounds, batches=batches, num_lengths=num_lengths)
    return [
        Row(
            name="training uniter-base, against the original formulation",
            value=found.ratio,
            goal=1.5,
            detail=f"questions/s: ours {found.ours:.2f}, original {found.original:.2f}, original on our batches "
            f"{found.original_by_tokens:.2f}; padding: our layers {found.layer_padding:.0%}, our attention "
            f"{found.grid_padding:.0%}, the original's {found.random_padding:.0%}",
        )
    ]


def measure_students(name: str = "uniter-base", *, rounds: int, batches: int, num_lengths: int) -> StudentRates:
    """Train on the same questions in each way in turn.

    Args:
        name: of a UNITER student.
        rounds: measured; each on questions of its own.
        batches: of 8 questions in a round.
        num_lengths: questions whose batches the shares of padding are of.
    """
    torch.manual_seed(0)
    student = build_uniter(name).train()
    head = student.build_head("vcr-q2a", 1)
    rates: dict[str, list[float]] = {"original": [], "ours": [], "original by tokens": []}
    computed = real = 0

    def count(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        nonlocal computed
        computed += inputs[0].shape[0] * inputs[0].shape[1]

    def seconds(run: Callable[[Uniter, Any], torch.Tensor], parts: Sequence[Sequence[Example]]) -> float:
        collated = [(student.collate(part), part) for part in parts]
        begin = time.perf_counter()
        for batch, part in collated:
            right = torch.cat([torch.arange(4).eq(example.label or 0) for example in part])
            two_way_choice(head.two_way(run(student, batch)), right).backward()  # type: ignore[operator, no-untyped-call]
            student.zero_grad(set_to_none=True)
        return time.perf_counter() - begin

    seconds(our_pass, [questions(2, seed=999)])
    seconds(original_pass, [questions(2, seed=999)])
    for number in range(rounds):
        drawn = questions(batches * GROUP_SIZE, seed=number)
        by_tokens = _by_tokens(student, drawn)
        random = [drawn[start : start + GROUP_SIZE] for start in range(0, len(drawn), GROUP_SIZE)]
        rates["original"].append(len(drawn) / seconds(original_pass, random))
        hook = student.model.encoder.layer[0].register_forward_pre_hook(count)
        rates["ours"].append(len(drawn) / seconds(our_pass, by_tokens))
        hook.remove()
        real += sum(_lengths(student, drawn))
        rates["original by tokens"].append(len(drawn) / seconds(original_pass, by_tokens))
    many = questions(num_lengths, seed=1_000)
    return StudentRates(
        ours=statistics.median(rates["ours"]),
        original=statistics.median(rates["original"]),
        original_by_tokens=statistics.median(rates["original by tokens"]),
        ratio=statistics.median(np.divide(rates["ours"], rates["original"]).tolist()),
        layer_padding=1.0 - real / computed,
        grid_padding=_padding(student, [[one] for one in many]),
        random_padding=_padding(student, [many[first : first + 8] for first in range(0, len(many), GROUP_SIZE)]),
    )


def _by_tokens(student: Uniter, drawn: Sequence[Example]) -> list[list[Example]]:
    """Return the micro-batches that a run makes of one epoch."""
    indices = range(len(drawn))
    sizes = measure_examples(student, drawn, indices).total.tolist()  # type: ignore[arg-type]
    order = TokenOrder(sizes, max_tokens=MAX_TOKENS, accumulate=len(drawn), seed=0)
    return [[drawn[position] for position in part] for part in order.micro_batches(0)]


def _lengths(student: Uniter, examples: Sequence[Example]) -> list[int]:
    """Return the tokens and regions of every sequence."""
    tensors, _ = student.collate_texts(examples)
    visual = [student.num_visual_of(example.image) for example in examples for _ in example.candidates]
    return (tensors["token_mask_NL"].sum(1) + torch.tensor(visual)).tolist()


def _padding(student: Uniter, batches: Sequence[Sequence[Example]]) -> float:
    lengths: list[int] = []
    rows: list[list[int]] = []
    for batch in batches:
        found = _lengths(student, batch)
        rows.append(list(range(len(lengths), len(lengths) + len(found))))
        lengths += found
    return padding_share(rows, lengths)
