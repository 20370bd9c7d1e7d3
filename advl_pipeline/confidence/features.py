"""What a probe sees of an example: frozen features and fixed random interactions, nothing learned, no labels.

A linear head can only use an image and a candidate together through features of the pair. The interaction here is
a random sketch, (P v) * (Q t) element by element with random signs P and Q, whose inner products estimate those of
the full outer product (Pham and Pagh 2013). Where there is no text teacher, t is the bag of the candidate's words,
each word a random sign vector by its hash: lexical knowledge only. Both are our reading of a "small linear head".
Features are standardised by the cache's own moments, which come from unlabelled inputs.

Shapes: N examples, C candidates, U distinct units, D teacher width, S sketch width, F features.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from advl_pipeline.datasets.records import Example

if TYPE_CHECKING:
    from advl_pipeline.cache.reader import FeatureStore

Array = npt.NDArray[np.float32]
View = Literal["vision", "text", "joint"]

SKETCH_DIM = 192
TEXT_DIM = 256
IMAGE_DIM = 64
"""Widths of the interaction, and of texts and pictures by themselves; wider teachers are projected at random."""

_CHUNK = 512


class ProbeFeatures:
    """Builds features from the stores of one or more teachers; several teachers' features stand side by side."""

    def __init__(self, *, image: Sequence[FeatureStore], text: Sequence[FeatureStore]) -> None:
        self._image = list(image)
        self._text = list(text)

    def build(self, examples: Sequence[Example], *, view: View, per_candidate: bool) -> Array:
        """Return (N, C, F) float32, zero where an example has fewer candidates than the most.

        Args:
            view: `vision` sees pictures and words as bags, `text` texts alone, `joint` both teachers.
            per_candidate: multiple choice; words are then those of the answer part alone.
        """
        regions = [store for store in self._image if view != "text" and _has_boxes(store, examples)]
        most = max(len(example.candidates) for example in examples)
        chunks = []
        for start in range(0, len(examples), _CHUNK):
            chunk = examples[start : start + _CHUNK]
            rows_RF = self._rows(chunk, view, regions, per_candidate)
            padded_NCF = np.zeros((len(chunk), most, rows_RF.shape[1]), np.float32)
            counts = np.array([len(example.candidates) for example in chunk])
            padded_NCF[np.arange(most) < counts[:, None]] = rows_RF
            chunks.append(padded_NCF)
        return np.concatenate(chunks)

    def _rows(
        self, examples: Sequence[Example], view: View, regions: Sequence[FeatureStore], per_candidate: bool
    ) -> Array:
        """Return one row per candidate, in order."""
        candidates = [candidate for example in examples for candidate in example.candidates]
        blocks: list[Array] = []
        partner: Array | None = None
        if view != "vision":
            text_RD = _global_rows(self._text, [candidate.text_unit.unit_id for candidate in candidates])
            blocks.append(_project(text_RD, TEXT_DIM, "text"))
            partner = _signs_product(text_RD, SKETCH_DIM, "text interaction")
        if view == "text":
            return blocks[0]
        if partner is None:
            texts = [choice.text[choice.answer_start :] if per_candidate else choice.text for choice in candidates]
            partner = np.stack([bag_of_words(re.findall(r"\w+", text.casefold())) for text in texts])
        repeats = [len(example.candidates) for example in examples]
        global_RD = np.repeat(
            _global_rows(self._image, [example.image.unit_id for example in examples]), repeats, axis=0
        )
        pictures = [("image", global_RD)]
        if regions:
            pictures.append(("tagged boxes", _region_rows(regions, examples, tagged=True)))
            pictures.append(("other boxes", _region_rows(regions, examples, tagged=False)))
        for name, feature_RD in pictures:
            blocks.append(_project(feature_RD, IMAGE_DIM, name))
            blocks.append(_signs_product(feature_RD, SKETCH_DIM, f"{name} interaction") * partner)
        return np.concatenate(blocks, axis=1)


def bag_of_words(words: Sequence[str]) -> Array:
    """Return the sum of the words' sign vectors over the root of their number, (S,) float32; no words give zeros."""
    if not words:
        return np.zeros(SKETCH_DIM, np.float32)
    digests = [hashlib.blake2b(word.encode(), digest_size=SKETCH_DIM // 8).digest() for word in words]
    bags = np.frombuffer(b"".join(digests), np.uint8).reshape(len(words), -1)
    signs = np.unpackbits(bags, axis=1).astype(np.float32) * 2 - 1
    total: Array = signs.sum(axis=0) / np.float32(np.sqrt(len(words)))
    return total


def _global_rows(stores: Sequence[FeatureStore], ids: Sequence[str]) -> Array:
    """Return standardised global features, each store's of about unit norm, side by side; (rows, D)."""
    distinct = list(dict.fromkeys(ids))
    row_of = {unit_id: row for row, unit_id in enumerate(distinct)}
    parts = [
        _standardise(store.global_features(distinct), store.global_mean, store.global_variance) for store in stores
    ]
    return np.concatenate(parts, axis=1)[[row_of[unit_id] for unit_id in ids]]


def _region_rows(stores: Sequence[FeatureStore], examples: Sequence[Example], *, tagged: bool) -> Array:
    """Return, per candidate, the mean over the boxes that its text tags, or over those that it does not; (rows, D).

    Standardised; zeros where there are no such boxes.
    """
    rows_of = []
    for example in examples:
        for candidate in example.candidates:
            named = {tag.box for tag in candidate.tags}
            rows_of.append([box for box in range(len(example.image.boxes_R4)) if (box in named) == tagged])
    images_of = [example.image.unit_id for example in examples for _ in example.candidates]
    images = {example.image.unit_id: len(example.image.boxes_R4) for example in examples}
    starts = dict(zip(images, itertools.accumulate(images.values(), initial=0), strict=False))
    parts = []
    for store in stores:
        values_MD = np.asarray(store.token_features(list(images))[0], np.float32)
        pooled_RD = np.tile(np.asarray(store.token_mean, np.float32), (len(rows_of), 1))
        for row, (image, boxes) in enumerate(zip(images_of, rows_of, strict=True)):
            if boxes:
                pooled_RD[row] = values_MD[[starts[image] + box for box in boxes]].mean(axis=0)
        parts.append(_standardise(pooled_RD, store.token_mean, store.token_variance))
    return np.concatenate(parts, axis=1)


def _has_boxes(store: FeatureStore, examples: Sequence[Example]) -> bool:
    """Tell whether a store's tokens are boxes: every picture has as many rows as its dataset gives it boxes."""
    if not store.has_tokens:
        return False
    boxes = {example.image.unit_id: len(example.image.boxes_R4) for example in examples}
    lengths = store.token_lengths(list(boxes))
    return bool(lengths.any()) and lengths.tolist() == list(boxes.values())


def _standardise(values: npt.NDArray[np.floating], mean_D: Array, variance_D: Array) -> Array:
    scaled: Array = (np.asarray(values, np.float32) - mean_D) / np.sqrt(variance_D + 1e-6)
    return scaled / np.float32(np.sqrt(scaled.shape[1]))


def _project(values_RD: Array, width: int, name: str) -> Array:
    """Return values as they are when narrow enough, else random projections of them."""
    return (
        values_RD
        if values_RD.shape[1] <= width
        else _signs_product(values_RD, width, name) / np.float32(np.sqrt(width))
    )


def _signs_product(values_RD: Array, width: int, name: str) -> Array:
    """Multiply by a fixed matrix of random signs that depends on its name and shape alone."""
    depth = values_RD.shape[1]
    stream = hashlib.shake_256(f"{name}\0{depth}\0{width}".encode()).digest(-(-depth * width // 8))
    bits = np.unpackbits(np.frombuffer(stream, np.uint8), count=depth * width)
    product: Array = values_RD @ (bits.reshape(depth, width).astype(np.float32) * 2 - 1)
    return product
