"""The loop over one step of the method (adapt or finetune): optimiser, schedule, log, checkpoint, resume.

Every optimiser step seeds torch from (seed, stage, step), so that a resumed run draws the same random numbers as an
uninterrupted one. On a CPU the results are bit-identical. On a GPU threads add up in any order, so the last bits may
differ; with `--deterministic` torch uses deterministic operations where it has them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from advl_pipeline.base.compute import drawing
from advl_pipeline.base.errors import NotFinite
from advl_pipeline.base.interruption import Stop, finishing
from advl_pipeline.base.prefetch import Prefetcher
from advl_pipeline.distillation.relational import gather_alone
from advl_pipeline.runs.results import STAGE_KEY
from advl_pipeline.runs.run_folder import RunFolder
from advl_pipeline.students.abilities import Perturbable
from advl_pipeline.training.adversarial import adversarial_terms
from advl_pipeline.training.batches import Sent, TrainingBatch, received
from advl_pipeline.training.checkpoint import CheckpointWriter, restore
from advl_pipeline.training.optimiser import build_optimizer, clip_each, rate_factor
from advl_pipeline.training.process_group import GradientSum, align_parameters, gather_rows
from advl_pipeline.training.resolved import Run
from advl_pipeline.training.step import FinetuneModel, LossTerms, Stage, StepConditions
from advl_pipeline.training.step_log import (
    StepNumbers,
    StepPlace,
    require_finite_gradient,
    require_finite_terms,
    require_finite_weights,
    step_record,
)
from advl_pipeline.training.stopping import EarlyStopping
from advl_pipeline.training.validation import MOST_DECIDING, MOST_TIMES, is_due

_READY_IN_MEMORY, _READY_ON_DEVICE = 4, 1
"""Steps whose batches may be ready, in host memory or on the device; one more may wait for room."""

_STAGE_SEED = {"adapt": 1, "finetune": 2}


def run_stage(
    run: Run,
    stage: Stage,
    model: FinetuneModel,
    accelerator: Accelerator,
    folder: RunFolder,
    make_batches: Callable[[range], Iterator[Sent]],
    *,
    start_step: int,
    checkpoint: dict[str, torch.Tensor] | None,
    progress: Callable[[int], object],
    validate: Callable[[int], dict[str, float]] | None = None,
    stopping: EarlyStopping | None = None,
) -> None:
    """Train for the remaining steps of a stage.

    Args:
        model: trained in place, on its device.
        make_batches: maps a range of steps to their micro-batches; runs on the background thread.
        start_step: first step of this stage, more than 0 when resuming.
        checkpoint: tensors to restore when resuming inside this stage.
        progress: called with 1 after each step.
        validate: called with the number of a step after which `val` is scored; returns extra fields for its record.
        stopping: ends the stage early by what `validate` returns.
    """
    config, logged_steps, num_steps = run.config, run.steps_of(stage), len(run.steps_of(stage))
    wrapped, optimizer = _prepare(run, stage, model, accelerator, checkpoint)
    limit = _READY_IN_MEMORY if accelerator.device.type == "cpu" else _READY_ON_DEVICE
    records = _StepRecords(run, model, accelerator, folder)
    due = partial(is_due, every=config.val_every, most=MOST_TIMES if stopping is None else MOST_DECIDING)
    is_over = stopping is not None and stopping.is_over
    num_saved, seconds_waited, seconds_saving = logged_steps.start + start_step, 0.0, 0.0
    with (
        finishing() as is_asked_to_stop,
        CheckpointWriter(folder.checkpoint) as checkpoints,
        GradientSum(wrapped.parameters(), accelerator) as gradients,
        Prefetcher(lambda: make_batches(range(start_step, num_steps)), limit=limit) as batches,
    ):
        steps = OptimiserSteps(run, stage, wrapped, optimizer, accelerator, gradients, is_asked_to_stop)
        for step, sent in zip(range(start_step, num_steps), batches, strict=True):
            if is_over:
                break
            micro_batches = received(sent, accelerator.device)
            began = time.perf_counter()
            place = StepPlace(config=config, step=logged_steps[step], stage=stage, num_saved=num_saved)
            with records.kept_where_one_is_not_finite():
                numbers, record, stops = steps.take(step, micro_batches)
                # Read the numbers of the previous step while the device computes this one.
                records.read()
                record |= {
                    "step": logged_steps[step],
                    "seconds": time.perf_counter() - began,
                    "seconds_waited": batches.seconds_waited - seconds_waited,
                    "seconds_preparing": sum(batch.seconds_preparing for batch in micro_batches),
                    "seconds_saving": seconds_saving,
                }
                if validate is not None and due(step, num_steps):
                    if accelerator.is_main_process:
                        scores = validate(logged_steps[step])
                        record |= scores
                        if stopping is not None:
                            stopping.take(logged_steps[step], scores, model)
                    is_over = any(gather_object([stopping is not None and stopping.is_over]))
                records.take(numbers, record, place)
                saves = stops or is_over or step + 1 == num_steps or (step + 1) % config.checkpoint_every == 0
                if saves:
                    records.read()
                    require_finite_weights(model, place)
            seconds_waited, seconds_saving = batches.seconds_waited, 0.0
            progress(1)
            if saves:
                num_saved = logged_steps[step] + 1
            if saves and accelerator.is_main_process:
                saving_began = time.perf_counter()
                records.write()
                checkpoints.save(
                    model,
                    optimizer.optimizer,
                    step=step + 1,
                    stage=stage,
                    scaler=accelerator.scaler,
                    more=None if stopping is None else stopping.tensors(),
                )
                seconds_saving = time.perf_counter() - saving_began
            if stops:
                raise Stop
    # The next stage has its own optimiser. If this one stayed prepared, fp16 gradients would be unscaled twice.
    accelerator.free_memory()


def _prepare(
    run: Run,
    stage: Stage,
    model: FinetuneModel,
    accelerator: Accelerator,
    checkpoint: dict[str, torch.Tensor] | None,
) -> tuple[nn.Module, Any]:
    """Return the model and the optimiser of a stage, prepared by accelerate and restored if the stage resumes."""
    settings = run.settings
    built = build_optimizer(settings, model, student_scale=settings.adapt_lr_scale if stage == "adapt" else 1.0)
    if checkpoint is not None:
        restore(checkpoint, model, built)
    align_parameters(model, accelerator)
    # Processes do not share the model through accelerate: see `process_group.py`.
    wrapped = accelerator.prepare_model(model, evaluation_mode=True)
    # The adapt stage compares similarities with those of teachers, which have no dropout either.
    wrapped.train(stage == "finetune")
    return wrapped, accelerator.prepare_optimizer(built)


class _StepRecords:
    """Step records: the one that the device may still compute, and those that are not written yet."""

    def __init__(self, run: Run, model: FinetuneModel, accelerator: Accelerator, folder: RunFolder) -> None:
        self._settings, self._model, self._accelerator, self._folder = run.settings, model, accelerator, folder
        self._taken: tuple[StepNumbers, dict[str, Any], StepPlace] | None = None
        self._pending: list[dict[str, Any]] = []

    def take(self, numbers: StepNumbers, record: dict[str, Any], place: StepPlace) -> None:
        """Keep the record of a step until its numbers are read."""
        self._taken = numbers, record, place

    def read(self) -> None:
        """Wait for the numbers of the latest step, if any.

        Raises:
            NotFinite: a loss term or the gradient of that step is not finite.
        """
        if self._taken is None:
            return
        (numbers, record, place), self._taken = self._taken, None
        terms, norm = numbers.read()
        # Every process sees the terms of all, so that all of them stop together.
        collected = gather_object(terms)
        require_finite_terms(collected, place)
        whole = step_record(collected, record["num_examples"]) | record
        if any(is_learned for _, is_learned, _ in collected):
            scaler = self._accelerator.scaler
            loss_scale = None if scaler is None else scaler.get_scale
            require_finite_gradient(norm, self._model.named_parameters(), place, loss_scale=loss_scale)
            if self._settings.clip_norm > 0:
                whole["grad_norm"] = norm
        self._pending.append(whole)

    def write(self) -> None:
        """Log the records that were read."""
        self._folder.log(self._pending)
        self._pending.clear()

    @contextmanager
    def kept_where_one_is_not_finite(self) -> Iterator[None]:
        """Log the records that were read if the block raises on a number that is not finite."""
        try:
            yield
        except NotFinite:
            if self._accelerator.is_main_process:
                self.write()
            raise


class OptimiserSteps:
    """Everything that an optimiser step of a stage needs: the model, its optimiser and the accumulated gradients."""

    def __init__(
        self,
        run: Run,
        stage: Stage,
        wrapped: nn.Module,
        optimizer: Any,
        accelerator: Accelerator,
        gradients: GradientSum,
        is_asked_to_stop: Callable[[], bool],
    ) -> None:
        self._run, self.stage, self._wrapped, self._optimizer = run, stage, wrapped, optimizer
        self._accelerator, self._gradients, self._is_asked_to_stop = accelerator, gradients, is_asked_to_stop
        self._peak = [group["lr"] for group in optimizer.param_groups]

    def take(self, step: int, micro_batches: list[TrainingBatch]) -> tuple[StepNumbers, dict[str, Any], bool]:
        """Take a step; return its numbers, its record, and whether all processes stop after it."""
        settings, accelerator = self._run.settings, self._accelerator
        factor = rate_factor(settings, step, num_steps=len(self._run.steps_of(self.stage)))
        for group, rate in zip(self._optimizer.param_groups, self._peak, strict=True):
            group["lr"] = rate * factor
        # Each process has a different seed.
        mixed = (self._run.config.seed * 1_000_003 + _STAGE_SEED[self.stage]) * 1_000_003 + step
        seed = (mixed * 1009 + int(accelerator.process_index)) % (1 << 63)
        # A micro-batch of tokens has many short texts or few long ones; each is a batch of its own on any process.
        shares_batches = self.stage == "adapt" or settings.batch_unit == "examples"
        conditions = StepConditions(
            stage=self.stage,
            generator=torch.Generator().manual_seed(seed),
            gather=gather_rows if shares_batches and accelerator.num_processes > 1 else gather_alone,
        )
        with drawing(seed):
            self._optimizer.zero_grad(set_to_none=True)
            num_examples, num_texts, num_cut = self._counts(micro_batches)
            numbers = StepNumbers()
            for number, batch in enumerate(micro_batches, 1):
                share, is_last = len(batch.example_ids) / num_examples, number == len(micro_batches)
                terms, is_learned = self._add_gradients(batch, conditions, share=share, is_last=is_last)
                numbers.add(share, terms, is_learned=is_learned)
            stops = self._gradients.finish(self._is_asked_to_stop())
            numbers.send(self._move())
        record = {"num_examples": num_examples, "num_texts": num_texts, "num_texts_cut": num_cut}
        rates = {"learning_rate": settings.learning_rate * factor, "lambda": self._run.config.distill.distill_weight}
        return numbers, record | {STAGE_KEY: self.stage, **rates}, stops

    def _counts(self, micro_batches: list[TrainingBatch]) -> list[int]:
        """Return the numbers of examples, texts and truncated texts of a step, over all processes."""
        counts = [
            sum(len(batch.example_ids) for batch in micro_batches),
            sum(batch.student.num_sequences for batch in micro_batches),
            sum(batch.student.num_cut for batch in micro_batches),
        ]
        if self._accelerator.num_processes > 1:
            counts = self._accelerator.reduce(torch.tensor(counts, device=self._accelerator.device)).tolist()
        return counts

    def _add_gradients(
        self, batch: TrainingBatch, conditions: StepConditions, *, share: float, is_last: bool
    ) -> tuple[LossTerms, bool]:
        """Add the gradients of a micro-batch to those of the step; return its terms, and whether it had gradients.

        Args:
            share: the micro-batch's share of the examples of the step.
            is_last: whether this is the last micro-batch of the step.
        """
        settings = self._run.settings
        run_model = partial(self._wrapped, batch, conditions)

        def backward(loss: torch.Tensor, retain_graph: bool = False) -> None:
            if is_last and not retain_graph:
                self._gradients.begin_last_pass()
            self._accelerator.backward(loss * (share * settings.loss_scale), retain_graph=retain_graph)

        if settings.adversarial is not None and conditions.stage == "finetune":
            student: Perturbable = self._accelerator.unwrap_model(self._wrapped).student
            two_way = settings.task_loss == "two-way-choice"
            terms = adversarial_terms(
                run_model, student, batch.student, settings.adversarial, is_two_way=two_way, backward=backward
            )
            return terms, True
        terms = run_model()
        if terms.has_gradient:
            backward(terms.total)
        return terms, terms.has_gradient

    def _move(self) -> torch.Tensor | None:
        """Clip the gradients and step the optimiser; return the gradient norm, None if no process has gradients."""
        settings, accelerator = self._run.settings, self._accelerator
        gradients = [value.grad for value in self._wrapped.parameters() if value.grad is not None]
        if not gradients:
            return None
        if settings.clip_norm > 0:
            norm = torch.as_tensor(accelerator.clip_grad_norm_(self._wrapped.parameters(), settings.clip_norm))
        else:
            norm = nn.utils.get_total_norm(gradients)
        if settings.clip_each > 0:
            if settings.clip_norm <= 0:
                accelerator.unscale_gradients()
            clip_each(gradients, settings.clip_each)
        self._optimizer.step()
        return norm
