"""`given:NAME`: a student that is given its teachers' features as inputs, in training and in evaluation.

Nothing is distilled: the student reads the caches whenever it reads an example. How far it gets beyond the same
student without them says how much of what the teachers know the task can use at all (`advl scenes headroom`). It is
a measuring device and no method: at inference it needs what a distilled student does without.

Each teacher's features of a word go through a trained linear map and are added to the embedding of each of the word's
tokens; those of a box, or of a grid's cells, are added to the raw features of the region that lies there. The maps
start at zero, so that training starts from the student as it is.

Shapes: N sequences, L text tokens, W words, B examples, S boxes, R visual tokens, D teacher width, E width of word
embeddings, F width of raw visual features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from advl_pipeline.cache.reader import TeacherCache, open_cache
from advl_pipeline.datasets.records import Example
from advl_pipeline.datasets.words import WordPrior
from advl_pipeline.distillation.signal import TeacherSignal
from advl_pipeline.errors import ConfigError, advise, leave_out
from advl_pipeline.students.interface import Perturbation, Student, StudentBatch, StudentOutput
from advl_pipeline.students.registry import build_student
from advl_pipeline.students.saved import load_student_weights, read_description
from advl_pipeline.training.joined_teacher import joined_teacher
from advl_pipeline.training.signals import SignalSource, TeacherFeatures, cached_teacher

GIVEN = "given:"
"""Stands before the name of a student that is given its teachers' features: a measuring device, in no list."""


@dataclass(kw_only=True)
class GivenBatch(StudentBatch):
    """The student's own batch with what the teachers say of it; the common fields are those of `inner`."""

    inner: StudentBatch
    signal: TeacherSignal

    @classmethod
    def of(cls, inner: StudentBatch, signal: TeacherSignal) -> GivenBatch:
        common = {item.name: getattr(inner, item.name) for item in fields(StudentBatch)}
        return cls(**common, inner=inner, signal=signal)

    def to(self, device: torch.device) -> Self:
        self.inner = self.inner.to(device)
        self.signal = self.signal.to(device)
        for item in fields(StudentBatch):
            setattr(self, item.name, getattr(self.inner, item.name))
        return self

    def blanked(self) -> Self:
        """Return the batch with pictures that show nothing; a teacher has nothing to say of such a picture."""
        return replace(self, inner=self.inner.blanked(), signal=replace(self.signal, vision={}))


class GivenFeatures(Student):
    """A student and the linear maps from each teacher's words and regions to its inputs."""

    def __init__(self, inner: Student, caches: Sequence[TeacherCache]) -> None:
        """Args:
        inner: the student that is given features.
        caches: of all splits that will be read, those of one teacher next to one another or not.

        Raises:
            ConfigError: a student that does not say what can be added to its inputs, no cache, or no teacher among
                them with features of words or of boxes.
        """
        super().__init__()
        self.inner = inner
        self.name = f"{GIVEN}{inner.name}"
        self.hidden_size, self.pooled_size, self.places = inner.hidden_size, inner.pooled_size, inner.places
        self.caches = tuple(str(cache.path) for cache in caches)
        embedding_width, visual_width = inner.input_widths()
        by_name: dict[str, list[TeacherFeatures]] = {}
        for cache in caches:
            by_name.setdefault(cache.teacher_name, []).append(cached_teacher(cache))
        # Each teacher once, over the splits of all of its caches.
        teachers = [joined_teacher(of_teacher, of_teacher) for of_teacher in by_name.values()]
        self.source = SignalSource(teachers, prior=_NO_PRIOR)
        widths = self.source.widths()
        self.text_teachers = [name for name, width in widths.items() if width.text_token]
        self.vision_teachers = [name for name, width in widths.items() if width.image_region]
        if not self.text_teachers and not self.vision_teachers:
            raise ConfigError(
                "None of the teachers has features of words or of boxes to give.",
                where=", ".join(self.caches) or "caches",
                next_command=advise(
                    ["advl", "extract", "--image-tokens", "boxes", "--teacher", "NAME"],
                    note="or give a cache of a text teacher",
                ),
            )
        self.word_maps = nn.ModuleList(_map(widths[name].text_token, embedding_width) for name in self.text_teachers)
        self.region_maps = nn.ModuleList(
            _map(widths[name].image_region, visual_width) for name in self.vision_teachers
        )

    def collate(self, examples: Sequence[Example]) -> GivenBatch:
        inner = self.inner.collate(examples)
        signal = self.source.signal(examples, inner, with_confidence=False, places=self.inner.places)
        return GivenBatch.of(inner, signal)

    def encode(
        self,
        batch: StudentBatch,
        *,
        perturbation: Perturbation | None = None,
        mask_visual: bool = False,
        need_relevance: bool = False,
    ) -> StudentOutput:
        assert isinstance(batch, GivenBatch)
        if perturbation is not None:
            raise ConfigError(f"{self.name} is not finetuned adversarially.", next_command=leave_out("--adversarial"))
        given = Perturbation(text_NLE=self._of_words(batch), visual_NRF=self._of_regions(batch))
        return self.inner.encode(
            batch.inner, perturbation=given, mask_visual=mask_visual, need_relevance=need_relevance
        )

    def text_tokens(self, examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
        return self.inner.text_tokens(examples)

    @property
    def max_text_length(self) -> int | None:
        return self.inner.max_text_length

    def count_cut(self, examples: Sequence[Example]) -> int:
        return self.inner.count_cut(examples)

    def cut_texts(self) -> None:
        self.inner.cut_texts()

    def build_head(self, task: str, num_classes: int) -> nn.Module:
        return self.inner.build_head(task, num_classes)

    def config_dict(self) -> dict[str, Any]:
        return {"caches": list(self.caches), "inner": self.inner.config_dict()}

    def _of_words(self, batch: GivenBatch) -> torch.Tensor | None:
        """Return (N, L, E): the sum of the teachers' mapped features of the word that each token belongs to."""
        assert batch.signal.words is not None
        word_NL = batch.signal.words.word_of_token_NL
        total_NLE: torch.Tensor | None = None
        for name, linear in zip(self.text_teachers, self.word_maps, strict=True):
            signal = batch.signal.text[name]
            assert signal.words_NWD is not None
            mapped_NWE = linear(signal.words_NWD / math.sqrt(signal.words_NWD.shape[-1]))
            if signal.word_mask_NW is not None:
                mapped_NWE = mapped_NWE * signal.word_mask_NW[..., None]
            total_NLE = _plus(total_NLE, _taken(mapped_NWE, word_NL))
        return total_NLE

    def _of_regions(self, batch: GivenBatch) -> torch.Tensor | None:
        """Return (N, R, F): the sum of the teachers' mapped features of the place where each visual token lies."""
        repeats_B = torch.tensor(batch.num_candidates, device=batch.box_index_NR.device)
        total_NRF: torch.Tensor | None = None
        for name, linear in zip(self.vision_teachers, self.region_maps, strict=True):
            if name not in batch.signal.vision:
                continue
            signal = batch.signal.vision[name]
            if signal.regions_BSD is None:
                continue
            assert signal.region_mask_BS is not None
            mapped_BSF = linear(signal.regions_BSD / math.sqrt(signal.regions_BSD.shape[-1]))
            mapped_BSF = mapped_BSF * signal.region_mask_BS[..., None]
            if signal.shares_BSR is not None:
                mapped_BSF = (signal.shares_BSR > 0).to(mapped_BSF.dtype).transpose(1, 2) @ mapped_BSF
            mapped_NRF = mapped_BSF.repeat_interleave(repeats_B, dim=0, output_size=batch.num_sequences)
            total_NRF = _plus(total_NRF, mapped_NRF)
        return total_NRF


_NO_PRIOR = WordPrior(idf={}, unseen=1.0)
"""No word is selected here, so that none is more informative than another."""


def _map(width: int | None, target: int) -> nn.Linear:
    assert width is not None
    linear = nn.Linear(width, target, bias=False)
    nn.init.zeros_(linear.weight)
    return linear


def _plus(total: torch.Tensor | None, value: torch.Tensor) -> torch.Tensor:
    return value if total is None else total + value


def _taken(values_NXE: torch.Tensor, index_NY: torch.Tensor) -> torch.Tensor:
    """Return (N, Y, E): the row that each place asks for, zeros where it asks for none (-1)."""
    index_NYE = index_NY.clamp(min=0)[..., None].expand(-1, -1, values_NXE.shape[-1])
    return values_NXE.gather(1, index_NYE) * (index_NY >= 0)[..., None]


def build(name: str, weights: Path | None, overrides: Mapping[str, Any]) -> GivenFeatures:
    """Build the student from its own pretrained weights, or from a folder that a run of it wrote.

    Args:
        name: `given:` and the name of the student.
        overrides: `caches`, a list of folders or URLs; the rest is the student's own.

    Raises:
        ConfigError: no caches are named, or as `GivenFeatures` says.
    """
    inner_name = name.removeprefix(GIVEN)
    own = {key: value for key, value in overrides.items() if key != "caches"}
    if weights is not None and weights.is_dir() and read_description(weights)["student"] == name:
        saved, load = load_student_weights(weights, name)
        inner = build_student(inner_name, overrides=saved["inner"] | own)
    else:
        saved, load = {}, None
        inner = build_student(inner_name, weights=weights, overrides=own)
    locations = overrides.get("caches", saved.get("caches"))
    if not locations:
        raise ConfigError(
            f"{name} needs the caches that it reads.",
            where="--student-option",
            next_command="""--student-option 'caches=["caches/NAME/DATASET/train", "caches/NAME/DATASET/val"]'""",
        )
    student = GivenFeatures(inner, [open_cache(location) for location in locations])
    if load is not None:
        load(student)
    return student
