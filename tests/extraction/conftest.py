"""A place of its own in a real S3 store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_server import BUCKET, S3Server, environment_of

from advl_pipeline.locations import Url, parse_location


@pytest.fixture
def url(s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Url]:
    monkeypatch.setenv("ADVL_DISK_CACHE", str(tmp_path / "disk-cache"))
    with environment_of(s3_server.environment):
        location = parse_location(f"s3://{BUCKET}/{tmp_path.name}/cache")
        assert isinstance(location, Url)
        yield location
