"""Texts as a chat model reads them: its processor's template and tokens, and the characters behind each token.

The template is rendered once around two marks; rows are cut from it, so that a row has the ids that the processor
gives to the whole conversation. One token stands for the picture until its own tokens take that place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast

from advl_pipeline.base.errors import ConfigError, DatasetError, WeightsUnavailable
from advl_pipeline.base.repositories import fetch
from advl_pipeline.datasets.listed_options import CLOSINGS, is_yes_no, with_letters
from advl_pipeline.datasets.records import MULTIPLE_CHOICE_TASKS, Candidate
from advl_pipeline.runs.names import TOKENIZER
from advl_pipeline.students.answers import Answers, answers_inside, padded
from advl_pipeline.students.chat_pictures import GRID, Picture, stacked
from advl_pipeline.students.interface import StudentBatch
from advl_pipeline.students.tokenizer import EMBEDDED_TOKENIZER, embedded_tokenizer_file

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


def embedded_chat_tokenizer(marks: Sequence[str], **special: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer of the embedded vocabulary for a size that has no published one.

    Args:
        marks: tokens of the template and of pictures.
        special: what the library knows by name, such as `eos_token`.
    """
    words = Tokenizer.from_file(str(embedded_tokenizer_file()))
    words.no_padding()
    words.no_truncation()
    # A conversation has the template's marks and no others.
    words.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", additional_special_tokens=list(marks), **special
    )


def load_processor(kind: Any, name: str, *, embedded: Callable[[], Any]) -> Any:
    """Load a processor from a folder, or by its name on the hub.

    Its tokenizer cuts texts as its `tokenizer.json` says: transformers makes some anew from their class, and leaves
    out what that does not know.

    Args:
        kind: transformers' class of the family's processor.
        name: folder or hub name; that of the embedded vocabulary stands for a processor over it.
        embedded: makes that one.

    Raises:
        WeightsUnavailable: it is neither here nor to be had.
    """
    if name == EMBEDDED_TOKENIZER:
        return embedded()
    folder = Path(name)
    if not folder.is_dir():
        folder = fetch(name, what="files of the student's processor", option="--tokenizer", weights=())
    try:
        processor = kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if (folder / TOKENIZER).is_file():
            published, opened = Tokenizer.from_file(str(folder / TOKENIZER)), processor.tokenizer.backend_tokenizer
            for part in ("normalizer", "pre_tokenizer", "model", "decoder"):
                setattr(opened, part, getattr(published, part))
    except (OSError, ValueError, TypeError, AttributeError, ImportError) as error:
        raise WeightsUnavailable(
            "The student's processor is not at hand.",
            where=name,
            why=str(error).strip().split("\n", maxsplit=1)[0],
            next_command="--tokenizer FOLDER that holds its tokenizer.json, processor_config.json and chat template",
        ) from None
    return processor


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
                f"its template does not show a picture as one {processor.image_token} before the question"
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
            # Where the candidate's parts lie in the row, their length, and their first character in the candidate.
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
            raise DatasetError(
                "A text holds the token that stands for the picture.",
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


COMMON, PADDING = -1, -2
"""Whose a token of a row is, where it is no candidate's own."""


@dataclass(frozen=True, slots=True)
class Packing:
    """Says how the sequences of each example share a row; all tensors are int64.

    `token_BW` says which token of which sequence lies at each place, n * S + s; `own_BW` which of the row's sequences
    it belongs to, `COMMON` where to all and `PADDING` where to none; tokens of one `block_BW` see one another in both
    directions, -1 in none. `row_N` and `place_NS` are the way back: a sequence's row, and where in it each of its
    tokens lies. Token `place_M` of row `row_M` shows feature `feature_M` of the pictures, which are counted one after
    the other.
    """

    token_BW: torch.Tensor
    own_BW: torch.Tensor
    block_BW: torch.Tensor
    row_N: torch.Tensor
    place_NS: torch.Tensor
    row_M: torch.Tensor
    place_M: torch.Tensor
    feature_M: torch.Tensor

    def packed(self, value_NS: torch.Tensor) -> torch.Tensor:
        """Lay what sequences have for each token, (..., N, S), out in rows: (..., B, W)."""
        return value_NS.flatten(-2)[..., self.token_BW]


def packing(
    num_candidates: Sequence[int],
    lengths_N: npt.NDArray[np.int64],
    shows_NS: npt.NDArray[np.bool_],
    *meant_NS: npt.NDArray[np.int64],
    block_NS: npt.NDArray[np.int64] | None = None,
    apart: bool = False,
) -> Packing:
    """Pack each example's sequences into one row: what all have in common, then what each has by itself.

    Args:
        num_candidates: sequences of each example.
        lengths_N: tokens of each sequence.
        shows_NS: the tokens that stand for a part of the picture.
        meant_NS: everything that tells two tokens of one place apart; their ids at least.
        block_NS: which tokens see one another in both directions, -1 for those that see what lies before them alone.
        apart: give each sequence a row of its own.
    """
    num_sequences, size = shows_NS.shape
    block_NS = np.full(shows_NS.shape, -1) if block_NS is None else block_NS
    counts_E = np.array(num_candidates)
    first_E, example_N = np.cumsum(counts_E) - counts_E, np.repeat(np.arange(len(counts_E)), counts_E)
    counts_B = np.ones(num_sequences, dtype=np.int64) if apart else counts_E
    row_N, first_B, place_S = (
        np.repeat(np.arange(len(counts_B)), counts_B),
        np.cumsum(counts_B) - counts_B,
        np.arange(size),
    )
    candidate_N = np.arange(num_sequences) - first_B[row_N]
    is_token_NS = place_S < lengths_N[:, None]
    # States are the same as far as the tokens are, and as no later token is seen.
    alike_NS = is_token_NS.copy()
    for meant in (*meant_NS, block_NS):
        alike_NS &= meant == meant[first_B[row_N]]
    common_B = np.minimum.accumulate(np.logical_and.reduceat(alike_NS, first_B), axis=1).sum(1)
    # Tokens that see later ones share their states only where all of what they see is common.
    for row, common in enumerate(common_B):
        if 0 < common < size and block_NS[first_B[row], common - 1] >= 0:
            block = block_NS[first_B[row], common - 1]
            if (block_NS[row_N == row, common] == block).any():
                common_B[row] = int((block_NS[first_B[row]] == block).argmax())
    is_own_NS = place_S >= common_B[row_N, None]
    ends_N = np.cumsum(lengths_N - common_B[row_N])
    before_N = ends_N - lengths_N + common_B[row_N]
    before_N -= before_N[first_B][row_N]
    place_NS = np.where(is_token_NS, place_S + is_own_NS * before_N[:, None], 0)
    num_features_E = shows_NS[first_E].sum(1)
    first_feature_E = np.cumsum(num_features_E) - num_features_E
    feature_NS = np.where(shows_NS, first_feature_E[example_N, None] + shows_NS.cumsum(1) - 1, -1)
    # Of what is common, the first sequence's tokens are laid down.
    laid = np.nonzero(is_token_NS & (is_own_NS | (candidate_N == 0)[:, None]))
    at = row_N[laid[0]], place_NS[laid]
    token_BW = np.zeros((len(counts_B), int(place_NS.max()) + 1), dtype=np.int64)
    own_BW, block_BW, feature_BW = (
        np.full_like(token_BW, PADDING),
        np.full_like(token_BW, -1),
        np.full_like(token_BW, -1),
    )
    token_BW[at] = laid[0] * size + laid[1]
    own_BW[at] = np.where(is_own_NS[laid], candidate_N[laid[0]], COMMON)
    block_BW[at], feature_BW[at] = block_NS[laid], feature_NS[laid]
    row_M, place_M = np.nonzero(feature_BW >= 0)
    arrays = (token_BW, own_BW, block_BW, row_N, place_NS, row_M, place_M, feature_BW[row_M, place_M])
    return Packing(*map(torch.from_numpy, arrays))


@dataclass(kw_only=True)
class ChatBatch(StudentBatch):
    """Conversations, padded on the right.

    `sequence_ids_NS` are all tokens, `length_N` their number, `positions_NS` where they lie to the language model,
    (3, N, S) for one that counts in time, height and width; and `picture_NS` (bool) the picture's, its markers
    included. `text_place_NL` and `visual_place_NR` say where the text's and the picture's states lie among them, and
    `packing` how an example's conversations lie in one row.
    `pixels` holds the pictures one after the other, `num_pixels` the rows of each, and `inputs` what else the vision
    encoder takes; `grids` are frames, rows and columns of each picture's patches, numbers and no tensor.
    `answers` are asked about in turn. `said_NL` (bool) and `spoken_of_NR` (float) are what `answers.py` reads, None
    where it is not asked.
    """

    picture_field: ClassVar[str] = "pixels"

    sequence_ids_NS: torch.Tensor
    length_N: torch.Tensor
    positions_NS: torch.Tensor
    picture_NS: torch.Tensor
    text_place_NL: torch.Tensor
    visual_place_NR: torch.Tensor
    packing: Packing
    pixels: torch.Tensor
    num_pixels: tuple[int, ...]
    inputs: Mapping[str, torch.Tensor]
    grids: tuple[tuple[int, ...], ...] = ()
    answers: tuple[Answers, ...] = ()
    num_answers: int = 1
    length_normalised: bool = False
    said_NL: torch.Tensor | None = None
    spoken_of_NR: torch.Tensor | None = None

    @property
    def blank_value(self) -> int:  # type: ignore[override]  # A field of the class there; scaled values are 0 at grey.
        return 127 if self.pixels.dtype == torch.uint8 else 0

    def of_sequences(self, states_BWH: torch.Tensor, place_NL: torch.Tensor) -> torch.Tensor:
        """Return (N, L, H), float32: of each sequence the states at its places, from those of the rows.

        Args:
            place_NL: int64, places in the sequence.
        """
        row_N1 = self.packing.row_N[:, None] * states_BWH.shape[1]
        place_NL = row_N1 + self.packing.place_NS.gather(1, place_NL)
        return states_BWH.flatten(0, 1).index_select(0, place_NL.flatten()).view(*place_NL.shape, -1).float()

    def last_states(self, states_BWH: torch.Tensor) -> torch.Tensor:
        """Return (N, H): the state of each sequence's last token."""
        return self.of_sequences(states_BWH, self.length_N[:, None] - 1)[:, 0]


def chat_batch(
    rows: Sequence[ChatRow],
    pictures: Sequence[Picture],
    *,
    num_candidates: tuple[int, ...],
    image_token_id: int,
    pad_id: int,
    both_ways: str,
    apart: bool,
    answers_inside_rows: bool,
    length_normalised: bool,
) -> ChatBatch:
    """Lay out conversations, of which each holds its picture's tokens; positions are counted from 0.

    Args:
        rows: of all candidates of all examples.
        pictures: one for each example.
        both_ways: as `FamilyFacts` has it.
        apart: as `packing` takes it.
        answers_inside_rows: each row ends in the answer that is asked about.
    """
    tokens = [row.token_ids_S for row in rows]
    text = [np.flatnonzero(~row.is_picture_S) for row in rows]
    visual = [np.flatnonzero(row.is_picture_S & (row.token_ids_S == image_token_id)) for row in rows]
    (text_place, text_mask), (visual_place, visual_mask) = (
        (padded(places, 0), padded([np.ones(len(row_places)) for row_places in places], 0).bool())
        for places in (text, visual)
    )
    spans = [row.spans_S2[place] for row, place in zip(rows, text, strict=True)]
    sequence_ids, lengths = padded(tokens, pad_id), np.array([len(ids) for ids in tokens])
    picture_NS = padded([row.is_picture_S for row in rows], 0).bool()
    shows_NS = (picture_NS & (sequence_ids == image_token_id)).numpy()
    starts = [row.prompt_length for row in rows]
    places = [torch.from_numpy(picture.places_R4) for picture in pictures]
    names = [name for name in pictures[0].inputs if name != GRID]
    place_NS = torch.arange(sequence_ids.shape[1]).expand_as(sequence_ids)
    block_NS = np.full(shows_NS.shape, -1)
    if both_ways == "picture":
        begins_NS = shows_NS & ~np.pad(shows_NS, ((0, 0), (1, 0)))[:, :-1]
        block_NS = np.where(shows_NS, begins_NS.cumsum(1), -1)
    elif both_ways == "question":
        block_NS = np.where(place_NS.numpy() < np.array(starts)[:, None], 0, -1)
    return ChatBatch(
        num_candidates=num_candidates,
        token_ids_NL=torch.where(text_mask, sequence_ids.gather(1, text_place), pad_id),
        token_mask_NL=text_mask,
        char_spans_NL2=padded(spans, 0),
        visual_mask_NR=visual_mask,
        box_index_NR=torch.full(visual_mask.shape, -1),
        places_BR4=pad_sequence(places, batch_first=True, padding_value=torch.nan),
        sequence_ids_NS=sequence_ids,
        length_N=torch.from_numpy(lengths),
        positions_NS=place_NS,
        picture_NS=picture_NS,
        text_place_NL=text_place,
        visual_place_NR=visual_place,
        packing=packing(num_candidates, lengths, shows_NS, sequence_ids.numpy(), block_NS=block_NS, apart=apart),
        pixels=stacked([picture.pixels for picture in pictures]),
        num_pixels=tuple(len(picture.pixels) for picture in pictures),
        inputs={name: stacked([picture.inputs[name] for picture in pictures]) for name in names},
        grids=tuple(
            tuple(int(size) for size in picture.inputs[GRID][0]) for picture in pictures if GRID in picture.inputs
        ),
        answers=(answers_inside(tokens, starts),) if answers_inside_rows else (),
        length_normalised=length_normalised,
    )
