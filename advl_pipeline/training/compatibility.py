"""Whether caches hold what a run needs: same dataset content, every unit present. Checked before anything trains."""

from __future__ import annotations

from collections.abc import Sequence

from advl_pipeline.cache.reader import TeacherCache
from advl_pipeline.datasets.interface import Dataset
from advl_pipeline.errors import IdentityMismatch


def check_caches(caches: Sequence[TeacherCache], dataset: Dataset) -> None:
    """Compare each cache's dataset with the one that is trained on.

    Raises:
        IdentityMismatch: with both values and the command that extracts again.
    """
    expected = {
        "name": dataset.name,
        "split": dataset.split,
        "text_style": dataset.text_style,
        "content_digest": dataset.content_digest(),
    }
    for cache in caches:
        found = cache.identity["dataset"]
        lines = [
            f"{key:<16} cache {found.get(key)!s:<40} dataset {value}"
            for key, value in expected.items()
            if found.get(key) != value
        ]
        if lines:
            raise IdentityMismatch(
                "The cache was made from another dataset than the one to train on.",
                where=str(cache.path),
                why="\n         ".join(lines),
                next_command=f"advl extract --teacher {cache.identity['teacher']['name']} --dataset {dataset.name} "
                f"--split {dataset.split}",
            )
