"""What is checked when a cache is opened: that it is one, that its files are plain, whole and where they belong."""

from __future__ import annotations

from collections.abc import Mapping

from advl_pipeline.cache.commit_records import IDENTITY_FILE
from advl_pipeline.cache.files import WORK_FOLDER, Files, entry_of
from advl_pipeline.cache.store import NOT_PLAIN, Readable, Store
from advl_pipeline.errors import ConfigError, Suggestion, advise


def require_cache(store: Store) -> dict[str, int]:
    """Return the sizes of all files; raises `ConfigError` where there is neither a cache nor a started one."""
    sizes = store.list()
    if IDENTITY_FILE not in sizes and not any(name.startswith("records/") for name in sizes):
        below = sorted(name.removesuffix(f"/{IDENTITY_FILE}") for name in sizes if name.endswith(f"/{IDENTITY_FILE}"))
        if below:
            here = str(store.location)
            told = Suggestion(f"there {'is one' if len(below) == 1 else 'are some'} below it: {', '.join(below[:4])}")
            told.wanted, told.nearest = here, f"{here.rstrip('/')}/{below[0]}"
            raise ConfigError("There is no cache here.", where=here, why=told)
        raise ConfigError(
            "There is no cache here.",
            where=str(store.location),
            why="a stopped extraction had not begun to write"
            if any(name.startswith(f"{WORK_FOLDER}/") for name in sizes)
            else "",
            next_command=advise(
                [*"advl extract --teacher NAME --dataset NAME --split SPLIT --output".split(), str(store.location)]
            ),
        )
    return sizes


def require_recorded(store: Readable, name: str, files: Files) -> bytes:
    """Read a small file whose content must be what the commit record says; raises `CorruptCache`."""
    raw = store.get(name)
    if entry_of(raw) != files.get(name):
        raise store.damaged("A file of the cache is not what its commit record says.", name)
    return raw


def require_sizes(store: Readable, sizes: Mapping[str, int], files: Files) -> None:
    """Check that every recorded file is there, plain and of its recorded size; raises `CorruptCache`."""
    for name, entry in files.items():
        if problem := size_problem(sizes, name, entry.num_bytes):
            raise store.damaged("A file of the cache is damaged.", name, problem)


def size_problem(sizes: Mapping[str, int], name: str, num_bytes: int) -> str | None:
    """Return what a listing shows to be wrong with a file, or None."""
    found = sizes.get(name)
    if found == num_bytes:
        return None
    if found is None:
        parts = name.split("/")
        is_below_link = any("/".join(parts[:count]) in sizes for count in range(1, len(parts)))
        return "a folder above it is a link, or no folder" if is_below_link else "it is missing"
    return "it is no plain file" if found == NOT_PLAIN else f"it has {found} bytes instead of {num_bytes}"
