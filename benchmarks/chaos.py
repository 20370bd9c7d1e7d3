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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SUPPORT = Path(__file__).resolve().parent.parent / "tests" / "support"


@dataclass(frozen=True, kw_only=True)
class Count:
    """How many tries of one kind ended as they must."""

    what: str
    good: int
    tries: int

    def line(self) -> str:
        return f"{self.good} of {self.tries} {self.what}"


def main() -> None:
    """Try, compare, count; exit code 1 when anything ended otherwise than it must."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="Extractions to kill.")
    parser.add_argument("--damages", type=int, default=200, help="Caches to damage.")
    parser.add_argument("--records", type=int, default=20, help="Caches that get records of another one.")
    parser.add_argument("--outputs", type=int, default=100, help="Outputs to aim at files of others.")
    parser.add_argument("--finetunes", type=int, default=20, help="Finetunes to kill.")
    parser.add_argument("--stops", type=int, default=20, help="Finetunes to stop by SIGTERM.")
    parser.add_argument("--pairs", type=int, default=8, help="Finetunes to begin twice at once.")
    parser.add_argument("--seed", type=int, default=0, help="Chooses moments, files and damages.")
    options = parser.parse_args()
    sys.path.insert(0, str(_SUPPORT))
    chaos = importlib.import_module("chaos")
    first = options.seed * 100_003
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        # A further kind of chaos is a function that returns a `Count`, and a line here.
        counts = [
            count_kills(chaos, folder / "kills", range(first, first + options.kills)),
            count_damages(chaos, folder / "damages", range(first, first + options.damages)),
            count_foreign_records(chaos, folder / "records", range(first, first + options.records)),
            count_aimed_outputs(chaos, folder / "outputs", range(first, first + options.outputs)),
            *count_finetunes(
                folder / "finetunes",
                kills=range(first, first + options.finetunes),
                stops=range(first, first + options.stops),
                pairs=range(first, first + options.pairs),
            ),
        ]
    print("\n".join(count.line() for count in counts))
    sys.exit(0 if all(count.good == count.tries for count in counts) else 1)


def count_kills(chaos: Any, folder: Path, seeds: range) -> Count:
    """Kill an extraction at a random moment and give the same command again."""
    reference, span = chaos.reference_run(folder)
    print(f"an uninterrupted run writes {len(reference)} files in {span:.2f} s")

    def kill(seed: int) -> str:
        moment, committed = chaos.kill_and_resume(folder, reference, span, name=f"kill-{seed}", seed=seed)
        return f"after {moment:.3f} s with {committed:>2} shards committed: identical"

    return _count("killed extractions resumed to identical bytes", "kill", kill, seeds)


def count_damages(chaos: Any, folder: Path, seeds: range) -> Count:
    """Damage any file of a cache, or any two, and follow the advice of `advl cache verify`."""
    jobs = [
        (name, chaos.cache_to_damage(folder / str(number), options))
        for number, (name, options) in enumerate(chaos.CACHES.items())
    ]

    def damage(seed: int) -> str:
        name, job = jobs[seed % len(jobs)]
        damages, commands = chaos.damage_and_mend(job, f"damaged-{seed}", seed=seed)
        return f"{name}; {', '.join(damages)}; {len(commands)} command(s): identical"

    what = "damaged caches were mended to identical bytes by the commands that were advised"
    return _count(what, "damage", damage, seeds)


def count_foreign_records(chaos: Any, folder: Path, seeds: range) -> Count:
    """Put records of another dataset's cache into a cache, and repair it."""
    jobs = [
        chaos.cache_to_damage(folder / str(seed), {"modality": "text"}, dataset_seed=seed)
        for seed in ((0, 1) if seeds else ())
    ]

    def mix(seed: int) -> str:
        return f"{chaos.refuse_foreign_records(*jobs, f'mixed-{seed}', seed=seed)} records: refused"

    return _count("repairs with records of another cache were refused, and nothing changed", "records", mix, seeds)


def count_aimed_outputs(chaos: Any, folder: Path, seeds: range) -> Count:
    """Aim any output of any command at a file that is not its own, or at a new one in a folder of another kind."""
    what = "outputs aimed at files of others were refused, and nothing changed"
    if not seeds:
        return Count(what=what, good=0, tries=0)
    aimed = importlib.import_module("aimed_outputs")
    cache = chaos.cache_to_damage(folder / "made", {"modality": "both"}).output
    things = aimed.make_things(folder / "things", cache=cache)
    return _count(what, "output", lambda seed: f"{aimed.aim(things, seed=seed)}: refused", seeds)


def count_finetunes(folder: Path, *, kills: range, stops: range, pairs: range) -> list[Count]:
    """Kill or stop a finetune at a random moment and give the same command again; or begin it twice at once."""
    if not (kills or stops or pairs):
        return []
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

    return [
        _count("killed finetunes resumed to the same weights", "finetune", kill, kills),
        _count("finetunes stopped by SIGTERM ended with 130 and resumed to the same weights", "stop", stop, stops),
        _count("finetunes begun twice at once trained once, to the same weights", "pair", begin_twice, pairs),
    ]


def _count(what: str, label: str, attempt: Callable[[int], str], seeds: range) -> Count:
    good = 0
    for number, seed in enumerate(seeds, start=1):
        try:
            outcome = attempt(seed)
        except AssertionError as error:
            outcome = str(error)
        else:
            good += 1
        print(f"{label} {number:>3}: {outcome}", flush=True)
    return Count(what=what, good=good, tries=len(seeds))


if __name__ == "__main__":
    main()
