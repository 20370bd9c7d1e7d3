"""What a run learns from beside labels: one object, built in one place before the first step, that nothing changes.

It has the signals of teachers, as they are or as a control makes them, the places that are distilled, landmarks,
confidences and answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from accelerate import Accelerator

from advl_pipeline.cache.reader import TeacherCache
from advl_pipeline.cache.verify import require_trustworthy
from advl_pipeline.datasets.records import Candidate
from advl_pipeline.datasets.words import KnownWords, fit_word_prior
from advl_pipeline.students.options import StudentOptions
from advl_pipeline.students.weight_files import known_words, read_known_words
from advl_pipeline.training.bridge import TeacherAnswers, find_answers
from advl_pipeline.training.compatibility import check_caches, check_part, check_selection
from advl_pipeline.training.confidences import CheckedConfidence, find_confidences
from advl_pipeline.training.inputs import Inputs, cache_of_split
from advl_pipeline.training.joined_teacher import joined_teacher
from advl_pipeline.training.landmark_search import FoundLandmarks, StudentAtStart, find_landmarks
from advl_pipeline.training.process_group import told_by_first
from advl_pipeline.training.resolved import Run
from advl_pipeline.training.signals import SignalSource, TeacherFeatures, cached_teacher
from advl_pipeline.training.teacher_controls import controlled_teacher, require_moved_cells, require_vision_teacher
from advl_pipeline.training.vision_targets import VisionChoice, choose_vision_targets
from advl_pipeline.training.word_rows import word_means


@dataclass(frozen=True, kw_only=True)
class Teaching:
    """All that a run learns from beside labels, and what was found out about it.

    `source` gives the teachers' signals, with the confidences that weights follow; `judge` those of the teachers as
    they are, which a control's are not. Without teachers both are None.
    """

    source: SignalSource | None = None
    judge: SignalSource | None = None
    vision: tuple[VisionChoice, ...] = ()
    landmarks: FoundLandmarks = field(default_factory=FoundLandmarks)
    confidences: tuple[CheckedConfidence, ...] = ()
    answers: TeacherAnswers | None = None

    def lines(self) -> list[str]:
        """Return one line for people about each thing that was found."""
        found = [one.line() for several in (self.vision, self.confidences) for one in several]
        return found if self.answers is None else [*found, *self.answers.lines()]


def open_teaching(
    run: Run, start: StudentAtStart, caches: Sequence[TeacherCache], inputs: Inputs, accelerator: Accelerator
) -> Teaching:
    """Open what a run learns from beside labels; nothing of it where no teachers, anchor or answers are asked for.

    Args:
        start: the student that is taught, on its device; left in the mode that it was in.

    Raises:
        IdentityMismatch: a cache of another dataset, split or setting. CorruptCache: one that cannot be trusted.
        ConfigError: teachers or options that contradict each other.
    """
    opened = _open_sources(run, caches, inputs)
    device, num_processes = accelerator.device, accelerator.num_processes
    if opened is None:
        return Teaching(
            answers=find_answers(
                run, start, FoundLandmarks(), inputs, None, num_processes=num_processes, device=device
            )
        )
    source, judge = opened
    vision, source = choose_vision_targets(
        run.method.settings, start.student, inputs.dataset, inputs.labelled, source
    )

    def find() -> FoundLandmarks:
        found = find_landmarks(start, inputs.adapt_dataset, inputs.adapt, source, device=device)
        return found.to(torch.device("cpu"))

    landmarks = told_by_first(find, accelerator).to(device)
    # The first process estimates what is missing; the others read what it wrote.
    with accelerator.main_process_first():
        checked, followed = find_confidences(
            run, caches, inputs, source, start, landmarks.words, num_processes=num_processes, device=device
        )
    answers = find_answers(run, start, landmarks, inputs, source, num_processes=num_processes, device=device)
    return Teaching(
        source=source.with_teachers(source.teachers, followed),
        judge=judge,
        vision=tuple(vision),
        landmarks=landmarks,
        confidences=checked,
        answers=answers,
    )


def _open_sources(
    run: Run,
    caches: Sequence[TeacherCache],
    inputs: Inputs,
) -> tuple[SignalSource, SignalSource] | None:
    """Return the teachers' signals, checked against the inputs, and those of the teachers as they are.

    None where none is needed. A control's teachers are not as they are.

    Raises:
        IdentityMismatch: a cache of another dataset, split or setting. CorruptCache: one that cannot be trusted.
        ConfigError: teachers or options that contradict each other.
    """
    config, method = run.config, run.method
    anchors = method.num_adapt_steps > 0 and method.settings.anchor_weight > 0
    asks_itself = method.settings.answers_of == "student" and method.settings.answer_weight > 0
    if not method.uses_teachers and not anchors and not asks_itself:
        return None
    by_split = cache_of_split(caches, inputs.splits)
    for split, of_split in zip(inputs.splits, by_split, strict=True):
        check_caches(of_split, split, data_root=config.data_root, on_error=config.on_error)
        check_selection(of_split, method.settings)
        if split is inputs.dataset:
            check_part(of_split, split, sorted({*inputs.labelled, *inputs.seen}), config)
        else:
            check_part(of_split, split, range(len(split)), config)
        for cache in of_split:
            require_trustworthy(cache, hash_all=config.verify_caches)
    cached = [[cached_teacher(cache) for cache in of_split] for of_split in by_split]
    read = [[controlled_teacher(teacher, config) for teacher in of_split] for of_split in cached]
    require_moved_cells(read[0], config)
    require_vision_teacher(read[0], config)
    candidates = [
        candidate
        for index in sorted({*inputs.labelled, *inputs.adapt})
        for candidate in inputs.adapt_dataset[index].candidates
    ]
    some_texts = {cache.teacher_name for cache in caches if cache.keeps_some_texts}
    teachers, judges = (
        [_with_word_means(one, candidates) if one.name in some_texts else one for one in several]
        for several in (
            [
                joined_teacher(of_teacher, as_read)
                for of_teacher, as_read in zip(zip(*cached, strict=True), zip(*read, strict=True), strict=True)
            ],
            [joined_teacher(of_teacher, of_teacher) for of_teacher in zip(*cached, strict=True)],
        )
    )
    source = SignalSource(
        teachers,
        prior=fit_word_prior(candidate.text for candidate in candidates),
        known=KnownWords(counts=_known_words(config)),
        target_norm=config.target_norm,
    )
    return source, source.with_teachers(judges)


def _with_word_means(teacher: TeacherFeatures, candidates: Sequence[Candidate]) -> TeacherFeatures:
    """Return a teacher of which only some texts have rows; words of the others have their means."""
    if teacher.text is None:
        return teacher
    texts = {candidate.text_unit.unit_id: candidate.text for candidate in candidates}
    return replace(teacher, word_means=word_means(teacher.text, texts))


def _known_words(config: StudentOptions) -> Mapping[str, int] | None:
    """Return the words that pretraining taught, with their counts; None where it left no record."""
    if config.known_words is not None:
        return read_known_words(config.known_words)
    return None if config.init is None else known_words(config.init)
