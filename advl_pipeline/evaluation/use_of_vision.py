"""Does the student use the picture? The same items with every picture swapped for another one of the test set.

The other two probes need no other picture: the student is given one that shows nothing (`StudentBatch.blanked`), or
its text alone (`encode(..., mask_visual=True)`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from advl_pipeline.datasets.records import Candidate, Example, ImageUnit


def swapped_pictures(images: Sequence[ImageUnit], *, seed: int) -> dict[str, ImageUnit]:
    """Return, for each picture by id, another one: a random cyclic order without fixed points.

    Pictures with as many boxes are exchanged where there are any, so that object tags stay meaningful.
    """
    generator = np.random.default_rng(np.random.SeedSequence([seed, len(images)]))
    groups: dict[int, list[ImageUnit]] = {}
    for image in images:
        groups.setdefault(len(image.boxes_R4), []).append(image)
    swapped: dict[str, ImageUnit] = {}
    lonely: list[ImageUnit] = []
    for group in groups.values():
        if len(group) == 1:
            lonely += group
        else:
            swapped |= _cycle(group, generator)
    if lonely:
        others = [image for image in images if image.unit_id != lonely[0].unit_id]
        swapped |= _cycle(lonely, generator) if len(lonely) > 1 else {lonely[0].unit_id: (others or lonely)[0]}
    return swapped


def with_picture(example: Example, image: ImageUnit) -> Example:
    """Return the example on another picture; a tag of a box that the picture lacks wraps around to one it has.

    Where tags have labels, which some students turn into words, a tagged box keeps the label that the text was
    written about: the picture changes, the text does not.
    """
    num_boxes = len(image.boxes_R4)
    tagged = {tag.box % num_boxes: tag.box for candidate in example.candidates for tag in candidate.tags if num_boxes}
    labels = list(image.box_labels)
    for moved, box in tagged.items():
        if moved < len(labels) and box < len(example.image.box_labels):
            labels[moved] = example.image.box_labels[box]

    def move(candidate: Candidate) -> Candidate:
        tags = tuple(replace(tag, box=tag.box % num_boxes) for tag in candidate.tags) if num_boxes else ()
        return replace(candidate, tags=tags)

    image = replace(image, box_labels=tuple(labels))
    return replace(example, image=image, candidates=tuple(move(candidate) for candidate in example.candidates))


def _cycle(images: Sequence[ImageUnit], generator: np.random.Generator) -> dict[str, ImageUnit]:
    order = generator.permutation(len(images))
    following = np.roll(order, -1)
    return {images[a].unit_id: images[b] for a, b in zip(order.tolist(), following.tolist(), strict=True)}
