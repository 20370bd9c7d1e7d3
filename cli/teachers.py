"""`advl teachers`: list teachers, show one, and check that one works."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from advl_pipeline.teachers.open_options import CheckTeacherConfig

from .flags import config_command, exit_with, json_option
from .main import PluginGroup


@click.group("teachers", cls=PluginGroup)
def teachers() -> None:
    """List teachers, show one, check its weights.

    \b
    advl teachers list
    advl teachers show clip-vit-l
    advl teachers check roberta-b
    """


@teachers.command("list")
@json_option
def print_teachers() -> Iterator[Any]:
    """List the named teachers, and the prefixes that open any other.

    \b
    advl teachers list
    advl teachers list --json
    """
    from advl_pipeline.teachers.registry import DOORS, list_teachers

    summaries = list_teachers()
    yield {"teachers": summaries, "doors": DOORS}
    click.echo(f"{'name':<18} {'towers':<11} {'weights':<12} about")
    for summary in summaries:
        weights = (
            "plug-in" if summary.at_hand is None else "at hand" if summary.at_hand else f"{summary.megabytes} MB"
        )
        click.echo(f"{summary.name:<18} {', '.join(summary.modalities):<11} {weights:<12} {summary.about}")
    for form, meaning in DOORS.items():
        click.echo(f"{form:<43} {meaning}")


@teachers.command("show")
@click.argument("name")
@json_option
def show_command(name: str) -> Iterator[Any]:
    """Show a teacher's features, their size, and whether its weights are on this machine. Nothing is loaded.

    \b
    advl teachers show clip-vit-l
    advl teachers show dinov2-b --json
    """
    from advl_pipeline.teachers.registry import show_teacher

    details = show_teacher(name)
    yield details
    summary = details.summary
    click.echo(f"{summary.name}: {summary.about}")
    click.echo(f"  source     {details.source} ({summary.licence})")
    click.echo(f"  weights    {details.how_to_get or 'at hand'}")
    click.echo(f"  global     {details.global_feature}")
    if details.long_texts:
        click.echo(f"  long texts {details.long_texts}")
    for size in details.features:
        stored = f"width {size.width:>5}, {size.num_bytes:>8} bytes per {size.per} (float16)"
        click.echo(f"  {size.feature:<28} {stored}")
    if not details.features:
        click.echo(f"  sizes are known once it is opened: advl teachers check {name}")


@config_command(CheckTeacherConfig, "check", group=teachers, arguments=("name",))
def check_command(config: CheckTeacherConfig) -> Iterator[Any]:
    """Open a teacher and test it on a few made-up units: widths, batch invariance, float16 range, speed.

    Exit code 6 if its weights are not on this machine, 1 if a test fails.

    \b
    advl teachers check roberta-b
    advl teachers check hf:ORG/MODEL --weights FOLDER
    """
    from advl_pipeline.teachers.registry import require_teacher

    require_teacher(config.name)
    from advl_pipeline.teachers.teacher_check import run_check_teacher

    result = run_check_teacher(config)
    exit_with(0 if result.is_good else 1)
    yield result
    for tower in result.towers:
        click.echo(f"{result.name}, {tower.modality} tower: parameters {tower.parameters[:16]}")
        click.echo(f"  widths             {tower.global_dim} global, {tower.token_dim} tokens")
        click.echo(f"  largest value      {tower.largest_value:.4g} (float16 holds 65504)")
        click.echo(f"  batch invariance   {tower.batch_difference:.1e} of the largest value")
        click.echo(f"  speed here         {tower.units_per_second:.1f} units/s")
        for problem in tower.problems:
            click.echo(f"  problem: {problem}")
    click.echo("good" if result.is_good else "not good")
