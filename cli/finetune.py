"""`advl finetune`."""

from __future__ import annotations

import dataclasses

import click

from advl_pipeline.training.config import FinetuneConfig

from .advice import what_follows
from .flags import SectionedCommand, config_options, json_option, print_json
from .own_data import say_what_it_is, split_to_score


@click.command("finetune", cls=SectionedCommand)
@config_options(FinetuneConfig)
@json_option
def finetune(config: FinetuneConfig, as_json: bool) -> None:
    """Finetune a student while streaming teacher caches.

    \b
    advl finetune --dataset vcr --method advl --shots 100 --seed 0 \\
        --student vilt --init hf:dandelin/vilt-b32-mlm --output runs/vcr-advl \\
        --cache caches/efficientnet-lite0/vcr/train \\
        --cache caches/minilm-l6/vcr/train
    """
    from advl_pipeline.training.given import require_effect, require_given

    say_what_it_is([config.dataset], config.data_root)
    require_given(config)
    require_effect(config)
    if config.forecast.dry_run:
        _say_forecast(config, as_json=as_json)
        return
    from advl_pipeline.training.run import run_finetune

    result = run_finetune(config)
    if not result.is_main:
        return
    if as_json:
        print_json({"output": str(result.output), **result.summary})
        return
    summary = result.summary
    click.echo(
        f"{summary['method']}: {summary['num_steps']} steps on {summary['num_labelled']} labelled examples in "
        f"{summary['seconds']:.1f} s ({1000 * summary['seconds_per_step']:.1f} ms a step, "
        f"{100 * summary['wait_share']:.1f} % waiting for data)"
    )
    if summary["num_texts_cut"]:
        click.echo(f"{summary['num_texts_cut']} of {summary['num_texts']} texts were cut to the student's length")
    if start := summary.get("student_start"):
        click.echo(start)
    for caveat in summary["caveats"]:
        click.echo(f"caution: {caveat}")
    click.echo(f"run folder: {result.output}")
    on = split_to_score(config.dataset, config.data_root, trained_on=config.split)
    click.echo("next: " + what_follows("advl", "evaluate", str(result.output), "--on", on))


def _say_forecast(config: FinetuneConfig, *, as_json: bool) -> None:
    from advl_pipeline.training.dry_run import forecast_epoch

    found = forecast_epoch(config)
    if as_json:
        told = {"epoch_seconds": found.epoch_seconds, "bottleneck": found.bottleneck, "seconds_by_part": found.parts}
        print_json({**dataclasses.asdict(found), **told})
        return
    for part, seconds in found.parts.items():
        click.echo(f"{part}: {1000 * seconds:.1f} ms a step")
    machine = f"{found.machine.cores} cores, {found.machine.workers} workers"
    click.echo(f"an epoch of {found.num_steps:,} steps takes about {found.epoch_seconds:,.0f} s ({machine})")
    click.echo(f"what limits it: {found.bottleneck}")
    if found.bottleneck in ("preparing batches", "the cores"):
        click.echo("a student over pixels need not decode: advl prepare; more cores help with --num-workers")
