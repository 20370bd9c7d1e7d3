"""Stop real processes at random moments, damage real caches, and compare the output of the next command.

The reference is the output of an uninterrupted, undamaged run, compared byte for byte.
"""

from __future__ import annotations

import random
import re
import shlex
import shutil
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from objects import flipped
from real_processes import Running, start
from tiny_extraction import run_command, run_settings, tree_bytes

from advl_pipeline.base.errors import IdentityMismatch


class Job(ABC):
    """A task that a process runs to write the folder `output`; `first` exists once it writes."""

    output: Path
    first: ClassVar[str]

    @abstractmethod
    def start(self) -> Running:
        """Start or resume the task."""

    @abstractmethod
    def left(self) -> Mapping[str, Any]:
        """Return the output of the finished task."""

    @abstractmethod
    def progress(self) -> int:
        """Return the number of recorded shards or steps."""

    def run_alone(self) -> tuple[Mapping[str, Any], float]:
        """Run the task without interruption; returns its output and the seconds it spent writing."""
        running = self.start()
        running.wait_for(self.output / self.first)
        begin = time.perf_counter()
        running.finish()
        return self.left(), time.perf_counter() - begin

    def stop(self, number: signal.Signals, moment: float) -> Running:
        """Send a signal `moment` seconds after the first write; returns the process after its end."""
        running = self.start()
        if running.wait_for(self.output / self.first):
            time.sleep(moment)
        running.send(number)
        running.wait()
        return running

    def kill_and_resume(self, reference: Mapping[str, Any], span: float, *, seed: int) -> str:
        """Kill the task once at a random moment while it writes, resume it, and compare; returns the moment.

        Args:
            reference: the output of an uninterrupted run.
            span: the seconds such a run spends writing.
            seed: selects the moment.
        """
        moment = random.Random(seed).uniform(0, span)
        self.stop(signal.SIGKILL, moment)
        what = f"killed after {moment:.3f} s with {self.progress():>2} recorded"
        self.start().finish()
        self.require_equal(reference, what)
        return f"{what}: identical"

    def require_equal(self, reference: Mapping[str, Any], what: str) -> None:
        """Compare the output with a reference; raises `AssertionError` if they differ."""
        if different := unlike(reference, self.left()):
            raise AssertionError(f"{what}: other than without interruption: {different[:5]}")


def unlike(reference: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Return the keys at which two mappings differ."""
    names = sorted(reference.keys() | found.keys())
    return [name for name in names if reference.get(name) != found.get(name)]


@dataclass(frozen=True)
class Extraction(Job):
    """An extraction of the small dataset."""

    folder: Path
    settings: dict[str, Any]
    first = ""

    @property
    def output(self) -> Path:
        return Path(self.settings["config"]["output"])

    def start(self) -> Running:
        return start(run_settings, self.settings)

    def start_command(self, arguments: Sequence[str]) -> Running:
        """Start `advl` with these arguments on the same teacher and dataset."""
        return start(run_command, list(arguments), self.settings)

    def left(self) -> dict[str, bytes]:
        return tree_bytes(self.output)

    def progress(self) -> int:
        return len(list(self.output.glob("records/*-[0-9]*.json")))


def make_job(folder: Path, output: str, *, delay: float = 0.01, **config: Any) -> Extraction:
    """Return an extraction of both modalities with confidences, slow enough to be stopped midway."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "teacher": "tiny",
        "dataset": "tiny",
        "batch_size": 4,
        "shard_rows": 32,
        "confidence_folds": 2,
        **config,
    }
    config["output"] = str(folder / output)
    inputs = {"folder": str(folder / "data"), "dataset": {"num_images": 40}, "teacher": {"delay": delay}}
    return Extraction(folder, {**inputs, "config": config})


CACHES: dict[str, dict[str, Any]] = {
    "text": {"modality": "text"},
    "text, int8, selected": {"modality": "text", "dtype": "int8", "select_texts": 0.4},
    "image": {"modality": "image"},
}
"""Options of the caches to damage."""

DAMAGES = ("flip", "truncate", "delete", "link", "folder", "zero", "append")
_MAX_COMMANDS = 4


def component(name: str) -> str:
    """Return a file's name without shard numbers and identifiers of confidence sets."""
    return re.sub(r"[0-9a-f]{16}|[0-9]+", "0", name)


def cache_to_damage(folder: Path, options: dict[str, Any], *, dataset_seed: int = 0) -> Extraction:
    """Extract one of `CACHES` over a dataset; returns the job."""
    job = make_job(folder, "whole", delay=0.0, **options)
    job.settings["dataset"] = {"seed": dataset_seed}
    job.start().finish()
    return job


def damage_and_mend(job: Extraction, name: str, *, seed: int) -> tuple[list[str], list[str]]:
    """Damage one or two random files of a copy of a cache, and follow the advice of `advl cache verify` to the end.

    Args:
        job: the job of the cache; its output is not changed.
        name: of the copy, next to the cache.
        seed: selects files and damage.

    Returns:
        The damage done, and the advised commands.

    Raises:
        AssertionError: the damage is not detected, the advice does not work, or the repaired bytes differ.
    """
    generator = random.Random(seed)
    reference = tree_bytes(job.output)
    copy = job.folder / name
    shutil.copytree(job.output, copy)
    kinds: dict[str, list[str]] = {}
    for file in sorted(reference):
        kinds.setdefault(component(file), []).append(file)
    # Each kind of file is equally likely, whatever its number of files; both may be of the same kind.
    chosen = sorted(
        {generator.choice(kinds[generator.choice(sorted(kinds))]) for _ in range(generator.choice((1, 2)))}
    )
    damages = [f"{file}: {inflict(copy, file, job.output, generator)}" for file in chosen]
    if not differing(reference, copy):  # Two swaps cancel out, and some halves are zero.
        (copy / chosen[0]).unlink()
    commands = follow_advice(job, copy, shlex.join(["advl", "cache", "verify", str(copy)]))
    if not commands:
        raise AssertionError(f"{damages}: not noticed")
    if different := differing(reference, copy):
        raise AssertionError(f"{damages}: after {commands} other bytes in {different[:5]}")
    shutil.rmtree(copy)
    return damages, commands


def refuse_foreign_records(job: Extraction, other: Extraction, name: str, *, seed: int) -> int:
    """Copy records of another cache into a copy of a cache, and require that a repair is refused.

    Args:
        job: the job of the cache; its output is not changed.
        other: the job of the cache that provides the records.
        name: of the copy, next to the cache.
        seed: selects the records; the plan is always included.

    Returns:
        The number of copied records.

    Raises:
        AssertionError: the repair is not refused, or it changes a file.
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


def follow_advice(job: Extraction, cache: Path, command: str) -> list[str]:
    """Run a command and the commands it advises until `command` succeeds; returns the advised commands."""
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


def inflict(cache: Path, name: str, whole: Path, generator: random.Random) -> str:
    """Damage a file of a copy of a cache in a random way; returns the kind of damage."""
    damage, path = generator.choice([*DAMAGES, "swap"]), cache / name
    if damage != "swap":
        spoil(path, damage, original=whole / name, place=generator.random())
        return damage
    # With a similarly named file if there is one, such as the next shard.
    others = sorted(other for other, content in tree_bytes(cache).items() if content != (whole / name).read_bytes())
    other = cache / generator.choice([other for other in others if component(other) == component(name)] or others)
    if path.is_file() and not other.is_symlink():
        aside = cache.with_name(f"{cache.name}-aside")
        path.rename(aside)
        other.rename(path)
        aside.rename(other)
    return damage


def spoil(path: Path, damage: str, *, original: Path, place: float = 0.5) -> None:
    """Damage a file at `place`, a fraction of its length, or replace it by a link to the original or a folder."""
    content = original.read_bytes()
    if damage == "flip":
        path.write_bytes(flipped(content, place))
    elif damage == "zero":
        path.write_bytes(bytes(len(content) // 2) + content[len(content) // 2 :])  # The footer of a shard is kept.
    elif damage == "truncate":
        path.write_bytes(content[: int(place * (len(content) - 1))])
    elif damage == "append":
        path.write_bytes(content + b"\0")
    else:
        path.unlink()
        if damage == "link":
            path.symlink_to(original)
        elif damage == "folder":
            path.mkdir()


def differing(reference: dict[str, bytes], root: Path) -> list[str]:
    """Return the files in which a tree differs from a reference; links count as other files."""
    links = {str(path.relative_to(root)): None for path in root.rglob("*") if path.is_symlink()}
    return unlike(reference, {**tree_bytes(root), **links})
