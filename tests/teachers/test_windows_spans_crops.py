"""The pure parts: windows over long texts, characters of pieces, rectangles of boxes, digests."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from advl_pipeline.base.tensors import parameter_digest
from advl_pipeline.teachers.image_tower import crop_rectangle
from advl_pipeline.teachers.text_tower import plan_windows
from advl_pipeline.teachers.word_pieces import align_pieces

edges = st.floats(-50, 250, width=32)


@given(st.integers(0, 400), st.integers(1, 64), st.data())
def test_windows_own_every_token_once_and_overlap(num_tokens: int, capacity: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, capacity - 1))
    windows = plan_windows(num_tokens, capacity=capacity, overlap=overlap)
    assert [token for _, _, first, after in windows for token in range(first, after)] == list(range(num_tokens))
    for start, stop, first, after in windows:
        assert start <= first <= after <= stop <= num_tokens
        assert stop - start <= capacity
    for (_, stop, _, after), (start, _, first, _) in itertools.pairwise(windows):
        assert stop - start >= overlap
        # Every owned token has at least half of the overlap as context on the side where its window ends.
        assert stop - after >= overlap // 2
        assert first - start >= overlap // 2


@given(st.tuples(edges, edges, edges, edges), st.integers(1, 200), st.integers(1, 200))
def test_rectangles_lie_inside_the_picture_and_hold_the_box(
    box: tuple[float, float, float, float], width: int, height: int
) -> None:
    left, top, right, bottom = crop_rectangle(np.array(box, np.float32), width, height)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    x1, x2 = sorted((box[0], box[2]))
    if x2 > 0 and x1 < width:
        assert left <= max(x1, 0) + 1e-3
        assert right >= min(x2, width) - 1e-3


@pytest.mark.parametrize(
    ("text", "pieces", "expected"),
    [
        ("A naïve dog", ["a", "nai", "##ve", "dog"], ["A", "naï", "ve", "dog"]),
        ("wine  glass.", ["▁wine", "▁gl", "ass", "."], ["wine", "gl", "ass", "."]),
        ("Hello world", ["hello</w>", "world</w>"], ["Hello", "world"]),
        ("a xyz b", ["a", "[UNK]", "b"], ["a", "xyz", "b"]),
        ("[weird] start", ["[UNK]", "start"], ["[weird]", "start"]),
        ("ends in \u4f60", ["ends", "in", "[UNK]"], ["ends", "in", "\u4f60"]),
        ("straße", ["stras", "##se"], ["straß", "ße"]),
        ("a \u4f60 b", ["▁a", "▁", "<unk>", "▁b"], ["a", "", "\u4f60", "b"]),
        ("日é a", list("日é a".encode().decode("latin-1")), ["日", "日", "日", "é", "é", "", "a"]),
        ("", [], []),
    ],
)
def test_pieces_without_offsets_are_aligned(text: str, pieces: list[str], expected: list[str]) -> None:
    spans_M2 = align_pieces(text, pieces)
    assert [text[start:end] for start, end in spans_M2.tolist()] == expected


@given(st.text(alphabet="abcdeéßß ,.\u4f60", max_size=40), st.data())
def test_alignment_recovers_any_cutting_into_pieces(text: str, data: st.DataObject) -> None:
    """Cut the visible characters anywhere, hide some pieces as unknown: spans stay in order and inside the text."""
    pieces: list[str] = []
    for word in text.split():
        cuts = sorted(data.draw(st.sets(st.integers(0, len(word)), max_size=3)) | {0, len(word)})
        parts = [word[start:stop] for start, stop in itertools.pairwise(cuts)]
        pieces += [parts[0], *("##" + part for part in parts[1:])]
    whole = align_pieces(text, pieces)
    assert [text[start:end] for start, end in whole.tolist()] == [piece.removeprefix("##") for piece in pieces]
    hidden = [piece if data.draw(st.booleans()) else "[UNK]" for piece in pieces]
    spans = align_pieces(text, hidden).tolist()
    assert all(0 <= start <= end <= len(text) for start, end in spans)
    assert all(earlier[0] <= later[0] for earlier, later in itertools.pairwise(spans))


def test_the_digest_follows_names_shapes_types_and_bytes() -> None:
    state = {"a": torch.arange(6.0), "b": torch.ones(2, dtype=torch.int64)}
    digests = [
        parameter_digest(changed)
        for changed in (
            state,
            {**state, "a": torch.arange(6.0).reshape(2, 3)},
            {**state, "a": torch.arange(6.0).to(torch.float64)},
            {"c": state["a"], "b": state["b"]},
            {**state, "b": torch.zeros(2, dtype=torch.int64)},
            {**state, "z": torch.zeros(0)},
        )
    ]
    assert len(set(digests)) == len(digests)
    assert parameter_digest(dict(reversed(state.items()))) == digests[0]
    transposed = torch.arange(6.0).reshape(3, 2).T
    assert parameter_digest({"a": transposed}) == parameter_digest({"a": transposed.contiguous()})
