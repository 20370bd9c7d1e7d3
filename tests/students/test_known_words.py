"""The record of a student's pretraining, and the table of classes of words."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from advl_pipeline.base.errors import ConfigError
from advl_pipeline.students.known_words import (
    KNOWN_WORDS_FILE,
    WordRow,
    read_known_words,
    recorded_words,
    word_table,
    write_known_words,
)


def test_a_record_is_read_in_lower_case_and_a_student_without_one_tells_nothing(tmp_path: Path) -> None:
    assert not recorded_words(None).is_given
    assert not recorded_words(tmp_path).is_given
    assert not recorded_words(tmp_path / "uniter-base.pt").is_given
    (tmp_path / KNOWN_WORDS_FILE).write_text('{"Cat": 2, "cat": 3, "café": 0}', encoding="utf-8")
    known = recorded_words(tmp_path)
    assert [known.of_word(word) for word in ("cat", "café", "dog", "the")] == [0.5, 0.0, 0.0, 1.0]
    assert not known.is_held("dog")


@given(
    classes=st.dictionaries(
        st.text(st.characters(categories=("L",)), min_size=1).map(str.lower),
        st.sampled_from(("landmark", "held", "moved")),
    )
)
def test_a_table_is_read_back_as_written(classes: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("table") / "words.csv"
    rows = [WordRow(word=word, num_occurrences=3, score=0.5, word_class=kind) for word, kind in classes.items()]  # type: ignore[arg-type]
    path.write_text(word_table(rows), encoding="utf-8")
    assert read_known_words(path).classes == {word.lower(): kind for word, kind in classes.items()}


def test_a_table_as_a_spreadsheet_saves_it_gives_classes_and_other_words_are_held(tmp_path: Path) -> None:
    path = tmp_path / "words.csv"
    path.write_bytes("\ufeffclass,word\r\nlandmark,Cat\r\nmoved,mouser\r\nheld,claws\r\n".encode())
    known = read_known_words(path)
    assert [known.of_word(word) for word in ("cat", "mouser", "claws", "absent")] == [1.0, 0.0, 1.0, 1.0]
    assert [known.is_held(word) for word in ("cat", "mouser", "claws", "absent")] == [False, False, True, True]


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        *((KNOWN_WORDS_FILE, text, "") for text in ('{"cat": -1}', '{"cat": true}', '{"cat"', "cat\t3\n", "[1]")),
        ("words.csv", "word,score\ncat,1\n", "no column class"),
        ("words.csv", "word,class\ncat,known\n", "line 2: 'cat' has the class 'known'"),
        ("words.csv", "word,class\ncat\n", "line 2: 'cat' has the class None"),
        ("words.csv", "word,class\ncat,held\nCat,moved\n", "line 3: 'cat' has two classes"),
    ],
)
def test_a_damaged_list_of_words_is_refused_with_its_place(tmp_path: Path, name: str, text: str, why: str) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="known words") as refused:
        read_known_words(path)
    assert refused.value.where == str(path)
    assert why in str(refused.value.why)


def test_a_student_whose_word_vectors_start_at_random_knows_no_word(tmp_path: Path) -> None:
    known = recorded_words(None, student="words-efficientnet")
    assert known.is_given
    assert known.of_word("dog") == 0
    assert not recorded_words(None, student="efficientnet-minilm").is_given
    write_known_words(tmp_path, {"dog": 50})
    assert recorded_words(tmp_path, student="words-efficientnet").of_word("dog") > 0.5
