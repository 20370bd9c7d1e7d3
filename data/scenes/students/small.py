"""`scenes-small`: the demo's student, a UNITER-style single-stream encoder that fits on a CPU.

A BERT-style encoder over word pieces, one full-picture token and one token per box. Its only inputs from a region are
a small crop, through a trainable patch encoder, and seven box coordinates. Its word vectors start at random: nothing
in it comes from a teacher. (`scenes-small-lm` differs only in word vectors that start from a language model, as in
published students.) A word piece that names an object by tag also receives that object's visual state at the
fusion, as in VL-BERT. Dropout and layer norm follow UNITER.

It differs from UNITER in three places because of its size. In the lower layers text and picture only attend to
themselves, so that pretraining can align words and regions before the fusion, and a picture is encoded once for all
candidates. Word vectors are projected, as in ALBERT. And heads also read the agreement of text and region
(`Agreement`), as in the other small students (`AgreementStream`).

Shapes: B examples (pictures), N sequences, L text tokens, R visual tokens (full picture first), T = L + R, H width,
S crop side, F = 3 * S * S, E width of word vectors, V word pieces, D width of the embedded text model's table.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import safe_open
from torch import nn
from torch.nn import functional

from advl_data.scenes.students.bert_layer import BertLayer
from advl_data.scenes.students.lookup import LOOKUP_TASKS, LookupHead, LookupOutput
from advl_pipeline.base.configuration import option
from advl_pipeline.datasets.records import Example, ImageUnit
from advl_pipeline.students.bert_parts import (
    attention_bias,
    attention_mass,
    compute_dtype,
    initialise_bert,
    padding_bias,
    token_kinds,
)
from advl_pipeline.students.interface import Perturbation, StudentOutput
from advl_pipeline.students.picture_source import CropRegions
from advl_pipeline.students.region_student import RegionBatch, collate_regions, tagged_regions
from advl_pipeline.students.saved import builder
from advl_pipeline.students.text_student import RowLength, SingleStream, TextRow, pair_row
from advl_pipeline.students.tokenizer import EMBEDDED_TOKENIZER, TokenPart, embedded_tokenizer_file

WORD_TABLE = "embeddings.word_embeddings.weight"
DEVIATION = 0.3
"""Standard deviation of all reduced values. Positions and types start with 0.02, so that words dominate at first."""

TEXT_TYPE, VISUAL_TYPE, ANSWER_TYPE = 0, 1, 2
"""Token types as in UNITER's VCR input: context, region, answer."""


class Agreement(nn.Module):
    """Product of a statement's state and its subject's state, added to the pooled state; small students share it.

    Pretraining aligns words and regions below the fusion. Three layers pretrained for minutes do not carry that
    alignment to the pooled state; the product of the two aligned states does, as in the heads of two-tower models.
    (Mou et al. 2016 and InferSent read such a product next to the states themselves.)
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.informative = nn.Linear(width, 1, bias=False)
        self.merge = nn.Linear(2 * width, width)

    def forward(
        self,
        pooled_NH: torch.Tensor,
        text_NLH: torch.Tensor,
        said_NL: torch.Tensor,
        visual_NRH: torch.Tensor,
        place_NR: torch.Tensor,
    ) -> torch.Tensor:
        """Return (N, H).

        Args:
            pooled_NH: the pooled state after the fusion.
            text_NLH: the text's states below the fusion.
            said_NL: bool, the tokens of the statement, at least one per sequence.
            visual_NRH: the picture's states below the fusion.
            place_NR: float, shares of the visual tokens in the text's subject. All 0 if the picture is hidden.
        """
        weight_NL = self.informative(text_NLH)[..., 0].masked_fill(~said_NL, -torch.inf).softmax(1)
        said_NH = functional.normalize(torch.einsum("nl,nlh->nh", weight_NL, text_NLH), dim=-1)
        shown_NH = functional.normalize(torch.einsum("nr,nrh->nh", place_NR, visual_NRH), dim=-1)
        # Scaled to the magnitude of a layer-normalised state.
        agreement_NH = said_NH * shown_NH * said_NH.shape[-1]
        return torch.tanh(self.merge(torch.cat([pooled_NH, agreement_NH], dim=-1)))


def said_tokens(answer_NL: torch.Tensor, token_mask_NL: torch.Tensor) -> torch.Tensor:
    """Return (N, L) bool: the tokens of the answer, or of the complete text without an answer."""
    answer_NL = answer_NL & token_mask_NL
    return torch.where(answer_NL.any(1, keepdim=True), answer_NL, token_mask_NL)


def shares_of_tags(tag_NL: torch.Tensor, visual_NRH: torch.Tensor) -> torch.Tensor:
    """Return (N, L, R): 1 for the visual token that a token refers to by tag; all 0 if `tag_NL` (int64) is -1."""
    place_R = torch.arange(visual_NRH.shape[1], device=visual_NRH.device)
    return (tag_NL[..., None] == place_R).to(visual_NRH.dtype)


def place_of_tags(tags_NLR: torch.Tensor, *, hidden: bool) -> torch.Tensor:
    """Return (N, R): the mean place of the tags in a text; without tags the first visual token, the full picture.

    Args:
        tags_NLR: float, each tagged box's share on each visual token; 0 for tokens without a tag.
        hidden: whether the picture is hidden, so that the text has no subject.
    """
    summed_NR = tags_NLR.sum(1)
    if hidden:
        return torch.zeros_like(summed_NR)
    total_N1 = summed_NR.sum(1, keepdim=True)
    whole_R = torch.zeros_like(summed_NR[0])
    whole_R[0] = 1.0
    return torch.where(total_N1 > 0, summed_NR / total_N1.clamp(min=1e-6), whole_R)


class AgreementStream(SingleStream):
    """A small single stream: a word that names an object by tag receives its state, and heads read the agreement.

    `embed` returns the states below the fusion, where text and picture only attend to themselves.
    """

    agreement: Agreement

    @abstractmethod
    def word_table(self) -> tuple[nn.Embedding, int]:
        """Return the vectors of word pieces and the row of the mask token, for pretraining."""

    @abstractmethod
    def spoken_of(self, batch: Any, visual_NRH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return each token's tagged box as shares of visual tokens (N, L, R), and the statement's tokens (N, L)."""

    def states_of_tags(self, batch: Any, tags_NLR: torch.Tensor, visual_NRH: torch.Tensor) -> torch.Tensor:
        """Return (N, L, H): the state of each token's tagged object, 0 without a tag."""
        return tags_NLR @ visual_NRH

    def fuse(
        self, batch: Any, text_NLH: torch.Tensor, visual_NRH: torch.Tensor, *, hidden: bool, **how: bool
    ) -> StudentOutput:
        """Run the joint layers; unless the picture is hidden, tagged words receive the states of their objects."""
        tags_NLR, said_NL = self.spoken_of(batch, visual_NRH)
        tagged_NLH = text_NLH if hidden else text_NLH + self.states_of_tags(batch, tags_NLR, visual_NRH)
        output = super().fuse(batch, tagged_NLH, visual_NRH, hidden=hidden, **how)
        place_NR = place_of_tags(tags_NLR, hidden=hidden)
        output.pooled_NP = self.agreement(output.pooled_NP, text_NLH, said_NL, visual_NRH, place_NR)
        lies_NR4 = batch.per_sequence(batch.places_BR4)
        return LookupOutput(
            **vars(output),
            token_ids_NL=batch.token_ids_NL,
            token_mask_NL=batch.token_mask_NL,
            lower_text_NLH=text_NLH,
            lower_visual_NRH=visual_NRH,
            place_NR4=torch.full_like(lies_NR4, torch.nan) if hidden else lies_NR4,
        )

    def encode_unimodal(self, batch: Any) -> StudentOutput:
        text_NLH, visual_NRH = self.embed(batch, Perturbation(), hidden=True)
        return StudentOutput(
            text_states_NLH=text_NLH,
            visual_states_NRH=visual_NRH,
            pooled_NP=self.pool(text_NLH, batch),
            image_state_NH=visual_NRH[:, 0] if batch.whole_first else None,
        )

    def build_head(self, kind: str, num_classes: int) -> nn.Module:
        if kind in LOOKUP_TASKS:
            return LookupHead(self.hidden_size, self.word_table()[0].num_embeddings, num_classes)
        return super().build_head(kind, num_classes)  # type: ignore[safe-super]


@dataclass(frozen=True, kw_only=True, slots=True)
class ScenesSmallConfig(RowLength):
    """Architecture of `scenes-small`; tokenizer and vocabulary are those of the embedded text model."""

    tokenizer: ClassVar[str] = EMBEDDED_TOKENIZER
    vocab_size: ClassVar[int] = 30522

    hidden_size: int = option(128, help="Width H.", minimum=1)
    word_size: int = option(128, help="Width of the word vectors before they are projected up.", minimum=1)
    num_separate_layers: int = option(
        1, help="Lower layers, in which each modality attends only to itself.", minimum=1
    )
    num_joint_layers: int = option(2, help="Upper layers, in which all attend to all.", minimum=1)
    num_heads: int = option(4, help="Attention heads.", minimum=1)
    intermediate_size: int = option(256, help="Width of the feed-forward layers.", minimum=1)
    dropout: float = option(0.1, help="Dropout of states and attention.", minimum=0, below=1)
    max_text_length: int = option(64, help="Tokens of one row of text.", minimum=5)
    crop_size: int = option(12, help="Side S of the crops that the patch encoder sees, in pixels.", minimum=1)


@dataclass(kw_only=True)
class CropBatch(RegionBatch):
    """Batch with crops of the full picture and of each box as features, with a margin of a tenth of its size.

    `tags_NL` (int64) is the region that each token refers to by tag, -1 for most. `visible_BR` (bool) marks the
    existing regions of an example's picture.
    """

    blank_value: ClassVar[int] = 127

    tags_NL: torch.Tensor
    visible_BR: torch.Tensor


class ScenesSmall(AgreementStream):
    """The demo's student, a small transformer over words and crops."""

    config: Any
    config_class: ClassVar[type[ScenesSmallConfig]] = ScenesSmallConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"scenes-small": {}, "scenes-small-lm": {}}
    places = "regions"

    def __init__(self, name: str, config: ScenesSmallConfig) -> None:
        super().__init__(name, config)  # type: ignore[arg-type]
        self.crops = CropRegions(config.crop_size)
        width = config.hidden_size
        self.word_embedding = nn.Embedding(config.vocab_size, config.word_size)
        self.word_projection = nn.Linear(config.word_size, width)
        self.position_embedding = nn.Embedding(config.max_text_length, width)
        self.type_embedding = nn.Embedding(3, width)
        self.text_norm = nn.LayerNorm(width, eps=1e-12)
        self.patch_encoder = nn.Sequential(
            nn.Linear(3 * config.crop_size**2, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.patch_norm = nn.LayerNorm(width, eps=1e-12)
        self.box_encoder = nn.Linear(7, width)
        self.box_norm = nn.LayerNorm(width, eps=1e-12)
        self.visual_norm = nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(config.dropout)
        num_layers = config.num_separate_layers + config.num_joint_layers
        layer_sizes = (width, config.num_heads, config.intermediate_size, config.dropout)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(BertLayer(*layer_sizes) for _ in range(num_layers))})
        self.agreement = Agreement(width)
        initialise_bert(self)

    def num_visual_of(self, unit: ImageUnit) -> int:
        return len(unit.boxes_R4) + 1

    def collate(self, examples: Sequence[Example]) -> CropBatch:
        batch = collate_regions(self, examples, self.crops.regions)
        tags_NL, visible_BR = tagged_regions(batch, examples), batch.visual_mask_NR[batch.first_B]
        return CropBatch(**vars(batch) | {"tags_NL": tags_NL, "visible_BR": visible_BR})

    def num_special_of(self, num_parts: int) -> int:
        return 1 + min(num_parts, 2)

    def lay_out(self, parts: list[TokenPart], kind: str) -> TextRow:
        """Put the parts of one candidate between special tokens; the layout is the same for every task."""
        row = pair_row(parts, self.tokenizer)
        num_answer = len(parts[-1].token_ids) + 1
        row.types[-num_answer:] = [ANSWER_TYPE] * num_answer
        return row

    def embed(
        self, batch: CropBatch, delta: Perturbation, *, hidden: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = (batch.token_ids_NL, batch.token_mask_NL, batch.types_NL)
        text_NLH = self.once("text", inputs, lambda: self._text_states(batch))
        inputs = (batch.features_BRF, batch.positions_BR7, batch.visible_BR)
        return text_NLH, batch.per_sequence(self.once("picture", inputs, lambda: self._picture_states(batch)))

    @property
    def layers(self) -> Any:
        """All layers, lowest first."""
        return self.encoder["layer"]

    @property
    def fusion_layers(self) -> Sequence[Any]:
        return list(self.layers[self.config.num_separate_layers :])

    def run_layers(
        self, x_NSH: torch.Tensor, batch: CropBatch, *, num_text: int, separate: bool, **how: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        kinds_NS = token_kinds(batch.token_mask_NL, batch.visual_mask_NR)
        bias = attention_bias(kinds_NS, separate=separate, dtype=compute_dtype(x_NSH))
        *first, last = self.fusion_layers
        for layer in first:
            x_NSH = layer(x_NSH, bias)
        attention = last.attention["self"]
        relevance_NL = attention_mass(attention, x_NSH, bias, num_text) if how.get("need_relevance") else None
        return last(x_NSH, bias), relevance_NL

    def pool(self, text_NLH: torch.Tensor, batch: CropBatch) -> torch.Tensor:
        return text_NLH[:, 0]

    def spoken_of(self, batch: CropBatch, visual_NRH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        said_NL = said_tokens(batch.types_NL == ANSWER_TYPE, batch.token_mask_NL)
        return shares_of_tags(batch.tags_NL, visual_NRH), said_NL

    def encode_unimodal(self, batch: Any) -> StudentOutput:
        output = super().encode_unimodal(batch)
        text_NLH, visual_NRH = output.text_states_NLH, output.visual_states_NRH
        tags_NLR, said_NL = self.spoken_of(batch, visual_NRH)
        # The pooled state of text only has the form of the joint one with a hidden picture.
        place_NR = place_of_tags(tags_NLR, hidden=True)
        return replace(output, pooled_NP=self.agreement(output.pooled_NP, text_NLH, said_NL, visual_NRH, place_NR))

    def states_of_tags(self, batch: CropBatch, tags_NLR: torch.Tensor, visual_NRH: torch.Tensor) -> torch.Tensor:
        # Indexing instead of a product: stored students depend on the summation order of their gradients.
        index_NLH = batch.tags_NL.clamp(min=0)[..., None].expand(-1, -1, visual_NRH.shape[-1])
        return visual_NRH.gather(1, index_NLH) * (batch.tags_NL >= 0)[..., None]

    def _text_states(self, batch: CropBatch) -> torch.Tensor:
        words_NLE = self.word_embedding(batch.token_ids_NL)
        positions = self.position_embedding.weight[: words_NLE.shape[1]]
        embedded = self.word_projection(words_NLE) + positions + self.type_embedding(batch.types_NL)
        return self._lower_layers(self.text_norm(embedded), batch.token_mask_NL)

    def _picture_states(self, batch: CropBatch) -> torch.Tensor:
        patch_BRH = self.patch_norm(self.patch_encoder(self.seen(batch)))
        box_BRH = self.box_norm(self.box_encoder(batch.positions_BR7))
        embedded_BRH = self.visual_norm(patch_BRH + box_BRH + self.type_embedding.weight[VISUAL_TYPE])
        return self._lower_layers(embedded_BRH, batch.visible_BR)

    def seen(self, batch: CropBatch) -> torch.Tensor:
        """Return (B, R, F): the patch encoder's input from the crops."""
        return batch.features_BRF.to(self.type_embedding.weight.dtype) / 127.5 - 1.0

    def word_table(self) -> tuple[nn.Embedding, int]:
        return self.word_embedding, self.tokenizer.mask_id

    def build_head(self, kind: str, num_classes: int) -> nn.Module:
        if kind in LOOKUP_TASKS:
            return super().build_head(kind, num_classes)
        width = self.hidden_size
        return nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.LayerNorm(2 * width), nn.Linear(2 * width, num_classes)
        )

    def _lower_layers(self, embedded_XTH: torch.Tensor, mask_XT: torch.Tensor) -> torch.Tensor:
        x_XTH: torch.Tensor = self.dropout(embedded_XTH)
        bias = padding_bias(mask_XT, compute_dtype(x_XTH))
        for layer in self.layers[: self.config.num_separate_layers]:
            x_XTH = layer(x_XTH, bias)
        return x_XTH


def language_model_words(size: int) -> torch.Tensor:
    """Return (V, E) float32 initial word vectors from a language model, as in published students.

    They are the leading principal components of the centred word table of all-MiniLM-L6-v2, each with the sign that
    makes its largest loading positive.

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


def build(name: str, weights: Path | None, overrides: Mapping[str, Any]) -> ScenesSmall:
    """Build the student from a folder that `save_student` wrote, or with random weights.

    The word vectors of `scenes-small-lm` are not random but from a language model.
    """
    student = builder(ScenesSmall)(name, weights, overrides)
    assert isinstance(student, ScenesSmall)
    if weights is None and name == "scenes-small-lm":
        with torch.no_grad():
            student.word_embedding.weight.copy_(language_model_words(student.config.word_size))
    return student
