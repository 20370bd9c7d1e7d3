"""Texts as a chat model reads them: its processor's template and tokens, and the characters behind each token.

The template is rendered once around two marks; rows are cut from it, so that a row has the ids that the processor
gives to the whole conversation. One token stands for the picture until its own tokens take that place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from advl_pipeline.base.errors import ConfigError, DatasetError
from advl_pipeline.datasets.listed_options import CLOSINGS, is_yes_no, with_letters
from advl_pipeline.datasets.records import MULTIPLE_CHOICE_TASKS, Candidate
from advl_pipeline.students.chat_pictures import Picture

QUESTION, ANSWER = "\ue000", "\ue001"
"""Private characters that stand for the two texts while the template is rendered."""

INSTRUCTIONS: Mapping[str, str] = MappingProxyType(
    {"vqa": "Answer briefly.", "snli-ve": "Is this entailment, neutral or contradiction?"}
)
"""What follows the question, by task, where no instruction is given."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatRow:
    """Tokens of one conversation: spans into `Candidate.text`, (0, 0) for the template's and the picture's tokens.

    `is_picture_S` (bool) says which are the picture's. An answer begins at `prompt_length`, which is the length of a
    row without one; it ends with the token that ends a turn.
    """

    token_ids_S: npt.NDArray[np.int64]
    spans_S2: npt.NDArray[np.int64]
    is_picture_S: npt.NDArray[np.bool_]
    prompt_length: int


class Chat:
    """Lays out conversations by the chat template and tokenizer of a processor.

    Args:
        processor: transformers' processor.
        image_token_id: the token whose places a picture's features take.
        where: of the processor, for errors.

    Raises:
        ConfigError: there is no chat template, or it does not show a picture and both texts, or end an answer.
    """

    def __init__(self, processor: Any, *, image_token_id: int, where: str) -> None:
        self._tokenizer = processor.tokenizer
        self._where = where
        self.image_token_id = image_token_id
        self.pad_id: int = self._tokenizer.pad_token_id
        if not processor.chat_template:
            raise self._unfit("it has no chat template")
        try:
            before, self._asked = self._render(processor, answered=False).split(QUESTION)
            same, rest = self._render(processor, answered=True).split(QUESTION)
            self._between, self._after = rest.split(ANSWER)
        except ValueError:
            raise self._unfit("its template does not show question and answer once each") from None
        if before != same or not self._between.startswith(self._asked):
            raise self._unfit("its template does not begin an answer as it asks for one")
        if before.count(processor.image_token) != 1:
            raise self._unfit(
                f"its template does not show a picture as one {processor.image_token} before a question"
            )
        self._before, self._behind_picture = before.split(processor.image_token)
        self.lead = self._between[len(self._asked) :]
        self.end_id = self._end()

    def _end(self) -> int:
        """Return the token that ends an answer: the template's first of no word, else the tokenizer's own end.

        Raises:
            ConfigError: there is neither.
        """
        known = self._tokenizer.added_tokens_decoder
        marks = [token for token in self._ids(self._after) if token in known and known[token].special]
        if marks:
            return int(marks[0])
        if self._tokenizer.eos_token is None:
            raise self._unfit("nothing ends an answer: neither its template nor its tokenizer has a token for that")
        self._after = str(self._tokenizer.eos_token)
        return int(self._tokenizer.eos_token_id)

    def _ids(self, text: str) -> list[int]:
        token_ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return token_ids

    def rows(
        self,
        candidates: Sequence[Candidate],
        task: str,
        instruction: str,
        picture: Picture,
        *,
        lists_options: bool = False,
    ) -> list[ChatRow]:
        """Return the row of each candidate: its context is asked and it is the answer where there are choices.

        Of a caption there is no question; of all other tasks the text is the question, and the row ends where the
        answer begins. The instruction follows the question on a line of its own.

        Args:
            candidates: of one example.
            lists_options: choices are listed behind letters, and a candidate's answer is its letter; the words of the
                candidate are those of its line. Where yes and no are the choices, they are not listed.

        Raises:
            DatasetError: a text holds the token that stands for the picture, or there are more choices than letters.
        """
        is_answered = task in MULTIPLE_CHOICE_TASKS or task == "captions"
        asked = [
            candidate.text[: candidate.context_length] if is_answered else candidate.text for candidate in candidates
        ]
        options = [candidate.text[candidate.answer_start :] if is_answered else "" for candidate in candidates]
        is_listed = lists_options and task in MULTIPLE_CHOICE_TASKS and not is_yes_no(options)
        answers = [*ascii_uppercase[: len(options)]] if is_listed else options
        if is_listed:
            instruction = instruction or CLOSINGS["letters"]
        closing = f"\n{instruction}" if instruction else ""
        listed = with_letters("", options) if is_listed else ""
        between, after = (self._between, self._after) if is_answered else (self._asked, "")
        before = f"{self._before}{picture.text}{self._behind_picture}"
        texts = [
            f"{before}{question}{listed}{closing}{between}{answer}{after}"
            for question, answer in zip(asked, answers, strict=True)
        ]
        bos: str | None = self._tokenizer.bos_token
        encoded = self._tokenizer(
            texts,
            add_special_tokens=not (bos and self._before.startswith(bos)),
            return_offsets_mapping=True,
            return_attention_mask=False,
        )
        rows = []
        for number, (candidate, question, row_ids, offsets) in enumerate(
            zip(candidates, asked, encoded["input_ids"], encoded["offset_mapping"], strict=True)
        ):
            answer_at = len(before) + len(question) + len(listed) + len(closing) + len(between)
            # Where the candidate's parts are in the row, their length, and their first character in the candidate.
            parts = [(len(before), len(question), 0)]
            if is_answered:
                # Of listed options, behind the lines before it and its own letter.
                lines = with_letters("", [*options[:number], ""]) if is_listed else ""
                words_at = len(before) + len(question) + len(lines) if is_listed else answer_at
                parts.append((words_at, len(candidate.text) - candidate.answer_start, candidate.answer_start))
            prompt_end = answer_at - len(self.lead) if is_answered else answer_at
            rows.append(
                self._row(np.array(row_ids), np.array(offsets), candidate, picture, parts, prompt_end, is_answered)
            )
        return rows

    def _row(
        self,
        ids_S: npt.NDArray[np.int64],
        offsets_S2: npt.NDArray[np.int64],
        candidate: Candidate,
        picture: Picture,
        parts: Sequence[tuple[int, int, int]],
        prompt_end: int,
        is_answered: bool,
    ) -> ChatRow:
        """Return the row of a tokenised conversation, with the picture's own tokens in their place.

        Args:
            offsets_S2: of the tokens in the conversation.
            parts: of the candidate in the conversation: where each begins, its length, and where in the candidate.
            prompt_end: where the answer begins.

        Raises:
            DatasetError: the text holds the token that stands for the picture.
        """
        is_shown_S = ids_S == self.image_token_id
        if is_shown_S.sum() != len(picture.runs):
            where, following = repr(candidate.text[:80]), "reword the text in the dataset's file"
            what = "A text contains the token of the picture."
            raise DatasetError(what, where=where, next_command=following)
        is_prompt_S = offsets_S2[:, 0] < prompt_end
        end = ids_S.tolist().index(self.end_id, int(is_prompt_S.sum())) + 1 if is_answered else len(ids_S)
        spans_S2 = np.zeros_like(offsets_S2)
        for part_at, length, first in parts:
            inside_S2 = offsets_S2.clip(part_at, part_at + length)
            covers_S = inside_S2[:, 0] < inside_S2[:, 1]
            spans_S2[covers_S] = inside_S2[covers_S] - part_at + first
        shown = (len(self._before), len(self._before) + len(picture.text))
        is_picture_S = (
            (offsets_S2[:, 0] >= shown[0]) & (offsets_S2[:, 1] <= shown[1]) & (offsets_S2[:, 0] < offsets_S2[:, 1])
        )
        times_S = np.ones(len(ids_S), dtype=np.int64)
        times_S[is_shown_S] = picture.runs
        times_S = times_S[:end]
        return ChatRow(
            token_ids_S=np.repeat(ids_S[:end], times_S),
            spans_S2=np.repeat(spans_S2[:end], times_S, axis=0),
            is_picture_S=np.repeat(is_picture_S[:end], times_S),
            prompt_length=int(np.repeat(is_prompt_S[:end], times_S).sum()),
        )

    def answer_ids(self, answers: Sequence[str]) -> list[list[int]]:
        """Return the tokens with which a turn gives each answer, without the one that ends it."""
        token_ids: list[list[int]] = self._tokenizer(
            [self.lead + answer for answer in answers], add_special_tokens=False
        )["input_ids"]
        return token_ids

    @property
    def end(self) -> str:
        """The text of the token that ends an answer."""
        return str(self._tokenizer.convert_ids_to_tokens(self.end_id))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of generated tokens, as far as the first one that ends a turn."""
        kept = list(token_ids)
        if self.end_id in kept:
            kept = kept[: kept.index(self.end_id)]
        text: str = self._tokenizer.decode(kept, skip_special_tokens=True)
        return text.strip()

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
