"""The run folder: all files that a finetuning run writes, and those that let it resume.

run.json (identity of the run; first) · config.json (every option as given) · environment.json · settings.json
(the training settings, each with its source) · caches.json ·
metrics.jsonl · logs of trackers (if requested) · checkpoint.safetensors (during the run) · model.safetensors and
student.json · selected_words.json (of methods that select words) · result.json (last) ·
evaluation/ (written by `advl evaluate`).
"""

from __future__ import annotations

import itertools
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from advl_pipeline.base.atomic import make_folder, remove_left, write_text, writing
from advl_pipeline.base.compute import AUTO, ComputeT
from advl_pipeline.base.configuration import json_text
from advl_pipeline.base.errors import Advice, IdentityMismatch, advise
from advl_pipeline.base.locations import read_regular
from advl_pipeline.base.packages import installed_versions
from advl_pipeline.base.repositories import HUB_PREFIX
from advl_pipeline.cache.identity import Difference, difference_table, differences
from advl_pipeline.runs import names
from advl_pipeline.runs.results import RunResult, read_log, read_result
from advl_pipeline.runs.trackers import open_trackers, scalars

_MADE_BY_TRAINING = (
    *(names.STUDENT_WEIGHTS, names.STUDENT, names.TOKENIZER, names.HEADS_WEIGHTS, names.HEADS),
    *(names.ADAPTER_WEIGHTS, names.ADAPTER, names.SELECTED_WORDS, names.READOUT, names.WORDS),
)
_MADE_OF_THE_RUN = (names.PROCESSOR, names.EVALUATION, names.PREDICTIONS)
"""Folders of the former run, removed with it."""

_ELSEWHERE = "choose another --output, or delete the run folder to start over in it"
_LENGTHS = {"options.num_steps", "options.epochs"}
"""Options that differ between two runs if one is only longer than the other."""

_SHOWN = 16
"""Maximum number of differences listed: caches of two different teachers differ in nearly everything."""

LIBRARIES = ("advl-pipeline", "torch", "transformers", "timm", "zarr", "numpy", "accelerate", "safetensors")


class RunFolder:
    """The paths of one run; reads and writes its small files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.identity = path / names.IDENTITY
        self.metrics = path / names.METRICS
        self.checkpoint = path / names.CHECKPOINT
        self.result = path / names.RESULT
        self.trackers: list[Any] = []

    def resumed_config(self, config: ComputeT) -> ComputeT:
        """Return a configuration with its precision, if left open, taken from the run in this folder."""
        if config.mixed_precision != AUTO:
            return config
        begun = self._recorded(names.IDENTITY, "options", "mixed_precision")
        return config if begun is None else replace(config, mixed_precision=begun)

    def commit_begun(self, init: Path) -> Path:
        """Return a repository name with its commit, if left open, taken from the start of the run in this folder."""
        begun = str(self._recorded(names.CONFIG, "init"))
        return Path(begun) if begun.startswith(HUB_PREFIX) and begun.partition("@")[0] == str(init) else init

    def threads_before(self) -> int | None:
        """Return the number of threads that computed the steps of an interrupted run; None if it is not known."""
        recorded = self._recorded(names.ENVIRONMENT, "num_threads") if self.checkpoint.exists() else None
        return recorded if isinstance(recorded, int) else None

    def _recorded(self, name: str, *keys: str) -> Any:
        """Return a value of a document of the run; None if it is damaged, which `require_same_run` reports."""
        try:
            value = json.loads(read_regular(self.path / name))
            for key in keys:
                value = value[key]
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return value

    def require_same_run(self, identity: Mapping[str, Any]) -> None:
        """Refuse to resume another run; write nothing.

        Args:
            identity: `training.identity.run_record` of the requested run.

        Raises:
            IdentityMismatch: the folder contains another run; the message shows both sides.
        """
        if not self.identity.exists():
            return
        try:
            recorded = dict(json.loads(read_regular(self.identity)))
        except (ValueError, TypeError) as error:
            raise IdentityMismatch(
                "The record of the run is damaged, so that nothing tells what it was trained on.",
                where=str(self.identity),
                why=str(error),
                next_command=_ELSEWHERE,
            ) from None
        if recorded.get("schema") != identity.get("schema"):
            can_answer = names.is_finished(self.path) and not names.lacks_student(self.path)
            raise IdentityMismatch(
                "The run folder has a run of another version, which this version cannot resume.",
                where=str(self.path),
                why=f"it has schema {recorded.get('schema')}, and this version's is {identity.get('schema')}",
                next_command="choose another --output"
                + ("; the run in it can still be evaluated and predicted with" if can_answer else ""),
            )
        if rows := differences(identity, recorded):
            # Familiar names first: a teacher's name before the settings of its layers.
            rows = tuple(sorted(rows, key=lambda row: (row[0].count("."), row[0])))
            raise IdentityMismatch(
                f"The run folder holds a run with other settings or data ({len(rows)} differ).",
                where=str(self.path),
                why="\n" + difference_table(rows[:_SHOWN]) + ("\n    ..." if len(rows) > _SHOWN else ""),
                next_command=self._start_from(rows) or _ELSEWHERE,
            )

    def _start_from(self, rows: Sequence[Difference]) -> Advice | None:
        """Return the advice to start from a finished run if only more steps are requested; None if more differs."""
        if not self.result.is_file() or not {path for path, _, _ in rows} <= _LENGTHS:
            return None
        free = next(path for number in itertools.count(2) if not (path := Path(f"{self.path}-{number}")).exists())
        return advise(
            note="it is finished: start from it, in a new folder",
            again=["--init", str(self.path), "--output", str(free)],
            left_out=["--init", "--output"],
        )

    def begin(
        self,
        identity: Mapping[str, Any],
        *,
        config: Mapping[str, Any],
        command: str,
        settings: Mapping[str, Any],
        caches: Sequence[tuple[str, Mapping[str, Any]]],
        computed_on: Mapping[str, Any],
        resume: bool,
    ) -> None:
        """Write the documents of a run, its identity first; everything was validated before.

        Args:
            identity: as for `require_same_run`.
            config: every option as given.
            command: the command that repeats the run.
            settings: the training settings, each with its source.
            caches: path and identity of each cache that the run reads.
            resume: keep the files of an interrupted run, or of a finished one that kept no student; otherwise remove
                them and its evaluations.
        """
        make_folder(self.path)
        with writing(self.path):
            if not resume:
                self._remove_former()
            elif names.lacks_student(self.path):
                # The run is trained again, and is not finished until then.
                self.result.unlink(missing_ok=True)
            for left in self.path.glob("*.partial"):
                remove_left(left)
        self.write_json(self.identity.name, identity)
        self.write_json(names.CONFIG, config)
        # Provenance, not identity.
        environment = {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "processor": platform.machine(),
            "libraries": installed_versions(LIBRARIES, absent="not installed"),
            "command": command,
        }
        self.write_json(names.ENVIRONMENT, environment | dict(computed_on))
        self.write_json(names.CACHES, [{"path": path, "identity": dict(content)} for path, content in caches])
        self.write_json(names.SETTINGS, settings)

    def _remove_former(self) -> None:
        # The mark of a finished run goes first, so that an interrupted removal leaves no run that looks complete.
        for name in (self.result.name, self.checkpoint.name, self.metrics.name, *_MADE_BY_TRAINING):
            (self.path / name).unlink(missing_ok=True)
        for name in (*names.OF_TRACKERS, *_MADE_OF_THE_RUN):
            remove_left(self.path / name)

    def write_json(self, name: str, value: Any) -> None:
        """Write one JSON document atomically."""
        write_text(self.path / name, json_text(value, sort_keys=True) + "\n")

    def read_result(self) -> RunResult | None:
        """Return the result of a finished run, or None.

        Raises:
            ConfigError: the result is damaged.
        """
        return read_result(self.path) if self.result.exists() else None

    def keep_metrics_before(self, step: int) -> None:
        """Drop logged steps from `step` on and a torn last line, since they will be written again.

        Raises:
            ConfigError: another line is damaged.
        """
        if self.metrics.exists():
            kept = read_log(self.path, before=step)
            write_text(self.metrics, "".join(json_text(record, indent=None) + "\n" for record in kept))

    def open_trackers(self, trackers: Sequence[str], *, first_step: int) -> None:
        """Start logging to trackers as well, from a given step."""
        self.trackers = open_trackers(trackers, self.path, first_step=first_step)

    def log(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Append records to metrics.jsonl and to the trackers."""
        with writing(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
            file.writelines(json_text(record, indent=None) + "\n" for record in records)
        for tracker in self.trackers:
            for record in records:
                tracker.log(scalars(record), step=record["step"])

    def close(self) -> None:
        """Finish the logs of trackers, if any."""
        for tracker in self.trackers:
            tracker.finish()
