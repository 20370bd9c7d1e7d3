"""Scenes and captions for pretraining: short templates with plain names only, every phrase with its box.

Their vocabulary is limited, like that of real captions: a kind that is not `named` appears as its family's hypernym
in half of its pictures ("a mammal to the left of a hammer"), and is not mentioned in the other half.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from advl_data.scenes.generator import paths
from advl_data.scenes.generator.draws import Draws
from advl_data.scenes.generator.placing import PHRASES, PICTURE_SIDE, place, relation
from advl_data.scenes.generator.render import Box
from advl_data.scenes.generator.scene_plan import MAX_THINGS, MIN_THINGS, Scene, Thing
from advl_data.scenes.generator.vocabulary import Kind, Vocabulary, indefinite

_OPENINGS: Final = ("", "a picture of ", "there is ", "this is ", "it is ", "that is ")


def plan_caption_scenes(vocabulary: Vocabulary, *, seed: int, split: str, num_scenes: int) -> Iterator[Scene]:
    """Yield caption scenes in order: two to five different kinds of the vocabulary, all equally often.

    At least two kinds of a scene are named, and an unnamed kind is the only one of its family in a scene.
    """
    deck: list[Kind] = []
    for number in range(num_scenes):
        draws = Draws(seed, split, "caption scene", number)
        count = draws.between(MIN_THINGS, MAX_THINGS)
        chosen: list[Kind] = []
        while len(chosen) < count:
            # Kinds that do not fit wait for the next scene; where two decks meet, a kind may come up twice.
            position = next((index for index, kind in enumerate(deck) if _fits(kind, chosen, count)), None)
            if position is None:
                deck += draws.shuffled(vocabulary.kinds)
            else:
                chosen.append(deck.pop(position))
        spots = place(draws, count, lambda centres: True)
        things = tuple(Thing(kind=kind, spot=spot) for kind, spot in zip(chosen, spots, strict=True))
        yield Scene(number=number, things=things)


def _fits(kind: Kind, chosen: Sequence[Kind], count: int) -> bool:
    """Return whether a kind may join a caption scene: "a mammal" must refer to its only mammal."""
    num_unnamed = sum(not other.named for other in chosen)
    if not kind.named and num_unnamed == count - MIN_THINGS:
        return False
    kin = [other for other in chosen if other.family == kind.family]
    return all(kind.code != other.code and kind.named and other.named for other in kin)


def caption_items(scene: Scene, boxes: Sequence[Box], *, seed: int, split: str) -> Iterator[dict[str, Any]]:
    """Yield the captions of a scene as lines of `captions/<split>.jsonl` (format: `paths.captions`).

    One caption gives the relation of two things, the other lists all; both may leave out an unnamed kind.
    """
    draws = Draws(seed, split, "captions", scene.number)
    calls = {}
    for tag, thing in enumerate(scene.things):
        if thing.kind.named:
            calls[tag] = thing.kind.noun_phrase
        elif draws.below(2):
            calls[tag] = indefinite(thing.kind.family.hypernym)
    order = draws.shuffled(list(calls))
    # "a cat to the left of a hammer"; numbers are tags.
    pairs = [
        (subject, side, other)
        for subject in order
        for other in order
        if subject != other and (side := relation(scene.centres[subject], scene.centres[other])) is not None
    ]
    if pairs:
        subject, side, other = draws.pick(pairs)
        related: list[str | int] = [subject, f" {PHRASES[side]} ", other]
    else:
        subject, other = draws.shuffled(order)[:2]
        related = [subject, " next to ", other]
    # "a picture of a cat, a bee and a hammer"
    listed: list[str | int] = [draws.pick(_OPENINGS)]
    for position, tag in enumerate(order):
        if position:
            listed.append(" and " if position == len(order) - 1 else ", ")
        listed.append(tag)
    if draws.below(2):
        listed.append(" .")
    for position, parts in enumerate((related, listed)):
        caption = ""
        phrases: list[dict[str, int]] = []
        for part in parts:
            if isinstance(part, str):
                caption += part
                continue
            article, _, noun = calls[part].partition(" ")
            start = len(caption) + len(article) + 1
            caption += f"{article} {noun}"
            phrases.append({"start": start, "end": len(caption), "box": part})
        yield {
            "caption_id": f"{split}-{scene.number}-{position}",
            "image": str(paths.caption_image(split, scene.number)),
            "width": PICTURE_SIDE,
            "height": PICTURE_SIDE,
            "boxes": [list(box) for box in boxes],
            "caption": caption,
            "phrases": phrases,
        }
