"""The two modalities behind one face: how many tokens each unit has, and batches made ready for the teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from advl_pipeline.cache.index import ids_to_bytes
from advl_pipeline.datasets.interface import Dataset
from advl_pipeline.datasets.records import ImageUnit, TextUnit
from advl_pipeline.errors import ConfigError, DatasetError
from advl_pipeline.extraction.config import ExtractConfig
from advl_pipeline.teachers.interface import ImageTower, PreparedUnit, Teacher, TextTower, Tower
from advl_pipeline.teachers.options import ImageTokenKind
from advl_pipeline.teachers.selected_words import SelectingTextTower, fit_split_prior
from advl_pipeline.teachers.text_units import with_text_units

_TOKENISE_UNITS = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedBatch:
    """Units made ready for a forward pass, and those that could not be, with the reasons."""

    units: list[int]
    prepared: list[PreparedUnit]
    unreadable: dict[int, str]


class Source(Protocol):
    """The units of one modality and the tower that encodes them."""

    modality: str
    prepare_threads: int
    """How many threads may call `prepare` at once."""

    @property
    def tower(self) -> Tower: ...

    @property
    def has_tokens(self) -> bool: ...

    def unit_ids(self) -> npt.NDArray[np.uint8]:
        """Return the (N, 16) ids of the units, in their order."""
        ...

    def lengths(self, *, progress: Callable[[int], object]) -> npt.NDArray[np.int32]:
        """Return how many token rows each unit has, (N,)."""
        ...

    def prepare(self, units: Sequence[int], *, skip_unreadable: bool) -> PreparedBatch:
        """Make units ready; raises `DatasetError` for one that cannot be read unless those are skipped."""
        ...


class ImageSource:
    """Pictures."""

    modality = "image"
    prepare_threads = 64

    def __init__(self, tower: ImageTower, units: Sequence[ImageUnit], *, has_tokens: bool) -> None:
        self.tower = tower
        self.has_tokens = has_tokens
        self._units = units

    def unit_ids(self) -> npt.NDArray[np.uint8]:
        return ids_to_bytes([unit.unit_id for unit in self._units])

    def lengths(self, *, progress: Callable[[int], object]) -> npt.NDArray[np.int32]:
        progress(len(self._units))
        if not self.has_tokens:
            return np.zeros(len(self._units), np.int32)
        return np.array([self.tower.num_tokens(unit) for unit in self._units], np.int32)

    def prepare(self, units: Sequence[int], *, skip_unreadable: bool) -> PreparedBatch:
        batch = PreparedBatch(units=[], prepared=[], unreadable={})
        for position in units:
            unit = self._units[position]
            try:
                batch.prepared.append(self.tower.prepare(unit))
                batch.units.append(position)
            except DatasetError as error:
                if not skip_unreadable:
                    raise
                batch.unreadable[position] = f"{unit.path.name}: {error.why or error.what}"
        return batch


class TextSource:
    """Texts."""

    modality = "text"
    prepare_threads = 1  # Tokenizers of the Rust family refuse concurrent use.
    has_tokens = True

    def __init__(self, tower: TextTower, units: Sequence[TextUnit]) -> None:
        self.tower = tower
        self._units = units

    def unit_ids(self) -> npt.NDArray[np.uint8]:
        return ids_to_bytes([unit.unit_id for unit in self._units])

    def lengths(self, *, progress: Callable[[int], object]) -> npt.NDArray[np.int32]:
        lengths: list[int] = []
        for units in _slices(self._units, _TOKENISE_UNITS):
            lengths += [prepared.num_tokens for prepared in self.tower.prepare(units)]
            progress(len(units))
        return np.array(lengths, np.int32)

    def prepare(self, units: Sequence[int], *, skip_unreadable: bool) -> PreparedBatch:
        del skip_unreadable  # A text that was read is readable.
        prepared = self.tower.prepare([self._units[position] for position in units])
        return PreparedBatch(units=list(units), prepared=prepared, unreadable={})


def image_tokens_of(config: ExtractConfig, dataset: Dataset) -> ImageTokenKind:
    """Return what `auto` means for a dataset: boxes where it gives any, else the grid."""
    if config.image_tokens != "auto":
        return config.image_tokens
    has_boxes = config.modality != "text" and any(len(unit.boxes_R4) for unit in dataset.image_units())
    return "boxes" if has_boxes else "grid"


def open_sources(config: ExtractConfig, teacher: Teacher, dataset: Dataset) -> list[Source]:
    """Return the modalities to extract.

    Raises:
        ConfigError: the teacher lacks the tower that was asked for, or a share of words that is none.
        DatasetError: the split has nothing to encode.
    """
    modality = config.modality
    sources: list[Source] = []
    if teacher.image is not None and modality in ("both", "image"):
        pictures = dataset.image_units()
        if len(pictures):
            sources.append(ImageSource(teacher.image, pictures, has_tokens=config.image_tokens != "none"))
    if teacher.text is not None and modality in ("both", "text"):
        texts = dataset.text_units()
        if len(texts):
            tower = with_text_units(teacher.text, config.text_units, dataset)
            if config.select_tokens is not None:
                tower = SelectingTextTower(tower, fit_split_prior(dataset), share=config.select_tokens)
            sources.append(TextSource(tower, texts))
    if (modality == "image" and teacher.image is None) or (modality == "text" and teacher.text is None):
        raise ConfigError(f"Teacher {teacher.name!r} has no {modality} tower.", where="--modality")
    if config.select_tokens is not None and not any(source.modality == "text" for source in sources):
        raise ConfigError("There are no text tokens to select from.", where="--select-tokens")
    if not sources:
        raise DatasetError(
            "There is nothing to extract.",
            where=f"{dataset.name}, split {dataset.split}",
            why="the split has no units for this teacher's towers",
        )
    return sources


def _slices(items: Sequence[TextUnit], size: int) -> Iterator[Sequence[TextUnit]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]
