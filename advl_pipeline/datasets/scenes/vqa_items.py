"""Questions and ten answers in the format of VQA v2.

Yes/no questions are asked in both scenes of a pair of twins and are true in one of them. Numbers and other answers
are chosen so that, per question type, the answers come up equally often.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from advl_pipeline.datasets.scenes import layout
from advl_pipeline.datasets.scenes.draws import Draws
from advl_pipeline.datasets.scenes.relations import (
    ALONG,
    INVERSE,
    PHRASES,
    Relation,
    only_one,
    outermost,
)
from advl_pipeline.datasets.scenes.scene import Group, TaskScene, Twins
from advl_pipeline.datasets.scenes.vocabulary import Kind
from advl_pipeline.datasets.scenes.wording import Voice, describe

NUM_ANSWERS: Final = 10
QUESTIONS_PER_IMAGE: Final = 1000
"""question_id = image_id * QUESTIONS_PER_IMAGE + position, as in the official files."""

COUNTED_GROUPS: Final = ("animals", "foods")
_THINGS: Final = "things"

_EXTREMES: Final[dict[Relation, str]] = {
    "left": "furthest to the left",
    "right": "furthest to the right",
    "above": "at the top",
    "below": "at the bottom",
}
_IS_THERE: Final = ("Is there {something}?", "Is there {something} in the picture?")
_HOW_MANY: Final = ("How many {what} are there?", "How many {what} are in the picture?")
_WHAT_KIND: Final = ("What kind of thing is {place}?", "What sort of thing is {place}?")
_WHAT: Final = ("What is {place}?", "What is the thing {place}?")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Question:
    text: str
    question_type: str
    answer_type: str
    answer: str
    alternatives: tuple[str, ...] = ()
    """What some of the ten people say instead."""


def vqa_items(
    groups: Sequence[Group], voice: Voice, *, plain_answers: bool
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the lists `questions` and `annotations` of a split's two files.

    Args:
        groups: the plan.
        voice: names draws and pictures.
        plain_answers: ask for plain names too; not where no training answer could hold them.
    """
    used: Counter[tuple[str, str]] = Counter()
    questions: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for group in groups:
        for order, twins in enumerate((group.one, group.two)):
            draws = voice.draws("vqa", group.number, order)
            for task, asked in _twin_questions(twins, draws, used, plain_answers):
                image_id = layout.picture_number(voice.split, task.scene.number)
                for position, question in enumerate(asked):
                    question_id = image_id * QUESTIONS_PER_IMAGE + position
                    questions.append({"image_id": image_id, "question": question.text, "question_id": question_id})
                    annotations.append(_annotation(question, image_id, question_id, draws))
    return questions, annotations


def header(split: str, *, questions: bool) -> dict[str, Any]:
    """Return the fields around the list in a questions or annotations file."""
    common = {
        "info": {
            "description": "Scenes, the built-in corpus of ADVL, in the format of VQA v2.",
            "url": "",
            "version": "1.0",
            "year": 2026,
            "contributor": "ADVL",
            "date_created": "",
        },
        "license": {"name": "Artwork: CC BY 4.0 and CC BY-SA 4.0, see ATTRIBUTION.md", "url": ""},
        "data_subtype": layout.vqa_subtype(split),
        "data_type": "mscoco",
    }
    return common | {"task_type": "Open-Ended"} if questions else common


def _twin_questions(
    twins: Twins, draws: Draws, used: Counter[tuple[str, str]], plain_answers: bool
) -> Iterator[tuple[TaskScene, list[_Question]]]:
    rivals = twins.rivals
    shared = [
        (kind, draws.pick(_IS_THERE).format(something=describe(kind, rivals, draws).something(draws)))
        for task in twins.scenes
        for kind in (task.subject, task.partner)
    ]
    # Subject or partner, the same choice in both scenes: each question is asked twice and true once.
    part = draws.below(2)
    for task in twins.scenes:
        own = {thing.kind.code for thing in task.scene.things}
        asked = [
            _Question(
                text=text,
                question_type="is there",
                answer_type="yes/no",
                answer="yes" if kind.code in own else "no",
            )
            for kind, text in shared[part::2]
        ]
        asked.append(_which_side(task, rivals, draws, used))
        asked.append(_how_many(task, draws, used))
        asked.extend(_what(task, rivals, draws, used, plain_answers))
        yield task, asked


def _which_side(task: TaskScene, rivals: Sequence[Kind], draws: Draws, used: Counter[tuple[str, str]]) -> _Question:
    side = task.side(task.subject, task.partner)
    answer = _rarest(("yes", "no"), "is the", draws, used)
    phrase = PHRASES[side if answer == "yes" else INVERSE[side]]
    subject = f"the {task.subject.name}" if draws.below(2) else describe(task.subject, rivals, draws).definite(draws)
    return _Question(
        text=f"Is {subject} {phrase} the {task.partner.name}?",
        question_type="is the",
        answer_type="yes/no",
        answer=answer,
    )


def _how_many(task: TaskScene, draws: Draws, used: Counter[tuple[str, str]]) -> _Question:
    counts = {group: sum(thing.kind.family.group == group for thing in task.scene.things) for group in COUNTED_GROUPS}
    counts[_THINGS] = len(task.scene.things)
    options = [(group, str(count)) for group, count in counts.items()]
    group, answer = min(draws.shuffled(options), key=lambda option: used[option])
    used[group, answer] += 1
    near = tuple(str(value) for value in (int(answer) - 1, int(answer) + 1) if value >= 0)
    return _Question(
        text=draws.pick(_HOW_MANY).format(what=group),
        question_type="how many",
        answer_type="number",
        answer=answer,
        alternatives=near,
    )


def _what(
    task: TaskScene, rivals: Sequence[Kind], draws: Draws, used: Counter[tuple[str, str]], plain_answers: bool
) -> Iterator[_Question]:
    places = _places(task, rivals, draws)
    if not places:
        return
    hypernyms = {kind.family.hypernym.lower(): (kind, place) for kind, place in draws.shuffled(places)}
    answer = _rarest(tuple(hypernyms), "what kind of", draws, used)
    kind, place = hypernyms[answer]
    yield _Question(
        text=draws.pick(_WHAT_KIND).format(place=place),
        question_type="what kind of",
        answer_type="other",
        answer=answer,
        alternatives=(kind.family.plural.lower(), kind.name),
    )
    if plain_answers:
        names = {kind.name: (kind, place) for kind, place in draws.shuffled(places)}
        answer = _rarest(tuple(names), "what is", draws, used)
        kind, place = names[answer]
        yield _Question(
            text=draws.pick(_WHAT).format(place=place),
            question_type="what is",
            answer_type="other",
            answer=answer,
            alternatives=(kind.family.hypernym.lower(), kind.keywords[0]),
        )


def _places(task: TaskScene, rivals: Sequence[Kind], draws: Draws) -> list[tuple[Kind, str]]:
    """Return things with a phrase that says where each is, and that no other thing fits."""
    things, centres = task.scene.things, task.scene.centres
    asked = [index for index, thing in enumerate(things) if thing.kind != task.container]
    places: list[tuple[Kind, str]] = []
    for side in ALONG[task.axis]:
        extreme = outermost(side, centres, asked)
        if extreme is not None:
            places.append((things[extreme].kind, _EXTREMES[side]))
        for target in asked:
            for reference in asked:
                if target != reference and only_one(target, reference, side, centres):
                    kind = things[reference].kind
                    told = kind in (task.subject, task.partner) and draws.below(2)
                    name = describe(kind, rivals, draws).definite(draws) if told else f"the {kind.name}"
                    places.append((things[target].kind, f"{PHRASES[side]} {name}"))
    return places


def _rarest(options: Sequence[str], question_type: str, draws: Draws, used: Counter[tuple[str, str]]) -> str:
    answer = min(draws.shuffled(options), key=lambda option: used[question_type, option])
    used[question_type, answer] += 1
    return answer


def _annotation(question: _Question, image_id: int, question_id: int, draws: Draws) -> dict[str, Any]:
    dissent = draws.below(4) if question.alternatives else 0
    given = [(draws.pick(question.alternatives), "maybe") for _ in range(dissent)]
    given += [(question.answer, "yes")] * (NUM_ANSWERS - dissent)
    return {
        "question_type": question.question_type,
        "multiple_choice_answer": question.answer,
        "answers": [
            {"answer": answer, "answer_confidence": confidence, "answer_id": position}
            for position, (answer, confidence) in enumerate(draws.shuffled(given), start=1)
        ],
        "image_id": image_id,
        "answer_type": question.answer_type,
        "question_id": question_id,
    }
