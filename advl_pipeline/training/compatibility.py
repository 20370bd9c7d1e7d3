"""Whether caches hold what a run needs: same dataset content, every unit present. Checked before anything trains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from advl_pipeline.cache.identity import fresh_command, renew_command
from advl_pipeline.cache.reader import TeacherCache
from advl_pipeline.datasets.records import Dataset, Example
from advl_pipeline.datasets.vcr_text import TextStyle
from advl_pipeline.distillation.settings import DistillationSettings
from advl_pipeline.errors import (
    Advice,
    ConfigError,
    IdentityMismatch,
)
from advl_pipeline.training.config import FinetuneConfig


def dataset_identity(dataset: Dataset) -> dict[str, Any]:
    """Return what a cache must have in common with the split that is trained on."""
    return {
        "name": dataset.identity_name,
        "split": dataset.split,
        "text_style": dataset.text_style,
        "content_digest": dataset.content_digest(),
    }


def check_caches(
    caches: Sequence[TeacherCache], dataset: Dataset, *, data_root: Path | None, on_error: str = "fail"
) -> None:
    """Compare each cache's dataset with the one that is trained on.

    Args:
        data_root: where the dataset was found, for the advice.
        on_error: how it was opened: whatever was left out makes it another one.

    Raises:
        IdentityMismatch: with both values and the command that extracts again, or the option that the cache had.
    """
    expected = dataset_identity(dataset)
    for cache in caches:
        found = cache.identity["dataset"]
        skipped = cache.provenance["config"].get("on_error", "fail")
        if found.get("content_digest") != expected["content_digest"] and skipped != on_error:
            raise IdentityMismatch(
                f"The cache was made with --on-error {skipped}, and the dataset is read with --on-error {on_error}.",
                where=str(cache.path),
                why="items that cannot be read are left out by skip, which makes another dataset",
                next_command=f"add --on-error {skipped}",
            )
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
                next_command=_instead(cache, dataset, data_root),
            )


def _instead(cache: TeacherCache, dataset: Dataset, data_root: Path | None) -> Advice:
    """Return how to come by the cache that is wanted. One of other data is as good as ever and stays."""
    found, expected = cache.identity["dataset"], dataset_identity(dataset)
    style = dataset.text_style if dataset.text_style in get_args(TextStyle) else None
    wanted = {"dataset": dataset.name, "split": dataset.split, "text_style": style, "data_root": data_root}
    config = cache.provenance["config"] | wanted
    if all(found.get(key) == expected[key] for key in ("name", "split", "text_style")):
        return renew_command(config, cache.path)
    same_place = all(found.get(key) == expected[key] for key in ("name", "split"))
    output = f"{cache.path}-{dataset.text_style}" if same_place else ""
    return fresh_command(config | {"shots": None, "ids": []}, output=output, note="then give that cache as --cache")


def check_part(
    caches: Sequence[TeacherCache], dataset: Dataset, positions: Sequence[int], config: FinetuneConfig
) -> None:
    """Refuse a cache of a part of a split that lacks what a run sees. A cache of the whole split is not looked into.

    Args:
        positions: of the examples whose inputs the run sees.
        config: of the run, for the advice.

    Raises:
        IdentityMismatch: with the command that extracts what the run needs.
    """
    for cache in caches:
        if "selection" not in cache.identity["dataset"]:
            continue
        num_missing = sum(not holds(cache, dataset[position]) for position in positions)
        if not num_missing:
            continue
        needed: dict[str, Any] = {"shots": None, "ids": [], "seed": [config.seed]}
        if config.ids is not None and config.pool is None:
            needed["ids"] = [str(config.ids)]
        elif config.shots is not None or config.pool is not None:
            needed["shots"] = max(config.shots or 1, config.pool or 1)
        raise IdentityMismatch(
            "The cache holds a part of the split, and the run sees more.",
            where=str(cache.path),
            why=f"it was made for {cache.identity['dataset']['selection']['num_examples']:,} examples; "
            f"{num_missing:,} of the {len(positions):,} that the run sees are not in it",
            next_command=fresh_command(
                cache.provenance["config"] | needed,
                # The file of ids may be called as the one that this cache was made of.
                output=f"{cache.path}-new" if needed["ids"] else "",
                note="then give that cache as --cache",
            ),
        )


def holds(cache: TeacherCache, example: Example) -> bool:
    """Whether a cache has features of an example's picture and texts."""
    texts = [candidate.text_unit.unit_id for candidate in example.candidates]
    return (cache.image is None or bool(cache.image.contains([example.image.unit_id]).all())) and (
        cache.text is None or bool(cache.text.contains(texts).all())
    )


def check_selection(caches: Sequence[TeacherCache], settings: DistillationSettings) -> None:
    """Refuse token selections that a cache with only some of the words cannot serve.

    `prior` gives what a full cache gives; `adaptive` chooses among the words that were kept. The others would
    quietly become something else: `all` would not be all, and `random` would draw among the prior's choice.

    Raises:
        ConfigError: with the command that extracts all tokens.
    """
    if settings.pathway == "vision":
        return
    for cache in caches:
        if cache.keeps_some_texts and settings.distance != "relational":
            again = renew_command(cache.provenance["config"] | {"select_texts": None}, cache.path)
            raise ConfigError(
                f"This cache cannot serve the distance {settings.distance!r}.",
                where=str(cache.path),
                why="it holds the words of some texts only, and of these those with a meaning",
                next_command=f"add --distance relational, or {again}",
            )
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
