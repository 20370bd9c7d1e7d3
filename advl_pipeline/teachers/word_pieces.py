"""A tokenizer as a teacher uses it: ids and character spans of the content, special tokens kept apart.

Shapes: M content tokens of one text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from advl_pipeline.teachers.char_spans import align_pieces, trim_spans

PROBE_TEXTS = (
    "A dog's bone, 3 naïve cafés & an émigré's e-mail!",
    "Why is person_1 pointing at the WINE glass [SEP] because it's half-empty?",
    "  ünïcode  \u4f60\u597d \U0001f600 tab\tand trailing space ",
)
"""Texts whose tokens are part of a tokenizer's digest: what it does, whichever library version does it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pieces:
    """Content tokens of one text: ids (M,) int64 and spans (M, 2) int32 of its characters."""

    ids_M: npt.NDArray[np.int64]
    spans_M2: npt.NDArray[np.int32]


class WordPieces:
    """A transformers tokenizer, fast or not; without offsets its pieces are aligned to the text (`char_spans.py`)."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._has_offsets = bool(getattr(tokenizer, "is_fast", False))
        if self._has_offsets:
            # A stored tokenizer may carry a truncation length and padding of its own; both would lose or add tokens.
            tokenizer.backend_tokenizer.no_truncation()
            tokenizer.backend_tokenizer.no_padding()
        self.prefix, self.suffix = self._special_tokens()
        pad = tokenizer.pad_token_id
        self.pad_id: int = 0 if pad is None else int(pad)

    def __call__(self, texts: Sequence[str]) -> list[Pieces]:
        """Tokenise texts whole, without special tokens."""
        if not texts:
            return []
        if not self._has_offsets:
            return [self._align(text) for text in texts]
        found = self._tokenizer(
            list(texts),
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            truncation=False,
            padding=False,
            verbose=False,
        )
        return [
            Pieces(
                ids_M=np.asarray(ids, dtype=np.int64),
                spans_M2=trim_spans(text, np.asarray(offsets, dtype=np.int32).reshape(-1, 2)),
            )
            for text, ids, offsets in zip(texts, found["input_ids"], found["offset_mapping"], strict=True)
        ]

    def describe(self) -> dict[str, Any]:
        """Digest of vocabulary and behaviour, special tokens around a text, and where spans come from."""
        vocabulary = sorted(self._tokenizer.get_vocab().items())
        behaviour = [[pieces.ids_M.tolist(), pieces.spans_M2.tolist()] for pieces in self(PROBE_TEXTS)]
        return {
            "digest": hashlib.sha256(json.dumps([vocabulary, behaviour]).encode()).hexdigest(),
            "prefix": list(self.prefix),
            "suffix": list(self.suffix),
            "pad_id": self.pad_id,
            "spans": "offsets" if self._has_offsets else "aligned",
        }

    def _align(self, text: str) -> Pieces:
        ids = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        spans_M2 = align_pieces(text, self._tokenizer.convert_ids_to_tokens(ids))
        return Pieces(ids_M=np.asarray(ids, dtype=np.int64), spans_M2=spans_M2)

    def _special_tokens(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the ids that the tokenizer puts before and after a text, read off a text of one letter."""
        bare = self._tokenizer("a", add_special_tokens=False)["input_ids"]
        full = self._tokenizer("a")["input_ids"]
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                return tuple(full[:start]), tuple(full[start + len(bare) :])
        raise ValueError(f"the tokenizer rewrites a text when it adds special tokens: {bare} became {full}")
