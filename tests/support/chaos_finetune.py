"""Kill, stop and double real finetunes at random moments, and compare what comes of it with an uninterrupted run."""

from __future__ import annotations

import random
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from real_processes import Running, start, start_advl
from run_logs import losses
from small_corpus import SMALL_WORDS, SmallCorpus
from tiny_extraction import tree_bytes

ADAPT_STEPS, FINETUNE_STEPS = 6, 14
NUM_STEPS = ADAPT_STEPS + FINETUNE_STEPS


def finetune_command(corpus: SmallCorpus, output: Path, *, checkpoint_every: int = 2) -> list[str]:
    """Return a finetune of both steps by `advl`, by default with a checkpoint every other step."""
    caches = [part for cache in corpus.caches for part in ("--cache", str(cache))]
    return [
        *("finetune", "--dataset", "scenes-vcr", "--task", "vcr-q2a"),
        *("--data-root", str(corpus.data_root), "--output", str(output), "--num-steps", str(FINETUNE_STEPS)),
        *("--adapt-steps", str(ADAPT_STEPS), "--batch-size", "4", "--confidence-folds", "2"),
        *("--student-option", *SMALL_WORDS),
        *("--checkpoint-every", str(checkpoint_every)),
        *caches,
    ]


def trained(run: Path) -> dict[str, Any]:
    """Return all that a finished run computed: the bytes of its weights, and its log without the clock."""
    weights = {name: (run / name).read_bytes() for name in ("model.safetensors", "heads.safetensors")}
    return {**weights, "log": losses(run), "files": sorted(tree_bytes(run))}


def reference_finetune(corpus: SmallCorpus, output: Path) -> tuple[dict[str, Any], float]:
    """Finetune without interruption; returns what was computed and for how many seconds it wrote."""
    process = start_advl(*finetune_command(corpus, output))
    process.wait_for(output / "run.json")
    begin = time.perf_counter()
    _finished(process)
    return trained(output), time.perf_counter() - begin


def kill_and_resume_finetune(
    corpus: SmallCorpus, reference: dict[str, Any], span: float, output: Path, *, seed: int
) -> tuple[float, int]:
    """Kill one finetune once at a random moment of its writing, resume it, and compare.

    Args:
        corpus: what it trains on.
        reference: what an uninterrupted run computed.
        span: seconds that an uninterrupted run writes for.
        output: a new run folder.
        seed: chooses the moment.

    Returns:
        The moment of the kill in seconds after the first write, and how many steps were logged by then.

    Raises:
        AssertionError: the resumed run differs, or litter remains.
    """
    command = finetune_command(corpus, output)
    moment = random.Random(seed).uniform(0, span)
    process = start_advl(*command)
    process.wait_for(output / "run.json")
    time.sleep(moment)
    process.send(signal.SIGKILL)
    process.wait()
    log = output / "metrics.jsonl"
    num_logged = len(log.read_bytes().splitlines()) if log.exists() else 0
    _finished(start_advl(*command))
    require_equal(reference, output, f"killed after {moment:.3f} s with {num_logged} steps logged")
    return moment, num_logged


def require_equal(reference: dict[str, Any], output: Path, what: str) -> None:
    """Compare a finished run with an uninterrupted one; raises `AssertionError`."""
    outcome = trained(output)
    different = [name for name, value in reference.items() if outcome[name] != value]
    if different:
        files = sorted(set(outcome["files"]) ^ set(reference["files"]))
        raise AssertionError(f"{what}: {different} differ; files on one side only: {files}")


def stop_and_resume_finetune(
    corpus: SmallCorpus, reference: dict[str, Any], moment: float, output: Path, *, number: signal.Signals
) -> int:
    """Stop one finetune by a signal, `moment` seconds after its first write, resume it, and compare.

    It has no checkpoint before its end but the one that the signal makes it write.

    Returns:
        How many steps it had finished, which is where it resumes.

    Raises:
        AssertionError: it ends otherwise than by 130, or the resumed run differs.
    """
    command = finetune_command(corpus, output, checkpoint_every=1000)
    process = start_advl(*command)
    process.wait_for(output / "run.json")
    time.sleep(moment)
    process.send(number)
    code, messages = process.wait(), process.messages()
    what = f"stopped after {moment:.3f} s"
    if code == 0 and (output / "result.json").exists():
        num_logged = NUM_STEPS
    elif code != 130 or "the same command again" not in messages or "Traceback" in messages:
        raise AssertionError(f"{what}: exit code {code}: {messages[-2000:]}")
    else:
        log = output / "metrics.jsonl"
        num_logged = len(log.read_bytes().splitlines()) if log.exists() else 0
    resumed_messages = _finished(start_advl(*command))
    if 0 < num_logged < NUM_STEPS and f"resumes at step {num_logged + 1} " not in resumed_messages:
        raise AssertionError(
            f"{what} with {num_logged} steps logged, and resumed elsewhere: {resumed_messages[-2000:]}"
        )
    require_equal(reference, output, f"{what} with {num_logged} steps logged")
    return num_logged


def run_twice_at_once(corpus: SmallCorpus, reference: dict[str, Any], offset: float, output: Path) -> tuple[int, int]:
    """Give the same command twice, the second `offset` seconds after the first, and compare with one alone.

    Returns:
        The exit codes: 0 of the one that trained; 7 of one that came while it did, 0 of one that came after.

    Raises:
        AssertionError: both trained, neither did, or what they left differs.
    """
    command = finetune_command(corpus, output)
    first = start_advl(*command)
    time.sleep(offset)
    second = start_advl(*command)
    codes = (first.wait(), second.wait())
    if codes not in ((0, 0), (0, 7), (7, 0)):
        raise AssertionError(f"exit codes {codes}: {[process.messages()[-1000:] for process in (first, second)]}")
    if 7 in codes:
        refused, other = (first, second) if codes[0] else (second, first)
        if f"process {other.pid} on" not in refused.messages():
            raise AssertionError(f"the second one does not say which is the first: {refused.messages()[-1000:]}")
    require_equal(reference, output, f"two writers, {offset:.3f} s apart")
    return codes


def train_in_threads(corpus: SmallCorpus, alone: Path, output: Path, *, offset: float, num_steps: int) -> int:
    """Train two runs in threads of one process, the second `offset` seconds later, and work on in two more meanwhile.

    Those extract a random teacher and evaluate a finished run, which both build networks, again and again.

    Args:
        alone: made where it is missing: what each piece of work gives in a process where nothing else is done.

    Returns:
        How often a network was built meanwhile.

    Raises:
        AssertionError: something is not what it is alone, or the second training did not say that it waits.
    """
    if not alone.exists():
        _finished(start(_work_alone, corpus, alone, num_steps))
    process = start(_work_in_threads, corpus, alone, output, offset, num_steps)
    messages = _finished(process)
    for seed in (0, 1):
        require_equal(trained(alone / f"seed-{seed}"), output / f"seed-{seed}", f"seed {seed} in a thread")
    assert messages.count("another thread of this process trains") == 1, messages[-2000:]
    return int(process.printed().split()[-1])


def _work_in_threads(corpus: SmallCorpus, alone: Path, output: Path, offset: float, num_steps: int) -> None:
    cache, scores, num_built = tree_bytes(alone / "cache"), _scores(alone), 0
    with ThreadPoolExecutor(3) as threads:
        first = threads.submit(_train, corpus, output, 0, num_steps)
        time.sleep(offset)
        second = threads.submit(_train, corpus, output, 1, num_steps)
        while not (first.done() and second.done()):
            extraction = threads.submit(_extract, corpus, output, f"cache-{num_built}")
            _evaluate(corpus, alone)
            assert _scores(alone) == scores, "the scores of an evaluation"
            extraction.result()
            assert tree_bytes(output / f"cache-{num_built}") == cache, "the cache of a random teacher"
            num_built += 1
        first.result()
        second.result()
    print(num_built)


def _work_alone(corpus: SmallCorpus, folder: Path, num_steps: int) -> None:
    for seed in (0, 1):
        _train(corpus, folder, seed, num_steps)
    _extract(corpus, folder, "cache")
    shutil.copytree(folder / "seed-0", folder / "evaluated")
    _evaluate(corpus, folder)


def _train(corpus: SmallCorpus, folder: Path, seed: int, num_steps: int) -> None:
    corpus.run(folder / f"seed-{seed}", seed=seed, num_steps=num_steps, adapt_steps=num_steps // 2)


def _extract(corpus: SmallCorpus, folder: Path, name: str) -> None:
    corpus.extract(folder / name, teacher="random:minilm-l6", confidence=False, shots=2)


def _evaluate(corpus: SmallCorpus, folder: Path) -> None:
    corpus.evaluate(folder / "evaluated", on=("val",), probe=("none",), num_questions=2)


def _scores(folder: Path) -> bytes:
    return (folder / "evaluated" / "evaluation" / "val.npz").read_bytes()


def _finished(process: Running) -> str:
    if code := process.wait():
        raise AssertionError(f"exit code {code}: {process.messages()[-2000:]}")
    return process.messages()
