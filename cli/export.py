"""`advl export`."""

from __future__ import annotations

import click

from advl_pipeline.sharing.config import ExportRunConfig

from .options import config_options, json_option, print_json


@click.command("export")
@config_options(ExportRunConfig, arguments=("run",))
@json_option
def command(config: ExportRunConfig, as_json: bool) -> None:
    """Write a run's student as a folder that loads without ADVL, with its model card.

    With transformers the folder is for its from_pretrained: vilt, bridgetower, modernvbert, smolvlm, visualbert,
    lxmert. Any other student becomes a program for torch alone.

    \b
    advl export runs/advl-100-0 --to torch --output shared/advl-100-0
    advl export runs/vilt --output shared/vilt --push-to-hub ORG/NAME
    """
    from advl_pipeline.evaluation.given import require_finished

    require_finished(config.run)
    from advl_pipeline.sharing.export import run_export

    result = run_export(config)
    if as_json:
        print_json(result)
        return
    click.echo(f"{result.model}: {len(result.files)} files in {result.output}")
    if result.url:
        click.echo(f"uploaded: {result.url}")
