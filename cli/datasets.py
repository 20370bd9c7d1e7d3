"""`advl datasets`: list datasets, show their cards, check and build them, and draw subsets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from advl_pipeline.base.packages import data_files
from advl_pipeline.datasets.config import CheckConfig, SubsetConfig

from .flags import config_command, exit_with, json_option, print_json, read_and_print
from .main import PluginGroup

MAX_SHOWN = 20
"""Maximum problems shown per split; all are counted, and `--json` lists them."""


@click.group("datasets", cls=PluginGroup)
def datasets() -> None:
    """List datasets, show their cards, check downloads, draw low-shot subsets.

    \b
    advl datasets list
    advl datasets card vcr
    advl datasets check vcr
    """


@datasets.command("list")
@click.option("--data-root", type=click.Path(path_type=Path), help="Folder of the datasets [default: $ADVL_DATA].")
@json_option
def print_datasets(data_root: Path | None) -> Iterator[Any]:
    """List datasets with their tasks and splits, and whether they are on this machine.

    \b
    advl datasets list
    """
    from advl_pipeline.datasets.check import list_datasets

    rows = list_datasets(data_root)
    yield rows
    for row in rows:
        state = "there" if row.present else "absent"
        click.echo(f"{row.name:<16} {state:<7} {', '.join(row.tasks):<20} {', '.join(row.splits)}")


@datasets.command("card")
@click.argument("name")
@json_option
def card(name: str) -> Iterator[Any]:
    """Show a dataset's card: what to download, where to put it, and how it is scored.

    \b
    advl datasets card vcr
    """
    from advl_pipeline.datasets.check import dataset_card

    shown = dataset_card(name)
    yield {"name": shown.name, **shown.facts}
    if file := data_files("cards").get(shown.name):
        click.echo(file.read_text(encoding="utf-8"), nl=False)
    else:
        print_json(shown.facts)  # A plug-in's card written in Python.


@config_command(CheckConfig, "check", group=datasets, arguments=("name",))
def check(config: CheckConfig) -> Iterator[Any]:
    """Check a dataset against its card, and report what is missing or damaged.

    \b
    advl datasets check vcr
    advl datasets check vcr --split val --deep
    advl datasets check mine.jsonl
    """
    from advl_pipeline.datasets.check import run_check
    from advl_pipeline.datasets.roots import DatasetMissing

    dataset = None
    with suppress(DatasetMissing):
        dataset = read_and_print(config.name, config.data_root)
    result = run_check(config, dataset, progress=True)
    exit_with(0 if result.usable else 5)
    yield result
    click.echo(f"{result.name} below {result.data_root}")
    for split in result.splits:
        if split.status == "missing":
            click.echo(f"  {split.split:<20} missing    {split.problems[0].file}")
            continue
        num_problems = len(split.problems)
        counts = f"{split.num_items:,} items, {split.num_pictures:,} pictures, {num_problems:,} problems"
        click.echo(f"  {split.split:<20} {split.status:<10} {counts}")
        for note in split.notes:
            click.echo(f"    {note}")
        for problem in split.problems[:MAX_SHOWN]:
            click.echo(f"    {problem.where}: {problem.why}")
        if num_problems > MAX_SHOWN:
            click.echo(f"    ... {num_problems - MAX_SHOWN:,} more (--json lists all)")
    missing = [split for split in result.splits if split.status == "missing"]
    for note in dict.fromkeys(note for split in missing for note in split.notes):
        click.echo(f"  {note}")
    for command in dict.fromkeys(filter(None, (split.next_command for split in result.splits))):
        click.echo(f"  next: {command}")


@config_command(SubsetConfig, "subset", group=datasets, arguments=("name",))
def subset(config: SubsetConfig) -> Iterator[Any]:
    """Draw a balanced low-shot subset, nested by size, and write its ids.

    \b
    advl datasets subset vcr --shots 100 --seed 0 --output vcr-100-seed0.json
    """
    from advl_pipeline.datasets.check import run_subset

    result = run_subset(config, read_and_print(config.name, config.data_root))
    yield result
    click.echo(f"{config.shots} questions, {len(result.example_ids)} examples of {config.name} {config.split}")
    click.echo(f"written to {config.output}")
