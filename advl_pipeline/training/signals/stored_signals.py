"""The source of teacher signals: caches, joined to the examples of a batch by unit id, never by position.

Threads may build the signals of several batches at once.
Shapes: B examples, N sequences, S boxes, W words, M token rows, D teacher width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from advl_pipeline.datasets.records import Example
from advl_pipeline.datasets.words import KnownWords, WordPrior, align_tokens_to_words, word_spans
from advl_pipeline.distillation.relational import compared_words
from advl_pipeline.distillation.signal import Nodes, TeacherSignal, TextSignal, VisionSignal, Widths, WordAlignment
from advl_pipeline.students.interface import PlaceKind, StudentBatch
from advl_pipeline.training.signals.averages import box_targets, grid_targets, word_averages
from advl_pipeline.training.signals.teacher_features import TeacherFeatures, form_of

_TEXTS_REMEMBERED = 65536
"""Maximum number of texts whose word numbers are kept for later epochs."""


_WORD: Final = np.dtype([("prior", np.float32), ("form", np.int64), ("known", np.float32), ("held", np.bool_)])
"""Of a word: the prior, the spelling, how well the student knows it, whether it is held."""


@dataclass(frozen=True)
class SignalSource:
    """Builder of the `TeacherSignal` of a batch, from several teachers' features of all units that a run needs.

    `prior` is IDF over the training texts, `known` what is known of the student's pretraining [default: nothing], and
    `confidence` is modality -> example id -> probability of the ground truth.
    """

    teachers: Sequence[TeacherFeatures]
    _: KW_ONLY
    prior: WordPrior
    known: KnownWords = field(default_factory=KnownWords)
    confidence: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def widths(self) -> dict[str, Widths]:
        """Return the feature widths by teacher, in the order of the teachers."""
        by_teacher: dict[str, Widths] = {}
        for teacher in self.teachers:
            image, text = teacher.image, teacher.text
            widths = {"image": image.global_dim} if image else {}
            widths |= {"region": image.token_dim} if image and teacher.image_places else {}
            widths |= {"summary": text.global_dim} if text else {}
            by_teacher[teacher.name] = widths | ({"word": text.token_dim} if text and text.has_tokens else {})
        return by_teacher

    def begin_epoch(self) -> None:
        """Let the stores check the available memory again, and repeat the read-ahead of an earlier epoch."""
        for teacher in self.teachers:
            for features in (teacher.image, teacher.text):
                if features:
                    features.begin_epoch()

    def announce(self, examples: Sequence[Example]) -> None:
        """Announce to the stores the units of a later batch."""
        image_ids = [example.image.unit_id for example in examples]
        text_ids = [candidate.text_unit.unit_id for example in examples for candidate in example.candidates]
        for teacher in self.teachers:
            if teacher.image:
                teacher.image.announce(image_ids)
            if teacher.text:
                teacher.text.announce(text_ids)

    def signal(
        self,
        examples: Sequence[Example],
        batch: StudentBatch,
        *,
        with_confidence: bool,
        places: PlaceKind | None = None,
    ) -> TeacherSignal:
        """Return the teachers' signal on a batch: stored features, and everything that targets are computed from.

        Args:
            examples: of the batch, in order.
            batch: the student's, for the character spans and the places of its tokens.
            with_confidence: also look up the confidences (labelled examples only).
            places: what the student's visual tokens represent (`Student.places`).
        """
        texts = [candidate.text for example in examples for candidate in example.candidates]
        words = self._align_student(texts, batch.char_spans_NL2.numpy())
        vision = {t.name: self._vision(t, examples, batch, places) for t in self.teachers if t.image}
        text = {t.name: self._text(t, examples, texts, words) for t in self.teachers if t.text}
        confidence = {
            modality: torch.tensor([values[example.example_id] for example in examples], dtype=torch.float32)
            for modality, values in (self.confidence.items() if with_confidence else ())
        }
        return TeacherSignal(vision=vision, text=text, words=words, confidence=confidence)

    @cached_property
    def _word_numbers(self) -> Callable[[str], npt.NDArray[np.void]]:
        @lru_cache(maxsize=_TEXTS_REMEMBERED)
        def of_text(text: str) -> npt.NDArray[np.void]:
            words = [text[start:end].lower() for start, end in word_spans(text)]
            numbers_W = np.zeros(len(words), _WORD)
            numbers_W["prior"] = self.prior.of_text(text)
            numbers_W["form"] = [form_of(word) for word in words]
            numbers_W["known"] = [self.known.of_word(word) for word in words]
            numbers_W["held"] = [self.known.is_held(word) for word in words]
            return numbers_W

        return of_text

    def _align_student(self, texts: Sequence[str], spans_NL2: npt.NDArray[np.int64]) -> WordAlignment:
        words = [word_spans(text) for text in texts]
        numbers_NW = np.zeros((len(texts), max(1, *map(len, words))), _WORD)
        for row, text in enumerate(texts):
            numbers_NW[row, : len(words[row])] = self._word_numbers(text)
        word_of_token_NL = align_tokens_to_words(spans_NL2, words)
        row_X, token_X = np.nonzero(word_of_token_NL >= 0)
        has_token_NW = np.zeros(numbers_NW.shape, dtype=bool)
        has_token_NW[row_X, word_of_token_NL[row_X, token_X]] = True
        # Fields of a table are views with gaps, which torch does not take.
        of_field = {name: torch.from_numpy(numbers_NW[name].copy()) for name in _WORD.fields or ()}
        prior_NW = of_field["prior"]
        return WordAlignment(
            word_of_token_NL=torch.from_numpy(word_of_token_NL),
            prior_NW=prior_NW,
            word_mask_NW=torch.from_numpy(has_token_NW),
            form_NW=of_field["form"],
            known_NW=of_field["known"],
            held_NW=of_field["held"],
            frequent_NW=(prior_NW > 0) & (prior_NW < self.prior.frequent_below),
        )

    def _vision(
        self, teacher: TeacherFeatures, examples: Sequence[Example], batch: StudentBatch, places: PlaceKind | None
    ) -> VisionSignal:
        features = teacher.image
        assert features is not None
        ids = [example.image.unit_id for example in examples]
        whole = VisionSignal(picture=features.whole(ids))
        lie_at = teacher.image_places
        if lie_at is None or (lie_at != "boxes" and batch.places_BR4 is None):
            return whole
        patches, lengths = features.tokens(ids)
        averages, mask_BS, shares_BSR = (
            box_targets(lengths, examples, batch, places=places)
            if lie_at == "boxes"
            else grid_targets(lie_at, examples, batch)
        )
        signal = replace(
            whole, regions=replace(patches, averages=averages), region_mask_BS=mask_BS, shares_BSR=shares_BSR
        )
        return replace(signal, seen=Nodes.of_mask(signal.shared_BS))

    def _text(
        self, teacher: TeacherFeatures, examples: Sequence[Example], texts: Sequence[str], words: WordAlignment
    ) -> TextSignal:
        features = teacher.text
        assert features is not None
        ids = [candidate.text_unit.unit_id for example in examples for candidate in example.candidates]
        whole = TextSignal(text=features.whole(ids))
        if not features.has_tokens:
            return whole
        tokens, lengths = features.tokens(ids)
        is_token_NM = np.arange(int(lengths.max())) < lengths[:, None]
        spans_NM2 = np.zeros((*is_token_NM.shape, 2), dtype=np.int32)
        spans_NM2[is_token_NM] = features.char_spans(ids)
        word_of_token = align_tokens_to_words(spans_NM2, [word_spans(text) for text in texts])
        averages, mask_NW = word_averages(word_of_token[is_token_NM], lengths, tuple(words.prior_NW.shape))
        fillings = None
        if teacher.word_means is not None:
            filled_NW, mean_FD = teacher.word_means.look_up(words.form_NW, words.word_mask_NW & ~mask_NW)
            mask_NW |= filled_NW
            fillings = torch.nonzero(filled_NW.flatten())[:, 0], mean_FD
        meant, unplaced, num_forms = compared_words(words, mask_NW)
        picture = None
        if teacher.sees_words:
            assert teacher.image is not None
            picture_ids = [example.image.unit_id for example in examples for _ in example.candidates]
            picture = teacher.image.whole(picture_ids)
        return replace(
            whole,
            words=replace(tokens, averages=averages),
            fillings=fillings,
            word_mask_NW=mask_NW,
            meant=meant,
            unplaced=unplaced,
            num_forms=num_forms,
            picture=picture,
        )
