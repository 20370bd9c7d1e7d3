"""`run_finetune`: one prepared finetuning run, to its run folder."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from accelerate import Accelerator
from tqdm import tqdm

from advl_pipeline.base.atomic import write_text
from advl_pipeline.base.compute import (
    allow_tf32,
    device_name,
    forget_peak_memory,
    num_threads,
    one_order,
    one_training,
    peak_memory_bytes,
    resolved,
)
from advl_pipeline.base.configuration import config_to_dict
from advl_pipeline.base.folders import LOCK
from advl_pipeline.base.interruption import interruptible
from advl_pipeline.base.process_lock import process_lock
from advl_pipeline.datasets.records import head_name
from advl_pipeline.runs import names
from advl_pipeline.runs.results import RunResult, read_json, read_log
from advl_pipeline.runs.run_folder import RunFolder
from advl_pipeline.runs.trackers import trackers_named
from advl_pipeline.stored_inputs.pictures import use_stored_pictures
from advl_pipeline.stored_inputs.regions import use_region_caches
from advl_pipeline.students.abilities import towers_of
from advl_pipeline.students.heads import save_heads
from advl_pipeline.students.known_words import word_table
from advl_pipeline.students.memory import lora_settings, merge_lora
from advl_pipeline.students.saved import save_student
from advl_pipeline.students.weight_files import run_files
from advl_pipeline.training.batch_order import BatchOrder, order_examples, order_inputs
from advl_pipeline.training.batches import Sent, training_batches
from advl_pipeline.training.build_model import (
    base_dtype,
    build_finetune_heads,
    build_finetune_model,
    build_finetune_student,
    fit_heads,
)
from advl_pipeline.training.checkpoint import load_checkpoint, restore
from advl_pipeline.training.heads import HeadOrigin
from advl_pipeline.training.inputs import MOST_PASSES, splits_read
from advl_pipeline.training.landmarks.census import StudentAtStart
from advl_pipeline.training.landmarks.readout import Readout, take_readout
from advl_pipeline.training.loop import run_stage
from advl_pipeline.training.optimiser import bytes_by_part
from advl_pipeline.training.prepare import PreparedFinetune
from advl_pipeline.training.process_group import start_processes, together
from advl_pipeline.training.resolved import adapt_steps
from advl_pipeline.training.signals.confidences import measure_student_confidence
from advl_pipeline.training.signals.controls import NO_CONTROL, control_of
from advl_pipeline.training.signals.teaching import Teaching, open_teaching
from advl_pipeline.training.step import FinetuneModel, Stage
from advl_pipeline.training.step_log import TOTALLED, stage_totals
from advl_pipeline.training.stopping import EarlyStopping, validation_scores
from advl_pipeline.training.student_inputs import StudentInputs, read_inputs
from advl_pipeline.training.validation import FEWEST_STEPS, Validation, is_due
from advl_pipeline.training.word_selection import AT_ONCE, selected_words


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneResult:
    """The folder of a finished run and the content of its result.json; `is_main` marks the main process."""

    output: Path
    summary: RunResult
    is_main: bool = True


def run_finetune(prepared: PreparedFinetune) -> FinetuneResult:
    """Finetune a student with a method. Resume an interrupted run; return the result of a finished one.

    A finished run whose student was not kept is trained again, and keeps its evaluations.

    All inputs are validated before anything is written. An existing run resumes only with the same options, dataset
    and caches.

    Args:
        prepared: as `prepare_finetune` returns it.

    Raises:
        ConfigError: options contradict each other. IdentityMismatch: the folder belongs to another run. NotFinite: a
        loss, a gradient or a weight is not finite. DatasetError, CorruptCache, WeightsUnavailable: as their names
        say. ClusterError: another process of this training ended. InUse: another process writes to the run folder.
        KeyboardInterrupt: a signal stopped the run, after the current step; the same call resumes it.
    """
    kept = "its checkpoint has every step that was finished"
    with interruptible("The finetuning", kept=kept), ExitStack() as held:
        return _finetune(_begin_session(prepared, held), held)


@dataclass(frozen=True, kw_only=True)
class _Session:
    """The training of a prepared run in this process, from `began` on (`time.perf_counter`).

    The options of `prepared.run` have the device and the precision that this process computes with.
    """

    prepared: PreparedFinetune
    began: float
    accelerator: Accelerator
    identity: Mapping[str, Any]
    multiplies_in_tf32: bool

    def finished(self) -> FinetuneResult | None:
        """Return the result if the folder has a finished run with this configuration, and its student."""
        folder = self.prepared.folder
        if not self.prepared.run.config.resume or names.lacks_student(folder.path):
            return None
        summary = folder.read_result()
        return None if summary is None else self.result(summary)

    def result(self, summary: RunResult) -> FinetuneResult:
        is_main = self.accelerator.is_main_process
        return FinetuneResult(output=self.prepared.folder.path, summary=summary, is_main=is_main)


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """The model of a session and its training signals; `notes` are printed.

    `labelled` are the positions in the split for the finetune stage, and `order` that of the indices into them.
    """

    session: _Session
    start: StudentAtStart
    teaching: Teaching
    model: FinetuneModel
    labelled: Sequence[int]
    order: BatchOrder
    reads: StudentInputs
    origins: Mapping[str, HeadOrigin]
    notes: Sequence[str]


def _finetune(session: _Session, held: ExitStack) -> FinetuneResult:
    folder, accelerator = session.prepared.folder, session.accelerator
    resumes, is_main = session.prepared.run.config.resume, accelerator.is_main_process
    if resumes:
        folder.require_same_run(session.identity)
        if (finished := session.finished()) is not None:
            return finished
    lock = process_lock(folder.path / LOCK, "this run")
    if (is_begun := folder.path.is_dir()) and is_main:
        held.enter_context(lock)
    opened = _open(session)
    if is_main:
        if not is_begun:
            held.enter_context(lock)
            # Another process may have created the folder in the meantime.
            if resumes:
                folder.require_same_run(session.identity)
        _begin(opened)
    accelerator.wait_for_everyone()
    if (finished := session.finished()) is not None:
        return finished
    first_step = _train(opened)
    if is_main:
        _end_run(opened, first_step=first_step)
    accelerator.wait_for_everyone()
    summary = folder.read_result()
    assert summary is not None
    return session.result(summary)


def _begin_session(prepared: PreparedFinetune, held: ExitStack) -> _Session:
    """Resolve the device and the precision of a run, and start its processes."""
    began = time.perf_counter()
    forget_peak_memory()
    config = resolved(prepared.run.config)
    prepared = replace(prepared, run=replace(prepared.run, config=config))
    held.enter_context(one_training())
    held.enter_context(one_order(config.deterministic))
    accelerator = start_processes(config.device, config.mixed_precision)
    held.enter_context(together(accelerator))
    return _Session(
        prepared=prepared,
        began=began,
        accelerator=accelerator,
        identity=prepared.identity(),
        multiplies_in_tf32=allow_tf32(accelerator.device),
    )


def _open(session: _Session) -> _Opened:
    """Build the student, its heads and its training signals besides labels."""
    prepared, accelerator = session.prepared, session.accelerator
    run, config, inputs = prepared.run, prepared.run.config, prepared.inputs
    student = build_finetune_student(run)
    teachers = [cache.teacher_name for cache in prepared.caches]
    reads = read_inputs(student, inputs.dataset, inputs.labelled, config.init, teachers=teachers)
    stored = use_stored_pictures(student, config.pictures, splits_read(config))
    stored += use_region_caches(student, prepared.region_caches)
    # Without a teacher, but with the regions, because a batch of tokens counts them.
    labelled, order = order_examples(run, student, inputs.dataset, inputs.labelled, rank=accelerator.process_index)
    heads, origins = build_finetune_heads(run, student, inputs)
    start = StudentAtStart(
        student=student.to(accelerator.device),
        heads={name: head.to(accelerator.device) for name, head in heads.items()},
        settings=run.method.settings,
        hide_picture=config.hide_picture,
        control=control_of(config) if run.method.uses_teachers else NO_CONTROL,
    )
    teaching = open_teaching(run, start, prepared.teachers, inputs, accelerator)
    return _Opened(
        session=session,
        start=start,
        teaching=teaching,
        model=build_finetune_model(run, start, teaching, inputs),
        labelled=labelled,
        order=order,
        reads=reads,
        origins=origins,
        notes=[*_length_lines(prepared), *reads.lines(), *stored, *teaching.lines()],
    )


def _length_lines(prepared: PreparedFinetune) -> list[str]:
    """Return lines about the steps of a run: whether they are few, and by what it is scored and ends."""
    run, validation = prepared.run, prepared.validation
    epochs, num_steps = run.settings.epochs, run.settings.num_steps
    lines = []
    if epochs is not None and epochs < 1:
        few = f"{num_steps} steps read {100 * epochs:.0f} % of the {len(prepared.inputs.labelled):,} labels, once"
        lines.append(f"caution: {few}; without --num-steps a run reads all of them several times")
    if run.method.num_adapt_steps not in (0, adapt_steps(run.config)):
        passes = f"{MOST_PASSES} passes over its {len(prepared.inputs.adapt):,} inputs"
        lines.append(f"the adapt stage takes {run.method.num_adapt_steps} steps: {passes}")
    if isinstance(validation, str):
        lines.append(f"val is not scored on the way: {validation}")
    elif not any(is_due(step, num_steps, every=run.config.val_every) for step in range(num_steps)):
        lines.append(f"val is not scored on the way: the run has fewer than {FEWEST_STEPS} steps")
    elif run.stops_early:
        lines.append(f"the run ends after {num_steps} steps or earlier, by its score on {validation.name}")
    return lines


def _begin(opened: _Opened) -> None:
    """Write the description of the run to its folder, and print it."""
    session, teaching = opened.session, opened.teaching
    prepared = session.prepared
    run, config, folder = prepared.run, prepared.run.config, prepared.folder
    step_line = run.settings.step_line(session.accelerator.num_processes)
    held_in, parts = base_dtype(opened.start.student, config), bytes_by_part(run.settings, opened.model)
    described = {
        "heads": dict(opened.origins),
        "vision_targets": {choice.teacher: dataclasses.asdict(choice) for choice in teaching.vision},
        "confidence": {
            modality: dataclasses.asdict(measured)
            | {"weights": "by confidence" if modality in teaching.followed else "uniform"}
            for modality, measured in teaching.confidences.items()
        },
        "known_words": "" if teaching.words is None else teaching.words.line(),
        "answers": [] if teaching.answers is None else [teaching.answers.to_dict()],
        "reads": dataclasses.asdict(opened.reads),
        "global_batch": step_line,
    }
    threads = torch.get_num_threads()
    threads_before = folder.threads_before() if config.resume else None
    folder.begin(
        session.identity,
        config=config_to_dict(prepared.given),
        command=prepared.command,
        settings=run.settings.to_dict() | described,
        caches=[(str(cache.path), cache.identity) for cache in prepared.caches],
        computed_on={
            "device": device_name(config.device),
            "num_threads": threads,
            "mixed_precision": config.mixed_precision,
            "tf32": session.multiplies_in_tf32,
            "base_dtype": held_in,
            "bytes_by_part": parts,
        },
        resume=config.resume,
    )
    heads = [f"head {name}: {head['origin']}, {head['why']}" for name, head in opened.origins.items()]
    precision = ["products of fp32 matrices are computed in TF32"] if session.multiplies_in_tf32 else []
    if teaching.words is not None:
        write_text(folder.path / names.WORDS, word_table(teaching.words.rows))
    resumed = []
    if threads_before not in (None, threads):
        both = f"the steps so far were computed on {threads_before} threads, the others are on {threads}"
        resumed = [f"{both}: sums in another order change the last digits of the weights"]
    memory = _memory_line(held_in, parts)
    for line in (run.settings.line(), *heads, step_line, memory, *precision, *resumed, *opened.notes):
        tqdm.write(line, file=sys.stderr)


def _memory_line(held_in: str, parts: Mapping[str, int]) -> str:
    """Return a line with the bytes that each part occupies on the device; frozen parts keep their dtype."""
    sizes = {name: f"{num_bytes / 1e6:,.1f} MB" for name, num_bytes in parts.items()}
    frozen = f"frozen weights {sizes['frozen_weights']} in {held_in}, " if parts["frozen_weights"] else ""
    return (
        f"memory before a step: {frozen}trained weights {sizes['trained_weights']}, gradients {sizes['gradients']}, "
        f"optimiser {sizes['optimiser']}; activations for the backward pass are extra"
    )


def _train(opened: _Opened) -> int:
    """Take the remaining steps; return the number of the first one."""
    prepared, accelerator, model = opened.session.prepared, opened.session.accelerator, opened.model
    run, config, folder, inputs = prepared.run, prepared.run.config, prepared.folder, prepared.inputs
    model.to(accelerator.device)
    checkpoint = load_checkpoint(folder.checkpoint)
    done = checkpoint[0] if checkpoint else 0
    resumed_stage = checkpoint[1] if checkpoint else "adapt"
    first_step = run.steps_of(resumed_stage).start + done
    if accelerator.is_main_process:
        folder.keep_metrics_before(first_step)
        folder.open_trackers(trackers_named(config.log_with), first_step=first_step)
        if checkpoint:
            tqdm.write(f"resumes at step {first_step + 1} of {run.num_steps}: {first_step} are done", file=sys.stderr)

    def readout() -> Readout | None:
        judge = opened.teaching.judge
        if judge is None or not judge.teachers or not run.method.num_adapt_steps:
            return None
        return take_readout(model.student, inputs.dataset, inputs.seen, judge)

    # Before a checkpoint is restored, the student still has its pretrained weights.
    before = readout()
    stopping = None
    validation = prepared.validation
    if run.stops_early and isinstance(validation, Validation):
        stopping = EarlyStopping(model, num_examples=len(validation.positions))
    if checkpoint:
        restore(checkpoint[2], model, scaler=accelerator.scaler)
        if stopping is not None:
            stopping.restore(checkpoint[2])
    with tqdm(
        total=run.num_steps,
        initial=first_step,
        desc=config.method,
        unit="step",
        disable=not (accelerator.is_main_process and sys.stderr.isatty()),
    ) as bar:
        for stage in get_args(Stage):
            num_steps = len(run.steps_of(stage))
            if num_steps == 0 or (stage == "adapt" and resumed_stage == "finetune"):
                continue
            inside = checkpoint is not None and stage == resumed_stage
            start_step = done if inside else 0
            if stage == "finetune" and not inside:
                fit_heads(opened.start, inputs.dataset, opened.labelled)
            if start_step < num_steps:
                remembered = model.remembered
                if stage == "finetune" and remembered is not None and not remembered.is_measured:
                    with accelerator.autocast():
                        known = inputs.dataset, inputs.labelled
                        remembered.begin(measure_student_confidence(opened.start, model.task_loss, *known))
                run_stage(
                    run,
                    stage,
                    model,
                    accelerator,
                    folder,
                    _batch_maker(opened, stage),
                    start_step=start_step,
                    checkpoint=checkpoint[2] if checkpoint and inside else None,
                    progress=bar.update,
                    validate=_validator(opened) if stage == "finetune" else None,
                    stopping=stopping if stage == "finetune" else None,
                )
            if stage == "finetune" and stopping is not None and stopping.kept_step is not None:
                stopping.put_back(model)
                tqdm.write(
                    f"keeps the weights of step {stopping.kept_step + 1}, "
                    "the last within a standard error of the best on val",
                    file=sys.stderr,
                )
            # Also if the run was interrupted between the last step of a stage and this point.
            if before is not None and accelerator.is_main_process:
                now = readout()
                assert now is not None
                _write_readout(folder, stage, before, now)
    folder.close()
    return first_step


def _write_readout(folder: RunFolder, stage: Stage, before: Readout, now: Readout) -> None:
    """Write the readout of the student at the start, after the adapt stage and at the end.

    `names_kept` is the share of regions whose nearest known word is the same as at the start.
    `effective_rank` is the effective number of dimensions of the states of words and of regions.
    """
    began, has = before.names(), now.names()
    kept = None if began is None or has is None or not len(began) else float((began == has).float().mean())
    when = "after" if stage == "adapt" else "finetuned"
    readout: dict[str, Any] = {}
    if stage == "adapt":
        readout = {"before": before.shares(), "effective_rank": {"before": before.effective_ranks()}}
    else:
        readout = read_json(folder.path / names.READOUT)
    readout[when] = now.shares()
    readout["effective_rank"] = readout.get("effective_rank", {}) | {when: now.effective_ranks()}
    readout["names_kept"] = readout.get("names_kept", {}) | {when: kept}
    folder.write_json(names.READOUT, readout)
    if kept is not None:
        tqdm.write(f"{100 * kept:.0f} % of the regions keep their name after the {stage} stage", file=sys.stderr)


def _validator(opened: _Opened) -> Callable[[int], dict[str, float]] | None:
    validation, accelerator = opened.session.prepared.validation, opened.session.accelerator
    if isinstance(validation, str):
        return None

    def validate(step: int) -> dict[str, float]:
        with accelerator.autocast():
            scores = validation_scores(opened.start, opened.model.task_loss, validation)
        right = f", {100 * scores['val/correct']:.1f} % right" if "val/correct" in scores else ""
        of = f"{len(validation.positions)} examples of {validation.name}"
        tqdm.write(f"step {step + 1}: loss {scores['val/task']:.3f}{right} of {of}", file=sys.stderr)
        return scores

    return validate


def _batch_maker(opened: _Opened, stage: Stage) -> Callable[[range], Iterator[Sent]]:
    prepared, accelerator = opened.session.prepared, opened.session.accelerator
    run, inputs = prepared.run, prepared.inputs
    ids, dataset = inputs.dataset.example_ids, inputs.dataset
    arguments: dict[str, Any] = {"num_workers": num_threads(run.config.num_workers), "device": accelerator.device}
    if stage == "finetune":
        indices = opened.labelled
        arguments |= {"order": opened.order, "labelled": True}
    else:
        dataset, indices = inputs.adapt_dataset, inputs.adapt
        arguments |= {
            "order": order_inputs(run, inputs, rank=accelerator.process_index),
            "labelled": False,
            # The adapt stage may use more inputs than there are labels.
            "labelled_ids": frozenset(ids[position] for position in inputs.labelled),
            "other_ids": inputs.other_ids,
        }
    return partial(training_batches, dataset, indices, opened.start.student, opened.teaching.source, **arguments)


def _end_run(opened: _Opened, *, first_step: int) -> None:
    """Write the student, its heads, the selected words and `result.json`, then remove the checkpoint.

    Args:
        first_step: first step of this session; earlier sessions took the steps before it.
    """
    session, model, source = opened.session, opened.model, opened.teaching.source
    prepared, run = session.prepared, session.prepared.run
    config, folder, inputs, base = run.config, prepared.folder, prepared.inputs, prepared.given.init
    updates = lora_settings(model.student, config)
    # The updates refer to their base by the name that the user gave it.
    is_apart = updates is not None and model.student.lora is not None and base is not None
    if updates is not None and not is_apart:
        merge_lora(model.student)
    origin = {"method": config.method, "dataset": config.dataset, "seed": config.seed, "shots": config.shots}
    save_student(folder.path, model.student, origin=origin, updates=updates if is_apart else None, base=base)
    if is_apart:
        merge_lora(model.student)
    described = {
        head_name(task): {"task": task, "label_names": list(inputs.dataset.label_names(task))}
        for task in inputs.dataset.tasks
    }
    save_heads(folder.path, model.heads, described)
    if source is not None and model.distiller.teachers["text"] and model.distiller.settings.selection != "all":
        micro_batches = opened.order.micro_batches(0)
        start, at_once = replace(opened.start, source=source), min(AT_ONCE, max(map(len, micro_batches)))
        chosen = selected_words(model, start, inputs.dataset, inputs.labelled, at_once=at_once)
        folder.write_json(names.SELECTED_WORDS, chosen)
    records = read_log(folder.path)
    stages = stage_totals(records)
    totals = {key: sum(of_stage[key] for of_stage in stages.values()) for key in TOTALLED}
    earlier = stage_totals([record for record in records if record["step"] < first_step])
    computed, num_steps = totals["seconds"], max(1, totals["num_steps"])
    result = RunResult(
        status="done",
        method=config.method,
        dataset=config.dataset,
        seed=config.seed,
        shots=config.shots,
        num_steps=int(totals["num_steps"]),
        recipe=run.settings.line(),
        num_labelled=len(inputs.labelled),
        num_skipped=inputs.num_skipped,
        num_adapt_inputs=len(inputs.adapt),
        seconds=time.perf_counter() - session.began + sum(of_stage["seconds"] for of_stage in earlier.values()),
        seconds_per_step=computed / num_steps,
        samples_per_second=totals["num_examples"] / computed if computed else 0.0,
        num_texts=int(totals["num_texts"]),
        num_texts_cut=int(totals["num_texts_cut"]),
        wait_share=totals["seconds_waited"] / computed if computed else 0.0,
        seconds_preparing=totals["seconds_preparing"] / num_steps,
        phases={
            name: {key: of_stage[key] for key in ("seconds", "num_steps", "num_examples")}
            for name, of_stage in stages.items()
        },
        student_parameters=sum(parameter.numel() for parameter in model.student.parameters()),
        training_only_parameters=sum(parameter.numel() for parameter in model.distiller.parameters()),
        peak_memory_bytes=peak_memory_bytes(),
        towers=towers_of(model.student),
        caveats=opened.reads.caveats,
        files=run_files(folder.path),
    )
    folder.write_json(names.RESULT, result)
    folder.checkpoint.unlink(missing_ok=True)
