"""Kill, stop and duplicate real finetunes at random moments, and compare them with an uninterrupted run."""

from __future__ import annotations

import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos import Job
from real_processes import Running, start, start_advl
from run_logs import items_file, losses
from small_corpus import SmallCorpus
from tiny_extraction import tree_bytes

ADAPT_STEPS, FINETUNE_STEPS = 6, 14
NUM_STEPS = ADAPT_STEPS + FINETUNE_STEPS


@dataclass(frozen=True)
class Finetuning(Job):
    """A finetune with both steps by `advl`, by default with a checkpoint every other step."""

    corpus: SmallCorpus
    output: Path
    checkpoint_every: int = 2
    first = "run.json"

    @property
    def words(self) -> list[str]:
        """Return the words that a user types after `advl`."""
        steps = {"num_steps": FINETUNE_STEPS, "adapt_steps": ADAPT_STEPS}
        return self.corpus.command(self.output, checkpoint_every=self.checkpoint_every, **steps)

    def start(self) -> Running:
        return start_advl(*self.words)

    def left(self) -> dict[str, Any]:
        return trained(self.output)

    def progress(self) -> int:
        log = self.output / "metrics.jsonl"
        return len(log.read_bytes().splitlines()) if log.exists() else 0

    def stop_and_resume(self, reference: dict[str, Any], moment: float, number: signal.Signals) -> int:
        """Stop the run by a signal, `moment` seconds after its first write, resume it, and compare.

        Returns:
            The number of finished steps, at which it resumes.

        Raises:
            AssertionError: the exit code is not 130, the error does not give the command that resumes, or the resumed
                run differs.
        """
        stopped = self.stop(number, moment)
        code, messages, done = stopped.wait(), stopped.messages(), self.progress()
        what = f"stopped after {moment:.3f} s with {done} steps logged"
        is_finished = code == 0 and (self.output / "result.json").exists()
        if not is_finished and (code != 130 or "  advl finetune --" not in messages or "Traceback" in messages):
            raise AssertionError(f"{what}: exit code {code}: {messages[-2000:]}")
        messages = self.start().finish()
        if 0 < done < NUM_STEPS and f"resumes at step {done + 1} " not in messages:
            raise AssertionError(f"{what}, and resumed elsewhere: {messages[-2000:]}")
        self.require_equal(reference, what)
        return done

    def begin_twice(self, reference: dict[str, Any], offset: float) -> tuple[int | None, int | None]:
        """Run the same command twice, the second `offset` seconds after the first, and compare with a single run.

        Returns:
            The exit codes: 0 of the trained run; of the other, 7 if it started during training and 0 if after.

        Raises:
            AssertionError: both trained, neither did, or the output differs.
        """
        first = self.start()
        time.sleep(offset)
        second = self.start()
        codes = (first.wait(), second.wait())
        if codes not in ((0, 0), (0, 7), (7, 0)):
            raise AssertionError(f"exit codes {codes}: {first.messages()[-1000:]}{second.messages()[-1000:]}")
        if 7 in codes:
            refused, other = (first, second) if codes[0] else (second, first)
            if f"process {other.pid} on" not in refused.messages():
                raise AssertionError(f"it does not say which process trains: {refused.messages()[-1000:]}")
        self.require_equal(reference, f"two writers, {offset:.3f} s apart")
        return codes


def trained(run: Path) -> dict[str, Any]:
    """Return the results of a finished run: the bytes of its weights, and its log without times."""
    weights = {name: (run / name).read_bytes() for name in ("model.safetensors", "heads.safetensors")}
    return {**dict.fromkeys(tree_bytes(run), "a file"), **weights, "log": losses(run)}


def train_in_threads(corpus: SmallCorpus, alone: Path, output: Path, *, offset: float, num_steps: int) -> int:
    """Train two runs in threads of one process, the second `offset` seconds later, with two more threads working.

    These repeatedly extract a random teacher and evaluate a finished run; both build networks.

    Args:
        alone: folder with the results of each task in a process of its own; created if missing.

    Returns:
        The number of networks built during the trainings.

    Raises:
        AssertionError: a result differs from `alone`, or the second training did not report that it waits.
    """
    if not alone.exists():
        start(_work_alone, corpus, alone, num_steps).finish()
    process = start(_work_in_threads, corpus, alone, output, offset, num_steps)
    messages = process.finish()
    for seed in ("seed-0", "seed-1"):
        assert trained(alone / seed) == trained(output / seed), f"{seed} in a thread"
    assert messages.count("another thread of this process trains") == 1, messages[-2000:]
    return int(process.printed().split()[-1])


def _work_in_threads(corpus: SmallCorpus, alone: Path, output: Path, offset: float, num_steps: int) -> None:
    cache, scores, num_built = tree_bytes(alone / "cache"), _evaluated(corpus, alone), 0
    with ThreadPoolExecutor(3) as threads:
        first = threads.submit(_train, corpus, output, 0, num_steps)
        time.sleep(offset)
        second = threads.submit(_train, corpus, output, 1, num_steps)
        while not (first.done() and second.done()):
            extraction = threads.submit(_extract, corpus, output / f"cache-{num_built}")
            assert _evaluated(corpus, alone) == scores, "the scores of an evaluation"
            assert tree_bytes(extraction.result()) == cache, "the cache of a random teacher"
            num_built += 1
        first.result()
        second.result()
    print(num_built)


def _work_alone(corpus: SmallCorpus, folder: Path, num_steps: int) -> None:
    for seed in (0, 1):
        _train(corpus, folder, seed, num_steps)
    _extract(corpus, folder / "cache")
    shutil.copytree(folder / "seed-0", folder / "evaluated")


def _train(corpus: SmallCorpus, folder: Path, seed: int, num_steps: int) -> None:
    corpus.run(folder / f"seed-{seed}", seed=seed, num_steps=num_steps, adapt_steps=num_steps // 2)


def _extract(corpus: SmallCorpus, cache: Path) -> Path:
    return corpus.extract(cache, teacher="random:timm:test_efficientnet", confidence="none", shots=2)


def _evaluated(corpus: SmallCorpus, folder: Path) -> bytes:
    corpus.evaluate(folder / "evaluated", on=("val",), probe=("none",), num_questions=2)
    return items_file(folder / "evaluated", "val").read_bytes()
