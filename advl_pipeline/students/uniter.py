"""UNITER and VILLA as students: single stream over word pieces and regions, with the keys of the original files.

The encoder is transformers' `BertEncoder`; this module adds the region embeddings. The original packs text and
regions of each sequence without gaps. `bert_parts.py` does not compute gaps either. Follows ChenRocks/UNITER
1dbfa62, `model/model.py`. VILLA has UNITER's modules and keys; only its finetuning differs (`adversarial.py`).

Shapes: B pictures, N sequences, L text tokens, R regions, S = L + R positions, H width, F region feature width,
K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from transformers.models.bert.modeling_bert import BertEmbeddings, BertEncoder, BertPooler

from advl_pipeline.base.configuration import option
from advl_pipeline.base.errors import ConfigError
from advl_pipeline.datasets.records import Candidate, Example
from advl_pipeline.students.bert_parts import bert_config, initialise_bert, widening_head
from advl_pipeline.students.checkpoints import KeyRules, grow_rows, grow_rows_from_first, published_keys, rules_below
from advl_pipeline.students.interface import Perturbation
from advl_pipeline.students.region_student import RegionBatch, RegionStream, RegionStudentConfig
from advl_pipeline.students.text_student import TextRow
from advl_pipeline.students.tokenizer import Piece, TokenPart

Repeat = Callable[[torch.Tensor], torch.Tensor]

CLEAN = Perturbation()

REGION_TYPE = 1
"""Token type of regions."""

NUM_POSITION_VALUES = 7
"""x1, y1, x2, y2, width, height and area of a region, as fractions of the picture."""


class RegionEmbeddings(nn.Module):
    """Region embeddings LN( LN(W_f feature) + LN(W_p position) + type ), followed by dropout."""

    def __init__(self, hidden_size: int, feature_size: int, dropout: float) -> None:
        super().__init__()
        self.img_linear = nn.Linear(feature_size, hidden_size)
        self.img_layer_norm = nn.LayerNorm(hidden_size, eps=1e-12)
        self.pos_layer_norm = nn.LayerNorm(hidden_size, eps=1e-12)
        self.pos_linear = nn.Linear(NUM_POSITION_VALUES, hidden_size)
        # Row 1 is a masked region in pretraining. Finetuning does not use it, but checkpoints contain it.
        self.mask_embedding = nn.Embedding(2, feature_size, padding_idx=0)
        self.LayerNorm = nn.LayerNorm(hidden_size, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        features_BRF: torch.Tensor,
        positions_BR7: torch.Tensor,
        type_H: torch.Tensor,
        repeat: Repeat | None = None,
    ) -> torch.Tensor:
        """Return region embeddings (B, R, H), or (N, R, H) if `repeat` repeats pictures for their sequences.

        Candidates of one question share their picture's embedding, but each has its own dropout.
        """
        feature_BRH = self.img_layer_norm(self.img_linear(features_BRF))
        position_BRH = self.pos_layer_norm(self.pos_linear(positions_BR7))
        embedded: torch.Tensor = self.LayerNorm(feature_BRH + position_BRH + type_H)
        dropped: torch.Tensor = self.dropout(embedded if repeat is None else repeat(embedded))
        return dropped


class UniterModel(nn.Module):
    """Embeddings, encoder and pooler of UNITER (and of VILLA, which differs only in training)."""

    def __init__(self, config: UniterConfig, *, num_words: int) -> None:
        """Build the modules with initial weights.

        Args:
            config: the student's configuration.
            num_words: number of rows of the word embeddings, person tokens included.
        """
        super().__init__()
        bert = bert_config(config, vocab_size=num_words, type_vocab_size=config.num_types)
        self.embeddings = BertEmbeddings(bert)
        self.img_embeddings = RegionEmbeddings(config.hidden_size, config.feature_size, config.dropout)
        self.encoder = BertEncoder(bert)
        self.pooler = BertPooler(bert)
        initialise_bert(self)

    def embed_text(
        self, token_ids_NL: torch.Tensor, types_NL: torch.Tensor | None = None, delta: Perturbation = CLEAN
    ) -> torch.Tensor:
        """Embed text, (N, L, H). The perturbation is added to the word embedding, before position, type and norm."""
        words_NLH = delta.of_words(self.embeddings.word_embeddings(token_ids_NL))
        embedded: torch.Tensor = self.embeddings(inputs_embeds=words_NLH, token_type_ids=types_NL)
        return embedded

    def embed_regions(
        self,
        features_BRF: torch.Tensor,
        positions_BR7: torch.Tensor,
        repeat: Repeat | None = None,
        delta: Perturbation = CLEAN,
    ) -> torch.Tensor:
        """Embed regions, repeated for their sequences, (N, R, H). The perturbation is added to the raw features."""
        if delta.visual_NRF is not None and repeat is not None:
            features_BRF, positions_BR7, repeat = repeat(features_BRF), repeat(positions_BR7), None
        type_H = self.embeddings.token_type_embeddings.weight[REGION_TYPE]
        embedded: torch.Tensor = self.img_embeddings(delta.of_features(features_BRF), positions_BR7, type_H, repeat)
        return embedded


class TwoWayChoiceHead(nn.Module):
    """The head for choices: every candidate has two logits, and the second is its score."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.net = widening_head(hidden_size, 2, nn.ReLU())

    def two_way(self, pooled_NH: torch.Tensor) -> torch.Tensor:
        """Return (N, 2) logits: wrong, right."""
        logits: torch.Tensor = self.net(pooled_NH)
        return logits

    def forward(self, pooled_NH: torch.Tensor) -> torch.Tensor:
        """Return the score of each candidate, (N, 1)."""
        return self.two_way(pooled_NH)[:, 1:]


def uniter_head(kind: str, hidden_size: int, num_classes: int) -> nn.Module:
    """Return a new head, as in the original: ReLU and two logits for choices, GELU elsewhere."""
    if kind == "choice":
        return TwoWayChoiceHead(hidden_size)
    return widening_head(hidden_size, num_classes)


NUM_PERSON_TOKENS = 81
"""Number of tokens person_0 to person_80, appended to the vocabulary; further people share the last one."""

QUESTION_TYPE, ANSWER_TYPE, RATIONALE_TYPE = 0, 2, 3


def grow_word_table(value: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Keep the rows of words; person tokens missing in the file keep their initial values.

    A file without person tokens ends with the vocabulary. A file with them may be padded to a multiple of 8.

    Raises:
        ConfigError: the file has another vocabulary.
    """
    num_words = len(target) - NUM_PERSON_TOKENS
    if not num_words <= len(value) <= len(target) + 7:
        raise ConfigError(
            "The vocabularies of the checkpoint and of the student differ.",
            why=f"the checkpoint has {len(value):,} words, the student {num_words:,} and {NUM_PERSON_TOKENS} more",
            next_command="leave out --student-option vocab_size, and give the checkpoint's own --tokenizer",
        )
    return grow_rows(value, target)


@dataclass(frozen=True, kw_only=True, slots=True)
class UniterConfig(RegionStudentConfig):
    """Architecture of UNITER; the word embeddings have rows for person tokens in addition to `vocab_size`."""

    num_types: int = option(4, help="Token types: question, region, answer, rationale.", minimum=1)


class Uniter(RegionStream):
    """UNITER as a student. State names are the original's with the prefix `model.`."""

    config: UniterConfig
    reads_first = True
    config_class: ClassVar[type[UniterConfig]] = UniterConfig
    rules: ClassVar[KeyRules] = published_keys(
        "uniter", resize={"word_embeddings": grow_word_table, "token_type_embeddings": grow_rows_from_first}
    )

    def __init__(self, name: str, config: UniterConfig) -> None:
        super().__init__(name, config)
        self.model = UniterModel(config, num_words=config.vocab_size + NUM_PERSON_TOKENS)

    def lay_out(self, parts: list[TokenPart], kind: str) -> TextRow:
        """Return `[CLS] q [SEP] a [SEP]`; a separator has the type of the next part, the last one of the previous."""
        row = TextRow()
        row.add_special(self.tokenizer.cls_id, QUESTION_TYPE)
        row.add_part(parts[0], QUESTION_TYPE)
        type_id = QUESTION_TYPE
        for part, type_id in zip(parts[1:], (ANSWER_TYPE, RATIONALE_TYPE), strict=False):
            row.add_special(self.tokenizer.sep_id, type_id)
            row.add_part(part, type_id)
        row.add_special(self.tokenizer.sep_id, type_id)
        return row

    def replaced_spans(self, example: Example, candidate: Candidate) -> list[Piece]:
        """Replace tags of people by `person_<index>`; other objects keep their class name as word pieces."""
        labels, first_person = example.image.box_labels, self.config.vocab_size
        return [
            (tag.start, tag.end, first_person + min(tag.box, NUM_PERSON_TOKENS - 1))
            for tag in candidate.tags
            if tag.box < len(labels) and labels[tag.box] == "person"
        ]

    def embed(
        self, batch: RegionBatch, delta: Perturbation, *, hidden: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        text_NLH = self.model.embed_text(batch.token_ids_NL, batch.types_NL, delta)
        return text_NLH, self.model.embed_regions(batch.features_BRF, batch.positions_BR7, batch.per_sequence, delta)

    def build_head(self, kind: str, num_classes: int) -> nn.Module:
        return uniter_head(kind, self.hidden_size, num_classes)

    @classmethod
    def head_rules(cls, kind: str) -> KeyRules:
        # SNLI-VE checkpoints store their head under VQA's name, because the original class derives from VQA's.
        if kind == "choice":
            return KeyRules(rename=((r"^vcr_output\.", "net."),), ignore=(r"^(?!vcr_output\.)",))
        return rules_below("vqa_output")
