"""`advl study`: run a grid; `advl report`: show a study or runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

from advl_pipeline.base.configuration import to_plain
from advl_pipeline.base.errors import ConfigError
from advl_pipeline.reporting.report import ReportConfig
from advl_pipeline.studies.config import StudyRunConfig, asked_study, load_study, shipped_studies, student_choice

from .advice import what_follows
from .flags import config_command, read_and_print


def _list_studies(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    for name in shipped_studies():
        try:
            question = load_study(name).question
        except ConfigError as error:
            question = error.what
        click.echo(f"{name:<24} {question}")
    ctx.exit()


@config_command(StudyRunConfig, "study", arguments=("study",))
@click.option("--dry-run", is_flag=True, help="Only print the grid, its time and its disk space.")
@click.option(
    "--list",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_list_studies,
    help="List the shipped studies.",
)
def study(config: StudyRunConfig, dry_run: bool) -> Iterator[Any]:
    """Run a grid of methods, shots, seeds and test sets from one TOML file.

    STUDY is a file or the name of a shipped study. Each run is stored once in runs/cells: a run that any study has
    finished never runs again. Several processes with the same study folder share the grid.

    \b
    advl study demo --dry-run
    advl study demo
    advl study mine.toml --output runs/studies/mine
    """
    asked = asked_study(config)
    for dataset in dict.fromkeys(setting.dataset for setting in asked.settings):
        read_and_print(dataset, config.data_root)
    if choice := student_choice(asked, config.regions):
        click.echo(choice, err=True)
    if dry_run:
        from advl_pipeline.reporting.tables import forecast_as_text
        from advl_pipeline.studies.forecast import forecast_study

        forecast = forecast_study(config)
        yield forecast
        click.echo(forecast_as_text(forecast))
        return
    from advl_pipeline.reporting.tables import as_json, as_text
    from advl_pipeline.studies.run import run_study

    result = run_study(config)
    yield json.loads(as_json(result))
    click.echo(as_text(result))
    report = what_follows("advl", "report", str(result.folder))
    click.echo(f"\nstudy folder: {result.folder}\nnext: {report}")


@config_command(ReportConfig, "report", arguments=("run",))
def report(config: ReportConfig) -> Iterator[Any]:
    """Write a study, or runs, as one self-contained HTML page or a table.

    RUN is a study folder, or one or more folders of evaluated runs, which become one table with a row for each. The
    page needs no network and works on a phone, in print, light and dark.

    \b
    advl report runs/studies/demo
    advl report runs/vcr-advl
    advl report runs/studies/demo --to csv --output demo.csv
    """
    from advl_pipeline.reporting.report import run_report

    output, result = run_report(config)
    from advl_pipeline.reporting.answer import answers, nothing_yet
    from advl_pipeline.studies.claims import judge_claims

    first, verdicts = answers(result), judge_claims(result)
    yield to_plain({"output": output, "answers": first, "verdicts": verdicts})
    for answer in first or [nothing_yet(result)]:
        click.echo(str(answer))
    for verdict in verdicts:
        click.echo(f"{verdict.claim}  {verdict.outcome:<23} {verdict.statement} {verdict.reason}")
    click.echo(f"report: {output}")
