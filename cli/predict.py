"""`advl predict`."""

from __future__ import annotations

import click

from advl_pipeline.evaluation.config import PredictConfig

from .options import SectionedCommand, config_options, json_option, print_json


@click.command("predict", cls=SectionedCommand)
@config_options(PredictConfig, arguments=("run",))
@json_option
def command(config: PredictConfig, as_json: bool) -> None:
    """Write the predictions of a run in the form the leaderboards take, and check the file.

    VCR: CSV of 1 + 20 columns. VQA: EvalAI's JSON. SNLI-VE: CSV of pairID and label.

    \b
    advl predict runs/vcr-advl --on test
    advl predict runs/vqa-advl --on test --output vqa_test2015.json
    """
    from advl_pipeline.evaluation.given import require_effect, require_given

    require_given(config.run, (config.on,), config.data_root)
    require_effect(config)
    from advl_pipeline.evaluation.predict_files import run_predict

    result = run_predict(config)
    if as_json:
        print_json(result)
    else:
        click.echo(f"{result.num_items} questions of {result.dataset} {result.split}, checked: {result.path}")
        if result.num_cut:
            click.echo(f"caution: {result.num_cut} texts of {result.split} are cut to the student's length")
