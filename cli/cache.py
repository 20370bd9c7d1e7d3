"""`advl cache`: commands to inspect, verify, repair and convert caches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from advl_pipeline.cache.config import ExportConfig, InfoConfig, PruneConfig
from advl_pipeline.extraction.config import ImportConfig, RepairConfig, VerifyConfig
from advl_pipeline.sharing.config import PullConfig, PushConfig

from .extract import say_grid
from .flags import config_command, exit_with
from .main import PluginGroup


@click.group("cache", cls=PluginGroup)
def cache() -> None:
    """Inspect, verify, repair or convert a teacher feature cache.

    \b
    advl cache info caches/minilm-l6/vcr/train
    advl cache verify caches/minilm-l6/vcr/train --recompute 8
    """


@config_command(InfoConfig, "info", group=cache, arguments=("cache",))
def info(config: InfoConfig) -> Iterator[Any]:
    """Show the content of a cache, finished or not.

    \b
    advl cache info caches/minilm-l6/vcr/train
    """
    from advl_pipeline.cache.commands import run_info
    from advl_pipeline.datasets.roots import name_in_records

    result = run_info(config)
    yield result
    state = "complete" if result.is_complete else "not finished: the command that began it resumes"
    teacher, dataset = result.identity["teacher"], result.identity["dataset"]
    click.echo(f"{result.path}: {state}, {result.num_bytes / 1e6:.1f} MB, {result.stored_dtype}")
    called = name_in_records(result.identity, result.provenance)
    click.echo(f"teacher {teacher['name']}, dataset {called}, split {dataset['split']}")
    for name, item in result.modalities.items():
        tokens = f"{item.num_token_rows} token rows of {item.token_dim}" if item.token_dim else "no token features"
        click.echo(
            f"{name}: {item.num_units} units of {item.global_dim}, {tokens}, "
            f"{item.committed_shards} of {item.num_shards} shards, {item.clipped} values clipped"
        )
        for unit, reason in item.quarantined.items():
            click.echo(f"  not readable: {unit} ({reason})")
    say_grid(result.provenance.get("averaged_grid", {}))
    for item_set in result.confidences:
        identity = item_set.identity
        click.echo(
            f"confidence {item_set.key}: {item_set.num_examples} examples of {identity['dataset']}, "
            f"split {identity['split']} ({', '.join(identity['tasks'])}), "
            f"estimated by {identity['estimator']} from the {identity['view']} features"
        )


@config_command(VerifyConfig, "verify", group=cache, arguments=("cache",))
def verify(config: VerifyConfig) -> Iterator[Any]:
    """Check every byte and every record, and on request some units with the teacher. Exit code 4 if damaged.

    \b
    advl cache verify caches/minilm-l6/vcr/train
    advl cache verify caches/minilm-l6/vcr/train --recompute 8 --json
    """
    from advl_pipeline.cache.verify import describe_findings
    from advl_pipeline.extraction.recompute import run_verify

    report = run_verify(config)
    exit_with(0 if report.is_sound else 4)
    yield {
        "path": report.path,
        "is_sound": report.is_sound,
        "num_files": len(report.files),
        "num_bytes": report.num_bytes,
        "findings": [{"path": path, "problem": problem} for path, problem in report.findings.items()],
        "recomputed": report.recomputed,
        "worst_cosine_error": report.worst,
    }
    if not report.is_sound:
        raise describe_findings(report)
    click.echo(f"sound: {len(report.files)} files, {report.num_bytes / 1e6:.1f} MB")
    if report.recomputed:
        click.echo(f"{report.recomputed} units computed again, largest 1 - cosine {report.worst:.2g}")


@config_command(RepairConfig, "repair", group=cache, arguments=("cache",))
def repair_cache(config: RepairConfig) -> Iterator[Any]:
    """Rebuild what is damaged or unfinished, and nothing else.

    \b
    advl cache repair caches/minilm-l6/vcr/train
    advl cache repair s3://bucket/caches/clip-vit-l
    """
    from advl_pipeline.extraction.prepare import require_cache_there

    require_cache_there(config.cache)
    from advl_pipeline.extraction.repair import run_repair

    result = run_repair(config)
    yield result
    for path, problem in result.findings:
        click.echo(f"{path}: {problem}")
    if not result.findings:
        click.echo("sound: nothing to repair")
        return
    click.echo(
        f"repaired {len(result.findings)} finding(s), {result.encoded_units} units encoded again, "
        + ("every byte as it was" if result.is_identical else "some bytes differ from what was recorded before")
    )
    if result.trusted_units:
        click.echo(
            f"{result.trusted_units} units were kept on their records' word; to compare some with the teacher: "
            f"advl cache verify {result.path} --recompute 64"
        )


@config_command(ExportConfig, "export", group=cache, arguments=("cache",))
def export_cache(config: ExportConfig) -> Iterator[Any]:
    """Write a cache's features as HDF5 or safetensors.

    \b
    advl cache export caches/minilm-l6/vcr/train --to hdf5 --output features.h5
    """
    from advl_pipeline.cache.commands import run_cache_export

    result = run_cache_export(config)
    yield result
    units = ", ".join(f"{count} {name} units" for name, count in result.num_units.items())
    click.echo(f"wrote {units}, {result.num_bytes / 1e6:.1f} MB, to {result.output}")


@config_command(PushConfig, "push", group=cache, arguments=("cache", "repository"))
def push(config: PushConfig) -> Iterator[Any]:
    """Verify a cache and upload it to a dataset repository of the hub, in one commit.

    \b
    advl cache push caches/minilm-l6/vcr/train ORG/NAME
    """
    from advl_pipeline.sharing.push_pull import run_push

    url = run_push(config)
    yield {"url": url}
    click.echo(f"uploaded: {url}")


@config_command(PullConfig, "pull", group=cache, arguments=("repository",))
def pull(config: PullConfig) -> Iterator[Any]:
    """Download a cache from the hub and verify it; an interrupted download resumes.

    \b
    advl cache pull ORG/NAME --output caches/minilm-l6/vcr/train
    """
    from advl_pipeline.sharing.push_pull import run_pull

    report = run_pull(config)
    yield {"path": config.output, "num_files": len(report.files), "num_bytes": report.num_bytes}
    click.echo(f"sound: {len(report.files)} files, {report.num_bytes / 1e6:.1f} MB in {config.output}")


@config_command(ImportConfig, "import", group=cache, arguments=("source",))
def import_(config: ImportConfig) -> Iterator[Any]:
    """Make a cache from existing features: a detector's regions, or arrays named after pictures.

    Region students read caches of regions with --regions. --dry-run prints the size.

    \b
    advl cache import train36.tsv --name butd --dataset vqa-v2 --split train
    advl cache import 'img_db/vcr_{split}' --ground-truth-regions 'img_db/vcr_gt_{split}' \\
        --name butd --dataset vcr --split train
    """
    from advl_pipeline.extraction.prepare import require_import

    dataset = require_import(config)
    from advl_pipeline.extraction.run import run_import

    result = run_import(config, dataset)
    yield result.document()
    if result.dry_run:
        (image,) = result.estimates
        click.echo(
            f"would write {result.path}: {image.num_units:,} pictures, {image.num_token_rows:,} rows, "
            f"{image.num_bytes / 1e9:.3f} GB, where {(result.free_bytes or 0) / 1e9:.1f} GB are free"
        )
        return
    click.echo(f"imported {result.encoded_units} units; cache: {result.path}")


@config_command(PruneConfig, "prune", group=cache, arguments=("cache",))
def prune(config: PruneConfig) -> Iterator[Any]:
    """Remove sets of confidences, leftovers of stopped runs, or the entire cache.

    \b
    advl cache prune caches/minilm-l6/vcr/train --all-confidences
    advl cache prune caches/minilm-l6/vcr/train --all
    """
    from advl_pipeline.cache.commands import run_prune

    result = run_prune(config)
    yield result
    verb = "would remove" if config.dry_run else "removed"
    removed = [str(config.cache) if name == "." else name for name in result.removed]
    click.echo(f"{verb} {', '.join(removed) or 'nothing'} ({result.num_bytes / 1e6:.1f} MB)")
