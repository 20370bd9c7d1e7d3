"""Questions, answers and rationales in the format of VCR.

Four questions share one set of four answers, each right once and wrong three times. So no answer-only model can beat
chance, and as question and answers reveal nothing about the picture, neither can a text-only model. All four have
the same style: plain names, categories, or descriptions, and a question names an aspect only if all four answers are
of that aspect. A pair of twins gives such a set with its subjects and partners; a set of categories uses one role of
each family of a group, since twins share their families. The four rationales combine two facts, each true or false
independently, and the right answer reveals neither.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal

from advl_data.scenes.generator import paths
from advl_data.scenes.generator.draws import Draws
from advl_data.scenes.generator.placing import INVERSE, PHRASES
from advl_data.scenes.generator.render import Box
from advl_data.scenes.generator.scene_plan import Group, TaskScene
from advl_data.scenes.generator.vocabulary import (
    ASPECTS,
    Aspect,
    Kind,
    Manner,
    Voice,
    capitalised,
    draw_manner,
    indefinite,
)

OBJECT_CLASS: Final = "object"
NUM_CHOICES: Final = 4

Topic = Literal["name", "category", "mixed", "does", "used_for", "met", "looks", "belongs"]
"""Style of the four answers of a set: plain names, categories, descriptions of any aspect, or of one aspect."""

AnswerStyle = Literal["name", "category", "described"]

_QUESTIONS: Final[Mapping[Topic, tuple[str, ...]]] = {
    "name": ("What is {it} ?", "What is {it} called ?", "What do people call {it} ?"),
    "category": ("What kind of thing is {it} ?", "What sort of thing is {it} ?"),
    "mixed": ("What is true of {it} ?", "Which of these is true of {it} ?", "What can one say about {it} ?"),
    "does": ("What does {it} do ?", "What is {it} known to do ?"),
    "used_for": ("What is {it} good for ?", "What use do people have for {it} ?"),
    "met": ("Where or when does one meet {it} ?", "Where or when would one come across {it} ?"),
    "looks": ("What is {it} like to look at , hear or touch ?", "By what does one recognise {it} ?"),
    "belongs": ("What goes with {it} ?", "What does {it} bring to mind ?"),
}
_NAMES: Final = ("It is {noun} .", "{noun} .", "That is {noun} .")
_DESCRIPTIONS: Final = ("It {d} .", "This one {d} .", "A thing that {d} .")
_TAG_RATIONALES: Final[tuple[str, ...]] = (
    "{it} is {phrase} {neighbour} .",
    "There is something {phrase} {neighbour} , and that is {it} .",
    "{it} is {noun} , and it is {phrase} {neighbour} .",
    "I see {noun} {phrase} {neighbour} .",
)
_RELATION_RATIONALES: Final[tuple[str, ...]] = (
    "{it} is {reference} , and {neighbour} is on its other side .",
    "{reference} , which is {it} , stands between it and {neighbour} .",
    "{noun} is next to {it} , which is {reference} , and {neighbour} is there too .",
)

_GROUPS_PER_CATEGORY: Final = 10
"""One in this many groups has questions about categories."""

_SETS_PER_MIXED: Final = 3
"""One in this many described sets mixes aspects, so that students know the question that fits any description."""

_TAG: Final = re.compile(r"\[(\d+)\]")


_Asked = tuple[TaskScene, TaskScene, Kind]
"""A question of a set: its scene, the scene's twin, and the kind that it is about."""


def vcr_items(groups: Sequence[Group], voice: Voice, *, other_families: int = 0) -> Iterator[dict[str, Any]]:
    """Yield the lines of a split's JSONL file.

    Besides the official fields each line has `answer_style`, and `question_type`: the topic of the answers, or for a
    question by relation "relation" and the style of its answers.

    Args:
        groups: groups of the split.
        voice: wording of the texts.
        other_families: percentage of groups with wrong answers from other families than the right one, as questions
            about categories always have.
    """
    number = 0
    for group in groups:
        draws = voice.draws("vcr", group.number)
        for topic, asked in _sets(group, draws, other_families):
            # One wording for all four questions, so that they only differ in tags and sides.
            asked_for: Topic = "mixed" if topic in ASPECTS and voice.phrasing == "held-out" else topic
            wording = draws.pick(_QUESTIONS[asked_for])
            style: AnswerStyle = topic if topic in ("name", "category") else "described"
            texts = [(_answer(target, topic, voice, draws), target.code) for _, _, target in asked]
            for task, twin, target in asked:
                scene, reference = task.scene, task.reference
                # The question refers to its subject by tag, or by the side of the reference.
                it = f"[{scene.index(reference or target)}]"
                if reference is not None:
                    it = f"the thing {PHRASES[task.side(target, reference)]} {it}"
                question = capitalised(wording.format(it=it))
                # Texts, and whether they are right.
                answers = [(text, code == target.code) for text, code in draws.shuffled(texts)]
                rationales = draws.shuffled(_rationales(task, twin, target, voice, draws))
                answer_label = [right for _, right in answers].index(True)
                rationale_label = [right for _, right in rationales].index(True)
                yield {
                    "movie": paths.vcr_movie(voice.split),
                    "objects": [OBJECT_CLASS] * len(scene.things),
                    "interesting_scores": [0],
                    "answer_likelihood": "likely",
                    "img_fn": str(paths.vcr_image(voice.split, scene.number)),
                    "metadata_fn": str(paths.vcr_metadata(voice.split, scene.number)),
                    "answer_orig": _untokenised(answers[answer_label][0]),
                    "question_orig": _untokenised(question),
                    "rationale_orig": _untokenised(rationales[rationale_label][0]),
                    "question": tokens(question),
                    "answer_match_iter": draws.shuffled(range(NUM_CHOICES)),
                    "answer_sources": [number] * NUM_CHOICES,
                    "answer_choices": [tokens(text) for text, _ in answers],
                    "answer_label": answer_label,
                    "rationale_choices": [tokens(text) for text, _ in rationales],
                    "rationale_sources": [number] * NUM_CHOICES,
                    "rationale_match_iter": draws.shuffled(range(NUM_CHOICES)),
                    "rationale_label": rationale_label,
                    "img_id": f"{voice.split}-{scene.number}",
                    "question_number": number,
                    "annot_id": f"{voice.split}-{number}",
                    "match_fold": f"{voice.split}-0",
                    "match_index": number,
                    "question_type": topic if reference is None else f"relation {style}",
                    "answer_style": style,
                }
                number += 1


def metadata(boxes: Sequence[Box], *, width: int, height: int) -> dict[str, Any]:
    """Return a picture's metadata: one name, box (with a score) and polygon per thing."""
    return {
        "names": [OBJECT_CLASS] * len(boxes),
        "boxes": [[*map(float, box), 1.0] for box in boxes],
        "segms": [[[[x1, y1], [x2, y1], [x2, y2], [x1, y2]]] for x1, y1, x2, y2 in boxes],
        "width": width,
        "height": height,
    }


def tokens(text: str) -> list[str | list[int]]:
    """Split a sentence into VCR tokens: words, punctuation, the "'s" of a possessive, and lists of tags for `[3]`."""
    spaced = re.sub(r"(?<=\w)(?=[,;:]|'s\b)", " ", text)
    return [[int(match[1])] if (match := _TAG.fullmatch(word)) else word for word in spaced.split()]


def _sets(group: Group, draws: Draws, other_families: int) -> Iterator[tuple[Topic, list[_Asked]]]:
    """Yield two sets of four questions, with the topic of their answers."""
    are_categories = draws.below(_GROUPS_PER_CATEGORY) == 0
    if are_categories or (other_families and draws.below(100) < other_families):
        # Each set uses the subject of one twin and the partner of the other, so that it has four families.
        choices = [draws.shuffled(twins.scenes) for twins in (group.first_pair, group.second_pair)]
        for order in range(2):
            asked: list[_Asked] = []
            for scenes in choices:
                task, twin = scenes[order], scenes[1 - order]
                asked += [(task, twin, task.subject), (twin, task, twin.partner)]
            yield "category" if are_categories else _topic(asked, draws), asked
        return
    for twins in (group.first_pair, group.second_pair):
        asked = [(task, twins.twin(task), target) for task in twins.scenes for target in (task.subject, task.partner)]
        yield _topic(asked, draws), asked


def _topic(asked: Sequence[_Asked], draws: Draws) -> Topic:
    """Draw the style of a set's answers: names, or descriptions."""
    if draw_manner(draws) == "name":
        return "name"
    known = [{description.aspect for description in target.descriptions} for _, _, target in asked]
    shared = [aspect for aspect in ASPECTS if all(aspect in aspects for aspects in known)]
    return "mixed" if draws.below(_SETS_PER_MIXED) == 0 or not shared else draws.pick(shared)


def _answer(kind: Kind, topic: Topic, voice: Voice, draws: Draws) -> str:
    if topic == "name" or topic == "category":
        noun_phrase = kind.noun_phrase if topic == "name" else indefinite(kind.family.hypernym)
        return capitalised(draws.pick(_NAMES).format(noun=noun_phrase))
    aspect: Aspect | None = None if topic == "mixed" else topic
    template = draws.pick(_DESCRIPTIONS)
    return template.format(d=voice.description(kind, draws, aspect))


def _rationales(task: TaskScene, twin: TaskScene, target: Kind, voice: Voice, draws: Draws) -> list[tuple[str, bool]]:
    """Return four rationales, the right one first: two facts, each true or false."""
    neighbours = (task.partner, twin.partner) if target == task.subject else (task.subject, twin.subject)
    manner: Manner = draws.pick(("name", "described"))
    called = [voice.definite(kind, manner, draws) for kind in neighbours]
    if task.reference is None or twin.reference is None:
        side, pointed_at, templates = task.side(target, neighbours[0]), target, _TAG_RATIONALES
        facts = [({"phrase": PHRASES[claimed]}, claimed == side) for claimed in (side, INVERSE[side])]
    else:
        pointed_at, templates = task.reference, _RELATION_RATIONALES
        facts = [
            ({"reference": reference.noun_phrase}, reference == task.reference)
            for reference in (task.reference, twin.reference)
        ]
    template, it = draws.pick(templates), f"[{task.scene.index(pointed_at)}]"
    return [
        (
            capitalised(template.format(it=it, noun=target.noun_phrase, neighbour=neighbour, **fact)),
            is_true and neighbour == called[0],
        )
        for fact, is_true in facts
        for neighbour in called
    ]


def _untokenised(text: str) -> str:
    """Return a sentence as typed by its author: tags count from 1, no space before punctuation."""
    return re.sub(r" ([.,:?])", r"\1", _TAG.sub(lambda match: str(int(match[1]) + 1), text))
