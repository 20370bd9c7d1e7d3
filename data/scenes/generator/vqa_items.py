"""Questions and ten answers in the format of VQA v2, with few answers that are each right many times.

Yes/no questions on the presence of a thing are paired with two pictures and are true for one of them. All other
answers are balanced per question type, within the limits of the pictures. Most questions ask whether a thing is
present, or where it is, by name or description, so that the answer depends on word meaning. VQA has no boxes as
answers, so questions ask for the place. One in five asks for the thing at a place, a relation, or a number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Final

from advl_data.scenes.generator import paths
from advl_data.scenes.generator.draws import Draws
from advl_data.scenes.generator.placing import (
    ALONG,
    INVERSE,
    PHRASES,
    PICTURE_SIDE,
    RELATIONS,
    Relation,
    is_unique,
    outermost,
    relation,
)
from advl_data.scenes.generator.scene_plan import Group, TaskScene, Twins
from advl_data.scenes.generator.vocabulary import Kind, Voice, draw_manner, indefinite

NUM_ANSWERS: Final = 10
QUESTIONS_PER_IMAGE: Final = 1000
"""question_id = image_id * QUESTIONS_PER_IMAGE + position, as in the official files."""

COUNTED_GROUPS: Final = ("animals", "foods")
_THINGS: Final = "things"

_SIDES: Final[Mapping[Relation, str]] = {"left": "left", "right": "right", "above": "top", "below": "bottom"}
"""Relation to the middle of the picture -> answer."""

_EXTREMES: Final[Mapping[Relation, str]] = {
    "left": "furthest to the left",
    "right": "furthest to the right",
    "above": "nearest to the top",
    "below": "nearest to the bottom",
}
_OFF_CENTRE: Final = 32
"""Minimum pixels between the middle of the picture and a thing at one of its sides."""

QUALITIES: Final[Mapping[str, str]] = {
    "animals": "an animal",
    "foods": "something to eat or drink",
    "vehicles": "a vehicle",
}
"""Group -> property of all its members."""

_ARGUABLE: Final[Mapping[str, tuple[str, ...]]] = {"foods": ("plants",), "vehicles": ("sports things",)}
"""Group -> groups with arguable membership ("sled", "mushroom"), for which the question is not asked."""

_THINGS_WHERE: Final = 3
"""Maximum number of things per picture in questions for their place."""
_TIMES_WHERE: Final = 2
"""Number of such questions per thing, each by name or by another description."""

_IS_THERE: Final = ("Is there {something}?", "Can you see {something}?", "Does the picture show {something}?")
_WHERE: Final = ("Where is {thing}?", "Where in the picture is {thing}?", "On which side of the picture is {thing}?")
_IS_A: Final = "Is the thing {place} {quality}?"
_HOW_MANY: Final = ("How many {what} are there?", "How many {what} are in the picture?")
_WHAT_KIND: Final = ("What kind of thing is {place}?", "What sort of thing is {place}?")

_Used = Counter[tuple[str, str]]
"""Counts of answers: by (question type, answer) or (question, answer)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Question:
    text: str
    question_type: str
    answer_type: str
    answer: str
    alternatives: tuple[str, ...] = ()
    """Answers of some of the ten people that differ."""


def vqa_items(
    groups: Sequence[Group], voice: Voice, asked: Set[str] = frozenset(QUALITIES)
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the lists `questions` and `annotations` of a split's two files.

    Question types are "name", "described", "category" (is there something?), "where name", "where described",
    "is it", "what kind", "relation" and "how many".

    Args:
        groups: groups of the split.
        voice: wording of the texts.
        asked: coarse words of families to ask for; a picture only gets questions about those that all things that
            belong there have.
    """
    used: _Used = Counter()
    questions: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for group in groups:
        draws = voice.draws("vqa", group.number)
        questions_of: dict[int, list[_Question]] = {task.scene.number: [] for task in group.task_scenes}
        for twins, others in group.pairs:
            for task, question in (*_exists(twins, voice, draws), *_categories(twins, others, draws)):
                questions_of[task.scene.number].append(question)
        for task in group.task_scenes:
            of_scene = [*questions_of[task.scene.number], *_where(task, voice, draws, used)]
            # A minority of questions asks for the thing at a place, for a relation, or for a number.
            if draws.below(2):
                of_scene += [*_is_a(task, draws, used, asked), _relation(task, voice, draws, used)]
            else:
                of_scene += [*_what_kind(task, voice, draws, used), _how_many(task, draws, used, asked)]
            image_id = paths.picture_number(voice.split, task.scene.number)
            for question_id, question in enumerate(of_scene, start=image_id * QUESTIONS_PER_IMAGE):
                questions.append({"image_id": image_id, "question": question.text, "question_id": question_id})
                dissent = draws.below(4) if question.alternatives else 0
                votes = [(draws.pick(question.alternatives), "maybe") for _ in range(dissent)]
                votes += [(question.answer, "yes")] * (NUM_ANSWERS - dissent)
                annotation = {
                    "question_type": question.question_type,
                    "multiple_choice_answer": question.answer,
                    "answers": [
                        {"answer": answer, "answer_confidence": confidence, "answer_id": position}
                        for position, (answer, confidence) in enumerate(draws.shuffled(votes), start=1)
                    ],
                    "image_id": image_id,
                    "answer_type": question.answer_type,
                    "question_id": question_id,
                }
                annotations.append(annotation)
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
        "data_subtype": paths.vqa_subtype(split),
        "data_type": "mscoco",
    }
    return common | {"task_type": "Open-Ended"} if questions else common


def _exists(twins: Twins, voice: Voice, draws: Draws) -> Iterator[tuple[TaskScene, _Question]]:
    """Ask in both scenes for the subjects or for the partners of both: each question is asked twice and true once."""
    of_subject = draws.below(2)
    for task in twins.scenes:
        kind = task.subject if of_subject else task.partner
        manner = draw_manner(draws)
        text = draws.pick(_IS_THERE).format(something=voice.something(kind, manner, draws))
        yield task, _yes_no(text, manner, "yes")
        yield twins.twin(task), _yes_no(text, manner, "no")


def _categories(twins: Twins, others: Twins, draws: Draws) -> Iterator[tuple[TaskScene, _Question]]:
    """Ask for a family of the twins in one of their scenes, and in a scene of the other twins, which lacks it."""
    right, wrong = draws.pick(twins.scenes), draws.pick(others.scenes)
    family = draws.pick((right.subject, right.partner)).family
    text = draws.pick(_IS_THERE).format(something=indefinite(family.hypernym))
    yield right, _yes_no(text, "category", "yes")
    yield wrong, _yes_no(text, "category", "no")


def _yes_no(text: str, question_type: str, answer: str) -> _Question:
    return _Question(text=text, question_type=question_type, answer_type="yes/no", answer=answer)


def _where(task: TaskScene, voice: Voice, draws: Draws, used: _Used) -> Iterator[_Question]:
    """Ask twice where each of some things is, except things in the middle of the picture."""
    middle = PICTURE_SIDE // 2
    sides = {
        thing.kind: _SIDES[side]
        for thing in draws.shuffled(task.scene.things)
        if thing.kind != task.container
        and max(abs(value - middle) for value in thing.spot.centre) >= _OFF_CENTRE
        and (side := relation(thing.spot.centre, (middle, middle))) is not None
    }
    for _ in range(min(_THINGS_WHERE, len(sides))):
        answer = _rarest(tuple(dict.fromkeys(sides.values())), "where", draws, used)
        kind = next(kind for kind, side in sides.items() if side == answer)
        del sides[kind]
        for template in draws.shuffled(_WHERE)[:_TIMES_WHERE]:
            manner = draw_manner(draws)
            yield _Question(
                text=template.format(thing=voice.definite(kind, manner, draws)),
                question_type=f"where {manner}",
                answer_type="other",
                answer=answer,
            )


def _is_a(task: TaskScene, draws: Draws, used: _Used, asked: Set[str]) -> Iterator[_Question]:
    """Ask whether an outermost thing belongs to a group; each question is true as often as false, or once more."""
    options: list[tuple[str, str]] = []
    for kind, place in draws.shuffled(_extremes(task)):
        for group, quality in QUALITIES.items():
            if group not in asked or kind.family.group in _ARGUABLE.get(group, ()):
                continue
            text = _IS_A.format(place=place, quality=quality)
            answer, other = ("yes", "no") if kind.family.group == group else ("no", "yes")
            if used[text, answer] <= used[text, other]:
                options.append((text, answer))
    if options:
        text, answer = draws.pick(options)
        used[text, answer] += 1
        yield _yes_no(text, "is it", answer)


def _askable(task: TaskScene) -> list[int]:
    return [index for index, thing in enumerate(task.scene.things) if thing.kind != task.container]


def _extremes(task: TaskScene) -> list[tuple[Kind, str]]:
    """Return the outermost things, except containers, with their positions."""
    extremes = [(outermost(side, task.scene.centres, _askable(task)), side) for side in RELATIONS]
    return [(task.scene.things[index].kind, _EXTREMES[side]) for index, side in extremes if index is not None]


def _what_kind(task: TaskScene, voice: Voice, draws: Draws, used: _Used) -> Iterator[_Question]:
    """Ask what an outermost thing is, or the only thing on one side of another."""
    things, centres, asked = task.scene.things, task.scene.centres, _askable(task)
    manner = draw_manner(draws)
    neighbours = [
        (things[target].kind, f"{PHRASES[side]} {voice.definite(things[reference].kind, manner, draws)}")
        for side in ALONG[task.axis]
        for target in asked
        for reference in asked
        if target != reference and is_unique(target, reference, side, centres)
    ]
    places = draws.shuffled([*_extremes(task), *neighbours])
    by_answer = {kind.family.group.removesuffix("s"): (kind, place) for kind, place in places}
    if not by_answer:
        return
    answer = _rarest(tuple(by_answer), "what kind", draws, used)
    kind, place = by_answer[answer]
    yield _Question(
        text=draws.pick(_WHAT_KIND).format(place=place),
        question_type="what kind",
        answer_type="other",
        answer=answer,
        alternatives=(kind.family.hypernym.lower(), kind.name),
    )


def _relation(task: TaskScene, voice: Voice, draws: Draws, used: _Used) -> _Question:
    side = task.side(task.subject, task.partner)
    answer = _rarest(("yes", "no"), "relation", draws, used)
    phrase = PHRASES[side if answer == "yes" else INVERSE[side]]
    subject = voice.definite(task.subject, draw_manner(draws), draws)
    return _yes_no(f"Is {subject} {phrase} the {task.partner.name}?", "relation", answer)


def _how_many(task: TaskScene, draws: Draws, used: _Used, asked: Set[str]) -> _Question:
    counts = Counter(thing.kind.family.group for thing in task.scene.things)
    counts[_THINGS] = counts.total()
    options = [(group, str(counts[group])) for group in (*COUNTED_GROUPS, _THINGS) if group in (*asked, _THINGS)]
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


def _rarest(options: Sequence[str], question_type: str, draws: Draws, used: _Used) -> str:
    answer = min(draws.shuffled(options), key=lambda option: used[question_type, option])
    used[question_type, answer] += 1
    return answer
