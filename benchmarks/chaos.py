"""`make chaos`: byte-exact recovery of the next command after kills, stops, damage and duplicate starts.

python -m benchmarks.chaos [--kills N] [--damages N] [--records N] [--finetunes N] [--stops N]
    [--pairs N] [--threads N] [--flips N] [--runs N] [--scores N] [--changes N] [--replacements N] [--pulls N]
    [--seed S]
"""

from __future__ import annotations

import argparse
import functools
import importlib
import itertools
import random
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.made_up import SUPPORT

Attempt = Callable[[int], str]
"""One attempt, given a seed; returns its outcome and raises `AssertionError` if the outcome is not allowed."""


def main() -> None:
    """Run the attempts and count outcomes; exit code 1 if any is not allowed."""
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
    """Kill an extraction at a random moment and run the same command again."""
    make_job = importlib.import_module("chaos").make_job
    reference, span = make_job(folder / "kills", "reference").run_alone()
    print(f"an uninterrupted run writes {len(reference)} files in {span:.2f} s")
    return lambda seed: make_job(folder / "kills", f"kill-{seed}").kill_and_resume(reference, span, seed=seed)


def damages(folder: Path) -> Attempt:
    """Damage one or two random files of a cache, and follow the advice of `advl cache verify`."""
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
    """Copy records of another dataset's cache into a cache, and repair it."""
    chaos = importlib.import_module("chaos")
    text = {"modality": "text"}
    jobs = [chaos.cache_to_damage(folder / f"records-{seed}", text, dataset_seed=seed) for seed in (0, 1)]
    return lambda seed: f"{chaos.refuse_foreign_records(*jobs, f'mixed-{seed}', seed=seed)} records: refused"


@functools.cache
def _finetune(folder: Path) -> tuple[Any, Any, Any, float]:
    """Return the class of interrupted finetunes, a corpus, and the output and seconds of an uninterrupted one."""
    finetuning = importlib.import_module("chaos_finetune").Finetuning
    corpus = importlib.import_module("small_corpus").build_small_corpus(folder / "corpus")
    reference, span = finetuning(corpus, folder / "reference").run_alone()
    print(f"an uninterrupted finetune trains and writes for {span:.2f} s")
    return finetuning, corpus, reference, span


def finetunes(folder: Path) -> Attempt:
    """Kill a finetune at a random moment and run the same command again."""
    finetuning, corpus, reference, span = _finetune(folder)
    return lambda seed: finetuning(corpus, folder / f"killed-{seed}").kill_and_resume(reference, span, seed=seed)


def stops(folder: Path) -> Attempt:
    """Stop a finetune with SIGTERM at a random moment and run the same command again."""
    finetuning, corpus, reference, span = _finetune(folder)

    def stop(seed: int) -> str:
        moment = random.Random(seed).uniform(0, span)
        # Its only checkpoint before the end is the one triggered by the signal.
        job = finetuning(corpus, folder / f"stop-{seed}", checkpoint_every=1000)
        logged = job.stop_and_resume(reference, moment, signal.SIGTERM)
        return f"after {moment:.3f} s with {logged:>2} steps finished: identical"

    return stop


def pairs(folder: Path) -> Attempt:
    """Start the same finetune twice at once."""
    finetuning, corpus, reference, span = _finetune(folder)

    def begin_twice(seed: int) -> str:
        offset = random.Random(seed).uniform(0, span)
        codes = finetuning(corpus, folder / f"pair-{seed}").begin_twice(reference, offset)
        return f"{offset:.3f} s apart: exit codes {codes[0]} and {codes[1]}, identical"

    return begin_twice


def threads(folder: Path) -> Attempt:
    """Train in two threads of one process while other threads extract and evaluate."""
    _, corpus, *_ = _finetune(folder)
    train_in_threads = importlib.import_module("chaos_finetune").train_in_threads

    def train(seed: int) -> str:
        offset = random.Random(seed).uniform(0, 3)
        output = folder / f"threads-{seed}"
        built = train_in_threads(corpus, folder / "alone", output, offset=offset, num_steps=28)
        return f"{offset:.3f} s apart, {built} evaluations and extractions meanwhile: identical"

    return train


def flips(folder: Path) -> Attempt:
    """Flip a random bit in the indices of two sets, and read both."""
    return importlib.import_module("chaos_data").FlippedIndices(_made(folder / "flips")).flip  # type: ignore[no-any-return]


def changes(folder: Path) -> Attempt:
    """Overwrite a file of rows while it is being read."""
    return importlib.import_module("chaos_data").ChangingData(_made(folder / "changes")).change  # type: ignore[no-any-return]


def replacements(folder: Path) -> Attempt:
    """Replace pictures while they are encoded."""
    chaos_data = importlib.import_module("chaos_data")
    return chaos_data.ReplacedPictures(_made(folder / "replacements")).replace  # type: ignore[no-any-return]


def pulls(folder: Path) -> Attempt:
    """Pull a cache into one folder by two processes at once."""
    return importlib.import_module("chaos_data").DoublePulls(_made(folder / "pulls")).pull  # type: ignore[no-any-return]


def runs(folder: Path) -> Attempt:
    """Exchange what two runs of a study hold, and follow the advice of `advl report`."""
    _, corpus, *_ = _finetune(folder)
    study = importlib.import_module("chaos_scores").StudyOfTwoRuns(corpus, folder / "study")
    study.run_alone()
    return study.exchange  # type: ignore[no-any-return]


def scores(folder: Path) -> Attempt:
    """Kill an evaluation that replaces another one, at one call after another."""
    _, corpus, *_ = _finetune(folder)
    kill_evaluation = importlib.import_module("chaos_scores").kill_evaluation
    run = folder / "scored"
    corpus.run(run, method="plain", cache=(), num_steps=1)
    numbers = itertools.count(1)
    return lambda seed: kill_evaluation(corpus, run, call=next(numbers))


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


KINDS: dict[str, tuple[int, str, Callable[[Path], Attempt]]] = {
    "kills": (50, "killed extractions resumed to identical bytes", kills),
    "damages": (200, "damaged caches were mended to identical bytes by the commands that were advised", damages),
    "records": (20, "repairs with records of another cache were refused, and nothing changed", records),
    "finetunes": (20, "killed finetunes resumed to the same weights", finetunes),
    "stops": (20, "finetunes stopped by SIGTERM ended with 130 and resumed to the same weights", stops),
    "pairs": (8, "finetunes begun twice at once trained once, to the same weights", pairs),
    "threads": (5, "pairs of finetunes in threads of one process ended with the weights of processes", threads),
    "flips": (24, "bits flipped in an index were found, or changed nothing that is read", flips),
    "replacements": (
        10,
        "pictures replaced while they were encoded were refused, or stored as what they are",
        replacements,
    ),
    "pulls": (10, "caches pulled into one folder twice at once came once, and whole", pulls),
    "runs": (10, "exchanges between runs of a study were refused, and mended by the commands advised", runs),
    "scores": (9, "evaluations killed over another left one of both whole", scores),
    "changes": (10, "files overwritten while they were read gave one of their two states, or were refused", changes),
}
"""Kind of attempt -> its number, the required outcome, and its preparation."""


if __name__ == "__main__":
    main()
