"""Texts as a chat model reads them: its processor's template and tokens, and the characters behind each token.

The template is rendered once around two marks; rows are cut from it, so that a row has the ids that the processor
gives to the whole conversation. One token stands for the picture until its own tokens take that place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from advl_pipeline.datasets.records import MULTIPLE_CHOICE_TASKS, Candidate
from advl_pipeline.errors import ConfigError, DatasetError

QUESTION, ANSWER = "\ue000", "\ue001"
"""Private characters that stand for the two texts while the template is rendered."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatRow:
    """Tokens of one conversation: spans into `Candidate.text`, (0, 0) for the template's and the picture's tokens.

    Tokens [picture_start, picture_end) are the picture's. An answer begins at `prompt_length`, which is the length of
    a row without one; it ends with the token that ends a turn.
    """

    token_ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    picture_start: int
    picture_end: int
    prompt_length: int

    def with_picture(self, token_ids: Sequence[int]) -> ChatRow:
        """Return the row with the picture's tokens in the place of the one that stands for them."""
        start, num_more = self.picture_start, len(token_ids) - 1
        return replace(
            self,
            token_ids=(*self.token_ids[:start], *token_ids, *self.token_ids[start + 1 :]),
            spans=(*self.spans[:start], *[(0, 0)] * len(token_ids), *self.spans[start + 1 :]),
            picture_end=start + len(token_ids),
            prompt_length=self.prompt_length + num_more,
        )


class Chat:
    """The chat template and tokenizer of a processor.

    Raises:
        ConfigError: the processor has no chat template, or one that does not show both texts or end an answer.
    """

    def __init__(self, processor: Any, *, where: str) -> None:
        self._tokenizer = processor.tokenizer
        self.image_token_id: int = processor.image_token_id
        self.end_id: int = self._tokenizer.eos_token_id
        self.pad_id: int = self._tokenizer.pad_token_id
        self._where = where
        if not processor.chat_template:
            raise self._unfit("it has no chat template")
        try:
            self._before, self._asked = self._render(processor, answered=False).split(QUESTION)
            before, rest = self._render(processor, answered=True).split(QUESTION)
            self._between, self._after = rest.split(ANSWER)
        except ValueError:
            raise self._unfit("its template does not show question and answer once each") from None
        if before != self._before or not self._between.startswith(self._asked):
            raise self._unfit("its template does not begin an answer as it asks for one")
        self.lead = self._between[len(self._asked) :]
        if self.end_id not in self._ids(self._after):
            raise self._unfit("its template does not end an answer with the tokenizer's end token")

    def rows(self, candidates: Sequence[Candidate], task: str, instruction: str) -> list[ChatRow]:
        """Return the row of each candidate: its context is asked and it is the answer where there are choices.

        Of a caption there is no question; of all other tasks the text is the question, and the row ends where the
        answer begins. The instruction follows the question on a line of its own.

        Raises:
            DatasetError: a text holds the token that stands for the picture.
        """
        is_answered = task in MULTIPLE_CHOICE_TASKS or task == "captions"
        asked = [one.text[: one.context_length] if is_answered else one.text for one in candidates]
        answers = [one.text[one.answer_start :] if is_answered else "" for one in candidates]
        closing = f"\n{instruction}" if instruction else ""
        between, after = (self._between, self._after) if is_answered else (self._asked, "")
        texts = [
            f"{self._before}{question}{closing}{between}{answer}{after}"
            for question, answer in zip(asked, answers, strict=True)
        ]
        bos: str | None = self._tokenizer.bos_token
        encoded = self._tokenizer(
            texts,
            add_special_tokens=not (bos and self._before.startswith(bos)),
            return_offsets_mapping=True,
            return_attention_mask=False,
        )
        found = []
        for candidate, question, ids, offsets in zip(
            candidates, asked, encoded["input_ids"], encoded["offset_mapping"], strict=True
        ):
            if ids.count(self.image_token_id) != 1:
                raise DatasetError(
                    "A text holds the token that stands for the picture.",
                    where=repr(candidate.text[:80]),
                    next_command="reword the text in the dataset's file",
                )
            answer_at = len(self._before) + len(question) + len(closing) + len(between)
            prompt_end = answer_at - len(self.lead) if is_answered else answer_at
            prompt_length = sum(start < prompt_end for start, _ in offsets)
            end = ids.index(self.end_id, prompt_length) + 1 if is_answered else len(ids)
            shown = [(len(self._before), len(question), 0)]
            if is_answered:
                shown.append((answer_at, len(candidate.text) - candidate.answer_start, candidate.answer_start))
            place = ids.index(self.image_token_id)
            found.append(
                ChatRow(
                    token_ids=tuple(ids[:end]),
                    spans=tuple(_span(start, stop, shown) for start, stop in offsets[:end]),
                    picture_start=place,
                    picture_end=place + 1,
                    prompt_length=prompt_length,
                )
            )
        return found

    def answer_ids(self, answers: Sequence[str]) -> list[list[int]]:
        """Return the tokens with which a turn gives each answer, without the one that ends it."""
        found: list[list[int]] = self._tokenizer(
            [self.lead + answer for answer in answers], add_special_tokens=False
        )["input_ids"]
        return found

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of generated tokens, as far as the first one that ends a turn."""
        kept = list(token_ids)
        if self.end_id in kept:
            kept = kept[: kept.index(self.end_id)]
        text: str = self._tokenizer.decode(kept, skip_special_tokens=True)
        return text.strip()

    def _ids(self, text: str) -> list[int]:
        found: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    @staticmethod
    def _render(processor: Any, *, answered: bool) -> str:
        turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
        if answered:
            turns.append({"role": "assistant", "content": [{"type": "text", "text": ANSWER}]})
        text: str = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=not answered)
        return text

    def _unfit(self, why: str) -> ConfigError:
        return ConfigError(
            "The processor cannot lay out a conversation.",
            where=self._where,
            why=why,
            next_command="--tokenizer FOLDER that holds the processor of a model that was trained to chat",
        )


def _span(start: int, end: int, shown: Sequence[tuple[int, int, int]]) -> tuple[int, int]:
    """Return the characters of a candidate behind those of a row; each shown part is (place, length, its first)."""
    for place, length, first in shown:
        low, high = max(start, place), min(end, place + length)
        if low < high:
            return low - place + first, high - place + first
    return 0, 0
