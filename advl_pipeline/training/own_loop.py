"""The adapt stage's loss as a part for any training loop: a module that is given hidden states, and a hook for them.

It consists of the parts of `advl finetune`: the signals of `training/signals/`, the search for landmarks, the terms
of `distillation/distiller.py` and the anchor.
Shapes: B pictures, N texts, L text tokens, R visual tokens, H student width.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from advl_pipeline.base.errors import ConfigError, suggest_names
from advl_pipeline.base.tensors import moved
from advl_pipeline.cache.reader import TeacherCache, UnknownUnit, open_cache
from advl_pipeline.cache.verify import require_trustworthy
from advl_pipeline.datasets.records import Candidate, Example, ImageUnit, TextUnit, text_unit
from advl_pipeline.datasets.words import KnownWords, fit_word_prior
from advl_pipeline.distillation.adapt_objectives import anchor_loss
from advl_pipeline.distillation.distiller import Distiller
from advl_pipeline.distillation.relational import Gather, gather_alone
from advl_pipeline.distillation.settings import DistillationSettings
from advl_pipeline.students.chat_model import states_of
from advl_pipeline.students.interface import StudentBatch, StudentOutput
from advl_pipeline.students.known_words import read_known_words
from advl_pipeline.training.batches import TrainingBatch, picture_numbers
from advl_pipeline.training.landmarks.census import Census, census_of
from advl_pipeline.training.landmarks.readout import CollectedNodes, Share
from advl_pipeline.training.landmarks.search import FoundLandmarks, LandmarkSearch
from advl_pipeline.training.landmarks.word_estimate import WordSearch
from advl_pipeline.training.process_group import gather_rows, of_first, shares_batches
from advl_pipeline.training.signals.controls import NO_CONTROL, Shuffled
from advl_pipeline.training.signals.stored_signals import SignalSource
from advl_pipeline.training.signals.teacher_features import cached_teacher
from advl_pipeline.training.step import LossTerms
from advl_pipeline.training.targets import TaskTargets

NO_PICTURE = ImageUnit(
    unit_id="", path=Path(), file_digest=b"", width=1, height=1, boxes_R4=np.zeros((0, 4), np.float32)
)

REGIONS_OF_A_BATCH = 64
"""Maximum number of regions that a readout and the estimate of words take from a batch."""


class LayerStates:
    """The hidden states that a layer of a model returned last: `LayerStates(model, "model.text_model.layers.16")`.

    As a context it removes its hook at the end.
    """

    def __init__(self, model: nn.Module, layer: str) -> None:
        """Args:
        model: before `torch.compile` or a wrapper such as `DistributedDataParallel`.
        layer: the name of a submodule of the model.

        Raises:
            ConfigError: the model has no such submodule.
        """
        modules = dict(model.named_modules())
        if layer not in modules:
            raise ConfigError(
                "The model has no such layer.", where=layer, why=suggest_names(layer, filter(None, modules))
            )
        self._layer = layer
        self._states_NLH: torch.Tensor | None = None
        self._hook = modules[layer].register_forward_hook(self._keep)

    @property
    def states(self) -> torch.Tensor:
        """The states (N, L, H) of the layer's last pass.

        Raises:
            ConfigError: the layer has not run yet.
        """
        if self._states_NLH is None:
            raise ConfigError("The layer has not run yet, so it has no states.", where=self._layer)
        return self._states_NLH

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._hook.remove()

    def _keep(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._states_NLH = states_of(output)


@dataclass(frozen=True, kw_only=True)
class HiddenStates:
    """The hidden states of a batch at one layer, of texts, pictures or both; equally many texts belong to a picture.

    Attributes:
        texts: the N texts as they were extracted, adjacent if they are of one picture.
        states_NLH: states of the tokens of the texts.
        offsets_NL2: the characters [start, end) of the text that each token covers, as tokenizers return them; (0, 0)
            for tokens of no text.
        mask_NL: bool, the tokens to anchor [default: those of words].
        relevance_NL: attention of each token to the picture, which then also selects words.
        pictures: the B pictures, from `picture_unit`.
        visual_states_BRH: states of the visual tokens.
        visual_mask_BR: bool, the visual tokens that exist [default: all].
        places_BR4: float, x1, y1, x2, y2 of each visual token in shares of the picture; NaN for tokens of no place.
        boxes_BR: int64, the picture's box that each visual token shows, -1 for none; for students that see boxes.
    """

    texts: Sequence[str] = ()
    states_NLH: torch.Tensor | None = None
    offsets_NL2: torch.Tensor | None = None
    mask_NL: torch.Tensor | None = None
    relevance_NL: torch.Tensor | None = None
    pictures: Sequence[ImageUnit] = ()
    visual_states_BRH: torch.Tensor | None = None
    visual_mask_BR: torch.Tensor | None = None
    places_BR4: torch.Tensor | None = None
    boxes_BR: torch.Tensor | None = None


class RelationalDistillation(nn.Module):
    """The terms of the adapt stage, for a training loop of your own: call it with the hidden states of a batch.

    It has no parameters. Several processes compare the texts and pictures of all of them, as `advl finetune` does.
    """

    def __init__(
        self,
        caches: Sequence[TeacherCache | str | Path],
        texts: Sequence[str],
        start: Callable[[], Iterable[HiddenStates]] | None = None,
        *,
        known_words: Mapping[str, int] | str | os.PathLike[str] | None = None,
        anchor_weight: float = 20.0,
        shuffle_teachers: bool = False,
        seed: int = 0,
    ) -> None:
        """Args:
        caches: one per teacher, of texts, pictures or both.
        texts: the unlabelled texts, as they were extracted; they say which words are frequent.
        start: returns states of the student before training, of some thousand texts with their pictures, in
            evaluation mode and without labels. They become the landmarks. With several processes those of the first
            one do. Called without gradients, twice if words are estimated.
        known_words: words that pretraining taught, lower-cased, with their numbers in its texts; or a file as for
            `--known-words`. They are the landmarks and held by the anchor, the others move [default: estimated from
            the states at the start; without these all words are compared within the batch].
        anchor_weight: weight of the anchor.
        shuffle_teachers: control: every unit has the features of another one.
        seed: of the control.

        Raises:
            ConfigError: two caches of one teacher, or a text that is not as extracted.
            UnknownUnit: a text is missing from a cache. CorruptCache: a damaged cache.
        """
        super().__init__()
        opened = [cache if isinstance(cache, TeacherCache) else open_cache(cache) for cache in caches]
        if len({cache.teacher_name for cache in opened}) < max(1, len(opened)):
            raise ConfigError("Distillation needs caches, one of each teacher.", where=", ".join(map(str, caches)))
        by_id = {unit.unit_id: unit.text for unit in map(_text_unit, texts)}
        control = Shuffled(seed) if shuffle_teachers else NO_CONTROL
        for cache in opened:
            require_trustworthy(cache)
            if cache.text is not None:
                with _naming(texts):
                    cache.text.token_lengths(list(by_id))
        cached = [cached_teacher(cache) for cache in opened]
        known = KnownWords()
        if isinstance(known_words, Mapping):
            known = KnownWords(counts=known_words)
        elif known_words is not None:
            known = read_known_words(Path(known_words))
        self._settings = DistillationSettings(adapt_objective="distil-only", anchor_weight=anchor_weight)
        learned = [control.features(teacher).serving(by_id) for teacher in cached]
        self._source = SignalSource(learned, prior=fit_word_prior(texts), known=known)
        if start is not None and not known.is_given:
            self._source = replace(self._source, known=self._estimate_words(start()))
        self._judge = replace(self._source, teachers=[teacher.serving(by_id) for teacher in cached])
        landmarks = FoundLandmarks()
        if start is not None and self._source.known.is_given:
            landmarks = self._find_landmarks(start())
        self._distiller = Distiller(
            self._settings,
            self._source.widths(),
            # Relations need no projection.
            hidden_size=0,
            pooled_size=0,
            landmarks=landmarks.words,
            region_landmarks=landmarks.regions,
        )

    @property
    def words(self) -> KnownWords:
        """What is known of the words that pretraining taught."""
        return self._source.known

    @torch.no_grad()
    def _estimate_words(self, start: Iterable[HiddenStates]) -> KnownWords:
        search = WordSearch(self._source.prior, most_at_once=REGIONS_OF_A_BATCH)
        for states in start:
            search.add(self._census(states, self._source))
        # Each process has batches of its own, and would know other words.
        return of_first(search.estimate().known_words())

    @torch.no_grad()
    def _find_landmarks(self, start: Iterable[HiddenStates]) -> FoundLandmarks:
        search, device = LandmarkSearch(self._settings, self._source.widths()), torch.device("cpu")
        for states in start:
            census = self._census(states, self._source)
            search.add(census)
            device = census.states_NWH.device
        return moved(of_first(moved(search.landmarks(), torch.device("cpu"))), device)

    def forward(self, states: HiddenStates, reference: HiddenStates | None = None) -> LossTerms:
        """Return the terms of a batch: `total` is the loss, and `raw` has its terms without weights, by name.

        These are `text` and `vision`, the divergences of the student's relations from the teachers', and `drift`,
        the anchor's. In a step with labels, weight the total by about 0.01.

        Args:
            states: of the student.
            reference: of the student before training, on the same batch; without it nothing is anchored.

        Raises:
            ConfigError: states without gradient, or of nothing that a teacher has features of.
            UnknownUnit: a text or a picture is missing from a cache.
        """
        census = self._census(states, self._source)
        output, batch, signal = census.states, census.batch, census.signal
        is_trained = output.text_states_NLH.requires_grad or output.visual_states_NRH.requires_grad
        if torch.is_grad_enabled() and not is_trained:
            raise ConfigError(
                "The hidden states have no gradient, so nothing would be learned.",
                why="the layer's weights are frozen, or gradient checkpointing is re-entrant",
                next_command="choose a layer above trained weights, and checkpoint with use_reentrant=False",
            )
        gather: Gather = gather_rows if shares_batches() else gather_alone
        pretrained = known = None
        if reference is not None:
            with torch.no_grad():
                pretrained = _output(reference)
                known = self._distiller.known_regions(pretrained, batch.student, signal)
        pathways, _ = self._distiller.terms(
            output,
            batch.student,
            signal,
            batch.image_ids_B,
            relevance_NL=states.relevance_NL,
            known=known,
            gather=gather,
        )
        terms = LossTerms()
        for name, losses_B in pathways.items():
            terms.add_pathway(name, losses_B)
        if pretrained is not None and known is not None:
            drift = anchor_loss(output, pretrained, batch.student, signal, known, gather=gather)
            terms.add("drift", drift, self._settings.anchor_weight)
        return terms

    @torch.no_grad()
    def readout(self, batches: Iterable[HiddenStates]) -> dict[str, dict[str, Share]]:
        """Return, by teacher, how often the student picks the teacher's choice of `words`, `texts` and `regions`.

        Without knowledge of the teacher a student picks it by chance, one in four. Shuffled teachers are asked
        unshuffled. A thousand texts are enough.
        """
        nodes = CollectedNodes()
        for states in batches:
            census = self._census(states, self._judge)
            nodes.add_words(census)
            nodes.add_regions(census, most=REGIONS_OF_A_BATCH)
        return nodes.readout(tuple(teacher.name for teacher in self._judge.teachers)).shares()

    def _census(self, states: HiddenStates, source: SignalSource) -> Census:
        """Return the states of a batch with the teachers' signal."""
        examples, output = _examples(states), _output(states)
        batch = _batch(states, output, len(examples))
        teachers = [
            replace(
                teacher,
                image=teacher.image if states.pictures else None,
                text=teacher.text if states.texts else None,
            )
            for teacher in source.teachers
        ]
        teachers = [teacher for teacher in teachers if teacher.image or teacher.text]
        if not teachers:
            raise ConfigError(
                f"No teacher has features of {'pictures' if states.pictures else 'texts'}.",
                where=", ".join(teacher.name for teacher in source.teachers),
            )
        with _naming(states.texts):
            signal = replace(source, teachers=teachers).signal(
                examples, batch, with_confidence=False, places="patches" if states.boxes_BR is None else "regions"
            )
        training_batch = TrainingBatch(
            example_ids=tuple(example.example_id for example in examples),
            task=examples[0].task,
            student=batch,
            targets=TaskTargets(is_choice=False, label_B=None, scores_BK=None),
            signal=signal,
            image_ids_B=picture_numbers(examples),
            anchored_B=torch.ones(len(examples), dtype=torch.bool),
        ).to(output.text_states_NLH.device)
        assert training_batch.signal is not None
        return census_of(examples, training_batch, output, training_batch.signal)


def _text_unit(text: str) -> TextUnit:
    unit = text_unit(text)
    if unit.text != text:
        raise ConfigError(
            "The text must have the form in which it was extracted.",
            where=repr(text),
            why="white space is collapsed, and characters are composed (NFC)",
            next_command=f"give {unit.text!r}",
        )
    return unit


@contextmanager
def _naming(texts: Sequence[str]) -> Iterator[None]:
    """Say which of the texts a cache lacks: its error knows ids."""
    try:
        yield
    except UnknownUnit as error:
        for text in texts:
            if text_unit(text).unit_id in error.where:
                error.where = f"{text!r}, {error.where}"
                error.why = "a text is looked up as it was extracted: a choice follows its question and a space"
                break
        raise


def _examples(states: HiddenStates) -> list[Example]:
    """Return the pictures with their texts, as records of a dataset without labels."""
    candidates = [Candidate(text_unit=_text_unit(text)) for text in states.texts]
    pictures = list(states.pictures) or [NO_PICTURE] * len(candidates)
    candidates = candidates or [Candidate(text_unit=text_unit(""))] * len(pictures)
    if not pictures or len(candidates) % len(pictures):
        raise ConfigError(f"{len(candidates)} texts cannot be divided among {len(pictures)} pictures.")
    size = len(candidates) // len(pictures)
    return [
        Example(
            example_id=str(number),
            task="captions",
            image=picture,
            candidates=tuple(candidates[number * size : (number + 1) * size]),
            label=None,
        )
        for number, picture in enumerate(pictures)
    ]


def _output(states: HiddenStates) -> StudentOutput:
    """Return the states as a student gives them; what is missing has no tokens."""
    text_NLH, visual_BRH = states.states_NLH, states.visual_states_BRH
    if (text_NLH is None) is bool(states.texts) or (visual_BRH is None) is bool(states.pictures):
        raise ConfigError("A batch with texts needs their hidden states, and a batch with pictures needs theirs.")
    if text_NLH is None:
        assert visual_BRH is not None
        text_NLH = visual_BRH.new_zeros(len(visual_BRH), 1, visual_BRH.shape[2])
    if visual_BRH is None:
        visual_BRH = text_NLH.new_zeros(len(text_NLH), 1, text_NLH.shape[2])
    visual_NRH = visual_BRH.repeat_interleave(len(text_NLH) // len(visual_BRH), 0)
    return StudentOutput(
        text_states_NLH=text_NLH.float(), visual_states_NRH=visual_NRH.float(), pooled_NP=text_NLH[:, 0]
    )


def _batch(states: HiddenStates, output: StudentOutput, num_pictures: int) -> StudentBatch:
    """Return the tokens of the states, on the CPU."""
    num_texts, num_tokens, _ = output.text_states_NLH.shape
    shape = (num_pictures, output.visual_states_NRH.shape[1])
    none_BR = torch.full(shape, -1)
    spans_NL2 = torch.zeros(num_texts, num_tokens, 2, dtype=torch.int64)
    if states.offsets_NL2 is not None:
        spans_NL2 = torch.as_tensor(states.offsets_NL2).cpu()
    is_seen_BR = torch.full(shape, bool(states.pictures)) if states.visual_mask_BR is None else states.visual_mask_BR
    per_picture = num_texts // num_pictures
    return StudentBatch(
        num_candidates=(per_picture,) * num_pictures,
        token_ids_NL=torch.zeros(num_texts, num_tokens, dtype=torch.int64),
        token_mask_NL=(spans_NL2[..., 1] > spans_NL2[..., 0])
        if states.mask_NL is None
        else states.mask_NL.cpu().bool(),
        char_spans_NL2=spans_NL2,
        visual_mask_NR=is_seen_BR.cpu().repeat_interleave(per_picture, 0),
        box_index_NR=(none_BR if states.boxes_BR is None else states.boxes_BR.cpu()).repeat_interleave(
            per_picture, 0
        ),
        places_BR4=None if states.places_BR4 is None else states.places_BR4.cpu().float(),
    )
