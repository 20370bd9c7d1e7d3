"""Fixtures of the students' tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

ASSETS = Path(__file__).parent.parent / "assets" / "students"

Reference = Mapping[str, torch.Tensor]


@pytest.fixture(scope="session")
def reference() -> Callable[[str], Reference]:
    """Read the arrays of one reference file as tensors."""

    def read(name: str) -> Reference:
        with np.load(ASSETS / name, allow_pickle=False) as arrays:
            return {key: torch.from_numpy(arrays[key]) for key in arrays.files if arrays[key].dtype.kind != "U"}

    return read


@pytest.fixture(scope="session")
def assets() -> Path:
    """Folder of the reference files."""
    return ASSETS
