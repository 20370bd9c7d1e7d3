"""A teacher's tokenizer: ids and character spans of the content, with special tokens separate.

Character spans come from the tokenizer's offsets, or from alignment.

Shapes: M content tokens of one text, 2 = (start, end), end exclusive.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import normalizers

_WORD_MARKS = ("##", "▁", "Ġ", "</w>", "@@")
"""Word-boundary marks of WordPiece, SentencePiece, byte-level BPE, CLIP's BPE and fairseq's BPE."""


def trim_spans(text: str, spans_M2: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Strip white space from the ends of every span; some tokenizers include the space before a word."""
    trimmed_M2 = spans_M2.copy()
    for row, (first, after) in enumerate(spans_M2.tolist()):
        start, end = first, after
        while start < end and text[start].isspace():
            start += 1
        while end > start and text[end - 1].isspace():
            end -= 1
        # Setting an array item costs more than everything else here, and few spans have space at an end.
        if (start, end) != (first, after):
            trimmed_M2[row] = start, end
    return trimmed_M2


def align_pieces(text: str, pieces: Sequence[str]) -> npt.NDArray[np.int32]:
    """Return the character span of each piece, (M, 2) int32, for a tokenizer without offsets.

    Pieces are matched to the text from left to right, both without case, accents, compatibility forms, white space
    and word marks. A piece not found within a short distance (an unknown token, a special token) gets the gap between
    its matched neighbours; pieces in the same gap share its span. A piece of only white space or a word mark has an
    empty span. Byte pieces (ByT5, one byte each) are matched exactly.

    Args:
        pieces: the tokens of the text, in order, from `convert_ids_to_tokens`.
    """
    is_bytes = bool(pieces) and all(len(piece) == 1 and ord(piece) <= 255 for piece in pieces)
    if is_bytes and bytes(map(ord, pieces)) == text.encode("utf-8"):
        widths = [len(character.encode("utf-8")) for character in text]
        bytes_M = np.repeat(np.arange(len(text), dtype=np.int32), widths)
        return trim_spans(text, np.stack([bytes_M, bytes_M + 1], axis=1))
    folded_characters = [_fold(character) for character in text]
    folded = "".join(folded_characters)
    origin = [index for index, kept in enumerate(folded_characters) for _ in kept]
    starts_M = np.full(len(pieces), -1, dtype=np.int32)
    ends_M = np.full(len(pieces), -1, dtype=np.int32)
    position = 0
    pending = 0
    for row, piece in enumerate(pieces):
        wanted = _fold(_strip_marks(piece))
        # An unknown piece may replace an entire word, so the next one may be that much further on.
        reach = position + len(wanted) + (64 * pending if pending else 0)
        match = folded.find(wanted, position, reach) if wanted else -1
        if match < 0:
            pending += 1
            continue
        starts_M[row] = origin[match]
        ends_M[row] = origin[match + len(wanted) - 1] + 1
        position = match + len(wanted)
        pending = 0
    # Both increase from piece to piece, so the matched neighbours have the largest end and the smallest start.
    is_found_M = starts_M >= 0
    before_M = np.maximum.accumulate(np.where(is_found_M, ends_M, 0))
    after_M = np.minimum.accumulate(np.where(is_found_M, starts_M, len(text))[::-1])[::-1]
    starts_M = np.where(is_found_M, starts_M, before_M)
    ends_M = np.where(is_found_M, ends_M, np.maximum(before_M, after_M))
    spans_M2 = trim_spans(text, np.stack([starts_M, ends_M], axis=1).astype(np.int32))
    blank_M = np.array([not _strip_marks(piece).strip() for piece in pieces], dtype=np.bool_)
    spans_M2[blank_M, 1] = spans_M2[blank_M, 0]
    return spans_M2


def _fold(text: str) -> str:
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return "".join(
        character for character in decomposed if not (unicodedata.combining(character) or character.isspace())
    )


def _strip_marks(piece: str) -> str:
    for mark in _WORD_MARKS:
        piece = piece.removeprefix(mark) if mark in ("##", "▁", "Ġ") else piece.removesuffix(mark)
    return piece


PROBE_TEXTS = (
    "A dog's bone, 3 naïve cafés & an émigré's e-mail!",
    "Why is person_1 pointing at the WINE glass [SEP] because it's half-empty?",
    "  ünïcode  \u4f60\u597d \U0001f600 tab\tand trailing space ",
)
"""Texts whose tokens are part of a tokenizer's digest: they capture its behaviour in any library version."""


Pieces = tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], npt.NDArray[np.int64]]
"""Content tokens of one text: ids (M,) and character spans (M, 2); and the ids of the prompt before it (P,).

A token that spans the end of the prompt and the beginning of the text belongs to the text.
"""


class WordPieces:
    """A transformers tokenizer, fast or slow; without offsets, its pieces are aligned to the text.

    Every text is tokenised together with the prompt before it, both lower-cased if `lower_case`. `prompt_length` is
    the prompt's maximum in tokens.
    """

    def __init__(self, tokenizer: Any, *, prompt: str = "", lower_case: bool = False) -> None:
        self._tokenizer, self._prompt, self._lower_case = tokenizer, prompt, lower_case
        self._has_offsets = bool(getattr(tokenizer, "is_fast", False))
        if self._has_offsets and lower_case:
            # As a step of the tokenizer it keeps the offsets of the text as it is.
            steps = [normalizers.Lowercase(), tokenizer.backend_tokenizer.normalizer]
            tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([step for step in steps if step])
        if self._has_offsets:
            # A saved tokenizer may have truncation and padding settings, which would drop or add tokens.
            tokenizer.backend_tokenizer.no_truncation()
            tokenizer.backend_tokenizer.no_padding()
        self.prefix, self.suffix = self._special_tokens()
        self.unknown_id: int | None = tokenizer.unk_token_id
        pad = tokenizer.pad_token_id
        self.pad_id: int = 0 if pad is None else int(pad)
        self.prompt_length = len(self([""])[0][2]) + 1 if prompt else 0

    def __call__(self, texts: Sequence[str]) -> list[Pieces]:
        """Tokenise complete texts, without special tokens."""
        if not texts:
            return []
        if not self._has_offsets:
            return [self._align(text) for text in texts]
        encoding = self._tokenizer(
            [self._prompt + text for text in texts],
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            truncation=False,
            padding=False,
            verbose=False,
        )
        return [
            self._behind_prompt(text, ids, np.asarray(offsets, dtype=np.int32).reshape(-1, 2))
            for text, ids, offsets in zip(texts, encoding["input_ids"], encoding["offset_mapping"], strict=True)
        ]

    def describe(self) -> dict[str, Any]:
        """Return the digest of vocabulary and behaviour, the special tokens around a text, and the span source."""
        vocabulary = sorted(self._tokenizer.get_vocab().items())
        behaviour = [[ids_M.tolist(), spans_M2.tolist()] for ids_M, spans_M2, _ in self(PROBE_TEXTS)]
        return {
            "digest": hashlib.sha256(json.dumps([vocabulary, behaviour]).encode()).hexdigest(),
            "prefix": list(self.prefix),
            "suffix": list(self.suffix),
            "pad_id": self.pad_id,
            "spans": "offsets" if self._has_offsets else "aligned",
            **({"prompt": self._prompt} if self._prompt else {}),
        }

    def _align(self, text: str) -> Pieces:
        whole = self._prompt + text
        read = whole.lower() if self._lower_case else whole
        ids = self._tokenizer(read, add_special_tokens=False, verbose=False)["input_ids"]
        return self._behind_prompt(text, ids, align_pieces(whole, self._tokenizer.convert_ids_to_tokens(ids)))

    def _behind_prompt(self, text: str, ids: Sequence[int], spans_M2: npt.NDArray[np.int32]) -> Pieces:
        """Split the tokens into prompt and text; spans count characters of the text."""
        end, first = len(self._prompt), 0
        while self._prompt and first < len(ids) and spans_M2[first, 1] <= end:
            first += 1
        ids_M = np.asarray(ids, dtype=np.int64)
        of_text_M2 = np.maximum(spans_M2[first:] - np.int32(end), 0)
        return ids_M[first:], trim_spans(text, of_text_M2), ids_M[:first]

    def _special_tokens(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the ids that the tokenizer adds before and after a text, determined on a one-letter text."""
        bare = self._tokenizer("a", add_special_tokens=False)["input_ids"]
        full = self._tokenizer("a")["input_ids"]
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                return tuple(full[:start]), tuple(full[start + len(bare) :])
        raise ValueError(f"the tokenizer rewrites a text when it adds special tokens: {bare} became {full}")
