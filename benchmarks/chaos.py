"""`make chaos`: what the next command makes of what was killed, stopped, damaged or begun twice, to the byte.

python -m benchmarks.chaos [--kills N] [--damages N] [--records N] [--outputs N] [--finetunes N] [--stops N]
    [--pairs N] [--seed S]
"""

from __future__ import annotations

import argparse
import importlib
import random
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.official_sizes import SUPPORT

KINDS = {
    "kills": (50, "Extractions to kill."),
    "damages": (200, "Caches to damage."),
    "records": (20, "Caches that get records of another one."),
    "outputs": (100, "Outputs to aim at files of others."),
    "finetunes": (20, "Finetunes to kill."),
    "stops": (20, "Finetunes to stop by SIGTERM."),
    "pairs": (8, "Finetunes to begin twice at once."),
}
"""What is tried: how often, and what it is."""

Attempt = Callable[[int], str]
"""One try, given a seed; returns how it ended, and raises `AssertionError` where it must not end so."""


def main() -> None:
    """Try, compare, count; exit code 1 when anything ended otherwise than it must."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    for name, (default, told) in KINDS.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=told)
    parser.add_argument("--seed", type=int, default=0, help="Chooses moments, files and damages.")
    options = parser.parse_args()
    sys.path.insert(0, str(SUPPORT))
    first = options.seed * 100_003
    lines, is_good = [], True
    with tempfile.TemporaryDirectory() as temporary:
        made: dict[str, tuple[str, Attempt]] = {}
        for name in KINDS:
            if tries := getattr(options, name):
                if name not in made:
                    made |= _attempts(name, Path(temporary))
                what, attempt = made[name]
                good = sum(_try(name, attempt, seed) for seed in range(first, first + tries))
                lines.append(f"{good} of {tries} {what}")
                is_good = is_good and good == tries
    print("\n".join(lines))
    sys.exit(0 if is_good else 1)


def _try(name: str, attempt: Attempt, seed: int) -> bool:
    try:
        outcome, good = attempt(seed), True
    except AssertionError as error:
        outcome, good = str(error), False
    print(f"{name} {seed:>3}: {outcome}", flush=True)
    return good


def _attempts(name: str, folder: Path) -> dict[str, tuple[str, Attempt]]:
    """Prepare what a kind of chaos needs; those of finetunes share theirs."""
    if name in ("finetunes", "stops", "pairs"):
        return _of_finetunes(folder / "finetunes")
    chaos = importlib.import_module("chaos")
    return {
        name: {"kills": _kills, "damages": _damages, "records": _records, "outputs": _outputs}[name](chaos, folder)
    }


def _kills(chaos: Any, folder: Path) -> tuple[str, Attempt]:
    """Kill an extraction at a random moment and give the same command again."""
    reference, span = chaos.reference_run(folder / "kills")
    print(f"an uninterrupted run writes {len(reference)} files in {span:.2f} s")

    def kill(seed: int) -> str:
        moment, committed = chaos.kill_and_resume(folder / "kills", reference, span, name=f"kill-{seed}", seed=seed)
        return f"after {moment:.3f} s with {committed:>2} shards committed: identical"

    return "killed extractions resumed to identical bytes", kill


def _damages(chaos: Any, folder: Path) -> tuple[str, Attempt]:
    """Damage any file of a cache, or any two, and follow the advice of `advl cache verify`."""
    jobs = [
        (name, chaos.cache_to_damage(folder / f"damages-{number}", options))
        for number, (name, options) in enumerate(chaos.CACHES.items())
    ]

    def damage(seed: int) -> str:
        name, job = jobs[seed % len(jobs)]
        damages, commands = chaos.damage_and_mend(job, f"damaged-{seed}", seed=seed)
        return f"{name}; {', '.join(damages)}; {len(commands)} command(s): identical"

    return "damaged caches were mended to identical bytes by the commands that were advised", damage


def _records(chaos: Any, folder: Path) -> tuple[str, Attempt]:
    """Put records of another dataset's cache into a cache, and repair it."""
    text = {"modality": "text"}
    jobs = [chaos.cache_to_damage(folder / f"records-{seed}", text, dataset_seed=seed) for seed in (0, 1)]

    def mix(seed: int) -> str:
        return f"{chaos.refuse_foreign_records(*jobs, f'mixed-{seed}', seed=seed)} records: refused"

    return "repairs with records of another cache were refused, and nothing changed", mix


def _outputs(chaos: Any, folder: Path) -> tuple[str, Attempt]:
    """Aim any output of any command at a file that is not its own, or at a new one in a folder of another kind."""
    aimed = importlib.import_module("aimed_outputs")
    cache = chaos.cache_to_damage(folder / "made", {"modality": "both"}).output
    things = aimed.make_things(folder / "things", cache=cache)
    what = "outputs aimed at files of others were refused, and nothing changed"
    return what, lambda seed: f"{aimed.aim(things, seed=seed)}: refused"


def _of_finetunes(folder: Path) -> dict[str, tuple[str, Attempt]]:
    """Kill or stop a finetune at a random moment and give the same command again; or begin it twice at once."""
    chaos = importlib.import_module("chaos_finetune")
    corpus = importlib.import_module("small_corpus").build_small_corpus(folder / "corpus")
    reference, span = chaos.reference_finetune(corpus, folder / "reference")
    print(f"an uninterrupted finetune trains and writes for {span:.2f} s")

    def kill(seed: int) -> str:
        output = folder / f"kill-{seed}"
        moment, logged = chaos.kill_and_resume_finetune(corpus, reference, span, output, seed=seed)
        return f"after {moment:.3f} s with {logged:>2} steps logged: identical"

    def stop(seed: int) -> str:
        moment = random.Random(seed).uniform(0, span)
        output = folder / f"stop-{seed}"
        logged = chaos.stop_and_resume_finetune(corpus, reference, moment, output, number=signal.SIGTERM)
        return f"after {moment:.3f} s with {logged:>2} steps finished: identical"

    def begin_twice(seed: int) -> str:
        offset = random.Random(seed).uniform(0, span)
        codes = chaos.run_twice_at_once(corpus, reference, offset, folder / f"pair-{seed}")
        return f"{offset:.3f} s apart: exit codes {codes[0]} and {codes[1]}, identical"

    return {
        "finetunes": ("killed finetunes resumed to the same weights", kill),
        "stops": ("finetunes stopped by SIGTERM ended with 130 and resumed to the same weights", stop),
        "pairs": ("finetunes begun twice at once trained once, to the same weights", begin_twice),
    }


if __name__ == "__main__":
    main()
