"""Heads of classes find in the picture what a text speaks of, by likeness and by how rare its words are."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from advl_data.scenes.students.lookup import LookupHead, LookupOutput, found_shares

WIDTH, NUM_TOKENS, NUM_REGIONS = 16, 30, 5
NAN = float("nan")


def made_output(seed: int = 0, *, num_texts: int = 3) -> LookupOutput:
    """Return random states of texts of four tokens, and of five regions; the first visual token lies nowhere."""
    draw = torch.Generator().manual_seed(seed)
    place_NR4 = torch.rand(num_texts, NUM_REGIONS + 1, 4, generator=draw)
    place_NR4[:, 0] = NAN
    text_NLH = torch.randn(num_texts, 4, WIDTH, generator=draw)
    visual_NRH = torch.randn(num_texts, NUM_REGIONS + 1, WIDTH, generator=draw)
    return LookupOutput(
        text_states_NLH=text_NLH,
        visual_states_NRH=visual_NRH,
        pooled_NP=torch.randn(num_texts, WIDTH, generator=draw),
        token_ids_NL=torch.randint(NUM_TOKENS, (num_texts, 4), generator=draw),
        token_mask_NL=torch.ones(num_texts, 4, dtype=torch.bool),
        lower_text_NLH=text_NLH,
        lower_visual_NRH=visual_NRH,
        place_NR4=place_NR4,
    )


def made_head(seed: int = 0, num_classes: int = 4) -> LookupHead:
    torch.manual_seed(seed)
    return LookupHead(WIDTH, NUM_TOKENS, num_classes)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.lists(st.floats(-1, 1, width=32), min_size=3, max_size=3), min_size=1, max_size=4),
    st.lists(st.booleans(), min_size=3, max_size=3),
)
def test_shares_add_up_to_one_over_what_has_a_place(likeness: list[list[float]], is_place: list[bool]) -> None:
    likeness_NR = torch.tensor(likeness)
    share_NR = found_shares(likeness_NR, torch.tensor(is_place).expand(len(likeness), 3))
    torch.testing.assert_close(share_NR.sum(1), torch.full((len(likeness),), float(any(is_place))))
    assert not bool(share_NR[:, [not place for place in is_place]].any())
    for row, shares in zip(likeness, share_NR.tolist(), strict=True):
        ranked = [share for _, share, place in sorted(zip(row, shares, is_place, strict=True)) if place]
        assert all(first <= second + 1e-6 for first, second in pairwise(ranked))


def test_padding_and_the_order_of_regions_change_nothing() -> None:
    head, output = made_head(), made_output()
    expected = head(output)
    order = torch.tensor([0, 4, 2, 5, 1, 3])
    turned = dataclasses.replace(
        output, lower_visual_NRH=output.lower_visual_NRH[:, order], place_NR4=output.place_NR4[:, order]
    )
    torch.testing.assert_close(head(turned), expected)
    padded = dataclasses.replace(
        output,
        token_ids_NL=functional.pad(output.token_ids_NL, (0, 2), value=7),
        token_mask_NL=functional.pad(output.token_mask_NL, (0, 2)),
        lower_text_NLH=functional.pad(output.lower_text_NLH, (0, 0, 0, 2), value=3.0),
        lower_visual_NRH=functional.pad(output.lower_visual_NRH, (0, 0, 0, 3), value=9.0),
        place_NR4=functional.pad(output.place_NR4, (0, 0, 0, 3), value=NAN),
    )
    torch.testing.assert_close(head(padded), expected)


def test_words_that_every_text_holds_say_next_to_nothing() -> None:
    """A text of one rare word among frequent ones finds the region of the rare word; unread texts find another."""
    head, output = made_head(), made_output(num_texts=1)
    regions = functional.normalize(torch.eye(WIDTH)[: NUM_REGIONS + 1], dim=-1)[None]
    frequent, rare = regions[0, 1], regions[0, 3]
    text_NLH = torch.stack([frequent, frequent, frequent, rare])[None]
    ids_NL = torch.tensor([[1, 2, 3, 9]])
    middle_NR4 = torch.where(output.place_NR4.isnan(), torch.nan, 0.5)
    asked = dataclasses.replace(
        output, lower_text_NLH=text_NLH, lower_visual_NRH=regions, token_ids_NL=ids_NL, place_NR4=middle_NR4
    )
    moved_frequent, moved_rare = (middle_NR4.clone() for _ in range(2))
    moved_frequent[0, 1], moved_rare[0, 3] = 0.9, 0.9

    @torch.no_grad()
    def moves(place_NR4: torch.Tensor) -> float:
        return float((head(dataclasses.replace(asked, place_NR4=place_NR4)) - head(asked)).abs().max())

    assert moves(moved_frequent) > 10 * moves(moved_rare)
    every_NL = torch.tensor([[1, 2, 3, number % 8 + 10] for number in range(400)])
    head.read_texts([(every_NL[:300], torch.ones(300, 4, dtype=torch.bool)), (every_NL[300:], every_NL[300:] > 0)])
    assert moves(moved_rare) > 10 * moves(moved_frequent)


def test_shares_of_texts_count_a_word_once_in_a_text_and_no_padding() -> None:
    head = made_head()
    ids_NL = torch.tensor([[5, 5, 6, 0], [5, 7, 0, 0]])
    head.read_texts([(ids_NL, ids_NL > 0)])
    expected = torch.zeros(NUM_TOKENS)
    expected[[5, 6, 7]] = torch.tensor([1.0, 0.5, 0.5])
    assert torch.equal(head.token_share_V, expected)
    assert "token_share_V" in head.state_dict()


def test_a_hidden_picture_is_not_read() -> None:
    head, first, second = made_head(), made_output(0), made_output(1)
    hidden = dataclasses.replace(first, place_NR4=torch.full_like(first.place_NR4, NAN))
    other = dataclasses.replace(hidden, lower_visual_NRH=second.lower_visual_NRH)
    assert torch.equal(head(hidden), head(other))
    assert torch.isfinite(head(hidden)).all()
    assert not torch.equal(head(first), head(dataclasses.replace(first, lower_visual_NRH=second.lower_visual_NRH)))


def test_gradients_reach_words_and_regions_through_what_is_found() -> None:
    head, output = made_head(), made_output()
    text, visual = (states.clone().requires_grad_() for states in (output.lower_text_NLH, output.lower_visual_NRH))
    head(dataclasses.replace(output, lower_text_NLH=text, lower_visual_NRH=visual)).square().sum().backward()
    assert bool(visual.grad[:, 1:].abs().sum(-1).bool().all())
    assert not bool(visual.grad[:, 0].any()), "the whole picture lies nowhere"
    assert bool(text.grad.abs().sum(-1).bool().all())
