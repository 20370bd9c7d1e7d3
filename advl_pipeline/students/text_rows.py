"""Texts as token rows: a student's own tokenizer, its special tokens, and the characters behind every token.

A candidate has up to three parts (question, answer, rationale). Each part is tokenised on its own, so that offsets
are exact and no token spans two parts; a student then lays the parts out with its special tokens and types.

Layouts that several students share: `[CLS] q [SEP] a [SEP]` with type 1 from the answer on; a question and its answer
before a rationale are one part.

Shapes: L tokens of one row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol

from tokenizers import Tokenizer

from advl_pipeline.atomic import write_text
from advl_pipeline.configuration import option
from advl_pipeline.datasets.records import Candidate
from advl_pipeline.errors import DatasetError, WeightsUnavailable
from advl_pipeline.hub_access import hub_obstacle
from advl_pipeline.runs import names
from advl_pipeline.students.embedded_words import embedded_tokenizer_file

EMBEDDED_TOKENIZER = "minilm-l6"
"""Name of the tokenizer that installs from the package index (BERT's uncased vocabulary)."""

EMBEDDED_VOCABULARY = ("bert-base-uncased", "google-bert/bert-base-uncased")
"""Names on the hub of the same vocabulary."""

VOCABULARY_FILE = "vocab.txt"
"""BERT's vocabulary, one token a line."""


def text_length(tokens: int) -> Any:
    """Declare how many tokens a student's row of text has at most."""
    return option(tokens, help="Tokens of one row of text.", minimum=5)


def longer_texts(what: Literal["error", "cut"]) -> Any:
    """Declare what becomes of texts that are longer than a student's row."""
    return option(
        what,
        help="Longer texts to learn from are an error, or the longer part is cut; those to score are always cut.",
    )


class RowLength(Protocol):
    """How long a row may be, and what happens to longer ones."""

    @property
    def max_text_length(self) -> int: ...

    @property
    def overlong(self) -> Literal["error", "cut"]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplacedSpan:
    """Characters [start, end) become one token of their own, such as UNITER's `person_3`."""

    start: int
    end: int
    token_id: int


@dataclass(kw_only=True, slots=True)
class Part:
    """Tokens of one part of a candidate, with spans into `Candidate.text`."""

    token_ids: list[int] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)


@dataclass(kw_only=True, slots=True)
class TextRow:
    """One laid-out row: ids, spans ((0, 0) for special tokens), types, and the token that tasks read."""

    token_ids: list[int] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    pool_index: int = 0

    def add_special(self, token_id: int, type_id: int = 0) -> None:
        """Append a special token."""
        self.token_ids.append(token_id)
        self.spans.append((0, 0))
        self.types.append(type_id)

    def add_part(self, part: Part, type_id: int = 0) -> None:
        """Append the tokens of a part."""
        self.token_ids += part.token_ids
        self.spans += part.spans
        self.types += [type_id] * len(part.token_ids)


class TextTokenizer:
    """A fast tokenizer with the ids of the special tokens that BERT- and RoBERTa-like students need."""

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
        """Return the library's tokenizer, without padding, truncation or a student's layout."""
        return Tokenizer.from_str(self._tokenizer.to_str())

    def save(self, path: Path) -> None:
        """Write it as a tokenizer.json."""
        write_text(path, self._tokenizer.to_str() + "\n")

    def encode(
        self, candidates: Sequence[Candidate], replaced: Sequence[Sequence[ReplacedSpan]] | None = None
    ) -> list[list[Part]]:
        """Return the parts of each candidate, tokenised; empty parts are left out, at least one part remains.

        What several candidates have in common, such as their question, is tokenised once.
        """
        number_of: dict[str, int] = {}
        plans: list[list[list[tuple[int, int] | ReplacedSpan]]] = []
        for index, candidate in enumerate(candidates):
            spans = sorted(replaced[index], key=lambda span: span.start) if replaced else []
            plan: list[list[tuple[int, int] | ReplacedSpan]] = []
            for start, end in part_ranges(candidate):
                pieces: list[tuple[int, int] | ReplacedSpan] = []
                for piece in _split(start, end, spans):
                    if isinstance(piece, ReplacedSpan):
                        pieces.append(piece)
                    else:
                        text = candidate.text[piece[0] : piece[1]]
                        pieces.append((number_of.setdefault(text, len(number_of)), piece[0]))
                plan.append(pieces)
            plans.append(plan)
        encodings = self._tokenizer.encode_batch(list(number_of), add_special_tokens=False)
        tokens = [(encoding.ids, encoding.offsets) for encoding in encodings]
        return [[_assemble(pieces, tokens) for pieces in plan] for plan in plans]

    def _special(self, *names: str) -> int:
        for name in names:
            index: int | None = self._tokenizer.token_to_id(name)
            if index is not None:
                return index
        raise WeightsUnavailable(
            f"The tokenizer has none of the tokens {', '.join(names)}.", why="it is not of the BERT or RoBERTa kind"
        )


def part_ranges(candidate: Candidate) -> list[tuple[int, int]]:
    """Return the character ranges of question, answer and rationale, as far as the candidate has them."""
    if not candidate.context_length:
        return [(0, len(candidate.text))]
    context = [(0, candidate.context_length)]
    if candidate.question_length:
        context = [(0, candidate.question_length), (candidate.question_length + 1, candidate.context_length)]
    return [*context, (candidate.answer_start, len(candidate.text))]


def fit_parts(parts: list[Part], num_special: int, row: RowLength, candidate: Candidate) -> int:
    """Cut parts in place until the row fits, always at the end of the longest part; return the tokens cut.

    Raises:
        DatasetError: the row is too long, and such are an error.
    """
    num_tokens = sum(len(part.token_ids) for part in parts) + num_special
    excess = num_tokens - row.max_text_length
    if excess <= 0:
        return 0
    if row.overlong == "error":
        raise DatasetError(
            f"A text has {num_tokens} tokens; this student takes {row.max_text_length}.",
            where=repr(candidate.text[:80]),
            next_command="train with --student-option overlong=cut, which cuts the longer part, or with "
            f"--student-option max_text_length={num_tokens} where the student's weights have as many positions",
        )
    for _ in range(excess):
        longest = max(parts, key=lambda part: len(part.token_ids))
        longest.token_ids.pop()
        longest.spans.pop()
    return excess


@cache
def load_text_tokenizer(name: str) -> TextTokenizer:
    """Load a tokenizer: `minilm-l6`, a folder, or a name on the hub.

    Raises:
        WeightsUnavailable: it is neither here nor to be had.
    """
    if name == EMBEDDED_TOKENIZER:
        return TextTokenizer(Tokenizer.from_file(str(embedded_tokenizer_file())))
    from transformers import AutoTokenizer, BertTokenizerFast

    folder = Path(name)
    obstacle = "" if folder.is_dir() else hub_obstacle()
    local = folder.is_dir() or bool(obstacle)
    described = any((folder / file).is_file() for file in ("config.json", "tokenizer_config.json"))
    try:
        if not described and (folder / names.TOKENIZER).is_file():
            return TextTokenizer(_read_tokenizer(folder / names.TOKENIZER))
        if not described and (folder / VOCABULARY_FILE).is_file():
            lower = is_uncased((folder / VOCABULARY_FILE).read_text(encoding="utf-8").splitlines())
            fast: Any = BertTokenizerFast.from_pretrained(name, local_files_only=True, do_lower_case=lower)
        else:
            fast = AutoTokenizer.from_pretrained(name, local_files_only=local, use_fast=True)
    except (OSError, ValueError) as error:
        raise WeightsUnavailable(
            "The student's tokenizer is not at hand.",
            where=name,
            why=obstacle or str(error).split("\n", maxsplit=1)[0],
            next_command="--tokenizer FOLDER that holds its tokenizer.json or vocab.txt"
            + (f", or {EMBEDDED_TOKENIZER}" if name in EMBEDDED_VOCABULARY else ""),
        ) from None
    return TextTokenizer(Tokenizer.from_str(fast.backend_tokenizer.to_str()))


def is_uncased(vocabulary: Sequence[str]) -> bool:
    """Whether a vocabulary of word pieces is of lower-cased text: it has no upper case beside its special tokens."""
    return not any(token != token.lower() for token in vocabulary if not token.startswith("["))


def _read_tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # The library raises nothing narrower.
        raise ValueError(f"{path.name}: {error}") from None


def _split(start: int, end: int, spans: Sequence[ReplacedSpan]) -> list[tuple[int, int] | ReplacedSpan]:
    """Cut a range at the replaced spans that lie in it."""
    pieces: list[tuple[int, int] | ReplacedSpan] = []
    for span in spans:
        if start <= span.start and span.end <= end:
            if span.start > start:
                pieces.append((start, span.start))
            pieces.append(span)
            start = span.end
    if end > start:
        pieces.append((start, end))
    return pieces


def _assemble(
    pieces: Sequence[tuple[int, int] | ReplacedSpan], tokens: Sequence[tuple[list[int], list[tuple[int, int]]]]
) -> Part:
    """Join pieces: the number of a tokenised text and where it starts, or what stands for some characters."""
    part = Part()
    for piece in pieces:
        if isinstance(piece, ReplacedSpan):
            part.token_ids.append(piece.token_id)
            part.spans.append((piece.start, piece.end))
        else:
            (ids, offsets), start = tokens[piece[0]], piece[1]
            part.token_ids += ids
            part.spans += [(first + start, last + start) for first, last in offsets] if start else offsets
    return part


def pair_row(parts: list[Part], tokenizer: TextTokenizer, *, separators: int = 1) -> TextRow:
    """Lay out a pair, or a single text.

    Args:
        parts: question, answer and rationale, as far as there are.
        separators: tokens between the two sides, 2 for RoBERTa.
    """
    row = TextRow()
    row.add_special(tokenizer.cls_id)
    *context, answer = parts
    for part in context or [answer]:
        row.add_part(part)
    row.add_special(tokenizer.sep_id)
    if context:
        for _ in range(separators - 1):
            row.add_special(tokenizer.sep_id)
        row.add_part(answer, 1)
        row.add_special(tokenizer.sep_id, 1)
    return row
