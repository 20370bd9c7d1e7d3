"""Base classes of students with word pieces: rows of text, and the fusion of text and picture.

A student combines the parts of a candidate (`tokenizer.py`) with its special tokens and types. It reads text and
picture as one sequence (`SingleStream`), or as two sequences with cross-attention (`TwoStreams`).

Shapes: N sequences, L text tokens, R visual tokens, S = L + R, H width, P width of the pooled state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from typing_extensions import TypeVar

from advl_pipeline.base.configuration import Configuration, option
from advl_pipeline.base.errors import ConfigError, DatasetError
from advl_pipeline.datasets.records import Candidate, Example, ImageUnit, head_name
from advl_pipeline.runs import names
from advl_pipeline.students.abilities import added
from advl_pipeline.students.bert_parts import TokenGrid, run_layers, token_kinds
from advl_pipeline.students.interface import Perturbation, Student, StudentBatch, StudentOutput
from advl_pipeline.students.tokenizer import (
    EMBEDDED_TOKENIZER,
    Piece,
    TextTokenizer,
    TokenPart,
    load_text_tokenizer,
)
from advl_pipeline.students.weight_files import tokenizer_folder


@dataclass(frozen=True, kw_only=True, slots=True)
class RowLength(Configuration):
    """Maximum length of a text row, and the treatment of longer ones."""

    max_text_length: int = option(128, help="Tokens of one row of text.", minimum=5)
    overlong: Literal["error", "cut"] = option(
        "error",
        help="Longer training texts are an error, or their longer part is truncated; evaluation always truncates.",
    )


@dataclass(kw_only=True, slots=True)
class TextRow(TokenPart):
    """A row of text: ids, spans ((0, 0) for special tokens), types, and the token that heads read."""

    types: list[int] = field(default_factory=list)
    pool_index: int = 0

    def add_special(self, token_id: int, type_id: int = 0) -> None:
        """Append a special token."""
        self.add_part(TokenPart(token_ids=[token_id], spans=[(0, 0)]), type_id)

    def add_part(self, part: TokenPart, type_id: int = 0) -> None:
        """Append the tokens of a part."""
        self.token_ids += part.token_ids
        self.spans += part.spans
        self.types += [type_id] * len(part.token_ids)


def fit_parts(parts: list[TokenPart], num_special: int, row: RowLength, candidate: Candidate) -> int:
    """Truncate parts in place until the row fits, always the longest part; return the number of removed tokens.

    Raises:
        DatasetError: the row is too long, and `overlong` is "error".
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


def pair_row(
    parts: list[TokenPart], tokenizer: TextTokenizer, *, separators: int = 1, masked: bool = False
) -> TextRow:
    """Build `[CLS] q [SEP] a [SEP]` with type 1 from the answer on, or a row with a single text.

    Args:
        parts: question, answer and rationale, if present. Before a rationale, question and answer are not separated.
        separators: number of tokens between the two sides, 2 for RoBERTa.
        masked: end a single text with a [MASK], which heads read.
    """
    row = TextRow()
    row.add_special(tokenizer.cls_id)
    *context, answer = parts
    for part in context or [answer]:
        row.add_part(part)
    if masked and not context:
        row.pool_index = len(row.token_ids)
        row.add_special(tokenizer.mask_id)
    row.add_special(tokenizer.sep_id)
    if context:
        for _ in range(separators - 1):
            row.add_special(tokenizer.sep_id)
        row.add_part(answer, 1)
        row.add_special(tokenizer.sep_id, 1)
    return row


def pad_rows(rows: Sequence[TextRow], pad_id: int) -> dict[str, torch.Tensor]:
    """Return ids, mask, types, spans and pool index of rows, padded to the longest."""
    ids = np.full((len(rows), max(len(row.token_ids) for row in rows)), pad_id, dtype=np.int64)
    mask, types = np.zeros_like(ids, dtype=np.bool_), np.zeros_like(ids)
    spans = np.zeros((*ids.shape, 2), dtype=np.int64)
    for index, row in enumerate(rows):
        place = index, slice(len(row.token_ids))
        ids[place], mask[place], types[place], spans[place] = row.token_ids, True, row.types, row.spans
    arrays = {"token_ids_NL": ids, "token_mask_NL": mask, "types_NL": types, "char_spans_NL2": spans}
    pool_index_N = torch.tensor([row.pool_index for row in rows])
    return {**{name: torch.from_numpy(array) for name, array in arrays.items()}, "pool_index_N": pool_index_N}


@dataclass(frozen=True, kw_only=True, slots=True)
class TextStudentConfig(RowLength):
    """Common settings of students with word pieces. Values for each family are in data files."""

    hidden_size: int = option(768, help="Width H.", minimum=1)
    num_layers: int = option(12, help="Encoder layers.", minimum=1)
    num_heads: int = option(12, help="Attention heads.", minimum=1)
    intermediate_size: int = option(3072, help="Width of the feed-forward layers.", minimum=1)
    dropout: float = option(0.1, help="Dropout of states and attention.", minimum=0, below=1)
    tokenizer: str = option("bert-base-uncased", help="Folder or hub name of the tokenizer, or minilm-l6.")
    vocab_size: int = option(30522, help="Rows of the word table, one per token of the tokenizer.", minimum=1)
    max_positions: int = option(512, help="Rows of the position table.", minimum=1)


@dataclass(kw_only=True)
class TextBatch(StudentBatch, ABC):
    """A batch with token types `types_NL` and the index of the token that heads read, `pool_index_N`; both int64."""

    types_NL: torch.Tensor
    pool_index_N: torch.Tensor
    whole_first: bool = True
    """Whether the first visual token of every sequence represents the whole picture."""
    grid: TokenGrid | None = None
    """Grid of text and picture tokens, if the student does not compute padding."""

    @abstractmethod
    def without_picture(self) -> Self:
        """Return the batch with pictures hidden from the text stream."""

    def without_text(self) -> Self:
        """Return the batch with text hidden from the picture stream, except for the first token."""
        mask_NL = torch.zeros_like(self.token_mask_NL)
        mask_NL[:, 0] = True
        return replace(self, token_mask_NL=mask_NL)


TextBatchT = TypeVar("TextBatchT", bound=TextBatch, default=Any)


class TextStudent(Student[TextBatchT]):
    """A student that tokenises candidates part by part and joins the parts with special tokens."""

    config: TextStudentConfig
    num_unused_rows: ClassVar[int] = 0
    """Maximum number of rows of the published word embeddings without a token in the published tokenizer."""
    num_separators: ClassVar[int] = 1
    """Number of tokens between a question and its answer, 2 for RoBERTa."""

    def __init__(self, name: str, config: TextStudentConfig) -> None:
        super().__init__()
        self.name = name
        self.config = config
        self.hidden_size = self.pooled_size = config.hidden_size

    @property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer, loaded on first use: describing a student or loading its weights does not require it."""
        return load_text_tokenizer(self.config.tokenizer)

    def require_inputs(self) -> None:
        tokenizer = self.tokenizer
        if not 0 <= self.config.vocab_size - tokenizer.vocab_size <= self.num_unused_rows:
            usual = self.presets.get(self.name, {}).get("tokenizer", type(self.config)().tokenizer)
            raise ConfigError(
                "The vocabularies of the tokenizer and of the student differ.",
                where=self.config.tokenizer,
                why=f"the tokenizer has {tokenizer.vocab_size:,} tokens, the word embedding of {self.name} has "
                f"{self.config.vocab_size:,} rows: every word would be read as another one",
                next_command=f"--tokenizer {usual}"
                if usual == EMBEDDED_TOKENIZER
                else f"--tokenizer FOLDER that holds tokenizer.json or vocab.txt of {usual}",
            )

    def lay_out(self, parts: list[TokenPart], kind: str) -> TextRow:
        """Join the parts of one candidate with the student's special tokens; `kind` is that of its head."""
        return pair_row(parts, self.tokenizer, separators=self.num_separators)

    @abstractmethod
    def num_visual_of(self, unit: ImageUnit) -> int:
        """Return the number of visual tokens of a picture, without padding."""

    def replaced_spans(self, example: Example, candidate: Candidate) -> list[Piece]:
        """Return the character spans that become single tokens; none by default."""
        return []

    @classmethod
    def settings_beside(cls, weights: Path) -> dict[str, Any]:
        """Return the settings found next to published weights: by default, the tokenizer's folder."""
        folder = tokenizer_folder(weights)
        return {} if folder is None else {"tokenizer": str(folder)}

    def save_inputs(self, folder: Path) -> None:
        if self.config.tokenizer != EMBEDDED_TOKENIZER:
            self.tokenizer.save(folder / names.TOKENIZER)

    @property
    def max_text_length(self) -> int:
        return self.config.max_text_length

    def num_special_of(self, num_parts: int) -> int:
        """Return the number of special tokens to reserve in a row; by default, what `lay_out` adds to three parts."""
        return 4

    def count_cut(self, examples: Sequence[Example]) -> int:
        return 0 if self.config.overlong == "error" else self.collate_texts(examples)[1]

    def cut_texts(self) -> None:
        self.config = replace(self.config, overlong="cut")

    def text_tokens(self, examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
        texts, _ = self.collate_texts(examples)
        return texts["token_ids_NL"], texts["token_mask_NL"]

    def collate_texts(self, examples: Sequence[Example]) -> tuple[dict[str, Any], int]:
        """Return the padded text tensors of all candidates, by field name, and the number of truncated texts.

        Raises:
            ConfigError: the tokenizer has another vocabulary. DatasetError: a text is too long, and `overlong` is
                "error".
        """
        self.require_inputs()
        pairs = [(example, candidate) for example in examples for candidate in example.candidates]
        parts_of = self.tokenizer.encode(
            [candidate for _, candidate in pairs],
            [self.replaced_spans(example, candidate) for example, candidate in pairs],
        )
        rows, num_cut = [], 0
        for (example, candidate), parts in zip(pairs, parts_of, strict=True):
            num_cut += fit_parts(parts, self.num_special_of(len(parts)), self.config, candidate) > 0
            rows.append(self.lay_out(parts, head_name(example.task)))
        return pad_rows(rows, self.tokenizer.pad_id), num_cut


class SingleStream(TextStudent[TextBatchT]):
    """A student whose layers read text and picture as one sequence."""

    model: Any
    reads_first: ClassVar[bool] = False
    """Whether all its heads read only the first token, so that the last layer can skip the others."""

    @abstractmethod
    def embed(self, batch: TextBatchT, delta: Perturbation, *, hidden: bool) -> tuple[torch.Tensor, ...]:
        """Return the input embeddings of text (N, L, H) and picture (N, R, H), and what else `fuse` takes.

        Args:
            batch: a batch of the student's class.
            delta: perturbations of its inputs.
            hidden: hide text and picture from each other.
        """

    @property
    @abstractmethod
    def fusion_layers(self) -> Sequence[Any]:
        """The layers in which text and picture attend to each other."""

    @abstractmethod
    def run_layers(
        self, x_NSH: torch.Tensor, batch: TextBatchT, *, num_text: int, separate: bool, **how: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run `fusion_layers`, with the arguments and the result of `bert_parts.run_layers`."""

    def pool(self, text_NLH: torch.Tensor, batch: TextBatchT) -> torch.Tensor:
        """Pool the text's last states for the heads, (N, H); they may contain only the first tokens."""
        pooled_NH: torch.Tensor = self.model.pooler(text_NLH)
        return pooled_NH

    def encode(
        self,
        batch: TextBatchT,
        *,
        perturbation: Perturbation | None = None,
        mask_visual: bool = False,
        need_relevance: bool = False,
    ) -> StudentOutput:
        embedded = self.embed(batch, added(self, perturbation), hidden=mask_visual)
        return self.fuse(batch, *embedded, hidden=mask_visual, need_relevance=need_relevance)

    def encode_pooled(
        self, batch: TextBatchT, *, perturbation: Perturbation | None = None, mask_visual: bool = False
    ) -> StudentOutput:
        embedded = self.embed(batch, added(self, perturbation), hidden=mask_visual)
        return self.fuse(batch, *embedded, hidden=mask_visual, first_only=self.reads_first)

    def fuse(
        self, batch: TextBatchT, text_NLH: torch.Tensor, visual_NRH: torch.Tensor, *, hidden: bool, **how: bool
    ) -> StudentOutput:
        """Run the layers over the output of `embed`; `how` are other arguments of `bert_parts.run_layers`."""
        num_text = text_NLH.shape[1]
        x_NSH = torch.cat([text_NLH, visual_NRH], dim=1)
        x_NSH, relevance_NL = self.run_layers(x_NSH, batch, num_text=num_text, separate=hidden, **how)
        text_NLH, visual_NRH = x_NSH[:, :num_text], x_NSH[:, num_text:]
        return StudentOutput(
            text_states_NLH=text_NLH,
            visual_states_NRH=visual_NRH,
            pooled_NP=self.pool(text_NLH, batch),
            image_state_NH=visual_NRH[:, 0] if batch.whole_first and visual_NRH.shape[1] else None,
            relevance_NL=relevance_NL,
        )


class BertStream(SingleStream[TextBatchT]):
    """A single stream over BERT layers of a `bert_config`, which do not compute padding."""

    def kinds(self, batch: TextBatch) -> torch.Tensor:
        """Return the kind of each input position of the layers, (N, S), as in `token_kinds`."""
        return token_kinds(batch.token_mask_NL, batch.visual_mask_NR)

    def collate(self, examples: Sequence[Example]) -> Any:
        batch: Any = super().collate(examples)  # type: ignore[safe-super]  # Texts and pictures are the other base's.
        batch.grid = TokenGrid.of_kinds(self.kinds(batch))
        return batch

    def run_layers(
        self, x_NSH: torch.Tensor, batch: TextBatch, **how: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        return run_layers(self.fusion_layers, x_NSH, self.kinds(batch), grid=batch.grid, **how)


States = Sequence[torch.Tensor]
"""States of layers below the fusion, last layer last."""


class TwoStreams(TextStudent[TextBatchT]):
    """A student with separate streams for text and picture that interact through cross-attention.

    Every token's cross-attention to the picture sums to 1, so the streams provide no relevance.
    """

    @abstractmethod
    def lower_text(self, batch: TextBatchT, delta: Perturbation) -> States:
        """Return the text states (N, L, H) of one or several layers for the fusion."""

    @abstractmethod
    def lower_picture(self, batch: TextBatchT, delta: Perturbation) -> States:
        """Return the picture states for the fusion, (N, R, H), or (B, R, H) if computed once per example."""

    @abstractmethod
    def cross(self, batch: TextBatchT, texts: States, pictures: States) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the last states of both streams after cross-attention."""

    @abstractmethod
    def pool(self, text_NLH: torch.Tensor, picture_NRH: torch.Tensor | None) -> torch.Tensor:
        """Pool both streams, or only the text, for the heads, (N, P)."""

    def encode(
        self,
        batch: TextBatchT,
        *,
        perturbation: Perturbation | None = None,
        mask_visual: bool = False,
        need_relevance: bool = False,
    ) -> StudentOutput:
        text = self.encode_pooled(batch, perturbation=perturbation, mask_visual=mask_visual)
        if not mask_visual:
            return text
        picture = self.encode_pooled(batch.without_text(), perturbation=perturbation)
        return replace(text, visual_states_NRH=picture.visual_states_NRH, image_state_NH=picture.image_state_NH)

    def encode_pooled(
        self, batch: TextBatchT, *, perturbation: Perturbation | None = None, mask_visual: bool = False
    ) -> StudentOutput:
        seen, delta = batch.without_picture() if mask_visual else batch, added(self, perturbation)
        inputs = (seen.token_ids_NL, seen.types_NL, seen.token_mask_NL)
        texts = self.once("text", inputs, lambda: self.lower_text(seen, delta))
        text_NLH, picture_NRH = self.cross(seen, texts, self.lower_picture(seen, delta))
        return self._output(seen, text_NLH, picture_NRH, self.pool(text_NLH, picture_NRH))

    def encode_unimodal(self, batch: TextBatchT) -> StudentOutput:
        """Return the last states below the fusion; the picture's half of a pooled pair is zero."""
        text_NLH = self.lower_text(batch, Perturbation())[-1]
        picture_NRH = batch.per_sequence(self.lower_picture(batch, Perturbation())[-1])
        return self._output(batch, text_NLH, picture_NRH, self.pool(text_NLH, None))

    def _output(
        self, batch: TextBatch, text_NLH: torch.Tensor, picture_NRH: torch.Tensor, pooled_NP: torch.Tensor
    ) -> StudentOutput:
        return StudentOutput(
            text_states_NLH=text_NLH,
            visual_states_NRH=picture_NRH,
            pooled_NP=pooled_NP,
            image_state_NH=picture_NRH[:, 0] if batch.whole_first else None,
        )
