"""Alignment by characters: nothing is silently misaligned, whatever tokenizer cut the text."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advl_pipeline.datasets.words import NO_WORD, align_tokens_to_words, assign_tokens_to_words, word_spans
from advl_pipeline.distillation.pooling import pool_to_words

TEXT = st.text(alphabet=st.sampled_from("ab Zé1 '\u2019.,?-_日本\U0001f600\u0301"), max_size=40)


def words_of(text: str) -> list[str]:
    return [text[start:end] for start, end in word_spans(text)]


def test_words_contractions_tags_and_punctuation() -> None:
    assert words_of("It isn't object 2's well-known tail.") == [
        "It", "isn't", "object", "2's", "well", "-", "known", "tail", ".",
    ]  # fmt: skip
    assert words_of("person_1 waits") == ["person", "_", "1", "waits"]
    assert words_of("") == []
    # Marks belong to the letter before them, in scripts where no composed letter exists too.
    assert words_of("हिन्दी किताब, i̇stanbul's การ์ตูน") == ["हिन्दी", "किताब", ",", "i̇stanbul's", "การ์ตูน"]
    assert words_of("\u2014\u0301a \U0001f3f3\ufe0f") == ["\u2014", "\u0301", "a", "\U0001f3f3", "\ufe0f"]


@given(TEXT)
@settings(deadline=None, max_examples=40)
def test_words_cover_every_character_that_is_no_space_once(text: str) -> None:
    covered = [index for start, end in word_spans(text) for index in range(start, end)]
    assert covered == sorted(set(covered))
    for index, character in enumerate(text):
        if not character.isspace() and (character.isalnum() or not _is_mark(character)):
            assert index in covered, (text, character)


def _is_mark(character: str) -> bool:
    import unicodedata

    return unicodedata.category(character).startswith("M")


@given(st.lists(TEXT, max_size=5), st.data())
@settings(deadline=None, max_examples=40)
def test_texts_of_a_batch_are_aligned_each_to_its_own_words(texts: list[str], data: st.DataObject) -> None:
    num_tokens = data.draw(st.integers(0, 6))
    spans_NL2 = np.zeros((len(texts), num_tokens, 2), dtype=np.int64)
    for row, text in enumerate(texts):
        for token in range(data.draw(st.integers(0, num_tokens))):
            spans_NL2[row, token] = sorted(data.draw(st.tuples(*[st.integers(0, len(text))] * 2)))
    found_NL = align_tokens_to_words(spans_NL2, [word_spans(text) for text in texts])
    assert found_NL.shape == (len(texts), num_tokens)
    for row, text in enumerate(texts):
        for token, (start, end) in enumerate(spans_NL2[row]):
            overlaps = [min(end, stop) - max(start, begin) for begin, stop in word_spans(text)]
            best = max(overlaps, default=0)
            assert found_NL[row, token] == (overlaps.index(best) if best > 0 else NO_WORD)


def test_leading_space_in_a_span_and_empty_spans() -> None:
    words = word_spans("a cat sat")
    spans = np.array([(0, 0), (0, 1), (1, 5), (5, 9), (0, 0)])
    assert assign_tokens_to_words(spans, words).tolist() == [-1, 0, 1, 2, -1]
    assert assign_tokens_to_words(spans, ()).tolist() == [-1] * 5


def test_two_tokenisations_pool_to_the_same_words() -> None:
    text = "the hummingbird isn't red"
    words = word_spans(text)
    fine = np.array([(index, index + 1) for index in range(len(text)) if text[index] != " "])
    coarse = np.array(words)
    position = torch.arange(len(text), dtype=torch.float32)
    pooled = []
    for spans in (fine, coarse):
        # A token's state is the mean position of its characters, weighted as its only feature.
        states = torch.stack([position[a:b].mean() for a, b in spans]).reshape(1, -1, 1)
        index = torch.from_numpy(assign_tokens_to_words(spans, words)).reshape(1, -1)
        values, present = pool_to_words(states, index, len(words))
        assert present.all()
        pooled.append(values)
    torch.testing.assert_close(*pooled)
