"""`run_finetune`: one finetuning run from configuration to run folder."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm

from advl_pipeline.compute import allow_tf32, device_name, num_threads, one_order, resolved
from advl_pipeline.configuration import config_to_dict
from advl_pipeline.datasets.records import head_name
from advl_pipeline.folders import LOCK
from advl_pipeline.interruption import interruptible
from advl_pipeline.process_lock import process_lock
from advl_pipeline.runs import names
from advl_pipeline.runs.results import read_json
from advl_pipeline.runs.run_folder import RunFolder
from advl_pipeline.runs.trackers import trackers_named
from advl_pipeline.students.interface import Student
from advl_pipeline.students.weight_files import located
from advl_pipeline.training.batches import TrainingBatch, training_batches
from advl_pipeline.training.build_model import build_finetune_heads, build_finetune_model, build_finetune_student
from advl_pipeline.training.checkpoint import read_checkpoint, restore, restore_scaler
from advl_pipeline.training.confidences import measure_student_confidence
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.finetune_model import FinetuneModel, Phase
from advl_pipeline.training.given import open_caches, open_region_caches, require_given, splits_read
from advl_pipeline.training.initial_heads import HeadOrigin
from advl_pipeline.training.inputs import Inputs, open_inputs
from advl_pipeline.training.landmark_search import StudentAtStart
from advl_pipeline.training.loop import PhasePlan, run_phase
from advl_pipeline.training.methods import finetune_steps, resolve_method
from advl_pipeline.training.ordering import order_examples, order_inputs
from advl_pipeline.training.placement import Placement, find_placement
from advl_pipeline.training.process_group import start_processes, together
from advl_pipeline.training.process_memory import forget_peak_memory
from advl_pipeline.training.region_caches import use_region_caches
from advl_pipeline.training.resolved import Run, describe_run, resolve_run
from advl_pipeline.training.run_end import end_run
from advl_pipeline.training.sending import SentBatches
from advl_pipeline.training.settings import TrainingSettings
from advl_pipeline.training.signals import SignalSource
from advl_pipeline.training.stored_pictures import use_stored_pictures
from advl_pipeline.training.student_inputs import read_inputs
from advl_pipeline.training.teaching import Teaching, open_teaching


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneResult:
    """A finished run: its folder and the content of its result.json; of several processes one is the main one."""

    output: Path
    summary: dict[str, Any]
    is_main: bool = True


def run_finetune(config: FinetuneConfig, *, is_control: bool = False) -> FinetuneResult:
    """Finetune a student by a method, resuming an interrupted run; a finished one is returned as it is.

    Nothing is written into the output before everything is validated. A run that lies there goes on only with the
    options, the dataset and the caches that it was begun with.

    Args:
        is_control: a study marks this run as a control, which may read labels that a method may not.

    Raises:
        ConfigError: contradicting options. IdentityMismatch: a cache of another dataset, split or setting, or a run
        folder of another run. NotFinite: a loss, a gradient or a weight. DatasetError, CorruptCache,
        WeightsUnavailable: as they say. ClusterError: another process of this training ended. InUse: another process
        writes into the run folder. Interrupted: stopped by a signal, after the step that it came in; the same call
        resumes.
    """
    require_given(config, is_control=is_control)
    uses_teachers = resolve_method(config, num_steps=finetune_steps(config)).uses_teachers
    kept = "its checkpoint has every step that was finished"
    with interruptible("The finetuning", kept=kept), ExitStack() as held:
        return _finetune(config, held, uses_teachers=uses_teachers)


def _finetune(config: FinetuneConfig, held: ExitStack, *, uses_teachers: bool) -> FinetuneResult:
    folder = RunFolder(config.output)
    began = time.perf_counter()
    forget_peak_memory()
    given = config
    config = replace(config, init=None if config.init is None else located(config.init))
    config = resolved(folder.as_begun(config) if config.resume else config)
    held.enter_context(one_order(config.deterministic))
    accelerator = start_processes(config.device, config.mixed_precision)
    held.enter_context(together(accelerator))
    multiplies_in_tf32 = allow_tf32(accelerator.device)
    given_caches = open_caches(config)
    region_caches = open_region_caches(
        config.regions, splits_read(config), data_root=config.data_root, disk_cache=config.disk_cache_config
    )
    # A cache of a part of the split limits what is seen for every method, so that one compares with another.
    inputs = open_inputs(config, given_caches)
    caches = given_caches if uses_teachers else []
    run = resolve_run(
        config,
        kind=head_name(inputs.dataset.tasks[0]),
        num_labelled=len(inputs.labelled),
        world_size=accelerator.num_processes,
    )
    identity = describe_run(run, inputs, caches, region_caches)
    if config.resume:
        folder.require_same_run(identity)
        if (finished := folder.read_result()) is not None:
            return FinetuneResult(output=config.output, summary=finished, is_main=accelerator.is_main_process)
    lock = process_lock(config.output / LOCK, "this run")
    if (is_begun := config.output.is_dir()) and accelerator.is_main_process:
        held.enter_context(lock)
    student = build_finetune_student(run)
    reads = read_inputs(student, inputs.dataset, inputs.labelled, config.init)
    stored = use_stored_pictures(
        student,
        config.pictures,
        splits_read(config),
        disk_cache=config.disk_cache_config,
        hash_all=config.verify_caches,
    )
    stored += use_region_caches(student, region_caches, hash_all=config.verify_caches)
    heads, origins = build_finetune_heads(run, student, inputs)
    device = accelerator.device
    start = StudentAtStart(
        student=student.to(device),
        heads={name: head.to(device) for name, head in heads.items()},
        settings=run.method.settings,
        hide_picture=config.hide_picture,
        teaches_itself=config.teacher_control == "own-tokens" and run.method.uses_teachers,
    )
    teaching = open_teaching(run, start, caches, inputs, accelerator)
    model = build_finetune_model(run, start, teaching, inputs)
    step_line = run.settings.step_line(accelerator.num_processes)
    if accelerator.is_main_process:
        found = {
            "heads": {name: dataclasses.asdict(origin) for name, origin in origins.items()},
            "vision_targets": {choice.teacher: dataclasses.asdict(choice) for choice in teaching.vision},
            "confidence": {one.modality: one.to_dict() for one in teaching.confidences},
            "answers": [] if teaching.answers is None else [teaching.answers.to_dict()],
            "reads": dataclasses.asdict(reads),
            "global_batch": step_line,
        }
        if not is_begun:
            held.enter_context(lock)
            # Another process may have made the folder in the meantime.
            if config.resume:
                folder.require_same_run(identity)
        folder.begin(
            identity,
            config=config_to_dict(given),
            settings=run.settings.to_dict() | found,
            caches=[(str(cache.path), cache.identity) for cache in caches],
            computed_on={
                "device": device_name(config.device),
                "mixed_precision": config.mixed_precision,
                "tf32": multiplies_in_tf32,
            },
            resume=config.resume,
        )
        precision = ["products of fp32 matrices are computed in TF32"] if multiplies_in_tf32 else []
        _say(run.settings, origins, [step_line, *precision, *reads.lines(), *stored, *teaching.lines()])
    accelerator.wait_for_everyone()
    if config.resume and (finished := folder.read_result()) is not None:
        return FinetuneResult(output=config.output, summary=finished, is_main=accelerator.is_main_process)
    first_step = _train(run, model, start, accelerator, folder, inputs, teaching)
    if accelerator.is_main_process:
        end_run(
            run, given, model, accelerator, folder, inputs, teaching.source, reads, began=began, first_step=first_step
        )
    accelerator.wait_for_everyone()
    result = folder.read_result()
    assert result is not None
    return FinetuneResult(output=config.output, summary=result, is_main=accelerator.is_main_process)


def _say(settings: TrainingSettings, heads: dict[str, HeadOrigin], found: Sequence[str]) -> None:
    lines = [settings.line(), *(f"head {name}: {head.origin}, {head.why}" for name, head in heads.items())]
    for line in (*lines, *found):
        tqdm.write(line, file=sys.stderr)


def _train(
    run: Run,
    model: FinetuneModel,
    start: StudentAtStart,
    accelerator: Accelerator,
    folder: RunFolder,
    inputs: Inputs,
    teaching: Teaching,
) -> int:
    """Take the steps that are left; return the number of the first of them."""
    config, method = run.config, run.method
    phases = [
        PhasePlan(phase="adapt", num_steps=method.num_adapt_steps, first_logged_step=0),
        PhasePlan(phase="finetune", num_steps=method.num_finetune_steps, first_logged_step=method.num_adapt_steps),
    ]
    checkpoint = read_checkpoint(folder.checkpoint)
    done = checkpoint[0] if checkpoint else 0
    resumed_phase = checkpoint[1] if checkpoint else "adapt"
    first_step = done + (method.num_adapt_steps if resumed_phase == "finetune" else 0)
    if accelerator.is_main_process:
        folder.keep_metrics_before(first_step)
        folder.open_trackers(trackers_named(config.log_with), first_step=first_step)
        if checkpoint:
            tqdm.write(f"resumes at step {first_step + 1} of {run.num_steps}: {first_step} are done", file=sys.stderr)
    # Before a checkpoint is restored, the student is still as it was pretrained.
    readout = partial(
        _read_placement, model, inputs, teaching, enabled=method.num_adapt_steps > 0, device=accelerator.device
    )
    before = readout()
    if checkpoint:
        restore(checkpoint[2], model, None)
        if accelerator.scaler is not None:
            restore_scaler(checkpoint[2], accelerator.scaler)
    with tqdm(
        total=sum(plan.num_steps for plan in phases),
        initial=first_step,
        desc=config.method,
        unit="step",
        disable=not (accelerator.is_main_process and sys.stderr.isatty()),
    ) as bar:
        for plan in phases:
            if plan.num_steps == 0 or (plan.phase == "adapt" and resumed_phase == "finetune"):
                continue
            inside = checkpoint is not None and plan.phase == resumed_phase
            start_step = done if inside else 0
            if start_step < plan.num_steps:
                remembered = model.remembered
                if plan.phase == "finetune" and remembered is not None and not remembered.is_measured:
                    model.to(accelerator.device)
                    with accelerator.autocast():
                        remembered.begin(
                            measure_student_confidence(
                                start,
                                model.task_loss,
                                inputs.dataset,
                                inputs.labelled,
                                device=accelerator.device,
                            )
                        )
                run_phase(
                    run,
                    plan,
                    model,
                    accelerator,
                    folder,
                    _batch_maker(run, plan, model.student, accelerator, inputs, teaching.source),
                    start_step=start_step,
                    checkpoint=checkpoint[2] if checkpoint and inside else None,
                    progress=bar.update,
                )
            # Also where the run was stopped between its last step of a phase and this.
            if before is not None and accelerator.is_main_process:
                _write_readout(folder, plan.phase, before, readout())
    folder.close()
    return first_step


def _read_placement(
    model: FinetuneModel, inputs: Inputs, teaching: Teaching, *, enabled: bool, device: torch.device
) -> Placement | None:
    if teaching.judge is None or not enabled or not teaching.judge.teachers:
        return None
    model.student.to(device)
    return find_placement(model.student, inputs.dataset, inputs.seen, teaching.judge, device=device)


def _write_readout(folder: RunFolder, phase: Phase, before: Placement, now: Placement | None) -> None:
    """Write how the student places things as it starts, after the adapt step and at the end.

    `names_kept` is the share of the regions that still have the known word as their nearest that they began with.
    """
    assert now is not None
    began, has = before.names(), now.names()
    kept = None if began is None or has is None else float((began == has).float().mean())
    if phase == "adapt":
        found = {"before": before.agreements(), "after": now.agreements(), "names_kept": {"after": kept}}
    else:
        found = read_json(folder.path / names.READOUT)
        kept_before = found.get("names_kept", {})
        found |= {"finetuned": now.agreements(), "names_kept": kept_before | {"finetuned": kept}}
    folder.write_json(names.READOUT, found)
    if kept is not None:
        when = "the adapt step" if phase == "adapt" else "the finetune step"
        tqdm.write(f"{100 * kept:.0f} % of the regions keep their name after {when}", file=sys.stderr)


def _batch_maker(
    run: Run,
    plan: PhasePlan,
    student: Student,
    accelerator: Accelerator,
    inputs: Inputs,
    source: SignalSource | None,
) -> Callable[[range], Iterator[SentBatches[TrainingBatch]]]:
    config = run.config
    rank, world_size = accelerator.process_index, accelerator.num_processes
    num_workers = num_threads(config.num_workers)
    if plan.phase == "finetune":
        indices, order = order_examples(
            run.settings, student, inputs.dataset, inputs.labelled, seed=config.seed, rank=rank, world_size=world_size
        )
        return partial(
            training_batches,
            inputs.dataset,
            indices,
            student,
            source,
            order=order,
            labelled=True,
            num_workers=num_workers,
            device=accelerator.device,
        )
    order = order_inputs(config, inputs, rank=rank, world_size=world_size)
    ids = inputs.dataset.example_ids
    # The adapt step may see more inputs than there are labels for.
    labelled_ids = frozenset(ids[position] for position in inputs.labelled)
    return partial(
        training_batches,
        inputs.adapt_dataset,
        inputs.adapt,
        student,
        source,
        order=order,
        labelled=run.method.settings.weighting == "oracle",
        labelled_ids=labelled_ids,
        other_ids=inputs.other_ids,
        num_workers=num_workers,
        device=accelerator.device,
    )
