"""`run_pretrain`: make the demo student a vision-language model pretrained on image-text pairs, and on nothing more.

First region-phrase contrast alone, then contrast, masked words, image-text matching and naming of regions together:
masked words and matching alone do not ground words in regions at this size. The result is stored once and identified
by its dataset's content and its settings, as a cache is.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from advl_pipeline.configuration import config_to_dict
from advl_pipeline.datasets.interface import Dataset
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.errors import ConfigError, IdentityMismatch
from advl_pipeline.students.registry import build_student
from advl_pipeline.students.saved import DESCRIPTION_FILE, read_description, save_student
from advl_pipeline.students.scenes_small import ScenesSmall, ScenesSmallBatch
from advl_pipeline.training.batch_order import positions_of_step
from advl_pipeline.training.prefetch import Prefetcher
from advl_pipeline.training.pretrain_config import PretrainConfig
from advl_pipeline.training.pretrain_objectives import (
    PhraseTargets,
    PretrainHeads,
    mask_words,
    phrase_targets,
    region_questions,
    swap_pictures,
    without_tags,
)
from advl_pipeline.training.schedule import linear_warmup_decay

SCHEMA = 3
"""Raised when the objectives change, so that an older pretrained student is not taken for a newer one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainResult:
    """A pretrained student: its folder, whether it was already there, the last losses, and seconds."""

    output: Path
    reused: bool
    losses: dict[str, float]
    seconds: float


def run_pretrain(config: PretrainConfig) -> PretrainResult:
    """Pretrain a student, or return the stored one when it was made the same way.

    Raises:
        ConfigError: the student cannot be pretrained here. IdentityMismatch: another one lies in the folder.
    """
    dataset = open_dataset(config.dataset, split=config.split, data_root=config.data_root)
    origin = {"pretraining": pretrain_identity(config, dataset)}
    if (config.output / DESCRIPTION_FILE).exists():
        found = read_description(config.output)["origin"]
        if found == origin:
            return PretrainResult(output=config.output, reused=True, losses={}, seconds=0.0)
        raise IdentityMismatch(
            "The folder holds a student that was pretrained otherwise.",
            where=str(config.output),
            why=f"here {json.dumps(found, sort_keys=True)}; asked for {json.dumps(origin, sort_keys=True)}",
            next_command="choose another --output, or remove the folder",
        )
    began = time.perf_counter()
    torch.manual_seed(config.seed)
    student = build_student(config.student)
    if not isinstance(student, ScenesSmall):
        raise ConfigError(
            f"Student {config.student} brings its own pretraining.",
            next_command="advl finetune --student NAME --init CHECKPOINT",
        )
    losses = _train(config, dataset, student)
    save_student(config.output, student, origin=origin)
    return PretrainResult(output=config.output, reused=False, losses=losses, seconds=time.perf_counter() - began)


def pretrain_identity(config: PretrainConfig, dataset: Dataset) -> dict[str, Any]:
    """Return what changes the result of the pretraining, and nothing else."""
    settings = {key: value for key, value in config_to_dict(config).items() if key not in ("output", "data_root")}
    return {"schema": SCHEMA, "dataset_digest": dataset.content_digest(), **settings}


@dataclass(kw_only=True)
class _PairBatch:
    """Captions with their own pictures, their phrases, and a question about a region of each, in order."""

    captions: ScenesSmallBatch
    phrases: PhraseTargets
    questions: ScenesSmallBatch
    is_named: torch.Tensor


def _train(config: PretrainConfig, dataset: Dataset, student: ScenesSmall) -> dict[str, float]:
    heads = PretrainHeads(student)
    parameters = [*student.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
    num_steps = config.warmup_steps + config.joint_steps
    losses: dict[str, float] = {}
    student.train()

    def batches() -> Iterator[_PairBatch]:
        for step in range(num_steps):
            positions = positions_of_step(len(dataset), step=step, batch_size=config.batch_size, seed=config.seed)
            examples = [dataset[int(position)] for position in positions]
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
            captions = student.collate([without_tags(example) for example in examples])
            asked, is_named = region_questions(examples, generator)
            yield _PairBatch(
                captions=captions,
                phrases=phrase_targets(examples, captions.box_index_NR),
                questions=student.collate(asked),
                is_named=is_named,
            )

    with (
        Prefetcher(batches) as prefetched,
        tqdm(total=num_steps, desc="pretrain", unit="step", disable=not sys.stderr.isatty()) as bar,
    ):
        for step, batch in enumerate(prefetched):
            torch.manual_seed(config.seed * 1_000_003 + step)
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * linear_warmup_decay(
                    step, num_steps=num_steps, warmup_fraction=0.05
                )
            text_NLH, visual_NRH = student.text_states(batch.captions), student.visual_states(batch.captions)
            terms = {"contrast": heads.contrast(text_NLH, visual_NRH, batch.captions, batch.phrases)}
            if step >= config.warmup_steps:
                terms |= _joint(config, student, heads, batch, text_NLH, visual_NRH, generator)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(torch.stack(list(terms.values())).sum())
            torch.nn.utils.clip_grad_norm_(parameters, 2.0)
            optimizer.step()
            losses = {name: float(value.detach()) for name, value in terms.items()}
            bar.update(1)
            bar.set_postfix({name: f"{value:.2f}" for name, value in losses.items()}, refresh=False)
    student.eval()
    return losses


def _joint(
    config: PretrainConfig,
    student: ScenesSmall,
    heads: PretrainHeads,
    batch: _PairBatch,
    text_NLH: torch.Tensor,
    visual_NRH: torch.Tensor,
    generator: torch.Generator,
) -> dict[str, torch.Tensor]:
    """Return the objectives of the joint layers; the states below them are computed once for all."""
    shown = batch.captions
    maskable = shown.char_spans_NL2[..., 1] > shown.char_spans_NL2[..., 0]
    masked_ids, targets = mask_words(
        shown.token_ids_NL,
        maskable,
        probability=config.mask_probability,
        mask_id=student.word_pieces.mask_id,
        generator=generator,
    )
    masked = replace(shown, token_ids_NL=masked_ids)
    guessed = student.join(student.text_states(masked), visual_NRH, masked)
    picture, is_pair = swap_pictures(shown.num_sequences, generator)
    mixed = student.join(text_NLH, visual_NRH[picture], shown, visual_mask_NR=shown.visual_mask_NR[picture])
    named = student.join(student.text_states(batch.questions), visual_NRH, batch.questions)
    return {
        "words": heads.masked_words(guessed, student.word_embedding.weight, targets),
        "matching": heads.match(mixed, shown, batch.phrases, is_pair),
        "naming": heads.name(named, batch.is_named),
    }
