"""Whether caches hold what a run needs: same dataset content, every unit present. Checked before anything trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from advl_pipeline.cache.provenance import renew_command
from advl_pipeline.cache.reader import TeacherCache
from advl_pipeline.datasets.interface import Dataset
from advl_pipeline.distillation.settings import DistillationSettings
from advl_pipeline.errors import ConfigError, IdentityMismatch


def dataset_identity(dataset: Dataset) -> dict[str, Any]:
    """Return what a cache must have in common with the split that is trained on."""
    return {
        "name": dataset.name,
        "split": dataset.split,
        "text_style": dataset.text_style,
        "content_digest": dataset.content_digest(),
    }


def check_caches(caches: Sequence[TeacherCache], dataset: Dataset) -> None:
    """Compare each cache's dataset with the one that is trained on.

    Raises:
        IdentityMismatch: with both values and the command that extracts again.
    """
    expected = dataset_identity(dataset)
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
                next_command=renew_command(
                    cache.provenance["config"]
                    | {"dataset": dataset.name, "split": dataset.split, "text_style": dataset.text_style},
                    cache.path,
                ),
            )


def check_selection(caches: Sequence[TeacherCache], settings: DistillationSettings) -> None:
    """Refuse token selections that a cache with only some of the words cannot serve.

    `prior` gives what a full cache gives; `adaptive` chooses among the words that were kept. The others would
    quietly become something else: `all` would not be all, `random` and `visual` would be the prior's choice.

    Raises:
        ConfigError: with the command that extracts all tokens.
    """
    if settings.pathway == "vision":
        return
    for cache in caches:
        share = cache.kept_share
        if share is None:
            continue
        again = renew_command(cache.provenance["config"] | {"select_tokens": None}, cache.path)
        if settings.selection not in ("adaptive", "prior"):
            raise ConfigError(
                f"This cache cannot serve the token selection {settings.selection!r}.",
                where=str(cache.path),
                why=f"it holds only the {share:g} of each text's words with the highest prior",
                next_command=f"add --selection prior, or {again}",
            )
        if settings.selection_rho > share:
            raise ConfigError(
                f"This cache holds fewer words than a selection of {settings.selection_rho:g} of them takes.",
                where=str(cache.path),
                why=f"it holds {share:g} of each text's words",
                next_command=f"add --selection-rho {share:g}, or {again}",
            )
