"""A student of somebody's own loop: a few layers over words, without an adapter, and one step of its training."""

from __future__ import annotations

import copy
import gc
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.rnn import pad_sequence

from advl_pipeline import HiddenStates, LayerStates, RelationalDistillation
from advl_pipeline.datasets.words import word_spans

LAYER = "layers.1"


class TinyReader(nn.Module):
    """Words by their hash, and two layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(512, 24)
        self.layers = nn.Sequential(nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 24))
        self.head = nn.Linear(24, 1)

    def forward(self, ids_NL: torch.Tensor) -> torch.Tensor:
        # The sum over tokens, so that padding does not count.
        states_NLH = self.layers(self.words(ids_NL)) * (ids_NL > 0)[..., None]
        scores: torch.Tensor = self.head(states_NLH.sum(1))
        return scores


def tokenised(texts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return what a tokenizer returns: ids and the characters of each token."""
    words = [
        [(1 + zlib.crc32(text[slice(*span)].encode()) % 511, *span) for span in word_spans(text)] for text in texts
    ]
    padded_NL3 = pad_sequence([torch.tensor(row) for row in words], batch_first=True)
    return {"ids": padded_NL3[..., 0], "offsets": padded_NL3[..., 1:]}


def known_half(texts: Sequence[str]) -> dict[str, int]:
    """Return half of the words, as pretraining would have counted them."""
    words = {text[slice(*span)].lower() for text in texts for span in word_spans(text)}
    return dict.fromkeys(sorted(words)[::2], 20)


class Loop:
    """A reader with a copy of its start, and the distillation of one cache."""

    def __init__(self, cache: Path, texts: Sequence[str], *, knows: bool = True) -> None:
        self.reference = TinyReader()
        self.model = copy.deepcopy(self.reference)
        self.layer, self.layer_at_start = LayerStates(self.model, LAYER), LayerStates(self.reference, LAYER)
        known = known_half(texts) if knows else None

        def start() -> Iterator[HiddenStates]:
            return (self.at_start(texts[first : first + 8]) for first in range(0, len(texts), 8))

        self.distil = RelationalDistillation([cache], texts, start, known_words=known)
        # A step further, so that the anchor has something to hold.
        with torch.no_grad():
            for value in self.model.parameters():
                value.mul_(1.05)

    def at_start(self, texts: Sequence[str]) -> HiddenStates:
        tokens = tokenised(texts)
        self.reference(tokens["ids"])
        return HiddenStates(texts=texts, states_NLH=self.layer_at_start.states, offsets_NL2=tokens["offsets"])

    def loss(self, texts: Sequence[str], model: nn.Module | None = None) -> torch.Tensor:
        """Return the loss of a batch beside a task's loss; `model` wraps that of the loop."""
        tokens = tokenised(texts)
        scores_N1 = (self.model if model is None else model)(tokens["ids"])
        states = HiddenStates(texts=texts, states_NLH=self.layer.states, offsets_NL2=tokens["offsets"])
        return scores_N1.square().mean() + self.distil(states, self.at_start(texts)).total

    def gradients(self) -> dict[str, torch.Tensor]:
        return {name: value.grad.clone() for name, value in self.model.named_parameters() if value.grad is not None}


def train_in_step(cache: Path, texts: Sequence[str], folder: Path) -> None:
    """Take the gradients of a batch of which each process has its share, with landmarks and without them."""
    distributed.init_process_group("gloo")
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    share = [*texts[:16]][rank * 16 // size : (rank + 1) * 16 // size]
    for knows in (True, False):
        loop = Loop(cache, texts, knows=knows)
        # The wrapper sums gradients for as long as it exists.
        wrapped = DistributedDataParallel(loop.model)
        loop.loss(share, wrapped).backward()
        if rank == 0:
            torch.save(loop.gradients(), folder / f"{knows}.pt")
    # A wrapper that held the group last would wait, with Python's lock, for threads that may need this lock.
    del loop, wrapped
    gc.collect()
    distributed.destroy_process_group()
