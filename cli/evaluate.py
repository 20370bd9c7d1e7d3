"""`advl evaluate`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from advl_pipeline.evaluation.config import EvaluateConfig

from .options import SectionedCommand, config_options, json_option, print_confusion, print_json

MAX_CLASSES_SHOWN = 10
"""Classes of a confusion matrix that is printed; larger ones are in evaluation/SET.json."""


@click.command("evaluate", cls=SectionedCommand)
@config_options(EvaluateConfig, arguments=("run",))
@json_option
def command(config: EvaluateConfig, as_json: bool) -> None:
    """Score a finetuned run on test and shifted sets, with and without its pictures.

    \b
    advl evaluate runs/advl-100-0 --on test --on test-shift --on test-unseen
    """
    from advl_pipeline.evaluation.given import require_effect, require_given

    require_given(config.run, config.on, config.data_root)
    require_effect(config)
    from advl_pipeline.evaluation.runner import run_evaluate

    result = run_evaluate(config)
    if as_json:
        print_json({"run": str(result.run), "sets": result.sets})
        return
    click.echo(
        f"{'set':<24} {'metric':<8} {'items':>6} {'accuracy %':>11} {'majority':>9} {'chance':>7}  "
        "points more or less when the picture is"
    )
    for name, document in result.sets.items():
        for metric, value in document["metrics"].items():
            use = document.get("use_of_vision", {}).get(metric, {})
            change = "  ".join(f"{kind} {0.0 - found['drop']:+.2f}" for kind, found in use.items())
            spread = document["intervals"][metric]
            change = f"[{spread['low']:.2f}, {spread['high']:.2f}]  {change}" if document["sample"] else change
            trivial = document["trivial"].get(metric)
            beside = f"{trivial['majority']:>9.2f} {trivial['chance']:>7.2f}" if trivial else f"{'-':>9} {'-':>7}"
            row = f"{name:<24} {metric:<8} {document['num_items'][metric]:>6} {value:>11.2f} {beside}  {change}"
            click.echo(row.rstrip())
        for metric, trivial in document["trivial"].items():
            click.echo(f"  {metric}: {_in_words(trivial)}")
        if "vqa_mode" in document:
            types = ", ".join(f"{kind} {found['accuracy']:.2f}" for kind, found in document["by_answer_type"].items())
            click.echo(f"  evaluator {document['vqa_mode']}; {types}")
        if len(document.get("confusion", {}).get("label_names", ())) in range(1, MAX_CLASSES_SHOWN + 1):
            print_confusion(**document["confusion"])
    for caveat in dict.fromkeys(caveat for document in result.sets.values() for caveat in document["caveats"]):
        click.echo(f"caution: {caveat}")


def _in_words(trivial: Mapping[str, Any]) -> str:
    """Say what the majority answer is, and how often the student gives its own commonest answer."""
    majority = f"the majority answer is {trivial['answer']!r}"
    if "given" not in trivial:
        return majority
    return f"{majority}; the student answers {trivial['given_answer']!r} {trivial['given']:.0f} times of 100"
