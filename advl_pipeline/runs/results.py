"""Read the files of a finished run that a study needs. Nothing here executes or unpickles a file.

Shapes: N items of a test set, C candidates or classes.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from advl_pipeline.base.array_archives import arrays_digest, read_array_archive
from advl_pipeline.base.errors import ConfigError, IdentityMismatch, advise, again
from advl_pipeline.base.folders import near_folder
from advl_pipeline.base.locations import read_regular
from advl_pipeline.cache.identity import digest
from advl_pipeline.runs import names
from advl_pipeline.runs.names import evaluation_file

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """The scores of one run on one test set."""

    summary: Mapping[str, Any]
    items: pd.DataFrame
    """Tidy table with one row per score.

    Its columns are `metric`, `view` ("" for the true picture, else how it was replaced), `item`, its `picture` and
    question `type` ("" where the evaluation did not write them), and `score` in [0, 1].
    """
    scores: Mapping[str, npt.NDArray[np.floating]]
    """Task -> logits (N, C), in the item order of the task's own metric; padded with -inf where C varies."""


@contextmanager
def _undamaged(what: str, where: str, next_command: str) -> Iterator[None]:
    """Refuse a file of a run that is missing, or that training and evaluation would not have written."""
    try:
        yield
    except PermissionError:
        raise  # It is another user's, not damaged.
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            what,
            where=where,
            why=f"no {error}" if isinstance(error, KeyError) else str(error),
            next_command=next_command,
        ) from error


_ANEW = "delete the run folder and give the command that made it again"


def read_json(path: Path, kind: type[dict[str, Any] | list[Any]] = dict) -> Any:
    """Read a JSON document of a run.

    Args:
        kind: the required type, an object or a list.

    Raises:
        ConfigError: the document is missing or damaged; the message names the file.
    """
    with _undamaged("A file of a run cannot be read.", str(path), _ANEW):
        document = json.loads(read_regular(path))
        if not isinstance(document, kind):
            raise ValueError(f"it holds no {'list' if kind is list else 'object'}")
    return document


def read_result(run: Path) -> dict[str, Any]:
    """Return the result of a finished run.

    Raises:
        ConfigError: it is damaged, or lacks a number that every version wrote.
    """
    path = run / names.RESULT
    result: dict[str, Any] = read_json(path)
    for name in _NUMBERS_OF_RESULT:
        require_number(result, name, path)
    return result


_NUMBERS_OF_RESULT = ("num_labelled", "num_steps", "seconds", "seconds_per_step")


def require_number(document: Mapping[str, Any], name: str, path: Path) -> None:
    """Refuse a document of a run whose value of a name is not a number; raises `ConfigError`."""
    with _undamaged("A file of a run is damaged.", str(path), _ANEW):
        if isinstance(value := document[name], bool) or not isinstance(value, int | float):
            raise TypeError(f"{name} is no number")


def read_config(run: Path) -> dict[str, Any]:
    """Return the configuration that a run folder was created with.

    Raises:
        ConfigError: the folder contains no run, or its record is damaged.
    """
    path = run / names.CONFIG
    if not path.exists():
        raise ConfigError(
            "There is no finetuning run here.",
            where=str(run),
            why=near_folder(run, "run"),
            next_command=advise(["advl", "finetune", "--help"]),
        )
    config: dict[str, Any] = read_json(path)
    return config


def moved_to(data_root: Path | None, config: Mapping[str, Any]) -> Path | None:
    """Return the folder of the datasets: `data_root` if given, else the one that a run or cache was created with.

    Args:
        data_root: the folder given now, if any.
        config: configuration of the run or cache. If its folder no longer exists, the default one is used.
    """
    made_with = config.get("data_root")
    return data_root or (Path(made_with) if made_with and Path(made_with).is_dir() else None)


def run_digest(run: Path) -> str | None:
    """Return the digest of the files that a finished run answers by; None if an earlier version recorded none.

    It covers weights, heads, tokenizer and identity. A run has the same digest wherever it is.

    Raises:
        ConfigError: result.json is damaged.
    """
    files = read_result(run).get("files")
    with _undamaged("A file of a run is damaged.", str(run / names.RESULT), _ANEW):
        # Paths are in the options as they were given.
        return None if files is None else digest({name: files[name] for name in files if name != names.CONFIG})


def is_of_run(run: Path, document: Mapping[str, Any]) -> bool:
    """Return whether the document of an evaluation is about a run; one of an earlier version is taken on trust.

    Raises:
        ConfigError: the result of the run is damaged.
    """
    scored, present = document.get(RUN_DIGEST), run_digest(run)
    if scored is None or present is None:
        say_on_trust("evaluations by an earlier version, or of a run of one, do not tell which student they scored")
        return True
    return bool(scored == present)


@cache
def say_on_trust(lacking: str) -> None:
    """Print once what an earlier version did not record."""
    print(f"{lacking}: they are taken on trust", file=sys.stderr)


def read_caches(run: Path) -> list[dict[str, Any]]:
    """Return path and identity of each cache that a run read; empty for a run of a version that recorded none.

    Raises:
        ConfigError: the record is damaged.
    """
    path = run / names.CACHES
    caches: list[dict[str, Any]] = read_json(path, list) if path.exists() else []
    with _undamaged("A file of a run is damaged.", str(path), _ANEW):
        for entry in caches:
            Path(entry["path"])
            dict(entry["identity"]["dataset"])
            str(entry["identity"]["teacher"]["name"])
    return caches


def read_documents(run: Path) -> dict[str, dict[str, Any]]:
    """Return the document of each evaluation of a run, by test set as passed to `advl evaluate --on`.

    The keys of scores by another VQA evaluator than the set's default, and of letters that the student wrote, are the
    names that they are filed under.

    Raises:
        ConfigError: an evaluation is damaged.
    """
    documents: dict[str, dict[str, Any]] = {}
    for path in sorted((run / names.EVALUATION).glob("*.json")):
        document = read_json(path)
        remedy = "delete it, then score the set again with advl evaluate"
        with _undamaged("The document of an evaluation is damaged.", str(path), remedy):
            dict(document["metrics"])
            test_sets = document["split"], f"{document['dataset']}/{document['split']}"
        other_ways = (document.get("vqa_mode"), LETTERS)
        filed = [*test_sets, *(f"{name}@{way}" for name in test_sets for way in other_ways)]
        name = next((name for name in filed if evaluation_file(run, name, ".json") == path), None)
        documents[name or path.stem.replace("--", "/")] = document
    return documents


ITEMS_DIGEST = "items_digest"
"""Key of an evaluation's document: `arrays_digest` of its item scores, which are in the file of that name."""

RUN_DIGEST = "run_digest"
"""Key of an evaluation's document: `run_digest` of the run that it scored."""

LETTERS = "letters"
"""Suffix of the name of a set, for scores of generated answers to questions with lettered options."""


def filed_as(run: Path, test_set: str, vqa_mode: str | None, protocol: str = "likelihood") -> str:
    """Return the name under which the scores of a test set by a VQA evaluator are filed.

    It is the name of the set for the set's default evaluator. Scores by another one are filed next to those.

    Args:
        vqa_mode: the requested evaluator; None for the default.
        protocol: how questions are asked; `LETTERS` for scores of letters.

    Raises:
        ConfigError: the evaluation is damaged.
    """
    if protocol == LETTERS:
        return f"{test_set}@{LETTERS}"
    usual = evaluation_file(run, test_set, ".json")
    if vqa_mode is None or (usual.exists() and read_json(usual).get("vqa_mode", vqa_mode) == vqa_mode):
        return test_set
    return f"{test_set}@{vqa_mode}"


def read_evaluation(run: Path, test_set: str) -> Evaluation | None:
    """Read a run's evaluation on a test set; None if the run was not evaluated on it.

    Raises:
        ConfigError: the evaluation is damaged, or its document and its item scores contradict each other.
        IdentityMismatch: it is an evaluation of another run.
    """
    summary_path = evaluation_file(run, test_set, ".json")
    if not summary_path.exists():
        return None
    import pandas as pd

    summary, parts = read_json(summary_path), list[pd.DataFrame]()
    again_by = advise(["advl", "evaluate", str(run), "--on", test_set])
    with _undamaged("The document of an evaluation is damaged.", str(summary_path), again_by):
        dict(summary["metrics"])
        items_digest = summary.get(ITEMS_DIGEST)
        if items_digest is not None and not re.fullmatch("[0-9a-f]{64}", items_digest):
            raise ValueError(f"its {ITEMS_DIGEST} is no SHA-256")
    if names.is_finished(run) and not is_of_run(run, summary):
        raise IdentityMismatch(
            "The evaluation is of another run.",
            where=str(summary_path),
            why=f"its {RUN_DIGEST} is not that of the files of this run",
            next_command=again_by,
        )
    arrays_path = evaluation_file(run, test_set, names.items_suffix(items_digest))
    with _undamaged("The item scores of a run cannot be read.", str(arrays_path), again_by):
        arrays = read_array_archive(arrays_path)
        if items_digest not in (None, arrays_digest(arrays)):
            raise ValueError(f"they are not those that {summary_path.name} was written with")
        _require_own_numbers(summary, arrays)
        # item/METRIC, item_VIEW/METRIC, each with its ids; pictures/METRIC and strata/METRIC group the items.
        for name, array in arrays.items():
            group, _, metric = name.partition("/")
            if group != "item" and (not group.startswith("item_") or group.endswith("_ids")):
                continue
            ids = list(map(str, arrays[f"{group}_ids/{metric}"]))
            if len(ids) != len(array):
                raise ValueError(f"{name} has {len(array)} values for {len(ids)} items")
            if ids != list(map(str, arrays[f"item_ids/{metric}"])):
                raise ValueError(f"{name} is about other items than item/{metric}")
            table: dict[str, Any] = {"metric": metric, "view": group[len("item_") :], "item": ids}
            for column, kind in (("picture", "pictures"), ("type", "strata")):
                table[column] = arrays[f"{kind}/{metric}"].tolist() if f"{kind}/{metric}" in arrays else ""
            parts.append(pd.DataFrame(table | {"score": array.astype(np.float64)}))
        scores = {name.removeprefix("scores/"): array for name, array in arrays.items() if name.startswith("scores/")}
        columns = ["metric", "view", "item", "picture", "type", "score"]
        items = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
        return Evaluation(summary=summary, items=items, scores=scores)


def _require_own_numbers(summary: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Refuse accuracies, with the true picture or another one, that are not the means of their item scores.

    Raises:
        ValueError: one of them contradicts its items.
    """
    percents = {f"item/{metric}": percent for metric, percent in summary["metrics"].items()}
    for metric, views in summary.get("use_of_vision", {}).items():
        percents |= {f"item_{view}/{metric}": seen["accuracy"] for view, seen in views.items()}
    for name, percent in percents.items():
        if name not in arrays:
            continue
        mean = 100.0 * float(arrays[name].mean())
        if not math.isclose(percent, mean, abs_tol=_AS_SHOWN):
            raise ValueError(f"the mean of {name} is {mean:.3f}, and the document says {percent:.3f}")


_AS_SHOWN = 0.001
"""Percentage points that no table shows; the mean of many item scores depends on the order of the additions."""


def read_log(run: Path, *, before: int | None = None) -> list[dict[str, Any]]:
    """Return the record of each logged step, in order; empty if the run has logged nothing.

    Args:
        before: return only earlier steps than this one, from a log whose last line may be torn.

    Raises:
        ConfigError: a line of metrics.jsonl is damaged.
    """
    path = run / names.METRICS
    instead = again("start over by the same command with --no-resume", "--no-resume")
    records: list[dict[str, Any]] = []
    lines = read_regular(path).split(b"\n") if path.exists() else [b""]
    for number, line in enumerate(lines[:-1] if before is not None or not lines[-1] else lines, start=1):
        with _undamaged("A logged step is damaged.", f"{path}, line {number}", instead):
            record = json.loads(line)
            if not isinstance(record, dict) or not isinstance(record.get("step"), int):
                raise ValueError("it is no object with the number of a step")
            records.append(record)
    return [record for record in records if before is None or record["step"] < before]


def read_readout(run: Path) -> list[dict[str, Any]]:
    """Return how often a run's student places nodes as a teacher does, before and after the adapt stage, in percent.

    Returns:
        A row for each `teacher` and `nodes` (words, texts or regions), with `before`, `after` and `chance`; empty for
        a run without an adapt stage or a teacher.

    Raises:
        ConfigError: readout.json is damaged.
    """
    path = run / names.READOUT
    if not path.exists():
        return []
    document = read_json(path)
    with _undamaged("The readout of a run is damaged.", str(path), _ANEW):
        return [
            {
                "teacher": teacher,
                "nodes": nodes,
                "before": 100.0 * float(share["share"]),
                "after": 100.0 * float(document["after"][teacher][nodes]["share"]),
                "chance": 100.0 * float(share["chance"]),
            }
            for teacher, before in document["before"].items()
            for nodes in ("words", "texts", "regions")
            # Null if there were too few nodes to choose among, which the adapt stage does not change.
            if (share := before[nodes]) is not None
        ]


def read_words(run: Path) -> pd.DataFrame | None:
    """Return the `word`, `score` and `class` of each word of the inputs; None if a record or a list told the classes.

    Raises:
        ConfigError: words.csv is damaged.
    """
    path = run / names.WORDS
    if not path.exists():
        return None
    import pandas as pd

    with _undamaged("The words of a run cannot be read.", str(path), _ANEW):
        # A word such as "nan" is a word.
        table = pd.read_csv(path, keep_default_na=False, dtype={"word": str, "class": str, "score": float})
        return table[["word", "score", "class"]]
