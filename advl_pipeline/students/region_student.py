"""Base classes of students with region features: configuration, collation, hiding the picture.

Shapes: B examples, N sequences, L text tokens, R regions, H width, F feature width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch.nn.utils.rnn import pad_sequence

from advl_pipeline.base.configuration import option
from advl_pipeline.base.errors import ConfigError, advise
from advl_pipeline.datasets.records import Example, ImageUnit
from advl_pipeline.students.interface import Perturbation, PlaceKind, StudentBatch
from advl_pipeline.students.picture_source import PixelRegions, Regions, RegionSource
from advl_pipeline.students.text_student import BertStream, TextBatch, TextStudent, TextStudentConfig

PIXELS_CAVEAT = "regions are small crops through a random projection, not a detector's features"


@dataclass(frozen=True, kw_only=True, slots=True)
class RegionStudentConfig(TextStudentConfig):
    """Settings of every region student."""

    feature_size: int = option(2048, help="Width F of the region features.", minimum=1)
    regions: Literal["pixels", "detector"] | None = option(
        None,
        help="Kind of its regions: small crops through a fixed projection, the default, or a detector's.",
    )


@dataclass(kw_only=True)
class RegionBatch(TextBatch):
    """A batch with each example's regions, shared by its candidates; features and positions are float32.

    `features_BRF` come from a detector. `positions_BR7` are x1, y1, x2, y2, width, height and area as fractions of
    the picture. `tags_NL` (int64) is the region that each token refers to by an object tag, -1 for most tokens.
    `alignment_NRA` (int64) are the positions of the words that name a region, -1 for none.
    """

    picture_field: ClassVar[str] = "features_BRF"

    features_BRF: torch.Tensor
    positions_BR7: torch.Tensor
    tags_NL: torch.Tensor | None = None
    alignment_NRA: torch.Tensor | None = None
    """Set only for students that read it, like `tags_NL`."""

    def without_picture(self) -> Self:
        """Return the batch with one empty region per sequence."""
        mask_NR = torch.zeros_like(self.visual_mask_NR)
        mask_NR[:, 0] = True
        features_BRF, positions_BR7 = map(torch.zeros_like, (self.features_BRF, self.positions_BR7))
        return dataclasses.replace(
            self, visual_mask_NR=mask_NR, features_BRF=features_BRF, positions_BR7=positions_BR7, grid=None
        )


class RegionStudent(TextStudent[RegionBatch]):
    """A student that collates texts and regions; subclasses define the text rows and the encoder.

    `regions` can be replaced after construction. For a detector's regions, it is None until then.
    """

    config: RegionStudentConfig
    places: PlaceKind | None = "regions"
    reads_tags: ClassVar[bool] = False
    """Whether its batches contain the region that each token refers to."""

    def __init__(self, name: str, config: RegionStudentConfig) -> None:
        super().__init__(name, config)
        self.regions: RegionSource | None = None if config.regions == "detector" else self.pixel_regions()

    def pixel_regions(self) -> RegionSource:
        """Return the source of regions without a detector."""
        return PixelRegions(self.config.feature_size)

    def regions_of(self, unit: ImageUnit) -> Regions:
        """Return the regions of a picture; raises like `region_source` and the source."""
        return self.region_source().regions(unit)

    def region_source(self) -> RegionSource:
        """Return the source of regions; raises `ConfigError` if a detector's regions are required but not given."""
        if self.regions is None:
            raise ConfigError(
                f"{self.name} sees a detector's regions, and none are given.",
                next_command=advise(
                    ["advl", "cache", "import", "--help"], note="makes a cache; then add --regions CACHE"
                ),
            )
        return self.regions

    def announce(self, examples: Sequence[Example]) -> None:
        self.region_source().announce([example.image for example in examples])

    def begin_epoch(self) -> None:
        self.region_source().begin_epoch()

    def num_visual_of(self, unit: ImageUnit) -> int:
        return len(self.regions_of(unit).features_RF)

    def collate(self, examples: Sequence[Example]) -> RegionBatch:
        batch = collate_regions(self, examples, self.regions_of)
        if self.reads_tags:
            batch.tags_NL = tagged_regions(batch, examples)
        return batch

    def caveats(self) -> tuple[str, ...]:
        return (PIXELS_CAVEAT,) if self.config.regions == "pixels" else ()

    def zero_perturbation(self, batch: RegionBatch, *, text: bool = True, visual: bool = True) -> Perturbation:
        like = batch.features_BRF
        return Perturbation(
            text_NLE=like.new_zeros(*batch.token_ids_NL.shape, self.hidden_size) if text else None,
            visual_NRF=like.new_zeros(batch.num_sequences, *like.shape[1:]) if visual else None,
        )


def collate_regions(
    student: TextStudent, examples: Sequence[Example], regions_of: Callable[[ImageUnit], Regions]
) -> RegionBatch:
    """Return a padded batch of a student's texts and the regions of each example's picture."""
    text, num_cut = student.collate_texts(examples)
    regions = [regions_of(example.image) for example in examples]
    num_candidates = tuple(len(example.candidates) for example in examples)
    num_regions = torch.tensor([len(item.features_RF) for item in regions])
    features = torch.zeros(len(examples), int(num_regions.max()), regions[0].features_RF.shape[1])
    for index, item in enumerate(regions):
        features[index, : len(item.features_RF)] = torch.from_numpy(item.features_RF)
    positions = pad_sequence([torch.from_numpy(item.positions_R7) for item in regions], batch_first=True)
    boxes = [torch.from_numpy(item.box_index_R) for item in regions]
    box_index_BR = pad_sequence(boxes, batch_first=True, padding_value=-1)
    mask_BR = torch.arange(features.shape[1]) < num_regions[:, None]
    is_place_BR = mask_BR.clone()
    is_place_BR[:, 0] &= ~torch.tensor([item.whole_first for item in regions])
    repeats = torch.tensor(num_candidates)
    return RegionBatch(
        num_candidates=num_candidates,
        **text,
        visual_mask_NR=mask_BR.repeat_interleave(repeats, dim=0),
        box_index_NR=box_index_BR.repeat_interleave(repeats, dim=0),
        places_BR4=positions[..., :4].masked_fill(~is_place_BR[..., None], torch.nan),
        features_BRF=features,
        positions_BR7=positions,
        whole_first=all(item.whole_first for item in regions),
        num_cut=num_cut,
    )


class RegionStream(BertStream[RegionBatch], RegionStudent):
    """A single stream of words and regions over BERT layers."""

    @property
    def fusion_layers(self) -> Sequence[Any]:
        return list(self.model.encoder.layer)


def tags_in(batch: StudentBatch, examples: Sequence[Example]) -> Iterator[tuple[int, torch.Tensor, int]]:
    """Yield the sequence, the tokens, (L,) bool, and the box of each object tag."""
    candidates = [candidate for example in examples for candidate in example.candidates]
    for row, candidate in enumerate(candidates):
        starts, ends = batch.char_spans_NL2[row].unbind(-1)
        for tag in candidate.tags:
            yield row, (starts >= tag.start) & (ends <= tag.end) & (ends > starts), tag.box


def regions_of_box(batch: StudentBatch, row: int, box: int) -> torch.Tensor:
    """Return the regions of a box in a sequence, int64."""
    return (batch.box_index_NR[row] == box).nonzero()[:, 0]


def tagged_regions(batch: StudentBatch, examples: Sequence[Example]) -> torch.Tensor:
    """Return the region that each token refers to by an object tag, (N, L) int64; -1 for most tokens."""
    region_NL = torch.full_like(batch.token_ids_NL, -1)
    for row, tokens_L, box in tags_in(batch, examples):
        regions = regions_of_box(batch, row, box)
        if len(regions):
            region_NL[row][tokens_L] = regions[0]
    return region_NL
