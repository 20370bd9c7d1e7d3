"""Wording of VCR's object tags: the conventions of the published models, as named styles.

A tokenised sentence is a list of words and tag lists. Tag t refers to object t of the picture, tag 10000 + t to an
object that a shortcut set has masked. Styles:

indexed    class name and number from 1, as VCR's own untokenised fields count: "person 2", "person 1 and person 3".
r2c        gender-neutral names by position among the objects that question and choices mention; others by class.
visualbert the same names by first mention, counted again in each choice; what the context named keeps its name.
vl-bert    a shorter list of names by position among the persons; "and" between the tags of one list. The original's
           counter runs on over items and so depends on worker and order; here it starts again with each item.
uniter     "person_<index>", one special token each (index from 0, at most 80); other objects by class name.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Literal

from advl_pipeline.datasets.records import Candidate, ObjectTag, text_unit

TextStyle = Literal["indexed", "r2c", "visualbert", "vl-bert", "uniter"]
Tokens = Sequence[str | list[int]]
Names = dict[int, str]
"""Object -> its name."""

MASKED_TAG = 10_000
MASK_WORD = "[MASK]"
PERSON = "person"

_R2C_NAMES = "Casey Riley Jessie Jackie Avery Jaime Peyton Kerry Jody Kendall Peyton Skyler Frankie Pat Quinn".split()
_VL_BERT_NAMES = "Casey Riley Jessie Jackie Avery Jaime Peyton Kerry Jody Kendall Frankie Pat Quinn".split()
_UNITER_LAST_PERSON = 80
_ALL_PERSONS = frozenset({"everyone", "everyones"})


def word_candidates(
    style: TextStyle, objects: Sequence[str], context: Sequence[Tokens], choices: Sequence[Tokens]
) -> tuple[Candidate, ...]:
    """Word the candidates of one item.

    Args:
        style: see the module's docstring.
        objects: class names; tags index them and must be in range.
        context: the question, or the question and the answer that a rationale is for.
        choices: the answers or rationales to choose from.
    """
    if style == "visualbert":
        history = _named_by_mention(objects, chain.from_iterable(context), {})
        names_of = [_named_by_mention(objects, choice, history) for choice in choices]
    else:
        history = _fixed_names(style, objects, context, choices)
        names_of = [history] * len(choices)
    link = "and" if style in ("vl-bert", "indexed") else ""
    parts = [_render(part, history, link) for part in context]
    before, tags_before = _joined(chain.from_iterable(parts))
    start = len(before) + 1 if before else 0
    candidates = []
    for choice, names in zip(choices, names_of, strict=True):
        text, tags = _joined(_render(choice, names, link), start)
        candidates.append(
            Candidate(
                text_unit=text_unit(" ".join(filter(None, (before, text)))),
                context_length=len(before),
                question_length=len(_joined(parts[0])[0]) if len(parts) > 1 else 0,
                tags=(*tags_before, *tags),
            )
        )
    return tuple(candidates)


def relevant_objects(objects: Sequence[str], sentences: Sequence[Tokens]) -> list[int]:
    """Return the objects that r2c keeps: the mentioned ones; all persons for "everyone" or without a mention."""
    mentioned: set[int] = set()
    persons = {index for index, name in enumerate(objects) if name == PERSON}
    for sentence in sentences:
        for token in sentence:
            if isinstance(token, list):
                mentioned.update(tag % MASKED_TAG for tag in token)
            elif token.lower() in _ALL_PERSONS:
                mentioned |= persons
    return sorted(mentioned or persons)


def _fixed_names(
    style: TextStyle, objects: Sequence[str], context: Sequence[Tokens], choices: Sequence[Tokens]
) -> Names:
    """Return the name of every object, for styles in which it does not depend on the position in the text."""
    names = dict(enumerate(objects))
    if style == "indexed":
        return {index: f"{name} {index + 1}" for index, name in names.items()}
    persons = [index for index, name in names.items() if name == PERSON]
    if style == "uniter":
        return names | {index: f"{PERSON}_{min(index, _UNITER_LAST_PERSON)}" for index in persons}
    if style == "vl-bert":
        return names | {index: _VL_BERT_NAMES[rank % len(_VL_BERT_NAMES)] for rank, index in enumerate(persons)}
    kept = relevant_objects(objects, [*context, *choices])
    # Box 0 of r2c is the full picture, so its first kept object has number 1.
    numbers = {index: number for number, index in enumerate(kept, start=1)}
    return names | {index: _R2C_NAMES[numbers[index] % len(_R2C_NAMES)] for index in persons if index in numbers}


def _named_by_mention(objects: Sequence[str], tokens: Iterable[str | list[int]], known: Mapping[int, str]) -> Names:
    """Return the known names and those of new objects in a sentence; persons are counted within the sentence."""
    names, persons = dict(known), 0
    for token in tokens:
        if isinstance(token, list):
            for tag in (tag % MASKED_TAG for tag in token):
                if tag not in names:
                    is_person = objects[tag] == PERSON
                    names[tag] = _R2C_NAMES[persons % len(_R2C_NAMES)] if is_person else objects[tag]
                    persons += is_person
    return names


def _render(tokens: Tokens, names: Mapping[int, str], link: str) -> list[tuple[str, int | None]]:
    """Return the words of a sentence, each with the object that it refers to."""
    words: list[tuple[str, int | None]] = []
    for token in tokens:
        if isinstance(token, str):
            plain = token if token.isascii() else unicodedata.normalize("NFC", token)
            words += [(word, None) for word in plain.split()]
            continue
        for position, tag in enumerate(token):
            if position and link:
                words.append((link, None))
            words.append((MASK_WORD, None) if tag >= MASKED_TAG else (names[tag], tag))
    return words


def _joined(words: Iterable[tuple[str, int | None]], start: int = 0) -> tuple[str, list[ObjectTag]]:
    """Return words joined by single spaces, and the tags of words that refer to objects, from an offset on."""
    texts, tags = [], []
    for word, box in words:
        if box is not None:
            tags.append(ObjectTag(start=start, end=start + len(word), box=box))
        texts.append(word)
        start += len(word) + 1
    return " ".join(texts), tags
