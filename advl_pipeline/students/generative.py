"""A student for any image-text chat model of transformers.

A sequence is a conversation: the picture, the question and, in multiple choice, a candidate as its answer. Word and
picture states come from one layer, `align_layer`. The language model answers tasks itself: an answer's score is its
likelihood, and no head is trained. Layers are causal and the picture comes first, so that picture states do not
depend on the text. Two families also use bidirectional attention; `data/chat_models.toml` lists them.

Shapes: B examples, N sequences, S tokens of a sequence, L of them text, R of them picture, W tokens of a row,
V tokens of all pictures, M picture tokens of all rows, D features of one, K answers, H width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModelForImageTextToText

from advl_pipeline.base.errors import ConfigError, DatasetError
from advl_pipeline.base.repositories import read_config
from advl_pipeline.datasets.records import MULTIPLE_CHOICE_TASKS, TASKS, Candidate, Example, ImageUnit
from advl_pipeline.runs import names
from advl_pipeline.students.abilities import added
from advl_pipeline.students.chat import Chat, ChatRow
from advl_pipeline.students.chat_batch import ChatBatch, Rows, chat_batch, parts_of_list
from advl_pipeline.students.chat_config import GenerativeConfig, family_facts
from advl_pipeline.students.chat_model import (
    add_inner_features,
    answer_likelihoods,
    is_recurrent,
    last_states,
    model_config,
    picture_features,
    picture_inputs,
    read_published,
    require_parts,
    require_same_likelihood,
    states_of,
)
from advl_pipeline.students.chat_pictures import GRID, Picture, PictureReader
from advl_pipeline.students.chat_processor import load_processor, require_fit, smaller_pictures
from advl_pipeline.students.checkpoints import LoadReport
from advl_pipeline.students.interface import (
    Answered,
    AnswerHead,
    LoraSettings,
    Perturbation,
    PlaceKind,
    Student,
    StudentOutput,
)
from advl_pipeline.students.picture_source import RecentlyUsed
from advl_pipeline.students.saved import DESCRIPTION_FILE
from advl_pipeline.students.weight_files import MODEL_CONFIG, tokenizer_folder

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Modules of a language model that get low-rank updates."""


MOST_NEW_TOKENS = 10
"""Maximum length of a generated answer, in tokens."""


class GenerativeStudent(Student[ChatBatch]):
    """A chat model behind the adapter; state names are transformers' with the prefix `model.`."""

    config: GenerativeConfig
    config_class: ClassVar[type[GenerativeConfig]] = GenerativeConfig
    places: PlaceKind | None = "patches"

    def __init__(self, name: str, config: GenerativeConfig) -> None:
        super().__init__()
        self.name = name
        # A plain dictionary, so that the student can be copied.
        self.config = replace(config, architecture=dict(config.architecture or {}))
        architecture = model_config(config.architecture, dropout=config.dropout)
        self.facts = family_facts(architecture.model_type, architecture.get_text_config().model_type)
        self.lora = LoraSettings(targets=PROJECTIONS, **self.facts.lora)
        self._take(AutoModelForImageTextToText.from_config(architecture, dtype=torch.float32))
        require_parts(self.model)
        self.hidden_size = self.pooled_size = self.decoder.config.hidden_size
        num_layers: int = self.decoder.config.num_hidden_layers
        middle = max(1, num_layers // 2)
        self.align_layer = config.align_layer or middle
        if self.align_layer > num_layers:
            raise ConfigError(
                f"{name} has no layer {self.align_layer}.",
                why=f"its language model has {num_layers}",
                next_command=f"--student-option align_layer={middle} is the middle one",
            )
        self._pictures: RecentlyUsed[Picture] = RecentlyUsed()
        self._answer_ids: dict[tuple[str, ...], list[list[int]]] = {}
        self._is_tried = False

    def _take(self, model: Any) -> None:
        self.model = model
        if hasattr(self.decoder, "_deepstack_process"):
            self.decoder._deepstack_process = add_inner_features

    @property
    def is_recurrent(self) -> bool:
        """Whether a state depends on everything before it in its row, regardless of the mask."""
        return is_recurrent(self.decoder)

    @classmethod
    def settings_beside(cls, weights: Path) -> dict[str, Any]:
        """Return the architecture and processor of published weights, if they are in the folder."""
        folder = weights if weights.is_dir() else weights.parent
        settings: dict[str, Any] = {}
        if (folder / names.PROCESSOR).is_dir():
            settings["tokenizer"] = str(folder / names.PROCESSOR)
        elif tokenizer_folder(weights) is not None:
            settings["tokenizer"] = str(folder)
        if not (folder / DESCRIPTION_FILE).is_file() and (folder / MODEL_CONFIG).is_file():
            settings["architecture"] = read_config(folder)
        return settings

    def load_published(self, path: Path) -> LoadReport:
        """Load the model with transformers, which handles the key names of a type's older files."""
        config, generation_config = self.model.config, self.model.generation_config
        # Release the random weights before loading, to save memory.
        self.model = None
        model, report = read_published(path, config)
        model.generation_config = generation_config
        self._take(model.train(self.training))
        return report

    @property
    def decoder(self) -> Any:
        """The language model without its output layer."""
        return self.model.get_decoder()

    @cached_property
    def processor(self) -> Any:
        """The processor, loaded on first use: describing a student or loading its weights does not require it."""
        return load_processor(self.config, self.model.config, self.facts)

    @cached_property
    def chat(self) -> Chat:
        return Chat(self.processor, image_token_id=self.model.config.image_token_id, where=self.config.tokenizer)

    @cached_property
    def picture_reader(self) -> PictureReader:
        wanted = [name for name in picture_inputs(self.model) if name != "pixel_values"]
        return PictureReader(self.processor, self.facts, image_token_id=self.chat.image_token_id, wanted=wanted)

    def require_inputs(self) -> None:
        where, num_rows = self.config.tokenizer, self.decoder.config.vocab_size
        require_fit(self.processor, self.model.config, num_rows, self.facts, where=where)
        assert self.chat
        if not self.facts.is_proven and not self._is_tried:
            require_same_likelihood(self)
            self._is_tried = True

    def instruction(self, task: str) -> str:
        """Return the instruction after a question of a task."""
        return TASKS[task].instruction if self.config.instruction is None else self.config.instruction

    def collate(self, examples: Sequence[Example]) -> ChatBatch:
        self.require_inputs()
        return self.laid_out(examples)

    def laid_out(self, examples: Sequence[Example]) -> ChatBatch:
        """Collate without checking that the processor fits the model."""
        pictures = [
            self._pictures.get(example.image.unit_id, partial(self.read_picture, example.image))
            for example in examples
        ]
        rows = [
            row
            for example, picture in zip(examples, pictures, strict=True)
            for row in self.chat.rows(
                example.candidates,
                example.task,
                self.instruction(example.task),
                picture,
                lists_options=self.config.options == "letters",
            )
        ]
        candidates = [candidate for example in examples for candidate in example.candidates]
        self._require_room(max(len(row.token_ids_S) for row in rows))
        choice = examples[0].task in (*MULTIPLE_CHOICE_TASKS, "captions")
        return chat_batch(
            rows,
            [self.tags(candidate, row) for candidate, row in zip(candidates, rows, strict=True)],
            pictures,
            self._positions,
            num_candidates=tuple(len(example.candidates) for example in examples),
            image_token_id=self.chat.image_token_id,
            pad_id=self.chat.pad_id,
            both_ways=self._both_ways,
            apart=self.is_recurrent,
            answers_inside=choice,
            length_normalised=self.config.length_normalised == "all"
            or (choice and self.config.length_normalised == "choices"),
        )

    def tags(self, candidate: Candidate, row: ChatRow) -> npt.NDArray[np.int64]:
        """Return the picture token that each token of a row refers to besides its word, (S,); -1 for none."""
        return np.full(len(row.token_ids_S), -1)

    def read_picture(self, unit: ImageUnit) -> Picture:
        """Read a picture with the processor; raises like `PictureReader.read`."""
        return self.picture_reader.read(unit)

    @property
    def _both_ways(self) -> str:
        """Tokens with bidirectional attention in this type; small sizes of Gemma 4 disable it."""
        is_off = getattr(self.decoder.config, "use_bidirectional_attention", False) is None
        return "nothing" if is_off else self.facts.both_ways

    def _positions(
        self, ids_NS: torch.Tensor, lengths_N: npt.NDArray[np.int64], grids: Sequence[Sequence[int]]
    ) -> torch.Tensor:
        """Return transformers' position ids, (N, S) int64, or (3, N, S) for positions in time, height and width."""
        parts, place_NS = self.model.base_model, torch.arange(ids_NS.shape[1]).expand_as(ids_NS)
        if not hasattr(parts, "get_rope_index"):
            return place_NS + self.facts.first_position
        positions: torch.Tensor = parts.get_rope_index(
            ids_NS,
            mm_token_type_ids=(ids_NS == self.chat.image_token_id).int(),
            image_grid_thw=torch.tensor(grids),
            attention_mask=(place_NS < torch.from_numpy(lengths_N)[:, None]).long(),
        )[0]
        return positions

    def with_answers(
        self, batch: ChatBatch, task: str, label_names: Sequence[str], wanted_BK: torch.Tensor | None = None
    ) -> ChatBatch:
        if batch.passes:
            return batch
        known = tuple(label_names)
        if known not in self._answer_ids:
            self._answer_ids[known] = self.chat.answer_ids(known)
        ids = self._answer_ids[known]
        # Candidates contain their own answers; a row followed by answers is therefore a single sequence.
        assert set(batch.num_candidates) == {1}
        lengths = batch.length_N.tolist()
        self._require_room(max(lengths) + max(len(answer_ids) for answer_ids in ids))
        parts: list[list[list[tuple[int, Sequence[int]]]]]
        if wanted_BK is not None:
            parts = [[[(n, ids[n]) for n in torch.nonzero(row)[:, 0].tolist()] for row in wanted_BK]]
        else:
            parts = [[part] * len(lengths) for part in parts_of_list(ids)]
        if self.is_recurrent:
            # A mask cannot hide one answer from another in recurrent layers.
            parts = [
                [answers[place : place + 1] for answers in part]
                for part in parts
                for place in range(max(1, *map(len, part)))
            ]
        behind = [batch.rows.followed(lengths, part, num=len(known), end_id=self.chat.end_id) for part in parts]
        return replace(batch, behind=tuple(behind), num_answers=len(known))

    def encode(
        self,
        batch: ChatBatch,
        *,
        perturbation: Perturbation | None = None,
        mask_visual: bool = False,
        need_relevance: bool = False,
    ) -> StudentOutput:
        # Attention to the picture is spread over markers and sinks, so there is no relevance.
        added(self, perturbation)
        states_BWH, answered = self._pass(batch, mask_visual, lambda states_BWH: states_BWH)
        output = StudentOutput(
            text_states_NLH=batch.of_sequences(states_BWH, batch.text_place_NL),
            visual_states_NRH=batch.of_sequences(states_BWH, batch.visual_place_NR),
            pooled_NP=batch.last_states(states_BWH),
            answered=answered,
        )
        if mask_visual and self.is_recurrent:
            # The first pass contained only the text; the picture requires a second one.
            output.visual_states_NRH = self.encode(batch.without_answers()).visual_states_NRH
        return output

    def encode_pooled(
        self, batch: ChatBatch, *, perturbation: Perturbation | None = None, mask_visual: bool = False
    ) -> StudentOutput:
        added(self, perturbation)
        pooled_NH, answered = self._pass(batch, mask_visual, batch.last_states)
        none = pooled_NH.new_zeros(batch.num_sequences, 0, self.hidden_size)
        return StudentOutput(text_states_NLH=none, visual_states_NRH=none, pooled_NP=pooled_NH, answered=answered)

    def encode_unimodal(self, batch: ChatBatch) -> StudentOutput:
        asked = batch.without_answers()
        # Scores of candidates use the same pass.
        inputs = [batch.sequence_ids_NS, batch.pixels]
        return self.once("unimodal", inputs, lambda: self.encode(asked, mask_visual=True))

    def visual_tokens(self, batch: ChatBatch) -> torch.Tensor:
        return batch.of_sequences(self.embed(batch, self.shown(batch), mask_visual=True), batch.visual_place_NR)

    @torch.inference_mode()
    def generate(self, batch: ChatBatch) -> list[str]:
        """Return each sequence's answer, decoded greedily by transformers."""
        size = batch.sequence_ids_NS.shape[1]
        # Generation continues at the end of a row, so padding is on the left.
        place_NS = torch.arange(size, device=batch.length_N.device) - (size - batch.length_N[:, None])
        shown_NS = place_NS >= 0
        asked = self.prompts(batch, place_NS.clamp(min=0), shown_NS)
        generated = self.model.generate(
            **asked,
            max_new_tokens=MOST_NEW_TOKENS,
            do_sample=False,
            eos_token_id=self.chat.end_id,
            pad_token_id=self.chat.pad_id,
        )
        # The output repeats the prompt before the answer.
        return [self.chat.decode(row) for row in generated[:, size:].tolist()]

    def prompts(self, batch: ChatBatch, place_NS: torch.Tensor, shown_NS: torch.Tensor) -> dict[str, Any]:
        """Return the inputs of transformers' own model, padded on the left as for its `generate`.

        Args:
            place_NS: index into the batch's sequence of each token of the padded rows.
            shown_NS: bool, False for padding.
        """
        ids_NS = batch.sequence_ids_NS.gather(1, place_NS).where(shown_NS, self.chat.pad_id)
        is_image_NS = (ids_NS == self.chat.image_token_id).int()
        kinds = {"mm_token_type_ids": is_image_NS, "token_type_ids": is_image_NS}
        if self.facts.both_ways == "question":
            num_answered_N = torch.zeros_like(batch.length_N)
            if batch.answers_inside:
                num_answered_N = torch.bincount(batch.rows.answer_Q, minlength=batch.num_sequences)
            kinds["token_type_ids"] = (place_NS >= (batch.length_N - num_answered_N)[:, None]).int()
        taken = inspect.signature(self.model.forward).parameters
        # There is one sequence per picture.
        seen = self._vision_inputs(batch)
        return {
            "input_ids": ids_NS,
            "attention_mask": shown_NS.long(),
            **{name: value.to(ids_NS.device) for name, value in seen.items()},
            **{name: value for name, value in kinds.items() if name in taken},
        }

    def _vision_inputs(self, batch: ChatBatch) -> dict[str, torch.Tensor]:
        """Return the vision encoder's inputs for the pictures of a batch."""
        pixels = self.picture_reader.normalised(batch.pixels, self.model.dtype)
        # Grids stay on the CPU: reading the numbers of patches from the device would synchronise with it.
        grids = {GRID: torch.tensor(batch.grids)} if batch.grids else {}
        return {"pixel_values": pixels[None] if self.facts.tiles else pixels, **batch.inputs, **grids}

    def picture_features(self, batch: ChatBatch) -> torch.Tensor:
        """Return the features of all pictures' tokens, (V, D, H), in the order of the pictures.

        The first of the D features replaces the token's embedding. The others come from inner layers of the encoder
        and are added to the token's state after the first layers of the language model.
        """
        inputs = self._vision_inputs(batch)
        return picture_features(self.model.base_model, inputs, batch.pixels.device, in_tiles=self.facts.tiles)

    def shown(self, batch: ChatBatch) -> torch.Tensor:
        """Return the features of the picture tokens of all rows, (M, D, H), in the order of the rows."""
        features_VDH = self.once("pictures", [batch.pixels], lambda: self.picture_features(batch))
        return features_VDH.index_select(0, batch.packing.feature_M)

    def embed(self, batch: ChatBatch, shown_MDH: torch.Tensor, *, mask_visual: bool = False) -> torch.Tensor:
        """Return the input embeddings of rows, (B, W, H): words, and features in the places of picture tokens.

        With `mask_visual`, no word embedding may contain information about the picture.
        """
        packing = batch.packing
        words_BWH: torch.Tensor = self.model.get_input_embeddings()(packing.packed(batch.sequence_ids_NS))
        return words_BWH.index_put((packing.row_M, packing.place_M), shown_MDH[:, 0].to(words_BWH.dtype))

    def build_head(self, kind: str, num_classes: int) -> nn.Module:
        """Return a head without parameters, because the language model scores answers itself."""
        return AnswerHead()

    def save_inputs(self, folder: Path) -> None:
        self.processor.save_pretrained(folder / names.PROCESSOR)

    def _require_room(self, num_tokens: int) -> None:
        most = self.decoder.config.max_position_embeddings
        if num_tokens > most:
            raise DatasetError(
                f"A picture and its text have {num_tokens} tokens; {self.name} has {most} positions.",
                next_command=f"train with --student-option {smaller_pictures(self.processor.image_processor)}",
            )

    def _pass(
        self, batch: ChatBatch, mask_visual: bool, take: Callable[[torch.Tensor], torch.Tensor]
    ) -> tuple[torch.Tensor, Answered | None]:
        """Run the model over a batch, and return what `take` selects from the states (B, W, H) of `align_layer`."""
        kept: list[torch.Tensor] = []

        def keep(_layer: Any, _inputs: Any, output: Any) -> None:
            # Later passes, with more answers, have the same states.
            if not kept:
                kept.append(take(states_of(output)))

        layers = self.decoder.layers
        # The last layer's states are the decoder's output, from which words are predicted.
        layer = self.decoder if self.align_layer == len(layers) else layers[self.align_layer - 1]
        hook = layer.register_forward_hook(keep)
        try:
            answered = self.answered(batch, mask_visual)
        finally:
            hook.remove()
        return kept[0], answered

    def answered(self, batch: ChatBatch, mask_visual: bool) -> Answered | None:
        """Run the language model over the batch, and return the likelihoods of its answers, if any."""
        shown_MDH = self.shown(batch)
        # Masks do not affect recurrent layers; picture tokens keep their word embeddings instead.
        is_left_out = mask_visual and self.is_recurrent
        x_BWH = (
            self.model.get_input_embeddings()(batch.packing.packed(batch.sequence_ids_NS))
            if is_left_out
            else self.embed(batch, shown_MDH, mask_visual=mask_visual)
        )
        if not batch.passes:
            self._run(batch.rows, x_BWH, batch, shown_MDH, mask_visual)
            return None
        total = []
        for rows in batch.passes:
            final_BWH = self._run(rows, x_BWH, batch, shown_MDH, mask_visual)
            total.append(answer_likelihoods(self.model, final_BWH, rows, batch.num_sequences, batch.num_answers))
        return Answered(
            log_likelihood_NK=torch.stack([likelihood for likelihood, _ in total]).sum(0),
            num_tokens_NK=torch.stack([number for _, number in total]).sum(0),
            length_normalised=batch.length_normalised,
        )

    def _run(
        self, rows: Rows, x_BWH: torch.Tensor, batch: ChatBatch, shown_MDH: torch.Tensor, mask_visual: bool
    ) -> torch.Tensor:
        """Return the last states of rows for the input embeddings `x_BWH`; embed the answers after them."""
        x_BWH = functional.pad(x_BWH, (0, 0, 0, rows.width - x_BWH.shape[1]))
        if rows.behind_BW is not None:
            words_BWH = self.model.get_input_embeddings()(rows.ids_BW)
            x_BWH = torch.where(rows.behind_BW[..., None], words_BWH.to(x_BWH.dtype), x_BWH)
        more: dict[str, Any] = {}
        if shown_MDH.shape[1] > 1:
            more["visual_pos_masks"] = batch.packing.row_M * rows.width + batch.packing.place_M
            more["deepstack_visual_embeds"] = list(shown_MDH[:, 1:].unbind(1))
        return last_states(
            self.decoder,
            x_BWH,
            rows,
            mask_visual=mask_visual,
            blocks=self.facts.blocks,
            image_token_id=self.chat.image_token_id,
            **more,
        )
