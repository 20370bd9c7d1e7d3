"""Boxes in the text: "Why is [the dog|0] running?" says that the words "the dog" stand for box 0.

Only rows that have boxes are read so; elsewhere a bracket is a bracket.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from advl_pipeline.datasets.problems import Malformed
from advl_pipeline.datasets.records import Candidate, ObjectTag, normalise_text, text_unit

_TAG = re.compile(r"\[([^\[\]|]*[^\[\]|\s][^\[\]|]*)\|(\d+)\]")


def parse_tagged(text: str, num_boxes: int) -> tuple[str, tuple[ObjectTag, ...]]:
    """Return a text in normal form without the marks of its tags, and the tags.

    Raises:
        Malformed: a tag names a box that the row does not have.
    """
    normal = normalise_text(text)
    if not num_boxes:
        return normal, ()
    plain, tags, end = "", [], 0
    for found in _TAG.finditer(normal):
        words, box = found[1].strip(), int(found[2])
        if box >= num_boxes:
            raise Malformed(f"tag {found[0]!r} names box {box}, the row has {num_boxes} (counted from 0)")
        plain += normal[end : found.start()]
        tags.append(ObjectTag(start=len(plain), end=len(plain) + len(words), box=box))
        plain, end = plain + words, found.end()
    plain += normal[end:]
    if normalise_text(plain) != plain:
        raise Malformed(f"a tag of {text!r} parts a letter from its accent")
    return plain, tuple(tags)


def compose(context: Sequence[str], choice: str, num_boxes: int) -> Candidate:
    """Join the question, the answer that a rationale is for if there is one, and a choice, each with its tags."""
    pieces: list[str] = []
    tags: list[ObjectTag] = []
    ends: list[int] = []
    position = 0
    for text in (*context, choice):
        plain, found = parse_tagged(text, num_boxes)
        tags += [replace(tag, start=tag.start + position, end=tag.end + position) for tag in found]
        pieces.append(plain)
        ends.append(position + len(plain))
        position = ends[-1] + 1
    return Candidate(
        text_unit=text_unit(" ".join(pieces)),
        context_length=ends[-2] if context else 0,
        question_length=ends[0] if len(context) > 1 else 0,
        tags=tuple(tags),
    )
