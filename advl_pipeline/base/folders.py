"""Kinds of folders that ADVL writes, each identified by one record, which is written first.

A command checks a folder here before writing to it, so that no folder ever contains two kinds of content: repairing,
replacing or removing one of them would destroy the other.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from advl_pipeline.base.errors import ConfigError, NotAllowed, Suggestion, suggest_names
from advl_pipeline.base.locations import read_regular

FolderKind = Literal["cache", "corpus", "study", "run", "student"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Marker:
    """The file whose presence identifies a kind of folder, and a key of its JSON object."""

    file: str
    key: str
    name: str
    """The name of the kind in a sentence."""


MARKERS: Mapping[FolderKind, Marker] = {
    "cache": Marker(file="identity.json", key="schema_version", name="a teacher cache"),
    "corpus": Marker(file="corpus.json", key="corpus", name="a built-in corpus"),
    "study": Marker(file="study.json", key="study", name="a study"),
    "run": Marker(file="run.json", key="options", name="a finetuning run"),
    "student": Marker(file="student.json", key="student", name="a pretrained student"),
}
"""In lookup order: a finished run is a student too."""

_CACHE_PLAN = "records/plan.json"
"""Identifies a cache that lost its identity record, which `advl cache repair` rewrites."""

LOCK = ".lock"
"""Lock file of a run or a pretrained student, held by the process that writes to it."""

CACHE_NOTES: Mapping[str, bytes] = {"extraction.jsonl": b'{"seconds": ', "vouched.json": b'{"record": '}
"""Files next to a cache, named after it: name ending -> beginning of the content."""

_MAX_MARKER_BYTES = 1 << 28


def default_cache(teacher: str, dataset: str, split: str) -> Path:
    """Return the default folder of a teacher's cache of a split; `dataset` is the dataset's label."""
    return Path("caches") / teacher.replace(":", "-").replace("/", "-") / dataset / split


def cache_note(cache: Path, ending: str) -> Path:
    """Return the path of one of the `CACHE_NOTES`, such as train.vouched.json next to the cache train/."""
    cache = cache.resolve()
    return cache.with_name(f"{cache.name}.{ending}")


def may_note(note: Path) -> bool:
    """Return whether one of the `CACHE_NOTES` may be written or removed: it is missing, or ADVL wrote it."""
    begins = next(start for ending, start in CACHE_NOTES.items() if note.name.endswith(f".{ending}"))
    if note.is_symlink() or not note.is_file():
        return not os.path.lexists(note)
    with note.open("rb") as file:
        head = file.read(len(begins))
    return head in (begins, b"")


def folder_kind(folder: Path) -> FolderKind | None:
    """Return the kind of a folder; None if it is missing, empty or not written by ADVL."""
    for kind, marker in MARKERS.items():
        path = folder / marker.file
        try:
            if not path.is_file() or path.stat().st_size > _MAX_MARKER_BYTES:
                continue
            content: Any = json.loads(read_regular(path))
        except (ValueError, RecursionError):
            # A damaged file of the right name still identifies the folder.
            return kind
        except (OSError, NotAllowed):
            continue
        if isinstance(content, dict) and marker.key in content:
            return kind
    return "cache" if (folder / _CACHE_PLAN).is_file() else None


def near_folder(path: Path, *kinds: FolderKind) -> Suggestion | str:
    """Return the folder of a kind that a missing path probably means; "" if none has a similar name."""
    missing = next((part for part in (*reversed(path.parents), path) if not part.exists()), None)
    if missing is None or not missing.parent.is_dir():
        return ""
    below = path.relative_to(missing)
    known = [item.name for item in missing.parent.iterdir() if folder_kind(item / below) in kinds]
    suggestion = suggest_names(missing.name, known)
    if not suggestion.nearest:
        return ""
    suggestion.wanted, suggestion.nearest = str(path), str(missing.with_name(suggestion.nearest) / below)
    return suggestion


def require_folder(folder: Path, kind: FolderKind, *, option: str = "--output") -> None:
    """Refuse to write a kind of content into a folder that contains anything else.

    Args:
        folder: need not exist.
        kind: of the new content.
        option: the option that named the folder.

    Raises:
        ConfigError: the path is a folder of another kind, a folder with files that ADVL did not write, a file, or
            inside another ADVL folder; runs may be inside studies.
    """
    present, why = folder_kind(folder), ""
    if present == kind:
        return
    if present is not None:
        why = f"it holds {MARKERS[present].name} ({MARKERS[present].file})"
    elif folder.exists() and not folder.is_dir():
        why = "it is a file"
    elif folder.is_dir():
        # A command killed before its first record leaves a lock and partial files.
        of_ours = (".work", LOCK)
        names = sorted(path.name for path in folder.iterdir())
        if names := [name for name in names if name not in of_ours and not name.endswith(".partial")]:
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            why = f"it is not empty and has no {MARKERS[kind].file}, by which {MARKERS[kind].name} is known: {shown}"
    if why:
        raise ConfigError(
            f"This folder cannot take {MARKERS[kind].name}.",
            where=str(folder),
            why=why,
            next_command=f"give another {option}",
        )
    require_outside(folder, option=option, home="study" if kind == "run" else None)


def require_outside(path: Path, *, option: str = "--output", home: FolderKind | None = None) -> None:
    """Refuse to write a file or a folder inside an ADVL folder that it does not belong to.

    Args:
        path: need not exist.
        option: the option that named the path.
        home: a kind of folder that may contain it: studies contain runs.

    Raises:
        ConfigError: the path is inside such a folder.
    """
    for parent in path.resolve().parents:
        outer = folder_kind(parent)
        if outer is not None and outer != home:
            raise ConfigError(
                f"Nothing else may be written inside {MARKERS[outer].name}.",
                where=str(path),
                why=f"{parent} is one",
                next_command=f"give another {option}",
            )


def nearest_existing(path: Path) -> Path:
    """Return the path, or its nearest existing parent."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def folder_bytes(folder: Path) -> int:
    """Return the total size of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
