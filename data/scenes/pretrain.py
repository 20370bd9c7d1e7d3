"""`run_pretrain`: make a small student a vision-language model pretrained on image-text pairs, and on nothing more.

First region-phrase contrast alone, on states that have not met, then contrast, words, image-text matching and
naming of regions together: words and matching alone do not ground words in regions at this size. Words are masked
ones, or of a chat model the whole caption. A region is a box's own visual token, or for students over patches the
patches under the box.

The result is stored once and identified by its dataset's content and its settings, as a cache is. With the student
are stored its naming head, from which multiple choice starts, and the words of the captions, which it may be said to
know.

Shapes: N captions, L tokens, R visual tokens or boxes, Q phrases of the batch, H width,
E width of word vectors, V word pieces.
"""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from advl_data.scenes.config import PretrainConfig, Pretraining
from advl_data.scenes.moved_pictures import MovedPictures, draw_moves, moved_example
from advl_pipeline.cache.identity import difference_table, differences
from advl_pipeline.compute import num_threads, precision, resolved
from advl_pipeline.configuration import config_to_dict, options_without
from advl_pipeline.datasets.records import Candidate, Dataset, Example, ObjectTag, head_name, text_unit
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.datasets.words import word_spans
from advl_pipeline.distillation.distiller import INITIAL_TEMPERATURE
from advl_pipeline.errors import ConfigError, IdentityMismatch, NotFinite, advise
from advl_pipeline.folders import LOCK
from advl_pipeline.interruption import Stop, finishing, interruptible
from advl_pipeline.outputs import require_outputs
from advl_pipeline.prefetch import Prefetcher, in_order
from advl_pipeline.process_lock import process_lock
from advl_pipeline.runs import names
from advl_pipeline.students.generative import GenerativeStudent
from advl_pipeline.students.interface import Student, StudentBatch, StudentOutput, moved
from advl_pipeline.students.pixel_student import PixelStudent
from advl_pipeline.students.registry import build_student
from advl_pipeline.students.saved import (
    DESCRIPTION_FILE,
    WEIGHTS_FILE,
    read_description,
    save_student,
    write_description,
)
from advl_pipeline.students.weight_files import KNOWN_WORDS_FILE, write_known_words
from advl_pipeline.training.batch_order import positions_of_step
from advl_pipeline.training.checkpoint import CheckpointWriter, read_checkpoint, restore
from advl_pipeline.training.heads import save_heads
from advl_pipeline.training.optimiser import linear_warmup_decay
from advl_pipeline.training.placement import places_of_boxes
from advl_pipeline.training.targets import shape_logits

FEW = 4
"""Words are masked, and pictures swapped, in one of so many captions of a batch: they cost most and teach least."""

CHECKPOINT_EVERY = 100
"""Steps between checkpoints; a signal that stops the pretraining has one written too."""

ASKED = 2
"""A region of one of so many pictures of a batch is asked about."""

SCHEMA = 5
"""Raised when the objectives change, so that an older pretrained student is not taken for a newer one."""


@dataclass(kw_only=True)
class PhraseTargets:
    """Phrases of a batch: their caption, characters, place in the picture, and a number that equal wordings share.

    `place_QR` (float32) sums to 1: the box's visual token, or the shares of the box on the patches.
    """

    caption_Q: torch.Tensor
    span_Q2: torch.Tensor
    place_QR: torch.Tensor
    wording_Q: torch.Tensor


def phrase_targets(student: Student, examples: Sequence[Example], batch: StudentBatch) -> PhraseTargets:
    """Gather the phrases that name a box, from the captions' object tags."""
    captions, spans, places, wordings = [], [], [], []
    numbers: dict[str, int] = {}
    of_boxes = places_of_boxes(student, examples, batch)
    for row, (example, places_BR) in enumerate(zip(examples, of_boxes, strict=True)):
        (candidate,) = example.candidates
        for tag in candidate.tags:
            captions.append(row)
            spans.append((tag.start, tag.end))
            places.append(places_BR[tag.box])
            wording = candidate.text[tag.start : tag.end].lower()
            wordings.append(numbers.setdefault(wording, len(numbers)))
    return PhraseTargets(
        caption_Q=torch.tensor(captions),
        span_Q2=torch.tensor(spans),
        place_QR=torch.stack(places),
        wording_Q=torch.tensor(wordings),
    )


def count_words(texts: Iterable[str]) -> Counter[str]:
    """Return how often each word comes up, in lower case."""
    return Counter(text[start:end].lower() for text in texts for start, end in word_spans(text))


def without_tags(example: Example) -> Example:
    """Return the example with its object tags removed, so that no word piece is shown its box."""
    return replace(example, candidates=tuple(replace(candidate, tags=()) for candidate in example.candidates))


_ANSWERS = (
    "{phrase}",
    "{phrase} .",
    "this is {phrase}",
    "there is {phrase}",
    "it is {phrase} .",
    "that is {phrase} .",
)
"""How captions speak of one thing."""


def region_questions(
    examples: Sequence[Example], generator: torch.Generator, *, num_asked: int | None = None
) -> list[Example]:
    """Ask of one box in each of the first `num_asked` pictures, or of all, which of four phrases names it: "object 3"
    with "this is a cat" as the first choice.

    One wrong phrase is of the same caption, so that the answer needs the box and not only the picture; two are of
    other captions. The tag is the context of each candidate, the phrase in the language of captions its answer, and
    the task that of a choice, so that a student lays the two out as it will lay out question and answer. The right
    phrase comes first. Phrases of one wording are offered once.
    """
    asked = []
    for row, example in enumerate(examples[:num_asked]):
        (caption,) = example.candidates
        own = caption.tags[_draw(len(caption.tags), generator)]
        phrases = [
            named_phrase(caption.text, tag) for tag in (own, caption.tags[_draw(len(caption.tags), generator)])
        ]
        for shift in (1, 2):
            (other,) = examples[(row + shift) % len(examples)].candidates
            phrases.append(named_phrase(other.text, other.tags[_draw(len(other.tags), generator)]))
        answer = _ANSWERS[_draw(len(_ANSWERS), generator)]
        name = f"object {own.box + 1}"
        asked.append(
            replace(
                example,
                task="vcr-q2a",
                candidates=tuple(
                    Candidate(
                        text_unit=text_unit(f"{name} {answer.format(phrase=phrase)}"),
                        context_length=len(name),
                        tags=(ObjectTag(start=0, end=len(name), box=own.box),),
                    )
                    for phrase in dict.fromkeys(phrases)
                ),
            )
        )
    return asked


def named_phrase(text: str, tag: ObjectTag) -> str:
    """Return a phrase with the article that stands before it, if there is one."""
    before = text[: tag.start].split()
    article = f"{before[-1]} " if before and before[-1].lower() in ("a", "an", "the") else ""
    return f"{article}{text[tag.start : tag.end]}"


def _draw(limit: int, generator: torch.Generator) -> int:
    return int(torch.randint(limit, (1,), generator=generator))


class PretrainHeads(nn.Module):
    """Heads of the objectives. The naming head alone is kept: multiple choice starts from it.

    A student that answers in words foretells captions with its own output layer; it has no head of masked words.
    """

    def __init__(self, student: Any) -> None:
        super().__init__()
        width = student.hidden_size
        self.log_temperature = nn.Parameter(torch.tensor(INITIAL_TEMPERATURE).log())
        words, _ = student.word_table()
        if not isinstance(student, GenerativeStudent):
            word_size = words.embedding_dim
            self.word_transform = nn.Sequential(nn.Linear(width, word_size), nn.GELU(), nn.LayerNorm(word_size))
            self.word_bias = nn.Parameter(torch.zeros(words.num_embeddings))
        self.matching = nn.Linear(student.pooled_size, 2)
        self.phrase_matching = nn.Linear(width, 2)
        self.naming = student.build_head("vcr-q2a", 1)

    def contrast(self, apart: StudentOutput, batch: StudentBatch, phrases: PhraseTargets) -> torch.Tensor:
        """Return symmetric InfoNCE between phrases and their boxes over the batch.

        The states themselves are aligned, without a projection in between, so that the attention of the joint layers
        finds a word's region by likeness. Boxes that another phrase calls by the same wording are no negatives.
        """
        phrase_QH = phrase_states(apart.text_states_NLH, batch, phrases)
        region_QH = (phrases.place_QR[:, None] @ apart.visual_states_NRH[phrases.caption_Q])[:, 0]
        phrase = functional.normalize(phrase_QH, dim=-1)
        region = functional.normalize(region_QH, dim=-1)
        logits_QQ = phrase @ region.T / self.log_temperature.exp().clamp(min=0.01)
        same = phrases.wording_Q[:, None] == phrases.wording_Q[None, :]
        same &= ~torch.eye(len(same), dtype=torch.bool, device=same.device)
        logits_QQ = logits_QQ.masked_fill(same, -torch.inf)
        target = torch.arange(len(logits_QQ), device=logits_QQ.device)
        return (functional.cross_entropy(logits_QQ, target) + functional.cross_entropy(logits_QQ.T, target)) / 2

    def masked_words(self, output: StudentOutput, vectors_VE: torch.Tensor, targets_NL: torch.Tensor) -> torch.Tensor:
        """Return cross-entropy over the vocabulary at masked tokens (targets -100 elsewhere), output layer tied."""
        where = targets_NL >= 0
        if not where.any():
            return output.pooled_NP.sum() * 0.0
        states = self.word_transform(output.text_states_NLH[where])
        return functional.cross_entropy(states @ vectors_VE.T + self.word_bias, targets_NL[where])

    def match(
        self, output: StudentOutput, batch: StudentBatch, phrases: PhraseTargets, is_pair_N: torch.Tensor
    ) -> torch.Tensor:
        """Return cross-entropy of whether the picture is the caption's, from the pooled state and from each phrase.

        One decision per caption teaches attention slowly; one per phrase says where to look.
        """
        phrase_QH = phrase_states(output.text_states_NLH, batch, phrases)
        is_pair_Q = is_pair_N[phrases.caption_Q].long()
        of_phrases = functional.cross_entropy(self.phrase_matching(phrase_QH), is_pair_Q)
        return functional.cross_entropy(self.matching(output.pooled_NP), is_pair_N.long()) + of_phrases

    def name(self, output: StudentOutput, num_candidates: Sequence[int]) -> torch.Tensor:
        """Return cross-entropy of which phrase names the box (see `region_questions`): the first of each example."""
        logits = shape_logits(output.class_logits(self.naming), num_candidates, is_choice=True)
        return functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


def phrase_states(text_NLH: torch.Tensor, batch: StudentBatch, phrases: PhraseTargets) -> torch.Tensor:
    """Return (Q, H): the mean state of the tokens of each phrase."""
    spans_QL2 = batch.char_spans_NL2[phrases.caption_Q]
    inside_QL = (spans_QL2[..., 0] >= phrases.span_Q2[:, :1]) & (spans_QL2[..., 1] <= phrases.span_Q2[:, 1:])
    weights_QL = (inside_QL & (spans_QL2[..., 1] > spans_QL2[..., 0])).float()
    summed_QH = (text_NLH[phrases.caption_Q] * weights_QL[..., None]).sum(1)
    return summed_QH / weights_QL.sum(1, keepdim=True).clamp(min=1)


def mask_words(
    token_ids_NL: torch.Tensor,
    maskable_NL: torch.Tensor,
    *,
    probability: float,
    mask_id: int,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (masked ids, targets): each maskable token is masked with the probability; targets -100 elsewhere."""
    drawn_NL = torch.rand(token_ids_NL.shape, generator=generator).to(token_ids_NL.device)
    chosen = (drawn_NL < probability) & maskable_NL
    return token_ids_NL.masked_fill(chosen, mask_id), token_ids_NL.masked_fill(~chosen, -100)


def swap_pictures(batch_size: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (picture of each caption, whether it is its own): half of the captions get another one's picture."""
    swapped = torch.rand(batch_size, generator=generator) < 0.5
    shift = int(torch.randint(1, max(2, batch_size), (1,), generator=generator))
    index = torch.arange(batch_size)
    index = torch.where(swapped, (index + shift) % batch_size, index)
    return index, index == torch.arange(batch_size)


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
        ConfigError: the student cannot be pretrained here, or the folder holds something else than a student.
        IdentityMismatch: another one lies in the folder, or weights that no longer fit.
        NotFinite: a loss became so; nothing is written. InUse: another process makes the student there. Interrupted:
        stopped by a signal, after the step that it came in; the same call resumes.
    """
    config = resolved(config)
    output = config.output or Path("students") / config.student
    require_outputs(config, output=output)
    with interruptible("The pretraining", kept="its checkpoint has every step that was finished"):
        return _pretrain(config, output)


def _pretrain(config: PretrainConfig, output: Path) -> PretrainResult:
    dataset = open_dataset(config.dataset, split=config.split, data_root=config.data_root)
    torch.manual_seed(config.seed)
    student: Any = build_student(config.student)
    if not hasattr(student, "word_table"):
        raise ConfigError(
            f"Student {student.name} brings its own pretraining.",
            why="it does not give its word pieces and mask token (`word_table`)",
            next_command=advise(["advl", "finetune", "--student", student.name, "--init", "CHECKPOINT"]),
        )
    asked = {item.name: getattr(config, item.name) for item in fields(Pretraining)}
    # Where nothing is asked for, it is what suits the student.
    usual = getattr(student, "pretraining", Pretraining())
    options = replace(usual, **{name: value for name, value in asked.items() if value is not None})
    origin = {"pretraining": pretrain_identity(config, options, dataset)}
    if (output / DESCRIPTION_FILE).exists():
        rows = differences(origin, read_description(output)["origin"])
        if rows:
            raise IdentityMismatch(
                f"The folder holds a student that was pretrained otherwise ({len(rows)} settings differ).",
                where=str(output),
                why="\n" + difference_table(rows),
                next_command="choose another --output, or remove the folder",
            )
        # Where one is missing, an earlier call was stopped while it wrote them.
        if all((output / name).exists() for name in (WEIGHTS_FILE, names.HEADS, KNOWN_WORDS_FILE)):
            # An older version may have built the student otherwise, from the same settings.
            build_student(config.student, weights=output)
            return PretrainResult(output=output, reused=True, losses={}, seconds=0.0)
    began = time.perf_counter()
    device = torch.device(config.device)
    student.to(device)
    if options.move_pictures:
        if not isinstance(student, PixelStudent):
            raise ConfigError(
                f"{config.student} sees what is in a box, wherever that lies.",
                where="--move-pictures",
                why="only a student over patches learns anything from moved pictures",
                next_command="--move-pictures 0",
            )
        student.pictures = MovedPictures(student.config.image_size)
    heads = PretrainHeads(student).to(device)
    captions = [dataset[position] for position in range(len(dataset))]
    if several := next((caption for caption in captions if len(caption.candidates) > 1), None):
        raise ConfigError(
            "Only captions are pretrained on: one text per picture that says what it shows.",
            where=several.example_id,
            why=f"the item has {len(several.candidates)} candidates",
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
                # The description comes first, so that it is known whose checkpoint lies there.
                write_description(output, student, {}, origin=origin)
                with CheckpointWriter(output / names.CHECKPOINT) as checkpoint:
                    checkpoint.save(trained, optimizer, step=step, phase="pretrain")

            losses = _train(config, options, dataset, tagged, student, heads, output, keep)
            student.to("cpu")
            heads.to("cpu")
            save_student(output, student, origin=origin)
            # Multiple choice begins with the head that named regions.
            choice = {"task": "vcr-q2a", "label_names": [], "learned_by": "naming regions in pretraining"}
            save_heads(output, nn.ModuleDict({head_name("vcr-q2a"): heads.naming}), {head_name("vcr-q2a"): choice})
            write_known_words(output, count_words(caption.candidates[0].text for caption in captions))
            (output / names.CHECKPOINT).unlink(missing_ok=True)
    finally:
        # Nothing is left behind where nothing was written.
        with suppress(OSError):
            output.rmdir()
    return PretrainResult(output=output, reused=False, losses=losses, seconds=time.perf_counter() - began)


def pretrain_identity(config: PretrainConfig, options: Pretraining, dataset: Dataset) -> dict[str, Any]:
    """Return what changes the result of the pretraining, and nothing else."""
    settings = options_without(PretrainConfig, config_to_dict(config), "beside", "none") | asdict(options)
    if not options.move_pictures:
        # Students of release 0.2.0 were made without the option, as one is that does without it.
        del settings["move_pictures"]
    return {"schema": SCHEMA, "dataset_digest": dataset.content_digest(), **settings}


@dataclass(kw_only=True)
class _JointBatch:
    """A few captions with their own pictures and with others; questions about a region of some pictures."""

    few: StudentBatch
    phrases: PhraseTargets
    mixed: StudentBatch
    is_pair: torch.Tensor
    questions: StudentBatch


@dataclass(kw_only=True)
class _PairBatch:
    """Captions with their own pictures, and after the warm-up what the joint objectives need besides."""

    captions: StudentBatch
    phrases: PhraseTargets
    joint: _JointBatch | None


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
    parameters = [*student.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=options.learning_rate, weight_decay=config.weight_decay, fused=True)
    num_steps = options.warmup_steps + options.joint_steps
    losses: dict[str, float] = {}
    trained = nn.ModuleList([student, heads])
    checkpoint = read_checkpoint(output / names.CHECKPOINT)
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

    def collate(read_step: tuple[int, list[Example]]) -> _PairBatch:
        step, examples = read_step
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        if options.move_pictures:
            moves = draw_moves(len(examples), options.move_pictures, generator)
            examples = [moved_example(example, move) for example, move in zip(examples, moves, strict=True)]
        captions = student.collate([without_tags(example) for example in examples])
        return _PairBatch(
            captions=captions,
            phrases=phrase_targets(student, examples, captions),
            joint=_joint_batch(student, examples, generator) if step >= options.warmup_steps else None,
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
            torch.manual_seed(config.seed * 1_000_003 + step)
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
            for group in optimizer.param_groups:
                group["lr"] = options.learning_rate * linear_warmup_decay(
                    step, num_steps=num_steps, warmup_fraction=0.05
                )
            with precision(device, config.mixed_precision):
                apart = student.encode_unimodal(batch.captions)
                terms = {"contrast": heads.contrast(apart, batch.captions, batch.phrases)}
                if batch.joint is not None:
                    # Of states in which text and picture have met.
                    joint = batch.joint
                    if isinstance(student, GenerativeStudent):
                        # It foretells words one by one, and no masked ones.
                        answered = student.encode(joint.few).answered
                        assert answered is not None
                        terms["words"] = -answered.log_likelihood_NK.sum() / answered.num_tokens_NK.sum()
                    else:
                        words, mask_id = student.word_table()
                        spans_NL2 = joint.few.char_spans_NL2
                        masked_ids, targets = mask_words(
                            joint.few.token_ids_NL,
                            spans_NL2[..., 1] > spans_NL2[..., 0],
                            probability=config.mask_probability,
                            mask_id=mask_id,
                            generator=generator,
                        )
                        masked = student.encode(replace(joint.few, token_ids_NL=masked_ids))
                        terms["words"] = heads.masked_words(masked, words.weight, targets)
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
                has_checkpoint = (output / names.CHECKPOINT).exists()
                raise NotFinite(
                    f"Pretraining stopped at step {step}: {', '.join(sorted(bad))} is not finite.",
                    where=str(output),
                    why="its last checkpoint is kept" if has_checkpoint else "nothing was written",
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


def _joint_batch(student: Student, examples: Sequence[Example], generator: torch.Generator) -> _JointBatch:
    few = examples[: max(2, len(examples) // FEW)]
    untagged = [without_tags(example) for example in few]
    picture, is_pair = swap_pictures(len(few), generator)
    mixed = [
        replace(example, image=examples[index].image)
        for example, index in zip(untagged, picture.tolist(), strict=True)
    ]
    asked = region_questions(examples, generator, num_asked=max(1, len(examples) // ASKED))
    own = student.collate(untagged)
    return _JointBatch(
        few=own,
        phrases=phrase_targets(student, few, own),
        mixed=student.collate(mixed),
        is_pair=is_pair,
        questions=student.collate(asked),
    )
