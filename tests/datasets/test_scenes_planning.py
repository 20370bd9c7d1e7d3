"""Draws, relations, placement and plans: what holds for every scene before it is drawn."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from advl_pipeline.datasets.scenes.caption_items import caption_items, plan_caption_scenes
from advl_pipeline.datasets.scenes.draws import Draws
from advl_pipeline.datasets.scenes.placement import PICTURE_SIDE, place
from advl_pipeline.datasets.scenes.plan import HELD_OUT, plan_groups
from advl_pipeline.datasets.scenes.relations import (
    ALONG,
    INVERSE,
    Centre,
    axis_of,
    only_one,
    outermost,
    relation,
)
from advl_pipeline.datasets.scenes.scene import Group, TaskScene
from advl_pipeline.datasets.scenes.snli_ve_items import snli_ve_items
from advl_pipeline.datasets.scenes.vcr_items import vcr_items
from advl_pipeline.datasets.scenes.vocabulary import load_vocabulary
from advl_pipeline.datasets.scenes.vqa_items import vqa_items
from advl_pipeline.datasets.scenes.wording import Voice

VOCABULARY = load_vocabulary()
NUM_SCENES = 48
centres = st.tuples(st.integers(0, PICTURE_SIDE), st.integers(0, PICTURE_SIDE))


def plan(split: str, *, unseen: bool = False, compositional: bool = False, seed: int = 5) -> list[Group]:
    return list(
        plan_groups(
            VOCABULARY, seed=seed, split=split, num_scenes=NUM_SCENES, unseen=unseen, compositional=compositional
        )
    )


@pytest.fixture(scope="module")
def plans() -> dict[str, list[Group]]:
    return {
        "train": plan("train"),
        "test-unseen": plan("test-unseen", unseen=True),
        "test-compositional": plan("test-compositional", compositional=True),
    }


def scenes_of(groups: list[Group]) -> Iterator[TaskScene]:
    return (task for group in groups for task in group.task_scenes)


@given(st.text(), st.integers(1, 1000))
def test_draws_stay_below_their_bound_and_repeat(name: str, bound: int) -> None:
    first, second = Draws(name), Draws(name)
    drawn = [first.below(bound) for _ in range(20)]
    assert all(0 <= value < bound for value in drawn)
    assert drawn == [second.below(bound) for _ in range(20)]


def test_draws_are_pinned() -> None:
    draws = Draws(0, "train", "group", 0)
    assert [draws.below(1000) for _ in range(6)] == PINNED_DRAWS
    assert Draws(0, "train").below(2**32) != Draws(0, "val").below(2**32)


PINNED_DRAWS = [928, 590, 746, 77, 536, 403]


def test_draws_are_even() -> None:
    draws = Draws("even")
    counts = Counter(draws.below(5) for _ in range(5000))
    assert all(abs(counts[value] - 1000) < 150 for value in range(5))


@given(st.lists(st.integers(), max_size=30))
def test_shuffling_keeps_the_items(items: list[int]) -> None:
    assert Counter(Draws("shuffle", len(items)).shuffled(items)) == Counter(items)


@given(centres, centres)
def test_relations_are_antisymmetric(one: Centre, other: Centre) -> None:
    forward, backward = relation(one, other), relation(other, one)
    if one == other or forward is None:
        assert backward is None or one == other
    else:
        assert backward == INVERSE[forward]


def test_relations_by_hand() -> None:
    assert relation((10, 50), (100, 60)) == "left"
    assert relation((100, 60), (10, 50)) == "right"
    assert relation((50, 10), (60, 100)) == "above"
    assert relation((60, 100), (50, 10)) == "below"
    assert relation((50, 50), (100, 100)) is None


def test_only_one_minds_rivals_and_doubtful_cases() -> None:
    row = [(20, 100), (100, 100), (180, 100)]
    assert only_one(0, 1, "left", row)
    assert not only_one(2, 1, "left", row)
    assert not only_one(0, 2, "left", row)  # the middle one is left of it as well
    assert not only_one(0, 1, "left", [*row, (60, 60)])  # up-left, arguable
    assert only_one(0, 1, "left", [*row, (100, 20)])


def test_outermost_needs_a_margin() -> None:
    assert outermost("left", [(20, 0), (40, 0), (90, 0)], range(3)) == 0
    assert outermost("left", [(20, 0), (25, 0), (90, 0)], range(3)) is None
    assert outermost("right", [(20, 0), (25, 0), (90, 0)], [0, 1]) is None
    assert outermost("below", [(20, 0), (25, 200), (90, 30)], range(3)) == 1


@given(st.integers(0, 10_000), st.integers(1, 5))
def test_things_keep_apart_and_inside(seed: int, count: int) -> None:
    spots = place(Draws(seed), count, lambda centres: True)
    assert len(spots) == count
    for index, spot in enumerate(spots):
        for axis in (0, 1):
            assert spot.reach <= spot.centre[axis] <= PICTURE_SIDE - spot.reach
        for other in spots[:index]:
            distance = max(abs(spot.centre[0] - other.centre[0]), abs(spot.centre[1] - other.centre[1]))
            assert distance >= spot.reach + other.reach


def test_twins_share_families_and_nothing_else(plans: dict[str, list[Group]]) -> None:
    for group in (group for groups in plans.values() for group in groups):
        everyone = [
            kind for task in group.task_scenes for kind in (task.subject, task.partner, task.reference) if kind
        ]
        assert max(Counter(kind.code for kind in everyone).values()) == 1
        assert max(Counter(kind.family.subcategory for kind in everyone).values()) == 2
        for twins in (group.one, group.two):
            one, two = twins.scenes
            assert one.subject.family == two.subject.family
            assert one.partner.family == two.partner.family
            assert (one.container is None) != (two.container is None)
            assert (one.reference is None) == (two.reference is None)
            assert one.axis == two.axis


def test_extras_are_of_other_families_than_what_is_asked_about(plans: dict[str, list[Group]]) -> None:
    for group in (group for groups in plans.values() for group in groups):
        cast = {
            kind.code for task in group.task_scenes for kind in (task.subject, task.partner, task.reference) if kind
        }
        families = {kind.family for task in group.task_scenes for kind in (task.subject, task.partner)}
        for task in group.task_scenes:
            assert task.container is None or task.container in VOCABULARY.containers
            for thing in task.scene.things:
                if thing.kind.code not in cast:
                    assert thing.kind.family not in families


def test_the_stated_relations_hold(plans: dict[str, list[Group]]) -> None:
    for task in (task for groups in plans.values() for task in scenes_of(groups)):
        side = task.side(task.subject, task.partner)
        assert axis_of(side) == task.axis
        if task.container is not None:
            assert task.side(task.container, task.partner) in ALONG[task.axis]
        if task.reference is not None:
            scene = task.scene
            subject, partner, reference = (scene.index(kind) for kind in (task.subject, task.partner, task.reference))
            assert only_one(subject, reference, side, scene.centres)
            assert only_one(partner, reference, INVERSE[side], scene.centres)


def test_held_out_combinations_occur_in_the_compositional_split_alone(plans: dict[str, list[Group]]) -> None:
    for name, groups in plans.items():
        for task in scenes_of(groups):
            held_out = len(task.scene.things) == HELD_OUT[task.axis]
            assert held_out == (name == "test-compositional")


def test_labelled_splits_show_no_unseen_kind(plans: dict[str, list[Group]]) -> None:
    unseen = {kind.code for kind in VOCABULARY.unseen}
    containers = {kind.code for kind in VOCABULARY.containers}
    for name, groups in plans.items():
        shown = {thing.kind.code for task in scenes_of(groups) for thing in task.scene.things} - containers
        assert shown <= unseen if name == "test-unseen" else shown.isdisjoint(unseen)


def test_no_description_fits_another_thing(plans: dict[str, list[Group]]) -> None:
    """Recognise kinds in the texts by their keywords alone and compare with what the item claims."""
    for name, groups in plans.items():
        tasks = {task.scene.number: task for task in scenes_of(groups)}
        twins = {task.scene.number: pair for g in groups for pair in (g.one, g.two) for task in pair.scenes}
        voice = Voice(seed=5, plan_split=name, split=name)
        checked = 0
        for item in vcr_items(groups, voice):
            number = int(item["img_id"].rsplit("-", 1)[1])
            cast = [kind for task in twins[number].scenes for kind in (task.subject, task.partner)]
            for position, answer in enumerate(item["answer_choices"]):
                text = f" {' '.join(map(str, answer))} "
                meant = [kind for kind in cast if sum(f" {word} " in text for word in kind.keywords) >= 2]
                if not meant:
                    continue
                (kind,) = meant
                checked += 1
                others = [thing.kind for thing in tasks[number].scene.things if thing.kind.code != kind.code]
                rivals = others + [other for other in cast if other.code != kind.code]
                assert not any(f" {word} " in text for other in rivals for word in other.keywords)
                in_picture = kind.code in {thing.kind.code for thing in tasks[number].scene.things}
                assert position != item["answer_label"] or in_picture
        assert checked > 40


def test_every_set_of_answers_is_right_once_each(plans: dict[str, list[Group]]) -> None:
    items = list(vcr_items(plans["train"], Voice(seed=5, plan_split="train", split="train")))
    right: dict[str, Counter[str]] = {}
    for item in items:
        # Texts that differ in the tag alone count as one; there are no tags in answers.
        texts = [" ".join(map(str, choice)) for choice in item["answer_choices"]]
        right.setdefault("|".join(sorted(texts)), Counter())[texts[item["answer_label"]]] += 1
    assert len(right) == len(items) / 4
    assert all(sorted(counts.values()) == [1, 1, 1, 1] for counts in right.values())


def test_rationales_vary_two_facts_and_state_the_right_answer_in_all_or_none(plans: dict[str, list[Group]]) -> None:
    names = {kind.name for kind in VOCABULARY.labelled}
    for item in vcr_items(plans["train"], Voice(seed=5, plan_split="train", split="train")):
        texts = [" ".join(map(str, choice)) for choice in item["rationale_choices"]]
        assert len(set(texts)) == 4
        named = [sum(bool(re.search(rf"\b{name}\b", text)) for name in names) for text in texts]
        assert len({text.count("[") for text in texts}) == 1
        assert max(named) - min(named) <= 1  # "hot dog" holds the name "dog"


def test_each_existence_hypothesis_has_all_three_labels(plans: dict[str, list[Group]]) -> None:
    for name, groups in plans.items():
        labels: dict[tuple[str, int], list[str]] = {}
        totals: Counter[str] = Counter()
        for item in snli_ve_items(groups, Voice(seed=5, plan_split=name, split=name)):
            totals[item["gold_label"]] += 1
            if item["question_type"] != "relation":
                group = int(item["Flickr30K_ID"]) % 1_000_000 // 4
                labels.setdefault((item["sentence2"], group), []).append(item["gold_label"])
        assert all(sorted(found) == ["contradiction", "entailment", "neutral"] for found in labels.values())
        assert len(set(totals.values())) == 1


def test_neutral_needs_a_container_and_contradicted_existence_has_none(plans: dict[str, list[Group]]) -> None:
    groups = plans["train"]
    tasks = {task.scene.number: task for task in scenes_of(groups)}
    for item in snli_ve_items(groups, Voice(seed=5, plan_split="train", split="train")):
        boxed = tasks[int(item["Flickr30K_ID"]) % 1_000_000].container is not None
        if item["gold_label"] == "neutral":
            assert boxed
        elif item["gold_label"] == "contradiction" and item["question_type"] != "relation":
            assert not boxed


def test_vqa_answers_are_balanced_and_true(plans: dict[str, list[Group]]) -> None:
    groups = plans["train"]
    tasks = {task.scene.number: task for task in scenes_of(groups)}
    questions, annotations = vqa_items(groups, Voice(seed=5, plan_split="train", split="train"), plain_answers=True)
    counts: dict[str, Counter[str]] = {}
    for question, annotation in zip(questions, annotations, strict=True):
        answer = annotation["multiple_choice_answer"]
        counts.setdefault(annotation["question_type"], Counter())[answer] += 1
        things = [thing.kind for thing in tasks[question["image_id"] % 1_000_000].scene.things]
        if annotation["question_type"] == "how many":
            wanted = {"things": lambda kind: True}.get(
                question["question"].split()[2],
                lambda kind, q=question: kind.family.group == q["question"].split()[2],
            )
            assert int(answer) == sum(wanted(kind) for kind in things)
        elif annotation["question_type"] == "what kind of":
            assert answer in {kind.family.hypernym.lower() for kind in things}
        elif annotation["question_type"] == "what is":
            assert answer in {kind.name for kind in things}
        votes = Counter(given["answer"] for given in annotation["answers"])
        assert votes[answer] >= 7
        assert sum(votes.values()) == 10
    assert counts["is there"]["yes"] == counts["is there"]["no"]
    assert abs(counts["is the"]["yes"] - counts["is the"]["no"]) <= 1
    assert max(counts["what kind of"].values()) <= 4


def test_caption_scenes_show_every_kind_alike() -> None:
    num_scenes = 120
    shown = Counter(
        thing.kind.code
        for scene in plan_caption_scenes(VOCABULARY, seed=1, split="captions-train", num_scenes=num_scenes)
        for thing in scene.things
    )
    assert set(shown) == {kind.code for kind in VOCABULARY.kinds}
    assert max(shown.values()) - min(shown.values()) <= 2


def test_caption_scenes_have_two_kinds_to_name_and_nothing_that_shares_a_hypernym_with_an_unnamed_one() -> None:
    for scene in plan_caption_scenes(VOCABULARY, seed=1, split="captions-train", num_scenes=120):
        kinds = [thing.kind for thing in scene.things]
        assert sum(kind.named for kind in kinds) >= 2
        for kind in kinds:
            assert kind.named or sum(other.family == kind.family for other in kinds) == 1


def test_unnamed_kinds_are_mentioned_by_hypernym_in_half_of_their_pictures() -> None:
    scenes = list(plan_caption_scenes(VOCABULARY, seed=1, split="captions-train", num_scenes=400))
    shown = mentioned = 0
    for scene in scenes:
        boxes = [(0, 0, 1, 1)] * len(scene.things)
        _, listing = caption_items(scene, boxes, seed=1, split="train")
        said = {phrase["box"]: listing["caption"][phrase["start"] : phrase["end"]] for phrase in listing["phrases"]}
        for tag, thing in enumerate(scene.things):
            if thing.kind.named:
                assert said[tag] == thing.kind.name
            else:
                shown += 1
                mentioned += tag in said
                assert said.get(tag, thing.kind.family.hypernym) == thing.kind.family.hypernym
    assert shown > 150
    assert abs(mentioned / shown - 0.5) < 0.12
