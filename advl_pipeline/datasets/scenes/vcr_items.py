"""Questions, answers and rationales in the format of VCR.

A pair of twins gives four questions with one set of four answers: descriptions of both subjects and both partners.
All four speak alike: by keywords, or by plain names. Each answer is right once and wrong three times, so no model of
the answers alone can beat chance, and as question and answers say nothing about the picture, neither can one that
reads both. Of the four rationales two facts are true or false independently, and the right answer says nothing about
either.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

from advl_pipeline.datasets.scenes import layout
from advl_pipeline.datasets.scenes.draws import Draws
from advl_pipeline.datasets.scenes.relations import INVERSE, PHRASES
from advl_pipeline.datasets.scenes.render import Box
from advl_pipeline.datasets.scenes.scene import Group, TaskScene, Twins
from advl_pipeline.datasets.scenes.vocabulary import Kind
from advl_pipeline.datasets.scenes.wording import Voice, describe

OBJECT_CLASS: Final = "object"
NUM_CHOICES: Final = 4

_TAG_QUESTIONS: Final = (
    "What is {it} ?",
    "What describes {it} ?",
    "What is {it} good for ?",
    "What does {it} make one think of ?",
)
_RELATION_QUESTIONS: Final = (
    "What is {phrase} {it} ?",
    "What describes the thing {phrase} {it} ?",
    "What is there {phrase} {it} ?",
)
_ANSWERS: Final = (
    "It goes with {a} and {b} .",
    "Something for {a} and {b} .",
    "People link it with {a} and {b} .",
    "{a} , {b} and the like .",
    "{hypernym_phrase} : think of {a} and {b} .",
)
_PLAIN_ANSWERS: Final = (
    "It is {own} .",
    "{own} .",
    "That is {own} .",
)
_PLAIN_SETS: Final = 2
_SETS: Final = 5
"""So many sets of answers in so many name kinds plainly: what a student that knows captions alone can answer."""

_TAG_RATIONALES: Final = (
    "{it} is {phrase} {neighbour} .",
    "There is something {phrase} {neighbour} , and that is {it} .",
    "{it} is {own} , and it is {phrase} {neighbour} .",
    "I see {own} {phrase} {neighbour} .",
)
_RELATION_RATIONALES: Final = (
    "{it} is {reference} , and {neighbour} is on its other side .",
    "{reference} , which is {it} , stands between it and {neighbour} .",
    "{own} is next to {it} , which is {reference} , and {neighbour} is there too .",
)
_TAG: Final = re.compile(r"\[(\d+)\]")


def vcr_items(groups: Sequence[Group], voice: Voice) -> Iterator[dict[str, Any]]:
    """Yield the lines of a split's JSONL file.

    Besides the official fields each line has `question_type`: "tag" or "relation".
    """
    number = 0
    for group in groups:
        for order, twins in enumerate((group.one, group.two)):
            draws = voice.draws("vcr", group.number, order)
            for item in _twin_items(twins, draws):
                yield _record(item, split=voice.split, number=number, draws=draws)
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
    """Split a sentence into VCR tokens: words, and lists of tags for `[3]`."""
    return [[int(match[1])] if (match := _TAG.fullmatch(word)) else word for word in text.split()]


def _twin_items(twins: Twins, draws: Draws) -> Iterator[dict[str, Any]]:
    cast = [kind for task in twins.scenes for kind in (task.subject, task.partner)]
    plain = draws.below(_SETS) < _PLAIN_SETS
    answers = {kind.code: _answer(kind, twins.rivals, draws, plain=plain) for kind in cast}
    questions = _RELATION_QUESTIONS if twins.relational else _TAG_QUESTIONS
    # One wording for each part, so that the twins' questions differ in their tags alone.
    wordings = (draws.pick(questions), draws.pick(questions))
    for task, other in (twins.scenes, twins.scenes[::-1]):
        for target, wording in zip((task.subject, task.partner), wordings, strict=True):
            yield {
                "scene": task,
                "question": _question(task, target, wording),
                "answers": [(answer, code == target.code) for code, answer in draws.shuffled(list(answers.items()))],
                "rationales": draws.shuffled(_rationales(task, other, target, twins.rivals, draws)),
                "question_type": "relation" if twins.relational else "tag",
            }


def _answer(kind: Kind, rivals: Sequence[Kind], draws: Draws, *, plain: bool) -> str:
    if plain:
        return draws.pick(_PLAIN_ANSWERS).format(own=kind.noun_phrase)
    return describe(kind, rivals, draws).fill(draws.pick(_ANSWERS))


def _question(task: TaskScene, target: Kind, wording: str) -> str:
    if task.reference is None:
        return wording.format(it=f"[{task.scene.index(target)}]")
    side = task.side(target, task.reference)
    return wording.format(it=f"[{task.scene.index(task.reference)}]", phrase=PHRASES[side])


def _rationales(
    task: TaskScene, other: TaskScene, target: Kind, rivals: Sequence[Kind], draws: Draws
) -> list[tuple[str, bool]]:
    """Return four rationales, the right one first: two facts, each true or false."""
    true_neighbour, false_neighbour = (
        (task.partner, other.partner) if target.code == task.subject.code else (task.subject, other.subject)
    )
    neighbours = _name_alike(true_neighbour, false_neighbour, rivals, draws)
    if task.reference is None or other.reference is None:
        side = task.side(target, true_neighbour)
        template = draws.pick(_TAG_RATIONALES)
        return [
            (
                template.format(
                    it=f"[{task.scene.index(target)}]",
                    own=target.noun_phrase,
                    phrase=PHRASES[claimed],
                    neighbour=neighbour,
                ),
                claimed == side and neighbour == neighbours[0],
            )
            for claimed in (side, INVERSE[side])
            for neighbour in neighbours
        ]
    template = draws.pick(_RELATION_RATIONALES)
    references = (task.reference, other.reference)
    return [
        (
            template.format(
                it=f"[{task.scene.index(task.reference)}]",
                own=target.noun_phrase,
                reference=reference.noun_phrase,
                neighbour=neighbour,
            ),
            reference.code == references[0].code and neighbour == neighbours[0],
        )
        for reference in references
        for neighbour in neighbours
    ]


def _name_alike(true: Kind, false: Kind, rivals: Sequence[Kind], draws: Draws) -> tuple[str, str]:
    """Name two kinds in the same manner: plainly, or both by keywords."""
    if draws.below(2):
        return f"the {true.name}", f"the {false.name}"
    template = draws.pick(("what goes with {a} and {b}", "the thing for {a} and {b}"))
    return describe(true, rivals, draws).fill(template), describe(false, rivals, draws).fill(template)


def _record(item: dict[str, Any], *, split: str, number: int, draws: Draws) -> dict[str, Any]:
    task: TaskScene = item["scene"]
    answers, rationales = item["answers"], item["rationales"]
    answer_label = [right for _, right in answers].index(True)
    rationale_label = [right for _, right in rationales].index(True)
    identity = f"{split}-{number}"
    return {
        "movie": layout.vcr_movie(split),
        "objects": [OBJECT_CLASS] * len(task.scene.things),
        "interesting_scores": [0],
        "answer_likelihood": "likely",
        "img_fn": str(layout.vcr_image(split, task.scene.number)),
        "metadata_fn": str(layout.vcr_metadata(split, task.scene.number)),
        "answer_orig": _untokenised(answers[answer_label][0]),
        "question_orig": _untokenised(item["question"]),
        "rationale_orig": _untokenised(rationales[rationale_label][0]),
        "question": tokens(item["question"]),
        "answer_match_iter": draws.shuffled(range(NUM_CHOICES)),
        "answer_sources": [number] * NUM_CHOICES,
        "answer_choices": [tokens(text) for text, _ in answers],
        "answer_label": answer_label,
        "rationale_choices": [tokens(text) for text, _ in rationales],
        "rationale_sources": [number] * NUM_CHOICES,
        "rationale_match_iter": draws.shuffled(range(NUM_CHOICES)),
        "rationale_label": rationale_label,
        "img_id": f"{split}-{task.scene.number}",
        "question_number": number,
        "annot_id": identity,
        "match_fold": f"{split}-0",
        "match_index": number,
        "question_type": item["question_type"],
    }


def _untokenised(text: str) -> str:
    """Return a sentence as its writer typed it: tags count from 1, no space before punctuation."""
    return re.sub(r" ([.,:?])", r"\1", _TAG.sub(lambda match: str(int(match[1]) + 1), text))
