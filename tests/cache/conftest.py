"""A finished cache of the small dataset, made once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import settings
from tiny_extraction import tiny_extract

# A busy machine is no failure.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `data` and the finished `cache`; never to be changed."""
    folder = tmp_path_factory.mktemp("pristine-cache")
    tiny_extract(folder / "data", folder / "cache")
    return folder


@pytest.fixture
def cache_path(pristine: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    shutil.copytree(pristine / "cache", tmp_path / "cache")
    return tmp_path / "cache"
