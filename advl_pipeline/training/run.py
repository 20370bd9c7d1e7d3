"""`run_finetune`: one finetuning run from configuration to run folder."""

from __future__ import annotations

import copy
import dataclasses
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm

from advl_pipeline.cache.disk_cache_config import disk_cache_config
from advl_pipeline.cache.reader import TeacherCache, open_cache
from advl_pipeline.cache.trust import require_trustworthy
from advl_pipeline.confidence.estimate import load_or_estimate_confidence
from advl_pipeline.configuration import config_to_dict
from advl_pipeline.datasets.interface import Dataset
from advl_pipeline.datasets.joined import JoinedDataset
from advl_pipeline.datasets.lowshot import nested_subset
from advl_pipeline.datasets.records import head_name
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.datasets.word_prior import KnownWords, fit_word_prior
from advl_pipeline.distillation.distiller import Distiller
from advl_pipeline.errors import ConfigError
from advl_pipeline.folders import require_folder
from advl_pipeline.process_memory import forget_peak_memory, peak_memory_bytes
from advl_pipeline.runs import names
from advl_pipeline.runs.folder import RunFolder
from advl_pipeline.runs.tensorboard import require_tensorboard
from advl_pipeline.students.interface import Student
from advl_pipeline.students.known_words import known_words, read_known_words
from advl_pipeline.students.memory import add_lora, enable_gradient_checkpointing, merge_lora
from advl_pipeline.students.registry import build_student
from advl_pipeline.students.saved import save_student
from advl_pipeline.students.weight_files import weights_digest
from advl_pipeline.training.adapt_inputs import cache_of_split, open_other_inputs
from advl_pipeline.training.adversarial_step import require_perturbable
from advl_pipeline.training.batch_order import GROUP_SIZE, ExampleOrder
from advl_pipeline.training.batches import TrainingBatch, training_batches
from advl_pipeline.training.checkpoint import read_checkpoint, restore
from advl_pipeline.training.compatibility import check_caches, check_selection, dataset_identity
from advl_pipeline.training.confidence_check import CheckedConfidence, check_confidences
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.finetune_model import FinetuneModel
from advl_pipeline.training.finite import StepPlace, require_finite_weights
from advl_pipeline.training.heads import build_heads, save_heads
from advl_pipeline.training.initial_heads import HeadOrigin, fill_heads
from advl_pipeline.training.joined_teacher import joined_teacher
from advl_pipeline.training.live_teacher import live_teacher, live_weights
from advl_pipeline.training.loop import PhasePlan, PhaseTiming, run_phase
from advl_pipeline.training.methods import ResolvedMethod, finetune_steps, resolve_method, takes_two_steps
from advl_pipeline.training.ordering import order_examples
from advl_pipeline.training.part_costs import measure_parts, num_repeats
from advl_pipeline.training.placement import read_placement
from advl_pipeline.training.projection_fit import TargetFit, fit_projections
from advl_pipeline.training.recipes import ChosenRecipe, choose_recipe
from advl_pipeline.training.run_identity import describe_run
from advl_pipeline.training.selected_words import describe_selection, selected_words, selects_words
from advl_pipeline.training.settings import TrainingSettings, resolve_settings
from advl_pipeline.training.shuffled_teacher import shuffled_teacher
from advl_pipeline.training.signals import SignalSource, TeacherFeatures, cached_teacher
from advl_pipeline.training.student_confidence import StudentConfidence, measure_student_confidence
from advl_pipeline.training.student_options import recipe_options, student_options
from advl_pipeline.training.targets import require_fitting_loss


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneResult:
    """A finished run: its folder and the content of its result.json."""

    output: Path
    summary: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Inputs:
    """What the phases train on: positions in the split of the labelled subset, and in `adapt_dataset`, which begins
    with the split, of the adapt step's inputs.

    `num_skipped` counts what the dataset left out as malformed.
    """

    dataset: Dataset
    labelled: list[int]
    adapt_dataset: Dataset
    adapt: list[int]
    num_skipped: int

    @property
    def splits(self) -> tuple[Dataset, ...]:
        """The split to train on, and then the other ones that the adapt step sees."""
        return self.adapt_dataset.parts if isinstance(self.adapt_dataset, JoinedDataset) else (self.dataset,)

    @property
    def other_ids(self) -> frozenset[str]:
        """Examples of the adapt step that are of other splits than the one to train on."""
        return self.adapt_dataset.other_ids if isinstance(self.adapt_dataset, JoinedDataset) else frozenset()


@dataclass(frozen=True, kw_only=True)
class _Signals:
    """What the run learns from, the teachers as they are, which a control's are not, and what was found about their
    confidences."""

    source: SignalSource
    judge: SignalSource
    checked: Sequence[CheckedConfidence]


def run_finetune(config: FinetuneConfig) -> FinetuneResult:
    """Finetune a student by a method, resuming an interrupted run; a finished one is returned as it is.

    Nothing is written into the output before everything is validated. A run that lies there goes on only with the
    options, the dataset and the caches that it was begun with.

    Raises:
        ConfigError: contradicting options. IdentityMismatch: a cache of another dataset, split or setting, or a run
        folder of another run. NotFinite: a loss, a gradient or a weight. DatasetError, CorruptCache,
        WeightsUnavailable: as they say.
    """
    resolve_method(config, num_steps=finetune_steps(config))
    if config.tensorboard:
        require_tensorboard()
    folder = RunFolder(config.output)
    require_folder(config.output, "run")
    began = time.perf_counter()
    forget_peak_memory()
    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    inputs = _open_inputs(config)
    chosen = choose_recipe(config.student, head_name(inputs.dataset.tasks[0]), config.recipe)
    settings = resolve_settings(
        config,
        chosen,
        task=head_name(inputs.dataset.tasks[0]),
        num_labelled=len(inputs.labelled),
        world_size=accelerator.num_processes,
    )
    method = resolve_method(config, num_steps=settings.num_steps)
    caches = _open_caches(config) if method.uses_teachers else []
    identity = describe_run(
        config,
        chosen.recipe,
        settings,
        datasets=[dataset_identity(split) for split in inputs.splits],
        label_names={task: inputs.dataset.label_names(task) for task in inputs.dataset.tasks},
        caches=[cache.identity for cache in caches],
        init_digest=None if config.init is None else weights_digest(config.init),
    )
    if config.resume:
        folder.require_same_run(identity)
        if (finished := folder.read_result()) is not None:
            return FinetuneResult(output=config.output, summary=finished)
    signals = _open_signals(config, method, caches, inputs, device=accelerator.device)
    source = None if signals is None else signals.source
    checked = [] if signals is None else signals.checked
    model, heads = build_finetune_model(config, settings, chosen, method, inputs.dataset, source)
    fits = _fit_projections(config, model, inputs, source, device=accelerator.device)
    model.remembered = _remembered(config, method, checked, inputs, num_processes=accelerator.num_processes)
    if accelerator.is_main_process:
        found = {
            "heads": {name: dataclasses.asdict(head) for name, head in heads.items()},
            "targets": {str(fit.target): fit.to_dict() for fit in fits},
            "confidence": {one.modality: one.to_dict() for one in checked},
        }
        folder.begin(
            identity,
            config=config_to_dict(config),
            settings=settings.to_dict() | found,
            caches=[(str(cache.path), cache.identity) for cache in caches],
            resume=config.resume,
        )
        _say(settings, heads, [*fits, *checked])
    accelerator.wait_for_everyone()
    timings = _train(config, settings, method, model, accelerator, folder, inputs, signals)
    if accelerator.is_main_process:
        if config.lora_rank:
            merge_lora(model.student)
        num_steps = method.num_adapt_steps + method.num_finetune_steps
        end = StepPlace(config=config, step=num_steps, phase="finetune", num_saved=num_steps)
        require_finite_weights(model, end)
        origin = {"method": config.method, "dataset": config.dataset, "seed": config.seed, "shots": config.shots}
        save_student(folder.path, model.student, origin=origin)
        save_heads(folder.path, model, inputs.dataset)
        if source is not None and selects_words(model):
            words = selected_words(model, inputs.dataset, inputs.labelled, source, device=accelerator.device)
            folder.write_json(names.SELECTED_WORDS, words)
            folder.write_json(names.WORD_SELECTION, describe_selection(model, source))
        parts = _measure_parts(settings, method, model, inputs, source, accelerator)
        summary = _summary(config, settings, method, model, inputs, timings, time.perf_counter() - began) | parts
        folder.write_json(names.RESULT, summary)
        folder.checkpoint.unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    result = folder.read_result()
    assert result is not None
    return FinetuneResult(output=config.output, summary=result)


def build_finetune_model(
    config: FinetuneConfig,
    settings: TrainingSettings,
    chosen: ChosenRecipe,
    method: ResolvedMethod,
    dataset: Dataset,
    source: SignalSource | None,
) -> tuple[FinetuneModel, dict[str, HeadOrigin]]:
    """Build student, heads and projections, and say where the heads come from.

    The same seed gives the same student and heads for every method.
    """
    torch.manual_seed(config.seed)
    options = student_options(config_to_dict(config), dataset=config.dataset, split=config.split)
    overrides = {**recipe_options(chosen, config.init), **options}
    student = build_student(config.student, weights=config.init, overrides=overrides)
    if settings.adversarial is not None:
        require_perturbable(student)
    if config.gradient_checkpointing:
        enable_gradient_checkpointing(student)
    if config.lora_rank:
        add_lora(student, rank=config.lora_rank, alpha=2.0 * config.lora_rank)
    if config.compile:
        compile_student(student)
    torch.manual_seed(config.seed + 1)
    heads = build_heads(student, dataset)
    for task in dataset.tasks:
        require_fitting_loss(settings.task_loss, task, heads[head_name(task)])
    origins = fill_heads(heads, student, dataset, config)
    torch.manual_seed(config.seed + 2)
    distiller = Distiller(
        method.settings,
        source.widths() if source else {},
        hidden_size=student.hidden_size,
        pooled_size=student.pooled_size,
    )
    return FinetuneModel(
        student, heads, distiller, task_loss=settings.task_loss, hide_picture=config.hide_picture
    ), origins


def compile_student(student: Student) -> None:
    """Compile the student's pass, in place; its parameters and their names stay.

    Raises:
        ConfigError: the student is not tested under torch.compile.
    """
    if student.compile_refusal:
        raise ConfigError(
            f"{student.name} cannot be compiled.", why=student.compile_refusal, next_command="leave out --compile"
        )
    student.encode = torch.compile(student.encode, dynamic=True)  # type: ignore[method-assign]


def _fit_projections(
    config: FinetuneConfig,
    model: FinetuneModel,
    inputs: _Inputs,
    source: SignalSource | None,
    *,
    device: torch.device,
) -> list[TargetFit]:
    if source is None:
        return []
    model.to(device)
    return fit_projections(model, inputs.adapt_dataset, inputs.adapt, source, seed=config.seed, device=device)


def _say(
    settings: TrainingSettings, heads: dict[str, HeadOrigin], found: Sequence[TargetFit | CheckedConfidence]
) -> None:
    lines = [settings.line(), *(f"head {name}: {head.origin}, {head.why}" for name, head in heads.items())]
    for line in (*lines, *(one.line() for one in found)):
        tqdm.write(line, file=sys.stderr)


def _open_inputs(config: FinetuneConfig) -> _Inputs:
    dataset = open_dataset(
        config.dataset,
        split=config.split,
        data_root=config.data_root,
        tasks=config.task,
        text_style=config.text_style,
        label_order=config.label_order,
        answers=config.answers,
        answer_list=config.answer_list,
        on_error=config.on_error,
    )
    everything = list(range(len(dataset)))
    labelled = everything
    if config.shots is not None:
        chosen = set(nested_subset(dataset, config.shots, config.seed))
        labelled = [index for index, name in enumerate(dataset.example_ids) if name in chosen]
    others = open_other_inputs(config, dataset) if takes_two_steps(config) else []
    joined = JoinedDataset([dataset, *others]) if others else dataset
    own = everything if "inputs" in config.adapt_on else labelled if "subset" in config.adapt_on else []
    return _Inputs(
        dataset=dataset,
        labelled=labelled,
        adapt_dataset=joined,
        adapt=[*own, *range(len(dataset), len(joined))],
        num_skipped=len(dataset.skipped),
    )


def _open_caches(config: FinetuneConfig) -> list[TeacherCache]:
    disk_cache = disk_cache_config(config.disk_cache, config.disk_cache_gb)
    return [open_cache(path, disk_cache=disk_cache) for path in config.cache]


def _open_signals(
    config: FinetuneConfig,
    method: ResolvedMethod,
    caches: Sequence[TeacherCache],
    inputs: _Inputs,
    *,
    device: torch.device,
) -> _Signals | None:
    anchors = method.num_adapt_steps > 0 and method.settings.anchor_weight > 0
    if not method.uses_teachers and not anchors:
        return None
    by_split = cache_of_split(caches, inputs.splits)
    for split, of_split in zip(inputs.splits, by_split, strict=True):
        check_caches(of_split, split)
        check_selection(of_split, method.settings)
        for cache in of_split:
            require_trustworthy(cache, hash_all=config.verify_caches)
    confidence, checked = _confidence(config, method, by_split[0], inputs)
    if config.teacher_control == "shuffle":
        if config.live:
            raise ConfigError("A live teacher cannot be shuffled.", next_command="leave out --live")
        confidence = {name: _permute(values, config.seed) for name, values in confidence.items()}
    weights = live_weights(config.live_weights, [cache.teacher_name for cache in by_split[0]])

    def features(cache: TeacherCache, split: Dataset) -> TeacherFeatures:
        if config.live:
            return live_teacher(cache, split, weights=weights.get(cache.teacher_name), device=str(device))
        teacher = cached_teacher(cache)
        return shuffled_teacher(teacher, seed=config.seed) if config.teacher_control == "shuffle" else teacher

    cached = [[cached_teacher(cache) for cache in of_split] for of_split in by_split]
    read = [
        [features(cache, split) for cache in of_split]
        for of_split, split in zip(by_split, inputs.splits, strict=True)
    ]
    teachers = [
        joined_teacher(of_teacher, as_read)
        for of_teacher, as_read in zip(zip(*cached, strict=True), zip(*read, strict=True), strict=True)
    ]
    texts = (
        candidate.text
        for index in sorted({*inputs.labelled, *inputs.adapt})
        for candidate in inputs.adapt_dataset[index].candidates
    )
    source = SignalSource(
        teachers,
        prior=fit_word_prior(texts),
        known=KnownWords(counts=_known_words(config)),
        confidence=confidence,
        target_norm=config.target_norm,
    )
    judges = [joined_teacher(of_teacher, of_teacher) for of_teacher in zip(*cached, strict=True)]
    return _Signals(source=source, judge=source.of(judges), checked=checked)


def _known_words(config: FinetuneConfig) -> Mapping[str, int] | None:
    """Return the words that pretraining taught, with their counts; None where it left no record."""
    if config.known_words is not None:
        return read_known_words(config.known_words)
    return None if config.init is None else known_words(config.init)


def _confidence(
    config: FinetuneConfig, method: ResolvedMethod, caches: Sequence[TeacherCache], inputs: _Inputs
) -> tuple[dict[str, dict[str, float]], list[CheckedConfidence]]:
    """Return modality -> example id -> confidence, of those that weights follow, and what was found about each."""
    if method.settings.weighting == "uniform" or config.confidence == "none":
        return {}, []
    ids = [inputs.dataset.example_ids[index] for index in inputs.labelled]
    estimates = load_or_estimate_confidence(
        caches=caches,
        dataset=inputs.dataset,
        example_ids=ids,
        estimator=config.confidence,
        folds=config.confidence_folds,
        seed=config.seed,
    )
    pictures = [inputs.dataset[index].cluster for index in inputs.labelled]
    checked = check_confidences(estimates, pictures, config.confidence_check)
    followed = {
        one.modality: dict(zip(ids, map(float, estimates[one.modality].probability_N), strict=True))
        for one in checked
        if one.is_used
    }
    return followed, checked


def _remembered(
    config: FinetuneConfig,
    method: ResolvedMethod,
    checked: Sequence[CheckedConfidence],
    inputs: _Inputs,
    *,
    num_processes: int,
) -> StudentConfidence | None:
    """Return where the student's confidences are kept, or None where weights need none but the current one.

    Raises:
        ConfigError: visits to be smoothed that several processes share.
    """
    needs_it = method.settings.weighting in ("ratio", "gap") and any(one.is_used for one in checked)
    if not needs_it or config.student_confidence == "current":
        return None
    if config.student_confidence == "smoothed" and num_processes > 1:
        raise ConfigError(
            "The student's confidence is smoothed by one process only.",
            where="--student-confidence smoothed",
            why=f"{num_processes} processes share the visits of an item",
            next_command="use --student-confidence start",
        )
    ids = inputs.dataset.example_ids
    return StudentConfidence(config.student_confidence, [ids[position] for position in inputs.labelled])


def _permute(values: dict[str, float], seed: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(values), generator=generator).tolist()
    numbers = list(values.values())
    return {name: numbers[index] for name, index in zip(values, order, strict=True)}


def _train(
    config: FinetuneConfig,
    settings: TrainingSettings,
    method: ResolvedMethod,
    model: FinetuneModel,
    accelerator: Accelerator,
    folder: RunFolder,
    inputs: _Inputs,
    signals: _Signals | None,
) -> dict[str, PhaseTiming]:
    source = None if signals is None else signals.source
    phases = [
        PhasePlan(phase="adapt", num_steps=method.num_adapt_steps, first_logged_step=0),
        PhasePlan(phase="finetune", num_steps=method.num_finetune_steps, first_logged_step=method.num_adapt_steps),
    ]
    checkpoint = read_checkpoint(folder.checkpoint)
    done = checkpoint[0] if checkpoint else 0
    resumed_phase = checkpoint[1] if checkpoint else "adapt"
    first_step = done + (method.num_adapt_steps if resumed_phase == "finetune" else 0)
    folder.keep_metrics_before(first_step)
    if config.tensorboard and accelerator.is_main_process:
        folder.open_tensorboard(first_step=first_step)
    if method.num_adapt_steps and resumed_phase == "adapt" and method.settings.anchor_weight > 0:
        # Before a checkpoint is restored, the model is still as it was pretrained.
        reference = copy.deepcopy(model.student).to(accelerator.device).eval().requires_grad_(False)
        model.anchor = (reference,)
    readout = partial(
        _read_placement, model, inputs, signals, enabled=method.num_adapt_steps > 0, device=accelerator.device
    )
    before = readout() if resumed_phase == "adapt" else None
    if checkpoint:
        restore(checkpoint[2], model, None)
    timings: dict[str, PhaseTiming] = {}
    with tqdm(
        total=sum(plan.num_steps for plan in phases),
        initial=first_step,
        desc=config.method,
        unit="step",
        disable=not sys.stderr.isatty(),
    ) as bar:
        for plan in phases:
            if plan.num_steps == 0 or (plan.phase == "adapt" and resumed_phase == "finetune"):
                continue
            inside = checkpoint is not None and plan.phase == resumed_phase
            start = done if inside else 0
            if start >= plan.num_steps:
                continue
            remembered = model.remembered
            if plan.phase == "finetune" and remembered is not None and not remembered.is_measured:
                model.to(accelerator.device)
                with accelerator.autocast():
                    remembered.begin(
                        measure_student_confidence(model, inputs.dataset, inputs.labelled, device=accelerator.device)
                    )
            timings[plan.phase] = run_phase(
                config,
                settings,
                plan,
                model,
                accelerator,
                folder,
                _batch_maker(config, settings, plan, model.student, accelerator, inputs, source),
                start_step=start,
                checkpoint=checkpoint[2] if checkpoint and inside else None,
                progress=bar.update,
            )
            if plan.phase == "adapt" and before and accelerator.is_main_process:
                folder.write_json(names.READOUT, {"before": before, "after": readout()})
    folder.close()
    return timings


def _read_placement(
    model: FinetuneModel, inputs: _Inputs, signals: _Signals | None, *, enabled: bool, device: torch.device
) -> dict[str, Any]:
    if signals is None or not enabled or not signals.judge.teachers:
        return {}
    model.student.to(device)
    positions = range(len(inputs.dataset))
    return read_placement(model.student, inputs.dataset, positions, signals.judge, device=device)


def _measure_parts(
    settings: TrainingSettings,
    method: ResolvedMethod,
    model: FinetuneModel,
    inputs: _Inputs,
    source: SignalSource | None,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """Return what is added to the summary: the cost of each part, or nothing for a very short run."""
    repeats = num_repeats(settings.num_steps)
    if repeats == 0:
        return {}
    size = GROUP_SIZE
    if settings.batch_unit == "examples":
        size = max(1, settings.batch_size // (settings.accumulate * accelerator.num_processes))
    task = inputs.dataset[inputs.labelled[0]].task
    examples = [inputs.dataset[position] for position in inputs.labelled[: 2 * size]]
    with accelerator.autocast():
        costs = measure_parts(
            model,
            inputs.dataset,
            [example for example in examples if example.task == task][:size],
            source,
            device=accelerator.device,
            repeats=repeats,
            contrasts=method.num_adapt_steps > 0 and method.settings.adapt_objective == "contrastive",
        )
    return {"parts": asdict(costs)}


def _batch_maker(
    config: FinetuneConfig,
    settings: TrainingSettings,
    plan: PhasePlan,
    student: Student,
    accelerator: Accelerator,
    inputs: _Inputs,
    source: SignalSource | None,
) -> Any:
    rank, world_size = accelerator.process_index, accelerator.num_processes
    if plan.phase == "finetune":
        indices, order = order_examples(
            settings, student, inputs.dataset, inputs.labelled, seed=config.seed, rank=rank, world_size=world_size
        )
        return partial(
            _batches_of, inputs.dataset, indices, student, source, order=order, labelled=True, labelled_ids=None
        )
    texts_each = len(inputs.adapt_dataset[inputs.adapt[0]].candidates)
    order = ExampleOrder(
        len(inputs.adapt),
        batch_size=max(2 * world_size, round(config.adapt_texts / texts_each)),
        accumulate=1,
        seed=config.seed,
        rank=rank,
        world_size=world_size,
    )
    ids = inputs.dataset.example_ids
    # The adapt step may see more inputs than there are labels for.
    labelled_ids = frozenset(ids[position] for position in inputs.labelled)
    return partial(
        _batches_of,
        inputs.adapt_dataset,
        inputs.adapt,
        student,
        source,
        order=order,
        labelled=False,
        labelled_ids=labelled_ids,
        other_ids=inputs.other_ids,
    )


def _batches_of(
    dataset: Dataset,
    indices: Sequence[int],
    student: Student,
    source: SignalSource | None,
    steps: range,
    **settings: Any,
) -> Iterator[list[TrainingBatch]]:
    return training_batches(dataset, indices, student, source, steps=steps, **settings)


def _summary(
    config: FinetuneConfig,
    settings: TrainingSettings,
    method: ResolvedMethod,
    model: FinetuneModel,
    inputs: _Inputs,
    timings: dict[str, PhaseTiming],
    seconds: float,
) -> dict[str, Any]:
    num_steps = sum(timing.num_steps for timing in timings.values())
    computed = sum(timing.seconds for timing in timings.values())
    waited = sum(timing.seconds_waited for timing in timings.values())
    num_examples = sum(timing.num_examples for timing in timings.values())
    return {
        "status": "done",
        "method": config.method,
        "dataset": config.dataset,
        "shots": config.shots,
        "seed": config.seed,
        "num_steps": method.num_adapt_steps + method.num_finetune_steps,
        "recipe": settings.line(),
        "num_labelled": len(inputs.labelled),
        "num_skipped": inputs.num_skipped,
        "num_adapt_inputs": len(inputs.adapt),
        "seconds": seconds,
        "seconds_per_step": computed / max(1, num_steps),
        "samples_per_second": num_examples / computed if computed else 0.0,
        "wait_share": waited / computed if computed else 0.0,
        "phases": {name: {"seconds": t.seconds, "num_steps": t.num_steps} for name, t in timings.items()},
        "student_parameters": sum(parameter.numel() for parameter in model.student.parameters()),
        "training_only_parameters": sum(parameter.numel() for parameter in model.distiller.parameters()),
        "peak_memory_bytes": peak_memory_bytes(),
    }
