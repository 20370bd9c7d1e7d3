"""A store that does not go by conditions on writes is found out before anything is extracted into it."""

from __future__ import annotations

from typing import cast

import pytest

from advl_pipeline.cache.object_store import ObjectStore, require_conditional_writes
from advl_pipeline.errors import ConfigError


class OneObject:
    """A store of one object, which goes by conditions or does not."""

    url = "s3://bucket/cache"

    def __init__(self, *, goes_by_conditions: bool) -> None:
        self._goes_by_conditions = goes_by_conditions
        self.content: bytes | None = None

    def create(self, name: str, content: bytes) -> bool:
        """Write the object if it is not there."""
        if self.content is not None and self._goes_by_conditions:
            return False
        self.content = content
        return True

    def delete(self, name: str) -> None:
        """Remove the object."""
        self.content = None


def test_a_store_that_goes_by_conditions_is_taken_and_one_that_does_not_is_refused() -> None:
    store = OneObject(goes_by_conditions=True)
    require_conditional_writes(cast(ObjectStore, store), "probe")
    assert store.content is None
    store = OneObject(goes_by_conditions=False)
    with pytest.raises(ConfigError, match="had to be new"):
        require_conditional_writes(cast(ObjectStore, store), "probe")
    assert store.content is None
