"""Which states are distilled: those that have seen one modality alone, or those after the fusion."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_corpus import SmallCorpus

from advl_pipeline.cache.reader import open_cache
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.datasets.words import fit_word_prior
from advl_pipeline.distillation.distiller import Distiller
from advl_pipeline.distillation.settings import DistillationSettings
from advl_pipeline.students.registry import build_student
from advl_pipeline.training.batches import collate_batch
from advl_pipeline.training.finetune_model import FinetuneModel, Phase, StepConditions
from advl_pipeline.training.signals import SignalSource
from advl_pipeline.training.teacher_features import cached_teacher


@pytest.mark.parametrize("phase", ["adapt", "finetune"])
@pytest.mark.parametrize("adapt_objective", ["contrastive", "distil-only"])
@pytest.mark.parametrize("distance", ["relational", "mse"])
@pytest.mark.parametrize(("layer", "sees"), [("fused", True), ("unimodal", False)])
def test_only_fused_states_of_words_have_seen_the_picture(
    small_corpus: SmallCorpus, phase: Phase, adapt_objective: str, distance: str, layer: str, sees: bool
) -> None:
    dataset = open_dataset("scenes-vcr", split="train", data_root=small_corpus.data_root, tasks=("vcr-q2a",))
    examples = [dataset[index] for index in range(4)]
    source = SignalSource(
        [cached_teacher(open_cache(path)) for path in small_corpus.caches],
        prior=fit_word_prior(candidate.text for example in examples for candidate in example.candidates),
        target_norm="standardise",
    )
    torch.manual_seed(0)
    student = build_student("scenes-small")
    distiller = Distiller(
        DistillationSettings(
            distill_layer=layer,  # type: ignore[arg-type]
            adapt_objective=adapt_objective,  # type: ignore[arg-type]
            distance=distance,  # type: ignore[arg-type]
            selection="all",
        ),
        source.widths(),
        hidden_size=student.hidden_size,
        pooled_size=student.pooled_size,
    )
    model = FinetuneModel(
        student, {"vcr": student.build_head("vcr", 1)}, distiller, task_loss="softmax-choice"
    ).eval()
    batch = collate_batch(examples, dataset, student, source, labelled=False).to(torch.device("cpu"))
    # The same question with its picture turned into its negative.
    negative = replace(batch.student, crops_BRP=255 - batch.student.crops_BRP)  # type: ignore[attr-defined,call-arg]
    found = [
        model(replace(batch, student=inputs), StepConditions(phase=phase)).raw for inputs in (batch.student, negative)
    ]
    assert found[0]["vision"] != found[1]["vision"]
    assert (found[0]["text"] != found[1]["text"]) == sees
