"""Heads of the small students read whether what a text says agrees with what it speaks of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from made_examples import picture

from advl_data.scenes.students.small import Agreement, place_of_tags, said_tokens
from advl_pipeline.datasets.records import Candidate, Example, ObjectTag, text_unit
from advl_pipeline.students.registry import build_student


def test_a_text_without_an_answer_says_all_of_its_tokens() -> None:
    mask = torch.tensor([[True, True, True, False], [True, True, True, True]])
    answer = torch.tensor([[False, False, True, True], [False] * 4])
    assert said_tokens(answer, mask).tolist() == [[False, False, True, False], [True] * 4]


def test_a_text_speaks_of_its_tags_or_of_the_whole_picture_and_of_nothing_where_that_is_hidden() -> None:
    tags_NLR = torch.zeros(2, 3, 4)
    tags_NLR[0, 1, 2] = 1.0
    tags_NLR[0, 2, 3] = 1.0
    assert place_of_tags(tags_NLR, hidden=False).tolist() == [[0, 0, 0.5, 0.5], [1, 0, 0, 0]]
    assert not bool(place_of_tags(tags_NLR, hidden=True).any())


def test_descent_on_likeness_alone_tells_the_named_region() -> None:
    """The pooled state is the same for all: only the product can tell which of four words is the region's."""
    torch.manual_seed(0)
    words = torch.nn.functional.normalize(torch.randn(12, 16), dim=-1)
    agreement, head = Agreement(16), torch.nn.Linear(16, 1)
    optimiser = torch.optim.Adam([*agreement.parameters(), *head.parameters()], lr=1e-2)
    pooled, is_said, place = torch.zeros(4, 16), torch.ones(4, 1, dtype=torch.bool), torch.ones(4, 1)

    def logits(choices: torch.Tensor) -> torch.Tensor:
        region = words[choices[0]].expand(4, 1, 16)
        return head(agreement(pooled, words[choices][:, None], is_said, region, place))[:, 0]  # type: ignore[no-any-return]

    for step in range(200):
        choices = torch.randperm(8, generator=torch.Generator().manual_seed(step))[:4]
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(logits(choices)[None], torch.tensor([0])).backward()
        optimiser.step()
    unseen = [
        logits(torch.tensor([first, *(other for other in range(8, 12) if other != first)])) for first in range(8, 12)
    ]
    assert [int(scores.argmax()) for scores in unseen] == [0, 0, 0, 0]


@pytest.mark.parametrize("name", ["scenes-small", "scenes-efficientnet", "scenes-uniter", "scenes-vilt"])
def test_what_is_said_is_a_candidates_own_part(name: str, tmp_path: Path) -> None:
    """The reason, and not the given answer before it, which all candidates share."""
    shown = picture(tmp_path / "a.png", 64, 48, boxes=[[4, 4, 30, 40]], labels=("thing",))
    question, context = "What is 1?", "What is 1? It is a horse."
    candidates = tuple(
        Candidate(
            text_unit=text_unit(f"{context} {reason}"),
            context_length=len(context),
            question_length=len(question),
            tags=(ObjectTag(start=8, end=9, box=0),),
        )
        for reason in ("It has hooves.", "It eats grass.")
    )
    example = Example(example_id="a", task="vcr-qa2r", image=shown, candidates=candidates, label=0)
    student: Any = build_student(name).eval()
    seen: list[torch.Tensor] = []
    student.agreement.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[2]))
    batch = student.collate([example])
    with torch.no_grad():
        student.encode(batch)
    (said_NL,) = seen
    for said_L, spans, candidate in zip(said_NL, batch.char_spans_NL2, candidates, strict=True):
        words = [candidate.text[start:end] for start, end in spans[said_L].tolist() if end > start]
        assert "".join(words) == candidate.text[candidate.context_length :].replace(" ", "")
