"""Read the files of a finished run that a study needs, except its evaluations (`evaluations.py`).

Nothing here executes or unpickles a file.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from advl_pipeline.base.configuration import build_config
from advl_pipeline.base.errors import ConfigError, advise
from advl_pipeline.base.folders import near_folder
from advl_pipeline.base.locations import read_regular
from advl_pipeline.cache.identity import digest
from advl_pipeline.runs import names

if TYPE_CHECKING:
    import pandas as pd

RecordT = TypeVar("RecordT")

STAGE_KEY = "phase"
"""Key of a step's stage in metrics and checkpoints, as in earlier runs; results of runs have `phases`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """What result.json says of a finished run, in the order of the file.

    `files` are the digests of the files that the run answers by; version 0.2 recorded none. `phases` are the seconds
    and the counts of each stage. `towers` are the pretrained towers of a student that starts from them. `wait_share`
    is the share of the training time that was spent waiting for data.
    """

    caveats: tuple[str, ...]
    dataset: str
    files: Mapping[str, str] | None = None
    method: str
    num_adapt_inputs: int
    num_labelled: int
    num_skipped: int
    num_steps: int
    num_texts: int
    num_texts_cut: int
    peak_memory_bytes: int
    phases: Mapping[str, Mapping[str, Any]]
    recipe: str
    samples_per_second: float
    seconds: float
    seconds_per_step: float
    seconds_preparing: float
    seed: int
    shots: int | None = None
    status: str
    student_parameters: int
    towers: tuple[str, ...] = ()
    training_only_parameters: int
    wait_share: float


@contextmanager
def undamaged(what: str, where: str, next_command: str) -> Iterator[None]:
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
    with undamaged("A file of a run cannot be read.", str(path), _ANEW):
        document = json.loads(read_regular(path))
        if not isinstance(document, kind):
            raise ValueError(f"it holds no {'list' if kind is list else 'object'}")
    return document


def as_record(cls: type[RecordT], document: Mapping[str, Any]) -> RecordT:
    """Return a document of any version as a record, without what the record does not name.

    Raises:
        ValueError: a value is missing, or of another type.
    """
    known = {item.name for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values = {name: value for name, value in document.items() if name in known and value is not None}
    try:
        return build_config(cls, values)
    except ConfigError as error:
        raise ValueError(error.what) from error


def read_result(run: Path) -> RunResult:
    """Return the result of a finished run.

    Raises:
        ConfigError: it is damaged, or lacks what every version wrote.
    """
    path = run / names.RESULT
    document = read_json(path)
    with undamaged("A file of a run is damaged.", str(path), _ANEW):
        return as_record(RunResult, document)


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
    files = read_result(run).files
    # Paths are in the options as they were given.
    return None if files is None else digest({name: files[name] for name in files if name != names.CONFIG})


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
    with undamaged("A file of a run is damaged.", str(path), _ANEW):
        for entry in caches:
            Path(entry["path"])
            dict(entry["identity"]["dataset"])
            str(entry["identity"]["teacher"]["name"])
    return caches


def read_log(run: Path, *, before: int | None = None) -> list[dict[str, Any]]:
    """Return the record of each logged step, in order; empty if the run has logged nothing.

    Args:
        before: return only earlier steps than this one, from a log whose last line may be torn.

    Raises:
        ConfigError: a line of metrics.jsonl is damaged.
    """
    path = run / names.METRICS
    records: list[dict[str, Any]] = []
    lines = read_regular(path).split(b"\n") if path.exists() else [b""]
    for number, line in enumerate(lines[:-1] if before is not None or not lines[-1] else lines, start=1):
        with undamaged("A logged step is damaged.", f"{path}, line {number}", _ANEW):
            record = json.loads(line)
            if not isinstance(record, dict) or not isinstance(record.get("step"), int):
                raise ValueError("it is no object with the number of a step")
            records.append(record)
    return [record for record in records if before is None or record["step"] < before]


@dataclass(frozen=True, kw_only=True)
class ReadoutRow:
    """Percent of the nodes (words, texts or regions) that a student places as a teacher does.

    `before` and `after` the adapt stage, and by `chance`.
    """

    teacher: str
    nodes: str
    before: float
    after: float
    chance: float


def read_readout(run: Path) -> list[ReadoutRow]:
    """Return the readout of a run; empty for a run without an adapt stage or a teacher.

    Raises:
        ConfigError: readout.json is damaged.
    """
    path = run / names.READOUT
    if not path.exists():
        return []
    document = read_json(path)
    with undamaged("The readout of a run is damaged.", str(path), _ANEW):
        return [
            ReadoutRow(
                teacher=teacher,
                nodes=nodes,
                before=100.0 * float(share["share"]),
                after=100.0 * float(document["after"][teacher][nodes]["share"]),
                chance=100.0 * float(share["chance"]),
            )
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

    with undamaged("The words of a run cannot be read.", str(path), _ANEW):
        # A word such as "nan" is a word.
        table = pd.read_csv(path, keep_default_na=False, dtype={"word": str, "class": str, "score": float})
        return table[["word", "score", "class"]]
