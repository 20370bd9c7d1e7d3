"""What a folder holds: each kind of folder that ADVL writes is known by one record, which is written before the rest.

A command asks here before it writes into a folder, so that no folder ever holds two kinds of content: what repairs,
replaces or removes one of them would destroy the other.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from advl_pipeline.base.errors import ConfigError, Suggestion, suggest_names

FolderKind = Literal["cache", "corpus", "study", "run", "student"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Marker:
    """The file whose presence makes a folder one of a kind, and a key that its JSON object has."""

    file: str
    key: str
    name: str
    """What the kind is called in a sentence."""


MARKERS: Mapping[FolderKind, Marker] = {
    "cache": Marker(file="identity.json", key="schema_version", name="a teacher cache"),
    "corpus": Marker(file="corpus.json", key="corpus", name="a built-in corpus"),
    "study": Marker(file="study.json", key="study", name="a study"),
    "run": Marker(file="run.json", key="options", name="a finetuning run"),
    "student": Marker(file="student.json", key="student", name="a pretrained student"),
}
"""In the order in which they are asked for: a finished run is a student too."""

_CACHE_PLAN = "records/plan.json"
"""Tells a cache that lost its identity, which `advl cache repair` writes again."""

LOCK = ".lock"
"""In a run or a pretrained student, held by the process that writes there."""

CACHE_NOTES: Mapping[str, bytes] = {"extraction.jsonl": b'{"seconds": ', "vouched.json": b'{"record": '}
"""Files next to a cache, named after it: how their names end, and how their content begins."""

_MAX_MARKER_BYTES = 1 << 28


def default_cache(teacher: str, dataset: str, split: str) -> Path:
    """Return the folder that a teacher's cache of a split goes to by default; `dataset` is its label."""
    return Path("caches") / teacher.replace(":", "-").replace("/", "-") / dataset / split


def cache_note(cache: Path, ending: str) -> Path:
    """Return the path of one of the `CACHE_NOTES`, such as train.vouched.json next to the cache train/."""
    cache = cache.resolve()
    return cache.with_name(f"{cache.name}.{ending}")


def may_note(note: Path) -> bool:
    """Whether one of the `CACHE_NOTES` may be written or removed: it is not there, or it is a file of ours."""
    begins = next(start for ending, start in CACHE_NOTES.items() if note.name.endswith(f".{ending}"))
    if note.is_symlink() or not note.is_file():
        return not os.path.lexists(note)
    with note.open("rb") as file:
        head = file.read(len(begins))
    return head in (begins, b"")


def folder_kind(folder: Path) -> FolderKind | None:
    """Return the kind of a folder; None where it is missing, empty or not ours."""
    for kind, marker in MARKERS.items():
        path = folder / marker.file
        try:
            if not path.is_file() or path.stat().st_size > _MAX_MARKER_BYTES:
                continue
            content: Any = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            # A damaged file of the right name still tells whose folder it was.
            return kind
        except OSError:
            continue
        if isinstance(content, dict) and marker.key in content:
            return kind
    return "cache" if (folder / _CACHE_PLAN).is_file() else None


def near_folder(path: Path, *kinds: FolderKind) -> Suggestion | str:
    """Return the folder of a kind that is meant by a path where nothing is; "" where none has a near name."""
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
    """Refuse to write a kind of content into a folder that holds anything else.

    Args:
        folder: need not exist.
        kind: of what is to be written.
        option: that named the folder.

    Raises:
        ConfigError: a folder of another kind, one with files that ADVL did not write, a file, or a place inside
            another folder of ours; runs may be in studies.
    """
    present, why = folder_kind(folder), ""
    if present == kind:
        return
    if present is not None:
        why = f"it holds {MARKERS[present].name} ({MARKERS[present].file})"
    elif folder.exists() and not folder.is_dir():
        why = "it is a file"
    elif folder.is_dir():
        # A command of ours that is killed before its first record leaves a lock and work in progress.
        of_ours = (".work", LOCK)
        names = sorted(path.name for path in folder.iterdir())
        if names := [name for name in names if name not in of_ours and not name.endswith(".partial")]:
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            why = f"it is not empty and has no {MARKERS[kind].file}, by which {MARKERS[kind].name} is known: {shown}"
    if why:
        what = f"This folder cannot take {MARKERS[kind].name}."
        raise ConfigError(what, where=str(folder), why=why, next_command=f"give another {option}")
    require_outside(folder, option=option, home="study" if kind == "run" else None)


def require_outside(path: Path, *, option: str = "--output", home: FolderKind | None = None) -> None:
    """Refuse to write a file or a folder inside a folder of ours that it is no part of.

    Args:
        path: need not exist.
        option: that named it.
        home: a kind of folder in which it may be: runs are in studies.

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
    """Return the path, or the nearest of its parents that exists."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def folder_bytes(folder: Path) -> int:
    """Return the sizes of all files below a folder, added up."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
