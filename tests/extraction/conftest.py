"""A cache with confidences, which tests of this folder copy and break, and its teacher and data under every name."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_extraction import TinyDataset, tiny_extract, tiny_teacher

from advl_pipeline.extraction import run
from advl_pipeline.extraction.config import ExtractConfig


@pytest.fixture(scope="session")
def estimated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `data` and the finished `cache` of the small dataset, confidences included; never to be changed."""
    folder = tmp_path_factory.mktemp("estimated")
    tiny_extract(folder / "data", folder / "cache", confidence="probe")
    return folder


@pytest.fixture
def opened(pristine: Path, monkeypatch: pytest.MonkeyPatch) -> list[ExtractConfig]:
    """Configurations that were opened by name, whatever they name: each is given the small teacher and dataset."""
    configs: list[ExtractConfig] = []

    def open_inputs(config: ExtractConfig) -> object:
        configs.append(config)
        return tiny_teacher(), TinyDataset(pristine / "data")

    monkeypatch.setattr(run, "open_teacher_and_data", open_inputs)
    return configs
