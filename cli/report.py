"""`advl report`."""

from __future__ import annotations

import click

from advl_pipeline.reporting.config import ReportConfig

from .options import config_options, json_option, print_json


@click.command("report")
@config_options(ReportConfig, arguments=("run",))
@json_option
def command(config: ReportConfig, as_json: bool) -> None:
    """Turn a study, or runs, into one self-contained HTML page or a table.

    RUN is the folder of an evaluated run, or a folder that holds several; more may follow, which are compared.
    A study folder stands there by itself. The page needs no network and reads well on a phone, in print, light
    and dark.

    \b
    advl report runs/studies/demo
    advl report runs/vcr-advl
    advl report runs/studies/demo --to csv --output demo.csv
    """
    from advl_pipeline.reporting.report import run_report

    result = run_report(config)
    if as_json:
        print_json({"output": str(result.output), "answers": result.answers, "verdicts": result.verdicts})
        return
    for answer in result.answers:
        click.echo(str(answer))
    for verdict in result.verdicts:
        click.echo(f"{verdict.claim}  {verdict.outcome:<23} {verdict.statement} {verdict.reason}")
    click.echo(f"report: {result.output}")
