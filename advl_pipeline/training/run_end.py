"""The end of a run: its weights are looked at, and the student, its heads and what was found are written."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator

from advl_pipeline.runs import names
from advl_pipeline.runs.results import read_log
from advl_pipeline.runs.run_folder import RunFolder
from advl_pipeline.students.memory import lora_settings, merge_lora
from advl_pipeline.students.saved import Adapter, save_student
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.finetune_model import FinetuneModel, Phase
from advl_pipeline.training.finite import StepPlace, require_finite_weights
from advl_pipeline.training.heads import save_heads
from advl_pipeline.training.inputs import Inputs
from advl_pipeline.training.process_memory import peak_memory_bytes
from advl_pipeline.training.resolved import Run
from advl_pipeline.training.signals import SignalSource
from advl_pipeline.training.step_log import PhaseTotals, phase_totals
from advl_pipeline.training.student_inputs import StudentInputs
from advl_pipeline.training.word_selection import describe_selection, selected_words, selects_words


def end_run(
    run: Run,
    given: FinetuneConfig,
    model: FinetuneModel,
    accelerator: Accelerator,
    folder: RunFolder,
    inputs: Inputs,
    source: SignalSource | None,
    reads: StudentInputs,
    *,
    began: float,
    first_step: int,
) -> None:
    """Write the student, its heads, the words that were selected and `result.json`; then the checkpoint goes.

    Args:
        given: the options as they were given, for the base that an adapter is of.
        model: after its last step.
        source: of the teachers' signals, None for methods without.
        began: when this sitting began, by `time.perf_counter`.
        first_step: step that it began with; those before were taken in others.

    Raises:
        NotFinite: a weight is not.
    """
    updates = lora_settings(model.student, run.config)
    adapter = None
    if updates is not None and model.student.lora is not None and given.init is not None:
        adapter = Adapter(updates=updates, base=given.init)
    elif updates is not None:
        merge_lora(model.student)
    end = StepPlace(config=run.config, step=run.num_steps, phase="finetune", num_saved=run.num_steps)
    require_finite_weights(model, end)
    config = run.config
    origin = {"method": config.method, "dataset": config.dataset, "seed": config.seed, "shots": config.shots}
    save_student(folder.path, model.student, origin=origin, adapter=adapter)
    if adapter is not None:
        merge_lora(model.student)
    save_heads(folder.path, model, inputs.dataset)
    if source is not None and selects_words(model):
        words = selected_words(model, inputs.dataset, inputs.labelled, source, device=accelerator.device)
        folder.write_json(names.SELECTED_WORDS, words)
        folder.write_json(names.WORD_SELECTION, describe_selection(model, source))
    records = read_log(folder.path)
    earlier = phase_totals([record for record in records if record["step"] < first_step])
    seconds = time.perf_counter() - began + sum(totals.seconds for totals in earlier.values())
    summary = _summary(run, model, inputs, phase_totals(records), seconds)
    summary["student_start"] = reads.start
    summary["caveats"] = list(reads.caveats)
    folder.write_json(names.RESULT, summary)
    folder.checkpoint.unlink(missing_ok=True)


def _summary(
    run: Run,
    model: FinetuneModel,
    inputs: Inputs,
    phases: Mapping[Phase, PhaseTotals],
    seconds: float,
) -> dict[str, Any]:
    config = run.config
    totals = phases.values()
    num_steps = sum(total.num_steps for total in totals)
    computed = sum(total.seconds for total in totals)
    waited = sum(total.seconds_waited for total in totals)
    num_examples = sum(total.num_examples for total in totals)
    return {
        "status": "done",
        "method": config.method,
        "dataset": config.dataset,
        "shots": config.shots,
        "seed": config.seed,
        "num_steps": run.num_steps,
        "recipe": run.settings.line(),
        "num_labelled": len(inputs.labelled),
        "num_skipped": inputs.num_skipped,
        "num_adapt_inputs": len(inputs.adapt),
        "seconds": seconds,
        "seconds_per_step": computed / max(1, num_steps),
        "samples_per_second": num_examples / computed if computed else 0.0,
        "num_texts": sum(total.num_texts for total in totals),
        "num_texts_cut": sum(total.num_texts_cut for total in totals),
        "wait_share": waited / computed if computed else 0.0,
        "seconds_preparing": sum(total.seconds_preparing for total in totals) / max(1, num_steps),
        "phases": {
            name: {"seconds": t.seconds, "num_steps": t.num_steps, "num_examples": t.num_examples}
            for name, t in phases.items()
        },
        "student_parameters": sum(parameter.numel() for parameter in model.student.parameters()),
        "training_only_parameters": sum(parameter.numel() for parameter in model.distiller.parameters()),
        "peak_memory_bytes": peak_memory_bytes(),
    }
