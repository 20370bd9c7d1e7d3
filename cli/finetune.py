"""`advl finetune`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from advl_pipeline.base.configuration import to_plain
from advl_pipeline.training.config import FinetuneConfig

from .advice import what_follows
from .flags import config_command, read_and_print


@config_command(FinetuneConfig, "finetune")
def finetune(config: FinetuneConfig) -> Iterator[Any]:
    """Finetune a student while streaming teacher caches.

    \b
    advl finetune --dataset vcr --method advl --shots 100 --seed 0 \\
        --student vilt --init hf:dandelin/vilt-b32-mlm --output runs/vcr-advl \\
        --cache caches/efficientnet-lite0/vcr/train \\
        --cache caches/minilm-l6/vcr/train
    """
    from advl_pipeline.datasets.registry import split_to_score
    from advl_pipeline.training.prepare import prepare_finetune

    dataset = read_and_print(config.dataset, config.data_root)
    prepared = prepare_finetune(config, dataset)
    from advl_pipeline.training.run import run_finetune

    result = run_finetune(prepared)
    if not result.is_main:
        return
    yield {"output": str(result.output), **to_plain(result.summary)}
    summary = result.summary
    click.echo(
        f"{summary.method}: {summary.num_steps} steps on {summary.num_labelled} labelled examples in "
        f"{summary.seconds:.1f} s ({1000 * summary.seconds_per_step:.1f} ms a step, "
        f"{100 * summary.wait_share:.1f} % waiting for data)"
    )
    if summary.num_texts_cut:
        click.echo(f"{summary.num_texts_cut} of {summary.num_texts} texts were cut to the student's length")
    click.echo(f"run folder: {result.output}")
    on = split_to_score(dataset, trained_on=config.split)
    click.echo("next: " + what_follows("advl", "evaluate", str(result.output), "--on", on))
