"""What chat models over pictures share as students: transformers' model and processor behind the adapter.

A sequence is a conversation: the picture, the question and, where there are choices, a candidate as its answer. Word
and picture states are those of one layer, `align_layer`. Tasks are answered by the language model itself: an answer's
score is its likelihood (`answers.py`), and no head is trained. Layers are causal and the picture comes first, so that
picture states never depend on the text.

A family gives its presets, how it reads a picture, and where its modules lie; see
docs/adding-a-generative-student.md.

Shapes: B examples, N sequences, S tokens of a sequence, L of them text, R of them picture, T tokens of answers behind
a sequence, K answers, H width.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModelForImageTextToText

from advl_pipeline.configuration import Configuration, config_to_dict, option
from advl_pipeline.datasets.records import MULTIPLE_CHOICE_TASKS, Example, ImageUnit
from advl_pipeline.errors import ConfigError, DatasetError, WeightsUnavailable
from advl_pipeline.hub_access import hub_obstacle
from advl_pipeline.runs import names
from advl_pipeline.students.answers import Answers, answers_behind, parts_of_list, sum_likelihoods
from advl_pipeline.students.bert_parts import additive_mask
from advl_pipeline.students.chat import Chat
from advl_pipeline.students.chat_batch import ChatBatch, Picture, chat_batch
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

INSTRUCTIONS: Mapping[str, str] = MappingProxyType(
    {"vqa": "Answer briefly.", "snli-ve": "Is this entailment, neutral or contradiction?"}
)
"""What follows the question, by task, where no instruction is given."""


CACHED_BYTES = 256 << 20


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
        self._pictures: RecentlyUsed[Picture] = RecentlyUsed(1 + CACHED_BYTES // self.picture_bytes)
        self._answer_ids: dict[tuple[str, ...], list[list[int]]] = {}

    @property
    def rules(self) -> KeyRules:
        """Published files have transformers' names; tied words are in them once."""
        tied = (r"lm_head\.weight$",) if self.model.config.tie_word_embeddings else ()
        return KeyRules(rename=((r"^", "model."),), optional=tied)

    @property
    @abstractmethod
    def decoder(self) -> Any:
        """The language model without its words."""

    @property
    @abstractmethod
    def picture_bytes(self) -> int:
        """About how much a picture takes that is kept in memory."""

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

    def decoder_inputs(self, picture_NS: torch.Tensor, shown_MDH: torch.Tensor) -> dict[str, Any]:
        """Return what else the decoder takes: nothing by default.

        Args:
            picture_NS: bool, the tokens of pictures, their markers included; S counts answers behind, too.
            shown_MDH: features of the M picture tokens of all sequences in order.
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
        if chat.image_token_id == expected and num_tokens <= num_rows:
            return
        why = f"it has {num_tokens:,} tokens, the word table of {self.name} has {num_rows:,} rows"
        if num_tokens <= num_rows:
            why = f"a picture's token is its {chat.image_token_id}, and that of {self.name} {expected}"
        raise ConfigError(
            "The processor does not belong to these weights.",
            where=self.config.tokenizer,
            why=f"{why}: every word would be read as another one",
            next_command="--tokenizer FOLDER that holds the processor of the same model",
        )

    def instruction(self, task: str) -> str:
        """Return what follows a question of a task."""
        return INSTRUCTIONS.get(task, "") if self.config.instruction is None else self.config.instruction

    def collate(self, examples: Sequence[Example]) -> ChatBatch:
        self.require_inputs()
        pictures = [self._pictures.get(one.image.unit_id, partial(self.read_picture, one.image)) for one in examples]
        rows = [
            row.with_picture(picture.token_ids)
            for example, picture in zip(examples, pictures, strict=True)
            for row in self.chat.rows(example.candidates, example.task, self.instruction(example.task))
        ]
        self._require_room(max(len(row.token_ids) for row in rows))
        choice = examples[0].task in (*MULTIPLE_CHOICE_TASKS, "captions")
        return chat_batch(
            rows,
            pictures,
            num_candidates=tuple(len(example.candidates) for example in examples),
            image_token_id=self.chat.image_token_id,
            pad_id=self.chat.pad_id,
            answers_inside_rows=choice,
            length_normalised=self.config.length_normalised == "all"
            or (choice and self.config.length_normalised == "choices"),
        )

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
        last, size = (batch.length_N - 1).tolist(), batch.sequence_ids_NS.shape[1]
        self._require_room(size + max(len(one) for one in ids))
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
        self.refuse_perturbation(perturbation)
        shown_MDH = self.shown(batch)
        x_NSH = self.embed(batch, shown_MDH, mask_visual=mask_visual)
        states_NSH: torch.Tensor | None = None
        total: list[tuple[torch.Tensor, torch.Tensor]] = []
        for answers in batch.answers or (None,):
            states, final = self._run(x_NSH, shown_MDH, batch, answers, mask_visual)
            states_NSH = states if states_NSH is None else states_NSH
            if answers is not None:
                total.append(sum_likelihoods(answers, final, self.model.lm_head, batch.num_answers))
        assert states_NSH is not None
        return StudentOutput(
            text_states_NLH=gathered(states_NSH, batch.text_place_NL),
            visual_states_NRH=gathered(states_NSH, batch.visual_place_NR),
            pooled_NP=gathered(states_NSH, batch.length_N[:, None] - 1)[:, 0],
            answered=Answered(
                log_likelihood_NK=torch.stack([likelihood for likelihood, _ in total]).sum(0),
                num_tokens_NK=torch.stack([number for _, number in total]).sum(0),
                length_normalised=batch.length_normalised,
            )
            if total
            else None,
        )

    def encode_unimodal(self, batch: StudentBatch) -> StudentOutput:
        assert isinstance(batch, ChatBatch)
        return self.encode(replace(batch, answers=()), mask_visual=True)

    @torch.inference_mode()
    def generate(self, batch: StudentBatch) -> list[str]:
        """Return each sequence's likeliest answer, word by word, as transformers generates it."""
        assert isinstance(batch, ChatBatch)
        size = batch.sequence_ids_NS.shape[1]
        # Generation goes on where a row ends, so that rows end together.
        place_NS = torch.arange(size, device=batch.length_N.device) - (size - batch.length_N[:, None])
        shown_NS = place_NS >= 0
        asked = self.prompts(batch, place_NS.clamp(min=0), shown_NS)
        found = self.model.generate(
            **asked,
            max_new_tokens=self.config.max_new_tokens,
            do_sample=False,
            eos_token_id=self.chat.end_id,
            pad_token_id=self.chat.pad_id,
        )
        # What is asked by ids comes back in front of the answer.
        start = size if "input_ids" in asked else 0
        return [self.chat.decode(row) for row in found[:, start:].tolist()]

    def prompts(self, batch: ChatBatch, place_NS: torch.Tensor, shown_NS: torch.Tensor) -> dict[str, Any]:
        """Return what transformers generates from, rows padded on the left.

        Args:
            place_NS: where each token of the padded rows lies in the batch's.
            shown_NS: bool, False for padding.
        """
        x_NSH = self.embed(batch, self.shown(batch))
        return {"inputs_embeds": gathered(x_NSH, place_NS), "attention_mask": shown_NS.long()}

    def shown(self, batch: ChatBatch) -> torch.Tensor:
        """Return (M, D, H): features of the picture tokens of all sequences, one sequence after the other."""
        first = np.cumsum([0, *batch.num_candidates])[:-1].tolist()
        counts = batch.visual_mask_NR[first].sum(1).tolist()
        features_VDH = self.once("pictures", [batch.pixels], lambda: self.picture_features(batch))
        features_BRDH = pad_sequence(list(torch.split(features_VDH, counts)), batch_first=True)
        shown_MDH: torch.Tensor = batch.per_sequence(features_BRDH)[batch.visual_mask_NR]
        return shown_MDH

    def embed(self, batch: ChatBatch, shown_MDH: torch.Tensor, *, mask_visual: bool = False) -> torch.Tensor:
        """Return (N, S, H): words, and the pictures' features in the places of their tokens.

        With `mask_visual` no word may hold anything of the picture.
        """
        words_NSH = self.model.get_input_embeddings()(batch.sequence_ids_NS)
        is_picture = batch.sequence_ids_NS == self.chat.image_token_id
        embedded: torch.Tensor = words_NSH.masked_scatter(is_picture[..., None], shown_MDH[:, 0].to(words_NSH.dtype))
        return embedded

    def build_head(self, task: str, num_classes: int) -> nn.Module:
        """Return a head without parameters: the language model scores answers itself."""
        return AnswerHead()

    def config_dict(self) -> dict[str, Any]:
        return config_to_dict(self.config)

    def save_inputs(self, folder: Path) -> None:
        self.processor.save_pretrained(folder / names.PROCESSOR)

    def refuse_perturbation(self, perturbation: Perturbation | None) -> None:
        """Raise `ConfigError` when a perturbation is given."""
        if perturbation is not None:
            raise ConfigError(
                f"{self.name} takes no adversarial perturbations.",
                why="VILLA perturbs word embeddings and region features; this student starts from pixels",
                next_command="choose a region student, such as villa-base",
            )

    def _require_room(self, num_tokens: int) -> None:
        most = self.decoder.config.max_position_embeddings
        if num_tokens > most:
            raise DatasetError(
                f"A picture and its text have {num_tokens} tokens; {self.name} has {most} positions.",
                next_command=f"--student-option {self.smaller_pictures} gives a picture fewer tokens",
            )

    def _run(
        self,
        x_NSH: torch.Tensor,
        shown_MDH: torch.Tensor,
        batch: ChatBatch,
        answers: Answers | None,
        mask_visual: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the states of the aligned layer, and the last ones, of sequences and answers."""
        positions = self.positions(batch)
        picture, lengths = batch.picture_NS, batch.length_N[:, None]
        valid = torch.arange(picture.shape[1], device=picture.device) < lengths
        block = torch.full_like(batch.sequence_ids_NS, -1)
        if answers is not None and answers.token_ids_NT.shape[1]:
            x_NSH = torch.cat([x_NSH, self.model.get_input_embeddings()(answers.token_ids_NT)], dim=1)
            last = positions.gather(-1, (lengths - 1).expand(*positions.shape[:-1], 1))
            positions = torch.cat([positions, last + 1 + answers.offset_NT], dim=-1)
            picture = torch.cat([picture, torch.zeros_like(answers.block_NT, dtype=torch.bool)], dim=1)
            valid = torch.cat([valid, answers.block_NT >= 0], dim=1)
            block = torch.cat([block, answers.block_NT], dim=1)
        place = torch.arange(valid.shape[1], device=valid.device)
        allowed = (place[None, :] <= place[:, None]) & valid[:, None, :]
        allowed = allowed & ((block[:, None, :] == -1) | (block[:, None, :] == block[:, :, None]))
        if mask_visual:
            allowed = allowed & (picture[:, :, None] | ~picture[:, None, :])
        mask = additive_mask(allowed, x_NSH.dtype)
        output = self.decoder(
            inputs_embeds=x_NSH,
            attention_mask=mask[:, None],
            position_ids=positions,
            use_cache=False,
            output_hidden_states=True,
            **self.decoder_inputs(picture, shown_MDH),
        )
        return output.hidden_states[self.align_layer], output.last_hidden_state


def model_config(config: GenerativeConfig) -> Any:
    """Return transformers' configuration of an architecture, with the student's dropout.

    Raises:
        ConfigError: transformers does not know it.
    """
    settings = dict(config.architecture)
    try:
        found = AutoConfig.for_model(settings.pop("model_type", ""), **settings)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            "The architecture is none that transformers knows.", why=str(error).split("\n", maxsplit=1)[0]
        ) from None
    found.text_config.attention_dropout = config.dropout
    return found


def read_processor(kind: Any, name: str) -> Any:
    """Load a processor from a folder, or by its name on the hub.

    Args:
        kind: transformers' class of the family's processor.
        name: folder or hub name.

    Raises:
        WeightsUnavailable: it is neither here nor to be had.
    """
    is_folder = Path(name).is_dir()
    obstacle = "" if is_folder else hub_obstacle()
    try:
        return kind.from_pretrained(name, local_files_only=is_folder or bool(obstacle))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise WeightsUnavailable(
            "The student's processor is not at hand.",
            where=name,
            why=obstacle or str(error).split("\n", maxsplit=1)[0],
            next_command="--tokenizer FOLDER that holds its tokenizer.json, processor_config.json and chat template",
        ) from None


def settings_beside(weights: Path) -> dict[str, Any]:
    """Return architecture and processor of published weights, as far as they lie in the folder."""
    folder = weights if weights.is_dir() else weights.parent
    found: dict[str, Any] = {}
    if (folder / names.PROCESSOR).is_dir():
        found["tokenizer"] = str(folder / names.PROCESSOR)
    elif tokenizer_folder(weights) is not None:
        found["tokenizer"] = str(folder)
    if not (folder / DESCRIPTION_FILE).is_file() and (folder / MODEL_CONFIG).is_file():
        found["architecture"] = json.loads((folder / MODEL_CONFIG).read_text(encoding="utf-8"))
    return found


def gathered(states_NSH: torch.Tensor, place_NL: torch.Tensor) -> torch.Tensor:
    """Return (N, L, H): of each sequence the states at its places."""
    return states_NSH.gather(1, place_NL[..., None].expand(-1, -1, states_NSH.shape[2]))
