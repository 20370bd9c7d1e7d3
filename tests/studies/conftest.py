"""What the tests of this folder share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from advl_pipeline.studies.result import StudyResult

# The synthetic executor is imported by name, in these tests and in the processes that they start.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def result(tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    """A finished study of made-up runs, which no test changes; its file lies beside its folder."""
    from synthetic_runs import run_trial

    return run_trial(tmp_path_factory.mktemp("gathered"), num_seeds=3)


@pytest.fixture(scope="module", autouse=True)
def no_datasets_of_the_checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Made-up studies are of datasets that are not there; a corpus that a user has built must not be found.

    It holds for one module at a time: a package's fixture stays in force for files of other folders that run between.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADVL_DATA", str(tmp_path_factory.mktemp("no-datasets")))
        yield
