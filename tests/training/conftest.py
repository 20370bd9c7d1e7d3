"""The small corpus, built once for the tests of training."""

from __future__ import annotations

import pytest
from small_corpus import SmallCorpus, build_small_corpus


@pytest.fixture(scope="session")
def small_corpus(tmp_path_factory: pytest.TempPathFactory) -> SmallCorpus:
    return build_small_corpus(tmp_path_factory.mktemp("training"))
