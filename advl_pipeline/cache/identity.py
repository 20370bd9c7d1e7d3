"""Identity: one canonical form of everything that changes a cache's numbers, its digest, and what differs.

The canonical form is JSON in UTF-8 with sorted keys, no white space, no NaN: equal settings give equal bytes, and
different settings (1 and 1.0 and true and "1" included) give different ones.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from advl_pipeline.errors import IdentityMismatch

SCHEMA_VERSION = 1
"""Version of the store's layout (`docs/cache-format.md`); part of every identity."""

ABSENT = "(absent)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """One setting that differs: its dotted path and both values as canonical JSON, or `ABSENT`."""

    path: str
    expected: str
    found: str


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
    expected: Mapping[str, Any], found: Mapping[str, Any], *, partial: bool = False
) -> tuple[Difference, ...]:
    """List the settings in which two identities differ, in the order of their paths.

    Args:
        partial: ignore settings that `expected` does not mention.
    """
    left, right = dict(_leaves(expected, ())), dict(_leaves(found, ()))
    if partial:
        right = {keys: value for keys, value in right.items() if keys in left}
    return tuple(
        Difference(
            # A key that could be taken for a path is quoted.
            path=".".join(json.dumps(key, ensure_ascii=False) if not key or "." in key else key for key in keys),
            expected=left.get(keys, ABSENT),
            found=right.get(keys, ABSENT),
        )
        for keys in sorted(left.keys() | right.keys())
        if left.get(keys) != right.get(keys)
    )


def difference_table(rows: tuple[Difference, ...], *, width: int = 44) -> str:
    """Render differences as two columns, long values cut in the middle."""
    header = ("setting", "asked for", "found")
    cells = [header, *((row.path, _short(row.expected, width), _short(row.found, width)) for row in rows)]
    widths = [max(len(cell[column]) for cell in cells) for column in range(3)]
    return "\n".join(
        "    " + "  ".join(text.ljust(size) for text, size in zip(cell, widths, strict=True)) for cell in cells
    )


def require_identity(
    expected: Mapping[str, Any],
    found: Mapping[str, Any],
    *,
    where: str,
    next_command: str,
    partial: bool = False,
) -> None:
    """Refuse an identity that differs from the expected one.

    Raises:
        IdentityMismatch: with a two-column difference and the command that makes the cache anew.
    """
    rows = differences(expected, found, partial=partial)
    if rows:
        raise IdentityMismatch(
            f"The cache was made under other settings ({len(rows)} differ).",
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


def _short(text: str, width: int) -> str:
    if len(text) <= width:
        return text
    half = (width - 3) // 2
    return text[:half] + "..." + text[-half:]
