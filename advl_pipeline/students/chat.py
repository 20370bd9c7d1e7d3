"""Conversations for chat models: the processor's template and tokens, and the characters of each token.

The template is rendered once around two marks. Rows are built from its parts, so that a row has the same ids as the
processor's encoding of the entire conversation. One placeholder token represents the picture until its own tokens
replace it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

import numpy as np
import numpy.typing as npt

from advl_pipeline.base.errors import ConfigError, DatasetError
from advl_pipeline.datasets.listed_options import CLOSINGS, is_yes_no, lettered_lines
from advl_pipeline.datasets.records import MULTIPLE_CHOICE_TASKS, Candidate
from advl_pipeline.students.chat_pictures import Picture

QUESTION, ANSWER = "\ue000", "\ue001"
"""Private-use characters, placeholders of the two texts while the template is rendered."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatRow:
    """Tokens of one conversation. Spans index `Candidate.text`; tokens of the template and the picture have (0, 0).

    `is_picture_S` (bool) marks the picture's tokens. An answer begins at `prompt_length` and includes the token that
    ends a turn. In a row without an answer, `prompt_length` is the length of the row.
    """

    token_ids_S: npt.NDArray[np.int64]
    spans_S2: npt.NDArray[np.int64]
    is_picture_S: npt.NDArray[np.bool_]
    prompt_length: int


class Chat:
    """A formatter of conversations, based on the chat template and tokenizer of a processor.

    Args:
        processor: a processor of transformers.
        image_token_id: the placeholder token of a picture's features.
        where: location of the processor, for errors.

    Raises:
        ConfigError: the chat template is missing, does not contain a picture and both texts, or does not end an
            answer.
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
            raise self._unfit("its generation prompt is not what its template writes before an answer")
        if before.count(processor.image_token) != 1:
            raise self._unfit(
                f"its template does not show a picture as one {processor.image_token} before a question"
            )
        self._before, self._behind_picture = before.split(processor.image_token)
        self.lead = self._between[len(self._asked) :]
        self.end_id = self._end()

    def _end(self) -> int:
        """Return the token that ends an answer: the template's first special token, else the tokenizer's EOS.

        Raises:
            ConfigError: neither exists.
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
        """Return one row per candidate.

        In multiple choice, the candidate's context is the question and the rest is the answer. A caption has no
        question. In all other tasks, the text is the question, and the row ends before the answer. The instruction
        follows the question on its own line.

        Args:
            candidates: candidates of one example.
            lists_options: list the choices by letter and answer with the candidate's letter. The candidate's spans
                then point to its line in the list. Yes and no are not listed.

        Raises:
            DatasetError: a text contains the picture's placeholder token, or there are more choices than letters.
        """
        is_answered = task in MULTIPLE_CHOICE_TASKS or task == "captions"
        asked = [
            candidate.text[: candidate.context_length] if is_answered else candidate.text for candidate in candidates
        ]
        options = [candidate.answer if is_answered else "" for candidate in candidates]
        is_listed = lists_options and task in MULTIPLE_CHOICE_TASKS and not is_yes_no(options)
        answers = [*ascii_uppercase[: len(options)]] if is_listed else options
        if is_listed:
            instruction = instruction or CLOSINGS["letters"]
        closing = f"\n{instruction}" if instruction else ""
        lines = lettered_lines(options) if is_listed else []
        listed = "".join(f"\n{line}" for line in lines)
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
            # Position of each of the candidate's parts in the row, its length, and its position in the candidate.
            parts = [(len(before), len(question), 0)]
            if is_answered:
                # A listed option ends its line, after its letter.
                in_list = sum(len(line) + 1 for line in lines[: number + 1]) - len(options[number])
                words_at = len(before) + len(question) + in_list if is_listed else answer_at
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
        """Return the row of a tokenised conversation, with placeholders expanded to the picture's tokens.

        Args:
            offsets_S2: character offsets of the tokens in the conversation.
            parts: parts of the candidate: start in the conversation, length, start in the candidate.
            prompt_end: first character of the answer.

        Raises:
            DatasetError: the text contains the picture's placeholder token.
        """
        is_shown_S = ids_S == self.image_token_id
        if is_shown_S.sum() != len(picture.runs):
            raise DatasetError(
                "A text contains the token of the picture.",
                where=repr(candidate.text[:80]),
                next_command="reword the text in the dataset's file",
            )
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
        """Return the tokens of each answer in a turn, without the token that ends it."""
        token_ids: list[list[int]] = self._tokenizer(
            [self.lead + answer for answer in answers], add_special_tokens=False
        )["input_ids"]
        return token_ids

    @property
    def end(self) -> str:
        """The text of the token that ends an answer."""
        return str(self._tokenizer.convert_ids_to_tokens(self.end_id))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of generated tokens up to the first token that ends a turn."""
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
