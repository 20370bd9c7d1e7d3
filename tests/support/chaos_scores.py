"""Exchange what two runs of a study hold, and kill evaluations that replace others, and look at what is reported."""

from __future__ import annotations

import random
import re
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from failing_calls import stopping
from real_processes import start, start_advl
from run_logs import load_json
from small_corpus import SmallCorpus

from advl_cli.main import main
from advl_pipeline.runs.evaluations import Evaluation, read_evaluation

STUDY = """
name = "trial"
dataset = "scenes-vcr"
tasks = ["vcr-q2a"]
student = "scenes-small"
test_sets = ["val"]
methods = ["plain", "plain-no-picture"]
shots = [4]
seeds = [0]

[training]
num_steps = 2
batch_size = 2

[evaluation]
probe = ["none"]
"""

PLACES = (
    *(("",), ("evaluation",), ("evaluation/val.json",), ("result.json",), ("run.json",), ("config.json",)),
    *(("evaluation", "result.json"), ("evaluation", "result.json", "run.json")),
    *(("evaluation", "result.json", "config.json"), ("evaluation", "result.json", "config.json", "run.json")),
)
"""What two runs exchange, by its place in the run folder; "" for the folder."""

MOST_COMMANDS = 8


@dataclass
class StudyOfTwoRuns:
    """A study of two short runs on a small corpus, and what its report says."""

    corpus: SmallCorpus
    folder: Path

    def run_alone(self) -> None:
        """Run the study, and keep the numbers of its report."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "trial.toml").write_text(STUDY, encoding="utf-8")
        self.study = self.folder / "study"
        place = ("--output", self.study, "--data-root", self.corpus.data_root)
        start_advl("study", self.folder / "trial.toml", *place).finish()
        self.runs = sorted((self.folder / "cells").glob("[!.]*"))
        code, said, self.numbers = self.report()
        assert (code, len(self.runs)) == (0, 2), said

    def report(self) -> tuple[int | None, str, Any]:
        """Return the exit code of `advl report`, its messages, and the numbers of its table."""
        output = self.study / "report.json"
        output.unlink(missing_ok=True)
        running = start_advl("report", self.study, "--to", "json")
        code, said = running.wait(), running.messages()
        return code, said, load_json(output)["table"] if output.exists() else None

    def exchange(self, seed: int) -> str:
        """Exchange a part of the two runs, and follow the advice until a report has the numbers that it had.

        Raises:
            AssertionError: a report has other numbers, or the advice does not lead to them.
        """
        generator = random.Random(seed)
        places = PLACES[seed % len(PLACES)]
        links = places == ("",) and generator.random() < 0.5
        what = "a link" if links else ", ".join(places) or "the folders"
        for place in places:
            first, second, aside = (run / place for run in (*self.runs, self.folder / "aside"))
            if links:
                shutil.rmtree(first)
                first.symlink_to(second)
                continue
            aside.parent.mkdir(parents=True, exist_ok=True)
            for source, target in ((first, aside), (second, first), (aside, second)):
                source.rename(target)
        for number in range(MOST_COMMANDS):
            code, said, numbers = self.report()
            if code == 0:
                assert numbers == self.numbers, f"{what}: a report of other numbers after {number} commands"
                assert number, f"{what}: not noticed"
                return f"{what}: refused, {number} command(s), the same numbers"
            assert code in (2, 3), f"{what}: exit code {code}: {said[-1500:]}"
            self.follow(what, said)
        raise AssertionError(f"{what}: {MOST_COMMANDS} commands do not lead to a report: {said[-1500:]}")

    def follow(self, what: str, said: str) -> None:
        """Run the commands after `next:`, or delete a folder or a file if that is the advice."""
        advice = said.partition("  next:  ")[2].splitlines()[0]
        where = re.search(r"where: (.*?)(?: \(.*\))?$", said, flags=re.MULTILINE)
        if not advice.startswith(("advl ", "rm ")):
            assert where is not None, said
            run = next(run for run in self.runs if str(run) in where[1])
            assert "run" in advice, f"{what}: {said[-1500:]}"
            advice = f"rm -r {run} && advl study {self.folder / 'trial.toml'} --output {self.study}"
            advice += f" --data-root {self.corpus.data_root}"
        for command in advice.partition("   (")[0].split(" && "):
            first, *words = shlex.split(command)
            if first == "rm":
                place = Path(words[-1])
                place.unlink() if place.is_symlink() else shutil.rmtree(place)
            else:
                # An advised command may be refused for the next reason; the report after it tells.
                start_advl(*words).wait()


def kill_evaluation(corpus: SmallCorpus, run: Path, *, call: int) -> str:
    """Kill an evaluation of a sample, which replaces one of the whole set, at a call; then run both again.

    Raises:
        AssertionError: what is read is neither the former evaluation nor the new one, or something is left over.
    """
    words = ["evaluate", str(run), "--on", "val", "--probe", "none", "--data-root", str(corpus.data_root)]
    start_advl(*words).finish()
    whole, sample = _counted(read_evaluation(run, "val")), (2, 2)
    running = start(_evaluate_killed, [*words, "--num-questions", "2"], run / "evaluation", call)
    code = running.wait()
    assert code in (0, -9), running.messages()[-1500:]
    read = _counted(read_evaluation(run, "val"))
    assert read in (whole, sample), f"call {call}: {read} items, of which the document says {whole} or {sample}"
    start_advl("report", run, "--to", "md").finish()
    start_advl(*words).finish()
    assert _counted(read_evaluation(run, "val")) == whole
    left = sorted(path.name for path in (run / "evaluation").iterdir())
    assert len(left) == 2, f"call {call}: {left}"
    return f"{'killed' if code else 'ended'} at call {call}: {'the former' if read == whole else 'the new'} one whole"


def _counted(evaluation: Evaluation | None) -> tuple[int, int]:
    """Return the number of items of an evaluation, and the number that its document tells."""
    assert evaluation is not None
    items = evaluation.items
    return len(items[items["condition"] == ""]), sum(evaluation.document.num_items.values())


def _evaluate_killed(words: Sequence[str], folder: Path, call: int) -> None:
    with stopping(folder, call=call, kills=True):
        main(list(words))
