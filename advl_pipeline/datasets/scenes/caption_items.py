"""Scenes and captions for pretraining: short, template-like, plain names only, every phrase with its box."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from advl_pipeline.datasets.scenes import layout
from advl_pipeline.datasets.scenes.draws import Draws
from advl_pipeline.datasets.scenes.placement import PICTURE_SIDE, place
from advl_pipeline.datasets.scenes.plan import MAX_THINGS, MIN_THINGS
from advl_pipeline.datasets.scenes.relations import PHRASES, relation
from advl_pipeline.datasets.scenes.render import Box
from advl_pipeline.datasets.scenes.scene import Scene, Thing
from advl_pipeline.datasets.scenes.vocabulary import Vocabulary

CAPTIONS_PER_SCENE: Final = 2
_OPENINGS: Final = ("", "a picture of ", "there is ")


def plan_caption_scenes(vocabulary: Vocabulary, *, seed: int, split: str, num_scenes: int) -> Iterator[Scene]:
    """Yield caption scenes in order: two to five different kinds of the whole vocabulary, each as often as any."""
    kinds = vocabulary.kinds
    deck: list[int] = []
    for number in range(num_scenes):
        draws = Draws(seed, split, "caption scene", number)
        count = draws.between(MIN_THINGS, MAX_THINGS)
        if len(deck) < 2 * MAX_THINGS:
            deck += draws.shuffled(range(len(kinds)))
        chosen: list[int] = []
        while len(chosen) < count:
            # Where two decks meet, a kind may come up twice; it then waits for the next scene.
            position = next(index for index, kind in enumerate(deck) if kind not in chosen)
            chosen.append(deck.pop(position))
        spots = place(draws, count, lambda centres: True)
        things = tuple(Thing(kind=kinds[kind], spot=spot) for kind, spot in zip(chosen, spots, strict=True))
        yield Scene(number=number, things=things)


def caption_items(scene: Scene, boxes: Sequence[Box], *, seed: int, split: str) -> Iterator[dict[str, Any]]:
    """Yield the captions of a scene as lines of `captions/<split>.jsonl` (format: `layout.captions`)."""
    draws = Draws(seed, split, "captions", scene.number)
    order = draws.shuffled(range(len(scene.things)))
    for position, parts in enumerate((_relation_parts(scene, draws), _listing_parts(scene, order, draws))):
        caption, phrases = _join(scene, parts)
        yield {
            "caption_id": f"{split}-{scene.number}-{position}",
            "image": str(layout.caption_image(split, scene.number)),
            "width": PICTURE_SIDE,
            "height": PICTURE_SIDE,
            "boxes": [list(box) for box in boxes],
            "caption": caption,
            "phrases": phrases,
        }


def _relation_parts(scene: Scene, draws: Draws) -> list[str | int]:
    """Return a caption as strings and tags: "a cat to the left of a hammer"."""
    pairs = [
        (one, side, other)
        for one, first in enumerate(scene.centres)
        for other, second in enumerate(scene.centres)
        if one != other and (side := relation(first, second)) is not None
    ]
    if not pairs:
        one, other = draws.some(range(len(scene.things)), 2)
        return [one, " next to ", other]
    one, side, other = draws.pick(pairs)
    return [one, f" {PHRASES[side]} ", other]


def _listing_parts(scene: Scene, order: Sequence[int], draws: Draws) -> list[str | int]:
    """Return a caption as strings and tags: "a picture of a cat, a bee and a hammer"."""
    parts: list[str | int] = [draws.pick(_OPENINGS)]
    for position, thing in enumerate(order):
        if position:
            parts.append(" and " if position == len(order) - 1 else ", ")
        parts.append(thing)
    return parts


def _join(scene: Scene, parts: Sequence[str | int]) -> tuple[str, list[dict[str, int]]]:
    caption = ""
    phrases: list[dict[str, int]] = []
    for part in parts:
        if isinstance(part, str):
            caption += part
            continue
        kind = scene.things[part].kind
        caption += f"{kind.article} "
        phrases.append({"start": len(caption), "end": len(caption) + len(kind.name), "box": part})
        caption += kind.name
    return caption, phrases
