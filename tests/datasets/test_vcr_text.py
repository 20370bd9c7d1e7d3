"""Tags become words exactly as the published models word them, and spans point at the words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advl_pipeline.datasets.records import normalise_text
from advl_pipeline.datasets.vcr_text import TextStyle, relevant_objects, word_candidates

ASSETS = Path(__file__).parents[1] / "assets" / "vcr"
RECORDS = {
    record["annot_id"]: record
    for record in map(json.loads, (ASSETS / "val.jsonl").read_text(encoding="utf-8").splitlines())
}
OBJECTS = ["person", "person", "person", "car", "dog"]
QUESTION: list[str | list[int]] = ["Why", "is", [1], "pointing", "at", [0, 2], "?"]


def parts(record: dict[str, Any], mode: str) -> tuple[list[Any], list[Any]]:
    context = [record["question"]]
    if mode == "rationale":
        context.append(record["answer_choices"][record["answer_label"]])
    return context, record[f"{mode}_choices"]


@pytest.mark.parametrize("mode", ["answer", "rationale"])
def test_r2c_words_and_objects_are_the_official_ones(mode: str) -> None:
    compared = 0
    for expected in json.loads((ASSETS / "r2c_text_expected.json").read_text(encoding="utf-8")):
        wanted = expected[f"{mode}/relevant=True"]
        if "error" in wanted:
            continue  # a tag out of range, which the reader refuses before wording
        record = RECORDS[expected["annot_id"]]
        context, choices = parts(record, mode)
        assert relevant_objects(record["objects"], [*context, *choices]) == wanted["dets2use"]
        for candidate, choice, tags in zip(
            word_candidates("r2c", record["objects"], context, choices),
            wanted["choices"],
            wanted["choice_tags"],
            strict=True,
        ):
            assert candidate.text == " ".join(wanted["question"] + choice)
            pointed = [wanted["old_to_new"][tag.box] for tag in candidate.tags]
            assert pointed == [tag for tag in wanted["question_tags"] + tags if tag]
            compared += 1
    assert compared == 20


@pytest.mark.parametrize(("mode", "prefix"), [("answer", "qa"), ("rationale", "qar")])
def test_visualbert_words_are_the_official_ones(mode: str, prefix: str) -> None:
    compared = 0
    for expected in json.loads((ASSETS / "visualbert_text_expected.json").read_text(encoding="utf-8")):
        if "error" in expected:
            continue
        record = RECORDS[expected["annot_id"]]
        context, choices = parts(record, mode)
        candidates = word_candidates("visualbert", record["objects"], context, choices)
        for candidate, choice in zip(candidates, expected[f"{prefix}_choices"], strict=True):
            assert candidate.text == " ".join(expected[f"{prefix}_ctx"] + choice)
            compared += 1
    assert compared == 20


@pytest.mark.parametrize(
    ("style", "objects", "question", "answer", "text"),
    [
        ("uniter", OBJECTS, QUESTION, [[4], "."], "Why is person_1 pointing at person_0 person_2 ? dog ."),
        # Persons are counted to 80.
        ("uniter", ["person"] * 90, [[80], [81], "?"], ["."], "person_80 person_80 ? ."),
        # Counted anew in each item; "and" between the tags of one list.
        (
            "vl-bert",
            ["dog", *["person"] * 14],
            [[1, 2], "see", [0], "?"],
            [[11], [14], "."],
            "Casey and Riley see dog ? Frankie Casey .",
        ),
    ],
)
def test_names_of_persons(style: TextStyle, objects: list[str], question: Any, answer: Any, text: str) -> None:
    (candidate,) = word_candidates(style, objects, [question], [answer])
    assert candidate.text == text


def test_indexed_counts_from_one_and_spans_cover_class_and_number() -> None:
    (candidate,) = word_candidates("indexed", OBJECTS, [QUESTION], [[[4], "."]])
    assert candidate.text == "Why is person 2 pointing at person 1 and person 3 ? dog 5 ."
    named = [(candidate.text[tag.start : tag.end], tag.box) for tag in candidate.tags]
    assert named == [("person 2", 1), ("person 1", 0), ("person 3", 2), ("dog 5", 4)]
    assert candidate.text[: candidate.context_length].endswith("person 3 ?")
    assert candidate.text[candidate.answer_start :] == "dog 5 ."


@pytest.mark.parametrize("style", get_args(TextStyle))
def test_masked_tags_are_masks_without_an_object(style: TextStyle) -> None:
    (candidate,) = word_candidates(style, OBJECTS, [["Why", [10001], "?"]], [["[MASK]", [10004, 3], "."]])
    assert candidate.text.startswith("Why [MASK] ? [MASK] [MASK]")
    assert [tag.box for tag in candidate.tags] == [3]


tokens = st.lists(
    st.one_of(
        st.text(max_size=6),
        st.lists(st.one_of(st.integers(0, 4), st.integers(10_000, 10_004)), max_size=3),
    ),
    max_size=6,
)


@settings(max_examples=40)
@given(
    style=st.sampled_from(get_args(TextStyle)),
    question=tokens,
    answer=tokens,
    choices=st.lists(tokens, min_size=4, max_size=4),
)
def test_spans_and_lengths_hold_for_any_words(
    style: TextStyle, question: list[Any], answer: list[Any], choices: list[Any]
) -> None:
    for candidate in word_candidates(style, OBJECTS, [question, answer], choices):
        assert candidate.text == normalise_text(candidate.text)
        assert 0 <= candidate.question_length <= candidate.context_length <= len(candidate.text)
        for tag in candidate.tags:
            assert 0 <= tag.box < len(OBJECTS)
            shown = candidate.text[tag.start : tag.end]
            assert shown
            assert shown == shown.strip()
        for end in (candidate.question_length, candidate.context_length):
            assert end in (0, len(candidate.text)) or candidate.text[end] == " "
