"""What commands say about data of one's own: what was made of them, and which split is scored next."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click


def say_what_it_is(datasets: Iterable[str], data_root: Path | None) -> None:
    """Print the kind of task, the columns and the counts of each dataset that is data of one's own, on stderr."""
    from advl_pipeline.datasets.registry import benchmark_of, is_rows, open_own

    for name in dict.fromkeys(datasets):
        if benchmark_of(name) is None and is_rows(name):
            click.echo(open_own(name, data_root).line(), err=True)


def split_to_score(dataset: str, data_root: Path | None, *, trained_on: str) -> str:
    """Return the split that a finished run is scored on: of one's own data a labelled one that it did not see.

    Where there is no such split it is train.
    """
    from advl_pipeline.datasets.cards import scored_split
    from advl_pipeline.datasets.registry import benchmark_of, is_rows, open_own
    from advl_pipeline.datasets.roots import SPLIT_STEMS

    if benchmark_of(dataset) is not None or not is_rows(dataset):
        return scored_split(dataset)
    index = open_own(dataset, data_root).index
    seen = trained_on.split("+")
    labelled = [split for split in index.splits if index.is_labelled(split) and split not in seen]
    train, *held_out = SPLIT_STEMS
    others = [split for split in labelled if split not in SPLIT_STEMS]
    return next((split for split in (*reversed(held_out), *others, train) if split in labelled), seen[0])
