"""`advl evaluate`, `predict`, `readout` and `score`: evaluate runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from advl_pipeline.evaluation.config import (
    EvaluateConfig,
    PredictConfig,
    ScoreShiftConfig,
)
from advl_pipeline.readout.config import ReadoutConfig

from .advice import what_follows
from .flags import config_command
from .main import PluginGroup


@config_command(EvaluateConfig, "evaluate", arguments=("run",))
def evaluate(config: EvaluateConfig) -> Iterator[Any]:
    """Score a finetuned run on test and shifted sets, with and without its pictures.

    \b
    advl evaluate runs/advl-100-0 --on test --on test-shift --on test-unseen
    """
    from advl_pipeline.evaluation.prepare import prepare_scoring

    prepared = prepare_scoring(config)
    from advl_pipeline.evaluation.runner import run_evaluate
    from advl_pipeline.runs.evaluations import without_the_unmeasured

    result = run_evaluate(prepared)
    yield {"run": str(result.run), "sets": without_the_unmeasured(result.sets)}
    click.echo(
        "each answer is written by the student, its options listed behind letters"
        if config.protocol == "letters"
        else "each answer is the likeliest candidate, its options not shown"
    )
    click.echo(
        f"{'set':<24} {'metric':<8} {'items':>6} {'accuracy %':>11} {'prior':>7} {'majority':>9} {'chance':>7}  "
        "delta with the picture"
    )
    for name, document in result.sets.items():
        for metric, value in document.metrics.items():
            use = document.use_of_vision.get(metric, {})
            change = "  ".join(f"{condition} {0.0 - seen.drop:+.2f}" for condition, seen in use.items())
            spread = document.intervals[metric]
            change = f"[{spread.low:.2f}, {spread.high:.2f}]  {change}" if document.sample else change
            known = document.trivial.get(metric)
            shares = ((known and known.prior, 7), (known and known.majority, 9), (known and known.chance, 7))
            baselines = " ".join(
                f"{'-':>{width}}" if share is None else f"{share:>{width}.2f}" for share, width in shares
            )
            row = f"{name:<24} {metric:<8} {document.num_items[metric]:>6} {value:>11.2f} {baselines}  {change}"
            click.echo(row.rstrip())
        for metric, numbers in document.measures.items():
            for measure, number in numbers.items():
                click.echo(f"  {metric}: {measure} {'has no denominator' if number is None else f'{number:.2f}'}")
        for metric, trivial in document.trivial.items():
            line = f"the majority answer is {trivial.answer!r}"
            if trivial.outside is not None:
                line += f"; of {trivial.outside:.1f} % of the questions no right answer is in the run's list"
            if trivial.given is not None:
                line += f"; the student answers {trivial.given_answer!r} {trivial.given:.0f} times of 100"
            click.echo(f"  {metric}: {line}")
            if trivial.prior is not None:
                click.echo(f"  {metric}: {prior_line(document.metrics[metric], trivial.prior, trivial.prior_known)}")
        for metric, groups in document.by_group.items():
            click.echo(
                f"  {metric}: {groups.accuracy:.2f} % of {groups.num_groups} groups, all of whose items are right"
            )
        if document.vqa_mode is not None:
            click.echo(f"  evaluator {document.vqa_mode}")
    for caveat in dict.fromkeys(caveat for document in result.sets.values() for caveat in document.caveats):
        click.echo(f"caution: {caveat}")
    click.echo(f"where it errs: {what_follows('advl', 'report', str(result.run))}")


def prior_line(score: float, prior: float, known: float | None) -> str:
    """Return a line that compares a score with the prior of the question."""
    line = (
        f"the commonest training answer to the same question is right {prior:.2f} times of 100 "
        f"({known:.0f} % of the questions are in training)"
    )
    return line if score > prior else f"{line}: the student is no better, it may not look at its pictures"


@config_command(PredictConfig, "predict", arguments=("run",))
def predict(config: PredictConfig) -> Iterator[Any]:
    """Write the predictions of a run in the leaderboards' format, and check the file.

    VCR: CSV of 1 + 20 columns. VQA: EvalAI's JSON. SNLI-VE: CSV of pairID and label.

    \b
    advl predict runs/vcr-advl --on test
    advl predict runs/vqa-advl --on test --output vqa_test2015.json
    """
    from advl_pipeline.evaluation.prepare import prepare_scoring

    prepared = prepare_scoring(config)
    from advl_pipeline.evaluation.predict_files import run_predict

    result = run_predict(prepared)
    yield result
    click.echo(f"{result.num_items} questions of {result.dataset} {result.split}, checked: {result.path}")
    if result.num_cut:
        click.echo(f"caution: {result.num_cut} texts of {result.split} are cut to the student's length")


@config_command(ReadoutConfig, "readout", arguments=("student",))
def readout(config: ReadoutConfig) -> Iterator[Any]:
    """Measure in seconds whether a student agrees with its teachers, and whether they know what it lacks.

    Without labels: the teacher picks, among four words that pretraining taught, the one most similar to a word that
    it did not teach. The readout is how often the student picks the same one. Chance is 25 percent.

    With at least 50 labelled questions: probes tell what a teacher adds to the student's own vectors.

    \b
    advl readout runs/vcr-advl --cache caches/minilm-l6/vcr/train
    """
    from advl_pipeline.readout.prepare import prepare_look

    look = prepare_look(config)
    from advl_pipeline.readout.run import run_readout

    result = run_readout(look)
    yield result
    if result.words is not None:
        click.echo(result.words)
    for teacher, placements in result.placement.items():
        for nodes, numbers in placements.items():
            if numbers is not None:
                share, chance = 100 * numbers["share"], 100 * numbers["chance"]
                click.echo(f"{teacher}  {nodes}: {share:.1f} % of {numbers['num_asked']} (chance {chance:.0f} %)")
    for teacher_gate in result.gates:
        click.echo(teacher_gate.line())


@click.group("score", cls=PluginGroup)
def score() -> None:
    """Compare scores of a run.

    Files of other programs are scored by examples/score_files.py of the repository.

    \b
    advl score shift runs/vcr-advl --on rule-singular
    """


@config_command(ScoreShiftConfig, "shift", group=score, arguments=("run",))
def shift(config: ScoreShiftConfig) -> Iterator[Any]:
    """Compare a shifted set with its original: on shared questions, or a part with the full set.

    \b
    advl score shift runs/vcr-advl --on rule-singular
    """
    from advl_pipeline.evaluation.shift import run_score_shift

    result = run_score_shift(config)
    yield result
    click.echo(f"{result.original_set} -> {result.shifted_set}, this one run")
    for metric, drop in result.drops.items():
        change = f"{drop.change.points:+.2f} points [{drop.interval.low:+.2f}, {drop.interval.high:+.2f}]"
        if drop.p_value is not None:
            change += f", p {drop.p_value:.3g}"
        compared = "the same questions" if drop.questions == "same" else "a part of all questions"
        accuracies = f"{drop.original:6.2f} -> {drop.shifted:6.2f}"
        click.echo(f"  {metric:<8} {drop.num_items:>7} {accuracies}  {change}, {compared}")
