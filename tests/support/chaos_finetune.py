"""Kill, stop and double real finetunes at random moments, and compare what comes of it with an uninterrupted run."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from typing import Any

from real_processes import Running, start_advl
from run_logs import losses
from small_corpus import SmallCorpus
from tiny_extraction import tree_bytes


def finetune_command(corpus: SmallCorpus, output: Path, *, checkpoint_every: int = 2) -> list[str]:
    """Return a finetune of both steps by `advl`, by default with a checkpoint every other step."""
    caches = [part for cache in corpus.caches for part in ("--cache", str(cache))]
    return [
        *("finetune", "--dataset", "scenes-vcr", "--task", "vcr-q2a"),
        *("--data-root", str(corpus.data_root), "--output", str(output), "--num-steps", "28"),
        *("--adapt-steps", "12", "--batch-size", "4", "--confidence-folds", "2"),
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
        num_logged = 40
    elif code != 130 or "the same command again" not in messages or "Traceback" in messages:
        raise AssertionError(f"{what}: exit code {code}: {messages[-2000:]}")
    else:
        log = output / "metrics.jsonl"
        num_logged = len(log.read_bytes().splitlines()) if log.exists() else 0
    resumed_messages = _finished(start_advl(*command))
    if 0 < num_logged < 40 and f"resumes at step {num_logged + 1} " not in resumed_messages:
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


def _finished(process: Running) -> str:
    if code := process.wait():
        raise AssertionError(f"exit code {code}: {process.messages()[-2000:]}")
    return process.messages()
