"""`advl students`: list students, show one, check a checkpoint; `advl export`: write a run's student to share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from advl_pipeline.readout.config import WordsConfig
from advl_pipeline.sharing.config import ExportRunConfig

from .flags import config_command, exit_with, json_option
from .main import PluginGroup

tokenizer_option = click.option(
    "--tokenizer", help="Folder or hub name of a tokenizer, or minilm-l6 [default: the student's own]."
)

KEYS = {
    "missing": "missing from the file",
    "unexpected": "unexpected in the file",
    "reinitialised": "of another shape, left at fresh values",
    "resized": "fitted to another size",
    "fresh": "absent from the file as they may be",
    "ignored": "set aside (heads, pretraining objectives)",
}
"""Messages of `load-check` about checkpoint keys."""


@click.group("students", cls=PluginGroup)
def students() -> None:
    """List students, show one, check a checkpoint, tell which words its pretraining taught.

    \b
    advl students list
    advl students show uniter-base
    advl students load-check uniter-base uniter-base.pt
    """


@students.command("list")
@json_option
def list_() -> Iterator[Any]:
    """List the names for `--student`, and the visual input of each.

    \b
    advl students list
    """
    from advl_pipeline.students.registry import list_students

    students = list_students()
    yield students
    width = max(len(item.name) for item in students)
    for item in students:
        click.echo(f"{item.name:{width}}  {item.title}, {item.visual}")


@students.command("show")
@click.argument("name")
@tokenizer_option
@json_option
def show(name: str, tokenizer: str | None) -> Iterator[Any]:
    """Show one student: architecture, recipes with the source of each number, and how it was tested.

    \b
    advl students show uniter-tiny
    advl students show meter-tiny --json
    """
    from advl_pipeline.students.registry import show_student
    from advl_pipeline.training.recipes import published_recipes

    shown, recipes = show_student(name, tokenizer=tokenizer), published_recipes(name)
    yield {**asdict(shown), "recipes": recipes}
    click.echo(f"{shown.name}: {shown.title}, {shown.num_parameters / 1e6:.1f} M parameters")
    for key in ("visual", "weights", "reference", "proof", "largest", "unproven"):
        if value := getattr(shown, key):
            click.echo(f"  {key}: {value}")
    click.echo("architecture:")
    for key, value in shown.config.items():
        click.echo(f"  {key}: {value}")
    for task, rows in recipes.items():
        click.echo(f"recipe for {task}:")
        for row in rows:
            click.echo(f"  {row['key']} = {row['value']}  ({row['source']})")


@students.command("load-check")
@click.argument("name")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@tokenizer_option
@json_option
def load_check(name: str, checkpoint: Path, tokenizer: str | None) -> Iterator[Any]:
    """Load a checkpoint into a student and list every key that does not fit. Exit code 2 if weights are missing.

    \b
    advl students load-check uniter-base uniter-base.pt
    advl students load-check vilt vilt-b32-mlm/ --json
    advl students load-check vilt hf:dandelin/vilt-b32-mlm
    """
    from advl_pipeline.students.registry import check_checkpoint
    from advl_pipeline.students.weight_files import located

    report = check_checkpoint(name, located(checkpoint, student=name), tokenizer=tokenizer)
    fills = not (report.missing or report.reinitialised)
    exit_with(0 if fills else 2)
    yield {"student": name, **report.to_dict()}
    click.echo(f"{report.source}: {report.num_loaded} tensors loaded")
    for kind, label in KEYS.items():
        if keys := getattr(report, kind):
            click.echo("\n  ".join([f"{len(keys)} {label}:", *keys]))
    click.echo(f"{'fills' if fills else 'does not fill'} {name}")


@config_command(WordsConfig, "words", group=students, arguments=("student",))
def words(config: WordsConfig) -> Iterator[Any]:
    """Write the words that a student's pretraining taught, estimated from its states, without labels.

    The table has a line for each word: occurrences, score, and class (landmark, held or moved). Edit the classes if
    you know better, and pass the file as --known-words to `advl finetune`.

    \b
    advl students words runs/vcr-advl --cache caches/minilm-l6/vcr/train
    advl students words vilt --init hf:dandelin/vilt-b32-mlm --cache caches/minilm-l6/vcr/train
    """
    from advl_pipeline.readout.prepare import prepare_look

    look = prepare_look(config)
    from advl_pipeline.readout.words import run_words

    result = run_words(look)
    yield result
    click.echo(result.line)
    if result.record_auc is not None:
        click.echo(f"against the record of its pretraining: area under the curve {result.record_auc:.3f}")
    click.echo(f"{result.num_words} words: {result.path}")


@config_command(ExportRunConfig, "export", arguments=("run",))
def export(config: ExportRunConfig) -> Iterator[Any]:
    """Write a run's student as a folder to share, with its model card.

    If transformers has a class for the student, its from_pretrained loads the folder: vilt, bridgetower, modernvbert,
    visualbert, lxmert and all chat models. ADVL loads the folder of any other student.

    \b
    advl export runs/advl-100-0 --output shared/advl-100-0
    advl export runs/vilt --output shared/vilt --push-to-hub ORG/NAME
    """
    from advl_pipeline.evaluation.prepare import require_finished

    require_finished(config.run)
    from advl_pipeline.sharing.student_export import run_export

    model, url = run_export(config)
    files = sorted(path.name for path in config.output.iterdir())
    yield {"output": config.output, "model": model, "files": files, "url": url}
    click.echo(f"{model}: {len(files)} files in {config.output}")
    if url:
        click.echo(f"uploaded: {url}")
