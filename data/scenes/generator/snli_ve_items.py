"""Hypotheses in the format of SNLI-VE, each with all three labels.

Every picture contains one container, and a rule lists the coarse groups that each kind of container may hide
(`Container.hides`). A visible thing is entailed; an invisible thing is neutral if the container may hide it, and
contradicted otherwise. Each hypothesis on the presence of a thing is paired with three pictures of its group, one per
label. Labels are balanced per picture over hypotheses on things, and per kind of container over all hypotheses.
Knowing only whether the thing is visible gives two of three right, and so does knowing only the rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal

from advl_data.scenes.generator import paths
from advl_data.scenes.generator.draws import Draws
from advl_data.scenes.generator.placing import INVERSE, PHRASES, Relation
from advl_data.scenes.generator.scene_plan import Group, TaskScene, Twins
from advl_data.scenes.generator.vocabulary import Kind, Voice, draw_manner, indefinite, listing, sentence

LABELS: Final = ("contradiction", "entailment", "neutral")

Label = Literal["contradiction", "entailment", "neutral"]
QuestionType = Literal["name", "described", "category", "relation"]

_EXISTS: Final = (
    "there is {thing}",
    "somewhere there is {thing}",
    "the picture holds {thing}",
    "among other things there is {thing}",
)
# "The" and not "a": another thing of the kind could always be in the container.
_RELATES: Final = ("{subject} is {phrase} {partner}", "{subject} can be found {phrase} {partner}")


_Item = tuple[TaskScene, str, Label, QuestionType]
"""Scene, hypothesis, label, and type of the hypothesis."""


def snli_ve_items(groups: Sequence[Group], voice: Voice) -> Iterator[dict[str, Any]]:
    """Yield the lines of a split's JSONL file.

    Besides the official fields each line has `question_type`: "name", "described", "category" or "relation".
    """
    for group in groups:
        draws = voice.draws("snli-ve", group.number)
        items = [*_things(group, voice, draws), *_relations(group, voice, draws)]
        for position, (task, hypothesis, label, question_type) in enumerate(items):
            flickr_id = str(paths.picture_number(voice.split, task.scene.number))
            agreeing = draws.between(3, 5)
            others = [other for other in LABELS if other != label]
            votes = [label] * (agreeing - 1) + [draws.pick(others) for _ in range(5 - agreeing)]
            yield {
                "annotator_labels": [label, *draws.shuffled(votes)],
                "captionID": f"{flickr_id}.jpg#0",
                "gold_label": label,
                "pairID": f"{flickr_id}.jpg#0r{position}{label[0]}",
                "sentence1": sentence(listing([thing.kind.noun_phrase for thing in task.scene.things])),
                "sentence1_binary_parse": "",
                "sentence1_parse": "",
                "sentence2": hypothesis,
                "sentence2_binary_parse": "",
                "sentence2_parse": "",
                "Flickr30K_ID": flickr_id,
                "question_type": question_type,
            }


def _things(group: Group, voice: Voice, draws: Draws) -> Iterator[_Item]:
    """Yield hypotheses that each subject and partner is present, then that a family of either pair of twins is.

    One of the two pictures without the thing is the twin, the hard one. The family is in both scenes of its pair and
    in neither of the others.
    """
    for twins, others in group.pairs:
        for task in twins.scenes:
            for kind in (task.subject, task.partner):
                manner = draw_manner(draws)
                thing = voice.something(kind, manner, draws)
                yield from _three(task, (twins.twin(task), *others.scenes), kind, thing, manner, draws)
    of_subject = draws.below(2)
    for task, others in _one_scene_of_each_pair(group, draws):
        kind = task.subject if of_subject else task.partner
        yield from _three(task, others.scenes, kind, indefinite(kind.family.hypernym), "category", draws)


def _three(
    showing: TaskScene,
    others: Sequence[TaskScene],
    kind: Kind,
    thing: str,
    question_type: QuestionType,
    draws: Draws,
) -> Iterator[_Item]:
    """Yield the hypothesis that a thing is present, for a scene with it and for two without it."""
    hypothesis = sentence(draws.pick(_EXISTS).format(thing=thing))
    hiding = next(task for task in others if task.container.may_hide(kind))
    bare = next(task for task in others if not task.container.may_hide(kind))
    yield showing, hypothesis, "entailment", question_type
    yield hiding, hypothesis, "neutral", question_type
    yield bare, hypothesis, "contradiction", question_type


def _relations(group: Group, voice: Voice, draws: Draws) -> Iterator[_Item]:
    """Yield relations of a subject of either pair to its partner: entailed, contradicted, or to a container instead.

    The container is at the subject of its scene, whose group differs from the first subject's like the partner's.
    """
    for showing, others in _one_scene_of_each_pair(group, draws):
        hiding = next(task for task in others.scenes if task.container.may_hide(showing.subject))
        subject = voice.definite(showing.subject, draw_manner(draws), draws)
        template = draws.pick(_RELATES)
        side = showing.side(showing.subject, showing.partner)
        labelled: tuple[tuple[TaskScene, Relation, Kind, Label], ...] = (
            (showing, side, showing.partner, "entailment"),
            (showing, INVERSE[side], showing.partner, "contradiction"),
            (hiding, hiding.side(hiding.container, hiding.subject), hiding.subject, "neutral"),
        )
        for task, claimed, other, label in labelled:
            hypothesis = template.format(subject=subject, phrase=PHRASES[claimed], partner=f"the {other.name}")
            yield task, sentence(hypothesis), label, "relation"


def _one_scene_of_each_pair(group: Group, draws: Draws) -> Iterator[tuple[TaskScene, Twins]]:
    """Draw one scene of each pair of twins, with different containers, and yield it with the other pair."""
    first = draws.pick(group.first_pair.scenes)
    second = next(task for task in group.second_pair.scenes if task.container != first.container)
    yield first, group.second_pair
    yield second, group.first_pair
