"""Batches by number of tokens: sequences of like length together, so that little of a batch is padding.

A pure function with UNITER's behaviour (ChenRocks/UNITER 1dbfa62, `data/sampler.py`): shuffle, cut into buckets, sort
each bucket by length, fill batches up to a number of padded tokens, shuffle the batches.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from advl_pipeline.errors import ConfigError


def token_batches(
    lengths: Sequence[int],
    *,
    max_tokens: int,
    bucket_size: int,
    seed: int,
    multiple: int = 8,
    drop_last: bool = False,
) -> list[list[int]]:
    """Return batches of positions in `lengths`.

    Args:
        lengths: tokens (text and regions) of each item.
        max_tokens: bound on the longest length times the number of items of a batch.
        bucket_size: items that are sorted together; larger means less padding and less mixing.
        seed: chooses both shuffles.
        multiple: items are added in groups of this many, which suits half-precision hardware.
        drop_last: leave out what remains of each bucket once its last full batch is made.

    Raises:
        ConfigError: one group alone is over the bound.
    """
    generator = random.Random(seed)
    order = list(range(len(lengths)))
    generator.shuffle(order)
    batches: list[list[int]] = []
    for start in range(0, len(order), bucket_size):
        bucket = sorted(order[start : start + bucket_size], key=lambda item: lengths[item], reverse=True)
        batches += _fill(bucket, lengths, max_tokens, multiple, drop_last=drop_last)
    generator.shuffle(batches)
    return batches


def padding_share(batches: Sequence[Sequence[int]], lengths: Sequence[int]) -> float:
    """Return the share of all positions that is padding when each batch is as wide as its longest item."""
    padded = sum(len(batch) * max(lengths[item] for item in batch) for batch in batches)
    return 1.0 - sum(lengths[item] for batch in batches for item in batch) / padded


def _fill(
    bucket: Sequence[int], lengths: Sequence[int], max_tokens: int, multiple: int, *, drop_last: bool
) -> list[list[int]]:
    batches: list[list[int]] = []
    batch: list[int] = []
    longest = 0
    for start in range(0, len(bucket), multiple):
        group = list(bucket[start : start + multiple])
        # The longest item so far stays the bound of the whole bucket, as in the original: items come longest first.
        longest = max(longest, *(lengths[item] for item in group))
        if longest * (len(batch) + multiple) > max_tokens:
            if not batch:
                raise ConfigError(
                    "A group of sequences is longer than a batch may be.",
                    why=f"{multiple} sequences of {longest} tokens, at most {max_tokens} tokens",
                    next_command="raise the tokens per batch, or lower the multiple",
                )
            batches.append(batch)
            batch = group
        else:
            batch = batch + group
    if batch and not drop_last:
        batches.append(batch)
    return batches
