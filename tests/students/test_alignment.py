"""Tokens of any student and of any teacher meet at the right words, whatever the text.

A span is right if the characters that it names are the ones that its piece was made of. Words follow from spans.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from fake_hub.tokenizers import KINDS, save_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from made_examples import answered, unit

from advl_pipeline.datasets.records import Candidate, Example, normalise_text
from advl_pipeline.datasets.words import NO_WORD, assign_tokens_to_words, word_spans
from advl_pipeline.students.registry import build_student
from advl_pipeline.students.text_student import TextStudent
from advl_pipeline.students.uniter import Uniter
from advl_pipeline.teachers.word_pieces import WordPieces

STUDENTS = ("uniter-tiny", "visualbert-tiny", "meter-tiny")
"""One of each layout. A generative student speaks by a chat template: `test_generative.py` compares its tokens."""

LABELS = ("person", "dog", "person")

PHRASES = [
    "isn't", "the dogs' owner", "don\u2019t", "rock'n'roll", "caf\u00e9", "na\u00efve", "\u00dcber-stra\u00dfe",
    "\ufb01ne", "\u4f60\u597d", "\U0001f600", "\U0001f469\u200d\U0001f680", "e-mail", "3,000", "7.5%", "WINE",
    "\u0939\u093f\u0928\u094d\u0926\u0940", "_under_score_", "why", "because", "?", "...", "person", "dogs",
]  # fmt: skip

parts = st.lists(
    st.one_of(
        st.sampled_from(PHRASES),
        st.tuples(st.sampled_from(("person", "dog")), st.integers(1, 3)).map(lambda tag: f"{tag[0]}{tag[1]}"),
        st.text(
            st.characters(max_codepoint=0xD7FF, exclude_categories=("Cs", "Cc", "Cn", "Co", "Mn", "Mc")),
            min_size=1,
            max_size=6,
        ),
    ),
    min_size=1,
    max_size=8,
).map(lambda words: normalise_text(" ".join(words)) or "x")


def example(candidate: Candidate) -> Example:
    image = unit(boxes=[[0] * 4] * 3, labels=LABELS)
    return Example(example_id="e", task="vcr-q2a", image=image, candidates=(candidate,), label=0)


@cache
def student_of(name: str, **options: Any) -> TextStudent:
    return build_student(name, overrides=options)


def fold(text: str) -> str:
    """What a piece and the characters that it was made of have in common: no case, accents, spaces, controls."""
    letters = unicodedata.normalize("NFKD", text.casefold())
    return "".join(
        letter
        for letter in letters
        if unicodedata.category(letter)[0] not in "CZ" and unicodedata.category(letter) != "Mn"
    )


def rows(student: TextStudent, candidate: Candidate) -> list[tuple[int, tuple[int, int]]]:
    """The tokens of a candidate with the characters that each covers, special ones left out."""
    tensors, _ = student.collate_texts([example(candidate)])
    ids, spans = tensors["token_ids_NL"][0].tolist(), tensors["char_spans_NL2"][0].tolist()
    return [(token, (start, end)) for token, (start, end) in zip(ids, spans, strict=True) if end > start]


def check_piece(piece: str, text: str, span: tuple[int, int]) -> None:
    """A piece is its characters, or a part of a single one that tokenizers take apart (Hangul, ligatures)."""
    start, end = span
    folded, covered = fold(piece), fold(text[start:end])
    assert folded == covered or (end - start == 1 and folded in covered)


def check_cover(text: str, spans: list[tuple[int, int]]) -> None:
    """No visible character is without a token."""
    covered = {position for start, end in spans for position in range(start, end)}
    assert {position for position, letter in enumerate(text) if fold(letter)} <= covered


def check_words(text: str, spans: list[tuple[int, int]]) -> set[int]:
    """Every token is of the word that it lies in; returns the words that tokens reach."""
    words = word_spans(text)
    assigned = assign_tokens_to_words(np.array(spans).reshape(-1, 2), words)
    for (start, end), word in zip(spans, assigned.tolist(), strict=True):
        overlaps = [min(end, last) - max(start, first) for first, last in words]
        assert word != NO_WORD or not any(overlap > 0 for overlap in overlaps)
        if word != NO_WORD:
            assert overlaps[word] == max(overlaps) > 0
    return set(assigned.tolist()) - {NO_WORD}


@pytest.mark.parametrize("name", STUDENTS)
@settings(max_examples=15, deadline=None)
@given(context=parts, answer=parts, length=st.integers(6, 20))
def test_a_students_tokens_name_their_characters_whole_and_cut(
    name: str, context: str, answer: str, length: int
) -> None:
    student, candidate = student_of(name, max_text_length=500, max_positions=600), answered(context, answer)
    text, tokens = candidate.text, rows(student, candidate)
    tagged = {(tag.start, tag.end): tag.box for tag in candidate.tags}
    for token, span in tokens:
        piece = student.tokenizer._tokenizer.id_to_token(token)
        if isinstance(student, Uniter) and token >= student.config.vocab_size:
            assert token == student.config.vocab_size + tagged[span]
        elif piece != "[UNK]":
            check_piece(piece.removeprefix("##"), text, span)
    whole = check_words(text, [span for _, span in tokens])
    check_cover(text, [span for _, span in tokens])
    # Each part loses tokens at its end alone, and no other word is reached then.
    cut = rows(student_of(name, max_text_length=length, overlong="cut"), candidate)
    for first, last in ((0, candidate.context_length), (candidate.answer_start, len(text))):
        full, kept = ([item for item in part if first <= item[1][0] < last] for part in (tokens, cut))
        assert kept == full[: len(kept)]
    assert check_words(text, [span for _, span in cut]) <= whole


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[WordPieces, Any]]:
    @cache
    def build(kind: str) -> tuple[WordPieces, Any]:
        tokenizer = save_tokenizer(kind, tmp_path_factory.mktemp(kind))
        return WordPieces(tokenizer), tokenizer

    return build


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None)
@given(context=parts, answer=parts)
def test_a_teachers_tokens_meet_the_students_at_the_same_words(
    kind: str, context: str, answer: str, pieces: Callable[[str], tuple[WordPieces, Any]]
) -> None:
    read, tokenizer = pieces(kind)
    candidate = answered(context, answer)
    text = candidate.text
    ((ids_M, spans_M2, _),) = read([text])
    spans = [(start, end) for start, end in spans_M2.tolist() if end > start]
    for token, (start, end) in zip(ids_M.tolist(), spans_M2.tolist(), strict=True):
        decoded = tokenizer.decode([token], clean_up_tokenization_spaces=False)
        piece = tokenizer.convert_ids_to_tokens(token)
        if piece not in tokenizer.all_special_tokens and "\ufffd" not in decoded:
            bare = decoded.removeprefix("##").removeprefix("\u2581").removesuffix("</w>")
            check_piece(bare, text, (start, end))
    students = [span for _, span in rows(student_of("uniter-tiny"), candidate)]
    for side in (spans, students):
        check_cover(text, side)
    # An unknown token may cover several words; it is of the one that it covers most.
    assert check_words(text, spans) & check_words(text, students)
