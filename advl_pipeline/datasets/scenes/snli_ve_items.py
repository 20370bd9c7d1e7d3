"""Hypotheses in the format of SNLI-VE, each under all three labels.

A closed box makes a statement about a thing that is not to be seen undecided: where there is one, the statement is
neutral; where there is none, it is contradicted. The same hypothesis is put to three pictures of a group: one that
shows the thing, one that does not but has a box, one that does neither. So the text says nothing about the label.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from advl_pipeline.datasets.scenes import layout
from advl_pipeline.datasets.scenes.draws import Draws
from advl_pipeline.datasets.scenes.relations import INVERSE, PHRASES, Relation
from advl_pipeline.datasets.scenes.scene import Group, TaskScene
from advl_pipeline.datasets.scenes.wording import Voice, describe, indefinite, listing, sentence
from advl_pipeline.errors import AdvlError

LABELS: Final = ("contradiction", "entailment", "neutral")

_EXISTS: Final = (
    "there is {thing} in the picture",
    "{thing} can be seen",
    "the picture shows {thing}",
    "somewhere there is {thing}",
)
# "The" and not "a": another thing of the kind might always be in the box.
_RELATES: Final = ("{subject} is {phrase} {partner}", "{subject} can be found {phrase} {partner}")

_Item = tuple[TaskScene, str, str, str]
"""Scene, hypothesis, label, question type."""


def snli_ve_items(groups: Sequence[Group], voice: Voice) -> Iterator[dict[str, Any]]:
    """Yield the lines of a split's JSONL file.

    Besides the official fields each line has `question_type`: "exists", "hypernym" or "relation".
    """
    for group in groups:
        draws = voice.draws("snli-ve", group.number)
        items = [*_exists(group, draws), *_hypernyms(group, draws), *_relations(group, draws)]
        for position, (task, hypothesis, label, question_type) in enumerate(items):
            yield _record(task, hypothesis, label, question_type, split=voice.split, position=position, draws=draws)


def _boxed(group: Group, part: int) -> TaskScene:
    """Return the scene with a container of the first or second pair of twins."""
    twins = (group.one, group.two)[part]
    return next(task for task in twins.scenes if task.container is not None)


def _open(group: Group, part: int) -> TaskScene:
    """Return the scene without a container of the first or second pair of twins."""
    twins = (group.one, group.two)[part]
    return next(task for task in twins.scenes if task.container is None)


def _exists(group: Group, draws: Draws) -> Iterator[_Item]:
    """Each subject: entailed where it is; of the two other pictures one is of the twin, the hard one."""
    for part in range(2):
        boxed, unboxed = _boxed(group, part), _open(group, part)
        for own, neutral, contradicted in (
            (boxed, _boxed(group, 1 - part), unboxed),
            (unboxed, boxed, _open(group, 1 - part)),
        ):
            description = describe(own.subject, group.rivals, draws)
            hypothesis = sentence(draws.pick(_EXISTS).format(thing=description.something(draws)))
            yield own, hypothesis, "entailment", "exists"
            yield neutral, hypothesis, "neutral", "exists"
            yield contradicted, hypothesis, "contradiction", "exists"


def _hypernyms(group: Group, draws: Draws) -> Iterator[_Item]:
    """Each family of partners: entailed in one of its two scenes, then put to the scenes of the other twins."""
    for part in range(2):
        own = draws.pick((group.one, group.two)[part].scenes)
        thing = indefinite(own.partner.family.hypernym)
        hypothesis = sentence(draws.pick(_EXISTS).format(thing=thing))
        yield own, hypothesis, "entailment", "hypernym"
        yield _boxed(group, 1 - part), hypothesis, "neutral", "hypernym"
        yield _open(group, 1 - part), hypothesis, "contradiction", "hypernym"


def _relations(group: Group, draws: Draws) -> Iterator[_Item]:
    """Each subject: entailed and contradicted at its partner, neutral where a box stands in the relation instead."""
    for part in range(2):
        elsewhere = _boxed(group, 1 - part)
        hidden = _container_side(elsewhere)
        for own in (group.one, group.two)[part].scenes:
            template = draws.pick(_RELATES)
            subject = f"the {own.subject.name}"
            if draws.below(2):
                subject = describe(own.subject, group.rivals, draws).definite(draws)
            side = own.side(own.subject, own.partner)
            for task, claimed, label in (
                (own, side, "entailment"),
                (own, INVERSE[side], "contradiction"),
                (elsewhere, hidden, "neutral"),
            ):
                partner = f"the {task.partner.name}"
                hypothesis = template.format(subject=subject, phrase=PHRASES[claimed], partner=partner)
                yield task, sentence(hypothesis), label, "relation"


def _container_side(task: TaskScene) -> Relation:
    """Return how the container of a scene lies to the partner."""
    if task.container is None:
        raise AdvlError("A scene has no container.", where=f"scene {task.scene.number}")
    return task.side(task.container, task.partner)


def _record(
    task: TaskScene, hypothesis: str, label: str, question_type: str, *, split: str, position: int, draws: Draws
) -> dict[str, Any]:
    flickr_id = str(layout.picture_number(split, task.scene.number))
    agreeing = draws.between(3, 5)
    others = [other for other in LABELS if other != label]
    votes = [label] * agreeing + [draws.pick(others) for _ in range(5 - agreeing)]
    premise = listing([thing.kind.noun_phrase for thing in task.scene.things])
    return {
        "annotator_labels": [label, *draws.shuffled(votes[1:])],
        "captionID": f"{flickr_id}.jpg#0",
        "gold_label": label,
        "pairID": f"{flickr_id}.jpg#0r{position}{label[0]}",
        "sentence1": sentence(premise),
        "sentence1_binary_parse": "",
        "sentence1_parse": "",
        "sentence2": hypothesis,
        "sentence2_binary_parse": "",
        "sentence2_parse": "",
        "Flickr30K_ID": flickr_id,
        "question_type": question_type,
    }
