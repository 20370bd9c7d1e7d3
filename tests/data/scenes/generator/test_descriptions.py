"""The descriptions of the kinds: enough of them, speakable, and giving nothing away by name or by form."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from advl_data.scenes.generator.vocabulary import (
    ASPECTS,
    DESCRIPTIONS_FILE,
    HELD_OUT,
    Description,
    Kind,
    load_vocabulary,
    read_descriptions,
)
from advl_pipeline.errors import DatasetError
from advl_pipeline.packages import read_data

VOCABULARY = load_vocabulary()
DESCRIBED = (*VOCABULARY.labelled, *VOCABULARY.unseen)

_MIN_SHARED = 4
_SUFFIXES = ("ing", "ies", "es", "ed", "s", "y", "e")
_MIN_STEM = 3
_FUNCTION_WORDS = frozenset(
    """a about above across after again all along also among an and any are around as at away back be before behind
    below beside between both but by down each even every first for from get gets goes has have her high his how in
    inside into is it its itself just last left like made make makes many may more most much near never next no nobody
    not now of off often on once one only onto or other others out outside over own part people person same several
    so some somebody someone something such than that the their them then there they thing things this those through
    to together too toward two under until up us very was when where which while who whoever whole with
    without""".split()
)


def said_of(kind: Kind) -> tuple[Description, ...]:
    return (*kind.descriptions, *kind.held_out)


def stem(word: str) -> str:
    """Return a crude stem, good enough to see that "stripe" and "stripes" say the same."""
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= _MIN_STEM:
            return word[: -len(suffix)]
    return word


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def content_stems(text: str) -> set[str]:
    return {stem(word) for word in words(text)} - {stem(word) for word in _FUNCTION_WORDS}


def shares_a_word(text: str, name: str) -> set[str]:
    """Return the words of the text that are a word of the name, by stem or one inside the other."""

    def same(word: str, part: str) -> bool:
        inside = min(len(word), len(part)) >= _MIN_SHARED and (word in part or part in word)
        return stem(word) == stem(part) or inside

    return {word for word in words(text) for part in words(name) if word not in _FUNCTION_WORDS and same(word, part)}


EVERY = [(kind, description) for kind in DESCRIBED for description in said_of(kind)]


def test_all_kinds_are_described_in_the_order_of_the_vocabulary() -> None:
    text = read_data(DESCRIPTIONS_FILE)
    headings = re.findall(r"^\[(.+)\]  # (.+)$", text, flags=re.MULTILINE)
    assert headings == [(kind.code, kind.name) for kind in DESCRIBED]
    assert list(tomllib.loads(text)) == [kind.code for kind in DESCRIBED]
    assert {key for table in tomllib.loads(text).values() for key in table} == {*ASPECTS, HELD_OUT}


def test_every_kind_has_six_descriptions_over_four_aspects_and_two_held_out() -> None:
    for kind in DESCRIBED:
        assert len(kind.descriptions) >= 6, kind.name
        assert len({description.aspect for description in kind.descriptions}) >= 4, kind.name
        assert len(kind.held_out) >= 2, kind.name
        assert {description.aspect for description in kind.held_out} == {HELD_OUT}


def test_every_description_is_a_verb_phrase_in_the_third_person() -> None:
    form = re.compile(r"(?:[a-z]+s),? [A-Za-z0-9',\- ]*[A-Za-z0-9]")
    assert [d.text for _, d in EVERY if not form.fullmatch(d.text) or "  " in d.text] == []


def test_every_description_has_four_to_twelve_words() -> None:
    assert [d.text for _, d in EVERY if not 4 <= len(d.text.split()) <= 12] == []


def test_no_description_speaks_its_own_name() -> None:
    spoken = [(kind.name, d.text, shared) for kind, d in EVERY if (shared := shares_a_word(d.text, kind.name))]
    assert spoken == []


@pytest.mark.parametrize("aspect", [*ASPECTS, HELD_OUT])
def test_the_first_word_tells_no_family(aspect: str) -> None:
    """No opening verb that is used more than a few times belongs to one family alone."""
    users: dict[str, list[str]] = {}
    for kind, description in EVERY:
        if description.aspect == aspect:
            users.setdefault(description.text.split()[0], []).append(kind.family.subcategory)
    alone = {verb: families for verb, families in users.items() if len(families) > 3 and len(set(families)) == 1}
    assert alone == {}


def test_held_out_phrasings_say_what_other_words_say() -> None:
    repeated = []
    for kind in DESCRIBED:
        heard = set().union(*(content_stems(d.text) for d in kind.descriptions))
        for description in kind.held_out:
            own = content_stems(description.text)
            if 3 * len(own & heard) > len(own):
                repeated.append((kind.name, description.text, sorted(own & heard)))
    assert repeated == []


@pytest.mark.parametrize("aspect", [*ASPECTS, HELD_OUT])
def test_no_first_word_opens_half_of_an_aspect(aspect: str) -> None:
    openings = [d.text.split()[0] for _, d in EVERY if d.aspect == aspect]
    ((_, count),) = Counter(openings).most_common(1)
    assert 2 * count < len(openings)


CAT = """
[1F408]
does = ["purrs when somebody strokes it"]
held_out = ["lands on its feet after a fall"]
"""


def read_cat(text: str, folder: Path) -> tuple[Description, ...]:
    file = folder / "mine.toml"
    file.write_text(text, encoding="utf-8")
    return read_descriptions(file, {"1F408": "cat"}, ["cat", "cats", "dog", "mammal"])["1F408"]


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "byte order mark"])
def test_a_file_of_a_users_own_is_read_as_ours_is(tmp_path: Path, mark: str) -> None:
    said = read_cat(mark + CAT, tmp_path)
    assert said == (
        Description(text="purrs when somebody strokes it", aspect="does"),
        Description(text="lands on its feet after a fall", aspect=HELD_OUT),
    )


PURRS = "purrs when somebody strokes it"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[1F408]", "[1F408", "no valid TOML"),
        ("[1F408]", f"[1F408]\nage = {'9' * 5000}", "no valid TOML"),
        ("[1F408]", "[1F409]", r"1 of the kinds are missing: \[1F408\]"),
        (CAT, f"{CAT}\n[1F409]", r"1 of the kinds are unknown: \[1F409\]"),
        ("does", "do", "has something else than lists named does, used_for"),
        (f'["{PURRS}"]', "3", "does: 3 is no list of descriptions"),
        (f'["{PURRS}"]', f'"{PURRS}"', f"does: '{PURRS}' is no list of descriptions"),
        (f'"{PURRS}"', "3", "does: 3 is no verb phrase"),
        ("purrs", "[1] purrs", "is no verb phrase"),
        ("purrs", "Purrs", "is no verb phrase"),
        ("strokes it", "strokes it.", "is no verb phrase"),
        ("strokes it", "strokes\\u2028it", "is no verb phrase"),
        (PURRS, "", "does: '' is no verb phrase"),
        ("somebody", "one of the Cats", "speaks a name, 'cats'"),
        ("somebody", "no dog", r"\[1F408\] \(cat\), does: .* speaks a name, 'dog'"),
        ("somebody", "another mammal", "speaks a name, 'mammal'"),
        (f'["{PURRS}"]', "[]", "needs at least one description to train on"),
        ("held_out", "met", "one under held_out"),
        ("lands on its feet after a fall", PURRS.replace(" when", "  when"), "is said twice"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_place_and_the_reason(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in CAT
    with pytest.raises(DatasetError, match=message) as caught:
        read_cat(CAT.replace(old, new), tmp_path)
    assert caught.value.where == str(tmp_path / "mine.toml")


def test_a_word_that_only_holds_a_name_is_not_one(tmp_path: Path) -> None:
    assert read_cat(CAT.replace("somebody", "a catty dogma"), tmp_path)
