"""`advl pretrain`."""

from __future__ import annotations

import click

from advl_pipeline.training.config import PretrainConfig

from .options import SectionedCommand, config_options, json_option, print_json


@click.command("pretrain", cls=SectionedCommand)
@config_options(PretrainConfig)
@json_option
def command(config: PretrainConfig, as_json: bool) -> None:
    """Give a small student its image-text pretraining, once; the stored student is reused.

    With the student are stored its head that names regions, from which multiple choice starts, and the words that the
    captions hold.

    \b
    advl pretrain --dataset scenes-captions --output students/scenes-small
    advl pretrain --student scenes-uniter
    """
    from advl_pipeline.training.pretrain import run_pretrain

    result = run_pretrain(config)
    if as_json:
        print_json(
            {
                "output": str(result.output),
                "reused": result.reused,
                "losses": result.losses,
                "seconds": result.seconds,
            }
        )
    elif result.reused:
        click.echo(f"{result.output} holds a student pretrained the same way; nothing to do")
    else:
        losses = ", ".join(f"{name} {value:.3f}" for name, value in result.losses.items())
        click.echo(f"pretrained in {result.seconds:.0f} s (last losses: {losses}) -> {result.output}")
