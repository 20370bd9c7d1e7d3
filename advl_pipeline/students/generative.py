"""What chat models over pictures share as students: transformers' model and processor behind the adapter.

A sequence is a conversation: the picture, the question and, where there are choices, a candidate as its answer. Word
and picture states are those of one layer, `align_layer`. Tasks are answered by the language model itself: an answer's
score is its likelihood (`answers.py`), and no head is trained. Layers are causal and the picture comes first, so that
picture states never depend on the text.

A family gives its presets, how it reads a picture, and where its modules lie; see
docs/adding-a-generative-student.md.

What an example's candidates have in common, the picture above all, is computed once: they lie behind it in one row,
and see it and themselves alone, at the positions that each would have by itself.

Shapes: B examples, N sequences, S tokens of a sequence, L of them text, R of them picture, W tokens of an example's
row, T tokens of answers behind it, V tokens of all pictures, M picture tokens of all rows, D features of one,
K answers, H width.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForImageTextToText

from advl_pipeline.configuration import Configuration, option
from advl_pipeline.datasets.records import MULTIPLE_CHOICE_TASKS, Example, ImageUnit
from advl_pipeline.errors import ConfigError, DatasetError
from advl_pipeline.runs import names
from advl_pipeline.students.answers import (
    Answers,
    agreement,
    answers_behind,
    parts_of_list,
    said_tokens,
    sum_likelihoods,
)
from advl_pipeline.students.bert_parts import additive_mask, compute_dtype
from advl_pipeline.students.chat import COMMON, INSTRUCTIONS, PADDING, Chat, ChatBatch, Picture, chat_batch
from advl_pipeline.students.checkpoints import KeyRules
from advl_pipeline.students.interface import (
    Answered,
    AnswerHead,
    Perturbation,
    PlaceKind,
    Student,
    StudentBatch,
    StudentOutput,
)
from advl_pipeline.students.picture_source import RecentlyUsed
from advl_pipeline.students.saved import DESCRIPTION_FILE
from advl_pipeline.students.weight_files import MODEL_CONFIG, tokenizer_folder

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Modules of a language model that get low-rank updates."""

MASK_ALIGNMENT = 8
"""Places of which a row of an attention mask holds a multiple: kernels copy another mask for each layer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerativeConfig(Configuration):
    """Settings of every chat model."""

    architecture: Mapping[str, Any] = option(help="The model's config.json, as transformers has it.")
    tokenizer: str = option(help="Folder or hub name of the processor: tokenizer, pictures and chat template.")
    align_layer: int = option(
        0, help="Layer whose word and picture states are distilled, from 1; 0 for the middle one.", minimum=0
    )
    length_normalised: Literal["choices", "all", "none"] = option(
        "choices", help="Whose likelihoods are divided by the answer's number of tokens: candidates', all, or none."
    )
    instruction: str | None = option(None, help="What follows the question [default: the task's own line].")
    max_new_tokens: int = option(10, help="Tokens of a generated answer, at most.", minimum=1)
    dropout: float = option(0.0, help="Dropout of the language model's attention.", minimum=0, below=1)
    agreement: float = option(
        0.0,
        help="Temperature of the agreement between a candidate's words and the picture, which is added to its "
        "likelihood per token (docs/method.md); 0 leaves it out.",
        minimum=0,
    )


class GenerativeStudent(Student):
    """The adapter; state names are transformers' behind `model.`."""

    config: GenerativeConfig
    config_class: ClassVar[type[GenerativeConfig]]
    smaller_pictures: ClassVar[str]
    """The student option that gives a picture fewer tokens, with a value."""
    places: PlaceKind | None = "patches"

    def __init__(self, name: str, config: GenerativeConfig) -> None:
        super().__init__()
        self.name = name
        # A plain table, so that the student can be copied.
        self.config = replace(config, architecture=dict(config.architecture))
        self.model = AutoModelForImageTextToText.from_config(model_config(config), dtype=torch.float32)
        self.hidden_size = self.pooled_size = self.decoder.config.hidden_size
        num_layers: int = self.decoder.config.num_hidden_layers
        middle = max(1, num_layers // 2)
        self.align_layer = config.align_layer or middle
        if self.align_layer > num_layers:
            raise ConfigError(
                f"{name} has no layer {self.align_layer}.",
                why=f"its language model has {num_layers}",
                next_command=f"--align-layer {middle} is the middle one",
            )
        self.deep_layers: tuple[int, ...] = ()
        self._pictures: RecentlyUsed[Picture] = RecentlyUsed()
        self._answer_ids: dict[tuple[str, ...], list[list[int]]] = {}

    @property
    def rules(self) -> KeyRules:
        """Published files have transformers' names; tied words are in them once."""
        tied = (r"lm_head\.weight$",) if self.model.config.tie_word_embeddings else ()
        return KeyRules(rename=((r"^", "model."),), optional=tied)

    @classmethod
    def settings_beside(cls, weights: Path) -> dict[str, Any]:
        """Return architecture and processor of published weights, as far as they lie in the folder."""
        folder = weights if weights.is_dir() else weights.parent
        settings: dict[str, Any] = {}
        if (folder / names.PROCESSOR).is_dir():
            settings["tokenizer"] = str(folder / names.PROCESSOR)
        elif tokenizer_folder(weights) is not None:
            settings["tokenizer"] = str(folder)
        if not (folder / DESCRIPTION_FILE).is_file() and (folder / MODEL_CONFIG).is_file():
            settings["architecture"] = json.loads((folder / MODEL_CONFIG).read_text(encoding="utf-8"))
        return settings

    @property
    @abstractmethod
    def decoder(self) -> Any:
        """The language model without its words."""

    @abstractmethod
    def load_processor(self) -> Any:
        """Return transformers' processor.

        Raises:
            WeightsUnavailable: it is neither here nor to be had.
        """

    @abstractmethod
    def read_picture(self, unit: ImageUnit) -> Picture:
        """Read a picture as the processor does.

        Raises:
            DatasetError: it cannot be decoded.
        """

    @abstractmethod
    def picture_features(self, batch: ChatBatch) -> torch.Tensor:
        """Return (V, D, H) for the V tokens of all pictures, one picture after the other.

        The first of the D features stands in the token's place. What a family does with others is its own.
        """

    def decoder_inputs(self, place_M: torch.Tensor, shown_MDH: torch.Tensor) -> dict[str, Any]:
        """Return what else the decoder takes: nothing by default.

        Args:
            place_M: int64, where the picture's tokens lie in all rows, one row after the other.
            shown_MDH: their features.
        """
        return {}

    def positions(self, batch: ChatBatch) -> torch.Tensor:
        """Return (N, S) int64, or (3, N, S) of a family whose positions have three axes."""
        places = torch.arange(batch.sequence_ids_NS.shape[1], device=batch.sequence_ids_NS.device)
        return places.expand_as(batch.sequence_ids_NS)

    @cached_property
    def processor(self) -> Any:
        """Loaded when it is first asked for: a student may be described or filled where its processor is not."""
        return self.load_processor()

    @cached_property
    def chat(self) -> Chat:
        return Chat(self.processor, where=self.config.tokenizer)

    def require_inputs(self) -> None:
        settings, chat = self.decoder.config, self.chat
        expected = self.model.config.image_token_id
        num_tokens, num_rows = len(self.processor.tokenizer), settings.vocab_size
        misread = ": every word would be read as another one"
        if num_tokens > num_rows:
            tokens, rows = f"it has {num_tokens:,} tokens", f"the word table of {self.name} has {num_rows:,} rows"
            raise self.unfit(f"{tokens}, {rows}{misread}")
        if chat.image_token_id != expected:
            raise self.unfit(
                f"a picture's token is its {chat.image_token_id}, and that of {self.name} {expected}{misread}"
            )

    def unfit(self, why: str) -> ConfigError:
        """Return the refusal of a processor that is not of the student's model."""
        return ConfigError(
            "The processor does not belong to these weights.",
            where=self.config.tokenizer,
            why=why,
            next_command="--tokenizer FOLDER that holds the processor of the same model",
        )

    def instruction(self, task: str) -> str:
        """Return what follows a question of a task."""
        return INSTRUCTIONS.get(task, "") if self.config.instruction is None else self.config.instruction

    def collate(self, examples: Sequence[Example]) -> ChatBatch:
        self.require_inputs()
        pictures = [
            self._pictures.get(example.image.unit_id, partial(self.read_picture, example.image))
            for example in examples
        ]
        rows = [
            row
            for example, picture in zip(examples, pictures, strict=True)
            for row in self.chat.rows(
                example.candidates, example.task, self.instruction(example.task), picture.token_ids
            )
        ]
        self._require_room(max(len(row.token_ids_S) for row in rows))
        choice = examples[0].task in (*MULTIPLE_CHOICE_TASKS, "captions")
        batch = chat_batch(
            rows,
            pictures,
            num_candidates=tuple(len(example.candidates) for example in examples),
            image_token_id=self.chat.image_token_id,
            pad_id=self.chat.pad_id,
            answers_inside_rows=choice,
            length_normalised=self.config.length_normalised == "all"
            or (choice and self.config.length_normalised == "choices"),
        )
        if self.config.agreement and examples[0].task in MULTIPLE_CHOICE_TASKS:
            candidates = [candidate for example in examples for candidate in example.candidates]
            batch.said_NL = said_tokens(candidates, batch.char_spans_NL2)
            batch.spoken_of_NR = batch.visual_mask_NR.float()
        return batch

    def with_answers(
        self, batch: StudentBatch, task: str, label_names: Sequence[str], wanted_BK: torch.Tensor | None = None
    ) -> ChatBatch:
        assert isinstance(batch, ChatBatch)
        if batch.answers:
            return batch
        known = tuple(label_names)
        if known not in self._answer_ids:
            self._answer_ids[known] = self.chat.answer_ids(known)
        ids = self._answer_ids[known]
        # Candidates hold their own answers, so that a row which others lie behind is one sequence.
        assert set(batch.num_candidates) == {1}
        last, size = (batch.length_N - 1).tolist(), batch.sequence_ids_NS.shape[1]
        self._require_room(size + max(len(answer_ids) for answer_ids in ids))
        if wanted_BK is not None:
            wanted = [[(number, ids[number]) for number in torch.nonzero(row)[:, 0].tolist()] for row in wanted_BK]
            answers = [answers_behind(wanted, last, size, self.chat.end_id)]
        else:
            answers = [
                answers_behind([part] * len(last), last, size, self.chat.end_id) for part in parts_of_list(ids)
            ]
        return replace(batch, answers=tuple(answers), num_answers=len(known))

    def encode(
        self,
        batch: StudentBatch,
        *,
        perturbation: Perturbation | None = None,
        mask_visual: bool = False,
        need_relevance: bool = False,
    ) -> StudentOutput:
        # Attention to the picture is spread over markers and sinks; no relevance is given.
        assert isinstance(batch, ChatBatch)
        self.delta(perturbation)
        layers = (self.align_layer, *self.deep_layers)
        (states_BWH, *deep), answered = self._pass(batch, mask_visual, lambda states_BWH: states_BWH, layers)
        return StudentOutput(
            text_states_NLH=batch.of_sequences(states_BWH, batch.text_place_NL),
            visual_states_NRH=batch.of_sequences(states_BWH, batch.visual_place_NR),
            pooled_NP=batch.last_states(states_BWH),
            answered=answered,
            visual_layers=tuple(batch.of_sequences(layer_BWH, batch.visual_place_NR) for layer_BWH in deep),
        )

    def encode_pooled(
        self, batch: StudentBatch, *, perturbation: Perturbation | None = None, mask_visual: bool = False
    ) -> StudentOutput:
        assert isinstance(batch, ChatBatch)
        self.delta(perturbation)
        (pooled_NH,), answered = self._pass(batch, mask_visual, batch.last_states, (self.align_layer,))
        none = pooled_NH.new_zeros(batch.num_sequences, 0, self.hidden_size)
        return StudentOutput(text_states_NLH=none, visual_states_NRH=none, pooled_NP=pooled_NH, answered=answered)

    def encode_unimodal(self, batch: StudentBatch) -> StudentOutput:
        assert isinstance(batch, ChatBatch)
        asked = replace(batch, answers=())
        # The score of a candidate reads the same pass.
        inputs = [batch.sequence_ids_NS, batch.pixels]
        return self.once("unimodal", inputs, lambda: self.encode(asked, mask_visual=True))

    def visual_tokens(self, batch: StudentBatch) -> torch.Tensor:
        assert isinstance(batch, ChatBatch)
        return batch.of_sequences(self.embed(batch, self.shown(batch), mask_visual=True), batch.visual_place_NR)

    def give_layers(self) -> None:
        num_layers: int = self.decoder.config.num_hidden_layers
        self.deep_layers = tuple(range((num_layers + 1) // 2, 3 * num_layers // 4 + 1))

    @torch.inference_mode()
    def generate(self, batch: StudentBatch) -> list[str]:
        """Return each sequence's likeliest answer, word by word, as transformers generates it."""
        assert isinstance(batch, ChatBatch)
        size = batch.sequence_ids_NS.shape[1]
        # Generation goes on where a row ends, so that rows end together.
        place_NS = torch.arange(size, device=batch.length_N.device) - (size - batch.length_N[:, None])
        shown_NS = place_NS >= 0
        asked = self.prompts(batch, place_NS.clamp(min=0), shown_NS)
        generated = self.model.generate(
            **asked,
            max_new_tokens=self.config.max_new_tokens,
            do_sample=False,
            eos_token_id=self.chat.end_id,
            pad_token_id=self.chat.pad_id,
        )
        # What is asked by ids comes back in front of the answer.
        start = size if "input_ids" in asked else 0
        return [self.chat.decode(row) for row in generated[:, start:].tolist()]

    def prompts(self, batch: ChatBatch, place_NS: torch.Tensor, shown_NS: torch.Tensor) -> dict[str, Any]:
        """Return what transformers generates from, rows padded on the left.

        Args:
            place_NS: where each token of the padded rows lies in the batch's.
            shown_NS: bool, False for padding.
        """
        x_BWH = self.embed(batch, self.shown(batch))
        return {"inputs_embeds": batch.of_sequences(x_BWH, place_NS), "attention_mask": shown_NS.long()}

    def shown(self, batch: ChatBatch) -> torch.Tensor:
        """Return (M, D, H): features of the picture tokens of all rows, one row after the other."""
        features_VDH = self.once("pictures", [batch.pixels], lambda: self.picture_features(batch))
        return features_VDH.index_select(0, batch.packing.feature_M)

    def embed(self, batch: ChatBatch, shown_MDH: torch.Tensor, *, mask_visual: bool = False) -> torch.Tensor:
        """Return (B, W, H): words, and the pictures' features in the places of their tokens.

        With `mask_visual` no word may hold anything of the picture.
        """
        packing = batch.packing
        words_BWH: torch.Tensor = self.model.get_input_embeddings()(packing.packed(batch.sequence_ids_NS))
        return words_BWH.index_put((packing.row_M, packing.place_M), shown_MDH[:, 0].to(words_BWH.dtype))

    def build_head(self, task: str, num_classes: int) -> nn.Module:
        """Return a head without parameters: the language model scores answers itself."""
        return AnswerHead()

    def save_inputs(self, folder: Path) -> None:
        self.processor.save_pretrained(folder / names.PROCESSOR)

    def _require_room(self, num_tokens: int) -> None:
        most = self.decoder.config.max_position_embeddings
        if num_tokens > most:
            raise DatasetError(
                f"A picture and its text have {num_tokens} tokens; {self.name} has {most} positions.",
                next_command=f"--student-option {self.smaller_pictures} gives a picture fewer tokens",
            )

    def _pass(
        self,
        batch: ChatBatch,
        mask_visual: bool,
        take: Callable[[torch.Tensor], torch.Tensor],
        layers: Sequence[int],
    ) -> tuple[list[torch.Tensor], Answered | None]:
        """Run the model over a batch.

        Args:
            take: what is returned of the states (B, W, H) of a layer.
            layers: from 1.
        """
        kept: dict[int, torch.Tensor] = {}

        def keep(number: int, _layer: Any, _inputs: Any, states_BWH: torch.Tensor) -> None:
            # Later passes, of further answers, have the same states.
            if number not in kept:
                kept[number] = take(states_BWH)

        decoder = self.decoder
        with ExitStack() as hooks:
            for number in layers:
                # States of the last layer are those that the words are foretold from.
                layer = decoder.norm if number == len(decoder.layers) else decoder.layers[number - 1]
                hooks.callback(layer.register_forward_hook(partial(keep, number)).remove)
            answered = self._answered(batch, mask_visual)
        return [kept[number] for number in layers], answered

    def _answered(self, batch: ChatBatch, mask_visual: bool) -> Answered | None:
        """Run the language model over the batch, and return the likelihoods of its answers where it has any."""
        shown_MDH = self.shown(batch)
        x_BWH = self.embed(batch, shown_MDH, mask_visual=mask_visual)
        if not batch.answers:
            self._run(x_BWH, shown_MDH, batch, None, mask_visual)
            return None
        size = batch.sequence_ids_NS.shape[1]
        total: list[tuple[torch.Tensor, torch.Tensor]] = []
        for answers in batch.answers:
            final_BWH = self._run(x_BWH, shown_MDH, batch, answers, mask_visual)
            # Answers behind a row lie where they would behind the sequence, which is then alone in its row.
            inside_NQ = batch.packing.place_NS.gather(1, answers.source_NQ.clamp(max=size - 1))
            place_NQ = torch.where(answers.source_NQ < size, inside_NQ, answers.source_NQ)
            place_NQ = place_NQ + batch.example_N[:, None] * final_BWH.shape[1]
            states_MH = final_BWH.flatten(0, 1).index_select(0, place_NQ.flatten()[answers.foretold_M])
            total.append(sum_likelihoods(answers, states_MH, self.model.lm_head, batch.num_answers))
        agreement_NK = None
        if batch.said_NL is not None and batch.spoken_of_NR is not None and not mask_visual:
            apart = self.encode_unimodal(batch)
            cosine_N = agreement(apart.text_states_NLH, batch.said_NL, apart.visual_states_NRH, batch.spoken_of_NR)
            agreement_NK = cosine_N[:, None] / self.config.agreement
        return Answered(
            log_likelihood_NK=torch.stack([likelihood for likelihood, _ in total]).sum(0),
            num_tokens_NK=torch.stack([number for _, number in total]).sum(0),
            length_normalised=batch.length_normalised,
            agreement_NK=agreement_NK,
        )

    def _run(
        self,
        x_BWH: torch.Tensor,
        shown_MDH: torch.Tensor,
        batch: ChatBatch,
        answers: Answers | None,
        mask_visual: bool,
    ) -> torch.Tensor:
        """Return the last states of rows and of the answers behind them."""
        packing = batch.packing
        positions_NS = self.positions(batch)
        positions, picture, own_BW = packing.packed(positions_NS), packing.packed(batch.picture_NS), packing.own_BW
        if answers is not None and answers.token_ids_NT.shape[1]:
            x_BWH = torch.cat([x_BWH, self.model.get_input_embeddings()(answers.token_ids_NT)], dim=1)
            last = (batch.length_N[:, None] - 1).expand(*positions_NS.shape[:-1], 1)
            positions = torch.cat([positions, positions_NS.gather(-1, last) + 1 + answers.offset_NT], dim=-1)
            picture = functional.pad(picture, (0, answers.block_NT.shape[1]))
            own_BW = torch.cat([own_BW, torch.where(answers.block_NT < 0, PADDING, answers.block_NT)], dim=1)
        width = own_BW.shape[1]
        more = (0, -width % MASK_ALIGNMENT)
        x_BWH = functional.pad(x_BWH, (0, 0, *more))
        positions, picture = functional.pad(positions, more), functional.pad(picture, more)
        own_BW = functional.pad(own_BW, more, value=PADDING)
        place = torch.arange(own_BW.shape[1], device=own_BW.device)
        allowed = (own_BW == COMMON)[:, None, :] | (own_BW[:, None, :] == own_BW[:, :, None])
        allowed = allowed & (place[None, :] <= place[:, None])
        if mask_visual:
            allowed = allowed & (picture[:, :, None] | ~picture[:, None, :])
        place_M = packing.row_M * own_BW.shape[1] + packing.place_M
        output = self.decoder(
            inputs_embeds=x_BWH,
            attention_mask=additive_mask(allowed, compute_dtype(x_BWH))[:, None],
            position_ids=positions,
            use_cache=False,
            **self.decoder_inputs(place_M, shown_MDH),
        )
        final: torch.Tensor = output.last_hidden_state
        return final


def model_config(config: GenerativeConfig) -> Any:
    """Return transformers' configuration of an architecture, with the student's dropout.

    Raises:
        ConfigError: transformers does not know it.
    """
    settings = dict(config.architecture)
    try:
        transformers_config = AutoConfig.for_model(settings.pop("model_type", ""), **settings)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            "The architecture is none that transformers knows.", why=str(error).split("\n", maxsplit=1)[0]
        ) from None
    transformers_config.text_config.attention_dropout = config.dropout
    return transformers_config
