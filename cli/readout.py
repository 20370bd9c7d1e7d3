"""`advl readout`."""

from __future__ import annotations

import click

from advl_pipeline.evaluation.config import ReadoutConfig

from .options import SectionedCommand, config_options, json_option, print_json


@click.command("readout", cls=SectionedCommand)
@config_options(ReadoutConfig, arguments=("student",))
@json_option
def command(config: ReadoutConfig, as_json: bool) -> None:
    """Tell, without labels and in seconds, whether a student places words and regions as its teachers do.

    Of four words that pretraining taught, the teacher likens one most to a word that it did not teach: the line says
    how often the student does the same. Chance is 25 percent.

    \b
    advl readout runs/vcr-advl --cache caches/minilm-l6/vcr/train
    advl readout runs/vcr-advl --cache caches/minilm-l6/vcr/train --answer-on val
    """
    from advl_pipeline.evaluation.given import require_readable

    require_readable(config)
    from advl_pipeline.evaluation.readout import run_readout

    result = run_readout(config)
    if as_json:
        print_json(result)
        return
    for teacher, found in result.placement.items():
        for nodes, numbers in found.items():
            if numbers is not None:
                share, chance = 100 * numbers["share"], 100 * numbers["chance"]
                click.echo(f"{teacher}  {nodes}: {share:.1f} % of {numbers['num_asked']} (chance {chance:.0f} %)")
    for stratum, answers in result.answers.items():
        name = stratum or "all questions"
        click.echo(f"answers by likeness  {name}: {answers['percent']:.1f} % of {answers['num_questions']:.0f}")
