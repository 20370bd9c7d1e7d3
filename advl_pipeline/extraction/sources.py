"""The input of an extraction: a split, or the part needed by low-shot runs, with one interface for both modalities.

A source counts the tokens of its units and prepares batches for the teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from advl_pipeline.base.errors import ConfigError, DatasetError, WeightsUnavailable, advise, again
from advl_pipeline.cache.arrays import ids_to_bytes
from advl_pipeline.cache.layout import ID_BYTES
from advl_pipeline.datasets.indexed import IndexedDataset
from advl_pipeline.datasets.problems import FileReplaced
from advl_pipeline.datasets.records import MULTIPLE_CHOICE_TASKS, Dataset, ImageUnit, TextUnit
from advl_pipeline.datasets.subsets import Concatenated, Selected
from advl_pipeline.datasets.words import word_spans
from advl_pipeline.extraction.config import ExtractConfig
from advl_pipeline.extraction.imports.tower import ImportedTower
from advl_pipeline.extraction.prepare import subset_ids
from advl_pipeline.teachers.image_tower import PixelImageTower
from advl_pipeline.teachers.interface import ImageTower, PreparedUnit, Teacher, TextTower, unknown_texts
from advl_pipeline.teachers.open_options import ImageTokenKind
from advl_pipeline.teachers.registry import TeacherCard
from advl_pipeline.teachers.text_units import SelectingTextTower, covering_texts

_TOKENISE_UNITS = 1024

_PIECES_PER_WORD = 1.15
"""Average number of word pieces per word or punctuation mark in plain English."""

_WORDED_TEXTS = 2_000
"""Sampled texts whose words are counted to estimate token rows without the teacher's tokenizer."""


class PreparedBatch(NamedTuple):
    """Prepared units of a forward pass, by position, and the reasons why the missing ones could not be read."""

    units: dict[int, PreparedUnit]
    unreadable: dict[int, str]


class ImageSource:
    """The pictures of a dataset and the tower that encodes them.

    `token_dim` is None if no token features are requested. `has_regions`: the tokens are regions, whose boxes the
    tower gives. `prepare_threads` is the number of threads that may call `prepare` at once.
    """

    modality = "image"
    prepare_threads = 64

    def __init__(self, tower: ImageTower, units: Sequence[ImageUnit], *, has_tokens: bool) -> None:
        self.tower = tower
        self.global_dim = tower.global_dim
        self.token_dim = tower.token_dim if has_tokens else None
        self.has_regions = isinstance(tower, ImportedTower) and tower.has_regions
        self._units = units

    def unit_ids(self) -> npt.NDArray[np.uint8]:
        """Return the (N, 16) ids of the units, in order."""
        return ids_to_bytes([unit.unit_id for unit in self._units])

    def count_tokens(self, *, progress: Callable[[int], object], at_most: int | None = None) -> npt.NDArray[np.int32]:
        """Return the token rows of each unit, (N,)."""
        del at_most  # For a picture the number is known without opening it.
        progress(len(self._units))
        lengths = [0 if self.token_dim is None else self.tower.num_tokens(unit) for unit in self._units]
        return np.array(lengths, np.int32)

    def prepare(self, units: Sequence[int], *, skip_unreadable: bool) -> PreparedBatch:
        """Prepare units; raises `DatasetError` for an unreadable one unless `skip_unreadable`, or a replaced one."""
        batch = PreparedBatch({}, {})
        for position in units:
            unit = self._units[position]
            try:
                batch.units[position] = self.tower.prepare(unit)
            except DatasetError as error:
                # A picture that was replaced is no unreadable one: its unit would be missing for no reason.
                if not skip_unreadable or isinstance(error, FileReplaced):
                    raise
                batch.unreadable[position] = f"{unit.path.name}: {error.why or error.what}"
        return batch


class TextSource:
    """As `ImageSource`, for texts."""

    modality = "text"
    prepare_threads = 1  # Rust tokenizers refuse concurrent use.
    has_regions = False

    def __init__(self, tower: TextTower, units: Sequence[TextUnit]) -> None:
        self.tower = tower
        self.global_dim, self.token_dim = tower.global_dim, tower.token_dim
        self._units = units

    def unit_ids(self) -> npt.NDArray[np.uint8]:
        return ids_to_bytes([unit.unit_id for unit in self._units])

    def count_tokens(self, *, progress: Callable[[int], object], at_most: int | None = None) -> npt.NDArray[np.int32]:
        """Return the token rows of each unit, or of a random sample if there are more than `at_most`.

        Raises:
            WeightsUnavailable: the teacher's tokenizer knows hardly any of the texts.
        """
        total = len(self._units)
        counted = total if at_most is None else min(total, at_most)
        drawn = range(total)
        if counted < total:
            drawn = np.sort(np.random.default_rng(0).choice(total, counted, replace=False)).tolist()
        lengths: list[int] = []
        num_unknown = 0
        for start in range(0, counted, _TOKENISE_UNITS):
            part = drawn[start : start + _TOKENISE_UNITS]
            prepared = self.tower.prepare([self._units[place] for place in part])
            lengths += [unit.num_tokens for unit in prepared]
            num_unknown += sum(not unit.is_known for unit in prepared)
            progress(total * len(part) // counted)
        if why := unknown_texts(num_unknown, counted):
            raise WeightsUnavailable(
                "The teacher's tokenizer does not know these texts, so their features would be meaningless.",
                where=type(self.tower).__name__,
                why=why,
                next_command=advise(["advl", "teachers", "list"], note="take a teacher of the texts' language"),
            )
        return np.array(lengths, np.int32)

    def prepare(self, units: Sequence[int], *, skip_unreadable: bool) -> PreparedBatch:
        del skip_unreadable  # Texts are in memory already, so none is unreadable.
        prepared = self.tower.prepare([self._units[position] for position in units])
        return PreparedBatch(dict(zip(units, prepared, strict=True)), {})


Source = ImageSource | TextSource


@dataclass(frozen=True, kw_only=True, slots=True)
class SizedUnits:
    """As `ImageSource`, for a modality with known sizes whose units are not encoded."""

    modality: str
    global_dim: int
    token_dim: int | None
    num_units: int
    lengths_n: npt.NDArray[np.int32]
    has_regions: bool = False

    def unit_ids(self) -> npt.NDArray[np.uint8]:
        return np.zeros((self.num_units, ID_BYTES), np.uint8)

    def count_tokens(self, *, progress: Callable[[int], object], at_most: int | None = None) -> npt.NDArray[np.int32]:
        del at_most
        progress(self.num_units)
        return self.lengths_n


def image_tokens_of(config: ExtractConfig, dataset: Dataset) -> ImageTokenKind:
    """Resolve `auto` for a dataset: boxes if it has any, else the grid."""
    if config.image_tokens != "auto":
        return config.image_tokens
    if config.modality == "text" or not len(dataset):
        return "grid"
    # For VCR the first example suffices; `image_units` would open all pictures, even for a text-only teacher. An
    # example needs label names, which may be in files that only confidences need.
    first_has_boxes = config.estimates_confidences and len(dataset[0].image.boxes_R4)
    has_boxes = first_has_boxes or any(len(unit.boxes_R4) for unit in dataset.image_units())
    return "boxes" if has_boxes else "grid"


def open_sources(config: ExtractConfig, teacher: Teacher, dataset: Dataset) -> list[Source]:
    """Return the modalities to extract.

    Raises:
        ConfigError, DatasetError: as `units_to_encode`, or an invalid share of words.
    """
    towers = {"image": teacher.image, "text": teacher.text}
    has = [modality for modality, tower in towers.items() if tower is not None]
    pictures, texts = units_to_encode(config, dataset, teacher=teacher.name, towers=has)
    sources: list[Source] = []
    if teacher.image is not None and pictures:
        sources.append(ImageSource(teacher.image, pictures, has_tokens=config.image_tokens != "none"))
    if teacher.text is not None and texts:
        tower, share = teacher.text, config.select_texts
        if share is not None:
            tower = SelectingTextTower(tower, covering_texts(dataset, share), share)
        sources.append(TextSource(tower, texts))
    return sources


def units_to_encode(
    config: ExtractConfig, dataset: Dataset, *, teacher: str, towers: Collection[str]
) -> tuple[Sequence[ImageUnit], Sequence[TextUnit]]:
    """Return the pictures and the texts for a teacher to encode.

    Args:
        teacher: the teacher's name.
        towers: its modalities.

    Raises:
        ConfigError: the teacher lacks the requested tower, or there is no text to select tokens from.
        DatasetError: the split has nothing to encode.
    """
    modality = config.modality
    if modality != "both" and modality not in towers:
        raise ConfigError(f"Teacher {teacher!r} has no {modality} tower.", where="--modality")
    pictures = dataset.image_units() if "image" in towers and modality != "text" else ()
    texts = dataset.text_units() if "text" in towers and modality != "image" else ()
    if not texts and config.select_texts is not None:
        raise ConfigError("--select-texts needs texts, and no text is extracted.", where="--select-texts")
    if not pictures and not texts:
        raise DatasetError(
            "There is nothing to extract.",
            where=f"{dataset.name}, split {dataset.split}",
            why="the split has no units for this teacher's towers",
        )
    return pictures, texts


def sized_by_card(config: ExtractConfig, card: TeacherCard, dataset: Dataset) -> list[SizedUnits]:
    """Return the sizes of each modality from a teacher's card; token rows of texts are estimated from word counts.

    Args:
        card: a card that states the sizes of the teacher's features.
        dataset: the data to extract.

    Raises:
        ConfigError, DatasetError: as `units_to_encode`.
    """
    pictures, texts = units_to_encode(config, dataset, teacher=config.teacher, towers=card.modalities)
    sources = []
    if pictures:
        kind = image_tokens_of(config, dataset)
        patches = min(card.grid_shape[0], config.grid_side) * min(card.grid_shape[1], config.grid_side)
        rows = {"grid": patches, "none": 0}
        lengths_N = np.array([rows.get(kind, len(unit.boxes_R4)) for unit in pictures], np.int32)
        sources.append(
            SizedUnits(
                modality="image",
                global_dim=card.image_dim,
                token_dim=None if kind == "none" else card.grid_dim,
                num_units=len(pictures),
                lengths_n=lengths_N,
            )
        )
    if texts:
        drawn = np.random.default_rng(0).choice(len(texts), min(len(texts), _WORDED_TEXTS), replace=False)
        words_n = np.array([len(word_spans(texts[place].text)) for place in np.sort(drawn).tolist()])
        pieces_n = np.minimum(words_n * _PIECES_PER_WORD, card.max_length or np.inf) * (config.select_texts or 1.0)
        sources.append(
            SizedUnits(
                modality="text",
                global_dim=card.text_dim,
                token_dim=card.token_dim,
                num_units=len(texts),
                lengths_n=np.maximum(1, np.rint(pieces_n)).astype(np.int32),
            )
        )
    return sources


def row_that_shows(dataset: Dataset, path: Path) -> str:
    """Return file and line of the first row of a selection that shows a picture; "" if there is none."""
    whole = dataset.whole if isinstance(dataset, Selected) else dataset
    parts = whole.parts if isinstance(whole, Concatenated) else [whole]
    return next(
        (row for part in parts if isinstance(part, IndexedDataset) and (row := part.row_that_shows(path))), ""
    )


def averaged_grid(sources: Sequence[Source]) -> dict[str, list[int]]:
    """Return rows and columns of the teacher's `own` grid and of the `stored` one; {} if they are equal."""
    for tower in (source.tower for source in sources):
        if isinstance(tower, PixelImageTower) and tower.image_tokens == "grid":
            full, stored = tower.backbone.grid_shape, tower.grid_shape
            return {} if full == stored else {"own": list(full), "stored": list(stored)}
    return {}


def subsets_of(config: ExtractConfig, dataset: Dataset) -> Iterator[tuple[Sequence[str], int]]:
    """Yield the ids of the labelled examples and the seed of each run that will use the cache.

    Args:
        dataset: the result of `open_part`.
    """
    examples = map(dataset.__getitem__, range(len(dataset)))
    labelled = {example.example_id for example in examples if example.label is not None or example.soft_label}
    for seed in config.seed if labelled else ():
        whole = [dataset.example_ids]
        for ids in subset_ids(config, dataset.whole, seed) if isinstance(dataset, Selected) else whole:
            yield [name for name in ids if name in labelled], seed


def require_class_names(dataset: Dataset) -> None:
    """Read the class names for the confidences before encoding: they may come from other files.

    Raises:
        DatasetError: the source of the class names is missing, such as a split that VQA's answers are counted over.
    """
    if not len(dataset):
        return  # Only pictures.
    try:
        dataset[0]
        for task in dataset.tasks:
            if task not in MULTIPLE_CHOICE_TASKS:
                dataset.label_names(task)
    except DatasetError as error:
        raise DatasetError(
            "Confidences need the list of classes, which is missing.",
            where=error.where,
            why=error.why or error.what,
            next_command=again("leave confidences to a run", "--confidence", "none"),
        ) from None
