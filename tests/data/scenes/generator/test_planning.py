"""Draws, relations, placement, plans and texts: what holds for every scene before it is drawn."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import pytest

from advl_data.scenes.generator.caption_items import caption_items, plan_caption_scenes
from advl_data.scenes.generator.placing import (
    PHRASES,
    PICTURE_SIDE,
)
from advl_data.scenes.generator.scene_plan import HELD_OUT, Group, TaskScene, plan_groups
from advl_data.scenes.generator.snli_ve_items import snli_ve_items
from advl_data.scenes.generator.vcr_items import vcr_items
from advl_data.scenes.generator.vocabulary import Kind, Phrasing, Voice, load_vocabulary
from advl_data.scenes.generator.vqa_items import QUALITIES, vqa_items

VOCABULARY = load_vocabulary()
NUM_SCENES = 48
SEEDS = (5, 6)
PINNED_PLANS = "c81eb13b6465428deb09472c092c1be4b8dfc2aff072ab3981cc74d7db1d859d"


@dataclass(frozen=True)
class Split:
    """A planned split: its groups, its scenes by number, and the items of each format."""

    groups: list[Group]
    tasks: dict[int, TaskScene]
    vcr: list[dict[str, Any]]
    snli_ve: list[dict[str, Any]]
    vqa: list[dict[str, Any]]
    """Questions with their annotations."""

    def task_of(self, item: Mapping[str, Any]) -> TaskScene:
        """Return the scene that an item of SNLI-VE or of VQA is about."""
        return self.tasks[int(item.get("Flickr30K_ID", item.get("image_id"))) % 1_000_000]


def voice(split: str, seed: int, phrasing: Phrasing = "open") -> Voice:
    return Voice(seed=seed, plan_split=split, split=split, phrasing=phrasing)


def planned(split: str, seed: int) -> Split:
    unseen, compositional = split == "test-unseen", split == "test-compositional"
    groups = list(
        plan_groups(
            VOCABULARY, seed=seed, split=split, num_scenes=NUM_SCENES, unseen=unseen, compositional=compositional
        )
    )
    speaker = voice(split, seed)
    return Split(
        groups=groups,
        tasks={task.scene.number: task for group in groups for task in group.task_scenes},
        vcr=list(vcr_items(groups, speaker)),
        snli_ve=list(snli_ve_items(groups, speaker)),
        vqa=[question | annotation for question, annotation in zip(*vqa_items(groups, speaker), strict=True)],
    )


@pytest.fixture(scope="module")
def splits() -> dict[tuple[str, int], Split]:
    """Plans by split and seed."""
    names = ("train", "test-unseen", "test-compositional")
    return {(name, seed): planned(name, seed) for name in names for seed in SEEDS}


Splits = dict[tuple[str, int], Split]


def words(tokens: list[str | list[int]]) -> str:
    return " ".join(token if isinstance(token, str) else f"[{token[0]}]" for token in tokens)


PHRASES_OF_KINDS = [
    (phrase.text, kind)
    for kind in (*VOCABULARY.labelled, *VOCABULARY.unseen)
    for phrase in (*kind.descriptions, *kind.held_out)
]


@functools.cache
def described(text: str) -> list[Kind]:
    """Return the kinds that a text describes, in whatever phrasing."""
    spoken = text.replace(" 's", "'s").replace(" ,", ",")
    return [kind for phrase, kind in PHRASES_OF_KINDS if phrase in spoken]


def test_plans_and_what_is_said_of_them_are_pinned(splits: Splits) -> None:
    """What is drawn must not move: 288 scenes of three splits and 400 of captions, with all their texts."""
    assert splits["train", 5].vcr[:4] != splits["train", 6].vcr[:4]
    state = hashlib.sha256()
    for split in splits.values():
        shown = [
            [(thing.kind.code, *dataclasses.astuple(thing.spot)) for thing in task.scene.things]
            for task in split.tasks.values()
        ]
        state.update(json.dumps([shown, split.vcr, split.snli_ve, split.vqa]).encode())
    for scene in plan_caption_scenes(VOCABULARY, seed=1, split="captions-train", num_scenes=400):
        boxes = [(0, 0, 1, 1)] * len(scene.things)
        state.update(json.dumps(list(caption_items(scene, boxes, seed=1, split="train"))).encode())
    assert state.hexdigest() == PINNED_PLANS


def test_held_out_combinations_occur_in_the_compositional_split_alone(splits: Splits) -> None:
    for (name, _), split in splits.items():
        for task in split.tasks.values():
            held_out = len(task.scene.things) == HELD_OUT[task.axis]
            assert held_out == (name == "test-compositional")


def test_every_vcr_answer_is_of_the_kind_that_the_question_points_at(splits: Splits) -> None:
    """Recognise kinds in the answers by their descriptions alone and compare with what the item claims."""
    for split in splits.values():
        checked = 0
        for item in split.vcr:
            task = split.tasks[int(item["img_id"].rsplit("-", 1)[1])]
            if item["answer_style"] != "described":
                continue
            checked += 1
            answers = [described(words(answer)) for answer in item["answer_choices"]]
            assert all(len(meant) == 1 for meant in answers)
            (target,) = answers[item["answer_label"]]
            (tag,) = (token[0] for token in item["question"] if isinstance(token, list))
            if not item["question_type"].startswith("relation"):
                assert task.scene.things[tag].kind == target
            else:
                assert task.scene.things[tag].kind == task.reference
                assert PHRASES[task.side(target, task.reference)] in words(item["question"])
        assert checked > 0.4 * NUM_SCENES


def test_rationales_vary_two_facts_and_state_the_right_answer_in_all_or_none(splits: Splits) -> None:
    for split in splits.values():
        for item in split.vcr:
            texts = [words(choice) for choice in item["rationale_choices"]]
            assert len(set(texts)) == 4
            assert len({text.count("[") for text in texts}) == 1
            # Every token of the right rationale is in one of the wrong ones as well, at the same place of two facts.
            right = texts[item["rationale_label"]]
            shared = [set(right.split()) & set(text.split()) for text in texts if text != right]
            assert set(right.split()) <= set.union(*shared)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_held_out_phrasing_says_the_same_of_the_same_in_other_words(splits: Splits, seed: int) -> None:
    groups = splits["train", seed].groups
    voices = [voice("train", seed, phrasing) for phrasing in get_args(Phrasing)]
    pairs = [[list(items(groups, each)) for each in voices] for items in (vcr_items, snli_ve_items)]
    pairs.append([vqa_items(groups, each)[1] for each in voices])
    texts = {"answer_choices", "rationale_choices", "question", "sentence2"}
    texts |= {"answer_orig", "question_orig", "rationale_orig"}
    for here, there in pairs:
        for open_item, other in zip(here, there, strict=True):
            assert {k: v for k, v in open_item.items() if k not in texts} == {
                k: v for k, v in other.items() if k not in texts
            }
            if open_item.get("answer_style") in ("name", "category"):
                assert open_item["answer_choices"] == other["answer_choices"]
                assert open_item["question"] == other["question"]
    spoken = [
        json.dumps([pairs[0][side], pairs[1][side], vqa_items(groups, each)[0]]) for side, each in enumerate(voices)
    ]
    for kind in VOCABULARY.labelled:
        assert not any(phrase.text in spoken[0] for phrase in kind.held_out)
        assert not any(phrase.text in spoken[1] for phrase in kind.descriptions)
    asked_of_it = {words(item["question"]) for item in pairs[0][1] if item["answer_style"] == "described"}
    assert all("true of" in question or "say about" in question for question in asked_of_it)


def test_every_snli_ve_picture_has_every_label_equally_often(splits: Splits) -> None:
    """So no cue of the picture alone tells anything: container, number of things, places, kinds that are shown."""
    for split in splits.values():
        by_picture: dict[str, Counter[str]] = {}
        by_container: dict[tuple[str, str], Counter[str]] = {}
        for item in split.snli_ve:
            if item["question_type"] in ("name", "described"):
                by_picture.setdefault(item["Flickr30K_ID"], Counter())[item["gold_label"]] += 1
            container = split.task_of(item).container
            by_container.setdefault((container.name, item["question_type"]), Counter())[item["gold_label"]] += 1
        assert len(by_picture) == NUM_SCENES
        assert all(sorted(counts.values()) == [2, 2, 2] for counts in by_picture.values())
        for (_, question_type), counts in by_container.items():
            if question_type in ("category", "relation"):
                assert len(set(counts.values())) == 1, question_type


def test_entailed_things_are_hidden_by_half_of_the_containers_beside_them(splits: Splits) -> None:
    for split in splits.values():
        compatible: Counter[bool] = Counter()
        for task in split.tasks.values():
            compatible.update(task.container.may_hide(kind) for kind in (task.subject, task.partner))
        assert compatible[True] == compatible[False]
        # Whoever knows the rule and does not look gets two of three, and whoever looks and knows no rule as well.
        right_by_rule = right_by_looking = total = 0
        for item in split.snli_ve:
            meant = described(item["sentence2"])
            if item["question_type"] != "described":
                continue
            (kind,) = meant
            task = split.task_of(item)
            shown = kind in {thing.kind for thing in task.scene.things}
            hidden = task.container.may_hide(kind)
            assert item["gold_label"] == ("entailment" if shown else "neutral" if hidden else "contradiction")
            total += 1
            right_by_rule += item["gold_label"] == ("neutral" if hidden else "contradiction")
            right_by_looking += item["gold_label"] == ("entailment" if shown else "neutral")
        assert right_by_rule * 3 == right_by_looking * 3 == total * 2


def test_vqa_answers_are_true(splits: Splits) -> None:
    for split in splits.values():
        question_types = set()
        for item in split.vqa:
            text, answer = item["question"], item["multiple_choice_answer"]
            question_type = item["question_type"]
            question_types.add(question_type)
            things = {thing.kind: thing for thing in split.task_of(item).scene.things}
            meant = described(text)
            if question_type == "described":
                assert (answer == "yes") == (meant[0] in things)
            elif question_type == "name":
                phrases = {kind.noun_phrase for kind in things}
                assert (answer == "yes") == any(text.endswith(f" {phrase}?") for phrase in phrases)
            elif question_type == "category":
                hypernyms = {kind.family.hypernym for kind in things}
                assert (answer == "yes") == any(text.endswith(f" {hypernym}?") for hypernym in hypernyms)
            elif question_type == "where described":
                x, y = (value - PICTURE_SIDE // 2 for value in things[meant[0]].spot.centre)
                sideways = abs(x) > abs(y)
                assert answer == (("left", "right")[x > 0] if sideways else ("top", "bottom")[y > 0])
            elif question_type == "is it":
                direction = next(word for word in ("left", "right", "top", "bottom") if word in text)
                axis, sign = {"left": (0, 1), "right": (0, -1), "top": (1, 1), "bottom": (1, -1)}[direction]
                outer = min(things, key=lambda kind: sign * things[kind].spot.centre[axis])
                group = next(group for group, quality in QUALITIES.items() if quality in text)
                assert (answer == "yes") == (outer.family.group == group)
            elif question_type == "what kind":
                assert f"{answer}s" in {kind.family.group for kind in things}
            elif question_type == "how many":
                wanted = text.split()[2]
                assert int(answer) == sum(wanted in ("things", kind.family.group) for kind in things)
            votes = Counter(vote["answer"] for vote in item["answers"])
            assert votes[answer] >= 7
            assert sum(votes.values()) == 10
        assert len(question_types) == 9
