"""The models of the fake hub by the names of their repositories."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from fake_hub import students, teachers
from fake_hub.tokenizers import Files

PUBLISHED: Mapping[str, Callable[[str], Files]] = {**teachers.PUBLISHED, **students.PUBLISHED}
"""Repository -> the function that creates its files."""


@cache
def files_of(name: str) -> Files:
    """Return the files of a published repository; they are created once."""
    return PUBLISHED[name](name)


def write_repository(name: str, folder: Path) -> None:
    """Write the files of a published repository to a folder, as after a download."""
    for place, content in files_of(name).items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_bytes(content)
