"""What a run trains on: the labelled subset of a split and the inputs of the adapt step, and whether caches hold it.

That is checked before anything trains: the same content of the dataset, and every unit present.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from advl_pipeline.base.errors import (
    ConfigError,
    DatasetError,
    IdentityMismatch,
    advise,
)
from advl_pipeline.cache.identity import fresh_command, renew_command
from advl_pipeline.cache.reader import TeacherCache
from advl_pipeline.datasets.lowshot import nested_subset
from advl_pipeline.datasets.records import Dataset, Example, StratifiedDataset, head_name
from advl_pipeline.datasets.registry import open_dataset, open_splits
from advl_pipeline.datasets.roots import dataset_label
from advl_pipeline.datasets.vcr_text import TextStyle
from advl_pipeline.datasets.views import Concatenated, listed_ids, refuse_two_subsets
from advl_pipeline.distillation.settings import DistillationSettings
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.resolved import takes_two_steps

OWN_INPUTS = ("inputs", "subset")


def other_splits(adapt_on: Sequence[str]) -> list[tuple[str, str]]:
    """Return (dataset, split) of each input of the adapt step that names one.

    Raises:
        ConfigError: nothing is named, one twice, both `inputs` and `subset`, or another word.
    """
    named = [text.rpartition("/") for text in adapt_on if text not in OWN_INPUTS]
    is_once = len(set(adapt_on)) == len(adapt_on) and not set(OWN_INPUTS) <= set(adapt_on)
    if not adapt_on or not is_once or not all(dataset and split for dataset, _, split in named):
        raise ConfigError(
            "The inputs of the adapt step are inputs or subset, and DATASET/SPLIT such as vcr/val, each named once.",
            where="--adapt-on",
            why=f"got {', '.join(adapt_on) or 'nothing'}",
            next_command="--adapt-on inputs --adapt-on DATASET/SPLIT",
        )
    return [(dataset, split) for dataset, _, split in named]


def cache_of_split(caches: Sequence[TeacherCache], splits: Sequence[Dataset]) -> list[list[TeacherCache]]:
    """Return the caches of each split, those of every split in the order of the first's teachers.

    A cache of a dataset and split that nobody asks for counts as one of the first split, whose check refuses it.

    Raises:
        ConfigError: two caches of one teacher for a split, or a teacher that has none for another split.
    """
    names = [(split.identity_name, split.split) for split in splits]
    caches_of: list[dict[str, TeacherCache]] = [{} for _ in splits]
    for cache in caches:
        made_from = cache.identity["dataset"]
        key = (made_from.get("name"), made_from.get("split"))
        place = names.index(key) if key in names else 0
        if cache.teacher_name in caches_of[place]:
            raise ConfigError(
                "Two caches hold the same teacher.",
                where=f"{splits[place].name}/{splits[place].split}",
                why=cache.teacher_name,
            )
        caches_of[place][cache.teacher_name] = cache
    for other, of_split in zip(splits[1:], caches_of[1:], strict=True):
        if missing := [teacher for teacher in caches_of[0] if teacher not in of_split]:
            raise ConfigError(
                f"The adapt step takes inputs from {other.name}/{other.split}, and a teacher has no cache of them.",
                where="--adapt-on",
                why=f"missing: {', '.join(missing)}",
                next_command=advise(
                    ["advl", "extract", "--teacher", missing[0], "--dataset", other.name, "--split", other.split],
                    note="then give it by one more --cache",
                ),
            )
    return [[of_split[teacher] for teacher in caches_of[0]] for of_split in caches_of]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What the phases train on: positions in the split of the labelled subset, and in `adapt_dataset`, which begins
    with the split, of the adapt step's inputs.

    `splits` are the split to train on and the other ones that the adapt step sees, whose ids begin with
    "DATASET/SPLIT:" there and whose labels are not used. `seen` are positions in the split whose inputs may be looked
    at at all: all of them unless there is a pool.
    `num_skipped` counts what the dataset left out as malformed.
    """

    dataset: Dataset
    splits: tuple[Dataset, ...]
    labelled: list[int]
    adapt_dataset: Dataset
    adapt: list[int]
    seen: Sequence[int]
    num_skipped: int

    @property
    def other_ids(self) -> frozenset[str]:
        """Examples of the adapt step that are of other splits than the one to train on."""
        return frozenset(self.adapt_dataset.example_ids[len(self.dataset) :])


def open_run_inputs(config: FinetuneConfig, caches: Sequence[TeacherCache]) -> Inputs:
    """Open what a run trains on: its split, the labelled subset of it, and what the adapt step sees.

    Args:
        caches: that it reads. Where one holds a part of the split, no other inputs are seen than the pool's, and
            without a pool than the labelled ones.

    Raises:
        DatasetError, ConfigError: as `open_splits`, `nested_subset` and `listed_ids` say, no item to learn from has a
            label, or a split of the adapt step has tasks of another kind.
    """
    refuse_two_subsets(config.shots, config.ids)
    dataset = open_splits(config.dataset, split=config.split, tasks=config.task, **config.reading)
    everything = list(range(len(dataset)))
    labelled = seen = everything
    if config.ids is not None:
        labelled = _positions(dataset, listed_ids(config.ids, dataset))
    elif config.shots is not None:
        labelled = _positions(dataset, nested_subset(dataset, config.shots, config.seed))
    if not any(dataset[place].label is not None or dataset[place].soft_label for place in labelled):
        raise DatasetError(
            "No item has a label, so there is nothing to learn.",
            where=f"{dataset_label(config.dataset)}/{config.split}",
            why=f"{len(labelled)} items were looked at",
            next_command="--split with one that has labels",
        )
    if config.pool is not None:
        seen = sorted({*labelled, *_positions(dataset, nested_subset(dataset, config.pool, config.seed))})
    elif any(
        "selection" in made_from and (made_from["name"], made_from["split"]) == (dataset.identity_name, dataset.split)
        for made_from in (cache.identity["dataset"] for cache in caches)
    ):
        seen = labelled
    others: list[StratifiedDataset] = []
    for name, split in other_splits(config.adapt.adapt_on) if takes_two_steps(config) else ():
        tasks = config.task if name == config.dataset else ()
        other = open_dataset(name, split=split, tasks=tasks, **config.reading)
        if {head_name(task) for task in other.tasks} != {head_name(task) for task in dataset.tasks}:
            raise ConfigError(
                f"{name}/{split} holds tasks of another kind than the run's.",
                where="--adapt-on",
                why=f"it has {', '.join(other.tasks)}; the run has {', '.join(dataset.tasks)}",
            )
        others.append(other)
    prefixes = ["", *(f"{other.name}/{other.split}:" for other in others)]
    joined = Concatenated([dataset, *others], prefixes=prefixes) if others else dataset
    adapted = seen if "inputs" in config.adapt.adapt_on else labelled if "subset" in config.adapt.adapt_on else []
    return Inputs(
        dataset=dataset,
        splits=(dataset, *others),
        labelled=labelled,
        adapt_dataset=joined,
        adapt=[*adapted, *range(len(dataset), len(joined))],
        seen=seen,
        num_skipped=len(dataset.skipped),
    )


def _positions(dataset: Dataset, ids: Collection[str]) -> list[int]:
    chosen = set(ids)
    return [index for index, name in enumerate(dataset.example_ids) if name in chosen]


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
        actual = cache.identity["dataset"]
        skipped = cache.provenance["config"].get("on_error", "fail")
        if actual.get("content_digest") != expected["content_digest"] and skipped != on_error:
            raise IdentityMismatch(
                f"The cache was made with --on-error {skipped}, and the dataset is read with --on-error {on_error}.",
                where=str(cache.path),
                why="items that cannot be read are left out by skip, which makes another dataset",
                next_command=f"add --on-error {skipped}",
            )
        differing = {key: (actual.get(key), value) for key, value in expected.items() if actual.get(key) != value}
        if not differing:
            continue
        if {"name", "content_digest"} <= differing.keys():
            # Data of one's own are named by their content, and users know them by their file.
            differing["name"] = (cache.provenance["config"].get("dataset") or actual.get("name"), dataset.name)
        lines = [
            f"{key:<16} cache {left!s:<40} dataset {right}"
            for key, (left, right) in differing.items()
            if left != right
        ]
        style = dataset.text_style if dataset.text_style in get_args(TextStyle) else None
        config = cache.provenance["config"] | {
            "dataset": dataset.name,
            "split": dataset.split,
            "text_style": style,
            "data_root": data_root,
        }
        same = {key for key, value in expected.items() if actual.get(key) == value}
        if same >= {"name", "split", "text_style"}:
            instead = renew_command(config, cache.path)
        else:
            # A cache of other data is as good as ever and stays.
            output = f"{cache.path}-{dataset.text_style}" if same >= {"name", "split"} else ""
            whole = config | {"shots": None, "ids": []}
            instead = fresh_command(whole, output=output, note="then give that cache as --cache")
        raise IdentityMismatch(
            "The cache was made from another dataset than the one to train on.",
            where=str(cache.path),
            why="\n         ".join(lines),
            next_command=instead,
        )


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
    """Refuse caches that hold some of the words where a distance or a selection takes others too.

    Raises:
        ConfigError: with the command that extracts all tokens.
    """
    if settings.pathway == "vision":
        return
    for cache in caches:
        instead = ""
        if cache.keeps_some_texts and settings.distance != "relational":
            what = f"This cache cannot serve the distance {settings.distance!r}."
            why = "it holds the words of some texts only, and of these those with a meaning"
            instead = "add --distance relational, or "
        elif cache.lacks_common_words:
            what = "Caches of the rarest words of each text are not trained on any more."
            why = "--select-texts took the place of --select-tokens"
        else:
            continue
        again = renew_command(cache.provenance["config"] | {"select_texts": None}, cache.path)
        raise ConfigError(what, where=str(cache.path), why=why, next_command=f"{instead}{again}")


def dataset_identity(dataset: Dataset) -> dict[str, Any]:
    """Return what a cache must have in common with the split that is trained on."""
    return {
        "name": dataset.identity_name,
        "split": dataset.split,
        "text_style": dataset.text_style,
        "content_digest": dataset.content_digest(),
    }
