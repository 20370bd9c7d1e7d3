"""The descriptions of the kinds: enough of them, speakable, and giving nothing away by name or by form."""

from __future__ import annotations

from pathlib import Path

import pytest

from advl_data.scenes.generator.vocabulary import (
    HELD_OUT,
    Description,
    read_descriptions,
    read_tables,
)
from advl_pipeline.base.errors import DatasetError

CAT = """
[1F408]
does = ["purrs when somebody strokes it"]
held_out = ["lands on its feet after a fall"]
"""


def read_cat(text: str, folder: Path) -> tuple[Description, ...]:
    file = folder / "mine.toml"
    file.write_text(text, encoding="utf-8")
    said = read_descriptions(file, read_tables(file), {"1F408": "cat"}, ["cat", "cats", "dog", "mammal"])["1F408"]
    return (*said["descriptions"], *said["held_out"])


def test_a_file_of_a_users_own_is_read_as_ours_is(tmp_path: Path) -> None:
    for mark in ("", "\ufeff"):
        assert read_cat(mark + CAT, tmp_path) == (
            Description(text="purrs when somebody strokes it", aspect="does"),
            Description(text="lands on its feet after a fall", aspect=HELD_OUT),
        )
    # A word that only holds a name is not one.
    assert read_cat(CAT.replace("somebody", "a catty dogma"), tmp_path)


PURRS = "purrs when somebody strokes it"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[1F408]", "[1F408", "no valid TOML"),
        ("[1F408]", "[1F409]", r"1 of the kinds are missing: \[1F408\]"),
        (CAT, f"{CAT}\n[1F409]", r"1 of the kinds are unknown: \[1F409\]"),
        ("does", "do", "has something else than lists named does, used_for"),
        (f'["{PURRS}"]', "3", "does: 3 is no list of descriptions"),
        ("purrs", "[1] purrs", "is no verb phrase"),
        ("strokes it", "strokes\\u2028it", "is no verb phrase"),
        ("somebody", "one of the Cats", "speaks a name, 'cats'"),
        ("somebody", "no dog", r"\[1F408\] \(cat\), does: .* speaks a name, 'dog'"),
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
