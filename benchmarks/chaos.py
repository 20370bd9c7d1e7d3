"""`make chaos`: what the next command makes of what was killed, stopped, damaged or begun twice, to the byte.

python -m benchmarks.chaos [--kills N] [--damages N] [--records N] [--outputs N] [--finetunes N] [--stops N]
    [--pairs N] [--threads N] [--flips N] [--changes N] [--sets N] [--seed S]
"""

from __future__ import annotations

import argparse
import functools
import importlib
import random
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.made_up import SUPPORT

Attempt = Callable[[int], str]
"""One try, given a seed; returns how it ended, and raises `AssertionError` where it must not end so."""


def main() -> None:
    """Try, compare, count; exit code 1 when anything ended otherwise than it must."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    for name, (default, what, _) in KINDS.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"How often to see whether {what}.")
    parser.add_argument("--seed", type=int, default=0, help="Chooses moments, files and damages.")
    options = parser.parse_args()
    sys.path.insert(0, str(SUPPORT))
    first = options.seed * 100_003
    lines, is_good = [], True
    with tempfile.TemporaryDirectory() as temporary:
        for name, (_, what, prepare) in KINDS.items():
            if not (tries := getattr(options, name)):
                continue
            attempt, good = prepare(Path(temporary)), 0
            for seed in range(first, first + tries):
                try:
                    outcome = attempt(seed)
                    good += 1
                except AssertionError as error:
                    outcome = str(error)
                print(f"{name} {seed:>3}: {outcome}", flush=True)
            lines.append(f"{good} of {tries} {what}")
            is_good = is_good and good == tries
    print("\n".join(lines))
    sys.exit(0 if is_good else 1)


def kills(folder: Path) -> Attempt:
    """Kill an extraction at a random moment and give the same command again."""
    chaos = importlib.import_module("chaos")
    reference, span = chaos.reference_run(folder / "kills")
    print(f"an uninterrupted run writes {len(reference)} files in {span:.2f} s")

    def kill(seed: int) -> str:
        moment, committed = chaos.kill_and_resume(folder / "kills", reference, span, name=f"kill-{seed}", seed=seed)
        return f"after {moment:.3f} s with {committed:>2} shards committed: identical"

    return kill


def damages(folder: Path) -> Attempt:
    """Damage any file of a cache, or any two, and follow the advice of `advl cache verify`."""
    chaos = importlib.import_module("chaos")
    jobs = [
        (name, chaos.cache_to_damage(folder / f"damages-{number}", options))
        for number, (name, options) in enumerate(chaos.CACHES.items())
    ]

    def damage(seed: int) -> str:
        name, job = jobs[seed % len(jobs)]
        done, commands = chaos.damage_and_mend(job, f"damaged-{seed}", seed=seed)
        return f"{name}; {', '.join(done)}; {len(commands)} command(s): identical"

    return damage


def records(folder: Path) -> Attempt:
    """Put records of another dataset's cache into a cache, and repair it."""
    chaos = importlib.import_module("chaos")
    text = {"modality": "text"}
    jobs = [chaos.cache_to_damage(folder / f"records-{seed}", text, dataset_seed=seed) for seed in (0, 1)]
    return lambda seed: f"{chaos.refuse_foreign_records(*jobs, f'mixed-{seed}', seed=seed)} records: refused"


def outputs(folder: Path) -> Attempt:
    """Aim any output of any command at a file that is not its own, or at a new one in a folder of another kind."""
    chaos, aimed = importlib.import_module("chaos"), importlib.import_module("aimed_outputs")
    cache = chaos.cache_to_damage(folder / "made", {"modality": "both"}).output
    things = aimed.make_things(folder / "things", cache=cache)
    return lambda seed: f"{aimed.aim(things, seed=seed)}: refused"


@functools.cache
def _finetune(folder: Path) -> tuple[Any, Any, Any, float]:
    """Return the module that stops finetunes, a corpus, and an uninterrupted finetune with its seconds."""
    chaos = importlib.import_module("chaos_finetune")
    corpus = importlib.import_module("small_corpus").build_small_corpus(folder / "corpus")
    reference, span = chaos.reference_finetune(corpus, folder / "reference")
    print(f"an uninterrupted finetune trains and writes for {span:.2f} s")
    return chaos, corpus, reference, span


def finetunes(folder: Path) -> Attempt:
    """Kill a finetune at a random moment and give the same command again."""
    chaos, corpus, reference, span = _finetune(folder)

    def kill(seed: int) -> str:
        output = folder / f"finetune-kill-{seed}"
        moment, logged = chaos.kill_and_resume_finetune(corpus, reference, span, output, seed=seed)
        return f"after {moment:.3f} s with {logged:>2} steps logged: identical"

    return kill


def stops(folder: Path) -> Attempt:
    """Stop a finetune by SIGTERM at a random moment and give the same command again."""
    chaos, corpus, reference, span = _finetune(folder)

    def stop(seed: int) -> str:
        moment, output = random.Random(seed).uniform(0, span), folder / f"stop-{seed}"
        logged = chaos.stop_and_resume_finetune(corpus, reference, moment, output, number=signal.SIGTERM)
        return f"after {moment:.3f} s with {logged:>2} steps finished: identical"

    return stop


def pairs(folder: Path) -> Attempt:
    """Begin a finetune twice at once."""
    chaos, corpus, reference, span = _finetune(folder)

    def begin_twice(seed: int) -> str:
        offset = random.Random(seed).uniform(0, span)
        codes = chaos.run_twice_at_once(corpus, reference, offset, folder / f"pair-{seed}")
        return f"{offset:.3f} s apart: exit codes {codes[0]} and {codes[1]}, identical"

    return begin_twice


def threads(folder: Path) -> Attempt:
    """Train twice in threads of one process, which extracts and evaluates in others meanwhile."""
    chaos, corpus, *_ = _finetune(folder)

    def train(seed: int) -> str:
        offset = random.Random(seed).uniform(0, 3)
        output = folder / f"threads-{seed}"
        built = chaos.train_in_threads(corpus, folder / "alone", output, offset=offset, num_steps=28)
        return f"{offset:.3f} s apart, {built} evaluations and extractions meanwhile: identical"

    return train


def flips(folder: Path) -> Attempt:
    """Flip a bit of anything in the indices of two sets, and read both."""
    return importlib.import_module("chaos_data").FlippedIndices(_made(folder / "flips")).flip  # type: ignore[no-any-return]


def changes(folder: Path) -> Attempt:
    """Overwrite a file of rows while it is read."""
    return importlib.import_module("chaos_data").ChangingData(_made(folder / "changes")).change  # type: ignore[no-any-return]


def sets(folder: Path) -> Attempt:
    """Look at a set in the layout of the hub that was made to do harm."""
    return importlib.import_module("chaos_data").HostileSets(_made(folder / "sets")).open  # type: ignore[no-any-return]


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


KINDS: dict[str, tuple[int, str, Callable[[Path], Attempt]]] = {
    "kills": (50, "killed extractions resumed to identical bytes", kills),
    "damages": (200, "damaged caches were mended to identical bytes by the commands that were advised", damages),
    "records": (20, "repairs with records of another cache were refused, and nothing changed", records),
    "outputs": (100, "outputs aimed at files of others were refused, and nothing changed", outputs),
    "finetunes": (20, "killed finetunes resumed to the same weights", finetunes),
    "stops": (20, "finetunes stopped by SIGTERM ended with 130 and resumed to the same weights", stops),
    "pairs": (8, "finetunes begun twice at once trained once, to the same weights", pairs),
    "threads": (5, "pairs of finetunes in threads of one process ended with the weights of processes", threads),
    "flips": (24, "bits flipped in an index were found, or changed nothing that is read", flips),
    "changes": (10, "files overwritten while they were read gave one of their two states, or were refused", changes),
    "sets": (44, "hostile sets were refused: nothing else was read, fetched, started or kept", sets),
}
"""What is tried: how often, how it must end, and what prepares it."""


if __name__ == "__main__":
    main()
