"""Run a study: every run once, shared between any number of processes, resumed after any interruption.

Runs are executed one after another here, or in parallel in processes that share the cores. Small students gain little
from a second core within one step, so two parallel runs finish sooner than two consecutive ones on two cores each.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from tqdm import tqdm

from advl_pipeline.base.atomic import make_folder
from advl_pipeline.base.compute import num_cores
from advl_pipeline.base.configuration import command_words, config_to_dict
from advl_pipeline.base.errors import AdvlError, ConfigError, InUse, WeightsUnavailable, again
from advl_pipeline.base.interruption import interruptible
from advl_pipeline.base.outputs import require_outputs
from advl_pipeline.base.process_lock import process_lock
from advl_pipeline.base.processes import worker_processes
from advl_pipeline.datasets.roots import set_name
from advl_pipeline.extraction.config import ExtractConfig
from advl_pipeline.runs import names
from advl_pipeline.runs.evaluations import EvaluationDocument, read_document
from advl_pipeline.runs.results import read_config
from advl_pipeline.studies.config import StudyRunConfig, asked_study
from advl_pipeline.studies.execute import RunExecutor, execute_run, is_complete, scored_by_study
from advl_pipeline.studies.gather import gather_study
from advl_pipeline.studies.plan import (
    DatasetDigester,
    Plan,
    PlannedRun,
    build_plan,
    dataset_digests,
    default_folder,
    digest_dataset,
    input_digests,
    runs_folder,
    write_plan,
)
from advl_pipeline.studies.result import StudyResult

CachePreparer = Callable[[ExtractConfig], None]
"""Makes sure that a cache exists."""

_SECONDS_BETWEEN_LOOKS = 10.0


def prepare_cache(config: ExtractConfig) -> None:
    """Extract a cache, or wait for another process that is extracting it.

    A finished cache of the same options needs no teacher, and is used even if the teacher's weights are gone.
    """
    from advl_pipeline.extraction.planning import is_extracted
    from advl_pipeline.extraction.prepare import prepare_extract
    from advl_pipeline.extraction.run import run_extract

    while not is_extracted(config, same_weights=True):
        try:
            run_extract(prepare_extract(config, may_idle=True))
            break
        except WeightsUnavailable:
            if is_extracted(config, same_weights=False):
                break
            raise
        except InUse as error:
            tqdm.write(f"{config.output}: waiting for {error.why}", file=sys.stderr)
            time.sleep(_SECONDS_BETWEEN_LOOKS)


def run_study(
    config: StudyRunConfig,
    *,
    execute: RunExecutor = execute_run,
    prepare: CachePreparer = prepare_cache,
    digest: DatasetDigester = digest_dataset,
) -> StudyResult:
    """Run the missing runs of a study and gather it.

    Each run is locked while it runs, so that processes on one or several machines with a common folder share the
    grid. A lock ends with its process, and the next process resumes the run of a dead one. Runs that another study
    has finished are reused. Runs that other processes execute are waited for at the end.

    Args:
        execute: trains and scores a run; replaced in tests and by schedulers. With several workers it must be
            importable.

    Raises:
        ConfigError: the study cannot be used, or a test set has changed since runs were scored on it.
        DatasetError: a dataset for training is missing or malformed.
        AdvlError: a run raised it.
        KeyboardInterrupt: stopped by a signal, after the current steps.
    """
    with interruptible("The study", kept="finished runs are kept, and the steps of those that ran"):
        study = asked_study(config)
        folder = config.output or default_folder(study)
        require_outputs(config, output=folder)
        place = partial(build_plan, study, runs=runs_folder(folder), caches=config.caches, data_root=config.data_root)
        draft = place()
        inputs, content = input_digests(draft), dataset_digests(draft, digest, folder=folder)
        plan = place(init_digests=inputs, dataset_digests=content)
        _require_places(plan)
        _require_same_test_sets(plan, config.data_root)
        flags = command_words(StudyRunConfig, config_to_dict(config) | {"study": None})
        plan = replace(plan, command=shlex.join(["advl", "study", config.study, *flags]))
        make_folder(folder)
        write_plan(folder, plan)
        if config.first_seeds is not None:
            seeds, shots = study.seeds[: config.first_seeds], study.shots[0]
            first = tuple(planned for planned in plan.runs if planned.seed in seeds and planned.shots == shots)
            plan = replace(plan, runs=first)
        needed = {path for planned in plan.runs if not is_complete(planned) for path in planned.finetune.cache}
        for path in (path for path in plan.caches if path in needed):
            prepare(plan.caches[path])
        _execute_all(plan, config.workers, execute)
        return gather_study(folder)


def _require_places(plan: Plan) -> None:
    """Refuse a file in the place of a run's folder; raises `ConfigError`."""
    for planned in plan.runs:
        if os.path.lexists(planned.run) and not planned.run.is_dir():
            raise ConfigError(
                "The folder of a run cannot be created.",
                where=str(planned.run),
                why="a file is in its place",
                next_command=again("move it away, then run the same command again"),
            )


def _require_same_test_sets(plan: Plan, data_root: Path | None) -> None:
    """Refuse test sets whose content differs from that of the first run scored on them.

    Gathering compares the runs with each other. A set that cannot be opened here is skipped, so that a finished study
    can be shown anywhere.

    Raises:
        ConfigError: a set has changed; the message lists the scores to remove.
    """
    from advl_pipeline.datasets.registry import open_dataset

    scored: dict[tuple[str, str], tuple[PlannedRun, EvaluationDocument]] = {}
    for planned in plan.runs:
        for test_set in planned.test_sets:
            if (planned.finetune.dataset, test_set) in scored or not names.is_finished(planned.run):
                continue
            with scored_by_study(planned, test_set):
                document = read_document(planned.run, planned.filed(test_set))
            if document is not None:
                scored[planned.finetune.dataset, test_set] = planned, document
    for (dataset, test_set), (planned, document) in scored.items():
        name, split = set_name(test_set, dataset)
        then, style = document.content_digest, read_config(planned.run).get("text_style")
        try:
            opened = open_dataset(name, split=split, data_root=data_root, text_style=style)
            now = opened.content_digest()
        except AdvlError:
            continue
        if then is not None and then != now:
            path = names.evaluation_file(planned.run, planned.filed(test_set), ".json")
            old = f"{shlex.quote(str(path.parents[2]))}/*/evaluation/{shlex.quote(path.name)}"
            raise ConfigError(
                f"The test set {test_set} has changed since runs were scored on it.",
                where=str(path),
                why=f"its content was {then[:12]} and is {now[:12]}, so old scores would be next to new ones",
                next_command=again(f"rm {old}   (the old scores), then run the same command again"),
            )


def _execute_all(plan: Plan, workers: int, execute: RunExecutor) -> None:
    finished = [planned for planned in plan.runs if is_complete(planned)]
    left = [planned for planned in plan.runs if planned not in finished]
    if not left:
        return
    run_all = partial(run_in_processes, num_workers=workers) if workers > 1 else run_in_turn
    with tqdm(total=len(plan.runs), initial=len(finished), desc=plan.study.name, unit="run") as progress:
        # First the runs that no other process executes, then those of others: finished by now, or abandoned.
        for waits in (False, True):
            others: list[PlannedRun] = []
            for planned in run_all(left, partial(_execute_unless_held, execute, waits=waits)):
                if not is_complete(planned) and not waits:
                    others.append(planned)
                    continue
                progress.set_postfix_str(planned.title)
                progress.update()
            left = others


def _execute_unless_held(execute: RunExecutor, planned: PlannedRun, *, waits: bool) -> None:
    def say_who(holder: str) -> None:
        tqdm.write(f"{planned.title}: waiting for {holder}", file=sys.stderr)

    with ExitStack() as held:
        path = planned.run.parent / f".work/claims/run-{planned.run_id}"
        try:
            held.enter_context(process_lock(path, "this run", wait=say_who if waits else None))
        except InUse:
            return
        # Another process may have finished the run between the check and the lock.
        if not is_complete(planned):
            execute(planned)


def run_in_turn(planned_runs: Sequence[PlannedRun], execute: RunExecutor) -> Iterator[PlannedRun]:
    """Execute runs in this process, in order; yield each as it ends."""
    for planned in planned_runs:
        execute(planned)
        yield planned


def run_in_processes(
    planned_runs: Sequence[PlannedRun], execute: RunExecutor, *, num_workers: int
) -> Iterator[PlannedRun]:
    """Execute runs in `num_workers` fresh processes; yield each as it ends.

    If a run fails or a signal stops this process, the workers finish their current steps and write their
    checkpoints. If this process dies, they are ended at once. An unfinished run resumes.

    Args:
        planned_runs: the runs to execute, in this order.
        execute: trains and scores one run; sent to the workers, so it must be importable there.
        num_workers: number of processes; each computes on its share of the cores.

    Raises:
        AdvlError: a run raised it, or a worker died, for example for lack of memory.
    """
    threads = max(1, num_cores() // num_workers)
    with worker_processes(num_workers, threads_each=threads, ends_steps=True) as pool:
        run_of = {pool.submit(_execute_interruptible, execute, planned): planned for planned in planned_runs}
        for future in as_completed(run_of):
            error = future.exception()
            if isinstance(error, BrokenProcessPool):
                raise AdvlError(
                    "A worker of the study died.",
                    why="the system may have ended it for want of memory",
                    next_command=again("run the same command with fewer --workers; finished runs are kept"),
                ) from None
            if error is not None:
                raise error
            yield run_of[future]


def _execute_interruptible(execute: RunExecutor, planned: PlannedRun) -> None:
    with interruptible("The run", kept="its checkpoint has every step that was finished"):
        execute(planned)
