"""A corpus of photographs: built from class folders and a file, and what is wrong with either is named."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from advl_data.scenes.config import ScenesConfig
from advl_data.scenes.generator import paths
from advl_data.scenes.generator.build import RECORD_FILE, folder_digest, run_build_scenes
from advl_data.scenes.generator.photograph_kinds import load_photograph_vocabulary
from advl_data.scenes.generator.photographs import LEAST_PHOTOGRAPHS, SHARES, read_photographs
from advl_pipeline.base.errors import ConfigError, DatasetError
from advl_pipeline.base.packages import read_data
from advl_pipeline.datasets.registry import open_dataset

KINDS = {
    "pet": ["cat", "dog", "hamster"],
    "bird": ["owl", "robin", "wren"],
    "fruit": ["apple", "pear", "plum"],
    "tool": ["hammer", "saw", "drill"],
    "vehicle": ["car", "van", "tram"],
    "toy": ["kite", "top", "doll"],
    "plant": ["fern", "moss", "ivy"],
    "boat": ["canoe", "raft", "yacht"],
}


def descriptions() -> str:
    family_of = {name: family for family, names in KINDS.items() for name in names}
    return "\n".join(
        f'[{name}_folder]\nname = "{name}"\narticle = "a"\nfamily = "{family}"\n'
        f'does = ["does what is number {number}"]\nheld_out = ["is said as number {number}"]\n'
        for number, (name, family) in enumerate(family_of.items())
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of small pictures of noise, a grey one and one of printers' colours among them."""
    draws, folder = np.random.default_rng(0), tmp_path_factory.mktemp("photographs")
    for name in (name for names in KINDS.values() for name in names):
        (folder / "photographs" / f"{name}_folder").mkdir(parents=True)
        for number in range(LEAST_PHOTOGRAPHS):
            picture = Image.fromarray(draws.integers(0, 256, (52, 64, 3), dtype=np.uint8))
            picture = picture.convert({0: "L", 1: "CMYK"}.get(number, "RGB"))
            picture.save(folder / "photographs" / f"{name}_folder" / f"{number}.jpg")
    (folder / "said.toml").write_text(descriptions())
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(whole, tmp_path / "mine"))


def config(folder: Path, **changes: object) -> ScenesConfig:
    of_a_few = ScenesConfig(
        num_caption_scenes=10,
        num_train=8,
        num_val=4,
        num_test=8,
        num_unseen=0,
        num_compositional=4,
        num_shift_inputs=4,
        workers=1,
        photographs=folder / "photographs",
        descriptions=folder / "said.toml",
        data_root=folder / "data",
    )
    return dataclasses.replace(of_a_few, **changes)  # type: ignore[arg-type]


def lines(corpus: Path, split: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (corpus / paths.vcr_annotations(split)).read_text().splitlines()]


def test_a_folder_of_photographs_becomes_a_corpus(folder: Path) -> None:
    result = run_build_scenes(config(folder, other_families=100))
    corpus = result.folder
    assert result.digest == folder_digest(corpus)
    assert not run_build_scenes(config(folder, other_families=100)).built
    settings = json.loads((corpus / RECORD_FILE).read_text())["settings"]
    assert settings["photographs"].keys() == SHARES.keys()
    assert "photographs, under its publisher's licence" in (corpus / "ATTRIBUTION.md").read_text()
    # Every answer of a set is right once, and the four are of four families.
    families = {name: family for family, names in KINDS.items() for name in names}
    named = [line for line in lines(corpus, "train") if line["question_type"] == "name"]
    assert named
    for line in named:
        answers = [" ".join(map(str, answer)) for answer in line["answer_choices"]]  # type: ignore[attr-defined]
        told = [next(name for name in families if name in answer.lower().split()) for answer in answers]
        assert len({families[name] for name in told}) == 4
    grey = corpus / paths.VCR_FOLDER / paths.VCR_IMAGES / paths.vcr_image(paths.GREY, 0)
    red, green, blue = np.moveaxis(np.asarray(Image.open(grey), dtype=int), 2, 0)
    assert max(abs(red - green).max(), abs(red - blue).max()) <= 4
    for name in ("scenes-vcr", "scenes-vqa", "scenes-snli-ve"):
        in_colour, in_grey = (
            open_dataset(name, split=split, data_root=corpus.parent) for split in ("test", paths.GREY)
        )
        texts, texts_in_grey = (
            [[candidate.text for candidate in example.candidates] for example in dataset]
            for dataset in (in_colour, in_grey)
        )
        assert texts == texts_in_grey
    # An exchanged photograph makes another corpus.
    Image.new("RGB", (64, 64), "red").save(folder / "photographs" / "cat_folder" / "0.jpg")
    with pytest.raises(ConfigError, match="other settings") as error:
        run_build_scenes(config(folder, other_families=100))
    assert "photographs" in error.value.why


def test_pools_share_no_photograph_and_leave_none_out(whole: Path) -> None:
    vocabulary, _ = load_photograph_vocabulary(whole / "photographs", whole / "said.toml", unseen=False)
    pools = read_photographs(whole / "photographs", vocabulary.labelled, seed=1).pools
    for kind in vocabulary.labelled:
        files = [file for pool in pools.values() for file in pool[kind.code]]
        assert len(set(files)) == len(files) == LEAST_PHOTOGRAPHS
        assert all(pool[kind.code] for pool in pools.values())


CAT, DOG = "photographs/cat_folder", "photographs/dog_folder"


def said(folder: Path, old: str, new: str) -> None:
    (folder / "said.toml").write_text(descriptions().replace(old, new, 1))


Damage = Callable[[Path], object]
DAMAGES: dict[str, tuple[Damage, str, str]] = {
    "broken": (lambda f: (f / CAT / "0.jpg").write_bytes(b"\xff\xd8"), "cat_folder/0.jpg", "not a readable picture"),
    "narrow": (lambda f: Image.new("RGB", (200, 40)).save(f / CAT / "0.jpg"), "cat_folder/0.jpg", "200 x 40 pixels"),
    "few": (lambda f: [(f / CAT / f"{number}.jpg").unlink() for number in range(5)], "cat_folder", "5 photographs"),
    "twice": (lambda f: shutil.copy(f / CAT / "0.jpg", f / DOG), "dog_folder/0.jpg", "the same photograph as"),
    "link": (
        lambda f: (f / CAT / "0.jpg").symlink_to((f / CAT / "0.jpg").rename(f / "private.jpg")),
        "cat_folder/0.jpg",
        "it is a link",
    ),
    "spoken": (lambda f: said(f, "does what is number 0", "chases a dog"), "said.toml", "speaks a name, 'dog'"),
    "lone": (
        lambda f: said(f, 'family = "pet"', 'family = "beast"'),
        "said.toml",
        "family 'beast' has a single kind",
    ),
    "absent": (lambda f: (f / CAT).rename(f / "lion"), "said.toml", "[cat_folder] has no class folder"),
    "single": (lambda f: said(f, descriptions()[descriptions().index("[dog") :], ""), "said.toml", "single kind"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_what_cannot_be_used_is_named_and_nothing_is_built(folder: Path, kind: str) -> None:
    damage, where, why = DAMAGES[kind]
    damage(folder)
    with pytest.raises(DatasetError) as error:
        run_build_scenes(config(folder))
    assert where in str(error.value.where)
    assert why in str(error.value.why)
    assert not (folder / "data" / paths.FOLDER).exists()


def test_unseen_kinds_need_large_families_and_photographs_descriptions(whole: Path) -> None:
    with pytest.raises(DatasetError) as error:
        run_build_scenes(config(whole, num_unseen=4))
    assert "--num-unseen 0" in str(error.value.why)
    with pytest.raises(ConfigError, match="--photographs needs --descriptions"):
        run_build_scenes(config(whole, descriptions=None))


def test_our_descriptions_of_caltech_fit_its_folders(tmp_path: Path) -> None:
    tables = tomllib.loads(read_data("scenes/generator/caltech101.toml"))
    kinds = {code: table for code, table in tables.items() if code not in ("attribution", "families")}
    assert len(kinds) == 95
    for code in kinds:
        (tmp_path / code).mkdir()
    file = tmp_path / "ours.toml"
    file.write_text(read_data("scenes/generator/caltech101.toml"))
    vocabulary, attribution = load_photograph_vocabulary(tmp_path, file, unseen=True)
    assert "Caltech-101" in attribution
    assert {kind.code for kind in (*vocabulary.labelled, *vocabulary.unseen)} == kinds.keys()
    # Whatever is unseen has siblings, and so has what captions never name.
    families = [kind.family for kind in vocabulary.unseen]
    assert all(families.count(family) >= 2 for family in families)
    assert sum(not kind.named for kind in vocabulary.labelled) >= 15
