"""Region features that a detector computed, as a student's source of regions.

One file of detected regions, and for VCR a file of the dataset's own boxes before it, as UNITER joins them.

Shapes: R regions of a picture, F feature width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from advl_pipeline.datasets.records import ImageUnit
from advl_pipeline.datasets.regions.interface import Naming, RegionFeatures
from advl_pipeline.datasets.regions.registry import PictureRegions, join_regions, open_regions
from advl_pipeline.datasets.roots import index_folder
from advl_pipeline.errors import ConfigError
from advl_pipeline.students.region_source import Regions

SPLIT = "{split}"
"""Stands in a path for the split that the pictures are filed under."""


class DetectorRegions:
    """The source over files of region features.

    Args:
        detected: regions that a detector found, in one file or one per split of the pictures.
        ground_truth: features of the dataset's own boxes, put first, likewise; none where there are no such features.
        feature_size: F, the width that the student expects.
    """

    def __init__(
        self, detected: Sequence[PictureRegions], *, ground_truth: Sequence[PictureRegions] = (), feature_size: int
    ) -> None:
        self.feature_size = feature_size
        self._detected = detected
        self._ground_truth = ground_truth

    def regions(self, unit: ImageUnit) -> Regions:
        """Return ground-truth regions, then detected ones; before them the whole picture where the file has it.

        Raises:
            DatasetError: as the reader says. ConfigError: the features have another width than the student expects.
        """
        found = _regions_of(self._detected, unit)
        if self._ground_truth:
            found = join_regions(_regions_of(self._ground_truth, unit), found)
        if found.features_RF.shape[1] != self.feature_size:
            raise ConfigError(
                "The region features have another width than the student expects.",
                where=str(unit.path),
                why=f"{found.features_RF.shape[1]} in the file, feature_size = {self.feature_size}",
            )
        return _as_regions(found)


def open_detector_regions(
    detected: Path,
    *,
    ground_truth: Path | None,
    naming: Naming,
    splits: Sequence[str],
    feature_size: int,
) -> DetectorRegions:
    """Open files of region features for a student; an index of one lies beside it (`roots.index_folder`).

    Args:
        detected: file or folder, see `datasets.regions.registry.open_regions`; `{split}` in it stands for each split.
        ground_truth: the same for the dataset's own boxes.
        splits: that the pictures are filed under, such as ["train2014", "val2014"].
        feature_size: F.
    """

    def opened(path: Path, prefix: str, *, own_boxes: bool) -> list[PictureRegions]:
        places = {split: Path(str(path).replace(SPLIT, split)) for split in splits}
        readers = {
            place: open_regions(place, index=index_folder(place.parent, place))
            for place in dict.fromkeys(places.values())
        }
        return [
            PictureRegions(
                readers[place],
                naming=naming,
                vcr_prefix=f"{prefix}{split}_" if split else "",
                ground_truth=own_boxes,
            )
            for split, place in places.items()
        ]

    return DetectorRegions(
        opened(detected, "vcr_", own_boxes=False),
        ground_truth=[] if ground_truth is None else opened(ground_truth, "vcr_gt_", own_boxes=True),
        feature_size=feature_size,
    )


def _regions_of(files: Sequence[PictureRegions], unit: ImageUnit) -> RegionFeatures:
    """Read a picture from the file that holds it; where none does, the first one says what it misses."""
    return next((file for file in files if len(files) == 1 or unit in file), files[0]).regions(unit)


def _as_regions(found: RegionFeatures) -> Regions:
    features, box_index = found.features_RF, found.box_index_R
    size: npt.NDArray[np.float32] = np.array([found.width, found.height] * 2, dtype=np.float32)
    sides_R2 = found.sides()
    positions = np.concatenate([found.boxes_R4 / size, sides_R2, sides_R2[:, :1] * sides_R2[:, 1:]], axis=1)
    if found.whole_F is not None:
        features = np.concatenate([found.whole_F[None], features])
        positions = np.concatenate([np.array([[0, 0, 1, 1, 1, 1, 1]], dtype=np.float32), positions])
        box_index = np.concatenate([np.array([-1]), box_index])
    return Regions(
        features_RF=features,
        positions_R7=positions.astype(np.float32),
        box_index_R=box_index,
        whole_first=found.whole_F is not None,
    )
