"""All training signals besides labels, in one object that is built before the first step and never changes.

It contains the signals of teachers, modified by a control if there is one, the places that are distilled, landmarks,
confidences and answers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import torch
from accelerate import Accelerator

from advl_pipeline.base.tensors import moved
from advl_pipeline.cache.reader import TeacherCache
from advl_pipeline.cache.verify import require_trustworthy
from advl_pipeline.confidence.separation import Separation
from advl_pipeline.datasets.words import fit_word_prior
from advl_pipeline.training.batch_order import inputs_visited
from advl_pipeline.training.inputs import Inputs
from advl_pipeline.training.landmarks.bridge import TeacherAnswers, find_answers
from advl_pipeline.training.landmarks.census import StudentAtStart
from advl_pipeline.training.landmarks.search import FoundLandmarks, find_landmarks
from advl_pipeline.training.landmarks.word_estimate import WordEstimate, estimate_words
from advl_pipeline.training.process_group import computed_by_first
from advl_pipeline.training.resolved import Run
from advl_pipeline.training.signals.confidences import find_confidences
from advl_pipeline.training.signals.stored_signals import SignalSource
from advl_pipeline.training.signals.teacher_features import cached_teacher
from advl_pipeline.training.signals.vision_targets import VisionChoice, choose_vision_targets


@dataclass(frozen=True, kw_only=True)
class Teaching:
    """All training signals besides labels, and the findings about them.

    `source` gives the teachers' signals, with the confidences behind the weights. `judge` gives those of the
    original teachers, without the control. Without teachers both are None. `words` is the estimate of what the
    student's pretraining taught, None if a record or a list says it.
    """

    source: SignalSource | None = None
    judge: SignalSource | None = None
    vision: tuple[VisionChoice, ...] = ()
    words: WordEstimate | None = None
    landmarks: FoundLandmarks = field(default_factory=FoundLandmarks)
    confidences: Mapping[str, Separation] = field(default_factory=dict)
    answers: TeacherAnswers | None = None

    @property
    def followed(self) -> Collection[str]:
        """The modalities whose confidence determines weights."""
        return () if self.source is None else self.source.confidence.keys()

    def lines(self) -> list[str]:
        """Return a line about each finding."""
        texts = [choice.line() for choice in self.vision]
        if self.words is not None:
            texts.append(self.words.line())
        weighted = {name: f"the {name} pathway's weights" for name in ("vision", "text")} | {"joint": "all weights"}
        for modality, measured in self.confidences.items():
            uniform = f"NOT ABOVE CHANCE, so {weighted[modality]} are uniform (--confidence-check none uses it)"
            followed = "" if modality in self.followed else f"; {uniform}"
            texts.append(f"confidence {modality}: {measured}{followed}")
        return texts if self.answers is None else [*texts, *self.answers.lines()]


def open_teaching(
    run: Run,
    start: StudentAtStart,
    teachers: Sequence[Sequence[TeacherCache]],
    inputs: Inputs,
    accelerator: Accelerator,
) -> Teaching:
    """Open the training signals besides labels; the result is empty without teachers, anchor or answers.

    Args:
        start: the student to train, on its device; keeps its training or evaluation mode.
        teachers: the teachers' caches of each split of `inputs.splits`, as `check_teachers` returns them.

    Raises:
        CorruptCache: a damaged cache. ConfigError: teachers or options contradict each other.
    """
    if not run.method.reads_words:
        return Teaching()
    source, judge = _open_sources(run, start, teachers, inputs)
    words = None
    if not source.known.is_given:
        # Only what the run distils, so that a short run of a large student does not look at thousands of pictures.
        positions = inputs_visited(run, inputs) if run.method.num_adapt_steps else inputs.labelled

        def estimate() -> WordEstimate:
            return estimate_words(start.student, inputs.adapt_dataset, positions, source.prior)

        words = computed_by_first(estimate, accelerator)
        source, judge = (replace(signals, known=words.known_words()) for signals in (source, judge))
    vision, source = choose_vision_targets(replace(start, source=source), inputs.dataset, inputs.labelled)
    start = replace(start, source=source)

    def find() -> FoundLandmarks:
        return moved(find_landmarks(start, inputs.adapt_dataset, inputs.adapt), torch.device("cpu"))

    landmarks = moved(computed_by_first(find, accelerator), accelerator.device)
    # The first process estimates what is missing; the others read its files.
    with accelerator.main_process_first():
        measured, followed = find_confidences(run, teachers[0], inputs, start, landmarks.words)
    return Teaching(
        source=replace(source, confidence=followed),
        judge=judge,
        vision=tuple(vision),
        words=words,
        landmarks=landmarks,
        confidences=measured,
        answers=find_answers(run, start, landmarks, inputs),
    )


def _open_sources(
    run: Run, start: StudentAtStart, teachers: Sequence[Sequence[TeacherCache]], inputs: Inputs
) -> tuple[SignalSource, SignalSource]:
    """Return the teachers' signals, and those of the original teachers; the two differ under a control.

    Raises:
        CorruptCache: a damaged cache. ConfigError: teachers or options contradict each other.
    """
    for cache in chain.from_iterable(teachers):
        require_trustworthy(cache)
    candidates = [
        candidate
        for index in sorted({*inputs.labelled, *inputs.adapt})
        for candidate in inputs.adapt_dataset[index].candidates
    ]
    texts = {candidate.text_unit.unit_id: candidate.text for candidate in candidates}
    cached = [cached_teacher(*of_teacher) for of_teacher in zip(*teachers, strict=True)]
    learned = [start.control.features(teacher).serving(texts) for teacher in cached]
    start.control.require(cached, run.config)
    prior = fit_word_prior(candidate.text for candidate in candidates)
    source = SignalSource(learned, prior=prior, known=run.known)
    return source, replace(source, teachers=[teacher.serving(texts) for teacher in cached])
