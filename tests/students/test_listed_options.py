"""Chat students that are shown the choices: what a row says, whose words lie where, and that a run learns so."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import printed
from own_rows import choice_row, write_json_lines

from advl_pipeline.base.errors import DatasetError
from advl_pipeline.datasets.listed_options import CLOSINGS
from advl_pipeline.datasets.records import MULTIPLE_CHOICE_TASKS
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.runs.results import read_json
from advl_pipeline.students.chat import Chat
from advl_pipeline.students.generative import GenerativeStudent
from advl_pipeline.students.registry import build_student


@pytest.fixture(scope="module")
def student() -> GenerativeStudent:
    built = build_student("smolvlm-tiny", overrides={"options": "letters"})
    assert isinstance(built, GenerativeStudent)
    return built


def rows_of(folder: Path, **changes: object) -> str:
    return str(write_json_lines(folder / "mine.jsonl", [choice_row(0, split=..., **changes)]))


def said(chat: Chat, ids: list[int]) -> str:
    text: str = chat._tokenizer.decode(ids)
    return " ".join(text.split())


def test_a_candidate_is_its_letter_and_its_words_are_those_of_its_line(
    student: GenerativeStudent, tmp_path: Path
) -> None:
    example = open_dataset(rows_of(tmp_path), split="train")[0]
    assert example.task in MULTIPLE_CHOICE_TASKS
    picture = student.read_picture(example.image)
    rows = student.chat.rows(example.candidates, example.task, "", picture, lists_options=True)
    hidden = student.chat.rows(example.candidates, example.task, "", picture)
    for number, (row, plain, candidate) in enumerate(zip(rows, hidden, example.candidates, strict=True)):
        whole = said(student.chat, row.token_ids_S.tolist())
        question = candidate.text[: candidate.context_length].lower()
        options = [each.text[each.answer_start :] for each in example.candidates]
        listed = " ".join(f"{letter}. {text}" for letter, text in zip("abcd", options, strict=True))
        assert f"{question} {listed} {CLOSINGS['letters'].lower()}".replace(" ", "") in whole.replace(" ", "")
        answer = said(student.chat, row.token_ids_S[row.prompt_length :].tolist())
        assert answer.split()[0].rstrip(".") == "abcd"[number]
        # As many tokens are told to be of the candidate, and they stand for the same characters.
        spans = [tuple(span) for span in row.spans_S2.tolist() if span[1]]
        assert spans == [tuple(span) for span in plain.spans_S2.tolist() if span[1]]
        of_answer = [place for place, span in enumerate(row.spans_S2.tolist()) if span[0] >= candidate.answer_start]
        words = said(student.chat, row.token_ids_S[of_answer].tolist())
        assert words.replace(" ", "") == options[number].replace(" ", "").lower()
        assert max(of_answer) < row.prompt_length, "they are read in the question, not in the answer"


def test_yes_and_no_are_not_listed_and_letters_end_at_z(student: GenerativeStudent, tmp_path: Path) -> None:
    asked = open_dataset(rows_of(tmp_path, choices=["yes", "no"], label=0), split="train")[0]
    picture = student.read_picture(asked.image)
    (row, _) = student.chat.rows(asked.candidates, asked.task, "", picture, lists_options=True)
    (plain, _) = student.chat.rows(asked.candidates, asked.task, "", picture)
    assert row.token_ids_S.tolist() == plain.token_ids_S.tolist()
    many = [f"thing {number}" for number in range(27)]
    wide = open_dataset(rows_of(tmp_path / "b", choices=many, label=0), split="train")[0]
    assert len(student.chat.rows(wide.candidates, wide.task, "", picture)) == 27
    with pytest.raises(DatasetError, match="27 options, and letters go from A to Z"):
        student.chat.rows(wide.candidates, wide.task, "", picture, lists_options=True)


def test_a_run_is_trained_and_scored_with_options_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [choice_row(number, split=("train", "test")[number % 2]) for number in range(8)]
    data, run = write_json_lines(tmp_path / "mine.jsonl", rows), tmp_path / "run"
    words = ("--student", "smolvlm-tiny", "--student-option", "options=letters", "--method", "plain")
    printed(capsys, "finetune", "--data", data, *words, "--num-steps", 2, "--batch-size", 2, "--output", run)
    assert read_json(run / "student.json")["config"]["options"] == "letters"
    printed(capsys, "evaluate", run, "--on", "test", "--probe", "none")
    printed(capsys, "evaluate", run, "--on", "test", "--as", "letters")
    assert (run / "evaluation" / "test@letters.npz").is_file()
