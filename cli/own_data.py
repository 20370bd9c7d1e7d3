"""One line that tells what was made of data of one's own, before anything is done with them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click


def say_what_it_is(datasets: Iterable[str], data_root: Path | None) -> None:
    """Print the kind of task, the columns and the counts of each dataset that is data of one's own, on stderr."""
    from advl_pipeline.datasets.own.opening import is_rows, open_own
    from advl_pipeline.datasets.registry import TASKS

    for name in dict.fromkeys(datasets):
        if name not in TASKS and is_rows(name):
            click.echo(open_own(name, data_root).line(), err=True)
