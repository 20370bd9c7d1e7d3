"""A cache in a training loop of one's own: python examples/own_loop.py CACHE DATA_ROOT

The cache is one of texts, such as minilm-l6 over scenes-vcr. An encoder of a few lines learns to place texts as the
teacher does: it is given the text alone, and the teacher's vector of it is looked up by the text's id.
"""

import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from advl_pipeline.cache.reader import open_cache
from advl_pipeline.datasets.registry import open_dataset

NUM_BUCKETS = 4096


def trigrams(text: str) -> torch.Tensor:
    """Return the buckets of a text's letters by threes."""
    codes = text.lower().encode()
    return torch.tensor([sum(codes[at + k] * 31**k for k in range(3)) % NUM_BUCKETS for at in range(len(codes) - 2)])


def main(path: Path, data_root: Path, *, num_epochs: int = 5) -> list[float]:
    """Return the mean loss of each epoch: 1 - cosine between encoder and teacher."""
    cache = open_cache(path)
    assert cache.text is not None, "the cache holds no texts"
    made_from = cache.identity["dataset"]
    dataset = open_dataset(made_from["name"], split=made_from["split"], data_root=data_root)
    text_of = {unit.unit_id: unit.text for unit in dataset.text_units()}
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.EmbeddingBag(NUM_BUCKETS, 256), nn.Linear(256, cache.text.global_dim))
    optimiser = torch.optim.AdamW(encoder.parameters(), lr=3e-3)
    losses = []
    for epoch in range(num_epochs):
        found = []
        # Every unit once per epoch, in an order of (seed, epoch) alone; a thread reads ahead.
        for batch in cache.text.batches(32, seed=0, epoch=epoch):
            pieces = [trigrams(text_of[unit_id]) for unit_id in batch.ids]
            starts = torch.tensor([0, *map(len, pieces[:-1])]).cumsum(0)
            ours = encoder[1](encoder[0](torch.cat(pieces), starts))
            loss = (1 - functional.cosine_similarity(ours, batch.global_BD.float())).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            found.append(loss.item())
        losses.append(sum(found) / len(found))
        print(f"epoch {epoch}: 1 - cosine {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
