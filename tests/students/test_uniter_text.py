"""UNITER's rows equal its own collate: special tokens, types, person tokens; texts are cut only when asked."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from made_examples import unit
from references import ASSETS, reference

from advl_pipeline.base.errors import DatasetError
from advl_pipeline.datasets.records import Candidate, Example, ObjectTag, text_unit
from advl_pipeline.students.registry import build_student
from advl_pipeline.students.tokenizer import TokenPart
from advl_pipeline.students.uniter import Uniter

CLS_ID, SEP_ID = 101, 102


@pytest.fixture(scope="module")
def student() -> Uniter:
    return build_student("uniter-tiny")


def part(token_ids: list[int]) -> TokenPart:
    return TokenPart(token_ids=token_ids, spans=[(0, 0)] * len(token_ids))


@pytest.mark.parametrize("task", ["qa", "qar"])
def test_rows_equal_the_original_collate(task: str, student: Uniter) -> None:
    expected = reference("uniter_data/vcr_collate_expected.npz")
    items: dict[str, Any] = json.loads((ASSETS / "uniter_data" / "vcr_items.json").read_text())
    assert (student.tokenizer.cls_id, student.tokenizer.sep_id) == (CLS_ID, SEP_ID)
    row = 0
    for item in items.values():
        answers = item["input_ids_as"]
        context = [part(item["input_ids"])]
        if task == "qar":
            context.append(part(answers[item["qa_target"]]))
        for choice in answers if task == "qa" else item["input_ids_rs"]:
            made = student.lay_out([*context, part(choice)], "vcr-q2a")
            length = len(made.token_ids)
            assert made.token_ids == expected[f"{task}/input_ids"][row][:length].tolist()
            assert made.types == expected[f"{task}/txt_type_ids"][row][:length].tolist()
            assert not expected[f"{task}/input_ids"][row][length:].any()
            row += 1
    assert row == 8


def example(text: str, tags: tuple[ObjectTag, ...] = (), context_length: int = 0) -> Example:
    image = unit(boxes=[[0] * 4] * 3, labels=("person", "dog", "person"))
    candidate = Candidate(text_unit=text_unit(text), context_length=context_length, tags=tags)
    return Example(example_id="e", task="vcr-q2a", image=image, candidates=(candidate,), label=0)


def test_a_person_is_one_token_and_other_objects_are_words(student: Uniter) -> None:
    text = "Why is person_0 near the dog ? person_2 , maybe ."
    spans = [(text.index(word), text.index(word) + len(word)) for word in ("person_0", "dog", "person_2")]
    tags = tuple(ObjectTag(start=start, end=end, box=box) for box, (start, end) in enumerate(spans))
    tensors, num_cut = student.collate_texts([example(text, tags, context_length=text.index(" person_2"))])
    ids, places = tensors["token_ids_NL"][0].tolist(), tensors["char_spans_NL2"][0].tolist()
    first_person = student.config.vocab_size
    assert num_cut == 0
    assert [place for token, place in zip(ids, places, strict=True) if token >= first_person] == [
        list(spans[0]),
        list(spans[2]),
    ]
    assert [token - first_person for token in ids if token >= first_person] == [0, 2]
    assert list(spans[1]) in places


def test_people_beyond_the_table_share_its_last_token(student: Uniter) -> None:
    many = example("person_90 waits .", (ObjectTag(start=0, end=9, box=90),))
    crowd = unit(boxes=[[0] * 4] * 91, labels=("person",) * 91)
    tensors, _ = student.collate_texts([dataclasses.replace(many, image=crowd)])
    assert tensors["token_ids_NL"].max() == student.config.vocab_size + 80


def test_long_texts_are_an_error_unless_cutting_is_asked_for() -> None:
    long = example("why " * 50 + "because " * 10, context_length=199)
    for name, length in (("uniter-tiny", 64), ("scenes-small", 63)):
        with pytest.raises(DatasetError, match="this student takes 20") as raised:
            build_student(name, overrides={"max_text_length": 20}).collate([long])
        assert f"--student-option max_text_length={length}" in str(raised.value.next_command)
        build_student(name, overrides={"max_text_length": length}).text_tokens([long])
    for name in ("uniter-tiny", "scenes-small"):
        student = build_student(name, overrides={"max_text_length": 20})
        student.cut_texts()
        assert student.count_cut([long, example("why", context_length=0)]) == 1
        tokens_NL, _ = student.text_tokens([long])
        assert tokens_NL.shape[1] <= 20
    cutting = build_student("uniter-tiny", overrides={"max_text_length": 20, "overlong": "cut"})
    tensors, num_cut = cutting.collate_texts([long])
    assert num_cut == 1
    assert tensors["token_mask_NL"].sum() == 19
    spans = tensors["char_spans_NL2"][0]
    answer = [list(span) for span in spans.tolist() if span[0] >= 200]
    assert len(answer) == 8
