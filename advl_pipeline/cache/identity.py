"""The identity of a cache, and its provenance: how it was made, recorded next to the identity but not part of it.

An identity contains everything that changes the numbers. Its canonical form is JSON in UTF-8 with sorted keys, no
white space and no NaN. Equal settings give equal bytes, and different settings give different ones: 1, 1.0, true and
"1" all differ.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from advl_pipeline.base.errors import Advice, IdentityMismatch, advise
from advl_pipeline.base.locations import Location
from advl_pipeline.cache.store import Readable, read_metadata

SCHEMA_VERSION = 1
"""Version of the store's layout (`docs/cache-format.md`); part of every identity."""

ABSENT = "(absent)"

PROVENANCE_FILE = "records/provenance.json"

IMPORTED = "import:"
"""Prefix of the name of a teacher with imported features."""

_IMPORT_OPTIONS = "dataset split ground_truth_regions dtype data_root".split()

_EXTRACT_OPTIONS = (
    "teacher dataset split modality image_tokens grid_side dtype select_texts mixed_precision "
    "text_style shard_rows on_error weights data_root shots seed ids"
).split()

_UNSAID = {"grid_side": 12, "seed": [0], "ids": [], "shard_rows": 32768, "on_error": "fail"}
"""Defaults that a command need not state."""

Difference = tuple[str, str, str]
"""One setting that differs: its dotted path, its expected and its actual value as canonical JSON or `ABSENT`."""


def canonical_json(value: Any) -> bytes:
    """Return the canonical bytes of plain JSON types (tuples count as lists).

    Raises:
        TypeError: a value of another type, or a key that is not a string.
        ValueError: a number that JSON cannot hold.
    """
    _require_plain(value, "identity")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest(value: Any) -> str:
    """Return the hexadecimal SHA-256 of the canonical bytes."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def differences(
    expected: Mapping[str, Any], actual: Mapping[str, Any], *, partial: bool = False
) -> tuple[Difference, ...]:
    """List the settings in which two identities differ, in the order of their paths.

    Args:
        partial: ignore settings that `expected` does not mention.
    """
    left, right = dict(_leaves(expected, ())), dict(_leaves(actual, ()))
    if partial:
        right = {keys: value for keys, value in right.items() if keys in left}
    return tuple(
        (
            # Quote a key that could be mistaken for a path.
            ".".join(json.dumps(key, ensure_ascii=False) if not key or "." in key else key for key in keys),
            left.get(keys, ABSENT),
            right.get(keys, ABSENT),
        )
        for keys in sorted(left.keys() | right.keys())
        if left.get(keys) != right.get(keys)
    )


_COLUMN_WIDTH = 44


def difference_table(rows: tuple[Difference, ...]) -> str:
    """Render differences as two columns, with long values shortened in the middle."""
    header = ("setting", "asked for", "found")
    cells = [header, *((path, _short(expected), _short(found)) for path, expected, found in rows)]
    widths = [max(len(cell[column]) for cell in cells) for column in range(3)]
    return "\n".join(
        "    " + "  ".join(text.ljust(size) for text, size in zip(cell, widths, strict=True)) for cell in cells
    )


def require_identity(
    expected: Mapping[str, Any],
    actual: Mapping[str, Any],
    *,
    where: str,
    next_command: str,
    partial: bool = False,
) -> None:
    """Refuse an identity that differs from the expected one.

    Raises:
        IdentityMismatch: with a two-column difference and the command that makes the cache again.
    """
    rows = differences(expected, actual, partial=partial)
    if rows:
        raise IdentityMismatch(
            f"The cache was made with other settings ({len(rows)} differ).",
            where=where,
            why="\n" + difference_table(rows),
            next_command=next_command,
        )


def _require_plain(value: Any, path: str) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{path}: key {key!r} is not a string")
            _require_plain(item, f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        for position, item in enumerate(value):
            _require_plain(item, f"{path}[{position}]")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{path}: {value} has no canonical form")
    elif value is not None and type(value) not in (str, int, bool):
        raise TypeError(f"{path}: {type(value).__name__} is not a plain JSON type")


def _leaves(value: Any, keys: tuple[str, ...]) -> list[tuple[tuple[str, ...], str]]:
    if isinstance(value, Mapping) and (value or not keys):
        return [leaf for key, item in value.items() for leaf in _leaves(item, (*keys, key))]
    return [(keys, canonical_json(value).decode())]


def _short(text: str) -> str:
    if len(text) <= _COLUMN_WIDTH:
        return text
    half = (_COLUMN_WIDTH - 3) // 2
    return text[:half] + "..." + text[-half:]


def extract_command(
    config: Mapping[str, Any], output: Location | str = "", *, renew: bool = False, note: str = ""
) -> Advice:
    """Return the command that makes or resumes a cache or, with `renew`, removes the existing one and makes it again.

    Args:
        config: options of the extraction, possibly incomplete.
        output: location of the cache, if it is not the default one.
    """
    teacher = str(config.get("teacher", ""))
    is_import = teacher.startswith(IMPORTED)
    if is_import:
        name = teacher.removeprefix(IMPORTED)
        words = ["advl", "cache", "import", str(config.get("source", "SOURCE")), "--name", name]
    elif teacher:
        words = ["advl", "extract"]
    else:
        words = "advl extract --teacher NAME --dataset NAME --split SPLIT".split()
    for key in _IMPORT_OPTIONS if is_import else _EXTRACT_OPTIONS:
        value = config.get(key)
        if value is not None and value != _UNSAID.get(key):
            for item in value if isinstance(value, (list, tuple)) else [value]:
                words += ["--" + key.replace("_", "-"), str(item)]
    words += ["--output", str(output)] if output else []
    return advise(*([["advl", "cache", "prune", str(output), "--all"]] if renew else []), words, note=note)


def recorded_command(store: Readable, *, renew: bool = False) -> Advice:
    """Return the `extract_command` of a cache, from the options in its record."""
    recorded = read_metadata(store, PROVENANCE_FILE)
    config = recorded.get("config") if isinstance(recorded, dict) else None
    return extract_command(config if isinstance(config, dict) else {}, store.location, renew=renew)
