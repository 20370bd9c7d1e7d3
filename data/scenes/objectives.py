"""Pretraining objectives: their targets from captions, and their heads.

Shapes: N captions, L tokens, R visual tokens or boxes, Q phrases of the batch, H width, E width of word vectors,
V word pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from advl_pipeline.datasets.records import Candidate, Example, ObjectTag, text_unit
from advl_pipeline.distillation.distiller import INITIAL_TEMPERATURE
from advl_pipeline.students.generative import GenerativeStudent
from advl_pipeline.students.heads import shape_logits
from advl_pipeline.students.interface import Student, StudentBatch, StudentOutput
from advl_pipeline.training.signals.averages import box_shares

FEW = 4
"""One in this many captions of a batch gets masked words and a swapped picture: these cost most and teach least."""

ASKED = 2
"""One in this many pictures of a batch gets a region question."""


@dataclass(kw_only=True)
class PhraseTargets:
    """Phrases of a batch: caption, characters, place in the picture, and a number that equal phrases share.

    `place_QR` (float32) sums to 1: the box's visual token, or the box's shares on the patches.
    """

    caption_Q: torch.Tensor
    span_Q2: torch.Tensor
    place_QR: torch.Tensor
    wording_Q: torch.Tensor


def phrase_targets(student: Student, examples: Sequence[Example], batch: StudentBatch) -> PhraseTargets:
    """Return the phrases that name a box, from the captions' object tags."""
    captions, spans, places, wordings = [], [], [], []
    numbers: dict[str, int] = {}
    most = max(len(example.image.boxes_R4) for example in examples)
    share_BSR = box_shares(examples, batch, student.places, most)
    for row, (example, places_SR) in enumerate(zip(examples, share_BSR, strict=True)):
        (candidate,) = example.candidates
        for tag in candidate.tags:
            captions.append(row)
            spans.append((tag.start, tag.end))
            places.append(places_SR[tag.box])
            wording = candidate.text[tag.start : tag.end].lower()
            wordings.append(numbers.setdefault(wording, len(numbers)))
    return PhraseTargets(
        caption_Q=torch.tensor(captions),
        span_Q2=torch.tensor(spans),
        place_QR=torch.stack(places),
        wording_Q=torch.tensor(wordings),
    )


def without_tags(example: Example) -> Example:
    """Return the example without object tags, so that no word piece receives its box."""
    return replace(example, candidates=tuple(replace(candidate, tags=()) for candidate in example.candidates))


_ANSWERS = (
    "{phrase}",
    "{phrase} .",
    "this is {phrase}",
    "there is {phrase}",
    "it is {phrase} .",
    "that is {phrase} .",
)
"""Caption templates for one thing."""


def region_questions(
    examples: Sequence[Example], generator: torch.Generator, *, num_asked: int | None = None
) -> list[Example]:
    """Ask for one box in each of the first `num_asked` pictures, or in all, which of four phrases names it:
    "object 3" with "this is a cat" as the first choice.

    One wrong phrase is from the same caption, so that the answer needs the box and not only the picture; two are from
    other captions. The tag is the context of each candidate, the phrase in a caption template is its answer, and the
    task is multiple choice, so that the student uses the same layout as for question and answer. The right phrase
    comes first. Equal phrases are offered once.
    """
    asked = []
    for row, example in enumerate(examples[:num_asked]):
        (caption,) = example.candidates
        asked_tag = caption.tags[_draw(len(caption.tags), generator)]
        phrases = [
            named_phrase(caption.text, tag) for tag in (asked_tag, caption.tags[_draw(len(caption.tags), generator)])
        ]
        for shift in (1, 2):
            (other,) = examples[(row + shift) % len(examples)].candidates
            phrases.append(named_phrase(other.text, other.tags[_draw(len(other.tags), generator)]))
        answer = _ANSWERS[_draw(len(_ANSWERS), generator)]
        name = f"object {asked_tag.box + 1}"
        asked.append(
            replace(
                example,
                task="vcr-q2a",
                candidates=tuple(
                    Candidate(
                        text_unit=text_unit(f"{name} {answer.format(phrase=phrase)}"),
                        context_length=len(name),
                        tags=(ObjectTag(start=0, end=len(name), box=asked_tag.box),),
                    )
                    for phrase in dict.fromkeys(phrases)
                ),
            )
        )
    return asked


def named_phrase(text: str, tag: ObjectTag) -> str:
    """Return a phrase with its article, if it has one."""
    before = text[: tag.start].split()
    article = f"{before[-1]} " if before and before[-1].lower() in ("a", "an", "the") else ""
    return f"{article}{text[tag.start : tag.end]}"


def _draw(limit: int, generator: torch.Generator) -> int:
    return int(torch.randint(limit, (1,), generator=generator))


class PretrainHeads(nn.Module):
    """Heads of the objectives. Only the naming head is stored: multiple choice starts from it.

    A generative student predicts captions with its own output layer; it has no head for masked words.
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
        self.naming = student.build_head("choice", 1)

    def contrast(self, apart: StudentOutput, batch: StudentBatch, phrases: PhraseTargets) -> torch.Tensor:
        """Return the symmetric InfoNCE between phrases and their boxes over the batch.

        It aligns the states directly, without a projection, so that the attention of the joint layers finds a word's
        region by similarity. Boxes of another phrase with the same text are not negatives.
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

    def foretold(self, student: Any, batch: Any, generator: torch.Generator, probability: float) -> torch.Tensor:
        """Return the cross-entropy over the vocabulary at randomly masked words, with a tied output layer.

        A generative student predicts all words of a caption, one after the other, instead of masked ones.
        """
        if isinstance(student, GenerativeStudent):
            answered = student.encode(batch).answered
            assert answered is not None
            return -answered.log_likelihood_NK.sum() / answered.num_tokens_NK.sum()
        words, mask_id = student.word_table()
        starts_NL, ends_NL = batch.char_spans_NL2.unbind(-1)
        drawn_NL = torch.rand(batch.token_ids_NL.shape, generator=generator).to(batch.token_ids_NL.device)
        chosen_NL = (drawn_NL < probability) & (ends_NL > starts_NL)
        masked = replace(batch, token_ids_NL=batch.token_ids_NL.masked_fill(chosen_NL, mask_id))
        output: StudentOutput = student.encode(masked)
        if not chosen_NL.any():
            return output.pooled_NP.sum() * 0.0
        states = self.word_transform(output.text_states_NLH[chosen_NL])
        return functional.cross_entropy(states @ words.weight.T + self.word_bias, batch.token_ids_NL[chosen_NL])

    def match(
        self, output: StudentOutput, batch: StudentBatch, phrases: PhraseTargets, is_pair_N: torch.Tensor
    ) -> torch.Tensor:
        """Return the cross-entropy of image-text matching, from the pooled state and from each phrase.

        One decision per caption trains attention slowly; one per phrase also trains where to look.
        """
        phrase_QH = phrase_states(output.text_states_NLH, batch, phrases)
        is_pair_Q = is_pair_N[phrases.caption_Q].long()
        of_phrases = functional.cross_entropy(self.phrase_matching(phrase_QH), is_pair_Q)
        return functional.cross_entropy(self.matching(output.pooled_NP), is_pair_N.long()) + of_phrases

    def name(self, output: StudentOutput, num_candidates: Sequence[int]) -> torch.Tensor:
        """Return the cross-entropy of naming the box (see `region_questions`): the first phrase is right."""
        logits = shape_logits(output.class_logits(self.naming), num_candidates, is_choice=True)
        return functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


def phrase_states(text_NLH: torch.Tensor, batch: StudentBatch, phrases: PhraseTargets) -> torch.Tensor:
    """Return (Q, H): the mean state of the tokens of each phrase."""
    spans_QL2 = batch.char_spans_NL2[phrases.caption_Q]
    inside_QL = (spans_QL2[..., 0] >= phrases.span_Q2[:, :1]) & (spans_QL2[..., 1] <= phrases.span_Q2[:, 1:])
    weights_QL = (inside_QL & (spans_QL2[..., 1] > spans_QL2[..., 0])).float()
    summed_QH = (text_NLH[phrases.caption_Q] * weights_QL[..., None]).sum(1)
    return summed_QH / weights_QL.sum(1, keepdim=True).clamp(min=1)


def swap_pictures(batch_size: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (picture of each caption, whether it is its own): half of the captions get another caption's picture."""
    swapped = torch.rand(batch_size, generator=generator) < 0.5
    shift = int(torch.randint(1, max(2, batch_size), (1,), generator=generator))
    index = torch.arange(batch_size)
    index = torch.where(swapped, (index + shift) % batch_size, index)
    return index, index == torch.arange(batch_size)


@dataclass(kw_only=True)
class JointBatch:
    """A few captions with their own and with other pictures, and questions about a region of some pictures."""

    few: StudentBatch
    phrases: PhraseTargets
    mixed: StudentBatch
    is_pair: torch.Tensor
    questions: StudentBatch


@dataclass(kw_only=True)
class PairBatch:
    """Captions with their own pictures, and after the warm-up the inputs of the joint objectives."""

    captions: StudentBatch
    phrases: PhraseTargets
    joint: JointBatch | None


def joint_batch(student: Student, examples: Sequence[Example], generator: torch.Generator) -> JointBatch:
    """Collate the inputs of the joint objectives from a batch of captions."""
    few = examples[: max(2, len(examples) // FEW)]
    untagged = [without_tags(example) for example in few]
    picture, is_pair = swap_pictures(len(few), generator)
    mixed = [
        replace(example, image=examples[index].image)
        for example, index in zip(untagged, picture.tolist(), strict=True)
    ]
    asked = region_questions(examples, generator, num_asked=max(1, len(examples) // ASKED))
    untagged_batch = student.collate(untagged)
    return JointBatch(
        few=untagged_batch,
        phrases=phrase_targets(student, few, untagged_batch),
        mixed=student.collate(mixed),
        is_pair=is_pair,
        questions=student.collate(asked),
    )
