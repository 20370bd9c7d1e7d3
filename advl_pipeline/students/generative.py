"""Any chat model of transformers that reads pictures, as a student: its model and processor behind the adapter.

A sequence is a conversation: the picture, the question and, where there are choices, a candidate as its answer. Word
and picture states are those of one layer, `align_layer`. Tasks are answered by the language model itself: an answer's
score is its likelihood (`answers.py`), and no head is trained. Layers are causal and the picture comes first, so that
picture states never depend on the text; two families see more, and `data/chat_models.toml` says which.

What an example's candidates have in common, the picture above all, is computed once: they lie behind it in one row,
and see it and themselves alone, at the positions that each would have by itself. A language model with layers that
read a row one token after the other (`is_recurrent`) has a row for each.

Shapes: B examples, N sequences, S tokens of a sequence, L of them text, R of them picture, W tokens of a row,
T tokens of answers behind it, V tokens of all pictures, M picture tokens of all rows, D features of one, K answers,
H width.
"""

from __future__ import annotations

import inspect
import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import transformers
from PIL import Image
from safetensors import SafetensorError
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from advl_pipeline.base.configuration import Configuration, option
from advl_pipeline.base.errors import ConfigError, DatasetError, WeightsUnavailable
from advl_pipeline.datasets.records import MULTIPLE_CHOICE_TASKS, Candidate, Example, ImageUnit, text_unit
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
from advl_pipeline.students.chat import COMMON, INSTRUCTIONS, PADDING, Chat, ChatBatch, chat_batch, load_processor
from advl_pipeline.students.chat_pictures import (
    GRID,
    Picture,
    family_facts,
    keeps_bytes,
    normalised,
    read_picture,
)
from advl_pipeline.students.checkpoints import LoadReport
from advl_pipeline.students.embedded_chat import embedded_processor
from advl_pipeline.students.interface import (
    Answered,
    AnswerHead,
    LoraSettings,
    Perturbation,
    PlaceKind,
    Student,
    StudentBatch,
    StudentOutput,
)
from advl_pipeline.students.picture_source import RecentlyUsed
from advl_pipeline.students.saved import DESCRIPTION_FILE
from advl_pipeline.students.weight_files import MODEL_CONFIG, required_weights, tokenizer_folder

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Modules of a language model that get low-rank updates."""

MASKED_LAYERS = ("full_attention", "sliding_attention")
RECURRENT_LAYERS = ("linear_attention", "conv")
"""Kinds of layers, as transformers' configurations name them: those that a mask is for, and those that read on."""

MASK_ALIGNMENT = 8
"""Places of which a row of an attention mask holds a multiple: kernels copy another mask for each layer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerativeConfig(Configuration):
    """Settings of every chat model."""

    architecture: Mapping[str, Any] | None = option(
        None, help="The model's config.json, as transformers has it [default: the one with --init]."
    )
    tokenizer: str = option("", help="Folder or hub name of the processor: tokenizer, pictures and chat template.")
    align_layer: int = option(
        0, help="Layer whose word and picture states are distilled, from 1; 0 for the middle one.", minimum=0
    )
    length_normalised: Literal["choices", "all", "none"] = option(
        "choices", help="Whose likelihoods are divided by the answer's number of tokens: candidates', all, or none."
    )
    instruction: str | None = option(None, help="What follows the question [default: the task's own line].")
    options: Literal["hidden", "letters"] = option(
        "hidden", help="Whether choices are listed behind letters, so that a candidate's answer is its letter."
    )
    max_new_tokens: int = option(10, help="Tokens of a generated answer, at most.", minimum=1)
    dropout: float = option(0.0, help="Dropout of the language model's attention.", minimum=0, below=1)
    agreement: float = option(
        0.0,
        help="Temperature of the agreement between a candidate's words and the picture, which is added to its "
        "likelihood per token (docs/method.md); 0 leaves it out.",
        minimum=0,
    )
    image_splitting: bool | None = option(
        None, help="Cut pictures into tiles; without, one tile shows all [default: as the processor is set]."
    )
    longest_edge: int | None = option(
        None,
        help="Pixels to which a picture's longer edge is scaled before it is cut [default: as the processor is set].",
        minimum=1,
    )
    min_pixels: int | None = option(
        None, help="Pixels to which a smaller picture is scaled up [default: as the processor is set].", minimum=1
    )
    max_pixels: int | None = option(
        None, help="Pixels to which a larger picture is scaled down [default: as the processor is set].", minimum=1
    )


class GenerativeStudent(Student):
    """The adapter; state names are transformers' behind `model.`."""

    config: GenerativeConfig
    config_class: ClassVar[type[GenerativeConfig]] = GenerativeConfig
    places: PlaceKind | None = "patches"

    def __init__(self, name: str, config: GenerativeConfig) -> None:
        super().__init__()
        self.name = name
        # A plain table, so that the student can be copied.
        self.config = replace(config, architecture=dict(config.architecture or {}))
        architecture = model_config(config)
        self.facts = family_facts(architecture.model_type)
        self.lora = LoraSettings(targets=PROJECTIONS, **self.facts.lora)
        self._take(AutoModelForImageTextToText.from_config(architecture, dtype=torch.float32))
        self._require_parts()
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
        self.deep_layers: tuple[int, ...] = ()
        self._pictures: RecentlyUsed[Picture] = RecentlyUsed()
        self._answer_ids: dict[tuple[str, ...], list[list[int]]] = {}

    def _take(self, model: Any) -> None:
        self.model = model
        if hasattr(self.decoder, "_deepstack_process"):
            self.decoder._deepstack_process = add_inner_features

    def _require_parts(self) -> None:
        """Refuse a type of model that is not a decoder of words behind an encoder of pictures.

        Raises:
            ConfigError: as said.
        """
        kind, parts = self.model.config.model_type, self.model.base_model
        why = ""
        if not hasattr(parts, "get_image_features") or "pixel_values" not in self._picture_inputs:
            why = "transformers does not give the features of its pictures by themselves"
        elif getattr(self.model.config, "image_token_id", None) is None:
            why = "no token of its texts stands for a picture"
        elif not hasattr(self.decoder, "layers") or not hasattr(self.model, "lm_head"):
            why = "its language model is no stack of layers in front of words"
        elif strange := self._layer_kinds - {*MASKED_LAYERS, *RECURRENT_LAYERS}:
            why = f"its language model has layers of the kind {', '.join(sorted(strange))}"
        if why:
            raise ConfigError(
                f"A model of the type {kind} cannot be a student.",
                why=why,
                next_command="choose one of the types in docs/students.md",
            )

    @cached_property
    def _picture_inputs(self) -> tuple[str, ...]:
        """Names of what transformers computes the features of pictures from."""
        return tuple(inspect.signature(self.model.base_model.get_image_features).parameters)

    @property
    def _layer_kinds(self) -> frozenset[str]:
        return frozenset(getattr(self.decoder.config, "layer_types", None) or ())

    @property
    def is_recurrent(self) -> bool:
        """Whether a state depends on all that lies before it in its row, whatever a mask says."""
        return bool(self._layer_kinds & {*RECURRENT_LAYERS})

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

    def load_published(self, path: Path) -> LoadReport:
        """Fill the model as transformers does, which knows the names that older files of a type have."""
        if not path.is_dir():
            return super().load_published(path)
        required_weights(path)
        config, generation_config = self.model.config, self.model.generation_config
        # Random weights and those of the files need not be held at once.
        self.model = None
        try:
            model, loaded = AutoModelForImageTextToText.from_pretrained(
                path,
                config=config,
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise WeightsUnavailable(
                "The checkpoint cannot be read.",
                where=str(path),
                why=str(error).strip().split("\n", maxsplit=1)[0],
                next_command="download it again",
            ) from None
        model.generation_config = generation_config
        self._take(model.train(self.training))
        return LoadReport(
            source=path.name,
            num_loaded=len(model.state_dict()) - len(loaded["missing_keys"]),
            missing=tuple(sorted(loaded["missing_keys"])),
            unexpected=tuple(sorted(loaded["unexpected_keys"])),
            reinitialised=tuple(
                f"{name} (file {tuple(have)}, student {tuple(wanted)})"
                for name, have, wanted in loaded["mismatched_keys"]
            ),
        )

    @property
    def decoder(self) -> Any:
        """The language model without its words."""
        return self.model.get_decoder()

    @cached_property
    def processor(self) -> Any:
        """Loaded when it is first asked for: a student may be described or filled where its processor is not."""
        model = self.model.config
        processor = load_processor(
            getattr(transformers, self.facts.processor),
            self.config.tokenizer,
            embedded=lambda: embedded_processor(model),
        )
        processor.chat_template = processor.chat_template or self.facts.template
        self._set_pictures(processor.image_processor)
        return processor

    def _set_pictures(self, pictures: Any) -> None:
        """Set what was asked for on the processor of pictures.

        Raises:
            ConfigError: it has no such setting, or the settings contradict one another.
        """
        config, size = self.config, dict(pictures.size or {})
        is_counted = GRID in pictures.model_input_names
        edges = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"} if is_counted else {}
        edges = edges or {"longest_edge": "longest_edge"}
        asked = {
            name: getattr(config, name) for name in ("min_pixels", "max_pixels", "longest_edge", "image_splitting")
        }
        for name, value in asked.items():
            if value is None:
                continue
            if name == "image_splitting" and hasattr(pictures, "do_image_splitting"):
                pictures.do_image_splitting = value
            elif size.get(edges.get(name, "")):
                size[edges[name]] = value
            else:
                raise ConfigError(
                    f"The processor of {self.name} has no setting {name}.",
                    where=config.tokenizer,
                    why=f"it is set by {', '.join(size)}",
                    next_command=f"leave out --student-option {name}",
                )
        if is_counted and size.get("shortest_edge", 0) > size.get("longest_edge", 0):
            raise ConfigError(
                "Pictures cannot be scaled to what is asked.",
                where=config.tokenizer,
                why=f"at least {size['shortest_edge']} pixels and at most {size['longest_edge']}",
                next_command=f"--student-option min_pixels={size['longest_edge']}",
            )
        if any(value is not None for value in asked.values()):
            pictures.size = size

    @cached_property
    def chat(self) -> Chat:
        return Chat(
            self.processor,
            image_token_id=self.model.config.image_token_id,
            where=self.config.tokenizer,
        )

    @cached_property
    def _as_bytes(self) -> bool:
        return keeps_bytes(self.processor, self.facts)

    def require_inputs(self) -> None:
        processor, settings = self.processor, self.decoder.config
        expected = self.model.config.image_token_id
        num_tokens, num_rows = len(processor.tokenizer), settings.vocab_size
        misread = ": every word would be read as another one"
        if num_tokens > num_rows:
            tokens, rows = f"it has {num_tokens:,} tokens", f"the word table of {self.name} has {num_rows:,} rows"
            raise self.unfit(f"{tokens}, {rows}{misread}")
        if not getattr(processor, "image_token", None):
            raise self.unfit("it has no token that stands for a picture")
        known = [token for token in processor.image_token_ids if token is not None]
        if expected not in known:
            raise self.unfit(f"a picture's token is its {known[0]}, and that of {self.name} {expected}{misread}")
        pictures, vision = processor.image_processor, self.model.config.vision_config
        taken = {
            name.removeprefix("spatial_"): getattr(vision, name)
            for name in ("patch_size", "temporal_patch_size", "spatial_merge_size")
            if hasattr(vision, name) and hasattr(pictures, name.removeprefix("spatial_"))
        }
        made = {name: getattr(pictures, name) for name in taken}
        if self.facts.tiles:
            side = vision.image_size // vision.patch_size // self.model.config.scale_factor
            made |= {"tile": pictures.max_image_size["longest_edge"], "tokens of a tile": processor.image_seq_len}
            taken |= {"tile": vision.image_size, "tokens of a tile": side**2}
        if made != taken:
            raise self.unfit(f"it cuts pictures by {made}, {self.name} takes {taken}")
        assert self.chat
        if not self.facts.is_proven:
            assert self._is_tried

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

    @cached_property
    def _is_tried(self) -> bool:
        """True, once a conversation of a type that nobody proved was as likely as transformers says.

        Raises:
            ConfigError: it was not, or one of the two could not compute it.
        """
        context, answer = "What is it?", "A lake."
        candidate = Candidate(text_unit=text_unit(f"{context} {answer}"), context_length=len(context))
        is_training = self.training
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            path = Path(folder) / "grey.png"
            Image.linear_gradient("L").convert("RGB").save(path)
            unit = ImageUnit(
                unit_id="", path=path, width=256, height=256, boxes_R4=np.zeros((0, 4), np.float32), box_labels=()
            )
            asked = Example(example_id="", task="vcr-q2a", image=unit, candidates=(candidate,), label=0)
            try:
                self.eval()
                batch = self._collate([asked])
                ours = self.encode(batch).answered
                place_NS = torch.arange(batch.sequence_ids_NS.shape[1])[None]
                logits = self.model(**self.prompts(batch, place_NS, place_NS >= 0)).logits[0].float().log_softmax(-1)
                (answers,) = batch.answers
                theirs = float(logits[answers.source_NQ[0], answers.target_NQ[0]].sum())
                assert ours is not None
                here = float(ours.log_likelihood_NK)
                why = f"a conversation has the log-likelihood {here:.4g} here and {theirs:.4g} there"
                is_same = math.isclose(here, theirs, rel_tol=max(1e-3, 4 * torch.finfo(self.model.dtype).eps))
            except (
                RuntimeError,
                ValueError,
                TypeError,
                AttributeError,
                KeyError,
                IndexError,
                AssertionError,
            ) as error:
                why, is_same = str(error).strip().split("\n", maxsplit=1)[0] or type(error).__name__, False
            finally:
                self.train(is_training)
                self._pictures = RecentlyUsed()
        if not is_same:
            raise ConfigError(
                f"The type {self.model.config.model_type} does not compute here what it does in transformers.",
                why=why,
                next_command="choose one of the types in docs/students.md",
            )
        return True

    def collate(self, examples: Sequence[Example]) -> ChatBatch:
        self.require_inputs()
        return self._collate(examples)

    def _collate(self, examples: Sequence[Example]) -> ChatBatch:
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
        self._require_room(max(len(row.token_ids_S) for row in rows))
        choice = examples[0].task in (*MULTIPLE_CHOICE_TASKS, "captions")
        batch = chat_batch(
            rows,
            pictures,
            num_candidates=tuple(len(example.candidates) for example in examples),
            image_token_id=self.chat.image_token_id,
            pad_id=self.chat.pad_id,
            both_ways=self._both_ways,
            apart=self.is_recurrent,
            answers_inside_rows=choice,
            length_normalised=self.config.length_normalised == "all"
            or (choice and self.config.length_normalised == "choices"),
        )
        batch.positions_NS = self._positions(batch)
        if self.config.agreement and examples[0].task in MULTIPLE_CHOICE_TASKS:
            candidates = [candidate for example in examples for candidate in example.candidates]
            batch.said_NL = said_tokens(candidates, batch.char_spans_NL2)
            batch.spoken_of_NR = batch.visual_mask_NR.float()
        return batch

    def read_picture(self, unit: ImageUnit) -> Picture:
        """Read a picture as the processor does; raises as `chat_pictures.read_picture`."""
        image_token = self.processor.tokenizer.convert_ids_to_tokens(self.chat.image_token_id)
        return read_picture(
            unit,
            self.processor,
            self.facts,
            image_token=image_token,
            wanted=[name for name in self._picture_inputs if name != "pixel_values"],
            as_bytes=self._as_bytes,
        )

    @property
    def _both_ways(self) -> str:
        """What sees itself in both directions, as the type has it; small sizes of Gemma 4 say that nothing does."""
        is_off = getattr(self.decoder.config, "use_bidirectional_attention", False) is None
        return "nothing" if is_off else self.facts.both_ways

    def _positions(self, batch: ChatBatch) -> torch.Tensor:
        """Return (N, S) int64, or (3, N, S) of a type that counts in time, height and width, as transformers does."""
        parts, ids_NS = self.model.base_model, batch.sequence_ids_NS
        if not hasattr(parts, "get_rope_index"):
            return batch.positions_NS + self.facts.first_position
        is_token_NS = batch.positions_NS < batch.length_N[:, None]
        positions: torch.Tensor = parts.get_rope_index(
            ids_NS,
            mm_token_type_ids=(ids_NS == self.chat.image_token_id).int(),
            image_grid_thw=torch.tensor(batch.grids)[batch.example_N],
            attention_mask=is_token_NS.long(),
        )[0]
        return positions

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
        if mask_visual and self.is_recurrent:
            seeing = self.encode(replace(batch, answers=()))
            return replace(
                seeing,
                text_states_NLH=batch.of_sequences(states_BWH, batch.text_place_NL),
                pooled_NP=batch.last_states(states_BWH),
                answered=answered,
            )
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
        ids_NS = batch.sequence_ids_NS.gather(1, place_NS).where(shown_NS, self.chat.pad_id)
        is_image_NS = (ids_NS == self.chat.image_token_id).int()
        kinds = {
            "mm_token_type_ids": is_image_NS,
            "token_type_ids": is_image_NS * 0 if self.facts.both_ways == "question" else is_image_NS,
        }
        taken = inspect.signature(self.model.forward).parameters
        seen = self._vision_inputs(batch, batch.example_N.tolist())
        return {
            "input_ids": ids_NS,
            "attention_mask": shown_NS.long(),
            **{name: value.to(ids_NS.device) for name, value in seen.items()},
            **{name: value for name, value in kinds.items() if name in taken},
        }

    def _vision_inputs(self, batch: ChatBatch, examples: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return what the vision encoder takes for the pictures of some examples, of which one may come twice."""
        pixels = normalised(batch.pixels, self.processor.image_processor, self.facts, self.model.dtype)
        whole = list(examples) == list(range(len(batch.num_pixels)))

        def of_examples(value: torch.Tensor) -> torch.Tensor:
            if whole:
                return value
            rows = batch.num_pixels if len(value) == len(batch.pixels) else [1] * len(batch.num_pixels)
            parts = torch.split(value, list(rows))
            return torch.cat([parts[example] for example in examples])

        inputs = {name: of_examples(value) for name, value in batch.inputs.items()}
        if batch.grids:
            # Where the numbers of patches are needed, the device would make the host wait for them.
            inputs[GRID] = torch.tensor([batch.grids[example] for example in examples])
        pixels = of_examples(pixels)
        return {"pixel_values": pixels[None] if self.facts.tiles else pixels, **inputs}

    def _smaller_pictures(self) -> str:
        """Return the option that gives a picture fewer tokens, in words."""
        if GRID in self.processor.image_processor.model_input_names:
            return "max_pixels=262144 gives a picture fewer tokens"
        if hasattr(self.processor.image_processor, "do_image_splitting"):
            return "image_splitting=false gives a picture fewer tokens"
        return "instruction=... with fewer words; this model's pictures have one size"

    def picture_features(self, batch: ChatBatch) -> torch.Tensor:
        """Return (V, D, H) for the V tokens of all pictures, one picture after the other.

        The first of the D features stands in the token's place. The others are of inner layers of the encoder, and
        are added to its state behind the first layers of the language model.
        """
        inputs = self._vision_inputs(batch, range(len(batch.num_pixels)))
        parts = self.model.base_model
        if self.facts.tiles:
            # Tiles have no padding. transformers' own pass looks for some, which makes the host wait for the device.
            encoder, pixels_U3EE = parts.vision_model, inputs["pixel_values"][0]
            side = pixels_U3EE.shape[-1] // encoder.patch_size
            everywhere = torch.ones(len(pixels_U3EE), side, side, dtype=torch.bool, device=pixels_U3EE.device)
            embedded = encoder.embeddings(pixel_values=pixels_U3EE, patch_attention_mask=everywhere)
            patches = encoder.encoder(inputs_embeds=embedded, attention_mask=None).last_hidden_state
            features: torch.Tensor = parts.connector(encoder.post_layernorm(patches))
            return features.flatten(0, 1)[:, None]
        laid_out = (
            _laid_out(self.model.base_model.visual, inputs[GRID], batch.pixels.device) if GRID in inputs else {}
        )
        output = parts.get_image_features(**inputs, **laid_out, return_dict=True)
        depths = [output.pooler_output, *(getattr(output, "deepstack_features", None) or ())]
        return torch.stack([_flat(features) for features in depths], dim=1)

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
                next_command=f"--student-option {self._smaller_pictures()}",
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

        def keep(number: int, _layer: Any, _inputs: Any, output: Any) -> None:
            # Later passes, of further answers, have the same states.
            if number not in kept:
                kept[number] = take(states_of(output))

        decoder = self.decoder
        with ExitStack() as hooks:
            for number in layers:
                # States of the last layer are those that the words are foretold from.
                layer = decoder if number == len(decoder.layers) else decoder.layers[number - 1]
                hooks.callback(layer.register_forward_hook(partial(keep, number)).remove)
            answered = self._answered(batch, mask_visual)
        return [kept[number] for number in layers], answered

    def _answered(self, batch: ChatBatch, mask_visual: bool) -> Answered | None:
        """Run the language model over the batch, and return the likelihoods of its answers where it has any."""
        shown_MDH = self.shown(batch)
        # No mask keeps a recurrent layer from what lies before: the picture's tokens stay what the word table has.
        is_left_out = mask_visual and self.is_recurrent
        ids_BW = batch.packing.packed(batch.sequence_ids_NS)
        x_BWH = (
            self.model.get_input_embeddings()(ids_BW)
            if is_left_out
            else self.embed(batch, shown_MDH, mask_visual=mask_visual)
        )
        rows = Rows(
            x_BWH=x_BWH,
            ids_BW=ids_BW,
            positions=batch.packing.packed(batch.positions_NS),
            step_BW=batch.packing.token_BW % batch.sequence_ids_NS.shape[1],
            own_BW=batch.packing.own_BW,
            block_BW=batch.packing.block_BW,
            picture_BW=batch.packing.packed(batch.picture_NS),
        )
        if not batch.answers:
            self._run(rows.padded(0), batch, shown_MDH, mask_visual)
            return None
        total: list[tuple[torch.Tensor, torch.Tensor]] = []
        for answers in batch.answers:
            place_rows = self._answers_apart if self.is_recurrent else self._answers_behind
            longer, place_NQ = place_rows(rows, batch, answers)
            final_BWH = self._run(longer, batch, shown_MDH, mask_visual)
            states_MH = final_BWH.flatten(0, 1).index_select(0, place_NQ.flatten()[answers.foretold_M])
            total.append(sum_likelihoods(answers, states_MH, self._words, batch.num_answers))
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

    def _words(self, states_MH: torch.Tensor) -> torch.Tensor:
        """Return the logits of all words, as transformers' model gives them."""
        logits: torch.Tensor = self.model.lm_head(states_MH)
        cap = getattr(self.decoder.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _answers_behind(self, rows: Rows, batch: ChatBatch, answers: Answers) -> tuple[Rows, torch.Tensor]:
        """Return rows with their answers side by side behind them, and where (N, Q) the states lie that foretell."""
        size, width, num_tokens = batch.sequence_ids_NS.shape[1], rows.ids_BW.shape[1], answers.token_ids_NT.shape[1]
        # Answers behind a row lie where they would behind the sequence, which is then alone in its row.
        inside_NQ = batch.packing.place_NS.gather(1, answers.source_NQ.clamp(max=size - 1))
        place_NQ = torch.where(answers.source_NQ < size, inside_NQ, answers.source_NQ - size + width)
        rows = rows.padded(num_tokens)
        if num_tokens:
            column_NT = torch.arange(width, width + num_tokens, device=answers.block_NT.device).expand_as(
                answers.block_NT
            )
            rows = self._followed(rows, batch, answers, batch.example_N[:, None].expand_as(column_NT), column_NT)
        return rows, place_NQ + batch.packing.row_N[:, None] * rows.ids_BW.shape[1]

    def _answers_apart(self, rows: Rows, batch: ChatBatch, answers: Answers) -> tuple[Rows, torch.Tensor]:
        """Return a row for each sequence and answer, which follows it at once; as `_answers_behind` else."""
        size, width, num_tokens = batch.sequence_ids_NS.shape[1], rows.ids_BW.shape[1], answers.token_ids_NT.shape[1]
        sequence_N1, most = torch.arange(batch.num_sequences, device=batch.length_N.device)[:, None], 1
        place_NQ = answers.source_NQ
        # One column more takes what is padding.
        rows = rows.padded(num_tokens + 1)
        if num_tokens:
            most = int(answers.block_NT.max()) + 1
            rows = rows.repeated(most)
            column_NT = torch.where(
                answers.block_NT < 0, width + num_tokens, batch.length_N[:, None] + answers.offset_NT
            )
            row_NT = sequence_N1 * most + answers.block_NT.clamp(min=0)
            rows = self._followed(rows, batch, answers, row_NT, column_NT)
            token_NQ = (answers.source_NQ - size).clamp(0, num_tokens - 1)
            place_NQ = torch.where(answers.source_NQ < size, answers.source_NQ, column_NT.gather(1, token_NQ))
        # A token of the sequence foretells the first of each answer.
        answer_NQ = (answers.source_NQ < size).cumsum(1).clamp(max=most) - 1
        return rows, place_NQ + (sequence_N1 * most + answer_NQ) * rows.ids_BW.shape[1]

    def _followed(
        self, rows: Rows, batch: ChatBatch, answers: Answers, row_NT: torch.Tensor, column_NT: torch.Tensor
    ) -> Rows:
        """Return rows in which the answers' tokens lie at some places, each as if its answer were the only one."""
        last = (batch.length_N[:, None] - 1).expand(*batch.positions_NS.shape[:-1], 1)
        words_NTH = self.model.get_input_embeddings()(answers.token_ids_NT)
        at = (row_NT, column_NT)
        positions = rows.positions.clone()
        positions[..., row_NT, column_NT] = batch.positions_NS.gather(-1, last) + 1 + answers.offset_NT
        return replace(
            rows,
            x_BWH=rows.x_BWH.index_put(at, words_NTH.to(rows.x_BWH.dtype)),
            ids_BW=rows.ids_BW.index_put(at, answers.token_ids_NT),
            positions=positions,
            step_BW=rows.step_BW.index_put(at, batch.length_N[:, None] + answers.offset_NT),
            own_BW=rows.own_BW.index_put(at, torch.where(answers.block_NT < 0, PADDING, answers.block_NT)),
        )

    def _run(self, rows: Rows, batch: ChatBatch, shown_MDH: torch.Tensor, mask_visual: bool) -> torch.Tensor:
        """Return the last states of rows."""
        masks: Any = None
        if not self.is_recurrent:
            allowed_BWW = rows.allowed(mask_visual=mask_visual)
            near_BWW = allowed_BWW
            if "sliding_attention" in self._layer_kinds:
                near_BWW = allowed_BWW & rows.within(self.decoder.config.sliding_window)
            dtype = compute_dtype(rows.x_BWH)
            masks = {
                kind: additive_mask(allowed, dtype)[:, None]
                for kind, allowed in (("full_attention", allowed_BWW), ("sliding_attention", near_BWW))
                if kind in (self._layer_kinds or {"full_attention"})
            }
        more: dict[str, Any] = {}
        if shown_MDH.shape[1] > 1:
            more["visual_pos_masks"] = batch.packing.row_M * rows.ids_BW.shape[1] + batch.packing.place_M
            more["deepstack_visual_embeds"] = list(shown_MDH[:, 1:].unbind(1))
        if getattr(self.decoder.config, "hidden_size_per_layer_input", 0):
            words_BW = rows.ids_BW.masked_fill(
                rows.ids_BW == self.chat.image_token_id, self.decoder.config.pad_token_id
            )
            more["per_layer_inputs"] = self.decoder.get_per_layer_inputs(words_BW, None)
        output = self.decoder(
            inputs_embeds=rows.x_BWH,
            attention_mask=masks if self._layer_kinds or masks is None else masks["full_attention"],
            position_ids=rows.positions,
            use_cache=False,
            **more,
        )
        final: torch.Tensor = output.last_hidden_state
        return final


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """What the language model reads: embedded tokens, their ids, positions and steps, and who sees whom.

    `own_BW` and `block_BW` are those of `Packing`; `picture_BW` (bool) says which are the picture's.
    """

    x_BWH: torch.Tensor
    ids_BW: torch.Tensor
    positions: torch.Tensor
    step_BW: torch.Tensor
    own_BW: torch.Tensor
    block_BW: torch.Tensor
    picture_BW: torch.Tensor

    def padded(self, num_places: int) -> Rows:
        """Return the rows with places behind them, and more up to a multiple of `MASK_ALIGNMENT`."""
        more = (0, num_places + -(self.ids_BW.shape[1] + num_places) % MASK_ALIGNMENT)
        return Rows(
            x_BWH=functional.pad(self.x_BWH, (0, 0, *more)),
            ids_BW=functional.pad(self.ids_BW, more),
            positions=functional.pad(self.positions, more),
            step_BW=functional.pad(self.step_BW, more),
            own_BW=functional.pad(self.own_BW, more, value=PADDING),
            block_BW=functional.pad(self.block_BW, more, value=-1),
            picture_BW=functional.pad(self.picture_BW, more),
        )

    def repeated(self, times: int) -> Rows:
        """Return each row several times."""
        parts = {part.name: getattr(self, part.name) for part in fields(self)}
        return Rows(
            **{name: part.repeat_interleave(times, -2 if name == "positions" else 0) for name, part in parts.items()}
        )

    def allowed(self, *, mask_visual: bool) -> torch.Tensor:
        """Return (B, W, W) bool: which places each place sees."""
        own_BW, block_BW, picture = self.own_BW, self.block_BW, self.picture_BW
        place = torch.arange(own_BW.shape[1], device=own_BW.device)
        reachable = (own_BW == COMMON)[:, None, :] | (own_BW[:, None, :] == own_BW[:, :, None])
        is_block = (block_BW[:, None, :] == block_BW[:, :, None]) & (block_BW >= 0)[:, None, :]
        is_before = place[None, :] <= place[:, None]
        allowed = reachable & (is_before | is_block)
        if mask_visual:
            # The text sees no picture, and the picture no text behind it.
            allowed = allowed & (picture[:, :, None] | ~picture[:, None, :])
            allowed = allowed & (is_before | picture[:, None, :] | ~picture[:, :, None])
        return allowed

    def within(self, window: int) -> torch.Tensor:
        """Return (B, W, W) bool: places that lie less than a window of steps back."""
        return self.step_BW[:, None, :] > self.step_BW[:, :, None] - window


def states_of(output: Any) -> torch.Tensor:
    """Return the states of what a layer, or the whole stack, gives."""
    if isinstance(output, tuple):
        output = output[0]
    states: torch.Tensor = getattr(output, "last_hidden_state", output)
    return states


def _flat(features: Any) -> torch.Tensor:
    """Return (V, H) of the features of several pictures, which transformers gives as one tensor or one for each."""
    if isinstance(features, torch.Tensor):
        return features.flatten(0, -2)
    return torch.cat([part.flatten(0, -2) for part in features])


def add_inner_features(hidden_BWH: torch.Tensor, place_M: torch.Tensor, features_MH: torch.Tensor) -> torch.Tensor:
    """Add features to states: at places that are counted over all rows, or where a mask is, as transformers has it.

    Of a mask the device must tell the host how many places there are, once for each layer.
    """
    if place_M.dtype == torch.bool:
        place_M = torch.nonzero(place_M.flatten())[:, 0]
    return hidden_BWH.flatten(0, 1).index_add(0, place_M, features_MH.to(hidden_BWH.dtype)).view_as(hidden_BWH)


def model_config(config: GenerativeConfig) -> Any:
    """Return transformers' configuration of an architecture, with the student's dropout.

    Raises:
        ConfigError: transformers does not know it.
    """
    settings = dict(config.architecture or {})
    if not settings:
        raise ConfigError(
            "No chat model is named.",
            why="the student chat is what --init holds: weights with their config.json and processor",
            next_command="--init FOLDER or --init hf:ORG/MODEL, such as hf:Qwen/Qwen2.5-VL-3B-Instruct",
        )
    if "quantization_config" in settings:
        raise ConfigError(
            "The weights are quantised.",
            why="a student is trained from weights in float32, bfloat16 or float16",
            next_command="--init with the repository of the model before it was quantised",
        )
    if settings.get("model_type") not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        foreign = "its repository brings code of its own, which ADVL does not run"
        raise ConfigError(
            f"{settings.get('model_type', 'An unnamed type')} is no chat model of transformers that reads pictures.",
            why=foreign if "auto_map" in settings else "transformers has no image-text-to-text model of this type",
            next_command="choose one of the types in docs/students.md",
        )
    try:
        transformers_config = AutoConfig.for_model(settings.pop("model_type", ""), **settings)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            "The architecture is none that transformers knows.", why=str(error).split("\n", maxsplit=1)[0]
        ) from None
    transformers_config.text_config.attention_dropout = config.dropout
    return transformers_config


def _laid_out(encoder: Any, grid_B3: torch.Tensor, device: torch.device) -> dict[str, torch.Tensor]:
    """Return where an encoder's patches lie, on its device: transformers would leave it with the grid, on the host.

    Args:
        encoder: of a model whose pictures have grids of their own.
        grid_B3: frames, rows and columns of each picture's patches.
        device: of the encoder.
    """
    from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

    merge = int(encoder.config.spatial_merge_size)
    made = {"position_ids": get_vision_position_ids(grid_B3, merge)}
    if hasattr(encoder, "interpolation_mode"):
        made["interp_indices"], made["interp_weights"] = get_vision_interpolation_indices_and_weights(
            grid_B3,
            num_grid_per_side=encoder.num_grid_per_side,
            mode=encoder.interpolation_mode,
            align_corners=encoder.interpolation_align_corners,
            spatial_merge_size=merge,
        )
    return {name: value.to(device, non_blocking=True) for name, value in made.items()}
