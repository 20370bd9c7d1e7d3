"""A store that does not go by conditions on writes is found out before anything is extracted into it."""

from __future__ import annotations

from typing import cast

import pytest

from advl_pipeline.cache.object_store import ObjectStore, Version, require_conditional_writes
from advl_pipeline.errors import ConfigError


class OneObject:
    """A store of one object that goes by conditions, but for the ways in which it fails."""

    url = "s3://bucket/cache"

    def __init__(self, *failures: str) -> None:
        self._failures = failures
        self.content: bytes | None = None

    def create(self, name: str, content: bytes) -> Version | None:
        """Write the object if it is not there."""
        if self.content is not None and "takes any creation" not in self._failures:
            return None
        self.content = content
        return self._version()

    def replace(self, name: str, content: bytes, seen: Version) -> Version | None:
        """Write the object if it is as it was seen."""
        if "takes no replacement" in self._failures:
            return None
        if seen != self._version() and "takes any replacement" not in self._failures:
            return None
        self.content = content
        return self._version()

    def delete(self, name: str) -> None:
        """Remove the object."""
        self.content = None

    def _version(self) -> Version:
        assert self.content is not None
        return Version(e_tag=self.content.decode(), version=None)


def test_a_store_that_goes_by_conditions_is_taken() -> None:
    store = OneObject()
    require_conditional_writes(cast(ObjectStore, store), "probe")
    assert store.content is None


@pytest.mark.parametrize(
    ("failure", "why"),
    [
        ("takes any creation", "had to be new"),
        ("takes no replacement", "refused to replace"),
        ("takes any replacement", "had changed since"),
    ],
)
def test_a_store_that_does_not_is_refused(failure: str, why: str) -> None:
    store = OneObject(failure)
    with pytest.raises(ConfigError, match=why):
        require_conditional_writes(cast(ObjectStore, store), "probe")
    assert store.content is None
