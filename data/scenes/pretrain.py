"""`run_pretrain`: pretrain a small vision-language student on image-text pairs only.

The warm-up only trains region-phrase contrast, on states before the fusion. Then contrast, word prediction,
image-text matching and region naming are trained jointly: word prediction and matching alone do not ground words in
regions at this size. The predicted words are masked words, or the complete caption for a chat model. A region is the
visual token of a box, or the patches under the box for students over patches.

The result is stored once and identified by its dataset's content and its settings, like a cache. The folder also
contains the naming head, from which multiple choice starts, and the words of the captions, which count as known to
the student.
"""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from advl_data.scenes.config import PretrainConfig, Pretraining
from advl_data.scenes.moved_pictures import MovedPictures, draw_moves, moved_example
from advl_data.scenes.objectives import PairBatch, PretrainHeads, joint_batch, phrase_targets, without_tags
from advl_pipeline.base.compute import drawing, num_threads, one_training, precision, resolved
from advl_pipeline.base.configuration import config_to_dict, options_without
from advl_pipeline.base.errors import ConfigError, IdentityMismatch, NotFinite, advise
from advl_pipeline.base.folders import LOCK
from advl_pipeline.base.interruption import Stop, finishing, interruptible
from advl_pipeline.base.outputs import require_outputs
from advl_pipeline.base.prefetch import Prefetcher, in_order
from advl_pipeline.base.process_lock import process_lock
from advl_pipeline.base.tensors import moved
from advl_pipeline.cache.identity import difference_table, differences
from advl_pipeline.datasets.records import Dataset, Example
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.datasets.words import word_spans
from advl_pipeline.runs import names
from advl_pipeline.students.heads import save_heads
from advl_pipeline.students.known_words import KNOWN_WORDS_FILE, write_known_words
from advl_pipeline.students.pixel_student import PixelStudent
from advl_pipeline.students.registry import build_student
from advl_pipeline.students.saved import (
    DESCRIPTION_FILE,
    WEIGHTS_FILE,
    read_description,
    save_student,
    write_description,
)
from advl_pipeline.training.batch_order import positions_of_step
from advl_pipeline.training.build_model import fill_towers
from advl_pipeline.training.checkpoint import CheckpointWriter, load_checkpoint, restore
from advl_pipeline.training.optimiser import linear_warmup_decay

CHECKPOINT_EVERY = 100
"""Steps between checkpoints; a signal that stops the pretraining also writes one."""

WEIGHT_DECAY = 0.01
MASK_PROBABILITY = 0.25
"""Share of masked words in a caption."""

SCHEMA = 5
"""Version; increase it when the objectives change, so that an older pretrained student is not reused."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainResult:
    """A pretrained student: its folder, whether it already existed, the last losses, and seconds."""

    output: Path
    reused: bool
    losses: dict[str, float]
    seconds: float


def run_pretrain(config: PretrainConfig) -> PretrainResult:
    """Pretrain a student, or return the stored one with the same identity.

    Raises:
        ConfigError: the student cannot be pretrained here, or the folder contains something other than a student.
        IdentityMismatch: the folder contains another student, or weights that no longer fit.
        NotFinite: a loss is not finite; nothing is written. InUse: another process pretrains the student there.
        KeyboardInterrupt: a signal stopped the pretraining, after the current step; the same call resumes.
    """
    config = resolved(config)
    output = config.output or Path("students") / config.student
    require_outputs(config, output=output)
    kept = "its checkpoint has every step that was finished"
    with interruptible("The pretraining", kept=kept), one_training():
        return _pretrain(config, output)


def _pretrain(config: PretrainConfig, output: Path) -> PretrainResult:
    dataset = open_dataset(config.dataset, split=config.split, data_root=config.data_root)
    with drawing(config.seed):
        student: Any = build_student(config.student)
        if not hasattr(student, "word_table"):
            raise ConfigError(
                f"Student {student.name} brings its own pretraining.",
                why="it has no `word_table`",
                next_command=advise(["advl", "finetune", "--student", student.name, "--init", "CHECKPOINT"]),
            )
        towers = fill_towers(student)
        heads = PretrainHeads(student)
    asked = {item.name: getattr(config, item.name) for item in fields(Pretraining)}
    # The student's defaults, unless options override them.
    usual = getattr(student, "pretraining", Pretraining())
    options = replace(usual, **{name: value for name, value in asked.items() if value is not None})
    origin = {"pretraining": pretrain_identity(config, options, dataset, towers)}
    if (output / DESCRIPTION_FILE).exists():
        rows = differences(origin, read_description(output)["origin"])
        if rows:
            raise IdentityMismatch(
                f"The folder holds a student that was pretrained with other settings ({len(rows)} differ).",
                where=str(output),
                why=f"\n{difference_table(rows)}",
                next_command="choose another --output, or remove the folder",
            )
        # A missing file means that an earlier call was stopped while it wrote them.
        if all((output / name).exists() for name in (WEIGHTS_FILE, names.HEADS, KNOWN_WORDS_FILE)):
            # An older version may have built the student differently from the same settings.
            build_student(config.student, weights=output)
            return PretrainResult(output=output, reused=True, losses={}, seconds=0.0)
    began = time.perf_counter()
    device = torch.device(config.device)
    student.to(device)
    heads.to(device)
    if options.move_pictures:
        if not isinstance(student, PixelStudent):
            raise ConfigError(
                f"{config.student} sees what is in a box, wherever that lies: moved pictures teach it nothing.",
                where="--move-pictures",
                next_command="--move-pictures 0",
            )
        student.pictures = MovedPictures(student.config.image_size)
    captions = [dataset[position] for position in range(len(dataset))]
    if several := next((caption for caption in captions if len(caption.candidates) > 1), None):
        raise ConfigError(
            "Only captions are pretrained on: one text per picture that says what it shows.",
            where=several.example_id,
            next_command="--dataset with captions, such as scenes-captions",
        )
    tagged = [position for position, caption in enumerate(captions) if caption.candidates[0].tags]
    if not tagged:
        raise ConfigError(
            "No caption says which box it names.",
            where=f"{config.dataset}, split {config.split}",
            why="the pretraining aligns phrases with boxes",
            next_command=advise(["advl", "scenes", "build"]),
        )
    try:
        with process_lock(output / LOCK, "this student"):

            def keep(step: int, trained: nn.Module, optimizer: torch.optim.Optimizer) -> None:
                # The description is written first, so that the checkpoint can be attributed.
                write_description(output, student, {}, origin=origin)
                with CheckpointWriter(output / names.CHECKPOINT) as checkpoint:
                    checkpoint.save(trained, optimizer, step=step, stage="pretrain")

            losses = _train(config, options, dataset, tagged, student, heads, output, keep)
            student.to("cpu")
            heads.to("cpu")
            save_student(output, student, origin=origin)
            # Multiple choice starts from the naming head.
            choice = {"task": "choice", "label_names": [], "learned_by": "naming regions in pretraining"}
            save_heads(output, nn.ModuleDict({"choice": heads.naming}), {"choice": choice})
            texts = [caption.candidates[0].text for caption in captions]
            counts = Counter(text[start:end].lower() for text in texts for start, end in word_spans(text))
            write_known_words(output, counts)
            (output / names.CHECKPOINT).unlink(missing_ok=True)
    finally:
        # Remove the folder if nothing was written.
        with suppress(OSError):
            output.rmdir()
    return PretrainResult(output=output, reused=False, losses=losses, seconds=time.perf_counter() - began)


def pretrain_identity(
    config: PretrainConfig, options: Pretraining, dataset: Dataset, towers: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """Return everything that affects the result of the pretraining, and nothing else.

    Args:
        towers: name -> identity of the teachers that the student is initialised from.
    """
    settings = options_without(PretrainConfig, config_to_dict(config), "provenance", "none") | asdict(options)
    settings |= {"weight_decay": WEIGHT_DECAY, "mask_probability": MASK_PROBABILITY}
    if not options.move_pictures:
        # Omitted if unused: students of release 0.2.0, which lacked the option, keep their identity.
        del settings["move_pictures"]
    if towers:
        settings["towers"] = dict(towers)
    return {"schema": SCHEMA, "dataset_digest": dataset.content_digest(), **settings}


def _train(
    config: PretrainConfig,
    options: Pretraining,
    dataset: Dataset,
    positions: Sequence[int],
    student: Any,
    heads: PretrainHeads,
    output: Path,
    keep: Callable[[int, nn.Module, torch.optim.Optimizer], None],
) -> dict[str, float]:
    parameters = [value for module in (student, heads) for value in module.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=options.learning_rate, weight_decay=WEIGHT_DECAY, fused=True)
    num_steps = options.warmup_steps + options.joint_steps
    losses: dict[str, float] = {}
    trained = nn.ModuleList([student, heads])
    checkpoint = load_checkpoint(output / names.CHECKPOINT)
    done = 0
    if checkpoint is not None:
        done = checkpoint[0]
        restore(checkpoint[2], trained, optimizer)
        tqdm.write(f"resumes at step {done + 1} of {num_steps}: {done} are done", file=sys.stderr)
    student.train()

    def read() -> Iterator[tuple[int, list[Example]]]:
        for step in range(done, num_steps):
            chosen = positions_of_step(len(positions), step=step, batch_size=config.batch_size, seed=config.seed)
            yield step, [dataset[positions[int(index)]] for index in chosen]

    def collate(read_step: tuple[int, list[Example]]) -> PairBatch:
        step, examples = read_step
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        if options.move_pictures:
            moves = draw_moves(len(examples), options.move_pictures, generator)
            examples = [moved_example(example, move) for example, move in zip(examples, moves, strict=True)]
        captions = student.collate([without_tags(example) for example in examples])
        return PairBatch(
            captions=captions,
            phrases=phrase_targets(student, examples, captions),
            joint=joint_batch(student, examples, generator) if step >= options.warmup_steps else None,
        )

    num_workers = num_threads(config.num_workers)

    with (
        finishing() as is_asked_to_stop,
        Prefetcher(lambda: in_order(collate, read(), num_workers=num_workers)) as prefetched,
        tqdm(total=num_steps, initial=done, desc="pretrain", unit="step", disable=not sys.stderr.isatty()) as bar,
    ):
        device = torch.device(config.device)
        for step, waiting in enumerate(prefetched, start=done):
            batch = moved(waiting, device)
            seed = config.seed * 1_000_003 + step
            generator = torch.Generator().manual_seed(seed)
            for group in optimizer.param_groups:
                group["lr"] = options.learning_rate * linear_warmup_decay(
                    step, num_steps=num_steps, warmup_fraction=0.05
                )
            with drawing(seed):
                with precision(device, config.mixed_precision):
                    apart = student.encode_unimodal(batch.captions)
                    terms = {"contrast": heads.contrast(apart, batch.captions, batch.phrases)}
                    if batch.joint is not None:
                        # On states after the fusion of text and picture.
                        joint = batch.joint
                        terms["words"] = heads.foretold(student, joint.few, generator, MASK_PROBABILITY)
                        mixed = student.encode(joint.mixed)
                        terms["matching"] = heads.match(mixed, joint.mixed, joint.phrases, joint.is_pair)
                        questions = student.encode(joint.questions)
                        terms["naming"] = heads.name(questions, joint.questions.num_candidates)
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(torch.stack(list(terms.values())).sum())
            norm = torch.nn.utils.clip_grad_norm_(parameters, 2.0)
            losses = {name: float(value.detach()) for name, value in terms.items()}
            values = {**losses, "gradient": float(norm)}
            if bad := [name for name, value in values.items() if not math.isfinite(value)]:
                raise NotFinite(
                    f"Pretraining stopped at step {step}: {', '.join(sorted(bad))} is not finite.",
                    where=str(output),
                    why="its last checkpoint is kept"
                    if (output / names.CHECKPOINT).exists()
                    else "nothing was written",
                    next_command="lower --learning-rate",
                )
            optimizer.step()
            bar.update(1)
            bar.set_postfix({name: f"{value:.2f}" for name, value in losses.items()}, refresh=False)
            if (stops := is_asked_to_stop()) or (step + 1) % CHECKPOINT_EVERY == 0:
                keep(step + 1, trained, optimizer)
            if stops:
                raise Stop
    student.eval()
    return losses
