"""Where teacher signals come from: caches, joined to the examples of a batch by unit id, never by position.

Signals of several batches may be built at once, on threads.
Shapes: B examples, N sequences, S boxes, W words, M token rows, D teacher width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from advl_pipeline.cache.reader import FeatureStore, TeacherCache
from advl_pipeline.datasets.records import Example
from advl_pipeline.datasets.words import KnownWords, WordPrior, align_tokens_to_words, word_spans
from advl_pipeline.distillation.nodes import compared_words, seen_regions
from advl_pipeline.distillation.signal import (
    TeacherSignal,
    TeacherWidths,
    WordAlignment,
)
from advl_pipeline.students.interface import PlaceKind, StudentBatch
from advl_pipeline.teachers.text_units import reads_of
from advl_pipeline.training.stored_signals import (
    Fillings,
    Moments,
    StoredRows,
    StoredSignal,
    StoredText,
    StoredVision,
)
from advl_pipeline.training.vision_signals import TeacherGrid, box_targets, grid_targets
from advl_pipeline.training.word_rows import WordMeans, form_of, word_averages

Array = npt.NDArray[Any]

_TEXTS_REMEMBERED = 65536
"""Of as many texts the words' prior is kept for the epochs to come."""


class StandIn:
    """What takes the place of a cache's features: their widths and moments, and what it does not change of them."""

    def __init__(self, store: FeatureStore) -> None:
        self._store = store
        self.global_dim = store.global_dim
        self.token_dim = store.token_dim
        self.has_tokens = store.has_tokens
        self.global_mean, self.global_variance = store.global_mean, store.global_variance
        if store.has_tokens:
            self.token_mean, self.token_variance = store.token_mean, store.token_variance

    def global_features(self, ids: Sequence[str]) -> Array:
        """Return (Q, D)."""
        return self._store.global_features(ids)

    def token_features(self, ids: Sequence[str]) -> tuple[Array, npt.NDArray[np.int32]]:
        """Return (M, D) rows one unit after another, and the (Q,) rows of each."""
        return self._store.token_features(ids)

    def char_spans(self, ids: Sequence[str]) -> npt.NDArray[np.int32]:
        """Return (M, 2) the characters that each token row covers."""
        return self._store.char_spans(ids)

    def begin_epoch(self) -> None:
        """Begin an epoch of the store."""
        self._store.begin_epoch()

    def announce(self, ids: Sequence[str]) -> None:
        """Announce the units to the store."""
        self._store.announce(ids)


UnitFeatures = FeatureStore | StandIn
"""Features of units by id: a cache's, or what stands in for them, such as a control."""


@dataclass(frozen=True, kw_only=True)
class TeacherFeatures:
    """One teacher's features of one split, from a cache or what stands in for it.

    `image_places` says what its token features of a picture are of: the dataset's boxes, or a grid; None where there
    are none, or where nothing says where they lie. Of words it may have only those with the highest prior, or only
    those of candidates, without what stands before them. `word_means` are what words of a text without rows have.
    """

    name: str
    image: UnitFeatures | None
    text: UnitFeatures | None
    image_places: Literal["boxes"] | TeacherGrid | None
    aligned: bool
    words_are_selected: bool = False
    reads_context: bool = True
    word_means: WordMeans | None = None

    @property
    def sees_words(self) -> bool:
        """Whether the two towers share a space, so that each word's features can be compared with the picture's."""
        return (
            self.aligned
            and self.image is not None
            and self.text is not None
            and self.text.has_tokens
            and self.image.global_dim == self.text.token_dim
        )


def cached_teacher(cache: TeacherCache) -> TeacherFeatures:
    """View a cache as a teacher's features."""
    teacher = cache.identity["teacher"]
    places: Literal["boxes"] | TeacherGrid | None = None
    if teacher["image_tokens"] in ("boxes", "boxes-roi"):
        places = "boxes"
    elif teacher["image_tokens"] == "grid":
        places = TeacherGrid.of_description(teacher["image"])
    return TeacherFeatures(
        name=teacher["name"],
        image=cache.image,
        text=cache.text,
        image_places=places,
        aligned=teacher["aligned"],
        words_are_selected=cache.kept_share is not None,
        reads_context=reads_of(teacher["text"]) != "candidate",
    )


class SignalSource:
    """Builds the `TeacherSignal` of a batch from several teachers' features."""

    def __init__(
        self,
        teachers: Sequence[TeacherFeatures],
        *,
        prior: WordPrior,
        known: KnownWords | None = None,
        target_norm: str = "standardise",
        confidence: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        """Args:
        teachers: with features of every unit that will be asked for.
        prior: IDF over the training texts.
        known: what the student's pretraining knew [default: every word].
        target_norm: `standardise` or `none`.
        confidence: modality -> example id -> probability of the ground truth.
        """
        self.teachers = teachers
        self.prior = prior
        self._prior_of = lru_cache(maxsize=_TEXTS_REMEMBERED)(prior.of_text)
        self.known = known or KnownWords(counts=None)
        self._forms_of = lru_cache(maxsize=_TEXTS_REMEMBERED)(self._spelling)
        self.confidence = confidence or {}
        self.target_norm = target_norm

    def with_teachers(
        self, teachers: Sequence[TeacherFeatures], confidence: Mapping[str, Mapping[str, float]] | None = None
    ) -> SignalSource:
        """Return the same with other teachers and other confidences, or none."""
        return SignalSource(
            teachers, prior=self.prior, known=self.known, target_norm=self.target_norm, confidence=confidence
        )

    def widths(self) -> dict[str, TeacherWidths]:
        """Return the feature widths by teacher, in the order of the teachers."""
        return {
            teacher.name: TeacherWidths(
                image_global=teacher.image.global_dim if teacher.image else None,
                image_region=teacher.image.token_dim if teacher.image and teacher.image_places else None,
                text_global=teacher.text.global_dim if teacher.text else None,
                text_token=teacher.text.token_dim if teacher.text and teacher.text.has_tokens else None,
            )
            for teacher in self.teachers
        }

    def begin_epoch(self) -> None:
        """Let the stores look anew at the memory there is, and read ahead again what an epoch before wanted."""
        for teacher in self.teachers:
            for features in (teacher.image, teacher.text):
                if features:
                    features.begin_epoch()

    def announce(self, examples: Sequence[Example]) -> None:
        """Tell the stores which units a later batch needs."""
        image_ids = [example.image.unit_id for example in examples]
        text_ids = [candidate.text_unit.unit_id for example in examples for candidate in example.candidates]
        for teacher in self.teachers:
            if teacher.image:
                teacher.image.announce(image_ids)
            if teacher.text:
                teacher.text.announce(text_ids)

    @property
    def knows_words(self) -> bool:
        """Whether the student's pretraining left a record of the words that it taught."""
        return self.known.counts is not None

    def signal(
        self,
        examples: Sequence[Example],
        batch: StudentBatch,
        *,
        with_confidence: bool,
        places: PlaceKind | None = None,
    ) -> TeacherSignal:
        """Return the teachers' signal on a batch, in memory; arguments and errors as of `stored`."""
        return self.stored(examples, batch, with_confidence=with_confidence, places=places).targets()

    def stored(
        self,
        examples: Sequence[Example],
        batch: StudentBatch,
        *,
        with_confidence: bool,
        places: PlaceKind | None = None,
    ) -> StoredSignal:
        """Return the teachers' features on a batch as they are stored, and what makes targets of them.

        Args:
            examples: of the batch, in order.
            batch: the student's, for the characters that its tokens cover and the places where they lie.
            with_confidence: also look up the confidences (labelled examples only).
            places: what the student's visual tokens are (`Student.places`).
        """
        texts = [candidate.text for example in examples for candidate in example.candidates]
        words = self._align_student(texts, batch.char_spans_NL2.numpy())
        vision = {t.name: self._vision(t, examples, batch, places) for t in self.teachers if t.image}
        text = {t.name: self._text(t, examples, texts, words) for t in self.teachers if t.text}
        confidence = {
            modality: torch.tensor([values[example.example_id] for example in examples], dtype=torch.float32)
            for modality, values in (self.confidence.items() if with_confidence else ())
        }
        return StoredSignal(vision=vision, text=text, words=words, confidence=confidence)

    def _align_student(self, texts: Sequence[str], spans_NL2: npt.NDArray[np.int64]) -> WordAlignment:
        words = [word_spans(text) for text in texts]
        num_words = max(1, *(len(spans) for spans in words))
        prior = np.zeros((len(texts), num_words), dtype=np.float32)
        mask = np.zeros((len(texts), num_words), dtype=bool)
        form = np.zeros((len(texts), num_words), dtype=np.int64)
        known = np.zeros((len(texts), num_words), dtype=np.float32)
        for row, (text, spans) in enumerate(zip(texts, words, strict=True)):
            prior[row, : len(spans)] = self._prior_of(text)
            mask[row, : len(spans)] = True
            form[row, : len(spans)], known[row, : len(spans)] = self._forms_of(text)
        return WordAlignment(
            word_of_token_NL=torch.from_numpy(align_tokens_to_words(spans_NL2, words)),
            prior_NW=torch.from_numpy(prior),
            word_mask_NW=torch.from_numpy(mask),
            form_NW=torch.from_numpy(form),
            known_NW=torch.from_numpy(known),
            frequent_NW=torch.from_numpy((prior > 0) & (prior < self.prior.frequent_below)),
        )

    def _spelling(self, text: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        words = [text[start:end].lower() for start, end in word_spans(text)]
        forms = np.array([form_of(word) for word in words], dtype=np.int64)
        return forms, np.array([self.known.of_word(word) for word in words], dtype=np.float32)

    def _vision(
        self, teacher: TeacherFeatures, examples: Sequence[Example], batch: StudentBatch, places: PlaceKind | None
    ) -> StoredVision:
        store = teacher.image
        assert store is not None
        ids = [example.image.unit_id for example in examples]
        whole = StoredVision(
            global_BD=StoredRows(values_MD=_tensor(store.global_features(ids))),
            global_moments=self._moments(store.global_mean, store.global_variance),
        )
        lie_at = teacher.image_places
        if lie_at is None or (lie_at != "boxes" and batch.places_BR4 is None):
            return whole
        cells, lengths = _token_rows(store, ids)
        found = (
            box_targets(lengths, examples, batch, places=places)
            if lie_at == "boxes"
            else grid_targets(lie_at, examples, batch)
        )
        return replace(
            whole,
            cells_MD=cells,
            averages=found.averages,
            moments=self._moments(store.token_mean, store.token_variance),
            region_mask_BS=found.region_mask_BS,
            shares_BSR=found.shares_BSR,
            seen=seen_regions(found.region_mask_BS, found.shares_BSR),
        )

    def _text(
        self, teacher: TeacherFeatures, examples: Sequence[Example], texts: Sequence[str], words: WordAlignment
    ) -> StoredText:
        store = teacher.text
        assert store is not None
        ids = [candidate.text_unit.unit_id for example in examples for candidate in example.candidates]
        whole = StoredText(
            global_ND=StoredRows(values_MD=_tensor(store.global_features(ids))),
            global_moments=self._moments(store.global_mean, store.global_variance),
        )
        if not store.has_tokens:
            return whole
        tokens, lengths = _token_rows(store, ids)
        is_token_NM = np.arange(int(lengths.max())) < lengths[:, None]
        spans_NM2 = np.zeros((*is_token_NM.shape, 2), dtype=np.int32)
        spans_NM2[is_token_NM] = store.char_spans(ids)
        word_of_token = align_tokens_to_words(spans_NM2, [word_spans(text) for text in texts])
        averages, mask_NW = word_averages(word_of_token[is_token_NM], lengths, tuple(words.prior_NW.shape))
        fillings = None
        if teacher.word_means is not None:
            filled_NW, mean_FD = teacher.word_means.of(words.form_NW, words.word_mask_NW & ~mask_NW)
            mask_NW |= filled_NW
            fillings = Fillings(place_F=torch.nonzero(filled_NW.flatten())[:, 0], mean_FD=mean_FD)
        pictures = None
        if teacher.sees_words:
            assert teacher.image is not None
            picture_ids = [example.image.unit_id for example in examples for _ in example.candidates]
            pictures = StoredRows(values_MD=_tensor(teacher.image.global_features(picture_ids)))
        return replace(
            whole,
            tokens_MD=tokens,
            averages=averages,
            fillings=fillings,
            moments=self._moments(store.token_mean, store.token_variance),
            word_mask_NW=mask_NW,
            nodes=compared_words(words, mask_NW),
            picture_ND=pictures,
            is_selected=teacher.words_are_selected,
        )

    def _moments(self, mean: npt.NDArray[np.float32], variance: npt.NDArray[np.float32]) -> Moments | None:
        if self.target_norm != "standardise":
            return None
        return Moments(mean_D=torch.from_numpy(np.array(mean)), variance_D=torch.from_numpy(np.array(variance)))


def _token_rows(store: UnitFeatures, ids: Sequence[str]) -> tuple[StoredRows, npt.NDArray[np.int32]]:
    """Return the rows of the units one after another, (M, D), and how many each has."""
    if isinstance(store, FeatureStore):
        values, scales, lengths = store.stored_tokens(ids)
        return StoredRows(values_MD=_tensor(values), scale_M=None if scales is None else _tensor(scales)), lengths
    values, lengths = store.token_features(ids)
    return StoredRows(values_MD=_tensor(values)), lengths


def _tensor(values: npt.NDArray[Any]) -> torch.Tensor:
    # What maps a file cannot be handed to torch as it is.
    return torch.from_numpy(values if values.flags.writeable else values.copy())
