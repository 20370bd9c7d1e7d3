"""Paths of the files of the built-in corpus: pure functions from split to name, relative to `<root>/scenes`.

Splits that the official datasets have use the official names. Official test splits of VCR and VQA have no labels;
ours do, in the fields of the labelled splits. All splits except train, val and test follow the official pattern with
the split's name in place of `train2014`.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Final

FOLDER: Final = "scenes"
"""Name of the corpus folder below the data root."""

VCR_FOLDER: Final = "vcr"
VQA_FOLDER: Final = "vqa-v2"
SNLI_VE_FOLDER: Final = "snli-ve"
CAPTIONS_FOLDER: Final = "captions"

TASK_SPLITS: Final = (
    "train",
    "val",
    "test",
    "test-shift",
    "test-unseen",
    "test-compositional",
    "test-rephrased",
    "train-shift",
    "train-rephrased",
)
"""Splits of the three task formats."""

GREY: Final = "test-grey"
"""Split that only corpora of photographs have: the pictures of test, grey and noisy."""

CAPTION_SPLITS: Final = ("train", "val")

SPLIT_CODES: Final = {split: code for code, split in enumerate((*TASK_SPLITS, GREY), start=1)}
"""Leading digits of picture numbers, so that no number occurs in two splits."""

CODE_STRIDE: Final = 1_000_000
"""Picture number = split code * CODE_STRIDE + scene number."""

VCR_IMAGES: Final = "vcr1images"
FLICKR_IMAGES: Final = "flickr30k_images"
CAPTION_IMAGES: Final = "images"

_VQA_SUBTYPES: Final = {"train": "train2014", "val": "val2014", "test": "test2015"}
_SNLI_VE_NAMES: Final = {"val": "dev"}


def vcr_annotations(split: str) -> PurePosixPath:
    """Return `vcr/<split>.jsonl`."""
    return PurePosixPath(VCR_FOLDER, f"{split}.jsonl")


def vcr_movie(split: str) -> str:
    """Return the `movie` field and picture folder of a split; also names the art style's role."""
    return f"SCENES_{split.upper()}"


def vcr_image(split: str, scene: int) -> PurePosixPath:
    """Return the `img_fn` of a scene: relative to `vcr/vcr1images`, in the pattern `<movie>/<clip>@<frame>.jpg`."""
    movie = vcr_movie(split)
    return PurePosixPath(movie, f"{movie}_{scene:06d}@0.jpg")


def vcr_metadata(split: str, scene: int) -> PurePosixPath:
    """Return the `metadata_fn` of a scene: the picture's name with the suffix `.json`."""
    return vcr_image(split, scene).with_suffix(".json")


def picture_number(split: str, scene: int) -> int:
    """Return the number of a scene's picture in the VQA and SNLI-VE formats; unique over all splits."""
    return SPLIT_CODES[split] * CODE_STRIDE + scene


def vqa_subtype(split: str) -> str:
    """Return the `data_subtype` of a split, which also names its picture folder: train2014, val2014, test2015, ..."""
    return _VQA_SUBTYPES.get(split, split)


def vqa_questions(split: str) -> PurePosixPath:
    """Return `vqa-v2/v2_OpenEnded_mscoco_<subtype>_questions.json`."""
    return PurePosixPath(VQA_FOLDER, f"v2_OpenEnded_mscoco_{vqa_subtype(split)}_questions.json")


def vqa_annotations(split: str) -> PurePosixPath:
    """Return `vqa-v2/v2_mscoco_<subtype>_annotations.json`; every split has one."""
    return PurePosixPath(VQA_FOLDER, f"v2_mscoco_{vqa_subtype(split)}_annotations.json")


def vqa_image(split: str, image_id: int) -> PurePosixPath:
    """Return `<subtype>/COCO_<subtype>_<12 digits>.jpg`, relative to `vqa-v2`."""
    subtype = vqa_subtype(split)
    return PurePosixPath(subtype, f"COCO_{subtype}_{image_id:012d}.jpg")


def snli_ve_annotations(split: str) -> PurePosixPath:
    """Return `snli-ve/snli_ve_<train|dev|test|test-shift|...>.jsonl`."""
    return PurePosixPath(SNLI_VE_FOLDER, f"snli_ve_{_SNLI_VE_NAMES.get(split, split)}.jsonl")


def snli_ve_image(flickr_id: str) -> PurePosixPath:
    """Return `flickr30k_images/<id>.jpg`, relative to `snli-ve`."""
    return PurePosixPath(FLICKR_IMAGES, f"{flickr_id}.jpg")


def boxes(folder: str, split: str) -> PurePosixPath:
    """Return `<folder>/boxes_<split>.jsonl`: boxes for VQA and SNLI-VE, like those of a class-agnostic detector.

    The official downloads of these two datasets contain no boxes. Each line is
    `{"image": path relative to the folder, "width": int, "height": int, "boxes": [[x1, y1, x2, y2], ...]}` in
    pixels; boxes have no class.
    """
    return PurePosixPath(folder, f"boxes_{split}.jsonl")


def captions(split: str) -> PurePosixPath:
    """Return `captions/<split>.jsonl`.

    Each line is `{"caption_id": str, "image": path relative to the folder, "width", "height", "boxes":
    [[x1, y1, x2, y2], ...], "caption": str, "phrases": [{"start", "end", "box"}, ...]}`: characters
    [start, end) of the caption name the object in row `box`.
    """
    return PurePosixPath(CAPTIONS_FOLDER, f"{split}.jsonl")


def caption_image(split: str, scene: int) -> PurePosixPath:
    """Return `images/<split>-<6 digits>.jpg`, relative to `captions`."""
    return PurePosixPath(CAPTION_IMAGES, f"{split}-{scene:06d}.jpg")
