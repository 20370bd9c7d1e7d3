"""`advl score`."""

from __future__ import annotations

import click

from advl_pipeline.evaluation.config import (
    ScoreShiftConfig,
    ScoreSnliVeConfig,
    ScoreVcrConfig,
    ScoreVqaConfig,
)

from .options import config_options, json_option, print_confusion, print_json


@click.group("score")
def command() -> None:
    """Score prediction files by the official rules, without any model.

    \b
    advl score vqa --questions Q.json --annotations A.json --results R.json
    advl score vcr --annotations val.jsonl --answers answers.npy --rationales rationales.npy
    advl score snli-ve --annotations snli_ve_test.jsonl --results predictions.csv
    """


@command.command("vqa")
@config_options(ScoreVqaConfig)
@json_option
def vqa(config: ScoreVqaConfig, as_json: bool) -> None:
    """Score VQA: overall, per answer type and per question type, as the official evaluator does.

    \b
    advl score vqa --questions v2_OpenEnded_mscoco_val2014_questions.json \\
        --annotations v2_mscoco_val2014_annotations.json --results results.json --mode 2021
    """
    from advl_pipeline.evaluation.scoring import run_score_vqa

    result = run_score_vqa(config)
    if as_json:
        print_json(
            {
                "mode": result.mode,
                "num_items": len(result.per_question),
                "overall": result.overall,
                "per_answer_type": dict(result.per_answer_type),
                "per_question_type": dict(result.per_question_type),
                "per_question": {str(key): round(100 * value, 2) for key, value in result.per_question.items()},
            }
        )
        return
    click.echo(f"VQA accuracy, mode {result.mode}, {len(result.per_question)} questions: {result.overall:.2f}")
    for name, value in (*result.per_answer_type.items(), *result.per_question_type.items()):
        click.echo(f"  {name:<32} {value:6.2f}")


@command.command("vcr")
@config_options(ScoreVcrConfig)
@json_option
def vcr(config: ScoreVcrConfig, as_json: bool) -> None:
    """Score VCR: Q->A, QA->R given the right answer, and Q->AR.

    \b
    advl score vcr --annotations val.jsonl --answers answers.npy --rationales rationales.npy
    """
    from advl_pipeline.evaluation.scoring import run_score_vcr

    result = run_score_vcr(config)
    values = {"q2a": result.q2a, "qa2r": result.qa2r, "q2ar": result.q2ar}
    if as_json:
        print_json({"num_items": result.num_items, **values})
        return
    click.echo(f"VCR accuracy, {result.num_items} questions")
    for name, value in values.items():
        click.echo(f"  {name:<5} {value:6.2f}")


@command.command("snli-ve")
@config_options(ScoreSnliVeConfig)
@json_option
def snli_ve(config: ScoreSnliVeConfig, as_json: bool) -> None:
    """Score SNLI-VE: accuracy and confusion matrix.

    \b
    advl score snli-ve --annotations snli_ve_test.jsonl --results predictions.csv
    """
    from advl_pipeline.evaluation.scoring import run_score_snli_ve

    result = run_score_snli_ve(config)
    if as_json:
        print_json(
            {
                "num_items": result.num_items,
                "accuracy": result.accuracy,
                "label_names": list(result.label_names),
                "confusion": result.counts,
            }
        )
        return
    click.echo(f"SNLI-VE accuracy, {result.num_items} pairs: {result.accuracy:.2f}")
    print_confusion(result.label_names, result.counts)


@command.command("shift")
@config_options(ScoreShiftConfig, arguments=("run",))
@json_option
def shift(config: ScoreShiftConfig, as_json: bool) -> None:
    """Compare a shifted set with its original: on the questions that both hold, or a part with the whole.

    \b
    advl score shift runs/vcr-advl --on rule-singular
    """
    from advl_pipeline.evaluation.shift import run_score_shift

    result = run_score_shift(config)
    if as_json:
        print_json(result)
        return
    click.echo(f"{result.original_set} -> {result.shifted_set}, this one run")
    for metric, drop in result.drops.items():
        low, high = drop.interval.low, drop.interval.high
        change = f"{drop.change.points:+.2f} points [{low:+.2f}, {high:+.2f}]"
        if drop.significance is not None:
            change += f", p {drop.significance.p_value:.3g}"
        told = "the same questions" if drop.questions == "same" else "a part of all questions"
        click.echo(f"  {metric:<8} {drop.num_items:>7} {drop.original:6.2f} -> {drop.shifted:6.2f}  {change}, {told}")
