"""UNITER and VILLA as students: single stream over word pieces and regions.

VILLA has UNITER's modules and keys; only its finetuning differs (`adversarial.py`).

Shapes: N sequences, L text tokens, R regions, S = L + R, H width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from advl_pipeline.configuration import option
from advl_pipeline.datasets.records import Candidate, Example
from advl_pipeline.errors import ConfigError
from advl_pipeline.students.bert_parts import kinds_of
from advl_pipeline.students.building import builder
from advl_pipeline.students.checkpoints import KeyRules, grow_rows, grow_rows_from_first
from advl_pipeline.students.interface import Perturbation, StudentBatch, StudentOutput
from advl_pipeline.students.region_student import (
    LARGE,
    TINY_REGIONS,
    RegionBatch,
    RegionStudent,
    RegionStudentConfig,
)
from advl_pipeline.students.single_stream import COMPILE_REFUSAL, run_layers
from advl_pipeline.students.text_rows import Part, ReplacedSpan, TextRow
from advl_pipeline.students.uniter_core import UniterModel, head_rules, uniter_head

NUM_PERSON_TOKENS = 81
"""person_0 to person_80, appended to the vocabulary; people beyond share the last one."""

QUESTION_TYPE, ANSWER_TYPE, RATIONALE_TYPE = 0, 2, 3

TINY_UNITER = {**TINY_REGIONS, "vocab_size": 30522}


def grow_word_table(value: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Keep the words' rows; those of the person tokens are fresh where the file lacks them.

    A file without person tokens ends with the vocabulary; one with them may be padded to a multiple of 8.

    Raises:
        ConfigError: the file is of another vocabulary.
    """
    num_words = len(target) - NUM_PERSON_TOKENS
    if not num_words <= len(value) <= len(target) + 7:
        raise ConfigError(
            "The checkpoint is of another vocabulary than the student.",
            why=f"its word table has {len(value):,} rows, the student's {num_words:,} and {NUM_PERSON_TOKENS} more",
            next_command="leave out --student-option vocab_size, and give the checkpoint's own --tokenizer",
        )
    return grow_rows(value, target)


@dataclass(frozen=True, kw_only=True, slots=True)
class UniterConfig(RegionStudentConfig):
    """Architecture of UNITER; the defaults are uniter-base."""

    tokenizer: str = option("bert-base-cased", help="Folder or hub name of the tokenizer, or minilm-l6.")
    vocab_size: int = option(28996, help="Rows of the word table before the person tokens.", minimum=1)
    max_text_length: int = option(220, help="Tokens of one row.", minimum=5)
    num_types: int = option(4, help="Token types: question, region, answer, rationale.", minimum=1)


class Uniter(RegionStudent):
    """The student. State names are the original's behind `model.`."""

    config: UniterConfig
    compile_refusal = COMPILE_REFUSAL
    config_class: ClassVar[type[UniterConfig]] = UniterConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "uniter-base": {},
        "uniter-large": LARGE,
        "uniter-tiny": TINY_UNITER,
        "villa-base": {},
        "villa-large": LARGE,
        "villa-tiny": TINY_UNITER,
    }
    rules: ClassVar[KeyRules] = KeyRules(
        rename=((r"^(?:uniter|bert)\.", "model."),),
        ignore=(r"^(vqa_output|vcr_output|cls|feat_regress|region_classifier|itm_output|ot_output|nlvr2_output)\.",),
        resize=((r"word_embeddings", grow_word_table), (r"token_type_embeddings", grow_rows_from_first)),
    )

    def __init__(self, name: str, config: UniterConfig) -> None:
        super().__init__(name, config)
        self.model = UniterModel(
            **config.bert_sizes | {"vocab_size": config.vocab_size + NUM_PERSON_TOKENS},
            num_types=config.num_types,
            feature_size=config.feature_size,
        )

    def lay_out(self, parts: list[Part], task: str) -> TextRow:
        """`[CLS] q [SEP] a [SEP]`; a separator has the type of what follows it, the last that of what precedes."""
        row = TextRow()
        row.add_special(self.tokenizer.cls_id, QUESTION_TYPE)
        row.add_part(parts[0], QUESTION_TYPE)
        type_id = QUESTION_TYPE
        for part, type_id in zip(parts[1:], (ANSWER_TYPE, RATIONALE_TYPE), strict=False):
            row.add_special(self.tokenizer.sep_id, type_id)
            row.add_part(part, type_id)
        row.add_special(self.tokenizer.sep_id, type_id)
        return row

    def replaced_spans(self, example: Example, candidate: Candidate) -> list[ReplacedSpan]:
        """A tag of a person becomes `person_<index>`; other objects keep their class name as word pieces."""
        labels = example.image.box_labels
        return [
            ReplacedSpan(
                start=tag.start,
                end=tag.end,
                token_id=self.config.vocab_size + min(tag.box, NUM_PERSON_TOKENS - 1),
            )
            for tag in candidate.tags
            if tag.box < len(labels) and labels[tag.box] == "person"
        ]

    def encode(
        self,
        batch: StudentBatch,
        *,
        perturbation: Perturbation | None = None,
        mask_visual: bool = False,
        need_relevance: bool = False,
    ) -> StudentOutput:
        assert isinstance(batch, RegionBatch)
        text_NLH, regions_NRH = self.embed(batch, perturbation or Perturbation())
        return self.fuse(batch, text_NLH, regions_NRH, mask_visual=mask_visual, need_relevance=need_relevance)

    def encode_pooled(
        self, batch: StudentBatch, *, perturbation: Perturbation | None = None, mask_visual: bool = False
    ) -> StudentOutput:
        assert isinstance(batch, RegionBatch)
        text_NLH, regions_NRH = self.embed(batch, perturbation or Perturbation())
        return self.fuse(batch, text_NLH, regions_NRH, mask_visual=mask_visual, first_only=True)

    def fuse(
        self,
        batch: RegionBatch,
        text_NLH: torch.Tensor,
        regions_NRH: torch.Tensor,
        *,
        mask_visual: bool,
        need_relevance: bool = False,
        first_only: bool = False,
    ) -> StudentOutput:
        """Run the layers in which text and picture attend to one another; `first_only` as in `run_layers`."""
        num_text = text_NLH.shape[1]
        x_NSH, relevance_NL = run_layers(
            self.fusion_layers,
            torch.cat([text_NLH, regions_NRH], dim=1),
            kinds_of(batch.token_mask_NL, batch.visual_mask_NR),
            num_text=num_text,
            separate=mask_visual,
            need_relevance=need_relevance,
            first_only=first_only,
        )
        text_NLH, visual_NRH = x_NSH[:, :num_text], x_NSH[:, num_text:]
        return StudentOutput(
            text_states_NLH=text_NLH,
            visual_states_NRH=visual_NRH,
            pooled_NP=self.model.pooler(text_NLH),
            image_state_NH=visual_NRH[:, 0] if batch.whole_first and not first_only else None,
            relevance_NL=relevance_NL,
        )

    @property
    def fusion_layers(self) -> Sequence[nn.Module]:
        """The layers in which text and picture attend to one another."""
        return list(self.model.encoder.layer)

    def embed(self, batch: RegionBatch, delta: Perturbation) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what enters those layers: text (N, L, H) and regions (N, R, H)."""
        text_NLH = self.model.embed_text(batch.token_ids_NL, types_NL=batch.types_NL, perturbation_NLH=delta.text_NLE)
        regions_NRH = self.model.embed_regions(
            batch.features_BRF,
            batch.positions_BR7,
            repeat=batch.per_sequence,
            perturbation_NRF=delta.visual_NRF,
        )
        return text_NLH, regions_NRH

    def input_widths(self) -> tuple[int, int]:
        return self.hidden_size, self.config.feature_size

    def build_head(self, task: str, num_classes: int) -> nn.Module:
        return uniter_head(task, self.hidden_size, num_classes)

    @staticmethod
    def head_rules(task: str) -> KeyRules:
        """Return the rules that take a task's head out of an original checkpoint."""
        return head_rules(task)


build = builder(Uniter)
