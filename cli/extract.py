"""`advl extract` and `advl prepare`: phase 1, for teachers and for pictures stored without a teacher."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from advl_pipeline.extraction.config import ExtractConfig, PrepareConfig, of_pictures
from advl_pipeline.students.options import DEFAULT_STUDENT

from .advice import running, what_follows
from .flags import config_command, read_and_print

if TYPE_CHECKING:
    from advl_pipeline.extraction.forecast import Payback
    from advl_pipeline.extraction.run import ExtractResult
    from advl_pipeline.readout.gate import Gates


@config_command(ExtractConfig, "extract")
def extract(config: ExtractConfig) -> Iterator[Any]:
    """Run a frozen teacher once over a dataset split and write its cache.

    The same command resumes an interrupted run. To share the work, run several processes with different --part.

    For your own data with at least 50 labels it ends with what the teacher adds to the student of `advl finetune`.

    \b
    advl extract --teacher minilm-l6 --dataset vcr --split train
    advl extract --teacher efficientnet-lite0 --dataset vcr --dry-run
    """
    from advl_pipeline.extraction.prepare import prepare_extract

    dataset = read_and_print(config.dataset, config.data_root)
    prepared = prepare_extract(config, dataset)
    from advl_pipeline.extraction.run import run_extract

    result = run_extract(prepared)
    complete = result.cache if config.estimates_confidences and dataset.line else None
    gates: Gates | None = None
    if complete is not None and result.encoded_units:
        from advl_pipeline.readout.gate import gate_by_default

        gates = gate_by_default(complete, dataset, data_root=config.data_root, device=config.device)
    yield result.document() | {"gates": gates}
    say_extraction(result, config)
    if complete is not None and gates is None:
        readout = what_follows(
            "advl", "readout", DEFAULT_STUDENT, "--data", dataset.name, "--cache", str(result.path)
        )
        click.echo(f"nothing was encoded; what the teacher adds to {DEFAULT_STUDENT}: {readout}")
    for gate in gates or ():
        click.echo(gate.line())


def say_extraction(result: ExtractResult, config: ExtractConfig) -> None:
    """Print the result of an extraction, or the plan of a dry run."""
    from advl_pipeline.base.compute import device_name

    for item in result.estimates:
        seconds = "" if item.seconds is None else f", about {item.seconds:.0f} s"
        rows = f"{item.num_token_rows} token rows"
        if result.untimed is not None and item.modality == "text":
            rows = f"about {rows} (by the number of words)"
        elif item.num_counted < item.num_units:
            rows = f"about {rows} ({item.num_counted} units were counted)"
        click.echo(
            f"{item.modality}: {item.num_units} units, {rows}, {item.num_shards} shards, "
            f"{item.num_bytes / 1e6:.1f} MB{seconds}"
        )
    if result.dry_run:
        if result.confidence_seconds is not None:
            click.echo(f"confidences: about {result.confidence_seconds:.0f} s")
        say_grid(result.averaged_grid)
        if result.untimed is None:
            click.echo(f"times are of {device_name(config.device)}")
        else:
            click.echo(
                "encoding time: not measured, the weights are not on this machine; sizes are from the teacher's card"
            )
            click.echo(f"  why:   {result.untimed.what}")
            click.echo(f"  next:  {running().next_command(result.untimed)}")
        if result.payback is not None:
            click.echo(when_it_pays(result.payback))
        room = "" if result.free_bytes is None else f"; {result.free_bytes / 1e9:.1f} GB are free there"
        click.echo(f"would write {result.path}{room}")
        return
    shares = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in result.stage_seconds.items())
    click.echo(f"encoded {result.encoded_units} units in {result.seconds:.1f} s ({shares})")
    say_grid(result.averaged_grid)
    if result.skipped:
        check = what_follows("advl", "datasets", "check", config.dataset)
        click.echo(f"{result.skipped} malformed items were left out: {check}")
    if result.quarantined:
        click.echo(
            f"{result.quarantined} pictures could not be read: advl cache info {shlex.quote(str(result.path))}"
        )
    if result.clipped:
        click.echo(f"{result.clipped} values were beyond the stored range and were clipped")
    if result.shards_left:
        click.echo(f"part {config.part} is done; {result.shards_left} shards of other parts are still missing")
    click.echo(f"cache: {result.path}")


def say_grid(grid: Mapping[str, Sequence[int]]) -> None:
    """Print a note if a teacher's grid is stored with fewer patches."""
    if grid:
        (rows, columns), (kept_rows, kept_columns) = grid["own"], grid["stored"]
        click.echo(
            f"the teacher's grid of {rows} x {columns} patches is averaged to {kept_rows} x {kept_columns} "
            f"(--grid-side {max(rows, columns)} stores all)"
        )


def when_it_pays(payback: Payback) -> str:
    """Return in words how much training makes a cache cheaper than running its teacher in every step."""
    epoch = "never" if payback.epochs is None else f"epoch {payback.epochs}, counted over all student runs"
    return (
        f"break-even: {epoch} (cache {payback.once:.1f} s once + {payback.cached:.2f} s an epoch; "
        f"live teacher {payback.live:.1f} s an epoch)"
    )


@config_command(PrepareConfig, "prepare")
def prepare(config: PrepareConfig) -> Iterator[Any]:
    """Decode a split's pictures once and store them at the input size of a student.

    `advl finetune`, `evaluate` and `predict` then read them instead of decoding: the same pixels, far faster.
    The same command resumes an interrupted one, and `advl cache verify` checks the stored pictures.

    \b
    advl prepare --dataset vcr --split train --student vilt
    advl prepare --dataset vcr --split val --size 112 --dry-run
    """
    from advl_pipeline.datasets.registry import require_names
    from advl_pipeline.extraction.prepare import prepare_extract
    from advl_pipeline.students.registry import require_student

    dataset = read_and_print(config.dataset, config.data_root)
    require_names(dataset, config.split, data_root=config.data_root)
    if config.student is not None:
        require_student(config.student)
    from advl_pipeline.extraction.run import run_extract
    from advl_pipeline.training.picture_size import picture_side

    size = config.size or picture_side(config.student, config.student_option, tasks=dataset.tasks)
    extraction = of_pictures(config, size)
    result = run_extract(prepare_extract(extraction, dataset, may_idle=True))
    yield {"size": size, **result.document()}
    say_extraction(result, extraction)
