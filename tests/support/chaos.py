"""Kill real extraction processes at random moments, damage real caches, and compare what the next command leaves.

What an uninterrupted, undamaged run leaves is the reference, to the byte.
"""

from __future__ import annotations

import random
import re
import shlex
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from real_processes import Running, start
from tiny_extraction import run_command, run_settings, tree_bytes

from advl_pipeline.base.errors import IdentityMismatch
from advl_pipeline.cache.verify import verify_cache


@dataclass(frozen=True, kw_only=True)
class Job:
    """One extraction, to be run as a process."""

    folder: Path
    settings: dict[str, Any]

    @property
    def output(self) -> Path:
        return Path(self.settings["config"]["output"])

    def start(self) -> Running:
        """Start the extraction."""
        return start(run_settings, self.settings)

    def start_command(self, arguments: Sequence[str]) -> Running:
        """Start `advl` with these arguments, on the same teacher and dataset."""
        return start(run_command, list(arguments), self.settings)

    def finish(self) -> None:
        """Run the extraction to its end."""
        running = self.start()
        if code := running.wait():
            raise AssertionError(f"exit code {code}: {running.messages()[-2000:]}")


def make_job(folder: Path, output: str, *, delay: float = 0.01, **config: Any) -> Job:
    """Describe an extraction of both modalities with confidences, slow enough to be hit in the middle."""
    folder.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {
        "teacher": "tiny",
        "dataset": "tiny",
        "output": str(folder / output),
        "batch_size": 4,
        "shard_rows": 32,
        "folds": 2,
    }
    return Job(
        folder=folder,
        settings={"folder": str(folder / "data"), "config": settings | config, "teacher": {"delay": delay}},
    )


def kill_and_resume(
    folder: Path, reference: dict[str, bytes], span: float, *, name: str, seed: int
) -> tuple[float, int]:
    """Kill one extraction once at a random moment of its writing, resume it, and compare.

    Args:
        folder: where data and caches lie.
        reference: the files of an uninterrupted run.
        span: seconds that an uninterrupted run writes for.
        name: of the new cache.
        seed: chooses the moment.

    Returns:
        The moment of the kill in seconds after the first write, and how many shards were committed by then.

    Raises:
        AssertionError: the resumed cache differs, is not sound, or litter remains.
    """
    job = make_job(folder, name)
    moment = random.Random(seed).uniform(0, span)
    running = job.start()
    if running.wait_for(job.output):
        time.sleep(moment)
    running.send(signal.SIGKILL)
    running.wait()
    committed = len(list(job.output.glob("records/*-[0-9]*.json")))
    job.finish()
    if different := differing(reference, job.output):
        raise AssertionError(f"killed after {moment:.3f} s, resumed differently: {different[:5]}")
    report = verify_cache(job.output)
    if not report.is_sound:
        raise AssertionError(f"killed after {moment:.3f} s, not sound: {list(report.findings.items())[:5]}")
    return moment, committed


def reference_run(folder: Path) -> tuple[dict[str, bytes], float]:
    """Extract without interruption; returns the files and for how many seconds it wrote."""
    job = make_job(folder, "reference")
    running = job.start()
    running.wait_for(job.output)
    begin = time.perf_counter()
    if code := running.wait():
        raise AssertionError(f"exit code {code}: {running.messages()[-2000:]}")
    return tree_bytes(job.output), time.perf_counter() - begin


CACHES: dict[str, dict[str, Any]] = {
    "text": {"modality": "text"},
    "text, int8, selected": {"modality": "text", "dtype": "int8", "select_texts": 0.4},
    "image": {"modality": "image"},
}
"""Options of the caches that are damaged."""

DAMAGES = ("flip", "zero", "truncate", "append", "delete", "link", "folder", "swap")
_MAX_COMMANDS = 4


def component(name: str) -> str:
    """Return a file's name without what counts shards or tells sets of confidences apart."""
    return re.sub(r"[0-9a-f]{16}|[0-9]+", "0", name)


def cache_to_damage(folder: Path, options: dict[str, Any], *, dataset_seed: int = 0) -> Job:
    """Extract one of `CACHES` over a dataset; returns the job that made it."""
    job = make_job(folder, "whole", delay=0.0, **options)
    job.settings["dataset"] = {"seed": dataset_seed}
    job.finish()
    return job


def damage_and_mend(job: Job, name: str, *, seed: int) -> tuple[list[str], list[str]]:
    """Damage any file of a copy of a cache, or any two, and follow the advice of `advl cache verify` to its end.

    Args:
        job: what made the cache; its output stays as it is.
        name: of the copy, beside it.
        seed: chooses files and damages.

    Returns:
        What was damaged and how, and the commands that were advised.

    Raises:
        AssertionError: the damage is not noticed, the advice leads nowhere, or what it leads to has other bytes.
    """
    generator = random.Random(seed)
    reference = tree_bytes(job.output)
    copy = job.folder / name
    shutil.copytree(job.output, copy)
    kinds: dict[str, list[str]] = {}
    for file in sorted(reference):
        kinds.setdefault(component(file), []).append(file)
    # Each kind of file is as likely as another, however many there are of it; two may be of one kind.
    chosen = sorted(
        {generator.choice(kinds[generator.choice(sorted(kinds))]) for _ in range(generator.choice((1, 2)))}
    )
    damages = [f"{file}: {inflict(copy, file, reference, generator)}" for file in chosen]
    if not differing(reference, copy):  # Two swaps undo each other.
        (copy / chosen[0]).unlink()
    commands = follow_advice(job, copy, shlex.join(["advl", "cache", "verify", str(copy)]))
    if not commands:
        raise AssertionError(f"{damages}: not noticed")
    if different := differing(reference, copy):
        raise AssertionError(f"{damages}: after {commands} other bytes in {different[:5]}")
    shutil.rmtree(copy)
    return damages, commands


def refuse_foreign_records(job: Job, other: Job, name: str, *, seed: int) -> int:
    """Put records of another cache into a copy of a cache, and have it repaired: that must be refused.

    Args:
        job: what made the cache; its output stays as it is.
        other: what made the cache that the records are of.
        name: of the copy, beside the cache.
        seed: chooses which records, the plan always among them.

    Returns:
        How many records were put there.

    Raises:
        AssertionError: the repair ends otherwise than by a refusal, or it changes a file.
    """
    generator = random.Random(seed)
    copy = job.folder / name
    shutil.copytree(job.output, copy)
    records = sorted(path.name for path in (other.output / "records").iterdir())
    chosen = {"plan.json", *generator.sample(records, generator.randint(1, len(records)))}
    for record in sorted(chosen):
        shutil.copyfile(other.output / "records" / record, copy / "records" / record)
    before = tree_bytes(copy)
    running = other.start_command(["cache", "repair", str(copy)])
    if (code := running.wait()) != IdentityMismatch.exit_code:
        raise AssertionError(f"{sorted(chosen)}: exit code {code}: {running.messages()[-1000:]}")
    if different := differing(before, copy):
        raise AssertionError(f"{sorted(chosen)}: refused, and changed all the same: {different[:5]}")
    shutil.rmtree(copy)
    return len(chosen)


def follow_advice(job: Job, cache: Path, command: str) -> list[str]:
    """Run a command and whatever it advises until `command` itself ends well; returns what was advised."""
    advised: list[str] = []
    pending = command
    while True:
        running = job.start_command(shlex.split(pending)[1:])
        code, messages = running.wait(), running.messages()
        if code == 0:
            if pending == command:
                return advised
            pending = command
            continue
        match = re.search(r"next: +(advl .+?)(?:   \(|$)", messages, flags=re.MULTILINE)
        if match is None or len(advised) == _MAX_COMMANDS:
            raise AssertionError(f"{cache.name}: {pending} ends with {code} after {advised}: {messages[-1000:]}")
        pending = match[1]
        advised.append(pending)


def inflict(cache: Path, name: str, reference: dict[str, bytes], generator: random.Random) -> str:
    """Damage a file of a cache in some way; returns which. Its bytes differ afterwards, or it is no plain file."""
    path, content = cache / name, reference[name]
    damage = generator.choice(DAMAGES)
    others = sorted(other for other in reference if reference[other] != content)
    if damage == "flip":
        flipped = bytearray(content)
        flipped[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        path.write_bytes(flipped)
    elif damage == "zero" and any(content[: len(content) // 2]):
        # The footer of a shard stays.
        path.write_bytes(bytes(len(content) // 2) + content[len(content) // 2 :])
    elif damage == "append":
        path.write_bytes(content + b"\0")
    elif damage == "swap":
        # With a file that is named alike where there is one, such as the next shard.
        alike = [other for other in others if component(other) == component(name)] or others
        other = cache / generator.choice(alike)
        if other.is_file() and not other.is_symlink() and path.is_file():
            aside = cache.with_name(f"{cache.name}-aside")
            path.rename(aside)
            other.rename(path)
            aside.rename(other)
        else:
            path.unlink()
    elif damage in ("truncate", "zero"):
        path.write_bytes(content[: generator.randrange(len(content))])
    else:
        path.unlink()
        if damage == "link":
            path.symlink_to(cache.with_name("whole") / name)
        elif damage == "folder":
            path.mkdir()
    return damage


def differing(reference: dict[str, bytes], root: Path) -> list[str]:
    """Return the files in which a tree differs from a reference; links count as other files."""
    content = tree_bytes(root)
    links = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_symlink()}
    names = sorted(reference.keys() | content.keys() | links)
    return [name for name in names if name in links or reference.get(name) != content.get(name)]
