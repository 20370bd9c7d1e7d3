"""The caches of a run's teachers, opened once and compared with its data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from advl_pipeline.base.errors import Advice, ConfigError, IdentityMismatch, advise
from advl_pipeline.cache.identity import difference_table, differences, extract_command
from advl_pipeline.cache.reader import TeacherCache, open_cache
from advl_pipeline.datasets.records import Dataset, Example
from advl_pipeline.datasets.vcr_text import TextStyle
from advl_pipeline.distillation.settings import DistillationSettings
from advl_pipeline.stored_inputs.region_caches import other_option
from advl_pipeline.teachers.open_options import PICTURES
from advl_pipeline.training.config import FinetuneConfig, TeacherOptions
from advl_pipeline.training.inputs import Inputs, dataset_identity


def open_caches(config: TeacherOptions) -> list[TeacherCache]:
    """Open the caches that the options name, through the disk cache if they are in an object store.

    Raises:
        ConfigError: a cache contains pictures or regions instead of a teacher's features.
    """
    caches = [open_cache(path) for path in config.cache]
    for cache in caches:
        if cache.teacher_name.startswith(PICTURES):
            raise other_option("pictures, and no teacher's features", cache, "--pictures")
        if cache.image is not None and cache.image.has_regions:
            raise other_option("a detector's regions, and no teacher's features", cache, "--regions")
    return caches


def check_teachers(
    caches: Sequence[TeacherCache], inputs: Inputs, config: FinetuneConfig, settings: DistillationSettings
) -> list[list[TeacherCache]]:
    """Refuse teacher caches without the features that a run reads; return them by split (`_by_split`).

    Raises:
        IdentityMismatch: a cache of another dataset, split or setting, or of a part. ConfigError: a cache of other
            words.
    """
    by_split = _by_split(caches, inputs.splits)
    for split, of_split in zip(inputs.splits, by_split, strict=True):
        check_caches(of_split, split, data_root=config.data_root, on_error=config.on_error)
        _check_selection(of_split, settings)
        sees_some = split is inputs.dataset
        seen = sorted({*inputs.labelled, *inputs.seen}) if sees_some else range(len(split))
        _check_part(of_split, split, seen, config)
    return by_split


def _by_split(caches: Sequence[TeacherCache], splits: Sequence[Dataset]) -> list[list[TeacherCache]]:
    """Return the caches of each split, in the order of the first split's teachers.

    A cache of an unused dataset or split counts as one of the first split, whose check refuses it.

    Raises:
        ConfigError: a teacher has two caches for a split, or none for another split.
    """
    names = [(split.identity_name, split.split) for split in splits]
    caches_of: list[dict[str, TeacherCache]] = [{} for _ in splits]
    for cache in caches:
        made_from = cache.identity["dataset"]
        key = (made_from.get("name"), made_from.get("split"))
        place = names.index(key) if key in names else 0
        if cache.teacher_name in caches_of[place]:
            raise ConfigError("Two caches of a split hold the same teacher.", where=str(cache.path))
        caches_of[place][cache.teacher_name] = cache
    for other, of_split in zip(splits[1:], caches_of[1:], strict=True):
        if missing := [teacher for teacher in caches_of[0] if teacher not in of_split]:
            words = ["advl", "extract", "--teacher", missing[0], "--dataset", other.name, "--split", other.split]
            raise ConfigError(
                f"The adapt stage takes inputs from {other.name}/{other.split}; {missing[0]} has no cache of them.",
                where="--adapt-on",
                next_command=advise(words, note="then give it by one more --cache"),
            )
    return [[of_split[teacher] for teacher in caches_of[0]] for of_split in caches_of]


def check_caches(
    caches: Sequence[TeacherCache], dataset: Dataset, *, data_root: Path | None, on_error: str = "fail"
) -> None:
    """Compare each cache's dataset with the training dataset.

    Args:
        data_root: where the dataset was found, for the advice.
        on_error: how it was opened; leaving out examples makes it a different dataset.

    Raises:
        IdentityMismatch: they differ; the message has both values and the command that extracts again, or the option
            of the cache.
    """
    expected = dataset_identity(dataset)
    for cache in caches:
        actual, made_by = cache.identity["dataset"], cache.provenance["config"]
        skipped = made_by.get("on_error", "fail")
        if actual.get("content_digest") != expected["content_digest"] and skipped != on_error:
            raise IdentityMismatch(
                f"The cache was made with --on-error {skipped}, and the dataset is read with --on-error {on_error}.",
                where=str(cache.path),
                next_command=f"add --on-error {skipped}",
            )
        same = {key for key, value in expected.items() if actual.get(key) == value}
        if same == expected.keys():
            continue
        style = dataset.text_style if dataset.text_style in get_args(TextStyle) else None
        of_run = {"dataset": dataset.name, "split": dataset.split, "text_style": style, "data_root": data_root}
        if same >= {"name", "split", "text_style"}:
            instead = extract_command(made_by | of_run, cache.path, renew=True)
        else:
            # A cache of other data remains valid and is not replaced.
            output = f"{cache.path}-{dataset.text_style}" if same >= {"name", "split"} else ""
            whole = made_by | of_run | {"shots": None, "ids": []}
            instead = extract_command(whole, output, note="then give that cache as --cache")
        # The identity of your own data is its content, but the message names its file.
        named = expected | {"name": dataset.name}, actual | {"name": str(made_by.get("dataset") or actual["name"])}
        raise IdentityMismatch(
            "The cache was made from another dataset than the one to train on.",
            where=str(cache.path),
            why="\n" + difference_table(differences(*named, partial=True)),
            next_command=instead,
        )


def _check_part(
    caches: Sequence[TeacherCache], dataset: Dataset, positions: Sequence[int], config: FinetuneConfig
) -> None:
    """Refuse a cache of a part of a split that lacks inputs of the run. A cache of a complete split is not examined.

    Args:
        positions: of the examples whose inputs the run uses.
        config: of the run, for the advice.

    Raises:
        IdentityMismatch: inputs are missing; the message has the command that extracts them.
    """
    for cache in caches:
        if "selection" not in cache.identity["dataset"]:
            continue
        num_missing = sum(not holds(cache, dataset[position]) for position in positions)
        if not num_missing:
            continue
        # The file of ids may have the same name as the one that this cache was made from.
        needed: dict[str, Any] = {"shots": None, "ids": [], "seed": [config.seed]}
        if config.ids is not None and config.pool is None:
            needed["ids"] = [str(config.ids)]
        elif config.shots is not None or config.pool is not None:
            needed["shots"] = max(config.shots or 1, config.pool or 1)
        output = f"{cache.path}-new" if needed["ids"] else ""
        raise IdentityMismatch(
            "The cache holds a part of the split, and the run sees more.",
            where=str(cache.path),
            why=f"{num_missing:,} of the {len(positions):,} examples that the run sees are not in it",
            next_command=extract_command(
                cache.provenance["config"] | needed, output, note="then give that cache as --cache"
            ),
        )


def holds(cache: TeacherCache, example: Example) -> bool:
    """Whether a cache has features of an example's picture and texts."""
    texts = [candidate.text_unit.unit_id for candidate in example.candidates]
    return (cache.image is None or bool(cache.image.contains([example.image.unit_id]).all())) and (
        cache.text is None or bool(cache.text.contains(texts).all())
    )


def _check_selection(caches: Sequence[TeacherCache], settings: DistillationSettings) -> None:
    """Refuse caches of some words if a distance or a selection requires all of them.

    Raises:
        ConfigError: words are missing; the message has the command that extracts all tokens.
    """
    if settings.pathway == "vision":
        return
    for cache in caches:
        if cache.keeps_some_texts and settings.distance != "relational":
            raise ConfigError(
                f"A cache of some texts' words cannot serve the distance {settings.distance!r}.",
                where=str(cache.path),
                next_command=f"add --distance relational, or {_with_all_words(cache)}",
            )
        if cache.lacks_common_words:
            raise ConfigError(
                "This version does not train on caches of the rarest words of each text.",
                where=str(cache.path),
                next_command=_with_all_words(cache),
            )


def _with_all_words(cache: TeacherCache) -> Advice:
    """Return the command that extracts a cache again, with the words of all its texts."""
    return extract_command(cache.provenance["config"] | {"select_texts": None}, cache.path, renew=True)
