"""Conversations are packed into rows as a plain loop over their tokens packs them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from advl_pipeline.students.chat_batch import COMMON, PADDING, Packer, Packing, _blocks


@dataclass(frozen=True)
class LaidToken:
    """A token of a row: its owner, its sequence and its place there."""

    owner: int
    sequence: int
    place: int


def rows_by_hand(packer: Packer) -> list[list[LaidToken]]:
    """Return the tokens of each row, found token by token."""
    rows = []
    first = 0
    for count in [1] * len(packer.length_N) if packer.apart else packer.num_candidates:
        sequences = range(first, first + count)
        common = 0
        while all(
            common < packer.length_N[sequence]
            and packer.block_NS[sequence, common] == packer.block_NS[first, common]
            and all(meant_NS[sequence, common] == meant_NS[first, common] for meant_NS in packer.meant)
            for sequence in sequences
        ):
            common += 1
        block_S = packer.block_NS[first].tolist()
        last = block_S[common - 1] if 0 < common < len(block_S) else -1
        # A block that goes on in one of the sequences is not shared at all.
        if last >= 0 and any(packer.block_NS[sequence, common] == last for sequence in sequences):
            common = block_S.index(last)
        row = [LaidToken(COMMON, first, place) for place in range(common)]
        for owner, sequence in enumerate(sequences):
            row += [LaidToken(owner, sequence, place) for place in range(common, packer.length_N[sequence])]
        rows.append(row)
        first += count
    return rows


def drawn(seed: int, both_ways: str, *, apart: bool) -> Packer:
    """Return a packer of a few sequences of few words, some of which are of the picture."""
    generator = np.random.default_rng(seed)
    num_candidates = generator.integers(1, 4, generator.integers(1, 4)).tolist()
    shape = sum(num_candidates), int(generator.integers(2, 9))
    length_N = generator.integers(1, shape[1] + 1, shape[0])
    length_N[generator.integers(shape[0])] = shape[1]
    ids_NS = generator.integers(0, 2, shape)
    shows_NS = (ids_NS == 1) & (np.arange(shape[1]) < length_N[:, None])
    prompts_N = np.minimum(generator.integers(0, shape[1] + 1, shape[0]), length_N)
    return Packer(
        num_candidates=num_candidates,
        length_N=length_N,
        shows_NS=shows_NS,
        meant=(ids_NS, np.where(generator.random(shape) < 0.1, 1, -1)),
        block_NS=_blocks(shows_NS, prompts_N, both_ways),
        apart=apart,
    )


def feature_of(packer: Packer, token: LaidToken) -> int:
    """Return the feature of a token of the picture: its number in its sequence, after those of earlier pictures."""
    firsts = np.cumsum([0, *packer.num_candidates])
    example = int(np.searchsorted(firsts, token.sequence, side="right")) - 1
    before = sum(int(packer.shows_NS[first].sum()) for first in firsts[:example])
    return before + int(packer.shows_NS[token.sequence, : token.place].sum())


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("both_ways", ["nothing", "picture", "question"])
def test_rows_hold_the_common_prefix_once_and_then_the_rest_of_each_sequence(both_ways: str, apart: bool) -> None:
    for seed in range(100):
        packer = drawn(seed, both_ways, apart=apart)
        packing = packer.packing()
        num_places = packer.shows_NS.shape[1]
        rows = rows_by_hand(packer)
        assert packing.token_BW.shape[1] == max(map(len, rows))
        for number, row in enumerate(rows):
            padding = packing.token_BW.shape[1] - len(row)
            tokens = [token.sequence * num_places + token.place for token in row]
            assert packing.token_BW[number].tolist() == tokens + [0] * padding
            assert packer.owners()[number].tolist() == [token.owner for token in row] + [PADDING] * padding
            blocks = [int(packer.block_NS[token.sequence, token.place]) for token in row]
            assert packer.blocks()[number].tolist() == blocks + [-1] * padding
        assert_finds_every_token(packer, packing)
        # Rows show the features of their pictures in order.
        shown = [
            [number, place, feature_of(packer, token)]
            for number, row in enumerate(rows)
            for place, token in enumerate(row)
            if packer.shows_NS[token.sequence, token.place]
        ]
        assert torch.stack([packing.row_M, packing.place_M, packing.feature_M], 1).tolist() == shown


def assert_finds_every_token(packer: Packer, packing: Packing) -> None:
    """A sequence finds its own tokens, or equal ones of the common prefix, in its row."""
    ids_BW = packing.packed(torch.from_numpy(packer.meant[0]))
    for sequence, length in enumerate(packer.length_N.tolist()):
        places = packing.place_NS[sequence, :length]
        assert ids_BW[packing.row_N[sequence], places].tolist() == packer.meant[0][sequence, :length].tolist()
        assert places.tolist() == sorted(set(places.tolist()))
