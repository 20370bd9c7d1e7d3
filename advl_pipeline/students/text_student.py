"""What every student with word pieces shares: configuration, tokenizer, rows of text.

Shapes: N sequences, L text tokens.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch

from advl_pipeline.configuration import Configuration, config_to_dict, option
from advl_pipeline.datasets.records import Candidate, Example, ImageUnit, head_name
from advl_pipeline.errors import ConfigError
from advl_pipeline.runs import names
from advl_pipeline.students.interface import Perturbation, Student, StudentBatch, StudentOutput
from advl_pipeline.students.text_rows import (
    EMBEDDED_TOKENIZER,
    Part,
    ReplacedSpan,
    TextRow,
    TextTokenizer,
    fit_parts,
    load_text_tokenizer,
    longer_texts,
    pair_row,
    text_length,
)

TINY = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 64, "tokenizer": EMBEDDED_TOKENIZER}
"""What the architectures that are for tests have in common."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextStudentConfig(Configuration):
    """Settings that every student has; its architecture's own come on top."""

    hidden_size: int = option(768, help="Width H.", minimum=1)
    num_layers: int = option(12, help="Encoder layers.", minimum=1)
    num_heads: int = option(12, help="Attention heads.", minimum=1)
    intermediate_size: int = option(3072, help="Width of the feed-forward layers.", minimum=1)
    dropout: float = option(0.1, help="Dropout of states and attention.", minimum=0, below=1)
    tokenizer: str = option("bert-base-uncased", help="Folder or hub name of the tokenizer, or minilm-l6.")
    vocab_size: int = option(30522, help="Rows of the word table that the tokenizer fills.", minimum=1)
    max_positions: int = option(512, help="Rows of the position table.", minimum=1)
    max_text_length: int = text_length(128)
    overlong: Literal["error", "cut"] = longer_texts("error")

    @property
    def bert_sizes(self) -> dict[str, Any]:
        """The text encoder's sizes, as `bert_config` takes them."""
        widths = ("hidden_size", "num_layers", "num_heads", "intermediate_size")
        return {name: getattr(self, name) for name in (*widths, "vocab_size", "max_positions", "dropout")}

    @property
    def transformers_sizes(self) -> dict[str, Any]:
        """The text encoder's sizes but for its layers, as the library's configurations call them."""
        return {
            "hidden_size": self.hidden_size,
            "num_attention_heads": self.num_heads,
            "intermediate_size": self.intermediate_size,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_positions,
            "hidden_dropout_prob": self.dropout,
            "attention_probs_dropout_prob": self.dropout,
        }


@dataclass(kw_only=True)
class TextBatch(StudentBatch):
    """Adds `types_NL`, each token's type, and `pool_index_N`, the place of the token that tasks read; both int64."""

    types_NL: torch.Tensor
    pool_index_N: torch.Tensor

    @abstractmethod
    def without_picture(self) -> Self:
        """Return the batch with pictures that are not there: what the stream of the text sees of none."""

    def without_text(self) -> Self:
        """Return the batch with the first token alone visible: what the stream of the picture sees of no text."""
        mask_NL = torch.zeros_like(self.token_mask_NL)
        mask_NL[:, 0] = True
        return replace(self, token_mask_NL=mask_NL)


class TextStudent(Student):
    """Tokenises candidates part by part and lays the parts out between its special tokens."""

    config: TextStudentConfig
    num_unused_rows: ClassVar[int] = 0
    """How many rows of the published word table no token of the published tokenizer may have."""
    num_separators: ClassVar[int] = 1
    """Tokens between a question and its answer, 2 for RoBERTa."""
    num_special: ClassVar[int] = 4
    """Special tokens that `lay_out` adds to three parts, the most there are."""

    def __init__(self, name: str, config: TextStudentConfig) -> None:
        super().__init__()
        self.name = name
        self.config = config
        self.hidden_size = self.pooled_size = config.hidden_size

    @property
    def tokenizer(self) -> TextTokenizer:
        """Loaded when it is first asked for: a student may be described or filled where its tokenizer is not."""
        return load_text_tokenizer(self.config.tokenizer)

    def require_inputs(self) -> None:
        tokenizer = self.tokenizer
        if not 0 <= self.config.vocab_size - tokenizer.vocab_size <= self.num_unused_rows:
            own = getattr(self, "presets", {}).get(self.name, {}).get("tokenizer", type(self.config)().tokenizer)
            raise ConfigError(
                "The tokenizer is of another vocabulary than the student's word table.",
                where=self.config.tokenizer,
                why=f"it has {tokenizer.vocab_size:,} tokens, the word table of {self.name} has "
                f"{self.config.vocab_size:,} rows: every word would be read as another one",
                next_command=f"--tokenizer {own}"
                if own == EMBEDDED_TOKENIZER
                else f"--tokenizer FOLDER that holds tokenizer.json or vocab.txt of {own}",
            )

    def lay_out(self, parts: list[Part], task: str) -> TextRow:
        """Put the parts of one candidate between the student's special tokens; `task` is its head (`head_name`)."""
        return pair_row(parts, self.tokenizer, separators=self.num_separators)

    @abstractmethod
    def num_visual_of(self, unit: ImageUnit) -> int:
        """Return the visual tokens of a picture, padding aside."""

    def replaced_spans(self, example: Example, candidate: Candidate) -> list[ReplacedSpan]:
        """Return the characters that become single tokens; none by default."""
        return []

    def config_dict(self) -> dict[str, Any]:
        return config_to_dict(self.config)

    def save_inputs(self, folder: Path) -> None:
        if self.config.tokenizer != EMBEDDED_TOKENIZER:
            self.tokenizer.save(folder / names.TOKENIZER)

    @property
    def max_text_length(self) -> int:
        return self.config.max_text_length

    def num_special_of(self, num_parts: int) -> int:
        """Return the special tokens that a row of so many parts keeps room for: those of the longest row there is."""
        return self.num_special

    def count_cut(self, examples: Sequence[Example]) -> int:
        return 0 if self.config.overlong == "error" else self.collate_texts(examples)[1]

    def cut_texts(self) -> None:
        self.config = replace(self.config, overlong="cut")

    def text_tokens(self, examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
        texts, _ = self.collate_texts(examples)
        return texts["token_ids_NL"], texts["token_mask_NL"]

    def collate_texts(self, examples: Sequence[Example]) -> tuple[dict[str, torch.Tensor], int]:
        """Return the padded text tensors of all candidates, by field name, and how many of the texts were cut.

        Raises:
            ConfigError: the tokenizer is of another vocabulary. DatasetError: a text is too long, and not to be cut.
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


class TwoStreams(TextStudent):
    """A student whose text and picture are streams of their own that meet in cross-attention.

    Every token's cross-attention goes to the picture in full, so the streams have no relevance to give.
    """

    @abstractmethod
    def run_streams(self, batch: StudentBatch, perturbation: Perturbation | None = None) -> StudentOutput:
        """Run both streams, which see each other."""

    def encode(
        self,
        batch: StudentBatch,
        *,
        perturbation: Perturbation | None = None,
        mask_visual: bool = False,
        need_relevance: bool = False,
    ) -> StudentOutput:
        if not mask_visual:
            return self.run_streams(batch, perturbation)
        assert isinstance(batch, TextBatch)
        text = self.run_streams(batch.without_picture(), perturbation)
        picture = self.run_streams(batch.without_text(), perturbation)
        return replace(text, visual_states_NRH=picture.visual_states_NRH, image_state_NH=picture.image_state_NH)

    def encode_pooled(
        self, batch: StudentBatch, *, perturbation: Perturbation | None = None, mask_visual: bool = False
    ) -> StudentOutput:
        assert isinstance(batch, TextBatch)
        return self.run_streams(batch.without_picture() if mask_visual else batch, perturbation)


def pad_rows(rows: Sequence[TextRow], pad_id: int) -> dict[str, torch.Tensor]:
    """Return ids, mask, types, spans and pool index of rows, padded to the longest."""
    size = max(len(row.token_ids) for row in rows)
    ids = np.full((len(rows), size), pad_id, dtype=np.int64)
    mask = np.zeros((len(rows), size), dtype=np.bool_)
    types = np.zeros((len(rows), size), dtype=np.int64)
    spans = np.zeros((len(rows), size, 2), dtype=np.int64)
    for index, row in enumerate(rows):
        length = len(row.token_ids)
        ids[index, :length] = row.token_ids
        mask[index, :length] = True
        types[index, :length] = row.types
        spans[index, :length] = row.spans
    return {
        "token_ids_NL": torch.from_numpy(ids),
        "token_mask_NL": torch.from_numpy(mask),
        "types_NL": torch.from_numpy(types),
        "char_spans_NL2": torch.from_numpy(spans),
        "pool_index_N": torch.tensor([row.pool_index for row in rows]),
    }
