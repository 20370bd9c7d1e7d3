"""Read what a finished run left, as much as a study needs of it. Nothing here executes or unpickles a file.

Shapes: N items of a test set, C candidates or classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from advl_pipeline.array_archives import read_array_archive
from advl_pipeline.errors import ConfigError, advise, again
from advl_pipeline.runs import names
from advl_pipeline.runs.names import evaluation_file

if TYPE_CHECKING:
    import pandas as pd

Quantity = Literal["weight", "confidence"]
Nodes = Literal["words", "texts", "regions"]

_QUANTITIES: Mapping[str, Quantity] = {"weights": "weight", "confidence": "confidence"}
_NODES: tuple[Nodes, ...] = ("words", "texts", "regions")


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Scores of one run on one test set.

    `items` is tidy, a row for each score, with the columns `metric`, `view` ("" for the true picture, else how it was
    spoilt), `item`, its `picture` and question `type` ("" where the evaluation did not write them), and `score`,
    which lies in [0, 1].
    """

    summary: Mapping[str, Any]
    items: pd.DataFrame
    scores: Mapping[str, npt.NDArray[np.floating]]
    """Task -> logits (N, C), in the order of the items of the task's own metric; -inf where C varies."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightBins:
    """Weights of one optimiser step: equal bins from 0."""

    bin_width: float
    counts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeReadout:
    """How often one run's student places nodes as the teacher does, around the adapt step; in percent."""

    before: float
    after: float
    chance: float


class DamagedRun(ConfigError):
    """A file of a run that is missing, or not what training and evaluation write."""

    def __init__(self, what: str, path: Path, error: Exception) -> None:
        super().__init__(
            what,
            where=str(path),
            why=f"no {error}" if isinstance(error, KeyError) else str(error),
            next_command="delete the run folder and give the command that made it again",
        )


def read_json(path: Path, kind: type[dict[str, Any] | list[Any]] = dict) -> Any:
    """Read a JSON document of a run.

    Args:
        kind: what it must be, an object or a list.

    Raises:
        ConfigError: it is missing or damaged; the file is named.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(document, kind):
            raise ValueError(f"it holds no {'list' if kind is list else 'object'}")
        return document
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedRun("A file of a run cannot be read.", path, error) from error


def read_config(run: Path) -> dict[str, Any]:
    """Return the configuration that a run folder was made with.

    Raises:
        ConfigError: the folder holds no run, or its record is damaged.
    """
    path = run / names.CONFIG
    if not path.exists():
        raise ConfigError(
            "There is no finetuning run here.", where=str(run), next_command=advise(["advl", "finetune", "--help"])
        )
    config: dict[str, Any] = read_json(path)
    return config


def moved_to(data_root: Path | None, config: Mapping[str, Any]) -> Path | None:
    """Return the folder of the datasets: the one given now, else the one that a run or a cache was made with.

    Args:
        data_root: given now; None for nothing.
        config: of the run or cache. Where its folder is gone, the usual one serves.
    """
    made_with = config.get("data_root")
    return data_root or (Path(made_with) if made_with and Path(made_with).is_dir() else None)


def read_documents(run: Path) -> dict[str, dict[str, Any]]:
    """Return what each evaluation of a run found, by its test set as `advl evaluate --on` was given it.

    Scores by an evaluator of VQA that is not the set's usual one go by the name that they are filed under.

    Raises:
        ConfigError: an evaluation is damaged.
    """
    documents: dict[str, dict[str, Any]] = {}
    for path in sorted((run / names.EVALUATION).glob("*.json")):
        if not path.with_suffix(".npz").exists():
            continue
        found = read_json(path)
        given = (found["split"], f"{found['dataset']}/{found['split']}")
        filed = [*given, *(f"{name}@{found.get('vqa_mode')}" for name in given)]
        name = next((name for name in filed if evaluation_file(run, name, ".json") == path), None)
        documents[name or path.stem.replace("--", "/")] = found
    return documents


def filed_as(run: Path, test_set: str, vqa_mode: str | None) -> str:
    """Return the name that the scores of a test set by an evaluator of VQA are filed under.

    It is the set's own where they are by the set's usual evaluator; those by another one stand beside them.

    Args:
        vqa_mode: the evaluator that is asked for; None for the usual one.

    Raises:
        ConfigError: the evaluation is damaged.
    """
    usual = evaluation_file(run, test_set, ".json")
    if vqa_mode is None or (usual.exists() and read_json(usual).get("vqa_mode", vqa_mode) == vqa_mode):
        return test_set
    return f"{test_set}@{vqa_mode}"


def read_evaluation(run: Path, test_set: str) -> Evaluation | None:
    """Read a run's evaluation on a test set; None when it was not made.

    Raises:
        ConfigError: it is damaged.
    """
    summary_path = evaluation_file(run, test_set, ".json")
    arrays_path = evaluation_file(run, test_set, ".npz")
    if not summary_path.exists():
        return None
    import pandas as pd

    summary, parts = read_json(summary_path), []
    try:
        arrays = read_array_archive(arrays_path)
        # item/METRIC, item_VIEW/METRIC, each with its ids; pictures/METRIC and strata/METRIC tell what goes together.
        for name, array in arrays.items():
            group, _, metric = name.partition("/")
            if group != "item" and (not group.startswith("item_") or group.endswith("_ids")):
                continue
            ids = list(map(str, arrays[f"{group}_ids/{metric}"]))
            if len(ids) != len(array):
                raise ValueError(f"{name} has {len(array)} values for {len(ids)} items")
            if ids != list(map(str, arrays[f"item_ids/{metric}"])):
                raise ValueError(f"{name} is about other items than item/{metric}")
            told: dict[str, Any] = {"metric": metric, "view": group[len("item_") :], "item": ids}
            for column, kind in (("picture", "pictures"), ("type", "strata")):
                told[column] = arrays[f"{kind}/{metric}"].tolist() if f"{kind}/{metric}" in arrays else ""
            parts.append(pd.DataFrame(told | {"score": array.astype(np.float64)}))
        scores = {name.removeprefix("scores/"): array for name, array in arrays.items() if name.startswith("scores/")}
        columns = ["metric", "view", "item", "picture", "type", "score"]
        items = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
        return Evaluation(summary=summary, items=items, scores=scores)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            "The item scores of a run cannot be read.",
            where=str(arrays_path),
            why=str(error),
            next_command=advise(["advl", "evaluate", str(run), "--on", test_set]),
        ) from error


def read_task_loss(run: Path) -> str:
    """Return the loss that a run's task was trained by, as its settings record it.

    Raises:
        ConfigError: the settings are missing or damaged.
    """
    path = run / names.SETTINGS
    try:
        return str(read_json(path)["settings"]["task_loss"]["value"])
    except (KeyError, TypeError) as error:
        raise DamagedRun("The settings of a run do not name the loss of its task.", path, error) from error


def read_log(run: Path) -> list[dict[str, Any]]:
    """Return the record of each logged step, in order; none for a run that has logged nothing.

    Raises:
        ConfigError: metrics.jsonl is damaged.
    """
    path = run / names.METRICS
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [_read_record(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]


def read_log_before(run: Path, step: int) -> list[dict[str, Any]]:
    """Return the records of the steps before one, in order, from a log whose last line may be torn.

    Raises:
        ConfigError: another line of metrics.jsonl is damaged.
    """
    path = run / names.METRICS
    whole = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    records = [_read_record(line, f"{path}, line {number}") for number, line in enumerate(whole, start=1)]
    return [record for record in records if record["step"] < step]


def _read_record(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            raise ValueError("it is no object with the number of a step")
        return record
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            "A logged step is damaged.",
            where=where,
            why=str(error),
            next_command=again("start over by the same command with --no-resume", "--no-resume"),
        ) from error


def read_weights(run: Path) -> dict[tuple[Quantity, str], list[WeightBins]]:
    """Return the histograms of confidence weights, and of confidences, of the finetune step.

    Returns:
        (quantity, modality) -> one per logged step.

    Raises:
        ConfigError: metrics.jsonl is damaged.
    """
    found: dict[tuple[Quantity, str], list[WeightBins]] = {}
    for record in read_log(run):
        if record.get("phase") != "finetune":
            continue
        for key, value in record.items():
            group, _, modality = key.partition("/")
            if group in _QUANTITIES:
                bins = WeightBins(bin_width=float(value["bin_width"]), counts=tuple(value["counts"]))
                found.setdefault((_QUANTITIES[group], modality), []).append(bins)
    return found


def read_readout(run: Path) -> dict[tuple[str, Nodes], NodeReadout]:
    """Return what a run's readout found by teacher and nodes; nothing for a run without an adapt step or a teacher.

    Raises:
        ConfigError: readout.json is damaged.
    """
    path = run / names.READOUT
    if not path.exists():
        return {}
    document = read_json(path)
    found: dict[tuple[str, Nodes], NodeReadout] = {}
    try:
        for teacher, before in document["before"].items():
            after = document["after"][teacher]
            for nodes in _NODES:
                # Null where there were too few nodes to choose among, which the adapt step does not change.
                if before[nodes] is not None:
                    found[teacher, nodes] = NodeReadout(
                        before=100.0 * float(before[nodes]["share"]),
                        after=100.0 * float(after[nodes]["share"]),
                        chance=100.0 * float(before[nodes]["chance"]),
                    )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedRun("The readout of a run is damaged.", path, error) from error
    return found
