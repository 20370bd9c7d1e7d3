"""A run up to its first step: everything is opened as for training, and one batch of each method step is scored."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import torch
from small_corpus import train

from advl_pipeline.training import run
from advl_pipeline.training.batches import received
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.signals.confidences import measure_student_confidence
from advl_pipeline.training.step import StepConditions

CPU = torch.device("cpu")


class _Opened(Exception):
    """Ends a run before its training starts."""


def open_run(config: FinetuneConfig) -> Any:
    """Return all parts of a run, opened and checked but not trained."""

    def keep(opened: Any) -> int:
        raise _Opened(opened)

    with patch.object(run, "_train", keep):
        try:
            train(config)
        except _Opened as stopped:
            return stopped.args[0]
    raise AssertionError("the run was finished before")


def first_terms(config: FinetuneConfig) -> dict[str, float]:
    """Return every loss term of the first batch of each method step."""
    opened = open_run(config)
    model, means = opened.model, dict[str, float]()
    for stage, num_steps in (("adapt", opened.session.prepared.run.method.num_adapt_steps), ("finetune", 1)):
        if not num_steps:
            continue
        if stage == "finetune" and model.remembered is not None:
            inputs = opened.session.prepared.inputs
            known = inputs.dataset, inputs.labelled
            model.remembered.begin(measure_student_confidence(opened.start, model.task_loss, *known))
        sent = next(run._batch_maker(opened, stage)(range(1)))
        generator = torch.Generator().manual_seed(1)
        torch.manual_seed(1)
        step = StepConditions(stage=stage, generator=generator)
        terms = [model.train(stage == "finetune")(batch, step) for batch in received(sent, CPU)]
        for batch_terms in terms:
            for kind, losses in (("raw", batch_terms.raw), ("weighted", batch_terms.weighted)):
                for name, value in losses.items():
                    key = f"{stage}/{kind}/{name}"
                    means[key] = means.get(key, 0.0) + float(value.detach()) / len(terms)
    return means
